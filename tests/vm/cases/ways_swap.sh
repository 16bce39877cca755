# SPDX-License-Identifier: GPL-2.0-only
# Swap, and the memory of who is in the way of I/O. That swap on our driver holds when memory is short is K12 (reclaim); the
# other ways have a process or sockets that need memory to free memory, and are documented as unsafe for it.
. "$NETBLK_ROOT/tests/vm/ways_lib.sh"

# each thread of the helper may allocate without waiting for I/O, and none of its memory is ever swapped out
helper() {
	start_server; local disk pid task flags; disk=$(attach); pid=$(field "$disk" pid)
	[ "$way" != netblk ] || { expect "$pid" 0 "the process in the way of I/O"; tell "the driver has no process"; return 0; }
	for task in /proc/"$pid"/task/*; do
		flags=$(sed 's/.*) //' "$task/stat" 2> /dev/null | awk '{print $7}')
		[ -n "$flags" ] || [ -e "$task" ] || continue  # one that only made a connection has ended
		# PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE: PR_SET_IO_FLUSHER
		(( (flags & 0x180000) == 0x180000 )) || fail "the thread $(cat "$task/comm") is not marked as an I/O flusher"
	done
	awk '/^VmLck:/ {locked = $2} /^VmRSS:/ {resident = $2} END {exit !(locked >= 8192 && locked >= resident / 2)}' "/proc/$pid/status" ||
		fail "the helper's memory is not locked: $(grep -E '^Vm(Lck|RSS|Size):' "/proc/$pid/status" | tr '\n' ' ')"
	expect "$(cat "/proc/$pid/oom_score_adj")" -1000 "oom_score_adj"
	dd if=/dev/urandom of="$disk" bs=1M count=8 oflag=direct status=none
	expect "$(awk '/^VmSwap:/ {print $2}' "/proc/$pid/status")" 0 "swapped out"
	netblk detach "$disk"
}
# a disk that is swapped on is in use
swap() {
	start_server; local disk; disk=$(attach)
	mkswap "$disk" > /dev/null; swapon "$disk"
	must_fail 'used as swap' netblk detach "$disk"
	netblk status "$disk" | grep -q 'used as swap' || fail "status says $(netblk status "$disk")"
	swapoff "$disk"; netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
each swap-helper helper
each swap-in-use swap
finish
