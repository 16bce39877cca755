#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# A root on netblk: boots Debian's kernel, emulated, with an initramfs of Debian's initramfs-tools, on an image that
# netblk_server serves on this machine's loopback; then looks at the image.
# usage: root.sh [-k KIND] INSTALLED DEBS [TEST...]
set -uo pipefail
. "$(dirname "$(readlink -f "$0")")/../vm/rig.sh"
boot_dir=$project_root/tests/boot
kind=debian-6.1
[ "${1:-}" != -k ] || { kind=$2; shift 2; }
check_kind "$kind"
installed=$1 debs=$2; shift 2
server_program=${NETBLK_SERVER:-$project_root/build/output/netblk_server}
kernel=$(kernel_path "$kind")
work=$(mktemp -d "${TMPDIR:-/tmp}/netblk-root.XXXXXX") || exit 1
server_pid= qemu_pid=
cleanup() {
	trap - EXIT INT TERM HUP
	[ -z "$server_pid$qemu_pid" ] || kill -KILL $server_pid $qemu_pid 2>/dev/null
	wait 2>/dev/null
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
failed=0
seconds=600  # ends what is hopeless

# image FILE LABEL
image() {
	local tree=$work/tree
	rm -rf "$tree"; mkdir -p "$tree"/{bin,sbin,dev,proc,sys,run,etc,tmp}
	cp /bin/busybox "$tree/bin/"; ln -s busybox "$tree/bin/sh"
	install -m 755 "$boot_dir/rootfs-init" "$tree/sbin/init"
	head -c 2097152 /dev/urandom > "$tree/data"
	data_sum=$(md5sum < "$tree/data" | cut -d' ' -f1)
	truncate -s 32M "$1"; mkfs.ext4 -qF -L "$2" -d "$tree" "$1"
}

serve() {
	"$server_program" --export "root=file:$work/root.img" --export "data=file:$work/data.img" \
		--listen "netblk://127.0.0.1:$port" >> "$work/server.log" 2>&1 & server_pid=$!
}
stop_server() { [ -z "$server_pid" ] || { kill "-$1" "$server_pid"; wait "$server_pid" 2>/dev/null; server_pid=; }; }
on_console() { tr -d '\r\0' < "$work/console" | grep -aqE -- "$1"; }
# wait_console PATTERN: until the guest says it; no longer than the guest lives
wait_console() {
	local end=$((SECONDS + seconds))
	until on_console "$1"; do
		kill -0 "$qemu_pid" 2>/dev/null || return 1
		[ $SECONDS -lt $end ] || return 1
		sleep 0.1
	done
}
begin() {
	local khz; khz=$(python3 "$vm_dir/tsc_khz.py")
	: > "$work/console"; : > "$work/server.log"
	setpriv --pdeathsig KILL qemu-system-x86_64 -M q35,usb=off,hpet=off -cpu max,-la57 -accel tcg,thread=multi,tb-size=256 -smp 1 -m 640 -nodefaults \
		-no-user-config -display none -no-reboot -serial "file:$work/console" -kernel "$kernel/kernel" -initrd "$work/initrd" \
		-append "console=ttyS0 loglevel=5 panic=-1 cryptomgr.notests random.trust_cpu=on nokaslr mitigations=off nopti tsc=reliable no_timer_check nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 ${khz:+tsc_early_khz=$khz }$1" \
		-netdev user,id=n -device virtio-net-pci,netdev=n < /dev/null 2> "$work/qemu" & qemu_pid=$!
}
# The guest has powered off by itself.
end() {
	local limit; ( exec sleep "$seconds" ) & limit=$!
	wait -n -p ended "$qemu_pid" "$limit"
	if [ "$ended" = "$limit" ]; then kill -KILL "$qemu_pid"; wait "$qemu_pid" 2>/dev/null; qemu_pid=; why="the guest did not power off"; return 1; fi
	kill "$limit" 2>/dev/null; wait "$limit" 2>/dev/null; qemu_pid=
	on_console '^INIT done' || { why="the root's init did not run to its end"; return 1; }
}
check_console() {
	local pattern
	for pattern; do on_console "$pattern" || { why="the guest did not say '$pattern'"; return 1; }; done
	! on_console '^INIT process' || { why="a process is there: $(tr -d '\r' < "$work/console" | grep -am1 '^INIT process')"; return 1; }
	! on_console 'Kernel panic|BUG:|Oops|Call Trace' || { why="the kernel is not well"; return 1; }
}
# check_image FILE: nobody left it in the middle of something
check_image() {
	e2fsck -fn "$1" > "$work/fsck" 2>&1 || { why="e2fsck: $(tail -3 "$work/fsck" | tr '\n' ' ')"; return 1; }
	! grep -qE 'journal recovery|recovering journal' "$work/fsck" || { why="the journal was not empty"; return 1; }
	[ "$(debugfs -R 'cat /witness' "$1" 2>/dev/null)" = written ] || { why="what the guest wrote is not in the image"; return 1; }
}

# The whole disk as the root, by DHCP; the table's disk beside it. While it runs the server dies, and another comes.
test_root_on_netblk() {
	serve
	begin "root=netblk://10.0.2.2:$port/root ip=dhcp netblk_test=restart"
	wait_console '^INIT restart' || { why="the root was not mounted"; return 1; }
	stop_server KILL
	serve
	end || return 1
	check_console '^INIT root /dev/netblk$' '^INIT disk netblk connected access=exclusive dead=4294967295 id=6e6574626c6b00000000525400123456$' \
		'^INIT disk netblk-1 connected access=read_only dead=180000 ' '^INIT name root /dev/netblk$' '^INIT name data /dev/netblk-1$' \
		"^INIT reconnected, data $data_sum\$" || return 1
	check_image "$work/root.img"
}

# The root by its label, on the disk of the table, with an address of its own, from a server that is not there yet.
test_root_of_the_table_server_comes_later() {
	begin "root=LABEL=data rootfstype=ext4 ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off net.ifnames=0"
	wait_console 'netblk: cannot connect' || { why="nobody tried to connect"; return 1; }
	serve
	end || return 1
	check_console '^INIT root /dev/netblk$' '^INIT disk netblk connected access=read_only dead=180000 id=[0-9a-f]{32}$' '^INIT name data /dev/netblk$' || return 1
	! on_console 'id=6e6574626c6b' || { why="the id is not the installed machine's"; return 1; }
}

# netblk/1, which tells no size: the first export.
test_root_by_netblk1() {
	serve
	begin "root=netblk://10.0.2.2:$port,size=32M,protocol=1 ip=dhcp"
	end || return 1
	check_console '^INIT root /dev/netblk$' || return 1
	grep -q "export 'root', netblk/1" "$work/server.log" || { why="it is not netblk/1"; return 1; }
	check_image "$work/root.img"
}

# What cannot be understood is said, and does not keep the rest from booting.
test_wrong_arguments() {
	serve
	begin "netblk=nbd://10.0.2.2 netblk=netblk://server:1/x netblk=netblk://10.0.2.2:$port/root,sise=1 netblk=netblk://10.0.2.2:$port/root,timeout=x root=netblk://10.0.2.2:$port/root,connections=2 ip=dhcp"
	end || return 1
	check_console "'netblk=nbd://10.0.2.2': netblk=\[NAME=\]netblk://ADDRESS" "'server' is not an IPv4 address" "unknown option 'sise=1'" \
		"'timeout=x': seconds" '^INIT root /dev/netblk' || return 1
	check_image "$work/root.img"
}

[ -e "$kernel/stamp" ] || "$vm_dir/kernels" "$kind" || exit 1
"$vm_dir/modules" "$kind" || exit 1
# not one that the kernel gives to whoever asks: it is in the initramfs long before somebody listens
until port=$((20000 + RANDOM % 10000)); [ -z "$(ss -Hltn "sport = :$port")" ]; do :; done
echo "data netblk://10.0.2.2:$port/data initramfs,read-only,timeout=60,wait=3600" > "$work/netblktab"
if ! unshare -m "$boot_dir/initrd.sh" "$kind" "$installed" "$debs" "$work/netblktab" "$work/initrd" > "$work/mkinitramfs" 2>&1; then
	echo "FAIL initramfs-$kind: $(tail -3 "$work/mkinitramfs" | tr '\n' ' ')"; exit 1
fi
echo "PASS initramfs-$kind"
# once NAME: with images of its own
once() {
	why=
	image "$work/data.img" data; image "$work/root.img" root
	"test_$1" && return 0
	[ -z "$qemu_pid" ] || { kill -KILL "$qemu_pid"; wait "$qemu_pid" 2>/dev/null; qemu_pid=; }
	return 1
}
second_try() {
	! on_console 'Loading, please wait' || return 1
	stop_server TERM
	echo "# $1: booted a second time"
	once "$1"
}
for name in ${*:-root_on_netblk root_of_the_table_server_comes_later}; do
	# a kernel that came to nothing (tests/vm/README.md) is booted once more
	if once "$name" || second_try "$name"; then
		echo "PASS ${name//_/-}-$kind"
	else
		failed=1; echo "FAIL ${name//_/-}-$kind: $why"
		tr -d '\r\0' < "$work/console" | tail -40 | sed 's/^/# | /'; tail -5 "$work/server.log" | sed 's/^/# s /'
	fi
	stop_server TERM
done
exit $failed
