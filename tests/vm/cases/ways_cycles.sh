# SPDX-License-Identifier: GPL-2.0-only
# What is left of many disks that came and went: nothing. ROUNDS disks by each way, each with a name; every tenth is killed
# with its helper, every seventh is taken away by force while it is in use.
. "$NETBLK_ROOT/tests/vm/ways_lib.sh"

# what could be left: nodes, devices of the kernel, files, processes, connections of the server
remains() {
	ls /dev | grep -E '^(netblk|nbd[0-9]+p|ublk[bc]|loop[0-9]+p)' || true
	ls -R /run/netblk 2> /dev/null | grep -v store || true
	cat /sys/block/nbd*/pid /sys/block/loop*/loop/backing_file 2> /dev/null || true
	ls /sys/class/ublk-char 2> /dev/null || true
	pgrep -x netblk || true
	grep netblk /proc/mounts || true
	ss -Htn state established 'sport = :10809'
}
at_rest() { [ -z "$(pgrep -x 'netblk-helper|netblk-guard')$(ss -Htn state established 'sport = :10809')" ]; }
descriptors() { ls "/proc/$server_pid/fd" | wc -l; }
cycles() {
	start_server; local i disk first pid before files
	disk=$(attach --name first); netblk detach first
	until_true 60 "an end of $disk" nothing_left; until_true 60 "rest" at_rest
	before=$(remains); files=$(descriptors); first=$disk
	for ((i = 1; i <= ${ROUNDS:-10}; ++i)); do
		disk=$(attach --name "round-$i" 2> "$scratch/words") || fail "round $i: $(cat "$scratch/words")"
		[ "$disk" = "$first" ] || fail "round $i has $disk, and the first one had $first"
		[ $((i % 50)) != 1 ] || read_at "$disk" 0
		if [ $((i % 10)) = 0 ] && [ "$way" != netblk ]; then
			kill -KILL "$(field "round-$i" pid)"; netblk detach "round-$i" 2> /dev/null || netblk detach --force "round-$i"
		elif [ $((i % 7)) = 0 ]; then
			exec 7< "$disk"; netblk detach --force "round-$i" 2> /dev/null || true; exec 7<&-
			netblk detach "$disk" 2> /dev/null || true; until_true 60 "an end of $disk in round $i" nothing_left
		else
			netblk detach "round-$i"
		fi
	done
	until_true 60 "an end of $disk" nothing_left
	until_true 60 "what was there before: $before, and not $(remains)" eval '[ "$(remains)" = "$before" ]'
	until_true 60 "$files descriptors of the server, and not $(descriptors)" eval '[ "$(descriptors)" -le '"$files"' ]'
	tell "$way: ${ROUNDS:-10} rounds, $first each time"
}
each cycles cycles
finish
