# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154  # one program with build.sh: variables cross the files
# Sourced by build.sh: words, logs, and commands that are shown only when they fail.

logs=build/logs
output=build/output
kept_file=build/run/kept

say() { printf '%s\n' "==> $*"; }
warn() { printf '%s\n' "build.sh: $*" >&2; }
die() {
	warn "$*"
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] || die "$1 loads modules or mounts file systems, which needs root: sudo $project_root/build.sh ${1%% *}"
}

# logged NAME COMMAND...: output goes to build/logs/NAME.log; a failure shows the log's end.
logged() {
	local log=$logs/$1.log status=0
	shift
	mkdir -p "$logs"
	printf '%s\n' "$ $*" >"$log"
	"$@" >>"$log" 2>&1 </dev/null || status=$?
	if [ $status != 0 ]; then
		warn "failed with status $status: $*"
		tail -n 40 "$log" >&2
		warn "the whole log: $project_root/$log"
	fi
	return $status
}
