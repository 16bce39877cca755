# SPDX-License-Identifier: GPL-2.0-only
# Servers that die, return, stop, and stay away (K21 in part, K22). ROUNDS sets the number of kills.
. "$NETBLK_ROOT/tests/vm/lib.sh"
# netblk/1's tries and times; session2 has those of netblk/2.
PROTOCOL=1

# kill -9 and restart under verified writes: no error and no miscompare
kill_restart() {
	serve 10809 "$scratch/disk" 100; load dead_time_ms=600000 max_retries=1000 connect_timeout_ms=1000
	fio --name=verify --filename=/dev/netblk --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --size=48m --verify=crc32c \
		--verify_backlog=64 --loops=100 --time_based --runtime=$((${ROUNDS:-4} * 2 + 2)) --verify_fatal=1 --minimal --output="$scratch/fio" > "$scratch/fio.err" 2>&1 & local job=$!
	local round
	for round in $(seq "${ROUNDS:-4}"); do
		sleep 1.$((RANDOM % 5)); kill_server; sleep 0.$((RANDOM % 8)); serve 10809 "$scratch/disk" 100
	done
	wait $job || fail "fio failed: $(tail -3 "$scratch/fio.err")"
	wait_state connected; expect "$(stat_of errors)" 0 errors
	said 'netblk: reconnected'
	[ "$(dmesg | grep -c 'netblk: lost')" -ge 1 ] || fail "no loss was logged: the kills missed"
	# what was written is what the server's file has
	fio --name=verify --filename=/dev/netblk --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --size=16m --verify=crc32c --do_verify=1 --minimal --output=/dev/null
	unload
}
mounted() {
	serve 10809 "$scratch/disk" 100; load dead_time_ms=600000 max_retries=1000 connect_timeout_ms=1000
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt
	random_file /tmp/blob 12M
	local round
	for round in 1 2 3; do
		cp /tmp/blob "$mnt/blob$round" & local copy=$!
		sleep 0.2; kill_server; sleep 0.3; serve 10809 "$scratch/disk" 100
		wait $copy; sync -f $mnt
	done
	umount $mnt; drop_caches; e2fsck -fn /dev/netblk; mount /dev/netblk $mnt
	for round in 1 2 3; do cmp /tmp/blob "$mnt/blob$round"; done
	umount $mnt; unload
}
# an idle connection that the server closes is noticed, and made again, without I/O
idle() {
	serve 10809 "$scratch/disk" 100; load connect_timeout_ms=1000 max_retries=1000 dead_time_ms=600000
	kill_server; wait_state connecting
	serve 10809 "$scratch/disk" 100; wait_state connected
	expect "$(stat_of errors)" 0 errors
}
gone_for_good() {
	serve 10809 "$scratch/disk" 100; load
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt; echo before > $mnt/file; sync
	kill_server
	# dead time 15 s
	within 60 bash -c "dd if=/dev/zero of=$mnt/more bs=4096 count=64 oflag=direct status=none" && fail "a write without a server succeeded"
	expect "$(state)" error state
	said 'netblk: gave up'
	[ "$(stat_of errors)" -gt 0 ] || fail "no errors counted"
	within 60 umount $mnt
	unload
}
K22_stopped() {
	serve 10809 "$scratch/disk" 100; load
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt; sync
	stand_still $server_pid; attr io_timeout_ms 5000; attr dead_time_ms 8000
	drop_caches &
	within 60 dd if=/dev/netblk of=/dev/null bs=4096 count=1 skip=5000 iflag=direct status=none && fail "a read from a stopped server succeeded"
	wait_state error
	within 60 bash -c "dd if=/dev/zero of=$mnt/more bs=4096 count=4 oflag=direct status=none" && fail "a write to a stopped server succeeded"
	within 60 umount $mnt
	unload
	kill -CONT $server_pid
}
K22_returns() {
	serve 10809 "$scratch/disk" 100; load io_timeout_ms=1000 connect_timeout_ms=2000 dead_time_ms=4000
	stand_still $server_pid
	within 60 dd if=/dev/netblk of=/dev/null bs=4096 count=1 iflag=direct status=none && fail "a read from a stopped server succeeded"
	wait_state error
	kill -CONT $server_pid; attr io_timeout_ms 30000; attr connect_timeout_ms 60000; attr dead_time_ms 60000
	connect; within 60 dd if=/dev/netblk of=/dev/null bs=4096 count=1 iflag=direct status=none
}
retries_used_up() {
	serve 10809 "$scratch/disk" 100; load max_retries=3 connect_timeout_ms=200 dead_time_ms=600000
	kill_server
	wait_state error 60
	dmesg | grep -E 'gave up on .* after 3 tries' || fail "dmesg says: $(dmesg | grep 'gave up')"
}
t K21-kill-restart-under-verify kill_restart
t kill-restart-under-a-mount mounted
t idle-loss-noticed idle
t K22-server-gone-for-good gone_for_good
t K22-server-stopped K22_stopped
t K22-stopped-server-returns K22_returns
t retries-used-up retries_used_up
finish
