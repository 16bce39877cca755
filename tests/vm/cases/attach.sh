# SPDX-License-Identifier: GPL-2.0-only
# `netblk attach`, `status`, `detach` and `reset` with the driver: many disks, called twice, and what they refuse.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] && [ -x "$NETBLK_OUT/netblk_server" ] || { echo "SKIP attach-and-detach: build/output has no netblk, or no netblk_server"; exit 0; }
a=netblk://127.0.0.1:10809 b=netblk://127.0.0.1:10810
# again when the server has not ended the session of before
netblk() {
	local end=$((SECONDS + 60)) words=$scratch/words.$BASHPID status
	while status=0; "$netblk" "$@" 2> "$words" || status=$?; grep -q 'temporarily unavailable' "$words" && [ $SECONDS -lt $end ]; do sleep 0.1; done
	cat "$words" >&2; return $status
}
devices() { (cd /sys/block && ls -d netblk* 2>/dev/null) | sort -V | tr '\n' ' '; }
field() { netblk status --json "$1" | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['$2'])"; }

twice() {
	random_file "$scratch/disk" 100M; serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 64
	insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 server_port=9 connect_timeout_ms=60000 io_timeout_ms=30000 heartbeat_ms=20000
	local out
	out=$(netblk attach $a --via netblk --size 100M 2> "$scratch/words"); expect "$out" /dev/netblk "what attach prints"
	expect "$(cat "$scratch/words")" '' "words of --via netblk"
	cmp "$scratch/disk" /dev/netblk
	expect "$(netblk attach $a --via netblk --size 100M)" /dev/netblk "the second attach"
	expect "$(netblk attach $a 2> /dev/null)" /dev/netblk "the third attach, auto and without a size"
	expect "$(devices)" 'netblk ' devices
	# another server is another disk
	expect "$(netblk attach $b --via netblk --size 64M)" /dev/netblk-1 "attach of another server"
	expect "$(netblk attach $b --via netblk --size 64M)" /dev/netblk-1 "the same once more"
	expect "$(blockdev --getsize64 /dev/netblk-1)" 67108864 size
	expect "$(field /dev/netblk-1 state) $(field netblk-1 server) $(field netblk-1 way)" "connected $b netblk" status
	netblk status | grep -q '^/dev/netblk-1 *connected ' || fail "status: $(netblk status)"
	expect "$(netblk status --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)))')" 2 "disks in status"
	netblk detach /dev/netblk-1; expect "$(devices)" 'netblk ' "devices after detach"
	netblk detach /dev/netblk-1 2> "$scratch/words"; grep -q 'is not attached' "$scratch/words" || fail "a second detach says $(cat "$scratch/words")"
	netblk detach netblk; netblk detach netblk; expect "$(state) $(devices)" 'disconnected netblk ' "after detach of the first"
	# the first is taken again, though it was made for another server
	expect "$(netblk attach $b --via netblk --device netblk-3 --size 64M)" /dev/netblk-3 "attach with --device"
	expect "$(devices)" 'netblk netblk-3 ' devices
}
refusals() {
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 64; load
	must_fail 'attached already' netblk attach $a --via netblk --read-only
	must_fail 'attached already' netblk attach $a --via netblk --device netblk-2
	must_fail 'bytes, not' netblk attach $a --via netblk --size 50M
	must_fail 'detach it first' netblk attach $b --via netblk --device netblk --size 64M
	must_fail 'another --timeout' netblk attach $a --via netblk --timeout 3
	must_fail 'another --timeout' netblk attach $a --via netblk --timeout 0
	must_fail 'another --shared' netblk attach $a --via netblk --shared
	must_fail "the driver's disks are" netblk attach $b --via netblk --device /dev/sda --size 64M
	must_fail "the driver's disks are" netblk attach $b --via netblk --device netblk-1024 --size 64M
	must_fail 'refused' netblk attach netblk://127.0.0.1:9 --via netblk --size 64M
	must_fail 'expected up to 64' netblk attach $b --name 'a b' --size 64M
	must_fail 'expected up to 64' netblk attach $b --name ../x --size 64M
	must_fail 'mean nothing\|about writing' netblk attach $b --read-only --shared
	must_fail 'is not attached' netblk reset netblk-7
	must_fail 'is not attached' netblk status netblk-7
	expect "$(devices)" 'netblk ' "devices after all that"
	netblk reset netblk 2>&1 | grep -q 'has lost nothing' || fail "reset of what lost nothing says $(netblk reset netblk 2>&1)"
	# in use: refused, and --force takes it away
	[ "$(netblk attach $b --via netblk --size 64M)" = /dev/netblk-1 ]
	mkfs.ext4 -q /dev/netblk-1; mount /dev/netblk-1 $mnt
	must_fail "mounted on $mnt" netblk detach netblk-1
	echo kept > $mnt/file; umount $mnt
	exec 5< /dev/netblk-1; netblk detach --force netblk-1; expect "$(cat /sys/block/netblk-1/state)" disconnected "state after --force"
	exec 5<&-; netblk detach netblk-1; expect "$(devices)" 'netblk ' devices
	expect "$(netblk attach $b --via netblk --size 64M)" /dev/netblk-1 node; mount /dev/netblk-1 $mnt; expect "$(cat $mnt/file)" kept "the file"; umount $mnt
}
names() {
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 64; load
	netblk attach $b --via netblk --size 64M --name data.1 > /dev/null
	expect "$(readlink /dev/netblk-by-name/data.1) $(field data.1 name)" '/dev/netblk-1 data.1' "the name"
	netblk attach $b --via netblk --name data.1 > /dev/null
	must_fail 'detach that first' netblk attach $a --via netblk --name data.1
	netblk detach data.1; [ ! -e /dev/netblk-by-name ] || fail "the name stays"
	expect "$(devices)" 'netblk ' devices
}
read_only_and_partitions() {
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 64; load
	printf 'label: dos\n,20M\n' | sfdisk -q "$scratch/disk-1"
	[ "$(netblk attach $b --via netblk --size 64M --read-only)" = /dev/netblk-1 ]
	expect "$(field netblk-1 read_only) $(cat /sys/block/netblk-1/ro)" 'True 1' "read-only"
	[ -b /dev/netblk-1p1 ] || fail "attach did not find the partition"
	must_fail 'not permitted\|read-only' dd if=/dev/zero of=/dev/netblk-1 bs=4096 count=1 oflag=direct status=none
	netblk detach netblk-1
	[ "$(netblk attach $b --via netblk --size 64M)" = /dev/netblk-1 ]
	dd if=/dev/zero of=/dev/netblk-1 bs=4096 count=1 oflag=direct status=none
}
at_once() {
	serve 10809 "$scratch/disk" 100; load server_port=9
	local n jobs=(); for n in 1 2 3 4; do netblk attach $a --via netblk --size 100M > "$scratch/node.$n" & jobs+=($!); done
	for n in "${jobs[@]}"; do wait "$n" || true; done
	expect "$(cat "$scratch"/node.* | sort -u)" /dev/netblk "what four attaches at once print"
}
# netblk/2: names, sizes that the server tells, one writer, a loss and its acknowledgement
serve2() {
	"$netblk_server" --export disk="file:$scratch/disk2?size=48M" --export other="file:$scratch/disk3?size=32M" --listen netblk://127.0.0.1:10811 \
		> "$scratch/server.10811" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening 10811
}
exports() {
	local c=netblk://127.0.0.1:10811; serve2
	insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 server_port=9 connect_timeout_ms=60000 io_timeout_ms=30000 heartbeat_ms=20000
	expect "$(netblk attach $c/disk --via netblk) $(netblk attach $c/other --via netblk) $(netblk attach $c/disk --via netblk)" \
		'/dev/netblk /dev/netblk-1 /dev/netblk' "what three attaches print"
	expect "$(blockdev --getsize64 /dev/netblk) $(blockdev --getsize64 /dev/netblk-1)" '50331648 33554432' sizes
	expect "$(field netblk server) $(field netblk-1 protocol) $(field netblk-1 lost)" "$c/disk 2 False" status
	must_fail 'no such export\|no export' netblk attach $c/nothing --via netblk
	must_fail 'bytes, not' netblk attach $c/other --via netblk --size 1G
	expect "$(devices)" 'netblk netblk-1 ' "devices after the refusals"
	# one writer: another client is refused, and takes over when it says so
	netblk detach netblk-1
	python3 -c "
import sys, time; sys.path.insert(0, '$NETBLK_ROOT/tests/compat'); import netblk2
end = time.monotonic() + 60
while True:  # the farewell of the one before may be late
    try: s = netblk2.Session(10811, name='other'); c = s.open(); break
    except netblk2.Violation:
        if time.monotonic() > end: raise
        time.sleep(0.1)
print('open', flush=True); time.sleep(3600)" > "$scratch/writer" & echo $! >> "$scratch/pids"
	until_true 120 "another writer" grep -q open "$scratch/writer"
	must_fail 'busy' netblk attach $c/other --via netblk; expect "$(devices)" 'netblk ' devices
	# which leaves no deadlines behind for the next; nor does a disk that others disconnected
	netblk detach netblk; must_fail 'busy' netblk attach $c/other --via netblk --timeout 0
	expect "$(netblk attach $c/disk --via netblk) $(cat $sysfs/dead_time_ms)" '/dev/netblk 120000' "the dead time after an attach that failed"
	netblk detach netblk; netblk attach $c/disk --via netblk --timeout 0 > /dev/null
	expect "$(cat $sysfs/dead_time_ms)" 4294967295 "the dead time of --timeout 0"
	disconnect; netblk detach netblk
	expect "$(netblk attach $c/disk --via netblk) $(cat $sysfs/dead_time_ms)" '/dev/netblk 120000' "the dead time after a disconnect by sysfs"
	expect "$(netblk attach $c/other --via netblk --takeover)" /dev/netblk-1 "attach with --takeover"
	# the server's machine goes down with what was not flushed: flushes fail until reset
	dd if=/dev/urandom of=/dev/netblk bs=4k count=64 oflag=direct status=none
	kill_server; rm -rf /run/netblk/store-*; serve2
	for i in $(seq 1200); do [ "$(field netblk lost)" = True ] && break; sleep 0.1; done
	[ -n "$(field netblk lost_why)" ] || fail "status does not say why: $(netblk status)"
	netblk status | grep -q 'LOST' || fail "the table does not say it: $(netblk status)"
	must_fail 'input/output' python3 -c "import os; os.fsync(os.open('/dev/netblk', os.O_RDWR))"
	netblk reset netblk; expect "$(field netblk lost)" False "lost after reset"
	python3 -c "import os; f = os.open('/dev/netblk', os.O_RDWR); os.write(f, bytes(4096)); os.fsync(f)"
}
t attach-twice twice
t attach-refusals refusals
t attach-names names
t attach-read-only-and-partitions read_only_and_partitions
t attach-four-at-once at_once
t attach-exports-owners-and-a-loss exports
finish
