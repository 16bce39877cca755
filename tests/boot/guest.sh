#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Runs in a booted kernel (tests/vm/boot -n): boots Debian's systemd and udev with a netblktab and an fstab, and shuts them
# down. systemd is PID 1 of a namespace of processes, with all else the kernel's own, so that this script can look at the
# machine when it has gone down. The server is outside.
# usage: guest.sh INSTALLED DEBS [TESTS [ROUNDS]]    INSTALLED: what cmake --install made; DEBS: a folder of packages
installed=$1 debs=$2; shift 2
. "$NETBLK_ROOT/tests/vm/lib.sh"
job=/run/job
server=10.0.2.2

# ---- a machine with systemd, udev and netblk ----

prepare() {
	local deb unit dir=/lib/modules/$(uname -r)
	for deb in "$debs"/{systemd,libsystemd-shared,libsystemd0,udev,libudev1}_*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --exclude=./usr/share -C / || return 1
	done
	cp -a "$installed"/. / || return 1
	cp -a "$dir" /tmp/modules; umount "$dir"; cp -a /tmp/modules/. "$dir/"
	mkdir -p "$dir/updates"; cp "$NETBLK_MODULES/net_block_driver.ko" "$dir/updates/"; depmod || return 1
	echo 0123456789abcdef0123456789abcdef > /etc/machine-id
	# systemd would take the guest for a container
	rm -f /.dockerenv
	echo on > /proc/sys/kernel/printk_devkmsg
	rm -rf /etc/systemd/system; mkdir -p /etc/systemd/system
	# what has nothing to do with disks
	for unit in systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket \
		systemd-journal-flush.service systemd-logind.service dbus.service dbus.socket systemd-timesyncd.service systemd-update-utmp.service \
		systemd-update-utmp-runlevel.service systemd-random-seed.service systemd-firstboot.service systemd-sysusers.service \
		systemd-remount-fs.service systemd-sysctl.service systemd-binfmt.service systemd-machine-id-commit.service \
		systemd-tmpfiles-setup.service systemd-hwdb-update.service systemd-pstore.service systemd-boot-system-token.service \
		proc-sys-fs-binfmt_misc.automount sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
		dev-mqueue.mount sys-fs-fuse-connections.mount systemd-ask-password-console.path systemd-ask-password-wall.path e2scrub_reap.service \
		modprobe@.service kmod-static-nodes.service ldconfig.service systemd-user-sessions.service run-lock.mount tmp.mount; do
		ln -s /dev/null "/etc/systemd/system/$unit"
	done
	mkdir /etc/systemd/system/netblk@.service.d
	printf '[Service]\nStandardOutput=append:/run/netblk-services\nStandardError=append:/run/netblk-services\n' > /etc/systemd/system/netblk@.service.d/log.conf
	# the network: down once its service has stopped
	cat > /etc/systemd/system/test-network.service <<-END
		[Unit]
		Description=the network of the test
		Wants=network.target
		Before=network.target network-online.target
		[Service]
		Type=oneshot
		RemainAfterExit=yes
		ExecStart=/bin/sh -c 'ip link set eth0 up; ip addr replace 10.0.2.15/24 dev eth0'
		ExecStop=/sbin/ip link set eth0 down
	END
	cat > /etc/systemd/system/test.service <<-END
		[Unit]
		Description=the test
		After=remote-fs.target local-fs.target
		[Service]
		Type=oneshot
		ExecStart=/bin/bash /etc/test
	END
	cat > /etc/systemd/system/test.target <<-END
		[Unit]
		Description=the machine of the test
		Requires=basic.target test.service
		Wants=remote-fs.target
		After=basic.target remote-fs.target test.service
		AllowIsolate=yes
	END
	mkdir -p /etc/systemd/system/network-online.target.wants
	ln -s ../test-network.service /etc/systemd/system/network-online.target.wants/
}

# machine TABLE FSTAB SCRIPT: boots, runs SCRIPT, which ends with a shutdown; the log of it in $log
log=$scratch/boot.log
machine() {
	local status=0
	printf '%s\n' "$1" > /etc/netblktab; printf '%s\n' "$2" > /etc/fstab
	{ echo 'exec > /run/said 2>&1; set -x'; echo "$3"; } > /etc/test
	rm -rf /run/systemd /run/udev /run/said /run/netblk-services
	dmesg -C
	unshare --pid --mount --fork --mount-proc --kill-child --propagation private \
		env -i PATH="$PATH" /lib/systemd/systemd --unit=test.target --log-target=kmsg --show-status=no || status=$?
	dmesg > "$log"; cp "$log" "$job/boot.log"
	cat /run/said
	# 128 + the signal that stands for the kind of shutdown: SIGINT is power off, SIGHUP is reboot
	[ $status = 130 ] || [ $status = 129 ] || fail "the machine ended with status $status"
}

# in_order PATTERN...: each is in the log, after the one before
in_order() {
	local pattern at last=0
	for pattern; do
		at=$(grep -nE -- "$pattern" "$log" | tail -1 | cut -d: -f1)
		[ -n "$at" ] || fail "the log does not say '$pattern'"
		[ "$at" -gt "$last" ] || fail "'$pattern' comes too early in the log"
		last=$at
	done
}
never() { ! grep -E -- "$1" "$log" || fail "the log says: $(grep -m1 -E -- "$1" "$log")"; }

# Nothing of ours is left, and nothing went wrong on the way down.
all_gone() {
	never 'Failed unmounting|ordering cycle|timed out|Timed out|Unit process .* remains running|Found left-over process'
	[ -z "$(pgrep -f '^[/@]usr/sbin/netblk')" ] || fail "a process is left: $(pgrep -af '^[/@]usr/sbin/netblk')"
	[ "$(ls /run/netblk 2>/dev/null)" = "" ] || fail "left in /run/netblk: $(ls /run/netblk)"
	[ -z "$(losetup -l -n)" ] || fail "a loop device is left: $(losetup -l -n)"
	[ ! -e $sysfs ] || [ "$(state)" != connected ] || fail "the driver is connected"
}

# Every way in one table: by name, by label, a partition; with the network up before them and down after them.
orderly() {
	machine "
# NAME  SOURCE                       OPTIONS
one     netblk://$server/one    _netdev,via=netblk,connections=2
two     netblk://$server/two    _netdev,via=fuse   # found by its label
three   'nbd://$server:10810/three' via=nbd,timeout=20
four    \"netblk://$server/four\" via=ublk
" "
/dev/netblk-by-name/one         /mnt/one   ext4 _netdev 0 0
LABEL=two                       /mnt/two   ext4 _netdev 0 0
/dev/netblk-by-name/three-part1 /mnt/three ext4 _netdev 0 0
/dev/netblk-by-name/four        /mnt/four  ext4 _netdev 0 0
" '
	systemctl list-jobs; systemctl --failed; netblk status; ls -l /dev/netblk-by-name /dev/disk/by-label
	for name in one two three four; do
		findmnt -n /mnt/$name && echo hello > /mnt/$name/witness && systemctl is-active netblk@$name && echo "up $name"
	done
	systemctl show -p MainPID,ControlGroup,KillMode netblk@two.service; systemd-cgls --no-pager -u netblk@two.service
	for pid in $(pgrep -f "usr/sbin/netblk attach"); do echo "helper $(head -c 1 /proc/$pid/cmdline)"; done
	systemctl --no-block reboot'
	local name
	for name in one two three four; do
		grep -q "^up $name" /run/said || fail "$name is not up"
		in_order "Finished test-network" "Finished netblk@$name.service" "Mounted mnt-$name.mount" "Unmounted mnt-$name.mount" \
			"Stopped netblk@$name.service" "Stopped test-network"
	done
	expect "$(grep -c '^helper @' /run/said)" 4 "helpers that systemd passes over: of three disks, and the guard of one"
	! grep -q '^helper [^@]' /run/said || fail "a helper that systemd kills"
	all_gone
}

# nofail: the boot goes on without it; without nofail, its mount fails and all else goes on.
server_never_comes() {
	machine "
away netblk://$server:9/one nofail,wait=1,timeout=1,via=fuse
also netblk://$server:9/two wait=1,timeout=1,via=netblk
broken netblk://$server wiat=1
here netblk://$server/one via=netblk" "
/dev/netblk-by-name/away /mnt/two ext4 _netdev,nofail 0 0
/dev/netblk-by-name/also /mnt/three ext4 _netdev,nofail 0 0
/dev/netblk-by-name/here /mnt/one ext4 _netdev 0 0" '
	while systemctl list-jobs --no-legend | grep -q netblk@; do sleep 0.1; done
	for unit in netblk@away netblk@also netblk@here; do echo "$unit $(systemctl is-active $unit)"; done
	findmnt -n /mnt/one && echo "up one"
	systemctl --no-block poweroff'
	grep -q '^up one' /run/said || fail "what is there is not mounted"
	grep -q '^netblk@away failed' /run/said || fail "netblk@away has not failed"
	grep -q '^netblk@also failed' /run/said || fail "netblk@also has not failed"
	in_order "netblk-generator: /etc/netblktab:4: no option 'wiat=1'"
	grep -q "netblk: /etc/netblktab:2: away: " /run/netblk-services || fail "the service did not say why: $(cat /run/netblk-services)"
	grep -q "trying for 1 s" /run/netblk-services || fail "the service did not say that it waits"
	never 'ordering cycle'
}

# The server dies while the machine runs: it goes down all the same.
server_dies() {
	machine "
one netblk://$server:10812/one via=fuse,timeout=5,wait=300
two netblk://$server:10812/two via=ublk,timeout=5,wait=300" "
/dev/netblk-by-name/one /mnt/one ext4 _netdev 0 0
/dev/netblk-by-name/two /mnt/two ext4 _netdev 0 0" '
	for name in one two; do findmnt -n /mnt/$name && echo "up $name"; dd if=/dev/zero of=/mnt/$name/dirty bs=1M count=4; done
	echo die > /run/job/mortal
	while [ -e /run/job/mortal ]; do sleep 0.1; done
	systemctl --no-block poweroff'
	grep -q '^up one' /run/said || fail "one is not up"
	grep -q '^up two' /run/said || fail "two is not up"
	in_order "Powering off"
	rm -rf /run/netblk
}

# noauto: not before somebody wants it; whoever starts the mount gets the disk.
on_demand() {
	machine "disk-1.a netblk://$server/one noauto,via=netblk" "/dev/netblk-by-name/disk-1.a /mnt/one ext4 _netdev,noauto 0 0" '
	systemctl is-active netblk@disk-1.a; netblk table
	systemctl start mnt-one.mount && findmnt -n /mnt/one && echo "up one"
	systemctl is-active netblk@disk-1.a
	netblk attach disk-1.a && echo "attached again"
	netblk detach --all || echo "refused"
	systemctl stop netblk@disk-1.a; findmnt -n /mnt/one || echo "unmounted"
	netblk attach --all; netblk status | grep disk-1 || echo "noauto"
	netblk attach disk-1.a; netblk detach --all && echo "gone"
	systemctl start netblk@disk-1.a
	systemctl --no-block poweroff'
	local word
	for word in '^up one' '^attached again' '^refused' '^unmounted' '^noauto' '^gone'; do
		grep -q "$word" /run/said || fail "it did not say $word"
	done
	all_gone
}

# Attached and mounted by hand in a login session: the end of the session, at shutdown, neither takes the helper nor waits
# for it in vain.
login_session() {
	machine "" "" '
	systemctl start network-online.target; modprobe -a fuse loop
	systemd-run --scope --unit=session-7 --slice=user.slice bash -c "
		disk=\$(netblk attach --via fuse netblk://'$server'/two --name byhand) && mount -o _netdev \$disk /mnt/two && echo hello > /mnt/two/witness && echo up two"
	cat /proc/$(pgrep -f "^@usr/sbin/netblk attach")/cgroup
	findmnt -n /mnt/two && sync -f /mnt/two && netblk status && echo "still up two"
	systemctl --no-block poweroff'
	grep -q '^up two' /run/said || fail "two is not up"
	grep -q '^0::/system.slice/netblk-attach-[0-9]*-[0-9]*[.]scope' /run/said || fail "the helper is in another place"
	grep -q '^still up two' /run/said || fail "the session took its disk with it"
	in_order "Unmounted mnt-two.mount" "Stopped test-network" "\(netblk-helper\) has been marked to be excluded from killing" "Powering off"
	never 'Failed unmounting|timed out|Timed out'
	rm -rf /run/netblk
}

mkdir -p /mnt/one /mnt/two /mnt/three /mnt/four
prepare || { echo "FAIL prepare: the machine cannot be prepared"; exit 1; }
t orderly orderly
t server-never-comes server_never_comes
t server-dies server_dies
t on-demand on_demand
t login-session login_session
finish
