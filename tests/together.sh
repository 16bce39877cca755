#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Runs test programs, COUNT at once, beginning with the first. Each one's output comes in one piece when it has ended, and
# is in build/logs/tests/STAGE-PROGRAM.log meanwhile. PROGRAM@IofN is the part I (from 0) of N of a program of GoogleTest.
# usage: together.sh STAGE COUNT PROGRAM...
set -u
cd "$(dirname "$0")/.." || exit 1
logs=build/logs/tests
mkdir -p "$logs"

# one STAGE PROGRAM
one() {
	local program=$2 name log status
	name=$(basename "$2" .py)
	log=$logs/$1-$name.log
	case $program in
	*.py) python3 "$program" ;;
	*@*of*)
		local part=${program##*@}
		GTEST_SHARD_INDEX=${part%of*} GTEST_TOTAL_SHARDS=${part#*of} "${program%@*}"
		;;
	*) "$program" ;;
	esac >"$log" 2>&1
	status=$?
	# a crash or a sanitizer's report that ends a program names no test
	[ $status = 0 ] || grep -qE '^FAIL |^\[  FAILED  \]' "$log" ||
		printf '\nFAIL %s: it ended with status %s, see %s\n' "$name" $status "$log" >>"$log"
	exec 9>"$logs/.$1.lock"
	flock 9
	echo "# $program"
	cat "$log"
	# Of 255 xargs would take it that nothing more is to be run.
	return $((status != 0))
}

if [ "$1" = --one ]; then
	one "$2" "$3"
	exit
fi
stage=$1 count=$2
shift 2
printf '%s\n' "$@" | xargs -P "$count" -I PROGRAM "$0" --one "$stage" PROGRAM
