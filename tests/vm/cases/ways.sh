# SPDX-License-Identifier: GPL-2.0-only
# `netblk attach` promises the same whichever way it makes the disk: the table of promises and ways. A cell is a test,
# named PROMISE-WAY; where a way cannot keep a promise, the test shows what it does instead, and the reason is told.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] && [ -x "$NETBLK_OUT/netblk_server" ] || { echo "SKIP ways: build/output has no netblk, or no netblk_server"; exit 0; }
src=netblk://127.0.0.1:10809/disk
netblk() { "$netblk" "$@"; }
field() { netblk status --json "$1" 2> /dev/null | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['$2'])"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
# a server of netblk/2 whose file outlives it; WORDS are added to the store's
start_server() {
	[ -e "$scratch/disk" ] || truncate -s 48M "$scratch/disk"
	"$NETBLK_OUT/netblk_server" --export "disk=file:$scratch/disk${1:+?$1}" --listen netblk://127.0.0.1:10809 > "$scratch/server.10809" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening 10809
}
# have WAY: what the way needs of the kernel
have() {
	case $1 in
		netblk) [ -d /sys/module/net_block_driver ] || insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 server_port=9;;
		nbd) [ -d /sys/module/nbd ] || modprobe nbd;;
		ublk) [ -d /sys/module/ublk_drv ] || modprobe ublk_drv;;
		fuse) modprobe -a fuse loop 2> /dev/null || true; [ -c /dev/fuse ] && [ -c /dev/loop-control ];;
	esac
}
attach() { netblk attach "$src" --via "$way" "$@"; }
# sys DISK ATTRIBUTE
sys() { cat "/sys/block/${1#/dev/}/$2"; }
read_at() { dd if="$1" of=/dev/null bs=4k skip="$2" count=1 iflag=direct status=none; }
nothing_left() { ! ls -d /run/netblk/[0-9]* /run/netblk/names/* /dev/netblk-by-name > /dev/null 2>&1 && [ "$(netblk status --json | python3 -c 'import json, sys; print([d for d in json.load(sys.stdin) if d["state"] != "disconnected" and d["server"].endswith("disk")])')" = '[]' ]; }

# What a test leaves goes before the next one.
clean() {
	local f d
	kill -KILL $(cat "$scratch/pids" 2> /dev/null) 2> /dev/null
	umount -l $mnt 2> /dev/null
	for d in $(netblk status --json 2> /dev/null | python3 -c 'import json, sys; print(*(d["device"] for d in json.load(sys.stdin)))'); do netblk detach --force "$d" > /dev/null 2>&1; done
	for f in /run/netblk/[0-9]*/state.json; do
		[ ! -e "$f" ] || kill -KILL "$(python3 -c "import json; print(json.load(open('$f'))['pid'])")" 2> /dev/null
	done
	for f in /sys/block/loop*/loop/backing_file; do [ ! -e "$f" ] || { f=${f#/sys/block/}; losetup -d "/dev/${f%%/*}" 2> /dev/null; }; done
	umount -l /run/netblk/*/mnt 2> /dev/null; rm -rf /run/netblk /dev/netblk-by-name
}
on_way() { way=$1; have "$way"; shift; "$@"; }
# each NAME FUNCTION: the promise, on each way
each() {
	local name=$1 one; shift
	for one in netblk ublk nbd fuse; do t "$name-$one" on_way "$one" "$@"; ! [[ "$name-$one" =~ $only ]] || clean; done
}

# Blocks of 512 bytes and the whole size; what is written is read, and is on the server
blocks() {
	random_file "$scratch/disk" 48M; start_server
	local disk; disk=$(attach 2> "$scratch/words"); expect "$(cat "$scratch/words")" '' "words of an attach --via $way"
	[ -b "$disk" ] || fail "$disk is no block device"
	expect "$(blockdev --getss "$disk") $(blockdev --getsize64 "$disk")" '512 50331648' "block size and size"
	cmp "$scratch/disk" "$disk"
	dd if=/dev/urandom of="$scratch/blob" bs=512 count=3 status=none; dd if="$scratch/blob" of="$disk" bs=512 seek=5 oflag=direct status=none
	cmp "$scratch/disk" "$disk"; cmp -n 1536 -i 2560:0 "$scratch/disk" "$scratch/blob"
	expect "$(field "$disk" way) $(field "$disk" state) $(field "$disk" server)" "$way connected $src" status
	netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
# discard frees space on the server, and what was discarded reads as zeroes
discard() {
	random_file "$scratch/disk" 48M; sync; start_server
	local disk before; disk=$(attach); before=$(stat -c %b "$scratch/disk")
	[ "$(sys "$disk" queue/discard_max_bytes)" -gt 0 ] || fail "no discard"
	blkdiscard -o 8M -l 16M "$disk"
	[ "$(stat -c %b "$scratch/disk")" -lt $((before - 16384)) ] || fail "the file is as large as it was"
	cmp -n 16777216 -i 8388608:0 "$disk" /dev/zero
}
# zeroes are written; without a request of their own for it, as data
zeroes() {
	random_file "$scratch/disk" 48M; start_server
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
	until_true 30 "a flush in the server's trace" grep -q flush "$scratch/trace"
}
read_only() {
	random_file "$scratch/disk" 48M; start_server; cp "$scratch/disk" "$scratch/blob"
	local disk; disk=$(attach --read-only)
	expect "$(blockdev --getro "$disk") $(field "$disk" read_only)" '1 True' "read-only"
	must_fail 'not permitted\|read-only' dd if=/dev/zero of="$disk" bs=4096 count=1 oflag=direct status=none
	must_fail 'for writing\|read-only' attach
	cmp "$scratch/blob" "$scratch/disk"
}
partitions() {
	truncate -s 48M "$scratch/disk"; printf 'label: dos\n,20M\n,\n' | sfdisk -q "$scratch/disk"; start_server
	local disk part; disk=$(attach); part=${disk}p1; [ "$disk" != /dev/netblk ] || part=/dev/netblk1
	until_true 30 "the partition $part" test -b "$part"
	mkfs.ext4 -q "$part"; mount "$part" $mnt
	must_fail "mounted on $mnt" netblk detach "$disk"
	umount $mnt; netblk detach "$disk"; [ ! -e "$part" ] || fail "$part stays"
}
# nothing waits for ever, and the disk comes back with its server. After EIO of the whole dead time the driver is told to.
time_out() {
	start_server; local disk; disk=$(attach --timeout 1)
	[ "$way" != netblk ] || echo 3000 > "/sys/block/${disk#/dev/}/dead_time_ms"
	read_at "$disk" 0; kill_server
	must_fail 'input/output' read_at "$disk" 64
	until_true 60 "the state error" is "$disk" state error
	start_server
	[ "$way" != netblk ] || echo 1 > "/sys/block/${disk#/dev/}/connect"
	until_true 60 "the state connected" is "$disk" state connected
	read_at "$disk" 128; netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
# the server is killed under load and comes back: no error, and no byte is lost
server_dies() {
	start_server; local disk i; disk=$(attach)
	fio --name=v --filename="$disk" --size=24m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 --minimal --output="$scratch/fio.v" > /dev/null & local fio=$!
	for i in 1 2; do
		kill_server; start_server
		until_true 60 "reconnect $i" eval "[ \$(field $disk reconnects) -ge $i ]"
	done
	wait $fio || fail "fio: $(cat "$scratch/fio.v")"
	sync; drop_caches; cmp "$disk" "$scratch/disk"; netblk detach "$disk"
}
# after kill -9 of what serves the disk, status tells the truth, and attach or detach of the same repairs it
helper_dies() {
	start_server; local disk again pid; disk=$(attach --name backup); pid=$(field backup pid)
	if [ "$way" = netblk ]; then
		expect "$pid" 0 "the process behind the driver's disk"; tell "the driver has no process that could be killed"
		expect "$(attach --name backup)" "$disk" "attach once more"; netblk detach backup; nothing_left || fail "left: $(ls /run/netblk)"
		return 0
	fi
	kill -KILL "$pid"
	if [ "$way" = fuse ]; then
		until_true 30 "the state dead" is backup state dead
		netblk status backup | grep -q dead || fail "status says $(netblk status backup)"
	else
		until_true 30 "another helper" eval '[ "$(field backup pid)" != '"$pid"' ] && is backup state connected'
	fi
	again=$(attach --name backup 2> "$scratch/words"); [ "$(readlink -f /dev/netblk-by-name/backup)" = "$again" ] || fail "the name leads to $(readlink -f /dev/netblk-by-name/backup), not $again"
	is backup state connected || until_true 30 "the state connected" is backup state connected
	cmp -n 1048576 "$again" "$scratch/disk"
	# while it is mounted, and the mount sees errors (fuse) or goes on (nbd)
	mkfs.ext4 -q "$again"; mount -o ro "$again" $mnt; kill -KILL "$(field backup pid)"
	disk=$(attach --name backup 2> "$scratch/words")
	if [ "$way" = fuse ]; then
		[ "$disk" != "$again" ] || fail "the same node, of which the helper died"
		grep -q "mounted on $mnt, and answers EIO" "$scratch/words" || fail "attach says $(cat "$scratch/words")"
	else
		expect "$disk" "$again" "the node"; until_true 60 "the state connected" is backup state connected
		drop_caches; ls $mnt > /dev/null
	fi
	umount $mnt; [ "$way" != fuse ] || netblk detach "$again"
	# and detach of a name whose helper has gone
	kill -KILL "$(field backup pid)"; netblk detach backup; nothing_left || fail "left: $(ls /run/netblk /run/netblk/names)"
	netblk detach backup 2> "$scratch/words"; grep -q 'is not attached' "$scratch/words" || fail "a second detach says $(cat "$scratch/words")"
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
	netblk detach "$disk" 2> /dev/null; until_true 30 "an end of $disk" nothing_left
	disk=$(attach); mount "$disk" $mnt; expect "$(cat $mnt/file)" kept "the file"; umount $mnt
}
# --lazy: the name is free at once, and the disk goes when its last user closes it; --force: now, with requests that wait
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
forcibly() {
	start_server; local disk; disk=$(attach); exec 7< "$disk"
	fio --name=f --filename="$disk" --size=24m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --time_based --runtime=600 \
		--minimal --output="$scratch/fio.f" > /dev/null 2>&1 & local fio=$!
	until_true 60 "requests" eval '[ "$(netblk top --once --interval 0.2 --json | python3 -c "import json, sys; print(int(json.load(sys.stdin)[0][\"writes_per_s\"] > 0))")" = 1 ]'
	within 60 "$netblk" detach --force "$disk" || true
	until_true 60 "an end of the requests" eval "! kill -0 $fio"
	if wait $fio; then fail "fio saw no error"; fi
	exec 7<&-; netblk detach --force "$disk" 2> /dev/null || true; until_true 60 "an end of $disk" nothing_left
}
# any source by any way; what a way does not know it refuses in words
sources() {
	start_server; random_file "$scratch/disk1" 16M
	nbdkit -f -p 10812 -i 127.0.0.1 file "$scratch/disk1" > /dev/null 2>&1 & echo $! >> "$scratch/pids"; listening 10812
	local source disk socket="nbd+unix:///?socket=$scratch/socket.$way"
	nbdkit -f -U "$scratch/socket.$way" file "$scratch/disk1" > /dev/null 2>&1 & echo $! >> "$scratch/pids"
	until_true 30 "a server on a socket" "$netblk" info "$socket"
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
	until_true 30 "three connections" eval '[ "$(ss -Htn state established "sport = :10809" | wc -l)" = 3 ]'
	expect "$(attach --connections 3)" "$disk" "once more"
	netblk detach "$disk"
	[ "$way" = netblk ] || return 0
	# netblk/1 has one
	serve_simple 10815 "$scratch/disk2" 16
	must_fail 'leave --connections out' netblk attach netblk://127.0.0.1:10815 --size 16M --via netblk --connections 2
	must_fail 'was made for' attach --device netblk --connections 5
}
# what --via auto takes, and --explain
explain() {
	start_server; local way disk
	said() { netblk attach --explain "$@" | sed -n "s/^--via auto attaches .* via //p"; }
	fact() { netblk attach --explain --json $src | python3 -c "import json, sys; print({w['way']: w for w in json.load(sys.stdin)['ways']}['$1']['$2'])"; }
	[ ! -d /sys/module/net_block_driver ] || rmmod net_block_driver; [ ! -d /sys/module/nbd ] || rmmod nbd; [ ! -d /sys/module/ublk_drv ] || rmmod ublk_drv; have fuse
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
each blocks blocks
each discard discard
each zeroes zeroes
each flush flush
each read-only read_only
each partitions partitions
each timeout time_out
each server-dies server_dies
each helper-dies helper_dies
each names names
each in-use in_use
each lazily lazily
each forcibly forcibly
each sources sources
each connections connections
t explain-and-auto explain; clean
finish
