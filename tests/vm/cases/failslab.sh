# SPDX-License-Identifier: GPL-2.0-only
# K19: every allocation made while loading, connecting, adding and disconnecting fails once, in turn.
. "$NETBLK_ROOT/tests/vm/lib.sh"
f=/sys/kernel/debug/failslab
[ -d $f ] || { echo "SKIP K19-failslab: this kernel has no failslab"; exit 0; }
for pair in ignore-gfp-wait=N verbose=0 probability=0 times=-1; do echo "${pair#*=}" > "$f/${pair%%=*}"; done
most=${ROUNDS:-2000}

in_turn() {
	"$vm/failslab.py" "$NETBLK_MODULES/net_block_driver.ko" "$most" "$PROTOCOL" "$1" > "$scratch/said" 2>&1 || fail "$(tail -1 "$scratch/said")"
	tail -1 "$scratch/said" >> "$scratch/told"
}
loading() { serve 10809 "$scratch/disk" 16; in_turn loading; }
connecting() {
	serve 10809 "$scratch/disk" 16; load size_mb=16 connect_timeout_ms=2000 access=shared
	in_turn "$1"
	[ "$(state)" = connected ] || { disconnect; connect; }
	dd if=/dev/netblk of=/dev/null bs=64k count=4 iflag=direct status=none
	unload
}
# under I/O, one in three of the thread's allocations fails: connects fail, too, and the device works afterwards
at_random() {
	serve 10809 "$scratch/disk" 16; load size_mb=16 connect_timeout_ms=500
	local thread; thread=$(pgrep -x netblk | head -1)
	[ -n "$thread" ] || fail "no thread called netblk"
	echo 1 > /proc/$thread/make-it-fail; echo Y > $f/task-filter
	echo 30 > $f/probability
	local n failed=0
	for n in $(seq 60); do
		echo 1 > $sysfs/disconnect || true
		echo 1 > $sysfs/connect || failed=$((failed+1))
		dd if=/dev/netblk of=/dev/null bs=64k count=4 iflag=direct status=none || true
	done
	echo 0 > $f/probability; echo N > $f/task-filter
	[ $failed -gt 0 ] || fail "no connect failed: nothing was tested"
	[ "$(state)" = connected ] || { disconnect; connect; }
	dd if=/dev/netblk of=/dev/null bs=64k count=4 iflag=direct status=none
	unload
}
both K19-failslab-loading loading
both K19-failslab-connect-in-its-writer connecting connect
both K19-failslab-connect-in-the-thread connecting thread
both K19-failslab-adding connecting adding
both K19-failslab-at-random at_random
echo 0 > $f/probability; echo N > $f/task-filter
[ ! -s "$scratch/told" ] || while read -r line; do tell "$line"; done < "$scratch/told"
finish
