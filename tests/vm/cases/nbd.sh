# SPDX-License-Identifier: GPL-2.0-only
# `netblk attach --via nbd`: the kernel's own nbd, set up by netlink, its dead connections replaced by a helper process
# that may die without the disk. The servers are nbdkit and nbd-server.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] || { echo "SKIP nbd-attach: build/output has no netblk"; exit 0; }
a=nbd://127.0.0.1:10809
# seconds in which whatever has to succeed does, on a machine that stands still too
long=60
netblk() { "$netblk" "$@"; }
field() { netblk status --json "$1" 2> /dev/null | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['$2'])"; }
# kit PORT FILE [OPTION...]: nbdkit, whose file survives it
kit() {
	local port=$1 file=$2; shift 2
	[ -e "$file" ] || truncate -s 64M "$file"
	nbdkit -f -p "$port" -i 127.0.0.1 "$@" file "$file" > "$scratch/server.$port" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$port"
}
# nbd-server, by nbd.conf
old_server() { nbd-server -C "$scratch/nbd.conf" -p "$scratch/nbd.pid"; listening 10812; cat "$scratch/nbd.pid" >> "$scratch/pids"; }
# ours PORT: our own server, netblk at PORT and NBD at PORT+1
ours() {
	"$netblk_server" --export disk="file:$scratch/disk9?size=64M" --listen "netblk://127.0.0.1:$1" --listen "nbd://127.0.0.1:$(($1 + 1))" \
		> "$scratch/server.$1" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$1"; listening $(($1 + 1))
}
verify() {
	fio --name=v --filename="$1" --size=16m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 --loops="${2:-1}" --minimal --output="$scratch/fio.v" > /dev/null
}
# until SECONDS COMMAND...: until it succeeds; the bound only ends what is hopeless
until_true() { local s=$1 i; shift; for i in $(seq $((s * 10))); do ! "$@" > /dev/null 2>&1 || return 0; sleep 0.1; done; fail "not so after $s s: $*"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
# ended PID: waits for a background job; its status
ended() { until_true 120 eval "! kill -0 $1"; wait "$1"; }
nothing_left() { ! ls -d /run/netblk/[0-9]* > /dev/null 2>&1 && ! ls /sys/block/nbd*/pid > /dev/null 2>&1; }
# What a test leaves goes before the next one.
t_nbd() {
	local name=$1 f; shift
	[ -d /sys/module/nbd ] || modprobe nbd
	t "$name" "$@"
	for f in /sys/block/nbd*/pid; do
		[ -e "$f" ] || continue
		f=${f%/pid}; umount "/dev/${f##*/}" 2> /dev/null; netblk detach --force "${f##*/}" > /dev/null 2>&1; nbd-client -d "/dev/${f##*/}" > /dev/null 2>&1
	done
	for f in /run/netblk/*/state.json; do
		[ ! -e "$f" ] || kill -KILL "$(python3 -c "import json; print(json.load(open('$f'))['pid'])")" 2> /dev/null
	done
	rm -rf /run/netblk
}

first() {
	random_file "$scratch/disk1" 64M; kit 10809 "$scratch/disk1"
	local out
	out=$(netblk attach $a --via nbd 2> "$scratch/words"); expect "$out" /dev/nbd0 "what attach prints"
	grep -q 'promises what NBD promises' "$scratch/words" || fail "it does not say what NBD promises: $(cat "$scratch/words")"
	expect "$(cat /sys/block/nbd0/size)" 131072 "the size attribute"
	expect "$(cat /sys/block/nbd0/backend)" "netblk $a" "the backend attribute"
	local pid; pid=$(cat /sys/block/nbd0/pid); expect "$pid" "$(field nbd0 pid)" "the pid attribute is the helper"
	kill -0 "$pid"
	expect "$(nbd-client -c /dev/nbd0)" "$pid" "nbd-client -c"
	cmp "$scratch/disk1" /dev/nbd0
	expect "$(netblk attach $a --via nbd 2> /dev/null) $(netblk attach $a 2> /dev/null)" '/dev/nbd0 /dev/nbd0' "attach again, and without --via"
	expect "$(field nbd0 state) $(field nbd0 way) $(field nbd0 protocol) $(field /dev/nbd0 server)" "connected nbd nbd $a" status
	mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 $mnt; echo kept > $mnt/file
	must_fail "mounted on $mnt" netblk detach nbd0
	umount $mnt
	[ "$(field nbd0 write_bytes)" -gt 0 ] && [ "$(field nbd0 read_bytes)" -ge 67108864 ] || fail "status counts no bytes"
	netblk detach /dev/nbd0; nothing_left || fail "left: $(ls /run/netblk /sys/block/nbd*/pid)"
	expect "$(cat /sys/block/nbd0/size)" 0 "the size after detach"
	netblk detach nbd0 2> "$scratch/words"; grep -q 'is not attached' "$scratch/words" || fail "a second detach says $(cat "$scratch/words")"
	if nbd-client -c /dev/nbd0; then fail "nbd-client -c says that it is connected"; fi
	# what was written came through the detach
	expect "$(netblk attach $a --via nbd --device /dev/nbd3 --name data 2> /dev/null)" /dev/nbd3 "attach with --device"
	expect "$(readlink /dev/netblk-by-name/data)" /dev/nbd3 "the name"
	mount /dev/nbd3 $mnt; expect "$(cat $mnt/file)" kept "the file"; umount $mnt
	netblk detach data; [ ! -e /dev/netblk-by-name ] || fail "the name stays"
}
# the kernel picks the next disk; nbd-client's are left alone
several() {
	kit 10809 "$scratch/disk1"; kit 10810 "$scratch/disk2"; kit 10811 "$scratch/disk3"
	nbd-client 127.0.0.1 10811 /dev/nbd0 > /dev/null
	expect "$(netblk attach $a --via nbd 2> /dev/null)" /dev/nbd1 "beside nbd-client's"
	expect "$(netblk attach nbd://127.0.0.1:10810 2> /dev/null)" /dev/nbd2 "the next"
	must_fail 'in use: detach it' netblk attach nbd://127.0.0.1:10811 --device nbd0
	must_fail 'already, as /dev/nbd1' netblk attach $a --device nbd7
	must_fail 'not by netblk.*nbd-client -d' netblk detach nbd0
	expect "$(netblk status --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)))')" 2 "disks in status"
	nbd-client -d /dev/nbd0 > /dev/null
	# nbd-client disconnects what we have attached: the helper notices, and nothing is left
	nbd-client -d /dev/nbd1 > /dev/null
	until_true 60 eval '! netblk status | grep -q nbd1'
	expect "$(netblk attach $a 2> /dev/null)" /dev/nbd0 "attach after nbd-client -d"
	netblk detach nbd0; netblk detach nbd2; nothing_left || fail "left: $(ls /run/netblk)"
	# on a socket in the file system
	nbdkit -f -U "$scratch/socket" file "$scratch/disk1" & echo $! >> "$scratch/pids"; until_true 60 "$netblk" info "nbd+unix:///?socket=$scratch/socket"
	expect "$(netblk attach "nbd+unix:///?socket=$scratch/socket" 2> /dev/null)" /dev/nbd0 "attach of a unix socket"
	cmp "$scratch/disk1" /dev/nbd0; netblk detach nbd0
}
refusals() {
	must_fail 'refused' netblk attach nbd://127.0.0.1:9 --via nbd
	kit 10809 "$scratch/disk1"
	must_fail 'bytes, not' netblk attach $a --size 50M
	must_fail 'takes netblk:// and nothing else' netblk attach $a --via netblk
	must_fail 'cannot tell of a loss' netblk attach $a --via nbd --reconnect lost
	must_fail 'mean nothing' netblk attach $a --takeover
	must_fail "disks of the kernel's nbd" netblk attach $a --device netblk-1
	netblk attach $a > /dev/null 2>&1
	must_fail 'for writing' netblk attach $a --read-only
	netblk detach nbd0
	# no root
	cp "$netblk" /tmp/netblk-nobody; chmod 755 /tmp/netblk-nobody
	must_fail 'needs root' setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/netblk-nobody attach $a
	netblk attach $a > /dev/null 2>&1
	must_fail 'needs root' setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/netblk-nobody detach nbd0
	expect "$(setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/netblk-nobody status | wc -l)" 1 "lines of status for nobody (its folder is root's)"
	netblk detach nbd0; rm /tmp/netblk-nobody
	# an export that is not there, or is nothing
	kill_server; truncate -s 0 "$scratch/disk0"; kit 10809 "$scratch/disk0"
	must_fail 'at least one sector' netblk attach $a
	printf '[generic]\nlistenaddr = 127.0.0.1\nport = 10812\n[disk]\nexportname = %s\n' "$scratch/disk1" > "$scratch/nbd.conf"
	old_server
	must_fail 'nothing' netblk attach nbd://127.0.0.1:10812/nothing
	expect "$(netblk attach nbd://127.0.0.1:10812/disk 2> "$scratch/words" || cat "$scratch/words" "$scratch/server.10812")" /dev/nbd0 "nbd-server's"
	netblk detach nbd0
	nothing_left || fail "refusals leave: $(ls /run/netblk)"
	# a server that says nothing
	python3 -c "
import socket, time
s = socket.socket(); s.bind(('127.0.0.1', 10813)); s.listen(); time.sleep(600)" & echo $! >> "$scratch/pids"; listening 10813
	must_fail '10813' within 60 "$netblk" attach nbd://127.0.0.1:10813 --timeout 1
	# no module: which one, and the command; or that this kernel has none
	rmmod nbd
	must_fail 'nbd is not loaded: modprobe nbd' netblk attach $a --via nbd
	mkdir -p "$scratch/none"; mount --bind "$scratch/none" "/lib/modules/$(uname -r)"
	must_fail 'has no module nbd (CONFIG_BLK_DEV_NBD)' netblk attach $a --via nbd
	umount "/lib/modules/$(uname -r)"
	modprobe nbd
}
read_only() {
	kit 10809 "$scratch/disk1"; kit 10810 "$scratch/disk2" -r
	expect "$(netblk attach $a --via nbd --read-only 2> "$scratch/words")" /dev/nbd0 "attach --read-only"
	expect "$(cat "$scratch/words")" '' "words of a disk that cannot lose writes"
	expect "$(cat /sys/block/nbd0/ro) $(field nbd0 read_only)" '1 True' "read-only"
	must_fail 'not permitted\|read-only' dd if=/dev/zero of=/dev/nbd0 bs=4096 count=1 oflag=direct status=none
	must_fail 'read-only: attach it with --read-only' netblk attach nbd://127.0.0.1:10810
	expect "$(netblk attach nbd://127.0.0.1:10810 --read-only)" /dev/nbd1 "a read-only export"
}
# the server is killed and comes back under a file system's load
server_dies() {
	kit 10809 "$scratch/disk1"; netblk attach $a --timeout $long > /dev/null 2>&1
	mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 $mnt
	fio --name=v --directory=$mnt --size=16m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 --loops=4 --minimal --output="$scratch/fio.v" > /dev/null & local fio=$! i
	for i in 1 2 3; do
		sleep 0.5; kill_server; sleep 0.3; kit 10809 "$scratch/disk1"
		until_true 60 eval "[ \$(field nbd0 reconnects) -ge $i ] && is nbd0 state connected"
	done
	ended $fio || fail "fio: $(cat "$scratch/fio.v")"
	umount $mnt; e2fsck -fn /dev/nbd0
	# while nobody answers, status says so, and why
	kill_server; until_true 60 is nbd0 state connecting
	until_true 60 eval 'netblk status nbd0 | grep -qi refused'
	# another disk in its place is refused, and said
	truncate -s 65M "$scratch/disk1"; kit 10809 "$scratch/disk1"
	until_true 60 eval 'netblk status nbd0 | grep -q "has 68157440 bytes now, and had 67108864"'
	expect "$(field nbd0 state)" error "the state with another disk there"
	kill_server; truncate -s 64M "$scratch/disk1"; kit 10809 "$scratch/disk1"
	until_true 60 is nbd0 state connected
	netblk detach nbd0
}
# the dead time: nothing waits for ever, and the disk comes back
dead_time() {
	kit 10809 "$scratch/disk1"; netblk attach $a --timeout 5 > /dev/null 2>&1  # less, and what has to succeed might not on a busy machine
	kill_server
	must_fail 'input/output' within 120 dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct status=none
	until_true 60 is nbd0 state error
	kit 10809 "$scratch/disk1"; until_true 60 is nbd0 state connected
	until_true 60 dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct status=none
	# detach while nobody answers and a request waits
	kill_server
	dd if=/dev/nbd0 of=/dev/null bs=4k skip=8 count=1 iflag=direct status=none 2> /dev/null & local reader=$!
	until_true 60 eval "! kill -0 $reader || [ \$(field nbd0 in_flight) -ge 1 ]"
	within 60 "$netblk" detach --force nbd0
	if ended $reader; then fail "a read was answered by nobody"; fi
	until_true 60 nothing_left
}
helper_dies() {
	kit 10809 "$scratch/disk1"; netblk attach $a --timeout $long > /dev/null 2>&1
	mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 $mnt; echo kept > $mnt/file
	local pid; pid=$(field nbd0 pid); kill -KILL "$pid"
	# the disk goes on
	random_file "$scratch/blob" 4M; cp "$scratch/blob" $mnt/; sync; drop_caches; cmp "$scratch/blob" $mnt/blob
	expect "$(cat /sys/block/nbd0/pid)" "$pid" "pid: who connected"
	# its place is taken by status, which says so
	netblk status 2> "$scratch/words" | grep -q '^/dev/nbd0 ' || fail "status does not show it"
	grep -q 'its helper had died; another one' "$scratch/words" || fail "status says $(cat "$scratch/words")"
	[ "$(field nbd0 pid)" != "$pid" ] || fail "the same helper"
	until_true 60 is nbd0 state connected
	netblk status 2> "$scratch/words" > /dev/null; expect "$(cat "$scratch/words")" '' "a second status"
	# the new one replaces dead connections, though it did not make them
	kill_server; kit 10809 "$scratch/disk1"; until_true 60 eval '[ $(field nbd0 reconnects) -ge 1 ]'
	drop_caches; within 60 cmp "$scratch/blob" $mnt/blob
	# helper and server both die: attach of the same repairs it
	kill -KILL "$(field nbd0 pid)"; kill_server; kit 10809 "$scratch/disk1"
	expect "$(netblk attach $a --timeout $long 2> "$scratch/words")" /dev/nbd0 "attach of what has no helper"
	grep -q 'its helper had died' "$scratch/words" || fail "attach says $(cat "$scratch/words")"
	drop_caches; within 60 cmp "$scratch/blob" $mnt/blob
	# without a helper it can be detached all the same
	kill -KILL "$(field nbd0 pid)"; umount $mnt; netblk detach nbd0; nothing_left || fail "left: $(ls /run/netblk)"
	# a helper that died, and a disk that others disconnected: forgotten
	netblk attach $a > /dev/null 2>&1; kill -KILL "$(field nbd0 pid)"; nbd-client -d /dev/nbd0 > /dev/null
	netblk status 2>&1 | grep -q 'disconnected by others' || fail "status of what has gone: $(netblk status 2>&1)"
	nothing_left || fail "left: $(ls /run/netblk)"
	# SIGTERM: in use it stays, otherwise it goes
	netblk attach $a > /dev/null 2>&1; mount /dev/nbd0 $mnt; pid=$(field nbd0 pid)
	kill -TERM "$pid"; until_true 60 grep -q 'is in use, so it stays' /run/netblk/0/log; kill -0 "$pid"
	umount $mnt; kill -TERM "$pid"; until_true 60 nothing_left
}
connections() {
	kit 10809 "$scratch/disk1"; netblk attach $a --connections 4 --timeout $long > /dev/null 2>&1
	expect "$(ls -d /sys/kernel/debug/block/nbd0/hctx* | wc -l)" "$(($(nproc) < 4 ? $(nproc) : 4))" "hardware queues"
	expect "$(ss -Htn state established dport = :10809 | wc -l)" 4 "connections"
	fio --name=m --filename=/dev/nbd0 --size=16m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c \
		--verify_fatal=1 --minimal --output="$scratch/fio.m" > /dev/null & local fio=$!
	kill_server; kit 10809 "$scratch/disk1"
	until_true 60 eval '[ $(field nbd0 reconnects) -ge 4 ]'
	ended $fio || fail "fio: $(cat "$scratch/fio.m")"
	netblk detach nbd0
	# a server that cannot
	printf '[generic]\nlistenaddr = 127.0.0.1\nport = 10812\n[disk]\nexportname = %s\ncopyonwrite = true\n' "$scratch/disk1" > "$scratch/nbd.conf"
	old_server
	netblk attach nbd://127.0.0.1:10812/disk --connections 4 > /dev/null 2> "$scratch/words"
	grep -q 'several connections: one is made' "$scratch/words" || fail "it does not say that it makes one: $(cat "$scratch/words")"
	expect "$(ls -d /sys/kernel/debug/block/nbd0/hctx* | wc -l)" 1 "hardware queues"
}
at_once() {
	kit 10809 "$scratch/disk1"
	local n; for n in 1 2 3 4; do netblk attach $a > "$scratch/node.$n" 2> /dev/null & done; wait %+ || true; for n in 1 2 3; do wait -n || true; done
	expect "$(cat "$scratch"/node.* | sort -u)" /dev/nbd0 "what four attaches at once print"
}
# netblk/2 behind the kernel's nbd: the helper serves it on a socket of its own
netblk_source() {
	ours 10820; local n=netblk://127.0.0.1:10820/disk
	expect "$(netblk attach $n --via nbd --timeout $long 2> "$scratch/words")" /dev/nbd0 "attach of netblk://"
	expect "$(cat "$scratch/words")" '' "words: netblk/2 promises more than NBD"
	expect "$(netblk attach $n --via nbd --timeout $long) $(field nbd0 way) $(field nbd0 protocol) $(field nbd0 server)" "/dev/nbd0 nbd 2 $n" "once more, and status"
	must_fail 'via nbd, as /dev/nbd0' netblk attach $n --via fuse
	expect "$(blockdev --getsize64 /dev/nbd0) $(cat /sys/block/nbd0/pid)" "67108864 $(field nbd0 pid)" "size and pid"
	mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 $mnt; random_file "$scratch/blob" 4M; cp "$scratch/blob" $mnt/; sync
	# the server dies under load and comes back
	fio --name=v --directory=$mnt --size=8m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 --loops=2 --minimal --output="$scratch/fio.v" > /dev/null & local fio=$!
	sleep 0.5; kill_server; ours 10820; ended $fio || fail "fio: $(cat "$scratch/fio.v")"
	# the helper dies: its sockets too, and requests wait for another
	kill -KILL "$(field nbd0 pid)"
	netblk status 2>&1 | grep -q 'its helper had died; another one' || fail "status says $(netblk status 2>&1)"
	until_true 60 is nbd0 state connected
	drop_caches; within 60 cmp "$scratch/blob" $mnt/blob; umount $mnt; e2fsck -fn /dev/nbd0
	# a loss that netblk/2 tells of reaches the kernel's nbd as failed flushes
	dd if=/dev/urandom of=/dev/nbd0 bs=4k count=64 oflag=direct status=none
	kill_server; rm -rf /run/netblk/store-*; ours 10820
	until_true 60 is nbd0 lost True
	must_fail 'input/output' python3 -c "import os; os.fsync(os.open('/dev/nbd0', os.O_RDWR))"
	netblk reset nbd0; is nbd0 lost False
	python3 -c "import os; f = os.open('/dev/nbd0', os.O_RDWR); os.write(f, bytes(4096)); os.fsync(f)"
	netblk detach nbd0; nothing_left || fail "left: $(ls /run/netblk)"
}
# the truth about losses outlives the helper
losses() {
	ours 10820; local n=netblk://127.0.0.1:10820/disk
	netblk attach $n --via nbd --timeout $long > /dev/null
	dd if=/dev/urandom of=/dev/nbd0 bs=4k count=64 oflag=direct status=none
	# everything at once: the helper, the server and what the server knew
	die; kill_server; rm -rf /run/netblk/store-*; ours 10820; next_helper
	is nbd0 lost True || fail "the loss is not noticed: $(netblk status nbd0)"
	must_fail 'input/output' flush
	# and the next helper knows it, too
	die; next_helper; is nbd0 lost True || fail "the loss is forgotten: $(netblk status nbd0)"
	must_fail 'input/output' flush
	dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct status=none
	netblk reset nbd0; is nbd0 lost False; flush
	# a loss that the helper has heard of itself
	dd if=/dev/urandom of=/dev/nbd0 bs=4k count=4 oflag=direct status=none
	kill_server; rm -rf /run/netblk/store-*; ours 10820; until_true 60 is nbd0 lost True
	die; next_helper; is nbd0 lost True || fail "the loss is forgotten: $(netblk status nbd0)"
	must_fail 'input/output' flush; netblk reset nbd0
	dd if=/dev/urandom of=/dev/nbd0 bs=4k count=4 oflag=direct conv=fsync status=none
	# all was flushed: nothing can have been lost
	die; kill_server; rm -rf /run/netblk/store-*; ours 10820; next_helper
	is nbd0 lost False; flush
	# a helper alone takes nothing with it
	dd if=/dev/urandom of=/dev/nbd0 bs=4k count=4 oflag=direct status=none
	die; next_helper; is nbd0 lost False; flush
	# but what it had not flushed may be gone with the server under the next one
	dd if=/dev/urandom of=/dev/nbd0 bs=4k count=4 oflag=direct status=none
	die; next_helper; kill_server; rm -rf /run/netblk/store-*; ours 10820
	until_true 60 is nbd0 lost True; must_fail 'input/output' flush; netblk reset nbd0; flush
	# another store in its place gets and gives nothing
	netblk detach nbd0; netblk attach $n --via nbd --timeout 5 > /dev/null
	die; kill_server; rm -f "$scratch"/disk9*; ours 10820
	netblk status > "$scratch/words" 2>&1; grep -q 'is another store now' "$scratch/words" || fail "status says $(cat "$scratch/words")"
	must_fail 'input/output' within 120 dd if=/dev/nbd0 of=/dev/null bs=4k count=1 skip=99 iflag=direct status=none
	netblk detach --force nbd0; nothing_left || fail "left: $(ls /run/netblk)"
}
die() { local pid; pid=$(field nbd0 pid); kill -KILL "$pid"; until_true 60 eval "! kill -0 $pid"; }
next_helper() { netblk status > /dev/null 2>&1; until_true 60 is nbd0 state connected; }
flush() { python3 -c "import os; os.fsync(os.open('/dev/nbd0', os.O_RDWR))"; }
# a store of this machine
store() {
	random_file "$scratch/disk1" 64M
	expect "$(cd "$scratch" && netblk attach file:disk1 --via nbd 2> "$scratch/words")" /dev/nbd0 "attach of a file"
	expect "$(cat "$scratch/words") $(netblk attach "file:$scratch/disk1") $(field nbd0 server)" " /dev/nbd0 file:$scratch/disk1" "the same by its whole path"
	cmp "$scratch/disk1" /dev/nbd0
	verify /dev/nbd0
	kill -KILL "$(field nbd0 pid)"; netblk status > /dev/null 2>&1; until_true 60 is nbd0 state connected; verify /dev/nbd0
	is nbd0 lost False
	netblk detach nbd0
	must_fail 'no such file' netblk attach "file:$scratch/nothing"
	must_fail "takes netblk:// and nothing else" netblk attach "file:$scratch/disk1" --via netblk
	# what only a helper's memory had dies with it
	expect "$(netblk attach mem:16M)" /dev/nbd0 "attach of memory"; verify /dev/nbd0
	blkdiscard /dev/nbd0; cmp -n 16777216 /dev/nbd0 /dev/zero
	kill -KILL "$(field nbd0 pid)"
	netblk status 2>&1 | grep -q 'alone, and gone with it' || fail "status says $(netblk status 2>&1)"
	netblk detach --force nbd0; nothing_left || fail "left: $(ls /run/netblk)"
}
# the kernel's nbd and our server: directly, by us and by nbd-client
our_server() {
	ours 10820
	expect "$(netblk attach nbd://127.0.0.1:10821/disk --connections 2 --timeout $long 2> /dev/null)" /dev/nbd0 "attach of our server"
	verify /dev/nbd0 2 & local fio=$!
	kill_server; ours 10820; ended $fio || fail "fio: $(cat "$scratch/fio.v")"
	mkfs.ext4 -q /dev/nbd0; mount /dev/nbd0 $mnt; random_file "$scratch/blob" 4M; cp "$scratch/blob" $mnt/; umount $mnt
	netblk detach nbd0
	nbd-client -N disk -C 2 127.0.0.1 10821 /dev/nbd4 > /dev/null
	expect "$(nbd-client -c /dev/nbd4)" "$(cat /sys/block/nbd4/pid)" "nbd-client -c"
	mount /dev/nbd4 $mnt; cmp "$scratch/blob" $mnt/blob; umount $mnt
	verify /dev/nbd4; blkdiscard -o 1048576 -l 1048576 /dev/nbd4
	nbd-client -d /dev/nbd4 > /dev/null
	must_fail 'nothing' netblk attach nbd://127.0.0.1:10821/nothing
}
t_nbd nbd-attach-and-detach first
t_nbd nbd-attach-several several
t_nbd nbd-attach-refusals refusals
t_nbd nbd-attach-read-only read_only
t_nbd nbd-attach-server-dies server_dies
t_nbd nbd-attach-dead-time dead_time
t_nbd nbd-attach-helper-dies helper_dies
t_nbd nbd-attach-connections connections
t_nbd nbd-attach-four-at-once at_once
t_nbd nbd-attach-netblk netblk_source
t_nbd nbd-attach-losses losses
t_nbd nbd-attach-store store
t_nbd nbd-attach-our-server our_server
finish
