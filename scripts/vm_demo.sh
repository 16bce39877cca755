#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Run in a guest of tests/vm: the manual's quick start, its commands shown and run one by one.
set -u

step() {
	printf '%s\n' "   \$ $1"
	eval "$1" || {
		printf '%s\n' "failed: $1"
		dmesg | tail -n 20
		exit 1
	}
}

printf '%s\n' "Linux $(uname -r), $(nproc) CPU"
work=$(mktemp -d) && cd "$work" || exit 1
ln -s "$NETBLK_OUT/netblk_server" .
ln -s "$NETBLK_MODULES/net_block_driver.ko" .
# The manual's driver asks 192.168.1.22, its own example; the guest's server is on the guest's loopback.
ip link set lo up
ip addr add 192.168.1.22/32 dev lo

printf '%s\n' "   \$ ./netblk_server 10809 /tmp/netblk_storage.img 100 &"
./netblk_server 10809 /tmp/netblk_storage.img 100 >server.log 2>&1 &
server=$!
for _ in $(seq 200); do
	! grep -q 'listening on' server.log || break
	kill -0 $server || { cat server.log; exit 1; }
	sleep 0.1
done
step 'insmod net_block_driver.ko'
step 'cat /sys/block/netblk/state'
[ "$(cat /sys/block/netblk/state)" = connected ] || { dmesg | tail -n 20; exit 1; }
step 'mkfs.ext4 -q /dev/netblk'
step 'mkdir -p /mnt/netblk ; mount /dev/netblk /mnt/netblk'
step 'echo "Hello Network Block Device!" > /mnt/netblk/test.txt ; cat /mnt/netblk/test.txt'
step 'dd if=/dev/urandom of=/mnt/netblk/largefile bs=1M count=10 status=none ; sync'
sum=$(sha256sum </mnt/netblk/largefile)
step 'df -h | grep netblk'
step 'umount /mnt/netblk'
step 'echo 3 > /proc/sys/vm/drop_caches'
step 'mount /dev/netblk /mnt/netblk ; cat /mnt/netblk/test.txt'
[ "$(sha256sum </mnt/netblk/largefile)" = "$sum" ] || { echo "largefile reads back otherwise"; exit 1; }
printf '%s\n' "   10 MiB read back as they were written: sha256 ${sum%% *}"
step 'cat /sys/block/netblk/stats'
step 'umount /mnt/netblk'
step 'echo "1" > /sys/block/netblk/disconnect'
step 'rmmod net_block_driver'
printf '%s\n' "   \$ pkill netblk_server"
kill $server
wait $server || { echo "the server ended with status $?"; exit 1; }
