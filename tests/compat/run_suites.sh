#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Every black-box suite of the server, on each I/O back end that is given (default: uring epoll).
#   tests/compat/run_suites.sh [uring] [epoll]
# Environment: see tests/compat/suite.py. Exit status 0 only if every suite passed.
set -u
cd "$(dirname "$0")/../.." || exit 1
backends=("$@")
[ ${#backends[@]} -gt 0 ] || backends=(uring epoll)
user_args=${NETBLK_SERVER_ARGS:-}
failed=()
# Proves that the suites notice faults; needs no server.
python3 tests/compat/test_can_fail.py || failed+=("can-fail")
for io in "${backends[@]}"; do
  export NETBLK_SERVER_ARGS="$user_args --io $io"
  echo "# I/O back end: $io"
  for script in compat/test_netblk1 compat/test_differential errors/test_wire_hostile errors/test_cli \
                errors/test_config errors/test_store_lock errors/test_store_errors errors/test_stores crash/test_kill9; do
    python3 "tests/$script.py" || failed+=("$script on $io")
  done
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi
