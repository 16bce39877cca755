# SPDX-License-Identifier: GPL-2.0-only
# What a disk can do, whichever way `netblk attach` makes it, and who may take it away.
. "$NETBLK_ROOT/tests/vm/ways_lib.sh"

# Blocks of 512 bytes and the whole size; what is written is read, and is on the server
blocks() {
	random_file "$scratch/disk" 16M; start_server
	local disk; disk=$(attach 2> "$scratch/words"); expect "$(cat "$scratch/words")" '' "words of an attach --via $way"
	[ -b "$disk" ] || fail "$disk is no block device"
	expect "$(blockdev --getss "$disk") $(blockdev --getsize64 "$disk")" '512 16777216' "block size and size"
	cmp "$scratch/disk" "$disk"
	dd if=/dev/urandom of="$scratch/blob" bs=512 count=3 status=none; dd if="$scratch/blob" of="$disk" bs=512 seek=5 oflag=direct status=none
	cmp "$scratch/disk" "$disk"; cmp -n 1536 -i 2560:0 "$scratch/disk" "$scratch/blob"
	expect "$(field "$disk" way) $(field "$disk" state) $(field "$disk" server)" "$way connected $src" status
	netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
# discard frees space on the server, and what was discarded reads as zeroes
discard() {
	random_file "$scratch/disk" 16M; sync; start_server
	local disk before; disk=$(attach); before=$(stat -c %b "$scratch/disk")
	[ "$(sys "$disk" queue/discard_max_bytes)" -gt 0 ] || fail "no discard"
	blkdiscard -o 4M -l 8M "$disk"
	[ "$(stat -c %b "$scratch/disk")" -lt $((before - 8192)) ] || fail "the file is as large as it was"
	cmp -n 8388608 -i 4194304:0 "$disk" /dev/zero
}
# zeroes are written; without a request of their own for it, as data
zeroes() {
	random_file "$scratch/disk" 16M; start_server
	local disk; disk=$(attach)
	blkdiscard -z -o 1M -l 4M "$disk"; cmp -n 4194304 -i 1048576:0 "$scratch/disk" /dev/zero
	cmp -n 1048576 "$scratch/disk" "$disk"
	[ "$(sys "$disk" queue/write_zeroes_max_bytes)" != 0 ] || { [ "$way" = nbd ] && tell "the kernel's nbd has no write-zeroes: data are sent"; }
}
# a flush reaches the server's store
flush() {
	start_server "trace=$scratch/trace"
	local disk before; disk=$(attach)
	dd if=/dev/urandom of="$disk" bs=4k count=4 status=none conv=fsync
	until_true 60 "a flush in the server's trace" grep -q flush "$scratch/trace"
}
# a write that has to be durable by itself is, when it is answered: with FUA, or with a flush behind it
fua() {
	start_server "trace=$scratch/trace"; rm -f "$scratch/trace"; kill_server; start_server "trace=$scratch/trace"
	local disk; disk=$(attach)
	dd if=/dev/urandom of="$disk" bs=4k count=3 oflag=direct,dsync status=none
	# a line is there before its answer
	[ "$(grep -c ' fua' "$scratch/trace")" -ge 3 ] || [ "$(grep -c flush "$scratch/trace")" -ge 3 ] || fail "the server was asked for nothing durable: $(cat "$scratch/trace")"
	grep -q ' fua' "$scratch/trace" || tell "$way: a write with FUA comes as a write and a flush"
}
# what status and the kernel count is what was read and written
statistics() {
	start_server; local disk before after; disk=$(attach)
	counts() { echo "$(field "$disk" read_bytes) $(field "$disk" write_bytes)" $(awk '{print $3, $7}' "/sys/block/${disk#/dev/}/stat"); }
	before=($(counts))
	dd if=/dev/urandom of="$disk" bs=64k count=48 oflag=direct status=none
	dd if="$disk" of=/dev/null bs=64k count=32 iflag=direct status=none
	after=($(counts))
	expect "$((after[1] - before[1])) $((after[3] - before[3]))" "$((48 * 65536)) $((48 * 128))" "bytes written by status, sectors by the kernel"
	expect "$((after[0] - before[0])) $((after[2] - before[2]))" "$((32 * 65536)) $((32 * 128))" "bytes read by status, sectors by the kernel"
	expect "$(field "$disk" errors) $(field "$disk" in_flight)" '0 0' "errors, requests in flight"
}
# the server's store grows and is cut, under load and while it is mounted
resize() {
	local disk job reads bytes=16777216
	start_server; disk=$(attach)
	mkfs.ext4 -q "$disk"; mount "$disk" $mnt; random_file "$scratch/blob" 2M; cp "$scratch/blob" $mnt/; sync -f $mnt
	reads=$(awk '{print $1}' "/sys/block/${disk#/dev/}/stat")
	fio --name=r --filename="$disk" --size=8m --rw=randread --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --time_based --runtime=600 \
		--minimal --output="$scratch/fio.r" > /dev/null & job=$!
	# a fio that is killed before it has begun never ends
	until_true 60 "reads" eval "[ \$(awk '{print \$1}' /sys/block/${disk#/dev/}/stat) -ge $((reads + 50)) ]"
	truncate -s 40M "$scratch/disk"; bytes=41943040
	if [ "$way" = ublk ] && ! ublk_resizes; then
		until_true 60 "words of the new size" eval '[[ $(field "$disk" last_error) = *"41943040 bytes now"* ]]'
		tell "ublk shows a new size from Linux 6.16 on: the disk has its old one until it is attached anew"
		expect "$(blockdev --getsize64 "$disk")" 16777216 "the size"
		kill $job; wait $job 2> /dev/null || true; umount $mnt; netblk detach "$disk"; disk=$(attach)
		expect "$(blockdev --getsize64 "$disk")" $bytes "the size after attaching anew"; mount "$disk" $mnt
	else
		until_true 60 "the new size" eval '[ "$(blockdev --getsize64 "$disk")" = 41943040 ]'
		until_true 60 "the new size in status" is "$disk" size_bytes $bytes
		kill -0 $job || fail "fio ended: $(cat "$scratch/fio.r")"; kill $job; wait $job 2> /dev/null || true
	fi
	resize2fs "$disk" 2> /dev/null; [ "$(df --output=size -k $mnt | tail -1)" -gt 30000 ] || fail "the file system did not grow: $(df -k $mnt)"
	random_file "$scratch/blob2" 20M; cp "$scratch/blob2" $mnt/; sync -f $mnt; drop_caches; cmp "$scratch/blob" $mnt/blob; cmp "$scratch/blob2" $mnt/blob2
	umount $mnt; e2fsck -fn "$disk"
	# smaller: what is beyond the end fails, and comes back
	[ "$way" != ublk ] || ublk_resizes || return 0
	truncate -s 12M "$scratch/disk"; until_true 60 "the smaller size" eval '[ "$(blockdev --getsize64 "$disk")" = 12582912 ]'
	must_fail 'no space\|invalid' dd if=/dev/zero of="$disk" bs=4096 seek=3072 count=1 oflag=direct status=none
	read_at "$disk" 3071; expect "$(field "$disk" state)" connected "the state"
}
ublk_resizes() { local release; release=$(uname -r); [ "$(printf '6.16\n%s\n' "${release%%-*}" | sort -V | head -1)" = 6.16 ]; }
# blocks of 4096 bytes, where the server has no smaller ones
blocks_4096() {
	random_file "$scratch/disk1" 16M
	if [ "$way" = netblk ]; then
		tell "the servers with blocks of 4096 bytes that there are speak NBD, which the driver does not"
		must_fail 'takes netblk:// and nothing else' netblk attach nbd://127.0.0.1:10812 --via netblk
		return 0
	fi
	nbdkit -f -p 10812 -i 127.0.0.1 --filter=blocksize-policy file "$scratch/disk1" blocksize-minimum=4096 blocksize-error-policy=error \
		> "$scratch/server.10812" 2>&1 & echo $! >> "$scratch/pids"; listening 10812
	local disk; disk=$(netblk attach nbd://127.0.0.1:10812 --via $way 2> /dev/null)
	expect "$(blockdev --getss "$disk")" 4096 "logical block size"
	must_fail invalid dd if=/dev/zero of="$disk" bs=512 count=1 oflag=direct status=none
	mkfs.ext4 -q "$disk"; mount "$disk" $mnt; random_file "$scratch/blob" 3M; cp "$scratch/blob" $mnt/; umount $mnt
	mount "$disk" $mnt; cmp "$scratch/blob" $mnt/blob; umount $mnt; netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
read_only() {
	random_file "$scratch/disk" 16M; start_server; cp "$scratch/disk" "$scratch/blob"
	local disk; disk=$(attach --read-only)
	expect "$(blockdev --getro "$disk") $(field "$disk" read_only)" '1 True' "read-only"
	must_fail 'not permitted\|read-only' dd if=/dev/zero of="$disk" bs=4096 count=1 oflag=direct status=none
	must_fail 'for writing\|read-only' attach
	cmp "$scratch/blob" "$scratch/disk"
}
partitions() {
	truncate -s 16M "$scratch/disk"; printf 'label: dos\n,8M\n,\n' | sfdisk -q "$scratch/disk"; start_server
	local disk part; disk=$(attach); part=${disk}p1; [ "$disk" != /dev/netblk ] || part=/dev/netblk1
	until_true 60 "the partition $part" test -b "$part"
	mkfs.ext4 -q "$part"; mount "$part" $mnt
	must_fail "mounted on $mnt" netblk detach "$disk"
	umount $mnt; netblk detach "$disk"; [ ! -e "$part" ] || fail "$part stays"
}
# one name, one disk
names() {
	start_server; local disk; disk=$(attach --name data.1)
	expect "$(readlink -f /dev/netblk-by-name/data.1) $(attach --name data.1) $(netblk attach $src 2> /dev/null)" "$disk $disk $disk" "the same name again, and without it"
	must_fail 'its name is data.1' attach --name other
	must_fail 'detach that first' netblk attach mem:16M --via fuse --name data.1
	expect "$(field data.1 name) $(field /dev/netblk-by-name/data.1 device)" "data.1 $disk" status
	mkfs.ext4 -q /dev/netblk-by-name/data.1
	netblk detach /dev/netblk-by-name/data.1; nothing_left || fail "left: $(ls /run/netblk /run/netblk/names)"
	# a name whose disk has gone is free, whatever it was given for
	mkdir -p /run/netblk/names /dev/netblk-by-name; printf 'NETBLK_NAME=data.1\nNETBLK_SOURCE=netblk://192.0.2.1:10809/old\n' > /run/netblk/names/loop99
	ln -s /dev/loop99 /dev/netblk-by-name/data.1
	must_fail 'is not attached' netblk status data.1
	disk=$(attach --name data.1); expect "$(readlink -f /dev/netblk-by-name/data.1)" "$disk" "the name after a stale one"
	[ ! -e /run/netblk/names/loop99 ] || fail "the stale name stays"
	netblk detach data.1; nothing_left || fail "left: $(ls /run/netblk)"
}
# in use: refused, with where
in_use() {
	start_server; local disk; disk=$(attach)
	mkfs.ext4 -q "$disk"; mount "$disk" $mnt; echo kept > $mnt/file
	must_fail "mounted on $mnt" netblk detach "$disk"
	umount $mnt; exec 7< "$disk"
	netblk detach "$disk" 2> "$scratch/words" || true; exec 7<&-
	netblk detach "$disk" 2> /dev/null; until_true 60 "an end of $disk" nothing_left
	disk=$(attach); mount "$disk" $mnt; expect "$(cat $mnt/file)" kept "the file"; umount $mnt
}
# --lazy: the name is free at once, and the disk goes when its last user closes it
lazily() {
	start_server; local disk again; disk=$(attach --name data)
	mkfs.ext4 -q "$disk"; mount "$disk" $mnt
	must_fail 'excludes' netblk detach --lazy --force data
	netblk detach --lazy data 2> "$scratch/words"; grep -q 'goes when nobody uses it' "$scratch/words" || fail "detach --lazy says $(cat "$scratch/words")"
	[ ! -e /dev/netblk-by-name/data ] || fail "the name stays"
	expect "$(field "$disk" leaving) $(field "$disk" name)" 'True ' "status"
	echo kept > $mnt/file; sync -f $mnt
	# attached again, it stays
	expect "$(attach --name data)" "$disk" "attach of what is leaving"; expect "$(field data leaving)" False "leaving after attach"
	netblk detach --lazy data 2> /dev/null; umount $mnt
	until_true 60 "an end of $disk" nothing_left
	disk=$(attach); mount "$disk" $mnt; expect "$(cat $mnt/file)" kept "the file"; umount $mnt
	netblk detach --lazy "$disk"; nothing_left || fail "a lazy detach of what nobody uses leaves: $(ls /run/netblk)"
}
# any source by any way; what a way does not know it refuses in words
sources() {
	start_server; random_file "$scratch/disk1" 16M
	nbdkit -f -p 10812 -i 127.0.0.1 file "$scratch/disk1" > /dev/null 2>&1 & echo $! >> "$scratch/pids"; listening 10812
	local source disk socket="nbd+unix:///?socket=$scratch/socket.$way"
	nbdkit -f -U "$scratch/socket.$way" file "$scratch/disk1" > /dev/null 2>&1 & echo $! >> "$scratch/pids"
	until_true 60 "a server on a socket" "$netblk" info "$socket"
	for source in nbd://127.0.0.1:10812 "$socket" "file:$scratch/disk1"; do
		if [ "$way" = netblk ]; then
			must_fail "takes netblk:// and nothing else.*--explain" netblk attach "$source" --via netblk; continue
		fi
		disk=$(netblk attach "$source" --via $way); cmp "$scratch/disk1" "$disk"
		dd if=/dev/urandom of="$disk" bs=64k count=3 seek=2 oflag=direct status=none; sync "$disk"; cmp "$scratch/disk1" "$disk"
		netblk detach "$disk"
	done
	[ "$way" = netblk ] || { disk=$(netblk attach mem:16M --via $way); mkfs.ext4 -q "$disk"; mount "$disk" $mnt; umount $mnt; netblk detach "$disk"; }
	nothing_left || fail "left: $(ls /run/netblk)"
}
connections() {
	start_server; local disk; disk=$(attach --connections 3)
	until_true 60 "three connections" eval '[ "$(ss -Htn state established "sport = :10809" | wc -l)" = 3 ]'
	expect "$(attach --connections 3)" "$disk" "once more"
	netblk detach "$disk"
	[ "$way" = netblk ] || return 0
	# netblk/1 has one
	serve_simple 10815 "$scratch/disk2" 16
	must_fail 'leave --connections out' netblk attach netblk://127.0.0.1:10815 --size 16M --via netblk --connections 2
	must_fail 'was made for' attach --device netblk --connections 5
}
fact() { netblk attach --explain --json $src | python3 -c "import json, sys; print({w['way']: w for w in json.load(sys.stdin)['ways']}['$1']['$2'])"; }
# what --via auto takes, and --explain
explain() {
	start_server; local way disk
	said() { netblk attach --explain "$@" | sed -n "s/^--via auto attaches .* via //p"; }
	# what a process had of them goes a moment after it
	for way in net_block_driver nbd ublk_drv; do [ ! -d /sys/module/$way ] || until_true 60 "an end of $way" rmmod $way; done; have fuse
	expect "$(said) $(said $src) $(fact nbd usable) $(fact nbd enable) $(fact netblk usable)" 'fuse fuse False sudo modprobe nbd False' "with FUSE alone"
	disk=$(netblk attach $src 2> "$scratch/words"); grep -q 'via fuse: the driver is not loaded.*nbd is not loaded' "$scratch/words" || fail "attach says $(cat "$scratch/words")"
	have nbd; expect "$(said $src)" nbd "with nbd.ko"; have ublk; expect "$(said $src) $(said nbd://127.0.0.1)" "ublk ublk" "with ublk"
	expect "$(netblk attach $src)" "$disk" "what is attached already, though there is a better way now"; netblk detach "$disk"
	have netblk; expect "$(said $src) $(said nbd://127.0.0.1) $(said mem:1M)" 'netblk ublk ublk' "with all"
	expect "$(fact netblk usable) $(fact netblk why)" 'True the driver is loaded' "the driver"
	netblk attach --explain | grep -q '^kernel ' || fail "no kernel: $(netblk attach --explain)"
	cp "$netblk" /tmp/netblk-nobody; chmod 755 /tmp/netblk-nobody
	setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/netblk-nobody attach --explain | grep -q 'not root.*sudo' || fail "it does not tell nobody of root"
	rm /tmp/netblk-nobody
	must_fail 'goes with --explain' netblk attach --json $src
	must_fail 'SOURCE is missing' netblk attach
}
# Debian 12's own kernel has no ublk; the one that has it is named
explain_debian() {
	expect "$(fact ublk usable) $(fact ublk enable)" 'False sudo apt-get install linux-image-6.12-amd64, then reboot' ublk
	must_fail 'has no module ublk_drv .*linux-image-6.12-amd64' netblk attach $src --via ublk
}
each blocks blocks
each discard discard
each zeroes zeroes
each flush flush
each fua fua
each statistics statistics
each resize resize
each blocks-4096 blocks_4096
each read-only read_only
each partitions partitions
each names names
each in-use in_use
each lazily lazily
each sources sources
each connections connections
t explain-and-auto explain; clean
case $(uname -r) in 6.1.*-amd64) t explain-debian explain_debian; clean;; esac
finish
