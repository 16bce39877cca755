# SPDX-License-Identifier: GPL-2.0-only
# Many devices: /sys/bus/netblk/add and remove, their partitions, and who may take them away (K5 to K10, K17, K23).
. "$NETBLK_ROOT/tests/vm/lib.sh"
bus=/sys/bus/netblk
add() { echo "server_ip=127.0.0.1 $*" > $bus/add; }
remove() { echo "$1" > $bus/remove; }
state_of() { cat "/sys/block/$1/state"; }
devices() { (cd /sys/block && ls -d netblk* 2>/dev/null) | sort -V | tr '\n' ' '; }
blackhole() {
	[ -e /sys/class/net/hole ] || { modprobe dummy numdummies=0; ip link add hole type dummy; ip addr add 10.99.0.1/24 dev hole; ip link set hole up; }
	ip neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev hole
}

add_and_remove() {
	random_file "$scratch/disk" 100M; random_file "$scratch/disk-1" 64M
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 64; load
	add server_port=10810 size_mb=64
	expect "$(devices)" 'netblk netblk-1 ' devices
	[ -b /dev/netblk-1 ] || fail "no /dev/netblk-1"
	expect "$(state_of netblk-1)" connected state
	expect "$(blockdev --getsize64 /dev/netblk-1)" 67108864 "size of the second"
	cmp "$scratch/disk-1" /dev/netblk-1; cmp "$scratch/disk" /dev/netblk
	local before; before=$(sha256sum < "$scratch/disk")
	dd if=/dev/zero of=/dev/netblk-1 bs=1M count=3 oflag=direct status=none
	cmp -n 3145728 "$scratch/disk-1" /dev/zero
	expect "$(sha256sum < "$scratch/disk")" "$before" "the first's data after a write to the second"
	# the same attributes, each device's its own
	expect "$(cd /sys/block/netblk-1 && ls)" "$(cd /sys/block/netblk && ls)" "attributes of the second"
	local before; before=$(cat $sysfs/io_timeout_ms)
	echo 777 > /sys/block/netblk-1/io_timeout_ms; expect "$(cat /sys/block/netblk-1/io_timeout_ms $sysfs/io_timeout_ms | tr '\n' ' ')" "777 $before " "time-outs"
	echo 1 > /sys/block/netblk-1/disconnect
	expect "$(state_of netblk-1) $(state)" 'disconnected connected' states
	remove netblk-1
	expect "$(devices)" 'netblk ' "devices after remove"
	[ ! -e /dev/netblk-1 ] || fail "/dev/netblk-1 stays"
	expect "$(state)" connected "state of the first"
	# what a device is made with is the parameters' unless said
	add; expect "$(cat /sys/block/netblk-1/size_mb) $(cat /sys/block/netblk-1/server_port)" '100 10809' defaults
	# /dev/NAME and the bare number name it as well; the first can go too, and its name is the next one's
	remove /dev/netblk-1; add; remove 1; remove netblk; expect "$(devices)" '' devices
	add; expect "$(devices)" 'netblk ' devices
	dd if=/dev/netblk of=/dev/null bs=4096 count=1 iflag=direct status=none
}
numbers() {
	serve 10809 "$scratch/disk" 100; load
	add number=7; add; add; expect "$(devices)" 'netblk netblk-1 netblk-2 netblk-7 ' devices
	must_fail 'exists' add number=7
	must_fail 'exists' add number=0
	remove netblk-1; add; expect "$(devices)" 'netblk netblk-1 netblk-2 netblk-7 ' "devices: the lowest number is taken again"
	add number=1023 size_mb=1; [ -b /dev/netblk-1023 ] || fail "no /dev/netblk-1023"
	unload; expect "$(devices)" '' "devices after rmmod"
	[ ! -e $bus ] || fail "$bus stays"
}
dead_server() {
	load
	add server_port=9; expect "$(state_of netblk-1)" error "state of a device whose server is not there"
	must_fail 'input/output' dd if=/dev/netblk-1 of=/dev/null bs=4096 count=1 iflag=direct status=none
	serve 10809 "$scratch/disk" 100
	echo 10809 > /sys/block/netblk-1/server_port; echo 1 > /sys/block/netblk-1/connect
	expect "$(state_of netblk-1)" connected state
}
K17_add() {
	serve 10809 "$scratch/disk" 100; load
	local words
	for words in x = =1 server_ip server_ip= server_ip=x server_ip=0.0.0.0 server_ip=224.0.0.1 server_port=0 server_port=65536 size_mb=0 size_mb=-1 \
		size_mb=9223372036854775808 size_mb=18446744073709551615 size_mb=18446744073709551616 size_mb=8796093022208 size_mb=1x queue_depth=0 queue_depth=4097 \
		protocol=9 number=-1 number=1024 number=x colour=red 'size_mb=1 x' 'size_mb =1' max_retries=1001 dead_time_ms=4294967296 "$(printf '9%.0s' $(seq 3000))"; do
		must_fail 'invalid argument' add "$words"
		expect "$(devices)" 'netblk ' "devices after '$words'"
	done
	must_fail 'invalid argument' eval "printf 'size_mb=1\0number=3' > $bus/add"
	for words in '' ' ' x netblk- netblk-0 netblk-01 netblk-x netblk-1024 netblk1 netblkp1 -1 1024 /dev/ /dev/netblk/ ../netblk 99999999999999999999; do
		must_fail 'invalid argument' remove "$words"
	done
	must_fail 'no such device' remove netblk-1
	must_fail 'no such device' remove 1023
	must_fail 'denied\|permission\|input/output' cat $bus/add
	expect "$(devices) $(state)" 'netblk  connected' "what is there after all that"
}
K8_remove_in_use() {
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 100; load; add server_port=10810
	exec 5< /dev/netblk-1
	must_fail 'busy' remove netblk-1
	must_fail 'in use' rmmod net_block_driver
	exec 5<&-
	printf 'label: dos\n,50M\n' | sfdisk -q /dev/netblk-1
	mkfs.ext4 -q /dev/netblk-1p1; mount /dev/netblk-1p1 $mnt
	must_fail 'busy' remove netblk-1
	must_fail 'in use' rmmod net_block_driver
	echo works > $mnt/file; sync -f $mnt
	remove netblk 2>/dev/null; expect "$(devices)" 'netblk-1 ' devices
	umount $mnt
	# a server that hangs holds up no removal; whoever unmounted may not be quite through
	stand_still $server_pid; until_true 60 "the removal" timeout -k 1 60 bash -c "echo netblk-1 > $bus/remove"; kill -CONT $server_pid
	expect "$(devices)" '' devices
	unload
}
K8_unload_while_adding() {
	blackhole; serve 10809 "$scratch/disk" 100; load connect_timeout_ms=600000
	bash -c "echo server_ip=10.99.0.2 > $bus/add" 2> "$scratch/said-add" & local adder=$! i
	for i in $(seq 2400); do grep -qs . /sys/block/netblk-1/state && break; ss -Htn state syn-sent | grep -q 10.99.0.2 && break; sleep 0.05; done
	must_fail 'no such device' remove netblk-1
	within 60 rmmod net_block_driver
	wait $adder && fail "an add succeeded while the module went" || true
	expect "$(devices)" '' devices
}
# a signal ends the wait of an add, and what was begun is gone
K18_add() {
	blackhole; serve 10809 "$scratch/disk" 100; load connect_timeout_ms=600000
	bash -c "echo server_ip=10.99.0.2 > $bus/add" & local adder=$! i
	for i in $(seq 2400); do ss -Htn state syn-sent | grep -q 10.99.0.2 && break; sleep 0.05; done
	kill -KILL $adder; within 60 tail --pid=$adder -f /dev/null
	add; expect "$(devices)" 'netblk netblk-1 ' "devices after a killed add"
	within 60 rmmod net_block_driver
}
partitions() {
	serve 10809 "$scratch/disk" 100; serve 10810 "$scratch/disk-1" 100; load; add server_port=10810
	printf 'label: gpt\n,20M\n,30M\n' | sfdisk -q /dev/netblk
	printf 'label: dos\n,20M\n,30M\n' | sfdisk -q /dev/netblk-1
	local n
	for n in netblk1 netblk2 netblk-1p1 netblk-1p2; do [ -b /dev/$n ] || fail "no /dev/$n: $(ls /dev/netblk*)"; done
	expect "$(blockdev --getsize64 /dev/netblk1) $(blockdev --getsize64 /dev/netblk-1p2)" '20971520 31457280' "sizes of partitions"
	mkfs.ext4 -q /dev/netblk2; mount /dev/netblk2 $mnt; random_file $mnt/blob 8M; local sum; sum=$(sha256sum < $mnt/blob); umount $mnt
	unload; [ ! -e /dev/netblk1 ] || fail "/dev/netblk1 stays"
	# loading finds the table, and so does the first open after a connect that loading could not make
	load; [ -b /dev/netblk2 ] || fail "loading did not find the partitions"
	mount /dev/netblk2 $mnt; expect "$(sha256sum < $mnt/blob)" "$sum" "a file in the second partition"; umount $mnt
	unload; load server_port=9; [ ! -e /dev/netblk1 ] || fail "partitions without a server"
	attr server_port 10809; connect; : < /dev/netblk; [ -b /dev/netblk2 ] || fail "connect and open did not find the partitions"
	# another server, another table
	kill_server; disconnect; rm "$scratch/disk-1"; truncate -s 100M "$scratch/disk-1"; printf 'label: dos\n,9M\n' | sfdisk -q "$scratch/disk-1"
	serve 10810 "$scratch/disk-1" 100; attr server_port 10810; connect; : < /dev/netblk
	expect "$(cd /dev && echo netblk[0-9]*)" netblk1 "partitions after the move"
	expect "$(blockdev --getsize64 /dev/netblk1)" 9437184 "size of the first partition after the move"
}
many() {
	serve 10809 "$scratch/disk" 100; load queue_depth=8 access=shared
	local n writers=() count=${ROUNDS:-24}
	for n in $(seq "$count"); do add; done
	expect "$(devices | wc -w)" $((count + 1)) devices
	for n in $(seq "$count"); do
		dd if=/dev/zero of=/dev/netblk-$n bs=4096 seek=$n count=1 oflag=direct status=none & writers+=($!)
	done
	for n in "${writers[@]}"; do wait "$n"; done
	expect "$(cat /sys/block/netblk*/client_id | sort -u | wc -l)" $((count + 1)) "different clients"
	until_true 120 "that all are connected" eval "[ \"\$(cat /sys/block/netblk*/state | sort | uniq -c | tr -s ' ')\" = ' $((count + 1)) connected' ]"
	unload
}
K23_cycles() {
	serve 10809 "$scratch/disk" 100; load access=shared
	# the kernel gives a number back when the last trace of its disk has gone, and it gives the lowest one that is free: the
	# next one may be taken meanwhile, but after all the cycles the first comes again
	local n number first
	number() { add; cat /sys/block/netblk-1/dev; remove netblk-1; }
	for n in $(seq "${ROUNDS:-60}"); do number; done > "$scratch/numbers"
	expect "$(wc -l < "$scratch/numbers")" "${ROUNDS:-60}" cycles
	first=$(head -1 "$scratch/numbers")
	first_again() { number=$(number); [ "${number%:*}" = "${first%:*}" ] && [ "${number#*:}" -le "${first#*:}" ]; }
	until_true 60 "the number of the first, $first, after ${ROUNDS:-60} cycles ($(sort -u "$scratch/numbers" | tr '\n' ' '))" first_again
	expect "$(devices)" 'netblk ' devices
	[ ! -e /dev/netblk-1 ] || fail "/dev/netblk-1 stays"
}
adder() { while :; do for n in 1 2 3; do echo "number=$n server_ip=127.0.0.1 connect_timeout_ms=500 dead_time_ms=2000" > $bus/add; done; done 2>/dev/null; }
remover() { while :; do for n in 3 1 2; do echo netblk-$n > $bus/remove; done; done 2>/dev/null; }
reader() { while :; do cat /sys/block/netblk*/* /sys/block/netblk*/queue/* /sys/block/netblk*/stat; done > /dev/null 2>&1; }
toggler() { while :; do for n in 1 2 3; do echo 1 > /sys/block/netblk-$n/disconnect; echo 1 > /sys/block/netblk-$n/connect; done; done 2>/dev/null; }
opener() { while :; do for n in 1 2 3; do blockdev --rereadpt /dev/netblk-$n; dd if=/dev/netblk-$n of=/dev/null bs=64k count=4 iflag=direct; done; done > /dev/null 2>&1; }
K5_storm() {
	serve 10809 "$scratch/disk" 100; printf 'label: dos\n,20M\n,30M\n' | sfdisk -q "$scratch/disk"
	load access=shared
	local worker
	dmesg -C
	for worker in adder remover reader toggler opener remover; do background $worker; done
	sleep "${ROUNDS:-6}"
	until_true 120 "adding and connecting" eval "[ \$(dmesg | grep -c 'netblk-[123]: connected') -gt 6 ]"
	expect "$(state)" connected "the first device's state"
}
# unloading while others add and remove: it goes as soon as nobody has a device open
K9_unload_storm() {
	serve 10809 "$scratch/disk" 100
	background adder; background remover; background reader; background opener
	local n
	for n in $(seq "${ROUNDS:-6}"); do
		load access=shared; sleep 0.$((RANDOM % 5))
		until_true 120 "unload $n" rmmod net_block_driver
	done
}
t add-and-remove add_and_remove
t numbers numbers
t add-without-a-server dead_server
t K17-nonsense-to-add-and-remove K17_add
t K8-remove-in-use K8_remove_in_use
t K8-unload-while-adding K8_unload_while_adding
t K18-killed-add K18_add
t partitions partitions
t many-devices many
t K23-add-remove-cycles K23_cycles
t K5-K6-K7-K10-storm-of-devices K5_storm
t K9-unload-under-add-and-remove K9_unload_storm
finish
