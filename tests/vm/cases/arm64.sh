# SPDX-License-Identifier: GPL-2.0-only
# The driver on arm64: only busybox is there (sh), the server is outside at 10.0.2.2 port $3.
failed=0
say() { if [ "$2" = 0 ]; then echo "PASS $1"; else echo "FAIL $1: exit status $2"; failed=1; fi; }
driver() {
	insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=10.0.2.2 server_port="$1" size_mb=64 || return 1
	[ "$(cat /sys/block/netblk/state)" = connected ] || { cat /sys/block/netblk/state; return 2; }
	mke2fs -F /dev/netblk > /dev/null || return 3
	mount -t ext4 /dev/netblk /mnt || return 4
	head -c 6000000 /dev/urandom > /tmp/blob; cp /tmp/blob /mnt/blob || return 5
	umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 /dev/netblk /mnt || return 6
	cmp /tmp/blob /mnt/blob || return 7
	umount /mnt || return 8
	grep -q '^errors:      0$' /sys/block/netblk/stats || { cat /sys/block/netblk/stats; return 9; }
	echo 1 > /sys/block/netblk/disconnect
	rmmod net_block_driver || return 10
}
ram() {
	insmod "$NETBLK_MODULES/ram_block_driver.ko" size_mb=16 queue_mode="$1" || return 1
	mke2fs -F /dev/ramblk > /dev/null && mount -t ext4 /dev/ramblk /mnt || return 2
	cp /tmp/blob /mnt/blob && umount /mnt && mount -t ext4 /dev/ramblk /mnt && cmp /tmp/blob /mnt/blob && umount /mnt || return 3
	rmmod ram_block_driver || return 4
}
driver "$3"; say driver-on-arm64 $?
ram rq; say ram-rq-on-arm64 $?
ram bio; say ram-bio-on-arm64 $?
exit $failed
