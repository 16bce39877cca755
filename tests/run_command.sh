#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# `./build.sh run` as its user meets it: it ends by itself, can be run twice and beside a kept one, and leaves nothing.
set -u
cd "$(dirname "$0")/.." || exit 1
passed=0 failed=0
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

pass() { echo "PASS $1"; passed=$((passed + 1)); }
fail() { echo "FAIL $1: $2"; failed=$((failed + 1)); }
# What a run could leave: mounts, loop devices, processes of this tree's build/output, state folders.
traces() {
	grep -c -E '/netblk-run\.|/run/netblk' /proc/mounts
	losetup -ln -O BACK-FILE | grep -c netblk
	pgrep -fc "netblk_server .*/netblk-run\.|${PWD#/}/build/output/netblk attach"
	find /run/netblk -mindepth 1 -maxdepth 1 2>/dev/null | wc -l
}

# Who has ended is listed a moment longer on a machine that is busy.
as_before() {
	local _
	for _ in $(seq 300); do
		[ "$(traces)" != "$before" ] || return 0
		sleep 0.1
	done
	return 1
}

before=$(traces)
for round in 1 2; do
	if ./build.sh run >"$log/run$round" 2>&1 && grep -q 'Hello Network Block Device!' "$log/run$round"; then
		pass "run_round_$round"
	else
		fail "run_round_$round" "$(tail -n 3 "$log/run$round" | tr '\n' ' ')"
	fi
	if as_before; then
		pass "run_round_${round}_leaves_nothing"
	else
		fail "run_round_${round}_leaves_nothing" "mounts, loops, processes, folders before: $(tr '\n' ' ' <<<"$before")now: $(traces | tr '\n' ' ')"
	fi
done
if grep -qE '^netblk: via [a-z]+: ' "$log/run1"; then pass run_says_which_way; else fail run_says_which_way "no reason in its output"; fi
if grep -qE '^ +\$ netblk attach netblk://.* --via auto$' "$log/run1"; then pass run_attaches_with_netblk; else fail run_attaches_with_netblk "no netblk attach in its output"; fi
if grep -qE '^(netblk|ublk|nbd|fuse) +(yes|no) ' "$log/run1"; then pass run_explains_the_ways; else fail run_explains_the_ways "nothing about the ways in its output"; fi
if grep -qi 'connected' "$log/run1"; then pass run_shows_state; else fail run_shows_state "no state in its output"; fi

if ./build.sh run --keep >"$log/keep" 2>&1 && grep -q './build.sh stop' "$log/keep"; then
	pass run_keep
	if [ "$(traces)" != "$before" ]; then pass run_keep_stays; else fail run_keep_stays "nothing is mounted after --keep"; fi
	if ./build.sh run >"$log/beside" 2>&1; then pass run_beside_a_kept_one; else fail run_beside_a_kept_one "$(tail -n 3 "$log/beside" | tr '\n' ' ')"; fi
else
	fail run_keep "$(tail -n 3 "$log/keep" | tr '\n' ' ')"
fi
if ./build.sh stop >"$log/stop" 2>&1 && as_before; then pass stop; else fail stop "$(tail -n 3 "$log/stop" | tr '\n' ' ')"; fi

for words in "fly" "run --fast" "run --keep --vm" "test --slow" "run extra"; do
	# shellcheck disable=SC2086  # several words
	./build.sh $words >"$log/bad" 2>&1
	status=$?
	if [ $status = 2 ]; then pass "refuses: $words"; else fail "refuses: $words" "status $status"; fi
done
echo "suite run_command: $passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
