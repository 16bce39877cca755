# SPDX-License-Identifier: GPL-2.0-only
# `netblk status` and `netblk top` tell the same whichever way the disk was made: every key, where the time of requests
# went, the age of the oldest one.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] && [ -x "$NETBLK_OUT/netblk_server" ] || { echo "SKIP status: build/output has no netblk, or no netblk_server"; exit 0; }
src=netblk://127.0.0.1:10809/disk
netblk() { "$netblk" "$@"; }
start_server() {
	truncate -s 48M "$scratch/disk"
	"$NETBLK_OUT/netblk_server" --export "disk=file:$scratch/disk?delay-read-ms=100" --listen netblk://127.0.0.1:10809 --listen nbd://127.0.0.1:10810 \
		> "$scratch/server.10809" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening 10809; listening 10810
}
have() {
	case $1 in
		netblk) [ -d /sys/module/net_block_driver ] || insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 server_port=9;;
		nbd) [ -d /sys/module/nbd ] || modprobe nbd;;
		ublk) [ -d /sys/module/ublk_drv ] || modprobe ublk_drv;;
		fuse) modprobe -a fuse loop 2> /dev/null || true; [ -c /dev/fuse ] && [ -c /dev/loop-control ];;
	esac
}
# what DISK EXPRESSION: of the row of the disk, in Python
what() { netblk status --json "$1" | python3 -c "import json, sys; row = json.load(sys.stdin)[0]; print(($2))"; }
holds() { [ "$(what "$1" "$2")" = True ]; }
keys='device way state server protocol name size_bytes read_only lost lost_why generation read_bytes write_bytes errors reconnects last_error pid uses leaving leaving_failed owner in_flight oldest_ms reads writes read_wait_ms write_wait_ms reads_per_s writes_per_s read_mib_per_s write_mib_per_s read_latency_us write_latency_us latency'
# The keys, then WAY, STATE, ... in one look.
all_keys() {
	expect "$(what "$1" '" ".join(sorted(row)), sorted({" ".join(sorted(split)) for split in row["latency"].values()}), row["way"], row["state"], row["owner"], row["protocol"]')" \
		"('$(printf '%s\n' $keys | LC_ALL=C sort | paste -sd ' ')', ['media_us queue_us round_trip_us server_us wire_us'], '$2', 'connected', '$3', '$4')" "keys and row"
}
block=0
read_one() { block=$((block + 1)); dd if="$1" of=/dev/null bs=4k skip=$block count=1 iflag=direct status=none; }

on_way() {
	local way=$1 disk
	have "$way"; start_server; disk=$(netblk attach "$src" --via "$way")
	all_keys "$disk" "$way" exclusive 2
	# a store of 100 ms is the slow part; the network may have a bad moment, which counts in the mean, but not for ever
	slow_store() { read_one "$disk"; holds "$disk" '(lambda read: None not in read.values() and read["media_us"] > read["wire_us"] and read["media_us"] >= 75000)(row["latency"]["read"])'; }
	until_true 300 "the medium to be the slow part" slow_store
	slow_in_table() { read_one "$disk"; netblk status "$disk" > "$scratch/table"; grep -q ' media$' "$scratch/table"; }
	until_true 300 "the medium to be the slow part in the table of one disk" slow_in_table
	stand_still $server_pid
	read_one "$disk" & local reader=$!
	until_true 60 "an old request" holds "$disk" 'row["oldest_ms"] >= 500 and row["in_flight"] >= 1'
	kill -CONT $server_pid; wait $reader
	until_true 60 "nothing in flight again" holds "$disk" 'row["oldest_ms"] == 0'
	expect "$(netblk top --once --interval 0.1 --json "$disk" | python3 -c 'import json, sys; print([sorted(one["latency"]) for one in json.load(sys.stdin)])')" \
		"[['media_us', 'queue_us', 'round_trip_us', 'server_us', 'wire_us']]" "top"
	netblk detach "$disk"
}
# An NBD server's requests go from the kernel to the server: no process sees them, and NBD has no word for its times.
nbd_direct() {
	have nbd; start_server; local disk; disk=$(netblk attach nbd://127.0.0.1:10810/disk --via nbd 2> /dev/null)
	read_one "$disk"; all_keys "$disk" nbd '' nbd
	expect "$(what "$disk" 'row["oldest_ms"], {value for split in row["latency"].values() for value in split.values()}')" '(None, {None})' "what nobody sees"
	netblk detach "$disk"
}
# by our own client the queue and the round trip are seen
nbd_client() {
	have fuse; start_server; local disk; disk=$(netblk attach nbd://127.0.0.1:10810/disk --via fuse 2> /dev/null)
	read_one "$disk"
	holds "$disk" '{name for name, value in row["latency"]["read"].items() if value is None} == {"media_us", "server_us", "wire_us"} and row["latency"]["read"]["round_trip_us"] >= 75000' || fail "$(what "$disk" 'row["latency"]')"
	netblk detach "$disk"
}
none() {
	expect "$(netblk status)" 'nothing is attached' status
	expect "$(netblk status --json)" '[]' 'status --json'
	expect "$(netblk top --once --interval 0.1)" 'nothing is attached' top
	must_fail 'netblk-7 is not attached' netblk top netblk-7
	must_fail 'netblk-7 is not attached' netblk status netblk-7
}
t status-of-nothing none
for way in netblk ublk nbd fuse; do t "status-$way" on_way $way; done
t status-nbd-server-directly nbd_direct
t status-nbd-server-by-our-client nbd_client
