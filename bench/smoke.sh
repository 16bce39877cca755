#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The benchmark programs work, their counts add up, they notice wrong data and lost servers, and run.py's JSON has its
# keys. No time is judged. usage: smoke.sh [TOOLS_DIR]   (build/output/bench; netblk_server is used if it is built)
set -uo pipefail
here=$(dirname "$(readlink -f "$0")"); output=$here/../build/output; tools=${1:-$output/bench}
work=$(mktemp -d "${TMPDIR:-/tmp}/netblk-smoke.XXXXXX"); server=
passed=0 failed=0 skipped=0
stop() { [ -z "$server" ] || { kill "$server"; wait "$server"; } 2>/dev/null; server=; }
trap 'stop; rm -rf "$work"' EXIT

pass() { echo "PASS $1"; passed=$((passed + 1)); }
fail() { echo "FAIL $1: $2"; failed=$((failed + 1)); }
skip() { echo "SKIP $1: $2"; skipped=$((skipped + 1)); }
finish() {
	echo "suite bench-smoke: $passed passed, $failed failed, $skipped skipped"
	[ "$failed" = 0 ]; exit
}

# start MODE [OPTION...]: a floor; sets `server` and `port`
start() {
	stop
	: > "$work/port"
	"$tools/bench_floor" "$@" > "$work/port" & server=$!
	for _ in {1..1200}; do
		read -r word port < "$work/port" && [ "$word" = port ] && return 0
		kill -0 "$server" 2>/dev/null || break
		sleep 0.05
	done
	return 1
}
# served: until a client of the server at $port has had many replies
served() { for _ in {1..1200}; do ss -HtniO state established "sport = :$port" | grep -qE ' bytes_acked:[0-9]{6}' && return; sleep 0.05; done; }
load() { "$tools/bench_load" --port "$port" --seconds 0.2 --warmup 0.05 --span 8M "$@" > "$work/json" 2> "$work/err"; }

# judge NAME STATUS EXPRESSION: the status is 0 and the Python expression over the result `r` holds
judge() {
	local why
	if [ "$2" != 0 ]; then fail "$1" "status $2: $(tr '\n' ' ' < "$work/err") $(head -c 300 "$work/json")"; return; fi
	why=$(python3 -c 'import json,sys
r = json.load(open(sys.argv[1]))
if not eval("(" + sys.argv[2] + ")"): print(sys.argv[2], "does not hold for", r)' "$work/json" "$3" 2>&1)
	if [ -z "$why" ]; then pass "$1"; else fail "$1" "${why//$'\n'/ }"; fi
}
counts='r["sent"] == r["answered"] >= r["requests"] > 0 and r["errors"] == r["unanswered"] == r["miscompares"] == 0'
latency='0 < r["p50_us"] <= r["p99_us"] <= r["max_us"] * 1.04'
keys='{"iops", "mib_per_s", "p50_us", "p99_us", "errors"} <= set(r)'

for program in bench_floor bench_floor_nbd bench_load bench_load2 bench_stream bench_large_read bench_sync_loop bench_volume_index; do
	[ -x "$tools/$program" ] || { fail "$program" "not built in $tools"; finish; }
done

start echo --in 13 --out 4097 || fail echo "did not start"
load --server-pid "$server"; judge echo-read $? "$counts and $latency and $keys and r['server_cpu_us_per_request'] > 0"
start echo --in 4109 --out 1 || fail echo "did not start"
load --rw randwrite --depth 8; judge echo-write $? "$counts"

checked="$counts and r['checked'] > 0"
for mode in memory "file --path $work/image" "file --durable --path $work/image"; do
	name=${mode// --path*/}; name=floor-${name// --/-}
	# shellcheck disable=SC2086  # the mode is words
	start $mode --size 16M || fail "$name" "did not start"
	load --check --fill --rw randrw; judge "$name-qd1" $? "$checked"
	load --check --fill --rw randrw --depth 32 --connections 4 --threads 2; judge "$name-pipelined" $? "$checked"
	load --check --fill --rw randrw --depth 4 --connections 2 --bs 1M; judge "$name-large" $? "$checked"
	load --check --fill --rw read --idle 20 --server-pid "$server"
	judge "$name-idle" $? "$checked and r['idle_connections'] == 20 and r['rss_start_bytes'] > 0"
done

# What must not pass: a store without the pattern, and a server that goes away.
start memory --size 16M || fail miscompare "did not start"
load --check --rw read; status=$?
if [ "$status" = 1 ]; then judge miscompare 0 "r['miscompares'] == r['checked'] == r['errors'] > 0"
else fail miscompare "status $status, not 1"; fi
"$tools/bench_load" --port "$port" --seconds 600 --span 8M --rw randrw > "$work/json" 2> "$work/err" & client=$!
served; stop; wait "$client"; status=$?
if [ "$status" = 1 ]; then judge server-lost 0 "r['errors'] > 0"; else fail server-lost "status $status, not 1"; fi
load; status=$?
if [ "$status" = 1 ] && grep -q "cannot connect" "$work/err"; then pass no-server
else fail no-server "status $status: $(cat "$work/err")"; fi

for threads in 1 8; do
	"$tools/bench_sync_loop" --path "$work/sync" --span 4M --threads $threads --seconds 0.2 > "$work/json" 2> "$work/err"
	judge "sync-loop-$threads" $? "$keys and r['errors'] == 0 and r['requests'] > 0 and r['threads'] == $threads"
done

"$tools/bench_volume_index" ours --dir "$work" --entries 30000 --batch 3000 --rounds 2 --lookups 3000 --cache-mib 1 > "$work/lines" 2> "$work/err"
status=$?
if [ "$status" = 0 ] && [ "$(cut -c-9 "$work/lines" | tr -d '\n')" = "fill     overwritelook up  again    size     " ]; then pass volume-index
else fail volume-index "status $status: $(cat "$work/err" "$work/lines" | tr '\n' ' ')"; fi

head -c 64M /dev/zero > "$work/large"
"$tools/bench_large_read" "$work/large" 64K 0.05 --crc > "$work/lines" 2> "$work/err"; status=$?
tail -n 1 "$work/lines" > "$work/json"
judge large-read $status "r['crc'] and r['way'] == 'zerocopy' and r['mib_per_s'] > 0"
if [ "$(wc -l < "$work/lines")" = 4 ]; then pass large-read-ways; else fail large-read-ways "$(wc -l < "$work/lines") lines, not 4"; fi

# rows OPTION...: run.py, into json and err; sets `status`. A measurement that began while the machine stood still has nothing to
# tell, and says so: longer ones follow.
rows() {
	local seconds
	for seconds in 0.1 1 5; do
		python3 "$here/run.py" "$@" --tools "$tools" --server "$server_binary" --seconds $seconds --rounds 1 --json "$work/json" \
			> "$work/tables" 2> "$work/err"
		status=$?
		[ $status != 0 ] || break
	done
	sed -i '/^  /d' "$work/err"
}
io=uring server_binary=$output/netblk_server
if [ -x "$server_binary" ]; then io=both; else skip run-netblk "$server_binary is not built"; fi
rows read-one read-deep read-large write durable connections idle-memory idle-beside --io $io --warmup 0.05 --idle 50
judge run-all-rows $status "set(r) == {'date', 'machine', 'command', 'failures', 'results'} and r['failures'] == [] and
	{x['row'] for x in r['results']} == {'read-one', 'read-deep', 'read-large', 'write', 'durable', 'connections', 'idle-memory', 'idle-beside'} and
	all(x['median']['errors'] == 0 and len(x['rounds']) == 1 for x in r['results'])"
tables=$(grep -c '^### ' "$work/tables")
if [ "$tables" = 8 ]; then pass run-tables; else fail run-tables "$tables tables, not 8"; fi

[ -x "$server_binary" ] || { skip load2 "$server_binary is not built"; finish; }
stop
# serve2: sets `server` and `port`. The port is none of those that the suites beside it choose (from 11000), nor of those
# that the system gives; who has it already ends the server at once.
serve2() {
	for try in {0..19}; do
		port=$((1100 + ($$ + try * 97) % 9600))
		"$server_binary" --export a=mem:16M --listen "netblk://127.0.0.1:$port" > "$work/log" 2>&1 & server=$!
		for _ in {1..1200}; do
			ss -Htlnp "sport = :$port" | grep -q "pid=$server," && return 0
			kill -0 "$server" 2> /dev/null || break
			sleep 0.05
		done
		kill "$server" 2> /dev/null; wait "$server" 2> /dev/null
	done
	server=
	return 1
}
serve2 || { fail load2 "no server started: $(tr '\n' ' ' < "$work/log")"; finish; }
load2() { "$tools/bench_load2" --port "$port" --seconds 0.5 --warmup 0.05 "$@" > "$work/json" 2> "$work/err"; }
for _ in {1..600}; do load2 --fill && break; sleep 0.1; done
counts2='r["requests"] > 0 and r["errors"] == 0 and r["iops"] > 0 and 0 < r["p50_us"] <= r["p99_us"]'
load2 --rw randrw --connections 4 --threads 2 --server-pid "$server"
judge load2-threads $? "$counts2 and r['crc32c'] and r['threads'] == 2 and r['server_cpu_us_per_request'] > 0"
load2 --rw write --bs 1M --depth 4 --no-crc --epoll; judge load2-epoll $? "$counts2 and not r['crc32c']"
"$tools/bench_load2" --port "$port" --seconds 600 > "$work/json" 2> "$work/err" & client=$!
served; kill -9 "$server"; wait "$server" 2> /dev/null; server=;
if kill -0 "$client" 2> /dev/null; then pass load2-waits-for-a-lost-server; else fail load2-waits-for-a-lost-server "it ended"; fi
kill "$client"; wait "$client" 2> /dev/null
load2; status=$?
if [ "$status" = 1 ] && grep -q "cannot connect" "$work/err"; then pass load2-no-server
else fail load2-no-server "status $status: $(cat "$work/err")"; fi
rows client sequential crc memory2 large-read --warmup 0.05 --depths 32 --connections 1
judge run-rows2 $status "r['failures'] == [] and {x['row'] for x in r['results']} == {'client', 'sequential', 'crc', 'memory2', 'large-read'} and
	all(x['median']['errors'] == 0 and len(x['rounds']) == 1 for x in r['results'])"
if ! command -v fio > /dev/null || ! command -v nbdcopy > /dev/null; then skip run-nbd "no fio or no nbdcopy here"; finish; fi
rows nbd nbdcopy --nbd-mib 32
judge run-nbd $status "r['failures'] == [] and {x['row'] for x in r['results']} == {'nbd', 'nbdcopy'} and
	{'floor memory', 'floor file', 'netblk memory', 'netblk file'} <= {x['peer'] for x in r['results'] if x['row'] == 'nbd'} and
	all(x['median']['errors'] == 0 and len(x['rounds']) == 1 for x in r['results'])"
finish
