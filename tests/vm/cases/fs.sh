# SPDX-License-Identifier: GPL-2.0-only
# File systems on the driver's disk: the work of tests/fs/work.sh, which the FUSE way has on the host.
. "$NETBLK_ROOT/tests/vm/lib.sh"
. "$NETBLK_ROOT/tests/fs/work.sh"
modprobe -a loop xfs btrfs 2> /dev/null
disk=/dev/netblk image=$scratch/disk
grown() { truncate -s "$1M" "$image"; }
# on_disk MIB COMMAND...
on_disk() {
	truncate -s "$1M" "$image"; shift
	"$netblk_server" --export "a=file:$image" --listen netblk://127.0.0.1:10809 > "$scratch/server.10809" 2>&1 < /dev/null &
	echo $! >> "$scratch/pids"; listening 10809
	PROTOCOL=2 load; wait_state connected
	"$@"
}
mounted_over_and_over() {
	mounts ext4 "$1"; mounts xfs 3; mounts btrfs 3
	expect "$(grep -c "$mnt" /proc/mounts)" 0 "mounts that are left"
	until_true 60 "that nobody uses the driver" eval '[ "$(cat /sys/module/net_block_driver/refcnt)" = 0 ]'
}
size=${ROUNDS:-16}
if [ "$size" -gt 16 ]; then ops=200 seconds=20 mounts=100; else ops=3 seconds=1 mounts=10; fi
t fs-verify on_disk $((size * 2)) eval "verify $size; verify_cached $size"
for kind in ext4 xfs btrfs; do
	t fs-resize-$kind on_disk 320 resize $kind 320 416
	t fs-trim-$kind on_disk 320 trim $kind
	t fs-stress-$kind on_disk 480 stress $kind $ops $seconds
done
t fs-mounts on_disk 320 mounted_over_and_over "$mounts"
finish
