# SPDX-License-Identifier: GPL-2.0-only
# Connecting, refusing, blackholes, and unloading in every state (K1, K7, K8, K18).
. "$NETBLK_ROOT/tests/vm/lib.sh"
# a neighbour that never answers: packets to it go into a dummy interface and are lost
blackhole() {
	[ -e /sys/class/net/hole ] || { modprobe dummy numdummies=0; ip link add hole type dummy; ip addr add 10.99.0.1/24 dev hole; ip link set hole up; }
	ip neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev hole
}
reader() { dd if=/dev/netblk of=/dev/null bs=4096 count=1 skip=512 iflag=direct status=none; }

dead_server() {
	# refused is refused, however long a try may take
	within 60 insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1 connect_timeout_ms=600000
	expect "$(state)" error state
	said 'netblk: cannot connect to 127.0.0.1:10809'
	must_fail 'input/output' reader
	must_fail 'refused' connect
	expect "$(state)" error "state after a refused connect"
	serve 10809 "$scratch/disk" 100
	connect; expect "$(state)" connected state
	reader
	unload
}
one_try() {
	# how often a dead server's address is tried while loading: a refusing port is asked once
	background python3 "$vm/hostile_server.py" 10810 "$scratch/disk" 1 accept-close
	local before after
	before=$(awk '/^Tcp:/ && $6 ~ /^[0-9]+$/ {print $6}' /proc/net/snmp)
	insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1
	after=$(awk '/^Tcp:/ && $6 ~ /^[0-9]+$/ {print $6}' /proc/net/snmp)
	expect $((after - before)) 1 "connections tried while loading"
}
load_blackhole() {
	blackhole
	within 60 insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=10.99.0.2 connect_timeout_ms=1000
	expect "$(state)" error state
	must_fail 'input/output' reader
	must_fail 'timed out' connect
	unload
}
disconnect_ends_connect() {
	blackhole; load
	attr server_ip 10.99.0.2; attr connect_timeout_ms 600000
	attr connect 1 > "$scratch/said-connect" 2>&1 & local waiter=$!
	wait_state connecting
	within 60 bash -c "echo 1 > $sysfs/disconnect"
	expect "$(state)" disconnected state
	if wait $waiter; then fail "the interrupted connect said that it succeeded"; fi
	grep -qi cancel "$scratch/said-connect" || fail "the interrupted connect said: $(cat "$scratch/said-connect")"
}
K18_signal() {
	blackhole; load
	attr server_ip 10.99.0.2; attr connect_timeout_ms 600000
	bash -c "echo 1 > $sysfs/connect" & local waiter=$!
	wait_state connecting
	kill -KILL $waiter; within 60 tail --pid=$waiter -f /dev/null
	within 60 bash -c "echo 1 > $sysfs/disconnect"
	unload
}
# a signal that the writer handles (here SIGCHLD of a background job) is not the end of a connect
K18_harmless_signal() {
	blackhole; load; attr server_ip 10.99.0.2; attr connect_timeout_ms 2000
	bash -c "trap : CHLD; (sleep 0.4) & echo 1 > $sysfs/connect" > "$scratch/said-connect" 2>&1 || true
	grep -qi 'timed out' "$scratch/said-connect" || fail "connect said: $(cat "$scratch/said-connect")"
}
# SIGKILL of a process that waits for a server that does not answer: gone by the deadline, the device goes on
K18_kill_reader() {
	if [ "$PROTOCOL" = 1 ]; then hostile 10809 "$scratch/disk" 4 silent; else hostile2 10809 "$scratch/disk" 4 silent; fi
	load size_mb=4 io_timeout_ms=1000 dead_time_ms=600000
	dd if=/dev/netblk of=/dev/null bs=4096 count=1 skip=512 iflag=direct status=none & local waiter=$!
	until_true 60 "a request in flight" eval "[ \$(awk '{print \$1}' $sysfs/inflight) = 1 ]"
	kill -KILL $waiter; attr dead_time_ms 4000
	within 60 tail --pid=$waiter -f /dev/null
	unload
}
K8_busy() {
	serve 10809 "$scratch/disk" 100; load
	exec 5< /dev/netblk
	must_fail 'in use' rmmod net_block_driver
	exec 5<&-
	mkfs.ext4 -q /dev/netblk; mount /dev/netblk $mnt
	must_fail 'in use' rmmod net_block_driver
	touch $mnt/still-works; sync -f $mnt
	umount $mnt; unload
}
K8_unload_dead() {
	serve 10809 "$scratch/disk" 100; load
	kill_server
	unload
	serve 10809 "$scratch/disk" 100; load
	if [ "$PROTOCOL" = 1 ]; then hostile 10811 "$scratch/disk2" 100 deaf; else hostile2 10811 "$scratch/disk2" 100 silent; fi
	attr server_port 10811; connect
	unload
	# after I/O errors
	if [ "$PROTOCOL" = 1 ]; then hostile 10812 "$scratch/disk3" 4 error; else hostile2 10812 "$scratch/disk3" 4 eio-data; fi
	load size_mb=4 server_port=10812 dead_time_ms=1000
	must_fail 'input/output' reader
	unload
}
K8_unload_while_connecting() {
	blackhole; serve 10809 "$scratch/disk" 100; load connect_timeout_ms=500 dead_time_ms=600000 max_retries=1000
	attr server_ip 10.99.0.2
	bash -c "echo 1 > $sysfs/connect" 2>/dev/null & local waiter=$!
	within 60 rmmod net_block_driver || { wait $waiter || true; within 60 rmmod net_block_driver; }
	wait $waiter || true
}
connect_twice() {
	serve 10809 "$scratch/disk" 100; load
	connect; connect; expect "$(state)" connected state
	disconnect; disconnect; expect "$(state)" disconnected state
	must_fail 'input/output' reader
	connect; reader
}
disconnect_under_io() {
	serve 10809 "$scratch/disk" 100; load
	local round
	for round in $(seq "${ROUNDS:-8}"); do
		fio --name=d --filename=/dev/netblk --direct=1 --ioengine=libaio --rw=randrw --bs=4k-64k --iodepth=32 --time_based --runtime=3600 --size=64m \
			--minimal --output=/dev/null > /dev/null 2>&1 & local job=$!
		local seen; seen=$(stat_of read_bytes)
		until_true 120 "I/O" eval "[ \$(stat_of read_bytes) -gt $((seen + 100000)) ]"
		sleep 0.$((RANDOM % 10))
		within 60 bash -c "echo 1 > $sysfs/disconnect"
		until_true 120 "the end of fio's I/O after disconnect" eval "! kill -0 $job"
		wait $job && fail "fio saw no error"
		none_in_flight
		connect; reader
	done
	unload
}
t load-dead-server dead_server
t load-tries-once one_try
t load-blackhole load_blackhole
t K1-disconnect-ends-a-blackholed-connect disconnect_ends_connect
t K18-signal-ends-a-connect K18_signal
t K18-handled-signal-does-not-end-a-connect K18_harmless_signal
both K18-killed-reader K18_kill_reader
both K8-busy K8_busy
both K8-unload-with-a-dead-server K8_unload_dead
t K8-unload-while-connecting K8_unload_while_connecting
t connect-twice connect_twice
both K1-disconnect-under-io disconnect_under_io
finish
