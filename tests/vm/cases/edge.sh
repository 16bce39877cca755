# SPDX-License-Identifier: GPL-2.0-only
# K2: answers that come when the time-out does. Each request ends once, with its own bytes: a late answer is never taken
# for that of the request that was sent again. ROUNDS is the number of requests.
. "$NETBLK_ROOT/tests/vm/lib.sh"
file=$scratch/disk-h count=${ROUNDS:-96} threads=16
# the time-out is by a deadline that the server cannot see: which half of its answers come in time is chance
edge() {
	random_file "$file" 4M
	if [ "$PROTOCOL" = 1 ]; then hostile 10809 "$file" 4 edge 1 200; else hostile2 10809 "$file" 4 edge 1 200; fi
	load size_mb=4 io_timeout_ms=200 connect_timeout_ms=1000 dead_time_ms=3600000 max_retries=1000 heartbeat_ms=0
	local said ended
	# and which machine needs how many of them until one does not: as many rounds as it takes
	for _ in {1..40}; do
		said=$(within 3600 "$vm/dio.py" mixed /dev/netblk "$file" "$count" $threads)
		ended=$(awk '$1 == "same" || $1 == "ok" {sum += $2} END {print sum + 0}' <<< "$said")
		expect "$ended $(tail -1 <<< "$said")" "$((count / threads * threads)) last writes same" "of $count requests: $(tr '\n' ' ' <<< "$said"), those that ended well"
		expect "$(stat_of errors)" 0 errors; none_in_flight
		[ "$(cat $sysfs/statistics/reconnects)" -eq 0 ] || break
	done
	[ "$(cat $sysfs/statistics/reconnects)" -gt 0 ] || fail "no time-out struck: nothing was tested"
	tell "$count requests, $(cat $sysfs/statistics/reconnects) time-outs" >> "$scratch/told"
	unload
}
# the block layer's own time-out, far shorter than the server's answers: it must complete nothing
block_layer() {
	random_file "$file" 4M
	if [ "$PROTOCOL" = 1 ]; then hostile 10809 "$file" 4 delay 2 300; else hostile2 10809 "$file" 4 edge 1 300; fi
	load size_mb=4 io_timeout_ms=60000 dead_time_ms=3600000 heartbeat_ms=0
	echo 20 > $sysfs/queue/io_timeout
	expect "$(within 600 "$vm/dio.py" mixed /dev/netblk "$file" 32 8 | awk '$1 == "same" || $1 == "ok" {sum += $2} END {print sum, $0}')" \
		"32 last writes same" "requests that ended well"
	expect "$(stat_of errors) $(cat $sysfs/statistics/reconnects) $(state)" "0 0 connected" "errors, reconnects, state"
	unload
}
both K2-answers-at-the-timeout edge
both K2-block-layer-timeout-completes-nothing block_layer
[ ! -s "$scratch/told" ] || cat "$scratch/told"
finish
