# SPDX-License-Identifier: GPL-2.0-only
# `netblk attach --via ublk`: disks of the kernel's ublk_drv, whose helper process may be killed and replaced under load.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] || { echo "SKIP ublk-attach: build/output has no netblk"; exit 0; }
a=netblk://127.0.0.1:10820/disk b=nbd://127.0.0.1:10821/disk
netblk() { "$netblk" "$@"; }
field() { netblk status --json "$1" 2> /dev/null | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['$2'])"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
# ours PORT [OPTION...]: our own server, netblk at PORT and NBD at PORT+1
ours() {
	local port=$1; shift
	"$netblk_server" --export disk="file:$scratch/disk9?size=64M" --listen "netblk://127.0.0.1:$port" --listen "nbd://127.0.0.1:$((port + 1))" \
		"$@" > "$scratch/server.$port" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$port"; listening $((port + 1))
}
# kit PORT FILE [OPTION...] [KEY=VALUE...]: nbdkit
kit() {
	local port=$1 file=$2 options=(); shift 2
	while [ $# -gt 0 ] && [[ $1 = -* ]]; do options+=("$1"); shift; done
	[ -e "$file" ] || truncate -s 64M "$file"
	nbdkit -f -p "$port" -i 127.0.0.1 "${options[@]}" file "$file" "$@" > "$scratch/server.$port" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$port"
}
verify() {
	fio --name=v --filename="$1" --size=4m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=16 --direct=1 --verify=crc32c \
		--verify_fatal=1 --loops="${2:-1}" --minimal --output="$scratch/fio.v" > /dev/null
}
read_one() { dd if="$1" of=/dev/null bs=4k count=1 skip="${2:-0}" iflag=direct status=none; }
flush() { python3 -c "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))" "$1"; }
until_so() { until_true "$1" "that" "${@:2}"; }
# ended PID: waits for a background job; its status
ended() { until_so 120 eval "! kill -0 $1"; wait "$1"; }
# No command of ours is asked: it would mend.
helper() { python3 -c "import glob, json; print(json.load(open(glob.glob('/run/netblk/[0-9]*/state.json')[0]))['pid'])"; }
guard() { cat /run/netblk/[0-9]*/guard; }
# Looked at, not tried: a guard that is just beginning finds a lock that is held, and leaves the disk to who has it.
is_guarded() {
	[ "$(cat "/proc/$(guard)/comm")" = netblk-guard ] &&
		grep -q "FLOCK .*:$(stat -c %i /run/netblk/[0-9]*/guard) " /proc/locks
}
# Its guard and its helper are killed, and nobody looks after the disk.
die_both() {
	local helper guard; until_so 60 is_guarded; guard=$(guard); helper=$(helper)
	kill -KILL "$guard"; until_so 60 eval "! kill -0 $guard"; kill -KILL "$helper"; until_so 60 eval "! kill -0 $helper"
}
# The same, and a request comes: Linux 6.1 looks only every 5 s whether its server lives, or when one comes.
die() { die_both; background read_one /dev/ublkb0; }
# is_halted PID: each of its threads was stopped, or waits in the kernel
is_halted() { ! grep -hs '^State:' "/proc/$1/task"/*/status | grep -q '	R '; }
# Linux 6.1 to 6.17 never end a helper that is killed while they look for the partitions (docs/ways.md): between the disk and its name.
may_be_killed() { [ ! -e /sys/block/ublkb0 ] || grep -q '"device": *"/dev/' /run/netblk/[0-9]*/state.json; }
# another_than PID: another helper is there
another_than() { local now; now=$(helper) && [ "$now" != "$1" ] && kill -0 "$now"; }
queue() { cat "/sys/block/ublkb0/queue/$1"; }
nothing_left() { ! ls -d /run/netblk/[0-9]* > /dev/null 2>&1 && ! ls -d /sys/class/ublk-char/ublkc* > /dev/null 2>&1; }
gone() { nothing_left || fail "left: $(ls -d /run/netblk/[0-9]* /sys/class/ublk-char/ublkc* 2> /dev/null)"; }
# What a test leaves goes before the next one, and the module can be unloaded.
t_ublk() {
	local name=$1 f i; shift
	[ -d /sys/module/ublk_drv ] || modprobe ublk_drv
	t "$name" "$@"
	umount $mnt 2> /dev/null
	for f in /run/netblk/*/guard; do [ ! -e "$f" ] || kill -KILL "$(cat "$f")" 2> /dev/null; done
	for f in /sys/block/ublkb*; do [ ! -e "$f" ] || netblk detach --force "${f##*/}"; done > /dev/null 2>&1
	for f in /run/netblk/*/state.json; do
		[ ! -e "$f" ] || kill -KILL "$(python3 -c "import json; print(json.load(open('$f'))['pid'])")" 2> /dev/null
	done
	rm -rf /run/netblk
	if [ -d /sys/module/ublk_drv ]; then
		# the ring of a killed process goes a moment after it
		for i in $(seq 2400); do rmmod ublk_drv 2> /dev/null && break; sleep 0.05; done
		[ ! -d /sys/module/ublk_drv ] || { echo "FAIL $name-unload: ublk_drv cannot be unloaded: $(ls /sys/class/ublk-char)"; t_failed=$((t_failed+1)); }
	fi
}

first() {
	random_file "$scratch/disk9" 64M; ours 10820
	expect "$(netblk attach $a --via ublk 2> "$scratch/words")" /dev/ublkb0 "what attach prints"
	expect "$(cat "$scratch/words")" '' "words: netblk/2 promises it all"
	expect "$(blockdev --getsize64 /dev/ublkb0) $(blockdev --getss /dev/ublkb0) $(cat /sys/block/ublkb0/ro)" '67108864 512 0' "size, block size, read-only"
	expect "$(queue physical_block_size) $(queue max_sectors_kb) $(queue write_cache) $(queue fua) $(queue rotational)" '4096 256 write back 1 0' "limits"
	expect "$(queue discard_max_bytes) $(queue write_zeroes_max_bytes) $(queue discard_granularity)" '1073741824 1073741824 4096' "discard and zeroes"
	cmp "$scratch/disk9" /dev/ublkb0
	expect "$(netblk attach $a --via ublk)" /dev/ublkb0 "attach again"
	expect "$(field ublkb0 state) $(field ublkb0 way) $(field ublkb0 protocol) $(field /dev/ublkb0 server)" "connected ublk 2 $a" status
	# a helper that memory reclaim may wait for, and may not take apart
	local pid; pid=$(field ublkb0 pid)
	awk '/^VmLck:/ {exit $2 < 32768}' "/proc/$pid/status" || fail "the helper's memory is not locked: $(grep VmLck "/proc/$pid/status")"
	expect "$(cat "/proc/$pid/oom_score_adj")" -1000 "oom_score_adj"
	(( $(awk '{print $9}' "/proc/$pid/stat") & 0x80000 )) || fail "the helper is not marked as an I/O flusher"
	mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 $mnt; echo kept > $mnt/file; fstrim $mnt
	must_fail "mounted on $mnt" netblk detach ublkb0
	umount $mnt
	[ "$(field ublkb0 write_bytes)" -gt 0 ] && [ "$(field ublkb0 read_bytes)" -ge 67108864 ] || fail "status counts no bytes"
	netblk detach /dev/ublkb0; gone
	netblk detach ublkb0 2> "$scratch/words"; grep -q 'is not attached' "$scratch/words" || fail "a second detach says $(cat "$scratch/words")"
	# what was written came through the detach
	expect "$(netblk attach $a --via ublk --device /dev/ublkb3 --name data)" /dev/ublkb3 "attach with --device"
	expect "$(readlink /dev/netblk-by-name/data)" /dev/ublkb3 "the name"
	mount /dev/ublkb3 $mnt; expect "$(cat $mnt/file)" kept "the file"; umount $mnt; e2fsck -fn /dev/ublkb3
	netblk detach data; [ ! -e /dev/netblk-by-name ] || fail "the name stays"
	gone
}
# reads, writes, flush, FUA, discard, zeroes, beyond the end; every source
all_requests() {
	ours 10820; truncate -s 64M "$scratch/disk1"; kit 10809 "$scratch/disk1"; kit 10810 "$scratch/disk2"
	nbdkit -f -U "$scratch/socket" file "$scratch/disk2" & echo $! >> "$scratch/pids"; until_so 60 "$netblk" info "nbd+unix:///?socket=$scratch/socket"
	local source
	for source in $a $b nbd://127.0.0.1:10809 "nbd+unix:///?socket=$scratch/socket" "file:$scratch/disk3?size=64M" mem:64M; do
		expect "$(netblk attach "$source" --via ublk 2> "$scratch/words")" /dev/ublkb0 "attach of $source ($(cat "$scratch/words"))"
		verify /dev/ublkb0 || fail "$source: $(cat "$scratch/fio.v")"
		random_file "$scratch/blob" 3M; dd if="$scratch/blob" of=/dev/ublkb0 bs=1M oflag=direct,sync status=none
		flush /dev/ublkb0
		blkdiscard -o 1048576 -l 65536 /dev/ublkb0; blkdiscard -z -o 2097152 -l 12288 /dev/ublkb0
		dd if=/dev/zero of="$scratch/blob" bs=64k seek=16 count=1 conv=notrunc status=none
		dd if=/dev/zero of="$scratch/blob" bs=4k seek=512 count=3 conv=notrunc status=none
		drop_caches; cmp -n 3145728 "$scratch/blob" /dev/ublkb0 || fail "$source: what was discarded and zeroed does not read so"
		must_fail 'no space\|invalid' dd if=/dev/zero of=/dev/ublkb0 bs=4k count=1 seek=16384 oflag=direct status=none
		netblk detach ublkb0; gone
	done
}
# a server of netblk/1 has neither cache nor discard
netblk1() {
	truncate -s 8M "$scratch/disk1"; serve_simple 10830 "$scratch/disk1" 8
	must_fail 'give the size' netblk attach netblk://127.0.0.1:10830 --via ublk
	expect "$(netblk attach netblk://127.0.0.1:10830 --via ublk --size 8M)" /dev/ublkb0 "attach of netblk/1"
	expect "$(queue write_cache) $(queue discard_max_bytes) $(queue write_zeroes_max_bytes) $(field ublkb0 protocol)" 'write through 0 0 1' "limits"
	mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 $mnt; random_file "$scratch/blob" 1M; cp "$scratch/blob" $mnt/; umount $mnt
	e2fsck -fn /dev/ublkb0; mount /dev/ublkb0 $mnt; cmp "$scratch/blob" $mnt/blob; umount $mnt
	netblk detach ublkb0
}
read_only() {
	ours 10820; kit 10809 "$scratch/disk1" -r; truncate -s 4M "$scratch/disk2"
	expect "$(netblk attach $a --read-only --via ublk)" /dev/ublkb0 "attach --read-only"
	expect "$(cat /sys/block/ublkb0/ro) $(field ublkb0 read_only)" '1 True' "read-only"
	must_fail 'not permitted\|read-only' dd if=/dev/zero of=/dev/ublkb0 bs=4096 count=1 oflag=direct status=none
	must_fail 'read-only' netblk attach $a --via ublk
	must_fail 'read-only: attach it with --read-only' netblk attach nbd://127.0.0.1:10809 --via ublk
	must_fail 'read-only: attach it with --read-only' netblk attach "file:$scratch/disk2?readonly=1" --via ublk
	expect "$(netblk attach nbd://127.0.0.1:10809 --read-only --via ublk)" /dev/ublkb1 "a read-only export"
	netblk detach ublkb0; netblk detach ublkb1; gone
}
refusals() {
	must_fail 'refused' netblk attach $a --via ublk
	gone
	ours 10820
	must_fail 'bytes, not' netblk attach $a --size 50M --via ublk
	must_fail "disks of the kernel's ublk" netblk attach $a --via ublk --device nbd1
	must_fail 'export' netblk attach netblk://127.0.0.1:10820/nothing --via ublk
	must_fail 'export\|exist' netblk attach nbd://127.0.0.1:10821/nothing --via ublk
	must_fail 'no such file' netblk attach "file:$scratch/nothing" --via ublk
	must_fail 'mean nothing' netblk attach $b --takeover --via ublk
	truncate -s 0 "$scratch/disk0"; kit 10809 "$scratch/disk0"
	must_fail 'at least one block' netblk attach nbd://127.0.0.1:10809 --via ublk
	kit 10810 "$scratch/disk2" --filter=blocksize-policy blocksize-minimum=8192 blocksize-preferred=8192 blocksize-error-policy=error
	must_fail 'blocks of 8192 bytes' netblk attach nbd://127.0.0.1:10810 --via ublk
	kit 10811 "$scratch/disk3" --filter=blocksize-policy blocksize-minimum=4096 blocksize-error-policy=error
	expect "$(netblk attach nbd://127.0.0.1:10811 --via ublk)" /dev/ublkb0 "blocks of a page"
	expect "$(queue logical_block_size)" 4096 "logical block size"; verify /dev/ublkb0
	must_fail 'in use' netblk attach $a --device ublkb0 --via ublk
	netblk attach $a --via ublk > /dev/null
	must_fail 'already, as /dev/ublkb1' netblk attach $a --device ublkb7 --via ublk
	must_fail 'for writing' netblk attach $a --read-only --via ublk
	must_fail 'via ublk, as /dev/ublkb1' netblk attach $a --via fuse
	# exclusively open
	python3 -c "
import os, time
f = os.open('/dev/ublkb1', os.O_RDWR | os.O_EXCL); print('open', flush=True); time.sleep(600)" > "$scratch/said" & local holder=$!
	echo $holder >> "$scratch/pids"; until_so 60 grep -q open "$scratch/said"
	must_fail 'in use by another' netblk detach ublkb1
	kill $holder; wait $holder || true
	# no root
	cp "$netblk" /tmp/netblk-nobody; chmod 755 /tmp/netblk-nobody
	must_fail 'needs root' setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/netblk-nobody attach $b --via ublk
	must_fail 'needs root' setpriv --reuid 65534 --regid 65534 --clear-groups /tmp/netblk-nobody detach ublkb1
	rm /tmp/netblk-nobody
	netblk detach ublkb0; netblk detach ublkb1; gone
	# no module: which one, and the command; or that this kernel has none. The ring of a process goes a moment after it.
	until_so 60 rmmod ublk_drv
	must_fail 'ublk_drv is not loaded: modprobe ublk_drv' netblk attach $a --via ublk
	mkdir -p "$scratch/none"; mount --bind "$scratch/none" "/lib/modules/$(uname -r)"
	must_fail 'has no module ublk_drv (CONFIG_BLK_DEV_UBLK' netblk attach $a --via ublk
	umount "/lib/modules/$(uname -r)"
	gone
}
# helpers are killed under load: nothing fails, nothing is lost
helper_dies() {
	ours 10820; netblk attach $a --via ublk > /dev/null
	mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 $mnt
	fio --name=v --directory=$mnt --size=8m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=16 --direct=1 --fsync=64 --verify=crc32c \
		--verify_fatal=1 --loops=3 --minimal --output="$scratch/fio.v" > /dev/null & local fio=$! i pid how
	# by itself
	for i in $(seq "${ROUNDS:-2}"); do
		until_so 60 is_guarded; pid=$(helper); kill -KILL "$pid"; until_so 120 another_than "$pid"; until_so 60 is ublkb0 state connected
	done
	expect "$(netblk attach $a --via ublk 2> "$scratch/words") $(cat "$scratch/words")" '/dev/ublkb0 ' "attach of what its guard has mended"
	# the guard alone is killed: the next command starts another
	pid=$(guard); kill -KILL "$pid"; until_so 60 eval "! kill -0 $pid"; netblk status > /dev/null; until_so 60 is_guarded
	[ "$(guard)" != "$pid" ] || fail "the same guard"
	# the last that it does before it looks after the disk
	until_so 60 awk '/^VmLck:/ {exit $2 < 1024}' "/proc/$(guard)/status"
	expect "$(cat "/proc/$(guard)/oom_score_adj")" -1000 "oom_score_adj of the guard"
	expect "$(head -c 1 "/proc/$(guard)/cmdline") $(head -c 1 "/proc/$(helper)/cmdline")" '@ @' "the signs that systemd passes over at shutdown"
	# a signal for everybody, as at a shutdown, ends neither while the disk is in use
	kill -TERM "$(guard)" "$(helper)"; until_so 60 grep -q 'is in use, so it stays' /run/netblk/0/log; is_guarded; kill -0 "$(helper)"
	# the guard and the helper: the next command mends
	for i in $(seq "${ROUNDS:-2}"); do
		pid=$(helper); die_both
		if [ $((i % 2)) = 0 ]; then how="status"; else how="attach $a --via ublk"; fi
		netblk $how > "$scratch/out" 2> "$scratch/words" || fail "$how: $(cat "$scratch/words")"
		grep -q 'its helper had died' "$scratch/words" || fail "$how says $(cat "$scratch/words")"
		[ "$(field ublkb0 pid)" != "$pid" ] || fail "the same helper"
		until_so 60 is ublkb0 state connected
	done
	ended $fio || fail "fio: $(cat "$scratch/fio.v")"
	until_so 60 is ublkb0 lost False
	umount $mnt; e2fsck -fn /dev/ublkb0
	netblk status 2> "$scratch/words" > /dev/null; expect "$(cat "$scratch/words")" '' "words of status with all well"
	# nobody serves it, and there is something in the page cache: detach has another helper write it
	random_file "$scratch/blob" 64k
	python3 -c "
import os, time
f = os.open('/dev/ublkb0', os.O_RDWR); os.pwrite(f, open('$scratch/blob', 'rb').read(), 48 << 20); open('$scratch/written', 'w').close(); time.sleep(600)" & local writer=$!
	echo $writer >> "$scratch/pids"; until_so 60 test -e "$scratch/written"; rm "$scratch/written"
	die_both; kill $writer; netblk detach --wait 60 ublkb0; wait $writer || true; gone
	cmp -n 65536 -i 0:50331648 "$scratch/blob" "$scratch/disk9"
	# by force it needs none
	netblk attach $a --via ublk > /dev/null; die_both
	read_one /dev/ublkb0 5 2> /dev/null & local reader=$!
	netblk detach --force ublkb0
	if ended $reader; then fail "a read was answered by nobody"; fi
	gone
	# helper and server die, and the server comes back
	netblk attach $a --via ublk > /dev/null; die_both; kill_server
	netblk status > "$scratch/words" 2>&1; grep -q 'another cannot start' "$scratch/words" || fail "status says $(cat "$scratch/words")"
	# a new guard tries again and again; between two tries
	until_so 60 is ublkb0 state dead
	until_so 60 eval "netblk status 2> /dev/null | grep -q 'requests wait'"
	ours 10820; read_one /dev/ublkb0; until_so 60 is ublkb0 state connected
	# SIGTERM: in use it stays, otherwise it goes
	mount /dev/ublkb0 $mnt; pid=$(field ublkb0 pid)
	kill -TERM "$pid"; until_so 60 grep -q 'is in use, so it stays' /run/netblk/0/log; kill -0 "$pid"
	umount $mnt; kill -TERM "$pid"; until_so 60 nothing_left
	# killed while it begins: the next attach sweeps up
	for i in 1 2 3 4 5; do
		netblk attach $a --via ublk > /dev/null 2>&1 & local begun=$!
		until_so 60 eval 'ls /run/netblk/[0-9]*/state.json || ! kill -0 '$begun
		sleep 0.0$i; pid=$(helper 2> /dev/null || true)
		if [ -n "$pid" ] && kill -STOP "$pid" 2> /dev/null; then
			until_so 60 is_halted "$pid"
			if may_be_killed; then kill -KILL "$pid"; else kill -CONT "$pid"; fi
		fi
		wait $begun || true
		expect "$(netblk attach $a --via ublk 2> "$scratch/words" || cat "$scratch/words")" /dev/ublkb0 "attach after a helper was killed at its beginning"
		read_one /dev/ublkb0; netblk detach ublkb0; gone
	done
}
# Nobody can serve it any more, and no command comes: what waits ends with EIO after the dead time, and the disk goes
dead_time() {
	local reader
	ours 10820; netblk attach $a --via ublk --timeout 5 > /dev/null; until_so 60 is_guarded
	# there is a request before nobody serves it: on a machine that stands still the disk might have gone before another comes
	stand_still $server_pid; read_one /dev/ublkb0 7 2> "$scratch/read" & reader=$!
	until_so 60 eval "! kill -0 $reader || grep -q '[1-9]' /sys/block/ublkb0/inflight"
	kill_server; kill -KILL "$(helper)"; background flush /dev/ublkb0
	if ended $reader; then fail "a read was answered by nobody"; fi
	grep -qi 'input/output' "$scratch/read" || fail "the read says $(cat "$scratch/read")"
	until_so 120 nothing_left
	# mounted: the file system fails, and the number is free when it is unmounted
	ours 10820; netblk attach $a --via ublk --timeout 5 > /dev/null; mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 $mnt; until_so 60 is_guarded
	kill_server; kill -KILL "$(helper)"
	if within 120 sync -f $mnt/. && within 120 ls $mnt/nothing 2> /dev/null && echo x > $mnt/x && within 120 sync $mnt/x; then fail "a write arrived nowhere"; fi
	until_so 120 eval '! test -e /sys/block/ublkb0'
	umount $mnt; until_so 120 nothing_left
	# helpers that die as soon as they are there are no helpers
	ours 10820; netblk attach $a --via ublk --timeout 2 > /dev/null; until_so 60 is_guarded
	# EIO, or the end of a disk that is no more; who opens it later might find none
	python3 -c "
import os
f = os.open('/dev/ublkb0', os.O_RDONLY); open('$scratch/opened', 'w').close()
try:
    while os.pread(f, 4096, 0): os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)
except OSError as error: print(error)" & reader=$!
	echo $reader >> "$scratch/pids"; until_so 60 test -e "$scratch/opened"; rm "$scratch/opened"
	background eval 'while [ -e /run/netblk/0/state.json ]; do kill -KILL "$(helper)"; done 2> /dev/null'
	ended $reader || fail "the reader ended with status $?"
	until_so 120 nothing_left
}
# A guard that mends and a command that does, or that takes the disk away, come at the same time
races() {
	local i
	ours 10820
	for i in $(seq 0 "${ROUNDS:-5}"); do
		expect "$(netblk attach $a --via ublk 2> "$scratch/words" || cat "$scratch/words")" /dev/ublkb0 "attach $i"; until_so 60 is_guarded
		kill -KILL "$(helper)"; sleep "0.$((i * 8 % 100 / 10))$((i * 8 % 10))"
		expect "$(netblk attach $a --via ublk 2> "$scratch/words" || cat "$scratch/words")" /dev/ublkb0 "attach $i of what was killed"; read_one /dev/ublkb0
		until_so 60 is_guarded; kill -KILL "$(helper)"; sleep "0.$((i * 8 % 100 / 10))$((i * 8 % 10))"
		netblk detach ublkb0; gone
	done
}
# A new program takes the place of the old one when the helper dies
upgrade() {
	local pid
	# without what a debugger needs, which is ten times as much, and all of this is in memory
	mkdir -p "$scratch/bin"; rm -f "$scratch"/disk*; strip -o "$scratch/bin/netblk" "$netblk"; ours 10820
	"$scratch/bin/netblk" attach $a --via ublk > /dev/null; until_so 60 is_guarded
	cp "$scratch/bin/netblk" "$scratch/bin/new"; mv "$scratch/bin/new" "$scratch/bin/netblk"
	pid=$(helper); kill -KILL "$pid"; until_so 120 another_than "$pid"; until_so 60 is_guarded
	expect "$(readlink "/proc/$(helper)/exe") $(readlink "/proc/$(guard)/exe")" "$scratch/bin/netblk $scratch/bin/netblk" "programs that serve now"
	read_one /dev/ublkb0
	# with no program at all the one in memory goes on
	rm "$scratch/bin/netblk"
	pid=$(helper); kill -KILL "$pid"; until_so 120 another_than "$pid"; read_one /dev/ublkb0
	netblk detach ublkb0; gone
}
# what only a helper's memory had goes with it
memory_dies() {
	netblk attach mem:16M --via ublk > /dev/null; verify /dev/ublkb0
	kill -KILL "$(field ublkb0 pid)"
	until_so 60 eval 'netblk status 2>&1 | grep -q "gone with its helper"'
	expect "$(netblk status)" 'nothing is attached' status; gone
}
# the truth about losses outlives the helper
losses() {
	ours 10820; netblk attach $a --via ublk > /dev/null
	dd if=/dev/urandom of=/dev/ublkb0 bs=4k count=64 oflag=direct status=none
	# everything at once: the helper, the server and what the server knew
	die; kill_server; rm -rf /run/netblk/store-*; ours 10820
	netblk status > /dev/null 2>&1
	until_so 60 is ublkb0 lost True
	must_fail 'input/output' flush /dev/ublkb0
	# and the next helper knows it, too
	die; netblk status > /dev/null 2>&1; until_so 60 is ublkb0 lost True
	must_fail 'input/output' flush /dev/ublkb0
	until_so 60 netblk reset ublkb0; until_so 60 is ublkb0 lost False
	dd if=/dev/urandom of=/dev/ublkb0 bs=4k count=4 oflag=direct conv=fsync status=none
	# all was flushed: nothing can have been lost
	die; kill_server; rm -rf /run/netblk/store-*; ours 10820
	netblk status > /dev/null 2>&1; until_so 60 is ublkb0 lost False
	flush /dev/ublkb0
	# another store in its place
	die; kill_server; rm -f "$scratch"/disk9*; ours 10820
	netblk status > "$scratch/words" 2>&1; grep -q 'is another store now' "$scratch/words" || fail "status says $(cat "$scratch/words")"
	netblk detach --force ublkb0; gone
	# NBD does not tell
	netblk attach $b --via ublk > /dev/null 2>&1; dd if=/dev/urandom of=/dev/ublkb0 bs=4k count=4 oflag=direct conv=fsync status=none
	die; netblk status > /dev/null 2>&1; until_so 60 is ublkb0 lost False
	dd if=/dev/urandom of=/dev/ublkb0 bs=4k count=4 oflag=direct status=none
	die; netblk status > /dev/null 2>&1; until_so 60 is ublkb0 lost True
	must_fail 'input/output' flush /dev/ublkb0; until_so 60 netblk reset ublkb0; flush /dev/ublkb0
	netblk detach ublkb0; gone
}
# the server is killed and comes back under a file system's load; then it stays away
server_dies() {
	ours 10820; netblk attach $a --via ublk > /dev/null
	mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 $mnt
	fio --name=v --directory=$mnt --size=8m --rw=randwrite --bs=4k-64k --ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c \
		--verify_fatal=1 --loops=2 --minimal --output="$scratch/fio.v" > /dev/null & local fio=$! i
	for i in 1 2; do
		kill_server; ours 10820
		until_so 60 eval "[ \$(field ublkb0 reconnects) -ge $i ] && is ublkb0 state connected"
	done
	ended $fio || fail "fio: $(cat "$scratch/fio.v")"
	umount $mnt; e2fsck -fn /dev/ublkb0
	# for good: EIO after the dead time
	netblk detach ublkb0; netblk attach $a --via ublk --timeout 5 > /dev/null; kill_server
	must_fail 'input/output' within 120 dd if=/dev/ublkb0 of=/dev/null bs=4k count=1 skip=77 iflag=direct status=none
	until_so 60 is ublkb0 state error
	ours 10820; until_so 60 is ublkb0 state connected; until_so 60 read_one /dev/ublkb0
	# detach with requests in flight that nobody answers: by force at once, whatever the server does
	stand_still $server_pid
	read_one /dev/ublkb0 9 2> /dev/null & local reader=$!
	until_so 60 eval "! kill -0 $reader || grep -q '[1-9]' /sys/block/ublkb0/inflight"
	within 90 "$netblk" detach --force ublkb0
	if ended $reader; then fail "a read was answered by nobody"; fi
	kill -CONT $server_pid; until_so 60 nothing_left
}
# detach with I/O in flight: answered, or EIO; never neither
detach_busy() {
	ours 10820; local i load
	for i in 1 2 3; do
		netblk attach $a --via ublk > /dev/null
		fio --name=l --filename=/dev/ublkb0 --rw=randrw --bs=4k --iodepth=32 --ioengine=libaio --direct=1 --time_based --runtime=600 \
			> /dev/null 2>&1 & load=$!
		until_so 60 eval '[ $(field ublkb0 write_bytes) -gt 0 ]'
		if [ $i = 3 ]; then netblk detach --force ublkb0 > /dev/null 2>&1 & else netblk detach --wait 60 ublkb0 > /dev/null 2>&1 & fi
		local detacher=$!
		# fio has it open, so its number goes with fio
		until_so 90 eval '! test -e /sys/block/ublkb0'
		until_so 90 eval "! kill -0 $load"; wait $load || true
		ended $detacher || fail "detach $i failed"
		gone
	done
	# mounted, by force: the file system fails, and nothing stays
	netblk attach $a --via ublk > /dev/null; mkfs.ext4 -q /dev/ublkb0; mount /dev/ublkb0 $mnt
	netblk detach --force ublkb0 > /dev/null 2>&1 & local detacher=$!
	until_so 60 eval '! test -e /sys/block/ublkb0'
	umount $mnt; ended $detacher || fail "detach of what was mounted failed"
	gone
}
# other programs' disks stay theirs; one that others stop is forgotten
foreign() {
	ours 10820
	python3 "$vm/ublk_foreign.py" > "$scratch/foreign" 2>&1 & local other=$!; echo $other >> "$scratch/pids"
	until_so 60 test -e /sys/class/ublk-char/ublkc0
	expect "$(netblk attach $a --via ublk)" /dev/ublkb1 "beside another's"
	must_fail 'not by netblk' netblk detach ublkb0
	must_fail 'in use' netblk attach $b --via ublk --device ublkb0
	netblk detach ublkb1
	python3 "$vm/ublk_foreign.py" delete 0
	gone
	netblk attach $a --via ublk > /dev/null; python3 "$vm/ublk_foreign.py" stop 0; until_so 60 nothing_left
	expect "$(netblk attach $a --via ublk)" /dev/ublkb0 "attach after others stopped it"; netblk detach ublkb0
}
at_once() {
	ours 10820
	local n; for n in 1 2 3 4; do netblk attach $a --via ublk > "$scratch/node.$n" 2> /dev/null & echo $! > "$scratch/begun.$n"; done
	for n in 1 2 3 4; do wait "$(cat "$scratch/begun.$n")"; done
	expect "$(cat "$scratch"/node.* | sort -u)" /dev/ublkb0 "what four attaches at once print"
	netblk detach ublkb0; gone
}
# numbers do not leak
cycles() {
	local i; truncate -s 1M "$scratch/disk1"
	for i in $(seq $((ROUNDS ? ROUNDS * 250 : 50))); do
		expect "$(netblk attach "file:$scratch/disk1" --via ublk)" /dev/ublkb0 "attach, cycle $i"
		netblk detach ublkb0
	done
	gone
}
size_changes() {
	truncate -s 8M "$scratch/disk1"; netblk attach "file:$scratch/disk1" --via ublk > /dev/null
	truncate -s 16M "$scratch/disk1"
	until_so 60 eval '[ $(blockdev --getsize64 /dev/ublkb0) = 16777216 ] || field ublkb0 last_error | grep -q "before Linux 6.16: detach it"'
	netblk detach ublkb0
	expect "$(netblk attach "file:$scratch/disk1" --via ublk > /dev/null; blockdev --getsize64 /dev/ublkb0)" 16777216 "size, attached anew"
	# a smaller one is not taken over
	die_both; truncate -s 4M "$scratch/disk1"
	netblk status > "$scratch/words" 2>&1
	grep -q 'has 4194304 bytes now, and had 16777216' "$scratch/words" || fail "status says $(cat "$scratch/words")"
	netblk detach --force ublkb0; gone
}
t_ublk ublk-attach-and-detach first
t_ublk ublk-all-requests all_requests
t_ublk ublk-netblk1 netblk1
t_ublk ublk-read-only read_only
t_ublk ublk-refusals refusals
t_ublk ublk-helper-dies helper_dies
t_ublk ublk-dead-time dead_time
t_ublk ublk-upgrade upgrade
t_ublk ublk-guard-races races
t_ublk ublk-memory-dies memory_dies
t_ublk ublk-losses losses
t_ublk ublk-server-dies server_dies
t_ublk ublk-detach-in-flight detach_busy
t_ublk ublk-foreign foreign
t_ublk ublk-four-at-once at_once
t_ublk ublk-size-changes size_changes
t_ublk ublk-cycles cycles
finish
