# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the cases ways*.sh: the promises of `netblk attach`, each on each way. docs/ways.md is the table; a cell is a
# test, named PROMISE-WAY. Where a way cannot keep a promise, the test shows what it does instead, and tells the reason.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] && [ -x "$NETBLK_OUT/netblk_server" ] || { echo "SKIP ways: build/output has no netblk, or no netblk_server"; exit 0; }
src=netblk://127.0.0.1:10809/disk
netblk() { "$netblk" "$@"; }
field() { netblk status --json "$1" 2> /dev/null | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['$2'])"; }
is() { [ "$(field "$1" "$2")" = "$3" ]; }
# a server of netblk/2 whose file outlives it; WORDS are added to the store's
start_server() {
	[ -e "$scratch/disk" ] || truncate -s 16M "$scratch/disk"
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
	for f in /run/netblk/[0-9]*/guard; do [ ! -e "$f" ] || kill -KILL "$(cat "$f")" 2> /dev/null; done  # else it starts a helper for each that is killed
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

# ---- all ways at once ----

all=(netblk ublk nbd fuse)
declare -A node job
serve_all() {
	local one exports=()
	for one in "${all[@]}"; do
		[ -e "$scratch/disk-$one" ] || truncate -s 16M "$scratch/disk-$one"
		exports+=(--export "$one-disk=file:$scratch/disk-$one")
	done
	"$NETBLK_OUT/netblk_server" "${exports[@]}" --listen netblk://127.0.0.1:10809 > "$scratch/server.10809" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening 10809
}
# writes and reads back, until it is told to stop; rests while it is told to
work() {
	local turn=0
	while [ ! -e "$scratch/stop" ]; do
		if [ -e "$scratch/rest" ]; then touch "$scratch/rests-$1"; sleep 0.1; continue; fi
		random_file "$scratch/blob-$1" 512k
		dd if="$scratch/blob-$1" of="$2" bs=32k oflag=direct conv=notrunc status=none
		dd if="$2" bs=32k count=16 iflag=direct status=none | cmp - "$scratch/blob-$1"
		turn=$((turn + 1)); echo $turn > "$scratch/turn-$1"
	done
}
work_on_all() {
	local one
	rm -f "$scratch"/turn-* "$scratch/stop" "$scratch"/rest*
	for one in "${all[@]}"; do have "$one"; done
	serve_all
	for one in "${all[@]}"; do node[$one]=$(netblk attach "netblk://127.0.0.1:10809/$one-disk" --via "$one"); done
	for one in "${all[@]}"; do work "$one" "${node[$one]}" & job[$one]=$!; echo $! >> "$scratch/pids"; done
	every_one work moved 0
}
turn() { cat "$scratch/turn-$1" 2> /dev/null || echo 0; }
# every_one WHAT COMMAND...: until it succeeds with each way behind it
every_one() {
	local one
	for one in "${all[@]}"; do until_true 180 "$one: $1" "${@:2}" "$one"; done
}
says() { is "${node[$2]}" state "$1"; }
moved() { [ "$(turn "$2")" -gt "$1" ]; }
all_go_on() {
	local one before=0
	for one in "${all[@]}"; do [ "$(turn "$one")" -le $before ] || before=$(turn "$one"); done
	every_one connected says connected
	every_one "work goes on" moved $((before + 1))
}
# judge_all WHAT: what became of each is in $scratch/WHAT.WAY
judge_all() {
	local one
	touch "$scratch/stop"
	for one in "${all[@]}"; do
		if wait "${job[$one]}" && [ "$(field "${node[$one]}" errors) $(field "${node[$one]}" lost)" = '0 False' ] && sync "${node[$one]}" &&
			cmp "${node[$one]}" "$scratch/disk-$one"; then
			echo well > "$scratch/$1.$one"
		else
			echo "a request failed, or something else is on the server: $(netblk status "${node[$one]}")" > "$scratch/$1.$one"
		fi
	done
}
