# SPDX-License-Identifier: GPL-2.0-only
# The machine is suspended and resumed while disks work: nothing fails, and nothing is lost. ROUNDS is for how many seconds
# it is suspended; after 16 no connection is what it was.
# The kernel freezes processes in no order: who waits for a disk whose helper, or server on the same machine, is frozen
# already cannot be frozen, and the suspend is refused. So it is tried under load, whatever comes of it, and then at rest.
. "$NETBLK_ROOT/tests/vm/ways_lib.sh"

suspend() {
	local one
	work_on_all
	# Processes are frozen, and thawed again. Deeper the guest cannot go: its root is a virtio device that comes back reset.
	echo freezer > /sys/power/pm_test; echo "${ROUNDS:-3}" > /sys/module/suspend/parameters/pm_test_delay
	echo 3000 > /sys/power/pm_freeze_timeout
	if echo mem > /sys/power/state; then tell "a suspend under load went well"; else tell "a suspend under load was refused"; fi
	all_go_on
	touch "$scratch/rest"
	for one in "${all[@]}"; do until_true 180 "rest of $one" test -e "$scratch/rests-$one"; done
	echo 120000 > /sys/power/pm_freeze_timeout; echo mem > /sys/power/state
	rm "$scratch/rest"; all_go_on
	judge_all suspend
}
suspended() {
	[ -e /sys/power/pm_test ] || skip "this kernel cannot be suspended"
	[ -e "$scratch/suspend" ] || { touch "$scratch/suspend"; suspend; }
	expect "$(cat "$scratch/suspend.$way" 2> /dev/null)" well "what became of $way"
}
each suspend suspended
finish
