# SPDX-License-Identifier: GPL-2.0-only
# File-system work on a disk, by whatever way it is attached. Sourced by tests/fs/run (FUSE on this machine) and by
# tests/vm/cases/fs.sh (the driver in a guest), which give: `disk` (a block device), `image` (the file that the server keeps
# it in), `mnt`, `scratch`, fail, expect, until_true, and `grown MIB`: the server's file gets that size, as a user would do it.
# What fails here and on a plain loop device alike is the file system's own doing, and is told.

mib() { echo $(($1 << 20)); }
disk_bytes() { blockdev --getsize64 "$disk"; }
has_bytes() { [ "$(disk_bytes)" = "$1" ]; }
# resized MIB: the disk has that size, too
resized() { grown "$1"; until_true 300 "$1 MiB of $disk" has_bytes "$(mib "$1")"; }

# patiently COMMAND...: again while the device is busy: whoever looked at it, or unmounted it, is not quite through
patiently() {
	local end=$((SECONDS + 60))
	until "$@" > "$scratch/patient" 2>&1; do
		grep -qiE 'busy|in use' "$scratch/patient" && [ $SECONDS -lt $end ] || return 1
		sleep 0.1
	done
}
make_fs() {
	case $1 in
		ext4) patiently mkfs.ext4 -q -F "$2";;
		xfs) patiently mkfs.xfs -q -f "$2";;
		btrfs) patiently mkfs.btrfs -q -f "$2";;
	esac || fail "mkfs.$1: $(tail -3 "$scratch/patient" | tr '\n' ' ')"
}
check_fs() {
	case $1 in
		ext4) patiently e2fsck -fn "$2";;
		xfs) patiently xfs_repair -n "$2";;
		btrfs) patiently btrfs check --readonly "$2";;
	esac || fail "fsck of $1: $(tail -3 "$scratch/patient" | tr '\n' ' ')"
}
fresh_fs() { make_fs "$1" "$disk"; patiently mount "$disk" "$mnt"; }
put_away() { patiently umount "$mnt"; check_fs "$1" "$disk"; }

# written NAME MIB / still_there NAME: a file whose contents are remembered outside the disk
written() { head -c "$(mib "$2")" /dev/urandom > "$mnt/$1"; sha256sum < "$mnt/$1" > "$scratch/sum.$1"; }
still_there() { expect "$(sha256sum < "$mnt/$1")" "$(cat "$scratch/sum.$1")" "the contents of $1"; }
forget_cache() { sync; blockdev --flushbufs "$disk"; }

# ---- verified I/O

# verify MIB: every block that fio wrote is read back, by each size of request
verify() {
	local size
	for size in bs=4k bs=64k bs=1m bsrange=512-256k; do
		fio --name="verify-$size" --filename="$disk" --size="$1m" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite \
			--"$size" --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randrepeat=0 --output="$scratch/fio" \
			|| fail "$size: $(grep -iE 'verify|err' "$scratch/fio" | head -3 | tr '\n' ' ')"
	done
}
# by the page cache: what a program wrote and synced is on the server
verify_cached() {
	local file=$scratch/random
	head -c "$(mib "$1")" /dev/urandom > "$file"
	dd if="$file" of="$disk" bs=1M conv=fsync status=none
	cmp -n "$(mib "$1")" "$file" "$image" || fail "what was synced is not what the server has"
	forget_cache
	cmp -n "$(mib "$1")" "$file" "$disk" || fail "what is read is not what was written"
}

# ---- stress-ng

# The class has some that are about no file system, and one that stress-ng itself calls pathological.
stressors() {
	local name
	for name in $(stress-ng --class 'filesystem?' 2>&1 | sed 's/.*: //'); do
		case $name in bind-mount|binderfs|procfs|eventfd|dup|ioprio) ;; *) echo "$name";; esac
	done
}
# stress_one FOLDER NAME OPS SECONDS: bounded by operations, and by time where a stressor counts none
stress_one() {
	local size=
	case $2 in copy-file) size=128m;; hdd|iomix|fallocate|sync-file|fiemap) size=8m;; esac
	mkdir -p "$1"
	timeout 300 stress-ng --temp-path "$1" --"$2" 1 --"$2"-ops "$3" --timeout "$4" --verify ${size:+"--$2-bytes" $size} > "$scratch/stress" 2>&1
}
# plainly KIND COMMAND...: does the same on a plain loop device
plainly() {
	local kind=$1 loop status; shift
	truncate -s "$(disk_bytes)" "$scratch/plain"
	loop=$(losetup --find --show "$scratch/plain")
	mkdir -p "$scratch/plain-mnt"
	make_fs "$kind" "$loop"; mount "$loop" "$scratch/plain-mnt"
	"$@" "$scratch/plain-mnt"; status=$?
	umount "$scratch/plain-mnt"; losetup --detach "$loop"; rm "$scratch/plain"
	return $status
}
stress_plainly() { stress_one "$4/stress" "$1" "$2" "$3"; }
# stress KIND OPS SECONDS
stress() {
	local kind=$1 name why count=0
	fresh_fs "$kind"
	for name in $(stressors); do
		count=$((count+1))
		if ! stress_one "$mnt/stress" "$name" "$2" "$3"; then
			why=$(grep -vE 'dispatching|defaulting|completed|setting to' "$scratch/stress" | tail -3 | tr '\n' ' ')
			! plainly "$kind" stress_plainly "$name" "$2" "$3" || fail "$name: $why"
			tell "$name fails on $kind on a plain loop device, too: $why"
		fi
	done
	[ $count -gt 20 ] || fail "stress-ng knows only $count of its class"
	put_away "$kind"
}

# ---- sizes

fs_kib() { df -k --output=size "$mnt" | tail -1; }
# grow_fs KIND: while it is mounted; ext4 may need a right that a container's root has not, and is grown unmounted then
grow_fs() {
	case $1 in
		xfs) xfs_growfs "$mnt" > "$scratch/grow" 2>&1 || fail "$(tail -1 "$scratch/grow")";;
		btrfs) btrfs filesystem resize max "$mnt" > "$scratch/grow" 2>&1 || fail "$(tail -1 "$scratch/grow")";;
		ext4)
			resize2fs "$disk" > "$scratch/grow" 2>&1 && return
			grep -q 'Permission denied to resize' "$scratch/grow" || fail "$(tail -1 "$scratch/grow")"
			umount "$mnt"; check_fs ext4 "$disk"; patiently resize2fs -f "$disk" || fail "$(tail -1 "$scratch/patient")"
			patiently mount "$disk" "$mnt";;
	esac
}
# resize KIND MIB MIB: the server's file grows while the file system on it is in use; then back, where the kind can shrink
resize() {
	local kind=$1 small=$2 large=$3 before
	fresh_fs "$kind"; written kept 24
	before=$(fs_kib)
	( while [ ! -e "$scratch/grown" ]; do written busy 4; sync -f "$mnt"; done ) & local writer=$!
	resized "$large"
	touch "$scratch/grown"; wait $writer; rm "$scratch/grown"
	grow_fs "$kind"
	[ "$(fs_kib)" -gt $((before + (large - small) * 1024 / 2)) ] || fail "$(fs_kib) KiB after growing from $before"
	still_there kept; still_there busy
	written new $(((large - small) / 2))
	umount "$mnt"; forget_cache; check_fs "$kind" "$disk"
	patiently mount "$disk" "$mnt"; still_there kept; still_there new; rm "$mnt/new" "$mnt/busy"
	case $kind in
		ext4) umount "$mnt"; check_fs ext4 "$disk"; patiently resize2fs -f "$disk" "${small}M" || fail "$(tail -1 "$scratch/patient")";;
		btrfs) btrfs filesystem resize "${small}M" "$mnt" > "$scratch/grow" 2>&1 || fail "$(tail -1 "$scratch/grow")"; umount "$mnt";;
		xfs) umount "$mnt"; return;;
	esac
	forget_cache
	resized "$small"
	check_fs "$kind" "$disk"
	patiently mount "$disk" "$mnt"; still_there kept; umount "$mnt"
}

# ---- trim

image_kib() { echo $(($(command stat -c '%b * %B' "$image") / 1024)); }
# XFS and btrfs give back in the background what was removed, and only then it can be trimmed
trimmed_below() { sync -f "$mnt"; fstrim "$mnt"; took_kib "$1"; }
took_kib() { [ "$(image_kib)" -lt "$1" ]; }
# trim KIND: what a file had goes on the server when it is removed and the file system is trimmed
trim() {
	local full
	fresh_fs "$1"; written gone 64; written kept 4; sync -f "$mnt"
	full=$(image_kib)
	rm "$mnt/gone"
	until_true 300 "less than $((full - 48 * 1024)) KiB of the server's file, which had $full" trimmed_below $((full - 48 * 1024))
	still_there kept
	put_away "$1"
	patiently blkdiscard -f "$disk"
	until_true 300 "an empty file on the server" took_kib 4096
}

# ---- mounts

# mounts KIND COUNT
mounts() {
	local i
	make_fs "$1" "$disk"
	for ((i = 0; i < $2; ++i)); do
		patiently mount "$disk" "$mnt"; echo "$i" >> "$mnt/log"; umount "$mnt"
	done
	patiently mount "$disk" "$mnt"; expect "$(wc -l < "$mnt/log")" "$2" "lines of the mounts"
	put_away "$1"
}
