# SPDX-License-Identifier: GPL-2.0-only
# `./build.sh run` where modules can be loaded: by the driver, beside somebody else's disk, and by what there is without it.
. "$NETBLK_ROOT/tests/vm/lib.sh"
netblk=$NETBLK_OUT/netblk
[ -x "$netblk" ] && [ -x "$NETBLK_OUT/netblk_server" ] || { echo "SKIP run: build/output has no netblk, or no netblk_server"; exit 0; }
netblk() { "$netblk" "$@"; }
# The words of the last one are in $scratch/said.
run() { bash "$NETBLK_ROOT/scripts/vm_demo.sh" "$@" > "$scratch/said" 2>&1 < /dev/null || fail "it failed: $(tail -5 "$scratch/said")"; }
says() { grep -q -- "$1" "$scratch/said" || fail "it does not say '$1': $(tail -12 "$scratch/said")"; }
is_clean() {
	! grep -q netblk-run /proc/mounts && ! ls -d /run/netblk/[0-9]* /tmp/netblk-run.* > /dev/null 2>&1 && ! pgrep -f netblk-run > /dev/null
}
clean() { is_clean || fail "left: $(grep netblk-run /proc/mounts) $(ls -d /run/netblk/[0-9]* /tmp/netblk-run.* 2> /dev/null) $(pgrep -fa netblk-run)"; }
unloaded() { [ ! -e /sys/module/net_block_driver ] || fail "the driver is loaded still"; }

by_the_driver() {
	run; says 'Hello Network Block Device!'; says 'netblk attach netblk://.* --via auto'; says '^/dev/netblk$'
	says '^netblk  yes'; says '^connected$'; says '^read_bytes:'; says 'it works, by the kernel driver'
	clean; unloaded
	run; says 'it works, by the kernel driver'; clean; unloaded
}
kept() {
	run --keep; says 'is mounted on'; grep -q '^/dev/netblk .*netblk-run' /proc/mounts || fail "nothing is mounted"
	expect "$(state)" connected "state of what is kept"
	run --keep; says 'is there already'
	# a second one beside it has a disk of its own, and leaves the first
	run; says '^/dev/netblk-1$'; says 'loaded already'; expect "$(state)" connected "state of what is kept"
	run stop; says 'stopped'; clean; unloaded
	run stop; says 'nothing is kept'
}
beside_others() {
	serve 10809 "$scratch/disk" 16; load size_mb=16; expect "$(state)" connected state
	run; says '^/dev/netblk-1$'; says 'it works, by the kernel driver'; clean
	expect "$(state)" connected "state of the other's disk"; unload
}
interrupted() {
	local signal pid n
	mounted() { grep -q '^/dev/netblk .*netblk-run' /proc/mounts; }
	ended() { ! kill -0 $pid; }
	for signal in INT TERM; do for n in {1..20}; do
		# a shell in the background ignores SIGINT unless it is told otherwise
		python3 -c "
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp('bash', ['bash', '$NETBLK_ROOT/scripts/vm_demo.sh'])" > "$scratch/said" 2>&1 < /dev/null & pid=$!
		# it is mounted for a moment: the look is at one that stands still, and who was through before it is begun again
		until_true 120 "that it is mounted" eval 'mounted || ended'
		kill -STOP $pid 2> /dev/null && until_true 60 "that it stands still" eval 'stands_still $pid || ended' && mounted && ! ended ||
			{ kill -CONT $pid 2> /dev/null || true; wait $pid; clean; unloaded; continue; }
		kill -$signal $pid; kill -CONT $pid
		if wait $pid; then fail "it ended well though it was interrupted"; fi
		clean; unloaded; continue 2
	done; fail "nothing was tested: it was never met while it is mounted"; done
}
without() {
	local way
	mkdir -p "$scratch/none"
	for way in ublk nbd FUSE; do
		case $way in ublk) modprobe ublk_drv;; nbd) modprobe nbd;; esac
		NETBLK_MODULES=$scratch/none run
		says 'is not loaded by this run: insmod refused'; says "it works, by .*$way"; says 'state\|STATE'; clean
		case $way in
			ublk) until_true 60 "that ublk_drv can be unloaded" rmmod ublk_drv;;
			nbd) until_true 60 "that nbd can be unloaded" rmmod nbd;;
		esac
	done
}
t run-by-the-driver by_the_driver
t run-keep-and-stop kept
t run-beside-others beside_others
t run-interrupted interrupted
t run-without-the-driver without
finish
