# SPDX-License-Identifier: GPL-2.0-only
# K19: every allocation made while loading, connecting and disconnecting fails once, in turn.
. "$NETBLK_ROOT/tests/vm/lib.sh"
f=/sys/kernel/debug/failslab
[ -d $f ] || { echo "SKIP K19-failslab: this kernel has no failslab"; exit 0; }
for pair in ignore-gfp-wait=N verbose=0 probability=0 times=-1; do echo "${pair#*=}" > "$f/${pair%%=*}"; done

loading() {
	serve 10809 "$scratch/disk" 100
	within 400 python3 - "$NETBLK_MODULES/net_block_driver.ko" "${ROUNDS:-2000}" <<'PY'
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE, DELETE_MODULE = 313, 176  # x86-64
fd = os.open(sys.argv[1], os.O_RDONLY)
fail_nth = os.open("/proc/thread-self/fail-nth", os.O_RDWR)
outcomes = {}
for nth in range(1, int(sys.argv[2])):
    os.pwrite(fail_nth, str(nth).encode(), 0)
    result = libc.syscall(FINIT_MODULE, fd, b"server_ip=127.0.0.1", 0)
    error = ctypes.get_errno() if result else 0
    left = int(os.pread(fail_nth, 16, 0))
    os.pwrite(fail_nth, b"0", 0)
    outcomes[errno.errorcode.get(error, "loaded")] = outcomes.get(errno.errorcode.get(error, "loaded"), 0) + 1
    if result == 0 and libc.syscall(DELETE_MODULE, b"net_block_driver", 0):
        raise SystemExit(f"allocation {nth} failed, and the module cannot be unloaded: {os.strerror(ctypes.get_errno())}")
    if left:
        print(f"{nth - 1} allocations failed in turn: {outcomes}")
        if nth < 20 or "ENOMEM" not in outcomes:
            raise SystemExit("no allocation of the driver failed: nothing was tested")
        raise SystemExit(0)
raise SystemExit(f"not through after {nth} allocations: {outcomes}")
PY
	tail -1 "$scratch/log" > "$scratch/told"
}
# the device's thread makes the sockets: one in three of its allocations fails
connecting() {
	serve 10809 "$scratch/disk" 100; load connect_timeout_ms=500
	local thread; thread=$(pgrep -x netblk | head -1)
	[ -n "$thread" ] || fail "no thread called netblk"
	echo 1 > /proc/$thread/make-it-fail; echo Y > $f/task-filter
	echo 30 > $f/probability
	local n failed=0
	for n in $(seq "${ROUNDS:-60}"); do
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
t K19-failslab-loading loading; [ ! -s "$scratch/told" ] || tell "$(cat "$scratch/told")"
echo 0 > $f/probability
t K19-failslab-connecting connecting
finish
