#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Installs what is missing, builds, runs and tests netblk. `./build.sh help` says how.
set -euo pipefail

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
project_root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd -P)
cd "$project_root"
if [ -z "${HOME:-}" ]; then
	HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
	export HOME=${HOME:-/root}
fi

# shellcheck source=scripts/common.sh
. scripts/common.sh

usage() {
	cat <<'END'
usage: ./build.sh                       install what is missing, build everything into build/output
       ./build.sh run [--keep] [--vm]   build, serve a disk, attach it, put a file system on it, show it, clean up
                  --keep                leave the disk mounted; `./build.sh stop` ends it
                  --vm                  show the kernel driver in a booted kernel, on any machine
       ./build.sh stop                  end what `run --keep` left
       ./build.sh test [--full]         build and run the tests
       ./build.sh clean                 remove build/
       ./build.sh help
END
}

bad_usage() {
	printf 'build.sh: %s\n' "$1" >&2
	usage >&2
	exit 2
}

command=build
if [ $# -gt 0 ]; then
	command=$1
	shift
fi
keep='' vm='' test_arguments=()
case $command in
build | stop | clean)
	[ $# = 0 ] || bad_usage "unknown word '$1'"
	;;
help | --help | -h)
	[ $# = 0 ] || bad_usage "unknown word '$1'"
	usage
	exit 0
	;;
run)
	for word; do
		case $word in
		--keep) keep=1 ;;
		--vm) vm=1 ;;
		*) bad_usage "unknown word '$word'" ;;
		esac
	done
	[ -z "$keep" ] || [ -z "$vm" ] || bad_usage "a guest ends with its run: --keep and --vm exclude each other"
	;;
test)
	for word; do
		[ "$word" = --full ] || bad_usage "unknown word '$word'"
		test_arguments+=("$word")
	done
	;;
*) bad_usage "unknown word '$command'" ;;
esac

# shellcheck source=scripts/install.sh
. scripts/install.sh
# shellcheck source=scripts/compile.sh
. scripts/compile.sh
# shellcheck source=scripts/run.sh
. scripts/run.sh

case $command in
build)
	prepare scripts/packages.txt
	say "done: build/output"
	;;
run)
	if [ -n "$vm" ]; then
		need_root "run --vm"
		prepare scripts/packages.txt tests/vm/packages.txt
		run_in_guest
	else
		need_root run
		prepare scripts/packages.txt
		run_here "$keep"
	fi
	;;
stop)
	need_root stop
	stop_kept
	;;
test)
	prepare scripts/packages.txt tests/packages.txt tests/vm/packages.txt
	say "testing: tests/run ${test_arguments[*]}"
	exec tests/run "${test_arguments[@]}"
	;;
clean)
	if [ -e "$kept_file" ]; then
		need_root "clean (a disk of \`run --keep\` is still there)"
		stop_kept
	fi
	rm -rf build
	say "removed build/"
	;;
esac
