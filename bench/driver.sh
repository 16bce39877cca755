#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The driver beside nbd.ko with nbd-server and beside ram_block_driver, in a booted kernel, in one table.
# usage: driver.sh [-k KIND] [-j FILE] [-t SECONDS] [OPTION...]
#   -k KIND     kernel of tests/vm (uml)      -j FILE  write every measurement there
#   -t SECONDS  for the whole guest (900)
#   OPTION      of bench/vm/devices.py: --seconds 1 --rounds 3 --engine io_uring|libaio --io uring|epoll
#               --peers netblk,nbd.ko,RAM\ rq --cases READ,qd32
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); root=$(dirname "$here")
kind=uml json= limit=900
while [ $# -gt 0 ]; do case $1 in
	-k) kind=${2:?};; -j) json=${2:?};; -t) limit=${2:?};; -h|--help) sed -n '4,8s/^# //p' "$0"; exit 0;; *) break;;
esac; shift 2; done
[ -x "$root/build/output/netblk_server" ] || { echo "driver.sh: build the project first: ./build.sh" >&2; exit 1; }
"$root/tests/vm/modules" "$kind"
share=$(mktemp -d "${TMPDIR:-/tmp}/netblk-bench.XXXXXX"); trap 'rm -rf "$share"' EXIT
status=0
"$root/tests/vm/boot" -k "$kind" -m 1024 -t "$limit" -s "$share" "$here/vm/guest.sh" "$@" || status=$?
if [ -n "$json" ] && [ -e "$share/devices.json" ]; then cp "$share/devices.json" "$json"; fi
exit $status
