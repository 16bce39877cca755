# SPDX-License-Identifier: GPL-2.0-only
# K12: memory is freed by writing to the device. The server is outside, at 10.0.2.2 port $3; the guest has little memory.
. "$NETBLK_ROOT/tests/vm/lib.sh"
port=${3:-10809} factor=${ROUNDS:-4}
attach() {
	for _ in $(seq 100); do
		insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=10.0.2.2 server_port="$port" size_mb=1536 io_timeout_ms=20000 dead_time_ms=60000
		[ "$(state)" = connected ] && return; rmmod net_block_driver; sleep 0.2
	done
	fail "no server at 10.0.2.2:$port"
}
memory_mib=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024))

swap() {
	attach
	mkswap /dev/netblk > /dev/null; swapon /dev/netblk
	local group=/sys/fs/cgroup/swapped
	echo +memory > /sys/fs/cgroup/cgroup.subtree_control
	mkdir -p $group; echo 64M > $group/memory.max
	# 64 MiB of memory for factor x 64 MiB of pages that cannot be compressed away or dropped
	within 600 python3 - $group $((factor * 64)) <<'PY'
import hashlib, os, sys
group, mib = sys.argv[1], int(sys.argv[2])
open(f"{group}/cgroup.procs", "w").write(str(os.getpid()))
block = [bytearray(hashlib.shake_128(str(i).encode()).digest(1 << 20)) for i in range(mib)]
for i, data in enumerate(block):
    assert data == hashlib.shake_128(str(i).encode()).digest(1 << 20), f"block {i} came back wrong"
print("swapped out:", [line for line in open("/proc/vmstat") if line.startswith("pswpout")])
PY
	local out; out=$(awk '$1 == "pswpout" {print $2}' /proc/vmstat)
	[ "$out" -gt $(((factor - 2) * 64 * 256)) ] || fail "only $out pages went to swap: nothing was tested"
	within 120 swapoff /dev/netblk
	expect "$(stat_of errors)" 0 errors
	unload
}
dirty() {
	attach
	mkfs.ext4 -q -E lazy_itable_init=1 /dev/netblk; mount /dev/netblk $mnt
	local mib=$((memory_mib * factor)); [ $mib -le 1280 ] || mib=1280
	[ $mib -gt $((memory_mib * 2 - 50)) ] || fail "$mib MiB are too few for $memory_mib MiB of memory"
	within 900 dd if=/dev/zero of=$mnt/dirty bs=1M count=$mib status=none conv=fsync
	expect "$(command stat -c %s $mnt/dirty)" $((mib << 20)) "size of the file"
	umount $mnt
	expect "$(stat_of errors)" 0 errors
	unload
}
# the server goes while memory is being freed through it, and comes back within the dead time
t K12-swap swap
t K12-dirty-pages dirty
finish
