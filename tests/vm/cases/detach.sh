# SPDX-License-Identifier: GPL-2.0-only
# What attach and detach say at the edges, by way of FUSE: a helper that dies in the write-back, paths, exit statuses.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] && [ -x "$NETBLK_OUT/netblk_server" ] || { echo "SKIP detach: build/output has no netblk, or no netblk_server"; exit 0; }
modprobe -a fuse loop 2> /dev/null || true
netblk() { "$netblk" "$@"; }
field() { netblk status --json "$1" 2> /dev/null | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['$2'])"; }
nothing_left() { ! ls -d /run/netblk/[0-9]* > /dev/null 2>&1; }
gone() { nothing_left || fail "left: $(ls -d /run/netblk/[0-9]*)"; }
# status WANTED COMMAND...: its exit status
status() {
	local wanted=$1 got=0; shift
	"$@" > "$scratch/said" 2>&1 || got=$?
	[ $got = "$wanted" ] || fail "exit status $got, not $wanted, of $*: $(cat "$scratch/said")"
}

# Data that a program has written, and that waits in the page cache, may be lost when the helper dies while detach writes
# it back: detach must not call that good.
dies_in_write_back() {
	truncate -s 16M "$scratch/disk"
	local disk pid detacher holder
	# the kernel alone would write it back after 5 s, and detach find a helper that is dead
	echo 360000 > /proc/sys/vm/dirty_writeback_centisecs
	disk=$(netblk attach "file:$scratch/disk?delay-write-ms=600000" --via fuse); pid=$(field "$disk" pid)
	# a close writes back, too, so it is not closed
	python3 -c "
import os, sys, time
f = os.open('$disk', os.O_RDWR); os.write(f, os.urandom(65536)); print('written', flush=True); time.sleep(600)" > "$scratch/out" & holder=$!
	echo $holder >> "$scratch/pids"; until_true 60 "a write into the page cache" grep -q written "$scratch/out"
	(status=0; netblk detach "$disk" > "$scratch/words" 2>&1 || status=$?; echo $status > "$scratch/status") & detacher=$!
	until_true 60 "writes in flight" eval "awk '{exit \$2 == 0}' /sys/block/${disk#/dev/}/inflight"
	kill -KILL "$pid"; wait $detacher; echo 500 > /proc/sys/vm/dirty_writeback_centisecs
	expect "$(cat "$scratch/status")" 1 "the exit status of a detach that lost data"
	grep -q 'data may be lost' "$scratch/words" || fail "detach says $(cat "$scratch/words")"
	kill $holder; wait $holder || true; gone
	# one that was dead before is only taken away
	disk=$(netblk attach "file:$scratch/disk" --via fuse); pid=$(field "$disk" pid); kill -KILL "$pid"
	status 0 netblk detach "$disk"; gone
}
# A helper that is killed while it attaches may leave a folder without a record, or a device that no record names: what such
# ones leave is made here as they do, and the next attach takes it away.
killed_while_attaching() {
	local left disk
	mkdir -p /run/netblk/0 /run/netblk/1/mnt; : > /run/netblk/0/lock; : > /run/netblk/1/lock
	truncate -s 4M /run/netblk/1/mnt/disk "$scratch/disk"; left=$(losetup --find --show /run/netblk/1/mnt/disk)
	printf '{"way": "fuse", "device": "", "server": "file:/gone", "size_bytes": 0, "read_only": false, "pid": 1}\n' > /run/netblk/1/state.json
	# one that lives keeps its own
	mkdir /run/netblk/2; exec 9> /run/netblk/2/lock; flock -n 9
	disk=$(netblk attach "file:$scratch/disk" --via fuse)
	[ -e /run/netblk/0/state.json ] || fail "the abandoned folder was not used: $(ls -R /run/netblk)"
	[ ! -e /run/netblk/1 ] || fail "left: $(ls -R /run/netblk/1)"
	[ -d /run/netblk/2 ] || fail "the folder of a living helper has gone"
	[ "$disk" = "$left" ] || [ ! -s "/sys/block/${left#/dev/}/loop/backing_file" ] || fail "$left still has $(cat "/sys/block/${left#/dev/}/loop/backing_file")"
	netblk detach "$disk"
	exec 9>&-
	rm -r /run/netblk/2; rmdir /run/netblk 2> /dev/null || true; gone
}
# A helper stands elsewhere than who asks for it
relative_paths() {
	local disk
	mkdir -p "$scratch/a b" "$scratch/other"; truncate -s 4M "$scratch/a b/disk"; cd "$scratch/a b"
	disk=$(netblk attach 'file:disk?overlay=top&trace=said' --via fuse)
	expect "$(field "$disk" server)" "file:$scratch/a b/disk?overlay=$scratch/a b/top&trace=$scratch/a b/said" "the source"
	dd if=/dev/urandom of="$disk" bs=4k count=4 oflag=direct status=none; sync "$disk"
	[ -s top ] && [ -s said ] || fail "not in this folder: $(ls)"
	expect "$(tr -d '\0' < disk | wc -c)" 0 "bytes written below the overlay"
	cd "$scratch/other"
	expect "$(netblk attach "file:$scratch/a b/disk?overlay=$scratch/a b/top&trace=$scratch/a b/said" --via fuse)" "$disk" "the same, from elsewhere"
	netblk detach "$disk"; gone
	# words that are no paths stay so
	export TMPDIR=$scratch/tmp; mkdir "$TMPDIR"; mount -t tmpfs none "$TMPDIR"  # the guest's root knows no nameless files
	disk=$(netblk attach "file:$scratch/a b/disk?overlay=temp&trace=-" --via fuse)
	expect "$(field "$disk" server)" "file:$scratch/a b/disk?overlay=temp&trace=-" "the source"
	netblk detach "$disk"; umount "$TMPDIR"; gone
}
# 2: the words of the command; 1: what the disk, its server or the machine says
statuses() {
	truncate -s 4M "$scratch/disk"; serve 10809 "$scratch/served" 4
	status 2 netblk attach "file:$scratch/disk" --via fuse --size 1000
	status 2 netblk attach "file:$scratch/disk?overlay" --via fuse --shared
	status 2 netblk attach "file:$scratch/disk" --via fuse --device loop7
	status 2 netblk attach "file:$scratch/disk" --via netblk
	status 1 netblk attach "file:$scratch/disk" --via fuse --size 8M
	status 1 netblk attach netblk://127.0.0.1:10809 --via fuse --size 8M
	status 1 netblk attach netblk://127.0.0.1:10809/nothing --via fuse
	truncate -s 0 "$scratch/empty"; status 1 netblk attach "file:$scratch/empty" --via fuse
	status 1 netblk attach "file:$scratch/nothing" --via fuse
	status 1 netblk attach netblk://127.0.0.1:9 --via fuse
	local disk; disk=$(netblk attach "file:$scratch/disk" --via fuse)
	status 1 netblk attach "file:$scratch/disk" --via fuse --size 8M
	status 1 netblk attach "file:$scratch/disk" --via fuse --read-only
	status 0 netblk attach "file:$scratch/disk" --via fuse
	status 1 netblk attach "file:$scratch/disk" --via fuse --timeout 3; grep -q 'another --timeout' "$scratch/said" || fail "attach says $(cat "$scratch/said")"
	status 1 netblk attach "file:$scratch/disk" --via fuse --connections 2
	status 0 netblk detach "$disk"
	disk=$(netblk attach netblk://127.0.0.1:10809 --via fuse --timeout 3 --shared)
	status 0 netblk attach netblk://127.0.0.1:10809 --via fuse --timeout 3 --shared
	status 0 netblk attach netblk://127.0.0.1:10809
	status 1 netblk attach netblk://127.0.0.1:10809 --via fuse --timeout 0
	status 1 netblk attach netblk://127.0.0.1:10809 --via fuse --takeover
	status 0 netblk detach "$disk"; status 0 netblk detach "$disk"; gone
}
t detach-helper-dies-in-write-back dies_in_write_back
t attach-killed-while-attaching killed_while_attaching
t attach-relative-paths relative_paths
t attach-exit-statuses statuses
finish
