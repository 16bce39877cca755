# SPDX-License-Identifier: GPL-2.0-only
# ram_block_driver in its three queue modes.
. "$NETBLK_ROOT/tests/vm/lib.sh"
dev=/dev/ramblk
mode() {
	insmod "$NETBLK_MODULES/ram_block_driver.ko" queue_mode="$1" size_mb=64
	expect "$(blockdev --getsize64 $dev)" 67108864 size
	expect "$(cat /sys/module/ram_block_driver/parameters/queue_mode)" "$1" queue_mode
	mkfs.ext4 -q $dev; mount $dev $mnt
	random_file /tmp/blob 16M; cp /tmp/blob $mnt/blob; umount $mnt; drop_caches; mount $dev $mnt
	cmp /tmp/blob $mnt/blob
	must_fail 'in use' rmmod ram_block_driver
	umount $mnt; e2fsck -fn $dev
	fio --name=r --filename=$dev --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bs=512-64k --size=32m --verify=crc32c --verify_fatal=1 --minimal --output=/dev/null
	must_fail 'no space' dd if=/dev/zero of=$dev bs=512 seek=131072 count=1
	# whoever had it open may not be quite through
	until_true 60 "unloading" rmmod ram_block_driver
}
bad() {
	local value
	for value in queue_mode=nonsense queue_mode= size_mb=0 size_mb=-1; do must_fail 'invalid' insmod "$NETBLK_MODULES/ram_block_driver.ko" "$value"; done
}
for m in rq rq_bio bio; do t ram-$m mode $m; done
t ram-bad-parameters bad
finish
