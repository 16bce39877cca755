# SPDX-License-Identifier: GPL-2.0-only
# K12: memory is freed by writing to the device, in a guest that has little of it; K13: no process is needed for that.
# The server is outside, at 10.0.2.2 port $3. ROUNDS is for how many seconds, at least, memory is pressed; 0: once.
# The tests with "restarts" are for a server that is killed and begun again every few seconds.
. "$NETBLK_ROOT/tests/vm/lib.sh"
port=${3:-10809} seconds=${ROUNDS:-0} factor=4
memory_mib=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))
group=/sys/fs/cgroup/pressed
# The driver's own client id is another one after each load; who leaves while the server is dead leaves its ownership behind,
# and another client would be refused.
attach() {
	local end=$((SECONDS + 120))
	until load client_id=6e65746b6c626b2d7265636c61696d31 server_ip=10.0.2.2 server_port="$port" size_mb=1536 io_timeout_ms=20000 connect_timeout_ms=2000 dead_time_ms=600000 max_retries=1000 "$@" &&
		[ "$(state)" = connected ]; do
		[ $SECONDS -lt $end ] || fail "not connected to 10.0.2.2:$port: $(state)"
		rmmod net_block_driver || true; sleep 0.2
	done
	expect "$(cat $sysfs/protocol)" "$PROTOCOL" protocol
}
limit() { echo +memory > /sys/fs/cgroup/cgroup.subtree_control; mkdir -p $group; echo 64M > $group/memory.max; }
swapped_out() { awk '$1 == "pswpout" {print $2}' /proc/vmstat; }
reconnects() { cat $sysfs/statistics/reconnects; }
# A new process needs 64 KiB in one piece for its kernel stack under User-Mode Linux, and finds none while memory is pressed:
# nothing here is begun meanwhile, and what asks is asked again.
# 64 MiB of memory for factor x 64 MiB of pages that cannot be compressed away or dropped, until COMMAND succeeds
press() {
	python3 - $group $((factor * 64)) "$@" <<'PY'
import errno, hashlib, subprocess, sys
group, mib, enough = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
with open(f"{group}/cgroup.procs", "w") as f:
    f.write("0")
turn = 0
blocks = [None] * mib
while True:
    for i in range(mib):
        blocks[i] = bytearray(hashlib.shake_128(b"%d %d" % (i, turn)).digest(1 << 20))
    for i in range(mib):
        assert blocks[i] == hashlib.shake_128(b"%d %d" % (i, turn)).digest(1 << 20), f"block {i} of turn {turn} came back wrong"
    turn += 1
    try:
        if subprocess.run(["bash", "-c", *enough], check=False).returncode == 0:
            break
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.EAGAIN):
            raise
print(turn, "turns")
PY
}
swap() {
	attach
	mkswap /dev/netblk > /dev/null; swapon /dev/netblk; limit
	local before; before=$(swapped_out)
	press "[ \$(cut -d. -f1 /proc/uptime) -ge $(($(cut -d. -f1 /proc/uptime) + seconds)) ]"
	[ $(($(swapped_out) - before)) -gt $(((factor - 2) * 64 * 256)) ] || fail "only $(($(swapped_out) - before)) pages went to swap: nothing was tested"
	swapoff /dev/netblk
	expect "$(stat_of errors)" 0 errors
	unload
}
dirty() {
	attach
	mkfs.ext4 -q -E lazy_itable_init=1 /dev/netblk; mount /dev/netblk $mnt
	local mib=$((memory_mib * factor)); [ $mib -le 1280 ] || mib=1280
	[ $mib -gt $((memory_mib * 2 - 50)) ] || fail "$mib MiB are too few for $memory_mib MiB of memory"
	dd if=/dev/zero of=$mnt/dirty bs=1M count=$mib status=none conv=fsync
	expect "$(command stat -c %s $mnt/dirty)" $((mib << 20)) "size of the file"
	umount $mnt
	expect "$(stat_of errors)" 0 errors
	unload
}
# one process that makes a file's pages dirty, and has them written, again and again
write_and_sync='
import os, sys
block = bytes(1 << 20)
while True:
    with open(sys.argv[1], "r+b" if os.path.exists(sys.argv[1]) else "wb", buffering=0) as f:
        for _ in range(int(sys.argv[2])):
            f.write(block)
        os.fsync(f.fileno())
'
# swap and a file system on one disk, at the same time
swap_and_dirty() {
	attach
	printf 'label: dos\n,512M\n,\n' | sfdisk -q /dev/netblk
	mkswap /dev/netblk1 > /dev/null; swapon /dev/netblk1; limit
	mkfs.ext4 -q -E lazy_itable_init=1 /dev/netblk2; mount /dev/netblk2 $mnt
	background exec python3 -c "$write_and_sync" $mnt/dirty $((memory_mib * factor < 800 ? memory_mib * factor : 800))
	local writer; writer=$(tail -1 "$scratch/pids")
	press "[ \$(cut -d. -f1 /proc/uptime) -ge $(($(cut -d. -f1 /proc/uptime) + seconds)) ]"
	kill -KILL "$writer"; wait "$writer" || expect $? 137 "end of the writer"
	until_true 60 "umount" umount $mnt; swapoff /dev/netblk1
	e2fsck -fn /dev/netblk2
	expect "$(stat_of errors)" 0 errors
	unload
}
# memory is freed through a server that is killed again and again: what waits for it goes on when it is back
restarts() {
	attach
	mkswap /dev/netblk > /dev/null; swapon /dev/netblk; limit
	press "[ \$(cat $sysfs/statistics/reconnects) -ge 2 ] && [ \$(cut -d. -f1 /proc/uptime) -ge $(($(cut -d. -f1 /proc/uptime) + seconds)) ]"
	swapoff /dev/netblk
	expect "$(stat_of errors) $(cut -c1-2 $sysfs/lost)" "0 no" "errors, lost"
	unload
}
# all of them back, so that the next test's shell is not born into the group
thaw() {
	local pid
	[ -d /sys/fs/cgroup/frozen ] || return 0
	echo 0 > /sys/fs/cgroup/frozen/cgroup.freeze
	for pid in $(cat /sys/fs/cgroup/frozen/cgroup.procs); do echo "$pid" > /sys/fs/cgroup/cgroup.procs 2> /dev/null || true; done
	until_true 60 "an empty group" rmdir /sys/fs/cgroup/frozen
}
# what this driver has instead of a helper that must not be swapped out, nor be killed: no process at all. All but the one
# that does I/O are stopped; the server goes and comes meanwhile.
no_process() {
	attach
	local pid before frozen=/sys/fs/cgroup/frozen
	[ -z "$(ss -Htnp state established dport = ":$port" | grep users:)" ] || fail "a process has the connection: $(ss -Htnp dport = ":$port")"
	for pid in $(pgrep '^netblk'); do [ ! -e "/proc/$pid/exe" ] || fail "$(cat "/proc/$pid/comm") is a process, and no thread of the kernel"; done
	mkdir $frozen; trap thaw EXIT
	for pid in $(cat /sys/fs/cgroup/cgroup.procs); do
		if [ "$pid" != "$BASHPID" ] && [ -e "/proc/$pid/exe" ]; then echo "$pid" > $frozen/cgroup.procs 2> /dev/null || true; fi
	done
	echo 1 > $frozen/cgroup.freeze
	until_true 60 "the freezing" grep -q 'frozen 1' $frozen/cgroup.events
	before=$(reconnects)
	while [ $(($(reconnects) - before)) -lt 2 ]; do
		dd if=/dev/zero of=/dev/netblk bs=256k count=64 oflag=direct status=none
		dd if=/dev/netblk of=/dev/null bs=256k count=64 iflag=direct status=none
	done
	thaw
	expect "$(stat_of errors)" 0 errors
	unload
}
both K12-swap swap
both K12-dirty-pages dirty
both K12-swap-and-dirty-pages swap_and_dirty
both K12-swap-over-restarts restarts
both K13-no-process-in-the-io-path-restarts no_process
finish
