# SPDX-License-Identifier: GPL-2.0-only
# K21: loss, delay and reordering on the way; verified I/O sees none of it.
. "$NETBLK_ROOT/tests/vm/lib.sh"
with() {
	tc qdisc replace dev lo root netem "$@" || skip "this kernel has no netem"
	serve 10809 "$scratch/disk" 100; load dead_time_ms=600000 max_retries=1000 io_timeout_ms=20000
	fio_job v --rw=randwrite --bs=4k-64k --size=${SIZE:-6m} --iodepth=16 --verify=crc32c --verify_fatal=1
	expect "$(stat_of errors)" 0 errors
	unload
}
lost() { with "$@"; tc qdisc del dev lo root; }
cut() {
	serve 10809 "$scratch/disk" 100; load dead_time_ms=600000 max_retries=1000 connect_timeout_ms=3000 io_timeout_ms=1000
	fio_job v --rw=randwrite --bs=4k --size=32m --iodepth=16 --verify=crc32c --verify_fatal=1 --time_based --runtime=6 & local job=$!
	sleep 1; tc qdisc replace dev lo root netem loss 100% || { kill $job; skip "this kernel has no netem"; }
	sleep 2.5; tc qdisc del dev lo root
	wait $job || fail "fio failed"
	expect "$(stat_of errors)" 0 errors
}
after() { tc qdisc del dev lo root 2>/dev/null; true; }
both K21-loss lost delay 1ms loss 1%; after
both K21-reordering lost delay 2ms reorder 30% 50%; after
both K21-cut cut; after
finish
