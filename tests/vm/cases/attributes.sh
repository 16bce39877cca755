# SPDX-License-Identifier: GPL-2.0-only
# sysfs and module parameters, to the letter of the manual; nonsense changes nothing (K17).
. "$NETBLK_ROOT/tests/vm/lib.sh"

formats() {
	serve 10809 "$scratch/disk" 100; load
	expect "$(cat $sysfs/state | od -c | head -1)" "$(printf 'connected\n' | od -c | head -1)" state
	expect "$(cat $sysfs/server_ip)" 127.0.0.1 server_ip
	expect "$(cat $sysfs/server_port)" 10809 server_port
	head -c 512 /dev/zero > "$scratch/z"; dd if=/dev/netblk of=/dev/null bs=1M count=10 iflag=direct status=none
	expect "$(cut -c1-13 $sysfs/stats | tr '\n' '|')" 'read_bytes:  |write_bytes: |errors:      |' "labels of stats"
	[ "$(grep -cvE '^(read_bytes:  |write_bytes: |errors:      )[0-9]+$' $sysfs/stats)" = 0 ] || fail "stats: $(cat $sysfs/stats)"
	expect "$(wc -l < $sysfs/stats)" 3 "lines of stats"
	expect "$(command stat -c %a $sysfs/state $sysfs/stats $sysfs/connect $sysfs/disconnect $sysfs/server_ip $sysfs/server_port | tr '\n' ' ')" \
		'444 444 200 200 644 644 ' "modes of the attributes"
	disconnect; expect "$(state)" disconnected state
	connect; expect "$(state)" connected state
}
# bytes of known requests, against the kernel's own count
add_up() {
	serve 10809 "$scratch/disk" 100; load
	local r w kr kw
	r=$(stat_of read_bytes) w=$(stat_of write_bytes) kr=$(awk '{print $3}' $sysfs/stat) kw=$(awk '{print $7}' $sysfs/stat)
	dd if=/dev/urandom of=/dev/netblk bs=64k count=48 oflag=direct status=none
	dd if=/dev/netblk of=/dev/null bs=1M count=10 iflag=direct status=none
	dd if=/dev/netblk of=/dev/null bs=512 count=7 iflag=direct status=none
	expect $(($(stat_of write_bytes) - w)) $((48 * 65536)) "write_bytes"
	expect $(($(stat_of read_bytes) - r)) $((10 * 1048576 + 7 * 512)) "read_bytes"
	# which it counts when a request is through, and its waiter may have gone on
	until_true 60 "the kernel's sectors written, after $kw" eval "[ \$((\$(awk '{print \$7}' $sysfs/stat) - kw)) = $((48 * 128)) ]"
	until_true 60 "the kernel's sectors read, after $kr" eval "[ \$((\$(awk '{print \$3}' $sysfs/stat) - kr)) = $((10 * 2048 + 7)) ]"
	expect "$(stat_of errors)" 0 errors
}
nonsense() {
	serve 10809 "$scratch/disk" 100; load
	local value
	for value in '' ' ' 1 1.2.3 1.2.3.4.5 256.1.1.1 1.2.3.-4 a.b.c.d localhost '1.2.3.4 ' ' 1.2.3.4' 1.2.3.4x '1.2.3.4/24' ::1 0.0.0.0 224.0.0.1 255.255.255.255 \
		"$(printf '9%.0s' $(seq 300))"; do
		must_fail 'invalid argument' attr server_ip "$value"
		expect "$(cat $sysfs/server_ip)" 127.0.0.1 "server_ip after '$value'"
	done
	for value in '' 0 -1 65536 4294967297 18446744073709551617 0x2a3 10809x ' 10809' '1 2' ten 1.5 "$(printf '9%.0s' $(seq 300))"; do
		must_fail 'invalid argument' attr server_port "$value"
		expect "$(cat $sysfs/server_port)" 10809 "server_port after '$value'"
	done
	for value in '' 0 2 -1 yes 11 '1 1'; do
		must_fail 'invalid argument' attr connect "$value"
		must_fail 'invalid argument' attr disconnect "$value"
	done
	expect "$(state)" connected "state after all that"
	# bash's echo writes a line at a time; dd writes both lines at once
	must_fail 'invalid argument' eval "printf '1.2.3.4\n5\n' | dd of=$sysfs/server_ip bs=4096 iflag=fullblock"
	expect "$(cat $sysfs/server_ip)" 127.0.0.1 "server_ip after two lines"
	must_fail 'denied\|cannot\|permission\|input/output' eval "echo error > $sysfs/state"
	# no newline, as printf writes it
	printf 127.0.0.1 > $sysfs/server_ip; printf 10809 > $sysfs/server_port; printf 1 > $sysfs/connect
	expect "$(state)" connected state
}
move() {
	random_file "$scratch/disk-a" 100M; cp "$scratch/disk-a" "$scratch/disk-b"
	printf 'server B here' | dd of="$scratch/disk-b" conv=notrunc status=none
	printf 'server A here' | dd of="$scratch/disk-a" conv=notrunc status=none
	serve 10809 "$scratch/disk-a" 100; serve 20000 "$scratch/disk-b" 100
	ip addr add 192.168.1.100/32 dev lo
	load
	first() { dd if=/dev/netblk bs=4096 count=1 iflag=direct status=none | head -c 13; }
	expect "$(first)" 'server A here' "the first bytes"
	echo "192.168.1.100" > $sysfs/server_ip; echo "20000" > $sysfs/server_port
	expect "$(first)" 'server A here' "the first bytes before connect"
	echo "1" > $sysfs/connect
	expect "$(state)" connected state
	expect "$(first)" 'server B here' "the first bytes after connect"
	dd if=/dev/zero of=/dev/netblk bs=4096 seek=9 count=1 oflag=direct status=none
	cmp "$scratch/disk-b" <(head -c 4096 /dev/zero) -i 36864:0 -n 4096
	cmp -s "$scratch/disk-a" <(head -c 4096 /dev/zero) -i 36864:0 -n 4096 && fail "the write went to the first server" || true
}
parameters() {
	serve 10809 "$scratch/disk" 100
	local p=/sys/module/net_block_driver/parameters pair
	for pair in server_ip=192.168.1.22 server_port=10809 size_mb=100 queue_depth=128 max_retries=3 connect_timeout_ms=5000 io_timeout_ms=5000; do
		modinfo -F parm "$NETBLK_MODULES/net_block_driver.ko" | grep -q "^${pair%%=*}:" || fail "no parameter ${pair%%=*}"
	done
	insmod "$NETBLK_MODULES/net_block_driver.ko" server_ip=127.0.0.1
	for pair in server_port=10809 size_mb=100 queue_depth=128 max_retries=3 connect_timeout_ms=5000 io_timeout_ms=5000 protocol=auto; do
		expect "$(cat $p/${pair%%=*})" "${pair#*=}" "parameter ${pair%%=*}"
	done
	unload
}
bad_parameters() {
	serve 10809 "$scratch/disk" 100
	local value
	for value in server_ip= server_ip=nonsense server_ip=1.2.3 server_ip=300.1.1.1 server_port=0 server_port=65536 server_port=x server_port=-1 size_mb=0 size_mb=-1 \
		size_mb=18446744073709551615 size_mb=17592186044416 queue_depth=0 queue_depth=4294967295 connect_timeout_ms=0 io_timeout_ms=0 protocol=9 max_retries=-1; do
		must_fail 'invalid' insmod "$NETBLK_MODULES/net_block_driver.ko" "$value"
		[ ! -d /sys/module/net_block_driver ] || fail "$value was refused and the module stays"
	done
	load
}
one_mib() {
	random_file "$scratch/disk" 1M
	serve 10809 "$scratch/disk" 1; load size_mb=1
	expect "$(blockdev --getsize64 /dev/netblk)" 1048576 size
	expect "$(dd if=/dev/netblk bs=1M iflag=direct status=none | sha256sum)" "$(sha256sum < "$scratch/disk")" "the whole device"
	must_fail 'no space' dd if=/dev/zero of=/dev/netblk bs=512 seek=2048 count=1
	expect "$(stat_of errors)" 0 errors
}
# 3 TiB: sector numbers over 2^32 and byte offsets over 2^41
huge() {
	serve 10809 "$scratch/disk" 3145728 || true
	load size_mb=3145728
	expect "$(blockdev --getsize64 /dev/netblk)" 3298534883328 size
	random_file "$scratch/b" 65536
	local at
	for at in 0 2199023255552 3298534817792; do
		dd if="$scratch/b" of=/dev/netblk bs=65536 seek=$((at / 65536)) count=1 oflag=direct status=none
		cmp -n 65536 -i 0:$at "$scratch/b" "$scratch/disk" || fail "the server's file differs at $at"
		expect "$(dd if=/dev/netblk bs=65536 skip=$((at / 65536)) count=1 iflag=direct status=none | sha256sum)" "$(sha256sum < "$scratch/b")" "what is read at $at"
	done
}
# beyond what the server has: refused by the server, EIO here, and the stream stays in step
beyond_server() {
	random_file "$scratch/disk" 1M
	serve 10809 "$scratch/disk" 1; load size_mb=8 protocol=1
	expect "$("$vm/dio.py" read /dev/netblk "$scratch/disk" 4194304 4096)" EIO "a read beyond the server's end"
	expect "$("$vm/dio.py" write /dev/netblk 4194304 4096 1)" EIO "a write beyond the server's end"
	expect "$("$vm/dio.py" read /dev/netblk "$scratch/disk" 4096 4096)" same "a read inside, after it"
	expect "$(state)" connected state
	[ "$(stat_of errors)" -ge 2 ] || fail "errors: $(stat_of errors)"
}
sizes() {
	random_file "$scratch/disk" 100M; serve 10809 "$scratch/disk" 100; load
	expect "$(blockdev --getsize64 /dev/netblk)" 104857600 size
	expect "$(dd if=/dev/netblk bs=4M iflag=direct status=none | sha256sum)" "$(sha256sum < "$scratch/disk")" "the whole device"
	expect "$(cat $sysfs/queue/logical_block_size)" 512 logical_block_size
	# every length and alignment of 512 bytes near page and segment edges
	local n
	for n in 512 1024 3584 4096 4608 65536 66048 131072 1048576 1049088 4194304 8388608; do
		expect "$("$vm/dio.py" read /dev/netblk "$scratch/disk" $((512 * 13)) $n 3 | sort -u)" same "reads of $n bytes"
	done
}
writes() {
	serve 10809 "$scratch/disk" 100; load
	random_file "$scratch/b" 8M
	local n
	for n in 512 3584 4608 65536 66048 1048576 8388608; do
		dd if="$scratch/b" of=/dev/netblk bs=$n count=1 oflag=direct,seek_bytes seek=$((512 * 5)) status=none
		cmp -n $n -i 0:2560 "$scratch/b" "$scratch/disk"
	done
}
# netblk/1 has no other commands than reads and writes: nothing else is offered, and nothing else is sent (K24)
K24_limits() {
	local PROTOCOL=1; random_file "$scratch/disk" 16M; serve 10809 "$scratch/disk" 16; load size_mb=16
	expect "$(cat $sysfs/queue/discard_max_bytes $sysfs/queue/write_zeroes_max_bytes $sysfs/queue/fua $sysfs/ro | tr '\n' ' ')" '0 0 0 0 ' "trims, zeroes, FUA, read-only"
	expect "$(cat $sysfs/queue/write_cache)" 'write through' "the cache"
	must_fail 'not supported' blkdiscard /dev/netblk
	cmp "$scratch/disk" /dev/netblk
	# zeroes are written by the block layer itself; the whole device
	blkdiscard -z /dev/netblk; cmp -n 16777216 "$scratch/disk" /dev/zero
	python3 -c 'import os; os.fsync(os.open("/dev/netblk", os.O_RDWR))'
	expect "$(stat_of errors)" 0 errors
	unload
}
t K24-limits-of-netblk1 K24_limits
t attribute-formats formats
t stats-add-up add_up
t K17-nonsense-attributes nonsense
t address-change move
t parameter-defaults parameters
t K17-bad-parameters bad_parameters
t size-1-mib one_mib
t size-3-tib huge
t K16-beyond-the-servers-end-of-netblk1 beyond_server
t read-sizes sizes
t write-sizes writes
finish
