# SPDX-License-Identifier: GPL-2.0-only
# What the driver tells about its work: /sys/block/netblk/statistics/ and the tracepoints.
. "$NETBLK_ROOT/tests/vm/lib.sh"
count_of() { cat "$sysfs/statistics/$1"; }
# the sum of a histogram, and the count of what took up to $2 microseconds
histogram_sum() { awk '{sum += $2} END {print sum}' "$sysfs/statistics/$1"; }
histogram_below() { awk -v limit="$2" '$1 != "inf" && $1 <= limit {sum += $2} END {print sum + 0}' "$sysfs/statistics/$1"; }
tracing() {
	tracefs=/sys/kernel/tracing
	[ -e $tracefs/events ] || mount -t tracefs none $tracefs
	[ -d $tracefs/events/netblk ] || fail "no tracepoints in $tracefs/events/netblk"
	echo > $tracefs/trace; echo 1 > $tracefs/events/netblk/enable; echo 1 > $tracefs/tracing_on
}
trace_end() { echo 0 > $tracefs/events/netblk/enable; }
traced() { grep -c "netblk_$1: " $tracefs/trace; }

counts() {
	serve 10809 "$scratch/disk" 100; load
	local r w b
	r=$(count_of read_requests) w=$(count_of write_requests) b=$(count_of read_bytes)
	dd if=/dev/zero of=/dev/netblk bs=64k count=20 oflag=direct status=none
	dd if=/dev/netblk of=/dev/null bs=4k count=50 iflag=direct status=none
	expect $(($(count_of write_requests) - w)) 20 write_requests
	expect $(($(count_of read_requests) - r)) 50 read_requests
	expect $(($(count_of read_bytes) - b)) 204800 read_bytes
	expect "$(count_of read_bytes) $(count_of write_bytes) $(count_of errors)" \
		"$(stat_of read_bytes) $(stat_of write_bytes) $(stat_of errors)" "the same in statistics as in stats"
	expect "$(histogram_sum read_latency_us) $(histogram_sum write_latency_us)" "$(count_of read_requests) $(count_of write_requests)" "sums of the histograms"
	expect "$(cut -d' ' -f1 $sysfs/statistics/read_latency_us | tr '\n' ' ')" "$(for n in $(seq 0 26); do printf '%d ' $((1 << n)); done)inf " "bounds of the histogram"
	expect "$(command stat -c %a $sysfs/statistics/* | sort -u)" 444 "modes"
	expect "$(count_of reconnects)" 0 reconnects
	must_fail 'denied\|permission\|input/output' eval "echo 0 > $sysfs/statistics/errors"
}
split_of() { awk -v word="$2" '$1 == word {print $2}' "$sysfs/statistics/$1_split_ns"; }
# netblk/2 tells of every reply, and of no more time than went by; netblk/1 tells nothing
split() {
	serve 10809 "$scratch/disk" 100; load protocol=2
	dd if=/dev/zero of=/dev/netblk bs=64k count=20 oflag=direct conv=fsync status=none
	dd if=/dev/netblk of=/dev/null bs=4k count=50 iflag=direct status=none
	local kind
	for kind in read write flush; do
		until_true 60 "the times of all ${kind}s" eval "[ \$(split_of $kind told) -eq \$(count_of ${kind}_requests) ]"
		[ "$(split_of $kind told)" -gt 0 ] || fail "no $kind was told of"
		[ "$(split_of $kind told_round_trip)" -gt 0 ] || fail "no time went by"
		[ $(($(split_of $kind server) + $(split_of $kind store))) -le "$(split_of $kind told_round_trip)" ] || fail "$kind: the server had it longer than it took"
	done
	until_true 60 "no request any more" eval '[ "$(count_of oldest_ms)" = 0 ]'
	disconnect; echo 1 > $sysfs/protocol
	local told; told=$(split_of read told)
	echo 1 > $sysfs/connect; wait_state connected
	dd if=/dev/netblk of=/dev/null bs=4k count=50 iflag=direct status=none
	expect "$(split_of read told)" "$told" "told by netblk/1"
	expect "$(count_of errors)" 0 errors
}
# each device's are its own
counts_of_each() {
	serve 10809 "$scratch/disk" 100; load access=shared; echo "server_ip=127.0.0.1 access=shared" > /sys/bus/netblk/add
	local before; before=$(count_of write_requests)
	dd if=/dev/zero of=/dev/netblk-1 bs=4k count=7 oflag=direct status=none
	expect "$(cat /sys/block/netblk-1/statistics/write_requests)" 7 "write_requests of the second"
	expect "$(count_of write_requests)" "$before" "write_requests of the first"
}
# a server that holds its answers back for half a second: the histogram says so, and a loss is a reconnect and no error
slow() {
	serve 10809 "$scratch/disk" 100; load max_retries=1000 connect_timeout_ms=3000 dead_time_ms=600000
	local below sum; sum=$(histogram_sum read_latency_us)
	stand_still $server_pid
	dd if=/dev/netblk of=/dev/null bs=4k count=1 skip=99 iflag=direct status=none & local reader=$!
	until_true 60 "a read in flight" eval "[ \$(awk '{print \$1}' $sysfs/inflight) = 1 ]"
	until_true 60 "the age of the read" eval "[ \$(count_of oldest_ms) -ge 600 ]"
	kill -CONT $server_pid; wait $reader
	until_true 60 "no request any more" eval "[ \$(count_of oldest_ms) -eq 0 ]"
	below=$(histogram_below read_latency_us 262144)
	expect $(($(histogram_sum read_latency_us) - sum)) 1 "reads counted"
	[ $(($(histogram_sum read_latency_us) - below)) -ge 1 ] || fail "no read of half a second in: $(tr '\n' ' ' < $sysfs/statistics/read_latency_us)"
	kill_server; wait_state connecting; serve 10809 "$scratch/disk" 100; wait_state connected
	# the kernel of a server that dies may accept once more
	local reconnects; reconnects=$(count_of reconnects)
	[ "$reconnects" -ge 1 ] || fail "no reconnect counted"
	expect "$(count_of errors)" 0 errors
	disconnect; dd if=/dev/netblk of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null && fail "a read while disconnected"
	[ "$(count_of errors)" -gt 0 ] || fail "no error counted"
	expect "$(count_of errors)" "$(stat_of errors)" errors
	connect; expect "$(count_of reconnects)" "$reconnects" "reconnects after a connect by hand"
}
traces() {
	serve 10809 "$scratch/disk" 100; load max_retries=1000 connect_timeout_ms=3000 dead_time_ms=600000; tracing
	dd if=/dev/zero of=/dev/netblk bs=8k seek=3 count=1 oflag=direct status=none
	dd if=/dev/netblk of=/dev/null bs=4k skip=5 count=4 iflag=direct status=none
	grep -qE 'netblk_issue: netblk queue=[0-9]+ tag=[0-9]+ write sector=48 bytes=8192$' $tracefs/trace || fail "no issue of the write: $(tail -12 $tracefs/trace)"
	grep -qE 'netblk_complete: netblk queue=[0-9]+ tag=[0-9]+ write sector=48 bytes=8192 error=0 latency_ns=[1-9][0-9]+$' $tracefs/trace ||
		fail "no completion of the write: $(tail -12 $tracefs/trace)"
	expect "$(traced issue) $(traced complete) $(traced reconnect)" '5 5 0' "events"
	# a request that is sent again is issued once more, and completed once
	stand_still $server_pid; local old=$server_pid
	dd if=/dev/netblk of=/dev/null bs=4k skip=77 count=1 iflag=direct status=none & local reader=$!
	until_true 120 "the read" grep -q 'issue: .*read sector=616 ' $tracefs/trace
	kill_server $old; serve 10809 "$scratch/disk" 100; wait $reader
	[ "$(grep -c "netblk_issue: .*sector=616 " $tracefs/trace)" -ge 2 ] || fail "a replayed read was issued once"
	expect "$(grep -c "netblk_complete: .*sector=616 " $tracefs/trace)" 1 "completions of a replayed read"
	grep -qE 'netblk_reconnect: netblk queue=0 tries=[1-9][0-9]* lost_ms=[0-9]+$' $tracefs/trace || fail "no reconnect: $(tail -5 $tracefs/trace)"
	disconnect; dd if=/dev/netblk of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null && fail "a read while disconnected"
	trace_end
	# off is off, and the module goes with its events enabled
	local events; events=$(traced issue); connect; dd if=/dev/netblk of=/dev/null bs=4k count=4 iflag=direct status=none
	expect "$(traced issue)" "$events" "events after they were switched off"
	echo 1 > $tracefs/events/netblk/enable; unload
	[ ! -d $tracefs/events/netblk ] || fail "the tracepoints stay"
}
t statistics-add-up counts
t statistics-split split
t statistics-of-each-device counts_of_each
t statistics-of-a-slow-and-a-lost-server slow
t tracepoints traces
finish
