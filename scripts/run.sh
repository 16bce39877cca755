# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154  # one program with build.sh: variables cross the files
# Sourced by build.sh: a disk served, attached, used and taken away again.

size_mb=100
greeting='Hello Network Block Device!'
step_seconds=120

# What a run made and must take away: empty until it is there.
work='' server_pid='' port='' device='' driver_loaded='' way=''

# show COMMAND...: prints the command as a person would type it, and runs it.
show() {
	local word line=
	for word; do
		case $word in
		*[!A-Za-z0-9_./=:,@%+-]*) line+=" '$word'" ;;
		*) line+=" $word" ;;
		esac
	done
	printf '%s\n' "   \$${line}"
	timeout -k 5 "$step_seconds" "$@" </dev/null 9>&-
}

fail_step() { die "run failed: $*"; }

start_server() {
	local attempt
	for attempt in $(seq 50); do
		port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
		: >"$work/server.log"
		# A session of its own: an interrupt from the terminal ends this script, which then takes things away in order.
		setsid "$output/netblk_server" --export "disk=file:$work/netblk_storage.img?size=${size_mb}M" \
			--listen "netblk://127.0.0.1:$port" >"$work/server.log" 2>&1 </dev/null 9>&- &
		server_pid=$!
		for _ in $(seq 100); do
			if ! kill -0 "$server_pid" 2>/dev/null; then break; fi
			if grep -q "listening on .*:$port" "$work/server.log"; then
				printf '%s\n' "   \$ netblk_server --export 'disk=file:$work/netblk_storage.img?size=${size_mb}M' --listen netblk://127.0.0.1:$port &"
				return 0
			fi
			sleep 0.05
		done
		kill "$server_pid" 2>/dev/null || true
		wait "$server_pid" 2>/dev/null || true
		server_pid=
		grep -qi 'in use' "$work/server.log" || break
	done
	: "$attempt"
	cat "$work/server.log" >&2
	fail_step "the server does not start"
}

# Sets `reason` and fails where the driver cannot be loaded.
reason=
driver_is_possible() {
	local module=$output/net_block_driver.ko built
	if [ -e /sys/block/netblk ]; then
		reason="the driver is loaded already, and the disk behind it may be somebody's"
		return 1
	fi
	if [ ! -e /proc/modules ]; then
		reason="this kernel ($(uname -r)) cannot load modules"
		return 1
	fi
	if [ "$(cat /proc/sys/kernel/modules_disabled 2>/dev/null || echo 0)" != 0 ]; then
		reason="loading modules is switched off (kernel.modules_disabled)"
		return 1
	fi
	built=$(modinfo -F vermagic "$module" | cut -d' ' -f1)
	if [ "$built" != "$(uname -r)" ]; then
		reason="the module is for $built, there are no headers of the running kernel $(uname -r)"
		return 1
	fi
}

attach_by_driver() {
	local error
	driver_is_possible || return 1
	if ! error=$(insmod "$output/net_block_driver.ko" server_ip=127.0.0.1 "server_port=$port" "size_mb=$size_mb" 2>&1); then
		reason="insmod refused: $error"
		return 1
	fi
	driver_loaded=1
	way=driver
	say "by the driver: this kernel ($(uname -r)) loaded net_block_driver.ko"
	printf '%s\n' "   \$ insmod net_block_driver.ko server_ip=127.0.0.1 server_port=$port size_mb=$size_mb"
	show cat /sys/block/netblk/state
	[ "$(cat /sys/block/netblk/state)" = connected ] || fail_step "the driver did not connect (dmesg says why)"
	device=/dev/netblk
}

ensure_fuse() {
	[ -c /dev/fuse ] || modprobe fuse 2>/dev/null || true
	[ -c /dev/loop-control ] || modprobe loop 2>/dev/null || true
	[ -c /dev/fuse ] || fail_step "/dev/fuse is not there, and the driver cannot be used: $reason. Try: ./build.sh run --vm"
	[ -c /dev/loop-control ] ||
		fail_step "/dev/loop-control is not there, and the driver cannot be used: $reason. Try: ./build.sh run --vm"
}

attach_by_fuse() {
	ensure_fuse
	way=fuse
	say "by FUSE under a loop device, because $reason"
	printf '%s\n' "   \$ netblk attach netblk://127.0.0.1:$port --size ${size_mb}M --via fuse"
	device=$(timeout -k 5 "$step_seconds" "$output/netblk" attach "netblk://127.0.0.1:$port" --size "${size_mb}M" --via fuse 9>&-) ||
		fail_step "netblk attach failed"
	printf '%s\n' "$device"
}

mount_disk() {
	show mount "$device" "$work/mnt" || fail_step "mount"
}

unmount_disk() {
	local attempt
	for attempt in 1 2 3 4 5; do
		if timeout -k 5 "$step_seconds" umount "$work/mnt"; then return 0; fi
		sleep "$attempt"
	done
	return 1
}

use_disk() {
	local before after
	show mkfs.ext4 -q "$device" || fail_step "mkfs.ext4"
	mount_disk
	printf '%s\n' "   \$ echo '$greeting' > $work/mnt/test.txt"
	printf '%s\n' "$greeting" >"$work/mnt/test.txt" || fail_step "writing test.txt"
	show dd if=/dev/urandom "of=$work/mnt/largefile" bs=1M count=10 conv=fsync status=none || fail_step "dd"
	before=$(sha256sum <"$work/mnt/largefile")
	say "unmounted and mounted again, so that the data comes from the server"
	show umount "$work/mnt" || fail_step "umount"
	blockdev --flushbufs "$device"
	mount_disk
	show cat "$work/mnt/test.txt"
	[ "$(cat "$work/mnt/test.txt")" = "$greeting" ] || fail_step "test.txt reads back otherwise"
	after=$(sha256sum <"$work/mnt/largefile")
	[ "$before" = "$after" ] || fail_step "largefile reads back otherwise"
	printf '%s\n' "   10 MiB read back as they were written: sha256 ${after%% *}"
	show df -h "$work/mnt"
}

show_state() {
	if [ "$way" = driver ]; then
		show cat /sys/block/netblk/state /sys/block/netblk/stats
	else
		show "$output/netblk" status "$device"
	fi
}

detach_disk() {
	if [ "$way" = driver ]; then
		[ -z "$device" ] || echo 1 >/sys/block/netblk/disconnect || return 1
		device=
		[ -z "$driver_loaded" ] || timeout -k 5 "$step_seconds" rmmod net_block_driver || return 1
		driver_loaded=
	elif [ -n "$device" ]; then
		timeout -k 5 "$step_seconds" "$output/netblk" detach "$device" || return 1
		device=
	fi
}

# server_is_ours PID: the process still is the server that a run started.
server_is_ours() { [ "$(readlink "/proc/$1/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$project_root/$output/netblk_server" ]; }

stop_server() {
	[ -n "$server_pid" ] || return 0
	if server_is_ours "$server_pid"; then
		kill "$server_pid" 2>/dev/null || true
		for _ in $(seq 200); do
			server_is_ours "$server_pid" || break
			sleep 0.05
		done
		if server_is_ours "$server_pid"; then kill -KILL "$server_pid" 2>/dev/null || true; fi
	fi
	wait "$server_pid" 2>/dev/null || true
	server_pid=
}

# Takes everything away, in order; what cannot go is named, and the rest goes all the same.
take_away() {
	local left=()
	# A signal may have ended a step between its deed and our note of it: look at what is there.
	if [ -n "$work" ] && mountpoint -q "$work/mnt"; then unmount_disk || left+=("the mount $work/mnt"); fi
	if [ "$way" = fuse ] && [ -z "$device" ]; then
		device=$("$output/netblk" status | awk -v server="netblk://127.0.0.1:$port" '$3 == server { print $1 }')
	fi
	if [ -n "$device$driver_loaded" ]; then detach_disk || left+=("the disk ${device:-/dev/netblk}"); fi
	stop_server
	if [ ${#left[@]} -gt 0 ]; then
		warn "could not take away: ${left[*]}"
		return 1
	fi
	[ -z "$work" ] || rm -rf "$work"
	work=
}

end_of_run() {
	local status=$?
	trap - EXIT INT TERM HUP
	if [ $status != 0 ] && [ -n "$work" ]; then
		if [ -s "$work/server.log" ]; then
			cp "$work/server.log" "$logs/run-server.log"
			warn "the server's log ($project_root/$logs/run-server.log) ends:"
			tail -n 10 "$work/server.log" >&2
		fi
	fi
	take_away || status=1
	exit $status
}

run_here() {
	local keep=$1
	if [ -n "$keep" ] && [ -e "$kept_file" ]; then
		read_kept
		if [ -n "$server_pid" ] && server_is_ours "$server_pid"; then
			say "a disk is there already: $device, mounted on $work/mnt. End it with: ./build.sh stop"
			exit 0
		fi
		stop_kept
	fi
	trap end_of_run EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	work=$(mktemp -d "${TMPDIR:-/tmp}/netblk-run.XXXXXX")
	mkdir "$work/mnt"
	say "serving ${size_mb} MiB from $work/netblk_storage.img"
	start_server
	attach_by_driver || attach_by_fuse
	use_disk
	show_state
	if [ -n "$keep" ]; then
		printf '%s\n' "$work" "$server_pid" "$device" "$way" >"$kept_file.new"
		mv "$kept_file.new" "$kept_file"
		trap - EXIT INT TERM HUP
		disown "$server_pid"
		say "kept: $device is mounted on $work/mnt, served by process $server_pid. End it with: ./build.sh stop"
		return 0
	fi
	say "cleaning up"
	take_away || fail_step "something is left (see above)"
	trap - EXIT INT TERM HUP
	say "done: it works, by $([ "$way" = driver ] && echo 'the kernel driver' || echo "FUSE under a loop device ($reason)")"
}

read_kept() {
	local fields
	mapfile -t fields <"$kept_file"
	work=${fields[0]:-} server_pid=${fields[1]:-} device=${fields[2]:-} way=${fields[3]:-}
	case $work in */netblk-run.??????) ;; *) die "$kept_file is damaged: unmount and detach by hand, then remove it" ;; esac
	[ "$way" != driver ] || driver_loaded=1
}

stop_kept() {
	if [ ! -e "$kept_file" ]; then
		say "nothing is kept"
		return 0
	fi
	read_kept
	say "unmounting $work/mnt, detaching $device, ending the server"
	if [ "$way" = driver ] && [ ! -e /sys/block/netblk ]; then device='' driver_loaded=''; fi
	take_away || die "something is left: is a shell or a program still in $work/mnt? Then try again"
	rm -f "$kept_file"
	say "stopped"
}

run_in_guest() {
	local kind=debian-6.1 cache=${NETBLK_CACHE:-$HOME/.cache/netblk}/kernels
	if [ ! -e "$cache/$kind/stamp" ] && [ -e "$cache/uml/stamp" ]; then kind=uml; fi
	case $(dpkg --print-architecture) in amd64) ;; *) die "run --vm boots x86-64 kernels, on x86-64 machines" ;; esac
	say "by the driver in a booted kernel ($kind), prepared once in $cache"
	logged vm-modules tests/vm/modules "$kind" || die "the kernel or its modules cannot be prepared"
	say "booting"
	tests/vm/boot -k "$kind" -t 300 scripts/vm_demo.sh || die "the demonstration failed in the guest (see above)"
	say "done: the manual's steps work in a booted kernel ($kind); nothing is left of it"
}
