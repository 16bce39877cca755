# SPDX-License-Identifier: GPL-2.0-only
# Many things at once (K1, K5, K7, K8, K10, K15, K23). The kernel log is the judge; the tests prove that it ran.
. "$NETBLK_ROOT/tests/vm/lib.sh"
loops=${ROUNDS:-20}

read_attributes() { while :; do cat $sysfs/* $sysfs/queue/* 2>/dev/null; cat /sys/block/netblk/stats; done > /dev/null 2>&1; }
toggle() { while :; do echo 1 > $sysfs/connect; echo 1 > $sysfs/disconnect; done 2>/dev/null; }
readdress() { while :; do for port in 10809 10810 10899; do echo $port > $sysfs/server_port; echo 1 > $sysfs/connect; done; done 2>/dev/null; }
opener() { while :; do blockdev --rereadpt /dev/netblk; blkid /dev/netblk; done > /dev/null 2>&1; }

K5() {
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk2" 100; load connect_timeout_ms=500 dead_time_ms=2000
	local worker connected disconnected
	connected=$(dmesg | grep -c 'netblk: connected' || true) disconnected=$(dmesg | grep -c 'netblk: disconnected' || true)
	for worker in read_attributes toggle readdress opener read_attributes; do background $worker; done
	for _ in $(seq "$loops"); do dd if=/dev/netblk of=/dev/null bs=64k count=16 iflag=direct status=none 2>/dev/null || true; sleep 0.1; done
	until_true 120 "connects and disconnects" eval "[ \$(dmesg | grep -c 'netblk: connected') -gt $((connected + 3)) ] && [ \$(dmesg | grep -c 'netblk: disconnected') -gt $((disconnected + 3)) ]"
}
K7() {
	serve 10809 "$scratch/disk" 100
	background read_attributes; background toggle; background opener; background read_attributes
	local n done=0
	for n in $(seq "$loops"); do
		load
		sleep 0.0$((RANDOM % 9))
		# somebody may have it open
		for _ in $(seq 3000); do rmmod net_block_driver 2>/dev/null && { done=$((done+1)); break; }; sleep 0.01; done
	done
	expect "$done" "$loops" "unloads"
}
K23() {
	serve 10809 "$scratch/disk" 100
	local n number first=
	for n in $(seq $((loops * 5))); do
		load; number=$(cat $sysfs/dev); [ -n "$first" ] || first=$number
		expect "$number" "$first" "device number in cycle $n"
		unload
	done
	[ ! -e /dev/netblk ] || fail "/dev/netblk stays"
}
K15() {
	serve 10809 "$scratch/disk" 100; load
	fio --name=k15 --filename=/dev/netblk --direct=1 --ioengine=libaio --iodepth=64 --rw=randrw --bs=4k --size=64m --time_based --runtime=$((loops / 4 + 3)) --verify=crc32c \
		--verify_fatal=1 --minimal --output=/dev/null & local job=$! n
	modprobe -q bfq; modprobe -q kyber-iosched
	while kill -0 $job 2>/dev/null; do
		for n in 1 4 64 128 256; do echo $n > $sysfs/queue/nr_requests 2>/dev/null || true; sleep 0.02; done
		for n in mq-deadline none bfq kyber; do echo $n > $sysfs/queue/scheduler 2>/dev/null || true; sleep 0.02; done
		echo 64 > $sysfs/queue/max_sectors_kb; sleep 0.02; echo 1024 > $sysfs/queue/max_sectors_kb
	done
	wait $job || fail "fio failed"
	expect "$(stat_of errors)" 0 errors
}
# verified I/O from two processors while the connection comes and goes
verify_smp() {
	serve 10809 "$scratch/disk" 100; load dead_time_ms=600000 max_retries=1000 connect_timeout_ms=3000
	fio --name=v --filename=/dev/netblk --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=4k --numjobs=2 --size=24m --offset_increment=32m --verify=crc32c --verify_backlog=64 \
		--verify_fatal=1 --time_based --runtime=$((loops / 4 + 4)) --minimal --output="$scratch/fio" & local job=$!
	background read_attributes
	for _ in 1 2; do sleep 1.3; kill_server; sleep 0.2; serve 10809 "$scratch/disk" 100; done
	wait $job || fail "fio: $(tail -2 "$scratch/fio")"
	expect "$(stat_of errors)" 0 errors
}
both K5-attributes-and-control-storm K5
both K7-K10-load-and-unload-under-readers K7
both K15-queue-changes-under-io K15
both K1-K21-verify-on-all-processors verify_smp
both K23-load-unload-cycles K23
finish
