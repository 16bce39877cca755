#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Run in a guest of tests/vm: what `build.sh run` does, with the programs of this machine and the guest kernel's module.
# usage: vm_demo.sh [--keep | stop]
set -euo pipefail
project_root=$NETBLK_ROOT
cd "$project_root"
# shellcheck source=scripts/common.sh
. scripts/common.sh
# shellcheck source=scripts/run.sh
. scripts/run.sh
module=$NETBLK_MODULES/net_block_driver.ko
mkdir -p "$(dirname "$kept_file")" "$logs"

printf '%s\n' "Linux $(uname -r), $(nproc) CPU"
ip link set lo up
if [ "${1:-}" = stop ]; then
	stop_kept
else
	run_here "${1:-}"
fi
