# SPDX-License-Identifier: GPL-2.0-only
# K20: what an fsync above the driver promised is on the disk below the server, at every flush. The server's store is a
# disk whose writes dm-log-writes records; the record is replayed. ROUNDS is the number of fsyncs.
. "$NETBLK_ROOT/tests/vm/lib.sh"
promises=${ROUNDS:-8} size_mb=24
tear_down_log() { dmsetup remove --noudevsync netblk-log 2> /dev/null; rmmod brd 2> /dev/null; rm -rf "$scratch/state"; }
order() {
	modprobe brd rd_nr=2 rd_size=$((262144 + 2048 * promises)) || skip "this kernel has no RAM disks"
	modprobe dm-log-writes || skip "this kernel has no dm-log-writes"
	dmsetup create --noudevsync --noudevrules netblk-log --table "0 $((size_mb * 2048)) log-writes /dev/ram0 /dev/ram1"
	local disk; disk=/dev/dm-$(dmsetup info -c --noheadings -o minor netblk-log)
	serve 10809 "$disk" "$size_mb"; load size_mb=$size_mb
	expect "$(cat $sysfs/protocol)" "$PROTOCOL" protocol
	mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/netblk; mount /dev/netblk $mnt
	"$vm/flush_order.py" write $mnt netblk-log "$promises"
	umount $mnt; expect "$(stat_of errors)" 0 errors
	unload; kill_server
	# what the server had in its rings is let go of after its end
	until_true 60 "the removal of the log" dmsetup remove --noudevsync netblk-log
	local status=0; "$vm/flush_order.py" check /dev/ram1 "$size_mb" 1 drop > "$scratch/said" || status=$?
	expect $status 3 "the check, where writes are missing: $(cat "$scratch/said")"
	"$vm/flush_order.py" check /dev/ram1 "$size_mb" "$promises" > "$scratch/said" || fail "$(tail -1 "$scratch/said")"
	cat "$scratch/said" >> "$scratch/told"
}
both K20-flushes-keep-their-promise order
tear_down_log
[ ! -s "$scratch/told" ] || while read -r line; do tell "$line"; done < "$scratch/told"
finish
