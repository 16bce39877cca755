# SPDX-License-Identifier: GPL-2.0-only
# Law 3, "Reconnect never lies", demonstrated twice on a mounted file system:
#   the server's process restarts: the file system goes on, and nothing is lost;
#   the server's machine goes down with writes in its cache: every fsync ends with EIO until the owner has acknowledged
#   the loss, and sysfs, `netblk status` and the kernel log say what happened and what to do.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk_server" ] && [ -x "$netblk" ] || { echo "FAIL law3: netblk_server and netblk are not built"; exit 1; }
serve_disk() { serve 10809 "$scratch/disk" 100; }
load2() { load protocol=2 dead_time_ms=600000 connect_timeout_ms=10000 max_retries=1000; }
fsync_file() { python3 -c 'import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))' "$1"; }
status_of() { "$netblk" status --json | python3 -c 'import json, sys; row = next(r for r in json.load(sys.stdin) if r["device"] == "/dev/netblk"); print(row[sys.argv[1]])' "$1"; }

server_process_restart() {
	serve_disk; load2
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt; sync -f $mnt
	local generation round; generation=$(cat $sysfs/generation)
	for round in 1 2 3; do
		random_file "$scratch/blob$round" 3M
		# acknowledged and not flushed when the process is killed; more is written while nobody is there
		dd if="$scratch/blob$round" of=$mnt/direct$round bs=64k oflag=direct status=none
		kill_server
		cp "$scratch/blob$round" $mnt/buffered$round & local copy=$!
		sleep 0.3; serve_disk
		wait $copy; fsync_file $mnt/direct$round; fsync_file $mnt/buffered$round
	done
	expect "$(cat $sysfs/lost | cut -c1-2) $(status_of lost) $(stat_of errors)" "no False 0" "lost in sysfs, lost in netblk status, errors"
	expect "$(cat $sysfs/generation)" "$generation" generation
	umount $mnt; drop_caches; e2fsck -fn /dev/netblk; mount /dev/netblk $mnt
	for round in 1 2 3; do cmp "$scratch/blob$round" $mnt/direct$round; cmp "$scratch/blob$round" $mnt/buffered$round; done
	umount $mnt; unload
}

server_host_reboot_with_lost_cache() {
	serve_disk; load2
	mkfs_no_flush
	random_file "$scratch/kept" 1M; cp "$scratch/kept" $mnt/kept; fallocate -l 1M $mnt/file; dd if=/dev/zero of=$mnt/file bs=64k count=16 conv=notrunc,fsync status=none
	sync -f $mnt
	# what the machine's disk has is this; what comes now is in its cache alone
	cp "$scratch/disk" "$scratch/disk.durable"
	random_file "$scratch/blob" 1M
	dd if="$scratch/blob" of=$mnt/file bs=64k oflag=direct conv=notrunc status=none
	# of a server that stands still: no flush can be done after this look
	kill -STOP "$server_pid"
	[ "$(cat $sysfs/unflushed)" -gt 0 ] || fail "nothing acknowledged is unflushed: nothing can be lost"
	kill_server
	dd if="$scratch/disk.durable" of="$scratch/disk" bs=1M conv=notrunc status=none; rm -rf /run/netblk
	serve_disk; wait_state connected
	local i
	for i in 1 2 3; do must_fail 'input/output' fsync_file $mnt/file; done
	expect "$(cut -c1-3 $sysfs/lost)" yes "lost in sysfs"
	expect "$(status_of lost)" True "lost in netblk status"
	[[ $(status_of lost_why) = *acknowledged* ]] || fail "netblk status does not say why: $(status_of lost_why)"
	"$netblk" status | grep -q lost || fail "netblk status says: $("$netblk" status)"
	said 'netblk: LOST: '
	# the owner takes note: the file system is given up and checked, and the disk works again
	umount $mnt || true
	"$netblk" reset /dev/netblk
	expect "$(cut -c1-2 $sysfs/lost) $(status_of lost)" "no False" "lost after netblk reset"
	e2fsck -fy /dev/netblk > "$scratch/fsck" 2>&1 || [ $? -le 1 ] || fail "e2fsck: $(tail -2 "$scratch/fsck")"
	mount /dev/netblk $mnt; cmp "$scratch/kept" $mnt/kept
	echo again > $mnt/after; fsync_file $mnt/after
	umount $mnt; unload
}
t law3-server-process-restart server_process_restart
t law3-server-host-reboot-with-lost-cache server_host_reboot_with_lost_cache
finish
