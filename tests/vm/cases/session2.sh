# SPDX-License-Identifier: GPL-2.0-only
# Sessions of netblk/2: what a restart keeps, what a loss says, who owns. ROUNDS sets the number of kills. K1, K7, K16, K17,
# K21, K22, K24 once more with netblk/2.
. "$NETBLK_ROOT/tests/vm/lib.sh"
[ "$netblk_server" != "$vm/simple_server.py" ] || { echo "SKIP session2: netblk_server is not built"; exit 0; }
id=000102030405060708090a0b0c0d0e0f other=101112131415161718191a1b1c1d1e1f
load2() { load protocol=2 client_id=$id dead_time_ms=600000 connect_timeout_ms=10000 "$@"; }
read_one() { dd if=/dev/netblk of=/dev/null bs=4096 count=1 skip=${1:-512} iflag=direct status=none; }
# write without a flush behind it: dd's direct writes are acknowledged, and no more
unflushed_write() { "$vm/dio.py" write /dev/netblk 1048576 4096 7 "${1:-1}" > /dev/null; }
sync_device() { python3 -c 'import os; fd = os.open("/dev/netblk", os.O_RDWR); os.fsync(fd)'; }
# the machine goes down, and not the process alone: what knew that its cache was sound is gone
# (a server that inherits what the test holds open would keep the device open)
restart_server() { kill_server; serve "$@" 5>&- 6>&-; }
reboot_server() { kill_server; rm -rf /run/netblk; serve "$@" 5>&- 6>&-; }
until_value() { local i; for i in $(seq 1200); do [ "$(cat "$sysfs/$1")" = "$2" ] && return; sleep 0.05; done; fail "$1 is '$(cat "$sysfs/$1")', not '$2'"; }
lost() { cut -c1-3 $sysfs/lost; }

# `auto` takes a server that is silent for a second for an old one
by_auto() { [ "$(cat $sysfs/protocol)" = 2 ] || { disconnect; connect; [ "$(cat $sysfs/protocol)" = 2 ]; }; }
quick_start() {
	serve 10809 "$scratch/disk" 100; load
	until_true 60 "netblk/2 by auto" by_auto
	expect "$(state) $(cat $sysfs/protocol) $(lost)" 'connected 2 no' "state, protocol, lost"
	expect "$(cat $sysfs/size)" 204800 "size in sectors"
	expect "$(cat $sysfs/queue/write_cache) $(cat $sysfs/queue/fua)" 'write back 1' "the cache"
	[[ $(cat $sysfs/generation) =~ ^[0-9a-f-]{36}\ [0-9]+$ ]] || fail "generation: $(cat $sysfs/generation)"
	[[ $(cat $sysfs/session) =~ ^[0-9a-f]{32}$ ]] || fail "session: $(cat $sysfs/session)"
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt
	random_file "$scratch/blob" 20M; cp "$scratch/blob" $mnt/blob; sync -f $mnt
	umount $mnt; drop_caches; mount /dev/netblk $mnt; cmp "$scratch/blob" $mnt/blob; umount $mnt; e2fsck -fn /dev/netblk
	sync_device; expect "$(cat $sysfs/unflushed)" 0 "changes not flushed"
	expect "$(stat_of errors)" 0 errors
	unload
}
# what the block layer is told, and what comes of it (K24)
K24_limits() {
	random_file "$scratch/disk" 16M; serve 10809 "$scratch/disk" 16; load2 size_mb=1
	expect "$(blockdev --getsize64 /dev/netblk)" 16777216 "the server's size, not size_mb"
	[ "$(cat $sysfs/queue/write_zeroes_max_bytes)" -gt 0 ] || fail "no write of zeroes"
	blkdiscard -z -o 1048576 -l 2097152 /dev/netblk; cmp -n 2097152 -i 1048576:0 "$scratch/disk" /dev/zero
	if [ "$(cat $sysfs/queue/discard_max_bytes)" -gt 0 ]; then blkdiscard /dev/netblk; fi
	expect "$(stat_of errors)" 0 errors
	expect "$("$vm/dio.py" write /dev/netblk 512 512 9) $("$vm/dio.py" read /dev/netblk "$scratch/disk" 0 8192)" 'ok same' "small writes"
	# the whole device: trimmed and zeroed by one command each
	blkdiscard /dev/netblk; blkdiscard -z /dev/netblk; cmp -n 16777216 "$scratch/disk" /dev/zero
	# a client that only reads changes nothing
	disconnect; attr access read_only; connect; expect "$(cat $sysfs/ro)" 1 "read-only"
	local command
	for command in 'dd if=/dev/urandom of=/dev/netblk bs=4096 count=1 oflag=direct status=none' 'blkdiscard -z /dev/netblk' 'blkdiscard /dev/netblk'; do
		must_fail 'not permitted\|read-only' $command
	done
	unload
}
# law 3, the first half: a restart of the server's process loses nothing, and programs see a pause
law3_process_restart() {
	serve 10809 "$scratch/disk" 100; load2 connections=${1:-1}
	fio --name=verify --filename=/dev/netblk --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --size=48m --verify=crc32c --fsync=50 \
		--verify_backlog=64 --loops=100 --time_based --runtime=$((${ROUNDS:-4} * 2 + 2)) --verify_fatal=1 --minimal --output="$scratch/fio" > "$scratch/fio.err" 2>&1 & local job=$!
	local round before; before=$(cat $sysfs/generation)
	for round in $(seq "${ROUNDS:-4}"); do
		sleep 1.$((RANDOM % 5)); kill_server; sleep 0.$((RANDOM % 8)); serve 10809 "$scratch/disk" 100
	done
	wait $job || fail "fio failed: $(tail -3 "$scratch/fio.err")"
	wait_state connected; expect "$(stat_of errors) $(lost) $(cat $sysfs/generation)" "0 no $before" "errors, lost, generation"
	said 'netblk: reconnected'
	unload
}
# law 3, the second half: the server's machine goes down, and every flush says so until the owner knows
law3_host_reboot() {
	serve 10809 "$scratch/disk" 100; load2
	exec 5<> /dev/netblk
	sync_device; local before; before=$(cat $sysfs/generation)
	unflushed_write 8; expect "$(cat $sysfs/unflushed)" 8 "changes not flushed"
	reboot_server 10809 "$scratch/disk" 100; wait_state connected
	read_one
	expect "$(lost)" yes lost
	[ "$(cat $sysfs/generation)" != "$before" ] || fail "the generation is the old one"
	said 'netblk: LOST: generation .* 8 acknowledged changes'
	must_fail 'input/output' sync_device; must_fail 'input/output' sync_device
	expect "$("$vm/dio.py" write /dev/netblk 2097152 4096 3)" ok "a write while lost"
	must_fail 'invalid' attr reset_lost 0; expect "$(lost)" yes "lost after nonsense"
	attr reset_lost 1; expect "$(lost)" no "lost after reset_lost"
	sync_device
	# and it ends with the last close
	unflushed_write; reboot_server 10809 "$scratch/disk" 100; wait_state connected; read_one
	expect "$(lost)" yes lost
	exec 5>&-; until_value lost no; sync_device
	unload
}
law3_mounted() {
	serve 10809 "$scratch/disk" 100; load2
	mkfs_no_flush; sync -f $mnt
	random_file "$scratch/blob" 4M
	cp "$scratch/blob" $mnt/a; restart_server 10809 "$scratch/disk" 100; sync -f $mnt; cmp "$scratch/blob" $mnt/a
	exec 6> $mnt/b; dd if="$scratch/blob" of=$mnt/b bs=64k oflag=direct conv=notrunc status=none
	[ "$(cat $sysfs/unflushed)" -gt 0 ] || fail "nothing to lose: nothing is tested"
	reboot_server 10809 "$scratch/disk" 100
	python3 -c 'import os; os.fsync(os.open("'$mnt/b'", os.O_RDWR))' 2> "$scratch/said" && fail "fsync succeeded after a loss"
	grep -qi 'input/output' "$scratch/said" || fail "fsync said: $(cat "$scratch/said")"
	expect "$(lost)" yes lost
	exec 6>&-; umount $mnt; until_value lost no
	unload
}
nothing_to_lose() {
	serve 10809 "$scratch/disk" 100; load2
	unflushed_write 4; sync_device
	local before; before=$(cat $sysfs/generation)
	reboot_server 10809 "$scratch/disk" 100; wait_state connected; read_one
	expect "$(lost)" no lost
	sync_device; expect "$(stat_of errors)" 0 errors
	unload
}
other_store() {
	serve 10809 "$scratch/disk" 100; load2
	exec 5<> /dev/netblk; read_one
	kill_server; rm -rf "$scratch"/disk.netblk* /run/netblk; serve 10809 "$scratch/disk" 100 5>&-
	wait_state error; must_fail 'input/output' read_one
	must_fail 'stale' connect
	exec 5>&-; connect; read_one
	unload
}
K16_resize() {
	serve 10809 "$scratch/disk" 100; load2
	fio_job load --rw=randread --bs=4k --iodepth=16 --runtime=6 --time_based --size=32m & local job=$!
	truncate -s 150M "$scratch/disk"; until_value size 307200
	expect "$("$vm/dio.py" write /dev/netblk 150000000 512 1 2>&1 | head -1)" EINVAL "an unaligned write"
	expect "$("$vm/dio.py" write /dev/netblk 146800640 4096 1)" ok "a write into what is new"
	truncate -s 64M "$scratch/disk"; until_value size 131072
	must_fail 'no space' dd if=/dev/zero of=/dev/netblk bs=4096 seek=16384 count=1 oflag=direct
	wait $job || fail "fio failed"
	expect "$(stat_of errors) $(lost)" "0 no" "errors, lost"
	unload
}
connections() {
	serve 10809 "$scratch/disk" 100; load2 connections=4 queue_depth=32
	until_value connections_up 4
	local processors; processors=$(nproc); expect "$(ls $sysfs/mq | wc -l)" $((processors < 4 ? processors : 4)) "hardware queues"
	fio_job v --rw=randwrite --bs=4k-64k --iodepth=16 --numjobs=2 --size=24m --offset_increment=32m --verify=crc32c --verify_fatal=1 --loops=2
	expect "$(stat_of errors)" 0 errors
	disconnect; expect "$(cat $sysfs/connections_up)" 0 "connections after disconnect"
	connect; until_value connections_up 4; unload
}
owners() {
	serve 10809 "$scratch/disk" 100; load2
	echo "server_ip=127.0.0.1 protocol=2 client_id=$other" > /sys/bus/netblk/add
	local second=/sys/block/netblk-1
	expect "$(cat $second/state)" error "the second writer"
	[[ $(cat $second/reason) = *'another client writes'* ]] || fail "reason: $(cat $second/reason)"
	must_fail 'busy' bash -c "echo 1 > $second/connect"
	# with nothing to say no more, an owner that leaves is none; a farewell has 200 ms, and one that was late is said again
	leave_and_let() { disconnect; echo 1 > $second/connect || { connect; false; }; }
	until_true 60 "a connection of the second, alone" leave_and_let; expect "$(cat $second/state)" connected "the second, alone"
	must_fail 'busy' connect
	attr access takeover; connect
	local i; for i in $(seq 1200); do [ "$(cat $second/state)" = error ] && break; sleep 0.1; done
	expect "$(cat $second/state)" error "the one that was fenced"
	[[ $(cat $second/reason) = fenced* ]] || fail "reason: $(cat $second/reason)"
	read_one
	echo read_only > $second/access; echo 1 > $second/connect; expect "$(cat $second/ro)" 1 "read-only"
	cmp -n 65536 /dev/netblk-1 "$scratch/disk"
	unload
}
fall_back() {
	serve_simple 10809 "$scratch/disk" 100; load dead_time_ms=1000
	expect "$(state) $(cat $sysfs/protocol)" 'connected 1' "an old server"; read_one; disconnect
	# which has its first export, and not this one
	attr export other; must_fail 'reset\|timed out\|pipe' connect; expect "$(state)" error "an export that netblk/1 cannot name"
	attr export ''; connect; expect "$(state) $(cat $sysfs/protocol)" 'connected 1' "the old server again"; disconnect; kill_server
	serve 10809 "$scratch/disk" 100; connect; until_true 60 "netblk/2 of a new server" by_auto
	kill_server; serve_simple 10809 "$scratch/disk" 100
	wait_state error; must_fail 'reset\|timed out' connect
	attr protocol 1; connect; expect "$(state) $(cat $sysfs/protocol)" 'connected 1' "netblk/1, as told"; read_one
	unload
}
K22_silent() {
	serve 10809 "$scratch/disk" 100; load2 heartbeat_ms=1500
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt; sync -f $mnt
	stand_still $server_pid; attr dead_time_ms 8000
	# with no I/O at all
	wait_state error; said 'no heartbeat for three periods'
	within 60 umount $mnt; unload; kill -CONT $server_pid
}
K17_attributes() {
	serve 10809 "$scratch/disk" 100; insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 protocol=2 client_id=$id connect_timeout_ms=60000
	local pair
	for pair in protocol=3 protocol= protocol=Auto access= access=writer client_id= client_id=00 client_id=00000000000000000000000000000000 \
		client_id=${id}0 client_id=zz0102030405060708090a0b0c0d0e0f heartbeat_ms=1 heartbeat_ms=99 heartbeat_ms=600001 heartbeat_ms=-1 crc32c=2 crc32c= \
		reset_lost=0 reset_lost= "export=$(printf 'x%.0s' $(seq 256))" $'export=a\tb' dead_time_ms=4294967296; do
		must_fail 'invalid argument' attr "${pair%%=*}" "${pair#*=}"
	done
	expect "$(cat $sysfs/client_id) $(cat $sysfs/access) $(cat $sysfs/heartbeat_ms) $(cat $sysfs/crc32c) $(cat $sysfs/export)" "$id exclusive 2000 1 " "attributes"
	disconnect; attr export nothing-like-it; must_fail 'no such file' connect; expect "$(state)" error state
	attr export ''; attr crc32c 0; attr heartbeat_ms 0; connect; expect "$(cat $sysfs/queue/stable_writes)" 0 "stable pages without checksums"
	read_one; unload
	for pair in protocol=3 access=writer client_id=00 heartbeat_ms=7 crc32c=2 connections=0 connections=17; do
		must_fail 'invalid' insmod "$NETBLK_MODULES/net_block_driver.ko" "$pair"
	done
}
K1_disconnect() {
	serve 10809 "$scratch/disk" 100; load2 connections=2
	local round
	for round in 1 2 3; do
		fio_job d --rw=randrw --bs=4k-64k --iodepth=32 --time_based --runtime=3600 --size=64m 2> /dev/null & local job=$!
		sleep 0.$((RANDOM % 9 + 1)); within 60 bash -c "echo 1 > $sysfs/disconnect"
		until_true 120 "the end of fio's I/O after disconnect" eval "! kill -0 $job"
		none_in_flight
		connect; read_one
	done
	unload
}
t quickstart-netblk2 quick_start
t K24-limits-zeroes-trim K24_limits
t law3-server-process-restart law3_process_restart
t law3-server-process-restart-4-connections law3_process_restart 4
t law3-server-host-reboot law3_host_reboot
t law3-under-a-mount law3_mounted
t new-generation-with-nothing-to-lose nothing_to_lose
t another-store-is-refused other_store
t K16-live-resize K16_resize
t connections connections
t owners-and-takeover owners
t auto-falls-back-but-not-twice fall_back
t K22-K21-silent-server K22_silent
t K17-attributes-and-parameters K17_attributes
t K1-disconnect-under-io K1_disconnect
finish
