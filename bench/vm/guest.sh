# SPDX-License-Identifier: GPL-2.0-only
# Runs in the guest (tests/vm/boot): the benchmark of block devices. Its results go to the job share.
exec python3 "$NETBLK_ROOT/bench/vm/devices.py" --json /run/job/devices.json "$@"
