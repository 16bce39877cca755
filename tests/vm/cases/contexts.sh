# SPDX-License-Identifier: GPL-2.0-only
# Who may be called where: K6 what comes after a removal, K11 work that waits for itself, K14 sleeping where one must not.
. "$NETBLK_ROOT/tests/vm/lib.sh"
bus=/sys/bus/netblk
rounds=${ROUNDS:-3}
add() { echo "server_ip=127.0.0.1 ${PROTOCOL:+protocol=$PROTOCOL} $*" > $bus/add; }
state_of() { cat "/sys/block/$1/state"; }

# an attribute that was opened before the device went: nothing is connected again, or made
after_removal() {
	serve 10809 "$scratch/disk" 16; load size_mb=16 access=shared
	local n name
	for n in $(seq "$rounds"); do
		add size_mb=16 access=shared; expect "$(state_of netblk-1)" connected "state of the second"
		exec 5> /sys/block/netblk-1/connect 6> /sys/block/netblk-1/server_port 7< /sys/block/netblk-1/state
		echo netblk-1 > $bus/remove
		for name in 5 6; do must_fail 'no such device' eval "echo 1 >&$name"; done
		must_fail 'no such device' cat <&7
		exec 5>&- 6>&- 7<&-
		[ ! -e /sys/block/netblk-1 ] || fail "the removed device is back"
	done
	# at the same time: each connect ends, one way or the other, and the device is gone
	for n in $(seq "$rounds"); do
		add size_mb=16 access=shared; exec 5> /sys/block/netblk-1/connect
		(for name in 1 2 3 4 5 6; do echo 1 > /sys/block/netblk-1/disconnect; echo 1 >&5; done) 2> /dev/null & local connector=$!
		until echo netblk-1 > $bus/remove; do sleep 0.01; done 2> /dev/null
		wait $connector || true; exec 5>&-
		[ ! -e /sys/block/netblk-1 ] || fail "the removed device is back"
	done
	until_true 60 "that the first device is connected, and alone" eval '[ "$(state) $(ss -Htn state established dport = :10809 | wc -l)" = "connected 1" ]'
	unload
}
threads_of() { local pid; for pid in $(pgrep "$1"); do [ -e "/proc/$pid/exe" ] || cat "/proc/$pid/comm"; done; }
# what changes the disk is work of the system's queue; it is asked for while the device is disconnected and removed, and
# nothing that I/O needs is behind it: the device's only thread is its own, and it has no queue of work
work() {
	truncate -s 16M "$scratch/disk"; serve 10809 "$scratch/disk" 16; load size_mb=16 access=shared
	expect "$(threads_of '^netblk')" netblk "the driver's threads"
	[ -z "$(threads_of '^kworker/.*netblk')" ] || fail "the driver has a work queue: $(threads_of '^kworker/.*netblk')"
	local resizer i n; resizer() { while :; do truncate -s 24M "$scratch/disk"; sleep 0.02; truncate -s 16M "$scratch/disk"; sleep 0.02; done; }
	background resizer
	for n in $(seq "$rounds"); do
		add size_mb=$((n + 1)) access=shared
		expect "$(threads_of '^netblk-1')" netblk-1 "the second's threads"
		for i in 1 2 3; do
			dd if=/dev/netblk-1 of=/dev/null bs=4096 count=1 iflag=direct status=none 2> /dev/null || true
			# EAGAIN when the server has not ended the session of before
			echo 1 > /sys/block/netblk-1/disconnect; until_true 60 "a connect" eval 'echo 1 > /sys/block/netblk-1/connect'
		done
		until echo netblk-1 > $bus/remove; do sleep 0.01; done 2> /dev/null
		disconnect; connect
	done
	unload
}
flags() {
	serve 10809 "$scratch/disk" 16; load size_mb=16
	local hctx n=0
	[ -d /sys/kernel/debug/block/netblk ] || skip "this kernel has no debugfs of the block layer"
	for hctx in /sys/kernel/debug/block/netblk/hctx*/flags; do
		grep -qw BLOCKING "$hctx" || fail "$hctx: $(cat "$hctx"): queue_rq takes a mutex and sends"
		n=$((n+1))
	done
	[ $n -gt 0 ] || fail "no hardware queue was seen"
	unload
}
# every way through the driver once, in a kernel that complains of a sleep where none may be
checker() {
	zgrep -q '^CONFIG_DEBUG_ATOMIC_SLEEP=y' /proc/config.gz || skip "this kernel has no DEBUG_ATOMIC_SLEEP"
	serve 10809 "$scratch/disk" 64; load size_mb=64 connections=2 dead_time_ms=600000 max_retries=1000 connect_timeout_ms=1000 access=shared
	local n job
	fio_job load --rw=randrw --bs=4k-128k --iodepth=32 --size=48m --fsync=20 --time_based --runtime=$((rounds * 4)) & job=$!
	for n in $(seq "$rounds"); do
		cat $sysfs/* $sysfs/queue/* $sysfs/statistics/* > /dev/null 2>&1 || true
		python3 "$vm/genl.py" status 0 > /dev/null; python3 "$vm/genl.py" list > /dev/null
		add size_mb=8 access=shared; echo 1 > /sys/block/netblk-1/disconnect; echo netblk-1 > $bus/remove
		echo $((n * 16)) > $sysfs/queue/nr_requests || true
		kill_server; serve 10809 "$scratch/disk" 64; until_true 300 "a reconnect" eval '[ "$(state)" = connected ]'
	done
	wait $job || fail "fio failed"
	if [ "$PROTOCOL" = 2 ]; then
		blkdiscard -z -o 0 -l 1048576 /dev/netblk; blkdiscard -o 0 -l 1048576 /dev/netblk
		truncate -s 80M "$scratch/disk"; until_true 60 "the new size" eval '[ "$(cat $sysfs/size)" = 163840 ]'
	fi
	expect "$(stat_of errors)" 0 errors
	disconnect; unload
}
both K6-connect-after-a-removal after_removal
both K11-no-work-waits-for-itself work
both K14-queue-rq-may-sleep flags
case $KIND in debug) both K14-no-sleep-in-atomic-context checker;; esac
finish
