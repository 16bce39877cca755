# SPDX-License-Identifier: GPL-2.0-only
# Servers that break the protocol (K2, K3, K4): right bytes or EIO; never stale memory, never a false success; the
# device can always be disconnected and unloaded, and serves again with an honest server.
. "$NETBLK_ROOT/tests/vm/lib.sh"
quick="io_timeout_ms=500 connect_timeout_ms=1000 dead_time_ms=1200 max_retries=1000"
file=$scratch/disk-h

# an honest server may be slow: what follows is not about time
patient() { attr io_timeout_ms 60000; attr connect_timeout_ms 60000; attr dead_time_ms 600000; }
allowed() { local got=$1 word; shift; for word in "$@"; do [ "$got" != "$word" ] || return 0; done; return 1; }
# every FAULT WORDS ANSWERS...: each read and each write of a server that always misbehaves ends with one of ANSWERS
always() {
	local fault=$1 reads=$2 writes=$3 argument=${4:-0} got
	random_file "$file" 4M
	hostile 10809 "$file" 4 "$fault" 1 "$argument"; load size_mb=4 $quick
	for got in $(within 120 "$vm/dio.py" read /dev/netblk "$file" 1056768 4096 2); do allowed "$got" $reads || fail "a read ended with $got, allowed: $reads"; done
	# the first I/O may have used up the dead time; the fault must be met by the writes too
	[ "$(state)" = connected ] || { disconnect; connect 2>/dev/null || true; }
	for got in $(within 120 "$vm/dio.py" write /dev/netblk 1056768 4096 1 2); do allowed "$got" $writes || fail "a write ended with $got, allowed: $writes"; done
	kill_server; serve 10809 "$file" 4
	disconnect; patient; connect
	expect "$("$vm/dio.py" read /dev/netblk "$file" 65536 65536 4 | sort -u)" same "reads from an honest server, afterwards"
	unload
}
# sometimes FAULT: one request in seven meets the fault; reissued, it succeeds with the right bytes
sometimes() {
	local fault=$1 argument=${2:-0} got
	random_file "$file" 4M
	hostile 10809 "$file" 4 "$fault" 7 "$argument"; load size_mb=4 $quick dead_time_ms=600000
	got=$(within 180 "$vm/dio.py" read /dev/netblk "$file" 1048576 4096 40 | sort | uniq -c | tr -s ' \n' ' ')
	expect "$got" " 40 same " "40 reads"
	got=$(within 180 "$vm/dio.py" write /dev/netblk 2097152 4096 7 20 | sort | uniq -c | tr -s ' \n' ' ')
	expect "$got" " 20 ok " "20 writes"
	cmp -n 81920 -i 2097152:0 "$file" <(head -c 81920 /dev/zero | tr '\0' '\7')
	unload
}
# many requests in flight when the stream breaks: each ends once, with the right bytes or EIO
in_flight() {
	local fault=$1
	random_file "$file" 16M; cp "$file" "$scratch/disk-copy"
	hostile 10809 "$file" 16 "$fault" 50; load size_mb=16 $quick dead_time_ms=600000
	fio_job load --rw=randread --bs=4k-128k --iodepth=32 --runtime=5 --time_based --size=16m --continue_on_error=all || true
	none_in_flight
	patient; kill_server; serve 10809 "$file" 16
	until_true 120 "the end of the tries" eval '[ "$(state)" != connecting ]'; [ "$(state)" = connected ] || connect
	expect "$(dd if=/dev/netblk bs=1M iflag=direct status=none | sha256sum)" "$(sha256sum < "$scratch/disk-copy")" "the whole device"
	unload
}
t K4-bad-status always status EIO EIO
t K4-error-replies always error EIO EIO
t K4-one-byte-short always short EIO EIO
t K4-one-byte-short-then-close always short-close EIO EIO
t K4-half-then-close always half-close EIO EIO
t K4-half-then-reset always reset EIO EIO
# the reply was right, what follows it was not: the request itself may succeed
t K4-one-byte-long always long "same EIO" "ok EIO"
t K4-data-for-a-write always write-data "same EIO" "ok EIO"
t K3-unsolicited-data always unsolicited EIO EIO
t K3-garbage always garbage "EIO differs" "ok EIO"
t K2-silent always silent EIO EIO
t K2-deaf always deaf EIO EIO
t accepts-and-closes always accept-close EIO EIO
t K2-delay-beyond-the-timeout always delay EIO EIO 900
for fault in status short-close half-close reset long silent; do t K4-sometimes-$fault sometimes $fault; done
for fault in status half-close reset; do t K3-$fault-with-32-in-flight in_flight $fault; done
finish
