# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the cases, which run inside a guest. A test is a function; `t NAME FUNCTION` runs it in a shell of its own
# under `set -e` and prints PASS, FAIL or SKIP. What it leaves (a module, a server, a mount) is taken down after it.
export LC_ALL=C
vm=$NETBLK_ROOT/tests/vm
sysfs=/sys/block/netblk
mnt=/mnt/netblk
scratch=/tmp/netblk-case; mkdir -p "$scratch" "$mnt"
# NETBLK_SERVER chooses: netblk_server when it is built, or the one that others might have written
netblk_server=${NETBLK_SERVER:-$NETBLK_OUT/netblk_server}
[ -x "$netblk_server" ] || netblk_server=$vm/simple_server.py
only=${1:-.} ROUNDS=${2:-}
[ -n "$only" ] || only=.
t_failed=0 t_count=0

tell() { echo "# $*"; }
fail() { echo "$*" > "$scratch/reason"; exit 1; }
skip() { echo "$*" > "$scratch/reason"; exit 77; }

t() {
	local name=$1 status reason; shift
	[[ $name =~ $only ]] || return 0
	rm -f "$scratch/reason"; t_count=$((t_count+1))
	( set -eE; trap 'r=$?; [ -s "$scratch/reason" ] || echo "status $r of: $BASH_COMMAND (${BASH_SOURCE[0]##*/}:$LINENO)" > "$scratch/reason"' ERR; "$@" ) > "$scratch/log" 2>&1
	status=$?
	# before anything is taken down: what fails may take the guest with it
	reason=$(cat "$scratch/reason" 2>/dev/null || echo "exit status $status")
	case $status in 0|77) ;; *) echo "# $name fails: $reason"; tail -5 "$scratch/log" | sed 's/^/# | /';; esac
	take_down >> "$scratch/log" 2>&1 || { [ $status != 0 ] || { status=1; reason="cannot take down: $(tail -1 "$scratch/log")"; }; }
	case $status in
		0) echo "PASS $name";;
		77) echo "SKIP $name: $reason";;
		*) t_failed=$((t_failed+1)); echo "FAIL $name: $reason"
			sed 's/^/# | /' "$scratch/log" | tail -30; dmesg | tail -12 | sed 's/^/# k /';;
	esac
}
# both NAME FUNCTION: the test once with each version of the protocol
both() {
	local name=$1; shift
	PROTOCOL=1 t "$name-netblk1" "$@"
	[ "$netblk_server" = "$vm/simple_server.py" ] || PROTOCOL=2 t "$name-netblk2" "$@"
}
finish() { [ "$t_count" -gt 0 ] || { echo "FAIL no test ran"; exit 1; }; [ $t_failed = 0 ]; exit; }

# ---- servers ----

# listening PORT: wait until somebody listens
listening() {
	local i
	for i in $(seq 1200); do [ -z "$(ss -Hltn "sport = :$1")" ] || return 0; sleep 0.05; done
	fail "nobody listens on port $1: $(cat "$scratch/server.$1" 2>/dev/null | tail -2)"
}
# serve PORT FILE SIZE_MB: the pid is in server_pid
serve() {
	"$netblk_server" "$@" > "$scratch/server.$1" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$1"
}
serve_simple() { local netblk_server=$vm/simple_server.py; serve "$@"; }
hostile() {
	python3 "$vm/hostile_server.py" "$@" > "$scratch/server.$1" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$1"
}
hostile2() {
	python3 "$vm/hostile2_server.py" "$@" > "$scratch/server.$1" 2>&1 < /dev/null & server_pid=$!
	echo $server_pid >> "$scratch/pids"; listening "$1"
}
kill_server() { kill -KILL "${1:-$server_pid}"; wait "${1:-$server_pid}" 2>/dev/null || true; }
# background COMMAND...: ended at the end of the test
background() { (set +eE; trap - ERR; "$@") & echo $! >> "$scratch/pids"; }

# ---- the driver ----

# PROTOCOL: what a case is about, where it is not what the server speaks
# The machine may stand still for seconds, and everything may take five times as long. Unless a test says otherwise no deadline of
# the driver's is near: the first try has a minute (`patience`, where a server is to be found silent), whatever
# connect_timeout_ms the test wants after it. An id that stays takes the place of an older session that the server has not ended yet.
load() {
	local word wanted=30000 patience=${patience:-60000} end=$((SECONDS + 60))
	for word in "$@"; do case $word in connect_timeout_ms=*) wanted=${word#*=};; esac; done
	[ "$wanted" -le "$patience" ] || patience=$wanted
	insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 client_id=6e65746b6c626b2d7465737473000001 io_timeout_ms=30000 heartbeat_ms=20000 \
		${PROTOCOL:+protocol=$PROTOCOL} "$@" connect_timeout_ms="$patience" || return
	attr connect_timeout_ms "$wanted"
	until [ "$(state) $(cat $sysfs/reason)" != 'error the server is not ready' ] || [ $SECONDS -ge $end ]; do attr connect 1 2> /dev/null || sleep 0.1; done
}
# Whoever unmounted or closed it may not be quite through; a use that stays is a failure.
unload() {
	local end=$((SECONDS + 60))
	until within 60 rmmod net_block_driver 2> "$scratch/rmmod"; do
		grep -q 'in use' "$scratch/rmmod" && [ $SECONDS -lt $end ] || fail "$(cat "$scratch/rmmod")"
		sleep 0.1
	done
}
state() { cat $sysfs/state; }
stat_of() { awk -v key="$1:" '$1 == key {print $2}' $sysfs/stats; }
attr() { echo "$2" > "$sysfs/$1"; }
# EAGAIN: the server is still ending the session of before (it answers a farewell within 200 ms, or later)
connect() {
	local end=$((SECONDS + 60))
	until attr connect 1 2> "$scratch/connect"; do
		grep -q 'temporarily unavailable' "$scratch/connect" && [ $SECONDS -lt $end ] || { cat "$scratch/connect" >&2; return 1; }
		sleep 0.1
	done
}
disconnect() { attr disconnect 1; }
wait_state() {
	local i
	for i in $(seq $((${2:-120} * 20))); do [ "$(state)" = "$1" ] && return 0; sleep 0.05; done
	fail "state is $(state), not $1, after ${2:-120} s"
}
# until_true SECONDS WHAT COMMAND...: until it succeeds; the bound, thrice that, only ends a hopeless wait
until_true() {
	local end=$((SECONDS + 3 * $1)) what=$2; shift 2
	until "$@" > /dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "$what did not come about"; sleep 0.05; done
}
. "$NETBLK_ROOT/tests/stand_still.sh"
# A request is seen to be through by who waited for it before the block layer has let go of it.
none_in_flight() { until_true 60 "no request in flight" eval "[ \$(awk '{print \$1 + \$2}' $sysfs/inflight) = 0 ]"; }
expect() { [ "$1" = "$2" ] || fail "${3:-value} is '$1', expected '$2'"; }
# must_fail ERRNO-TEXT COMMAND...: fails, and says this
must_fail() {
	local text=$1; shift
	if "$@" > "$scratch/said" 2>&1; then fail "succeeded: $*"; fi
	grep -qi -- "$text" "$scratch/said" || fail "'$*' said '$(cat "$scratch/said")', expected '$text'"
}
# within SECONDS COMMAND...: a bound against hanging, wide enough for an emulated processor; 124 is a failure of its own
within() { local s=$1 r=0; shift; timeout -k 1 "$s" "$@" || r=$?; [ $r != 124 ] && [ $r != 137 ] || fail "not done after $s s: $*"; return $r; }
said() { dmesg | grep -qE -- "$1" || fail "the kernel log does not say '$1'"; }
random_file() { head -c "$2" /dev/urandom > "$1"; }
drop_caches() { sync; echo 3 > /proc/sys/vm/drop_caches; }
# A file system that flushes nothing by itself, so that what is written stays unflushed until somebody asks: no commit of the
# journal, and no clearing of inode tables some seconds after the mount (ext4lazyinit flushes after the first).
mkfs_no_flush() { mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/netblk; mount -o commit=3600,noinit_itable /dev/netblk $mnt; }
# a quick fio: fio_job NAME OPTION...
fio_job() { local n=$1; shift; fio --name="$n" --filename=/dev/netblk --direct=1 --ioengine=libaio --minimal --output="$scratch/fio.$n" "$@" > /dev/null; }

take_down() {
	local pid i
	umount $mnt 2>/dev/null
	# a partition of it, too: who has pages there dies of a disk that is taken away
	swapoff -a 2>/dev/null
	if [ -d /sys/module/net_block_driver ]; then
		for i in /sys/block/netblk*/disconnect; do [ ! -e "$i" ] || echo 1 > "$i"; done
	fi
	if [ -e "$scratch/pids" ]; then
		while read -r pid; do kill -CONT "$pid" 2>/dev/null; kill -KILL "$pid" 2>/dev/null; done < "$scratch/pids"
		rm -f "$scratch/pids"
	fi
	umount $mnt 2>/dev/null
	for i in $(seq 600); do
		[ -d /sys/module/net_block_driver ] || break
		rmmod net_block_driver 2>/dev/null && break; sleep 0.1
	done
	[ ! -d /sys/module/ram_block_driver ] || rmmod ram_block_driver
	rm -rf "$scratch"/disk*
	[ ! -d /sys/module/net_block_driver ] || { echo "net_block_driver cannot be unloaded"; return 1; }
}
