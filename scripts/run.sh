# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154  # one program with build.sh: variables cross the files
# Sourced by build.sh: a disk served, attached, used and taken away again.

size_mb=100
greeting='Hello Network Block Device!'
step_seconds=120

# What a run made and must take away: empty until it is there.
work='' server_pid='' port='' device='' driver_loaded=''
module=$output/net_block_driver.ko

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
		# as long as it lives; the bound only ends what is hopeless
		for _ in $(seq 1200); do
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

# Why the module cannot be loaded here; nothing: it can.
driver_obstacle() {
	local built
	if [ -e /sys/bus/netblk ]; then
		echo "it is loaded already"
	elif [ ! -e /proc/modules ]; then
		echo "this kernel ($(uname -r)) cannot load modules"
	elif [ "$(cat /proc/sys/kernel/modules_disabled 2>/dev/null || echo 0)" != 0 ]; then
		echo "loading modules is switched off (kernel.modules_disabled)"
	elif built=$(modinfo -F vermagic "$module" | cut -d' ' -f1) && [ "$built" != "$(uname -r)" ]; then
		echo "the module is for $built, there are no headers of the running kernel $(uname -r)"
	fi
}

# What can be loaded is, so that `netblk attach` finds it; what it then takes is its own decision.
load_modules() {
	local obstacle error
	obstacle=$(driver_obstacle)
	if [ -z "$obstacle" ]; then
		# Noted before: an interrupt may come when it is loaded, and before it could be noted.
		driver_loaded=loaded
		# Nobody listens on port 9: who the server is, `netblk attach` says.
		if error=$(insmod "$module" server_ip=127.0.0.1 server_port=9 2>&1); then
			printf '%s\n' "   \$ insmod net_block_driver.ko server_ip=127.0.0.1 server_port=9"
			say "this kernel ($(uname -r)) has loaded the driver"
			return 0
		fi
		driver_loaded=
		obstacle="insmod refused: $error"
	fi
	say "the driver is not loaded by this run: $obstacle"
	[ -c /dev/fuse ] || modprobe fuse 2>/dev/null || true
	[ -c /dev/loop-control ] || modprobe loop 2>/dev/null || true
}

attach_disk() {
	local source=netblk://127.0.0.1:$port
	load_modules
	show "$output/netblk" attach --explain "$source" || fail_step "netblk attach --explain"
	printf '%s\n' "   \$ netblk attach $source --via auto"
	device=$(timeout -k 5 "$step_seconds" "$output/netblk" attach "$source" --via auto 9>&-) ||
		fail_step "netblk attach failed. Try: ./build.sh run --vm"
	printf '%s\n' "$device"
}

# The way that was taken, by its device, in words.
way_of_device() {
	case ${1##*/} in
	netblk*) echo 'the kernel driver' ;;
	ublkb*) echo "the kernel's ublk" ;;
	nbd*) echo "the kernel's nbd" ;;
	*) echo 'FUSE under a loop device' ;;
	esac
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
	local sysfs=/sys/block/${device##*/}
	show "$output/netblk" status "$device" || fail_step "netblk status"
	if [ -e "$sysfs/stats" ]; then show cat "$sysfs/state" "$sysfs/stats" || fail_step "the driver's state"; fi
}

detach_disk() {
	if [ -n "$device" ]; then
		printf '%s\n' "   \$ netblk detach $device"
		timeout -k 5 "$step_seconds" "$output/netblk" detach "$device" || return 1
		device=
	fi
	if [ -n "$driver_loaded" ] && [ -e /sys/module/net_block_driver ]; then
		printf '%s\n' "   \$ rmmod net_block_driver"
		timeout -k 5 "$step_seconds" rmmod net_block_driver || return 1
	fi
	driver_loaded=
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
	if [ -n "$port" ] && [ -z "$device" ]; then
		device=$("$output/netblk" status 2>/dev/null | awk -v server="netblk://127.0.0.1:$port" '$3 == server { print $1 }')
	fi
	if [ -n "$device$driver_loaded" ]; then detach_disk || left+=("the disk ${device:-net_block_driver.ko}"); fi
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
	local keep=$1 way
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
	attach_disk
	use_disk
	show_state
	if [ -n "$keep" ]; then
		printf '%s\n' "$work" "$server_pid" "$device" "$driver_loaded" >"$kept_file.new"
		mv "$kept_file.new" "$kept_file"
		trap - EXIT INT TERM HUP
		disown "$server_pid"
		say "kept: $device is mounted on $work/mnt, served by process $server_pid. End it with: ./build.sh stop"
		return 0
	fi
	way=$(way_of_device "$device")
	say "cleaning up"
	take_away || fail_step "something is left (see above)"
	trap - EXIT INT TERM HUP
	say "done: it works, by $way"
}

read_kept() {
	local fields
	mapfile -t fields <"$kept_file"
	work=${fields[0]:-} server_pid=${fields[1]:-} device=${fields[2]:-} driver_loaded=${fields[3]:-}
	# earlier versions kept the way there: no driver of ours goes then
	[ "$driver_loaded" = loaded ] || driver_loaded=
	case $work in */netblk-run.??????) ;; *) die "$kept_file is damaged: unmount and detach by hand, then remove it" ;; esac
}

stop_kept() {
	if [ ! -e "$kept_file" ]; then
		say "nothing is kept"
		return 0
	fi
	read_kept
	say "unmounting $work/mnt, detaching $device, ending the server"
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
	say "done: it works in a booted kernel ($kind); nothing is left of it"
}
