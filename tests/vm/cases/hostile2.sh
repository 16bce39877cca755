# SPDX-License-Identifier: GPL-2.0-only
# netblk/2 servers that break the protocol (K2, K3, K4 once more): right bytes or EIO; never stale memory, never a false
# success; the device can always be disconnected and unloaded, and serves again with an honest server.
. "$NETBLK_ROOT/tests/vm/lib.sh"
file=$scratch/disk-h
quick="protocol=2 io_timeout_ms=500 connect_timeout_ms=60000 dead_time_ms=700 heartbeat_ms=100 client_id=000102030405060708090a0b0c0d0e0f"
allowed() { local got=$1 word; shift; for word in "$@"; do [ "$got" != "$word" ] || return 0; done; return 1; }
# always FAULT READ-ANSWERS WRITE-ANSWERS [TIMES]: each request beyond 1 MiB meets the fault
always() {
	local fault=$1 reads=$2 writes=$3 got
	random_file "$file" 4M
	hostile2 10809 "$file" 4 "$fault"; load $quick ${4:-}
	got=$(within 300 "$vm/dio.py" read /dev/netblk "$file" 1056768 4096 1)
	allowed "$got" $reads || fail "a read ended with $got, allowed: $reads"
	[ "$(state)" = connected ] || { disconnect; connect; }
	got=$(within 300 "$vm/dio.py" write /dev/netblk 1056768 4096 1 1)
	allowed "$got" $writes || fail "a write ended with $got, allowed: $writes"
	attr dead_time_ms 60000
	[ "$(state)" = connected ] || { disconnect; connect; }
	expect "$("$vm/dio.py" read /dev/netblk "$file" 65536 65536 2 | sort -u)" same "honest reads, afterwards"
	unload; kill_server
}
all() {
	local fault
	for fault in cookie sequence slot type unasked header-crc payload-crc flags garbage half-close reset heartbeat resize-odd resize-huge goodbye unknown-type times-count times-type silent; do
		always $fault EIO EIO
	done
	always stuck EIO EIO; always status EIO EIO
}
lengths() { always short EIO EIO; always long EIO EIO; always write-data EIO EIO; always eio-data EIO EIO; }
# the first of the two was right
twice() { always twice "same EIO" "ok EIO"; }
# the reads are honest: no time of theirs may run out
early() { always early same EIO "io_timeout_ms=30000 dead_time_ms=20000 heartbeat_ms=20000"; }
# one request in seven meets the fault: resumed and replayed, all come right
sometimes() {
	local fault got
	for fault in cookie header-crc payload-crc half-close reset silent; do
		random_file "$file" 4M
		hostile2 10809 "$file" 4 $fault 7; load $quick dead_time_ms=600000
		got=$(within 300 "$vm/dio.py" read /dev/netblk "$file" 1048576 4096 20 | sort | uniq -c | tr -s ' \n' ' ')
		expect "$got" " 20 same " "20 reads with $fault"
		got=$(within 300 "$vm/dio.py" write /dev/netblk 2097152 4096 7 20 | sort | uniq -c | tr -s ' \n' ' ')
		expect "$got" " 20 ok " "20 writes with $fault"
		cmp -n 81920 -i 2097152:0 "$file" <(head -c 81920 /dev/zero | tr '\0' '\7')
		expect "$(cat $sysfs/lost)" no "lost"
		unload; kill_server
	done
}
in_flight() {
	local fault
	for fault in cookie half-close payload-crc; do
		random_file "$file" 16M; cp "$file" "$scratch/disk-copy"
		hostile2 10809 "$file" 16 $fault 50; load $quick dead_time_ms=600000 connections=2
		fio_job load --rw=randread --bs=4k-128k --iodepth=32 --runtime=3 --time_based --size=16m
		none_in_flight
		expect "$(stat_of errors)" 0 "errors"
		kill_server; hostile2 10809 "$file" 16 cookie 1000000; wait_state connected
		expect "$(dd if=/dev/netblk bs=1M iflag=direct status=none | sha256sum)" "$(sha256sum < "$scratch/disk-copy")" "the whole device"
		unload; kill_server
	done
}
welcomes() {
	local fault
	for fault in crc slots block size long feature half garbage; do
		hostile2 10809 "$file" 4 welcome-$fault; patience=500 load $quick connect_timeout_ms=500
		expect "$(state)" error "state with welcome-$fault"
		must_fail 'protocol error\|timed out\|reset' connect
		unload; kill_server
	done
}
t K3-K4-forged-replies all
t K4-wrong-lengths lengths
t K3-a-reply-twice twice
t K4-a-reply-before-the-data early
t K3-K4-sometimes-and-replayed sometimes
t K3-32-in-flight in_flight
t impossible-welcomes welcomes
finish
