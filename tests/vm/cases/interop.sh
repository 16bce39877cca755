# SPDX-License-Identifier: GPL-2.0-only
# The driver with a server that was written by somebody else from the text of netblk/1: tests/vm/simple_server.py.
. "$NETBLK_ROOT/tests/vm/lib.sh"
simple() {
	serve_simple 10809 "$scratch/disk" 100; load
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt; random_file /tmp/blob 16M; cp /tmp/blob $mnt/; umount $mnt
	drop_caches; mount /dev/netblk $mnt; cmp /tmp/blob $mnt/blob; umount $mnt; e2fsck -fn /dev/netblk
	fio_job v --rw=randwrite --bs=4k-256k --size=32m --iodepth=32 --verify=crc32c --verify_fatal=1
	expect "$(stat_of errors)" 0 errors
	unload
}
# the two serve one file in turn: what one wrote, the other reads
in_turn() {
	[ "$netblk_server" != "$vm/simple_server.py" ] || skip "netblk_server is not built"
	serve_simple 10809 "$scratch/disk" 100; load; random_file /tmp/blob 4M
	dd if=/tmp/blob of=/dev/netblk bs=256k oflag=direct status=none; disconnect; kill_server
	serve 10809 "$scratch/disk" 100; connect
	cmp -n 4194304 /tmp/blob <(dd if=/dev/netblk bs=256k count=16 iflag=direct status=none)
}
t interop-simple-server simple
t interop-in-turn in_turn
finish
