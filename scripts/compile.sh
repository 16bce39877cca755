# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154  # one program with build.sh: variables cross the files
# Sourced by build.sh: the programs and the kernel modules, into build/output.

programs=(netblk_server netblk netblk-generator)
benches=(bench_floor bench_floor_nbd bench_large_read bench_load bench_load2 bench_stream bench_sync_loop)
modules=(net_block_driver.ko ram_block_driver.ko)

# put FILE: into build/output as a whole, also over a program that runs
put() {
	local to
	to=$output/$(basename "$1")
	cmp -s "$1" "$to" && return 0
	cp "$1" "$to.new"
	mv -f "$to.new" "$to"
}

build_programs() {
	local jobs
	jobs=$(nproc)
	say "building the programs ($jobs jobs)"
	logged cmake cmake --preset release -D NETBLK_BENCH=ON || die "the build cannot be configured"
	logged build cmake --build --preset release -j "$jobs" --target "${programs[@]}" "${benches[@]}" ||
		die "the programs do not build"
	local program
	for program in "${programs[@]}"; do put "build/release/tools/$program"; done
}

# The running kernel's headers; else the newest that are installed.
headers_folder() {
	local running newest
	running=/lib/modules/$(uname -r)/build
	if [ -e "$running/Makefile" ]; then
		printf '%s\n' "$running"
		return
	fi
	newest=$(find /lib/modules /usr/src -mindepth 1 -maxdepth 2 \
		\( -path '/lib/modules/*/build' -o -path "/usr/src/linux-headers-*-$(dpkg --print-architecture)" \) 2>/dev/null |
		sort -V | while read -r folder; do [ ! -e "$folder/Makefile" ] || printf '%s\n' "$folder"; done | tail -n 1)
	printf '%s\n' "$newest"
}

build_modules() {
	local headers release module
	headers=$(headers_folder)
	[ -n "$headers" ] || die "no kernel headers are installed (linux-headers-$(dpkg --print-architecture))"
	release=$(sed -n 's/^#define UTS_RELEASE "\(.*\)"$/\1/p' "$headers/include/generated/utsrelease.h" 2>/dev/null)
	[ -n "$release" ] || release=$(basename "$headers")
	say "building the kernel modules for $release"
	logged modules make -C kernel "KDIR=$headers" "BUILD=$project_root/build/modules/$release" -j "$(nproc)" ||
		die "the kernel modules do not build"
	for module in "${modules[@]}"; do put "build/modules/$release/$module"; done
}

# prepare LIST...: packages, then everything in build/output; one at a time in this tree.
prepare() {
	mkdir -p "$logs" "$output" build/run
	exec 9>build/.lock
	flock -n 9 || {
		say "waiting for another build of this tree"
		flock 9
	}
	install_missing "$@"
	build_programs 9>&-
	build_modules 9>&-
	exec 9>&-
}
