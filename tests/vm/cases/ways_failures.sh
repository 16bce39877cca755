# SPDX-License-Identifier: GPL-2.0-only
# What a disk does when its server, its network or its helper fails, whichever way `netblk attach` makes it: nothing waits
# for ever, nothing is lost unnoticed, and nothing is left that needs a reboot.
. "$NETBLK_ROOT/tests/vm/ways_lib.sh"

# nothing waits for ever, and the disk comes back with its server. After EIO of the whole dead time the driver is told to.
time_out() {
	start_server; local disk; disk=$(attach --timeout 5)  # less, and what has to succeed might not on a busy machine
	read_at "$disk" 0; kill_server
	must_fail 'input/output' read_at "$disk" 64
	until_true 120 "the state error" is "$disk" state error
	start_server
	[ "$way" != netblk ] || echo 1 > "/sys/block/${disk#/dev/}/connect"
	until_true 60 "the state connected" is "$disk" state connected
	until_true 60 "a read" read_at "$disk" 128; netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
# --timeout 0: a request waits for as long as its server is away, and ends with its data; detach --force ends it at once.
# ROUNDS is for how many seconds the server is away: 150 are longer than any time that ends a request otherwise.
for_ever() {
	start_server; local disk reader until=$((SECONDS + ${ROUNDS:-3})); disk=$(attach --timeout 0)
	[ "$way" != netblk ] || expect "$(sys "$disk" dead_time_ms)" 4294967295 "the driver's dead time"
	cp "$scratch/disk" "$scratch/blob"; kill_server
	read_at "$disk" 64 > "$scratch/read" 2>&1 & reader=$!
	until_true 60 "the state connecting" is "$disk" state connecting
	until_true $((${ROUNDS:-3} + 60)) "the end of the outage" eval '[ $SECONDS -ge '$until' ]'
	kill -0 $reader || fail "the read ended without a server: $(cat "$scratch/read")"
	is "$disk" state connecting || fail "the state is $(field "$disk" state)"
	start_server; wait $reader || fail "the read failed: $(cat "$scratch/read")"
	expect "$(field "$disk" errors)" 0 "errors"
	kill_server; read_at "$disk" 128 2> /dev/null & reader=$!
	until_true 60 "a request that waits" eval '[ "$(field "$disk" in_flight)" -ge 1 ]'
	within 60 "$netblk" detach --force "$disk" || true
	if wait $reader; then fail "a read was answered by nobody"; fi
	until_true 60 "an end of $disk" nothing_left
	# the next who attaches it did not ask for it
	start_server; disk=$(attach); [ "$way" != netblk ] || expect "$(sys "$disk" dead_time_ms)" 120000 "the driver's dead time afterwards"
}
# the server is killed under load and comes back: no error, and no byte is lost
server_dies() {
	start_server; local disk i; disk=$(attach)
	fio --name=v --filename="$disk" --size=12m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 --minimal --output="$scratch/fio.v" > /dev/null & local fio=$!
	for i in 1 2; do
		kill_server; start_server
		until_true 60 "reconnect $i" eval "[ \$(field $disk reconnects) -ge $i ]"
	done
	wait $fio || fail "fio: $(cat "$scratch/fio.v")"
	sync; drop_caches; cmp "$disk" "$scratch/disk"; netblk detach "$disk"
}
# kill_helper PID: and a request comes, without which Linux 6.1 looks only every 5 s whether the server of a ublk disk lives
kill_helper() {
	kill -KILL "$1"
	[ "$way" != ublk ] || { until_true 60 "the end of the helper" eval "! kill -0 $1"; background read_at "$disk" 0; }
}
# after kill -9 of what serves the disk, status tells the truth, and attach or detach of the same repairs it
helper_dies() {
	start_server; local disk again pid; disk=$(attach --name backup); pid=$(field backup pid)
	if [ "$way" = netblk ]; then
		expect "$pid" 0 "the process behind the driver's disk"; tell "the driver has no process that could be killed"
		expect "$(attach --name backup)" "$disk" "attach once more"; netblk detach backup; nothing_left || fail "left: $(ls /run/netblk)"
		return 0
	fi
	kill_helper "$pid"
	if [ "$way" = fuse ]; then
		until_true 60 "the state dead" is backup state dead
		netblk status backup | grep -q dead || fail "status says $(netblk status backup)"
	else
		until_true 60 "another helper" eval '[ "$(field backup pid)" != '"$pid"' ] && is backup state connected'
	fi
	again=$(attach --name backup 2> "$scratch/words"); [ "$(readlink -f /dev/netblk-by-name/backup)" = "$again" ] || fail "the name leads to $(readlink -f /dev/netblk-by-name/backup), not $again"
	is backup state connected || until_true 60 "the state connected" is backup state connected
	cmp -n 1048576 "$again" "$scratch/disk"
	# while it is mounted, and the mount sees errors (fuse) or goes on (nbd)
	mkfs.ext4 -q "$again"; mount -o ro "$again" $mnt; kill_helper "$(field backup pid)"
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
	kill -KILL "$(field backup pid)"; netblk detach --wait 60 backup; nothing_left || fail "left: $(ls /run/netblk /run/netblk/names)"
	netblk detach backup 2> "$scratch/words"; grep -q 'is not attached' "$scratch/words" || fail "a second detach says $(cat "$scratch/words")"
}
# killed under load: requests wait for the next helper, those in flight too; by fuse they fail, and the name leads to a new disk
helper_dies_under_load() {
	start_server; local disk i pid fio load=--loops=3; disk=$(attach --name backup); pid=$(field backup pid)
	if [ "$way" = netblk ]; then tell "the driver has no process that could be killed"; netblk detach backup; return 0; fi
	# it ends by an error, or when all was as it has to be
	[ "$way" != fuse ] || load="--time_based --runtime=600"
	fio --name=v --filename="$disk" --size=12m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 $load --minimal --output="$scratch/fio.v" > /dev/null 2>&1 & fio=$!
	for i in 1 2; do
		until_true 60 "writes" eval "[ \$(awk '{print \$5}' /sys/block/${disk#/dev/}/stat) -ge $((i * 20)) ]"
		kill -KILL "$pid"
		[ "$way" != fuse ] || break
		until_true 60 "another helper" eval '[ "$(field backup pid)" != '"$pid"' ] && is backup state connected'
		pid=$(field backup pid)
	done
	if [ "$way" = fuse ]; then
		if wait $fio; then fail "fio saw no error"; fi
		tell "a disk of fuse goes with its helper: what waits fails at once, and the same attach makes a new one"
		disk=$(attach --name backup 2> /dev/null); read_at "$disk" 0
	else
		wait $fio || fail "fio: $(cat "$scratch/fio.v")"
		sync "$disk"; cmp "$disk" "$scratch/disk"
	fi
	netblk detach backup; until_true 60 "an end of $disk" nothing_left
}
# --force: now, with requests that wait
forcibly() {
	start_server; local disk; disk=$(attach); exec 7< "$disk"
	fio --name=f --filename="$disk" --size=12m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --time_based --runtime=600 \
		--minimal --output="$scratch/fio.f" > /dev/null 2>&1 & local fio=$!
	until_true 60 "requests" eval '[ "$(netblk top --once --interval 0.2 --json | python3 -c "import json, sys; print(int(json.load(sys.stdin)[0][\"writes_per_s\"] > 0))")" = 1 ]'
	within 60 "$netblk" detach --force "$disk" || true
	until_true 60 "an end of the requests" eval "! kill -0 $fio"
	if wait $fio; then fail "fio saw no error"; fi
	exec 7<&-; netblk detach --force "$disk" 2> /dev/null || true; until_true 60 "an end of $disk" nothing_left
}
# --force of a disk that is mounted: refused without it, which changes nothing; with it the file system answers EIO and can
# be unmounted, nothing is left, and the next attach has what was synced
forcibly_mounted() {
	start_server; local disk; disk=$(attach --name data)
	mkfs.ext4 -q "$disk"; mount "$disk" $mnt; random_file $mnt/kept 1M; cp $mnt/kept "$scratch/kept"; sync -f $mnt
	must_fail "mounted on $mnt: unmount it first, or use --force" netblk detach data
	must_fail "mounted on $mnt" netblk detach --wait 0.5 "$disk"
	expect "$(field data state) $(field data leaving)" 'connected False' "state after detach was refused"
	echo more > $mnt/more; sync -f $mnt
	within 60 "$netblk" detach --force data || fail "detach --force: $?"
	[ ! -e /dev/netblk-by-name/data ] || fail "the name stays"
	drop_caches
	must_fail 'input/output\|read-only' eval "cat $mnt/kept && echo gone > $mnt/gone && sync -f $mnt"
	within 60 umount $mnt
	netblk detach "$disk" 2> /dev/null || true; until_true 60 "an end of $disk" nothing_left
	disk=$(attach --name data); mount "$disk" $mnt; cmp "$scratch/kept" $mnt/kept; expect "$(cat $mnt/more)" more "the second file"
	umount $mnt; e2fsck -fn "$disk"; netblk detach data; nothing_left || fail "left: $(ls /run/netblk)"
}
# a helper that hangs before anybody was told of its disk is ended, and nothing of it is left: its source takes requests and
# answers none, and the kernel asks for the partitions; then the helper itself is stopped
start_hangs() {
	if [ "$way" = netblk ]; then tell "the driver has no process that could hang"; return 0; fi
	truncate -s 16M "$scratch/disk1"; local disk attaching pid delay_ms=600000 told='it was killed'
	[ "$way" != ublk ] || { delay_ms=40000 told='it is not killed, and ends by itself'; tell "ublk: Linux 6.1 to 6.17 do not get over the end of a helper while they look for partitions"; }
	if disk=$(within 60 "$netblk" attach "file:$scratch/disk1?delay-read-ms=$delay_ms" --via $way --start-wait 15 2> "$scratch/words"); then
		tell "$way: the disk is there before its partitions are read"; within 60 "$netblk" detach --force "$disk"
	else
		grep -q "made no disk within 15 s: .*$told" "$scratch/words" || fail "attach says $(cat "$scratch/words")"
	fi
	until_true 200 "an end" nothing_of_it; start_server; stand_still $server_pid
	"$netblk" attach $src --via $way --start-wait 12 --timeout 600 2> "$scratch/words" & attaching=$!
	until_true 60 "a helper" eval 'pid=$(starting) && [ -n "$pid" ]'; kill -STOP "$pid"
	if wait $attaching; then fail "a disk without a helper"; fi
	grep -q "(process $pid) made no disk within 12 s: it was stopped.*it was killed" "$scratch/words" || fail "attach says $(cat "$scratch/words")"
	nothing_of_it || fail "left: $(ls -R /run/netblk)"
	kill -CONT $server_pid; disk=$(attach); read_at "$disk" 0; netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
starting() { python3 -c "import glob, json; print(*(json.load(open(f))['pid'] for f in glob.glob('/run/netblk/[0-9]*/state.json')))"; }
nothing_of_it() {
	! ls -d /run/netblk/[0-9]* > /dev/null 2>&1 && ! grep -q /run/netblk /proc/mounts && ! cat /sys/block/loop*/loop/backing_file /sys/block/nbd*/pid 2> /dev/null | grep -q . &&
		! ls -d /sys/class/ublk-char/* > /dev/null 2>&1 && ! pgrep -x netblk-helper > /dev/null
}
# what was written and is in the page cache alone arrives; a program that has the disk open and writes sees an end
detach_under_io() {
	start_server; local disk fio; disk=$(attach); random_file "$scratch/blob" 8M
	dd if="$scratch/blob" of="$disk" bs=1M conv=notrunc status=none; netblk detach "$disk"
	cmp -n 8388608 "$scratch/blob" "$scratch/disk"; nothing_left || fail "left: $(ls /run/netblk)"
	disk=$(attach)
	fio --name=f --filename="$disk" --size=12m --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --time_based --runtime=600 \
		--minimal --output="$scratch/fio.f" > /dev/null 2>&1 & fio=$!
	until_true 60 "writes" eval "[ \$(awk '{print \$5}' /sys/block/${disk#/dev/}/stat) -ge 30 ]"
	within 100 "$netblk" detach "$disk" 2> "$scratch/words" || grep -q 'open\|in use' "$scratch/words" || fail "detach says $(cat "$scratch/words")"
	# by fuse it goes on until its last user closes it
	[ "$way" != fuse ] || kill $fio
	until_true 60 "an end of the requests" eval "! kill -0 $fio"
	netblk detach "$disk" 2> /dev/null || true; until_true 60 "an end of $disk" nothing_left
}
# who takes the disk into use while detach writes back, which may take long, keeps it; and a disk that stays is guarded
used_meanwhile() {
	start_server; local disk detacher user; disk=$(attach)
	dd if=/dev/urandom of="$disk" bs=4k count=4 oflag=direct status=none
	stand_still $server_pid; netblk detach "$disk" 2> "$scratch/words" & detacher=$!
	sleep 1  # too short, the disk is in use from the beginning
	python3 -c "
import errno, os, time
while True:
    try:
        alone = os.open('$disk', os.O_RDONLY | os.O_EXCL)
        break
    except OSError as error:
        if error.errno != errno.EBUSY: raise  # a look at whether it is in use has it for a moment
    time.sleep(0.01)
open('$scratch/alone', 'w').close(); time.sleep(600)" & user=$!
	echo $user >> "$scratch/pids"; until_true 60 "the user" test -e "$scratch/alone"; rm "$scratch/alone"
	kill -CONT $server_pid
	if wait $detacher; then fail "a disk in use was detached"; fi
	grep -q 'in use' "$scratch/words" || fail "detach says $(cat "$scratch/words")"
	[ "$way" != ublk ] || ! flock -n /run/netblk/[0-9]*/guard true || fail "the disk stays, without its guard"
	# a server that was silent for long is connected to anew
	until_true 60 "the state connected" is "$disk" state connected; read_at "$disk" 0
	kill $user; wait $user || true; netblk detach "$disk"; nothing_left || fail "left: $(ls /run/netblk)"
}
# while its server refuses, a disk goes on trying, and not in a circle without a pause; and what waits ends well
retry() {
	start_server; local disk reader tries="$scratch/tries"; disk=$(attach); kill_server; rm -f "$tries"
	python3 -c "
import socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('127.0.0.1', 10809)); s.listen()
while True:
    s.accept()[0].close()
    print(time.monotonic(), file=open('$tries', 'a'))" & local refuser=$!
	echo $refuser >> "$scratch/pids"
	read_at "$disk" 64 & reader=$!
	until_true 120 "six tries" eval '[ "$(wc -l < '"$tries"')" -ge 6 ]'
	python3 -c "
import sys
times = [float(line) for line in open('$tries')][:6]
sys.exit(times[5] - times[0] < 0.05)" || fail "tries without a pause: $(head -6 "$tries" | tr '\n' ' ')"
	kill -KILL $refuser; wait $refuser 2> /dev/null || true; start_server
	wait $reader || fail "the read failed"
	is "$disk" state connected || until_true 60 "the state connected" is "$disk" state connected
	expect "$(field "$disk" errors)" 0 "errors"
}
# acknowledged writes that were not flushed may be gone with the server: every flush fails until the owner takes note
lost() {
	start_server; local disk; disk=$(attach)
	dd if=/dev/urandom of="$disk" bs=4k count=16 oflag=direct status=none
	kill_server; rm -rf /run/netblk/store-*; start_server
	until_true 60 "the loss" is "$disk" lost True; flush_fails_until_reset "$disk"; netblk detach "$disk"
	# a server that cannot tell what it still has
	case $way in
		netblk) tell "the driver does not speak NBD"; return 0;;
		nbd) tell "the kernel's nbd trusts an NBD server that comes back: attach a netblk server by nbd, or an NBD server by ublk or fuse";;
	esac
	truncate -s 16M "$scratch/disk1"; nbdkit -f -p 10812 -i 127.0.0.1 file "$scratch/disk1" & local kit=$!; echo $kit >> "$scratch/pids"; listening 10812
	disk=$(netblk attach nbd://127.0.0.1:10812 --via $way 2> "$scratch/words")
	[ "$way" != nbd ] || { grep -q 'may be lost unnoticed' "$scratch/words" || fail "attach says $(cat "$scratch/words")"; netblk detach "$disk"; return 0; }
	dd if=/dev/urandom of="$disk" bs=4k count=16 oflag=direct status=none
	kill_server $kit; nbdkit -f -p 10812 -i 127.0.0.1 file "$scratch/disk1" & echo $! >> "$scratch/pids"; listening 10812
	until_true 60 "the loss" is "$disk" lost True; flush_fails_until_reset "$disk"
}
flush() { python3 -c "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))" "$1"; }
flush_fails_until_reset() {
	exec 7< "$1"  # the driver takes its last close as a note, too
	must_fail 'input/output' flush "$1"; must_fail 'input/output' flush "$1"
	read_at "$1" 0; netblk status "$1" | grep -q 'LOST' || fail "status says $(netblk status "$1")"
	netblk reset "$1"; is "$1" lost False; flush "$1"; exec 7<&-
}
# A network that takes everything and delivers nothing: neither FIN nor RST comes. All ways at once, since it takes a while
# until a connection counts as dead: first the network is back and the server is the old one, then the server was killed
# meanwhile, which nobody heard.
network() {
	local kind
	work_on_all
	for kind in cut silent; do
		tc qdisc replace dev lo root netem loss 100%
		[ $kind = cut ] || { kill_server; serve_all; }
		every_one "the end of the connection ($kind)" says connecting
		tc qdisc del dev lo root
		all_go_on
	done
	judge_all network
}
cut_and_silent() {
	if [ ! -e "$scratch/network" ]; then
		touch "$scratch/network"; modprobe sch_netem || skip "this kernel has no netem"
		trap 'tc qdisc del dev lo root 2> /dev/null || true' EXIT; network
	fi
	expect "$(cat "$scratch/network.$way" 2> /dev/null)" well "what became of $way"
}
each timeout time_out
each for-ever for_ever
each server-dies server_dies
each helper-dies helper_dies
each helper-dies-under-load helper_dies_under_load
each forcibly forcibly
each forcibly-mounted forcibly_mounted
each start-hangs start_hangs
each detach-under-io detach_under_io
each used-meanwhile used_meanwhile
each retry retry
each lost lost
each cut-and-silent cut_and_silent
finish
