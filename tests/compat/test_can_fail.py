#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Proves that the netblk/1 suites can fail: each fault planted in the old server must be noticed,
and the old server without a fault must pass."""

import os
import subprocess
import sys

import netblk1
import suite
from suite import ROOT, check, test

OLD_SERVER = str(ROOT / "tests/compat/netblk1.py")

# fault: (suite, tests of which at least one must fail)
EXPECT = {
    "little-endian": ("compat/test_netblk1.py", ["golden_read"]),
    "sector-off-by-one": ("compat/test_netblk1.py", ["golden_write", "sector_is_64"]),
    "last-sector": ("compat/test_netblk1.py", ["last_sector"]),
    "no-drain": ("compat/test_netblk1.py", ["golden_error", "last_sector"]),
    "reply-to-disconnect": ("compat/test_netblk1.py", ["golden_disconnect"]),
    "disconnect-drops": ("compat/test_netblk1.py", ["disconnect_answers"]),
    "status-ff": ("compat/test_netblk1.py", ["golden_error"]),
    "error-carries-data": ("compat/test_netblk1.py", ["golden_error"]),
    "truncated-applied": ("compat/test_netblk1.py", ["truncated"]),
    "out-of-order": ("compat/test_netblk1.py", ["every_multiple"]),
    "garbage-read": ("compat/test_netblk1.py", ["lengths"]),
    "write-lost": ("compat/test_netblk1.py", ["random_model"]),
    "torn-overlap": ("compat/test_netblk1.py", ["overlapping"]),
    "half-close-drops": ("compat/test_netblk1.py", ["half_close"]),
    "one-client": ("compat/test_netblk1.py", ["writes_seen"]),
    "wrap": ("errors/test_wire_hostile.py", ["table_read"]),
    "accept-over-max": ("errors/test_wire_hostile.py", ["table_read"]),
    "close-on-range": ("errors/test_wire_hostile.py", ["table_read"]),
    "zero-ok": ("errors/test_wire_hostile.py", ["table_read"]),
    "unaligned-ok": ("errors/test_wire_hostile.py", ["table_read"]),
    "bad-byte-kept": ("errors/test_wire_hostile.py", ["every_first_byte"]),
}
assert set(EXPECT) == netblk1.BUGS - {"none"}


def run(script, names, bug):
    env = {**os.environ, "NETBLK_SERVER": OLD_SERVER, "NETBLK_SERVER_ARGS": "", "NETBLK1_BUG": bug,
           "NETBLK_FULL": ""}
    if bug != "none":  # a fault is noticed soon; what is faultless has all the time it needs
        env.update({"NETBLK_TIME_SCALE": "1", "NETBLK_PATIENCE": "5", "NETBLK1_TIMEOUT": "5"})
    p = subprocess.run([sys.executable, str(ROOT / "tests" / script), *names], env=env, capture_output=True, text=True)
    check("suite " in p.stdout, f"{script} gave no summary: {p.stdout[-200:]} {p.stderr[-300:]}")
    return p.returncode, p.stdout


def expect_noticed(bug):
    script, names = EXPECT[bug]
    status, out = run(script, names, bug)
    check(status != 0 and "FAIL " in out, f"nothing noticed the fault {bug}: {out[-300:]}")


def add(bug):
    def one(_):
        expect_noticed(bug)
    one.__name__ = "test_notices_" + bug.replace("-", "_")
    test(one, timeout=120)


@test(timeout=120)
def test_faultless_passes(t):
    for script, names in sorted({(s, tuple(n)) for s, n in EXPECT.values()}):
        status, out = run(script, names, "none")
        check(status == 0, f"{script} {names} fails on a faultless server: {out[-300:]}")


for _bug in EXPECT:
    add(_bug)

if __name__ == "__main__":
    sys.exit(suite.main("can-fail"))
