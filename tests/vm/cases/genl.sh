# SPDX-License-Identifier: GPL-2.0-only
# The generic netlink family: devices, sockets handed over, events, and what it refuses (K5, K8, K9, K17, K22).
. "$NETBLK_ROOT/tests/vm/lib.sh"
PROTOCOL=1
genl() { python3 "$vm/genl.py" "$@"; }
devices() { (cd /sys/block && ls -d netblk* 2>/dev/null) | sort -V | tr '\n' ' '; }
# whoever unmounted or closed it may not be quite through
removed() { until_true 60 "the removal" genl remove 1; }
reader() { timeout -k 1 120 dd if=$1 of=/dev/null bs=4096 count=1 skip=512 iflag=direct status=none; }

commands() {
	serve 10809 "$scratch/disk" 100; load
	expect "$(genl status 0 | sed 's/protocol=[12]/protocol=N/')" 'netblk connected size=104857600 protocol=N reconnects=0' "status of the first"
	expect "$(genl add size_mb=3)" 'netblk-1 disconnected size=3145728 protocol=0 reconnects=0' "answer to add"
	expect "$(genl add number=9 size_mb=3 | cut -d' ' -f1)" netblk-9 "answer to add"
	expect "$(genl list | cut -d' ' -f1 | tr '\n' ' ')" 'netblk netblk-1 netblk-9 ' "the list"
	must_fail 'input/output' reader /dev/netblk-1
	genl disconnect 0; expect "$(state)" disconnected state
	genl remove 9; genl remove 1; expect "$(devices)" 'netblk ' devices
	genl add-many 300 size_mb=1 queue_depth=1 > /dev/null
	expect "$(genl list | wc -l)" 301 "lines of a list that needs several messages"
}
hand_over() {
	random_file "$scratch/disk" 64M; serve 10809 "$scratch/disk" 64; load server_port=9
	expect "$(genl add size_mb=1)" 'netblk-1 disconnected size=1048576 protocol=0 reconnects=0' "answer to add"
	expect "$(genl handover 1 127.0.0.1 10809 67108864)" 'netblk-1 connected size=67108864 protocol=1 reconnects=0 handed_over' "answer to connect"
	said 'netblk-1: was handed a connection to 127\.0\.0\.1:10809'
	expect "$(blockdev --getsize64 /dev/netblk-1) $(cat /sys/block/netblk-1/state)" '67108864 connected' "size and state"
	cmp "$scratch/disk" /dev/netblk-1
	dd if=/dev/zero of=/dev/netblk-1 bs=1M count=2 seek=5 oflag=direct status=none
	cmp -n 2097152 -i 5242880:0 "$scratch/disk" /dev/zero
	# the process that handed it over is gone; nobody but the driver holds the socket
	expect "$(ss -Htn state established dport = 10809 | wc -l)" 1 "connections"
	# once more, on a device that is connected: the new one takes the place of the old
	genl handover 1 127.0.0.1 10809 > /dev/null
	until_true 60 "the end of the first connection" eval '[ "$(ss -Htn state established dport = 10809 | wc -l)" = 1 ]'
	cmp "$scratch/disk" /dev/netblk-1
	# the log names who is at the other end, whatever the family
	if [ -e /proc/net/if_inet6 ]; then
		genl handover 1 ::1 10809 > /dev/null; said 'netblk-1: was handed a connection to \[::1\]:10809'
		cmp "$scratch/disk" /dev/netblk-1
	fi
	# on the first device, which seeks nothing; a connect from sysfs takes it back
	genl handover 0 127.0.0.1 10809 67108864 > /dev/null; cmp "$scratch/disk" /dev/netblk
	expect "$(genl status 0 | grep -c handed_over)" 1 "handed over"
	attr server_port 10809; disconnect; connect; expect "$(genl status 0 | grep -c handed_over)" 0 "handed over after connect"
	genl disconnect 1; expect "$(cat /sys/block/netblk-1/state)" disconnected "state after disconnect"
	must_fail 'input/output' reader /dev/netblk-1
	genl remove 1
}
# file systems and partitions on a disk that was handed over, the socket kept open by its giver
mounted() {
	serve 10809 "$scratch/disk" 64; load server_port=9; genl add size_mb=64 dead_time_ms=600000 > /dev/null
	background genl keep 1 127.0.0.1 10809
	for i in $(seq 2400); do [ "$(cat /sys/block/netblk-1/state)" = connected ] && break; sleep 0.05; done
	printf 'label: dos\n,40M\n' | sfdisk -q /dev/netblk-1; mkfs.ext4 -q /dev/netblk-1p1; mount /dev/netblk-1p1 $mnt
	random_file $mnt/blob 8M; local sum; sum=$(sha256sum < $mnt/blob); sync -f $mnt; drop_caches
	# the server dies; the helper hands over again; nothing is seen of it
	kill_server; (sleep 0.5; cat $mnt/blob | sha256sum > "$scratch/sum") & local job=$!; serve 10809 "$scratch/disk" 64
	wait $job; expect "$(cat "$scratch/sum")" "$sum" "the file after a loss"
	[ "$(cat /sys/block/netblk-1/statistics/reconnects)" -ge 1 ] || fail "no reconnect counted"
	expect "$(cat /sys/block/netblk-1/statistics/errors)" 0 errors
	must_fail 'EBUSY' genl remove 1
	umount $mnt; removed
}
# a session of netblk/2 over two connections: handshake and resume by a process, requests and replay by the driver
netblk2() {
	[ "$netblk_server" != "$vm/simple_server.py" ] || skip "netblk_server is not built"
	serve 10809 "$scratch/disk" 64; load server_port=9 connections=2; genl add size_mb=1 dead_time_ms=600000 > /dev/null
	background genl keep2 1 10809 2 > "$scratch/keep"
	for i in $(seq 2400); do [ "$(cat /sys/block/netblk-1/state)" = connected ] && break; sleep 0.05; done
	expect "$(genl status 1)" 'netblk-1 connected size=67108864 protocol=2 reconnects=0 handed_over' "status"
	expect "$(blockdev --getsize64 /dev/netblk-1) $(cat /sys/block/netblk-1/connections_up)" '67108864 2' "size and connections"
	mkfs.ext4 -q /dev/netblk-1; mount /dev/netblk-1 $mnt; random_file $mnt/blob 16M; local sum; sum=$(sha256sum < $mnt/blob); sync -f $mnt
	local round
	for round in 1 2; do
		cp $mnt/blob "$mnt/copy$round" & local copy=$!
		kill_server; sleep 0.3; serve 10809 "$scratch/disk" 64
		wait $copy; sync -f $mnt
	done
	umount $mnt; drop_caches; mount /dev/netblk-1 $mnt
	for round in 1 2; do expect "$(sha256sum < "$mnt/copy$round")" "$sum" "copy $round"; done
	umount $mnt
	expect "$(cat /sys/block/netblk-1/statistics/errors)" 0 errors
	[ "$(cat /sys/block/netblk-1/statistics/reconnects)" -ge 2 ] || fail "no reconnects counted"
	removed
}
# the process that handed the connections over is killed in the midst of I/O: nothing is seen of it while they last, and
# when they are lost, another process takes its place
K13_giver() {
	[ "$PROTOCOL" = 1 ] || [ "$netblk_server" != "$vm/simple_server.py" ] || skip "netblk_server is not built"
	serve 10809 "$scratch/disk" 64; load server_port=9 connections=2; genl add size_mb=64 dead_time_ms=600000 > /dev/null
	# of netblk/2, another process could only take the place of one whose client it is, which this one's are not
	local keep=(keep 1 127.0.0.1 10809) rounds=2 round job giver before
	[ "$PROTOCOL" = 1 ] || { keep=(keep2 1 10809 2); rounds=1; }
	connected() { [ "$(cat /sys/block/netblk-1/state)" = connected ]; }
	for round in $(seq $rounds); do
		background genl "${keep[@]}"; giver=$(tail -1 "$scratch/pids"); until_true 60 "a hand-over" connected
		before=$(cat /sys/block/netblk-1/statistics/write_requests)
		fio --name=v --filename=/dev/netblk-1 --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k-32k --size=24m --verify=crc32c --verify_fatal=1 \
			--minimal --output="$scratch/fio" > "$scratch/fio.err" 2>&1 & job=$!
		until_true 60 "writes" eval "[ \$(cat /sys/block/netblk-1/statistics/write_requests) -gt $((before + 20)) ]"
		pkill -KILL -P "$giver" || true; kill -KILL "$giver" 2> /dev/null || true
		wait $job || fail "fio: $(tail -3 "$scratch/fio.err")"
		[ "$round" = $rounds ] || { kill_server; until_true 60 "the loss" eval '! connected'; serve 10809 "$scratch/disk" 64; }
	done
	expect "$(cat /sys/block/netblk-1/statistics/errors)" 0 errors
	removed
}
# nobody hands over again: EIO after the dead time, and the device can be removed
K22_no_helper() {
	serve 10809 "$scratch/disk" 64; load server_port=9; genl add size_mb=64 dead_time_ms=600000 max_retries=1000 > /dev/null
	genl handover 1 127.0.0.1 10809 > /dev/null; genl watch 600 2 > "$scratch/events" & local watcher=$!
	until_true 60 "watching" grep -qs watching "$scratch/events"
	kill_server; until_true 60 "the loss" grep -q connecting /sys/block/netblk-1/state
	serve 10809 "$scratch/disk" 64; sleep 0.5
	expect "$(cat /sys/block/netblk-1/state)" connecting "state, with a server that the driver could reach itself"
	echo 1000 > /sys/block/netblk-1/dead_time_ms
	reader /dev/netblk-1 && fail "a read without a connection"
	until_true 60 "giving up" grep -q error /sys/block/netblk-1/state
	wait $watcher
	expect "$(grep -c '^netblk-1 connecting .*handed_over' "$scratch/events") $(grep -c '^netblk-1 error' "$scratch/events")" '1 1' "events"
	genl handover 1 127.0.0.1 10809 > /dev/null; echo 600000 > /sys/block/netblk-1/dead_time_ms; reader /dev/netblk-1
	removed
}
K17_refused() {
	serve 10809 "$scratch/disk" 64; load; genl add size_mb=64 > /dev/null
	local kind
	for kind in udp raw unix netlink; do must_fail 'EINVAL the socket is none of TCP' genl refused 1 fd-$kind; done
	for kind in listening unconnected; do must_fail 'ENOTCONN the socket is not connected' genl refused 1 fd-$kind; done
	must_fail 'EBADF the file descriptor is no open socket' genl refused 1 fd-closed
	must_fail 'EBADF the file descriptor is no open socket' genl refused 1 fd-huge
	must_fail 'ENOTSOCK the file descriptor is no open socket' genl refused 1 fd-file
	must_fail 'ERANGE' genl refused 1 fd-negative
	must_fail 'EINVAL these are too few' genl refused 1 fd-none
	must_fail 'EINVAL the socket is given twice' genl refused 1 fd-twice
	for kind in 0 -1 2**63 2**63-511 2**64-512 511; do must_fail 'ERANGE [a-z]' genl refused 1 "size-$kind"; done
	for kind in 513 2**62+1 2**63-512+1; do must_fail 'EINVAL\|ERANGE' genl refused 1 "size-$kind"; done
	# what a welcome of netblk/2 says has to be there, and to make sense
	for kind in size_bytes block_bytes slots max_payload_bytes session_id client_id store_uuid generation; do
		must_fail 'EINVAL something that the welcome said is missing' genl refused 1 2-$kind
	done
	must_fail 'EINVAL an id is zero' genl refused 1 2-session_id=00000000000000000000000000000000
	must_fail 'EINVAL the block size is no power of two' genl refused 1 2-block_bytes=58020000
	for kind in slots=00000000 slots=0f000000 slots=01100000 slots=ffffffff block_bytes=00000000 block_bytes=00000100 max_payload_bytes=00000000 \
		max_payload_bytes=ffffffff size_bytes=0000000000000080; do must_fail 'ERANGE' genl refused 1 2-$kind; done
	for kind in slots=40 session_id=00 generation=00 size_bytes=0010; do must_fail 'ERANGE\|EINVAL' genl refused 1 2-$kind; done
	must_fail 'ENOTSUP the driver does not have' genl refused 1 2-features=01000080
	must_fail 'EINVAL the heartbeat has' genl refused 1 2-heartbeat_ms=e8030000
	expect "$(genl status 1)" 'netblk-1 disconnected size=67108864 protocol=0 reconnects=0' "the device after all that"
	expect "$(ss -Htn state established dport = 10809 | wc -l)" 1 "connections: the first device's"
}
K17_nonsense() {
	serve 10809 "$scratch/disk" 64; load; genl add size_mb=64 > /dev/null
	must_fail 'ENODEV there is no device' genl status 5
	must_fail 'ENODEV there is no device' genl remove 5
	must_fail 'ENODEV there is no device' genl disconnect 1000
	must_fail 'ERANGE' genl status 1024
	must_fail 'ERANGE' genl status -1
	must_fail 'EINVAL the number of the device is missing' genl raw status
	must_fail 'EINVAL the number of the device is missing' genl raw remove
	must_fail 'EINVAL the number of the device is missing' genl raw connect
	must_fail 'EINVAL the sockets are missing' genl raw connect 2=01000000 15=01000000
	must_fail 'EINVAL\|ERANGE' genl raw status 2=01
	must_fail 'EINVAL' genl raw status 2=01000000 99=00
	must_fail 'EINVAL' genl raw status 2=01000000 4=7800
	must_fail 'EINVAL\|ERANGE' genl raw add 4=7878
	must_fail 'EINVAL an option is unknown' genl add colour=red
	must_fail 'EINVAL an option is unknown' genl add size_mb=0
	must_fail 'EEXIST this number is in use' genl add number=1
	must_fail 'ENOTSUP' genl raw 99
	must_fail 'ENOTSUP' genl raw event
	expect "$(devices)" 'netblk netblk-1 ' devices
	# nothing without the capability
	for command in 'status 0' 'add size_mb=1' 'remove 1' 'disconnect 0' list; do
		must_fail 'EPERM' setpriv --reuid 65534 --clear-groups --bounding-set -all --inh-caps -all python3 "$vm/genl.py" $command
	done
	expect "$(state)" connected state
	local n; for n in $(seq "${ROUNDS:-60}"); do
		genl raw $((RANDOM % 8)) $((RANDOM % 30))=$(head -c $((RANDOM % 40)) /dev/urandom | od -An -v -tx1 | tr -d ' \n') \
			$((RANDOM % 30))=$(head -c $((RANDOM % 9)) /dev/urandom | od -An -v -tx1 | tr -d ' \n') > /dev/null || true
	done
}
# a reply in excess of what was asked for, a silent server: on a handed-over socket as on the driver's own
hostile_giver() {
	hostile 10811 "$scratch/disk" 64 silent; load server_port=9; genl add size_mb=64 io_timeout_ms=500 dead_time_ms=1000 > /dev/null
	genl handover 1 127.0.0.1 10811 > /dev/null
	reader /dev/netblk-1 && fail "a read from a silent server"
	removed
}
commander() { while :; do for n in 1 2; do genl add number=$n size_mb=8 dead_time_ms=1000; genl handover $n 127.0.0.1 10809; genl status $n; genl disconnect $n; genl remove $n; done; genl list; done > /dev/null 2>&1; }
watcher() { while :; do genl watch 5 100; done > /dev/null 2>&1; }
user() { while :; do for n in 1 2; do dd if=/dev/netblk-$n of=/dev/null bs=64k count=8 iflag=direct; cat /sys/block/netblk-$n/* /sys/block/netblk-$n/statistics/*; done; done > /dev/null 2>&1; }
K5_storm() {
	serve 10809 "$scratch/disk" 100; load; dmesg -C
	local worker; for worker in commander watcher user commander user; do background $worker; done
	sleep "${ROUNDS:-6}"
	until_true 120 "more than three hand-overs" eval "[ \$(dmesg | grep -c 'netblk-[12]: was handed a connection') -gt 3 ]"
	expect "$(genl status 0 | cut -d' ' -f2)" connected state
}
K9_unload() {
	serve 10809 "$scratch/disk" 100
	background commander; background watcher; background commander
	local n
	for n in $(seq "${ROUNDS:-6}"); do
		load; sleep 0.$((RANDOM % 9))
		until_true 120 "unload $n" rmmod net_block_driver
	done
	must_fail 'ENOENT' genl list
}
t genl-commands commands
t genl-hand-over hand_over
t genl-hand-over-under-a-mount mounted
t genl-hand-over-of-a-netblk2-session netblk2
both K13-helper-killed-under-io K13_giver
t K22-nobody-hands-over-again K22_no_helper
t K17-hand-overs-that-are-refused K17_refused
t K17-nonsense-by-netlink K17_nonsense
t hand-over-of-a-silent-server hostile_giver
t K5-storm-of-commands K5_storm
t K9-unload-under-commands K9_unload
finish
