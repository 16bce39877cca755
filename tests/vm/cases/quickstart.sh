# SPDX-License-Identifier: GPL-2.0-only
# The manual's quick start, its commands verbatim, in a folder that holds the server and the module.
. "$NETBLK_ROOT/tests/vm/lib.sh"
# the manual's server has this address; here it is the guest's own
ip addr add 192.168.1.22/32 dev lo
rm -rf /tmp/qs /tmp/netblk_storage.img; mkdir /tmp/qs; cd /tmp/qs || exit 1
ln -s "$netblk_server" netblk_server; ln -s "$NETBLK_MODULES/net_block_driver.ko" .

# the first try has 5 s; a machine that stands still for as long is asked once more
connected() {
	! dmesg | grep 'netblk: cannot connect' | tail -1 | grep -q ETIMEDOUT || [ "$(state)" = connected ] || until_true 60 "a connection" attr connect 1
	expect "$(cat /sys/block/netblk/state)" connected state
}
start() {
	./netblk_server 10809 /tmp/netblk_storage.img ${1:-100} > "$scratch/server.10809" 2>&1 &
	server_pid=$!; echo $server_pid >> "$scratch/pids"; listening 10809
}
stop() { pkill netblk_server || kill $server_pid; wait $server_pid 2>/dev/null || true; rm -f /tmp/netblk_storage.img; }

ext4() {
	start
	insmod net_block_driver.ko
	connected
	expect "$(cat /sys/block/netblk/size)" 204800 "size in sectors"
	mkfs.ext4 /dev/netblk ; mkdir -p /mnt/netblk ; mount /dev/netblk /mnt/netblk
	echo "Hello Network Block Device!" > /mnt/netblk/test.txt ; cat /mnt/netblk/test.txt
	df -h | grep netblk ; mount | grep netblk
	dd if=/dev/urandom of=/mnt/netblk/largefile bs=1M count=10 ; sync
	sum=$(sha256sum < /mnt/netblk/largefile)
	# 100 MiB do not fit into what ext4 leaves of 100 MiB: the manual's dd ends with "No space left", and only with that
	dd if=/dev/zero of=/mnt/netblk/perftest bs=1M count=100 oflag=direct 2> "$scratch/dd" || grep -q 'No space left' "$scratch/dd"
	echo 3 > /proc/sys/vm/drop_caches
	dd if=/mnt/netblk/perftest of=/dev/null bs=1M iflag=direct
	# beyond the manual: a second mount reads it all back from the server
	umount /mnt/netblk; drop_caches; mount /dev/netblk /mnt/netblk
	expect "$(cat /mnt/netblk/test.txt)" "Hello Network Block Device!" test.txt
	expect "$(sha256sum < /mnt/netblk/largefile)" "$sum" "checksum of largefile"
	umount /mnt/netblk ; e2fsck -fn /dev/netblk
	expect "$(stat_of errors)" 0 errors
	echo "1" > /sys/block/netblk/disconnect ; unload
	stop
}
# mkfs of the size the manual has; what refuses 100 MiB (newer mkfs.xfs, mkfs.btrfs) is given 400 and says so
other() {
	local kind=$1 size=100
	start 100; insmod net_block_driver.ko; connected
	if ! "mkfs.$kind" /dev/netblk > "$scratch/mkfs" 2>&1; then
		grep -qiE 'larger|too small' "$scratch/mkfs" || fail "mkfs.$kind: $(tail -2 "$scratch/mkfs")"
		size=400
		unload; stop
		start $size; insmod net_block_driver.ko size_mb=$size; connected
		"mkfs.$kind" /dev/netblk
	fi
	echo "$size" > "$scratch/size.$kind"
	mount /dev/netblk /mnt/netblk
	random_file /tmp/qs/blob 20M; cp /tmp/qs/blob /mnt/netblk/blob; sync
	umount /mnt/netblk; drop_caches; mount /dev/netblk /mnt/netblk
	cmp /tmp/qs/blob /mnt/netblk/blob; umount /mnt/netblk
	expect "$(stat_of errors)" 0 errors
	echo "1" > /sys/block/netblk/disconnect ; unload; stop
}
t quickstart-ext4 ext4
for kind in xfs btrfs; do
	modprobe -q $kind; grep -qw $kind /proc/filesystems && t quickstart-$kind other $kind || echo "SKIP quickstart-$kind: this kernel has no $kind"
	[ ! -e "$scratch/size.$kind" ] || [ "$(cat "$scratch/size.$kind")" = 100 ] || tell "mkfs.$kind refuses 100 MiB here; shown with size_mb=$(cat "$scratch/size.$kind")"
done
finish
