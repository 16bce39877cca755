#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Builds an initramfs as `update-initramfs` would, by Debian's own initramfs-tools and udev, with netblk installed: in this
# machine's root with a tmpfs above it, which nobody else sees. Nothing is installed.
# usage: unshare -m initrd.sh KIND INSTALLED DEBS TABLE OUTPUT
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/../vm/rig.sh"
kind=$1 installed=$2 debs=$3 table=$4 output=$5
kernel=$(kernel_path "$kind") release=$(cat "$kernel/release")
mount --make-rprivate /
work=$(mktemp -d); trap 'umount -R "$work"; rmdir "$work"' EXIT
mount -t tmpfs none "$work"; mkdir "$work"/{upper,work,root}
root=$work/root
mount -t overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" none "$root"
for deb in "$debs"/{initramfs-tools,initramfs-tools-core,klibc-utils,libklibc,libudev1,udev}_*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --exclude=./usr/share/doc --exclude=./usr/share/man -C "$root"
done
cp -a "$installed"/. "$root/"
mount -t proc none "$root/proc"; mount --bind /dev "$root/dev"; mount -t tmpfs none "$root/tmp"; mount -t tmpfs none "$root/run"
mkdir -p "$root/lib/modules/$release" "$root/var/tmp"
cp -a "$kernel/lib/modules/$release/." "$root/lib/modules/$release/"
install -D -m 644 "$project_root/build/modules/$kind/net_block_driver.ko" "$root/lib/modules/$release/updates/dkms/net_block_driver.ko"
cp "$kernel/root/boot/config-$release" "$root/boot/"
depmod -b "$root" "$release"
cp "$table" "$root/etc/netblktab"
echo 0123456789abcdef0123456789abcdef > "$root/etc/machine-id"
# what this machine happens to have for other disks
rm -f "$root"/usr/share/initramfs-tools/{hooks,scripts/*}/{btrfs,nbd,fuse,lvm2,mdadm,cryptroot}
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=gzip/' "$root/etc/initramfs-tools/initramfs.conf"
printf '%s\n' virtio_pci virtio_net ext4 > "$root/etc/initramfs-tools/modules"
chroot "$root" mkinitramfs -o /tmp/initrd "$release"
cp "$root/tmp/initrd" "$output"
