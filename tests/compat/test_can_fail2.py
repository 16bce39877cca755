#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Proves that the netblk/2 suites can fail: each fault planted in the independent server must be noticed, and without a
fault it must pass what is asked here."""

import concurrent.futures
import os
import subprocess
import sys

import netblk2_server
import suite
from suite import ROOT, check, test

SERVER = str(ROOT / "tests/compat/netblk2_server.py")
WIRE, SESSIONS, HOSTILE = "compat/test_netblk2.py", "compat/test_sessions2.py", "errors/test_wire2_hostile.py"

# fault: (suite, tests of which at least one must fail)
EXPECT = {
    "header-crc-ignored": (HOSTILE, ["flipped_bits"]),
    "payload-crc-ignored": (WIRE, ["broken_payload"]),
    "replay-runs-again": (SESSIONS, ["replay_is_answered"]),
    "replay-status-lost": (SESSIONS, ["stored_status"]),
    "gap-accepted": (SESSIONS, ["wrong_sequences"]),
    "slot-unchecked": (HOSTILE, ["slots_beyond"]),
    "no-fence": (SESSIONS, ["takeover"]),
    "late-write": (SESSIONS, ["nothing_lands"]),
    "epoch-ignored": (SESSIONS, ["epochs"]),
    "two-writers": (SESSIONS, ["exclusive_writer"]),
    "takeover-leaves-owner": (SESSIONS, ["takeover"]),
    "stale-adopted": (SESSIONS, ["a_session_that_ended"]),
    "owner-not-durable": (SESSIONS, ["ownership_outlives"]),
    "adopts-any-store": (SESSIONS, ["another_generation"]),
    "begins-unbidden": (SESSIONS, ["only_begin"]),
    "released-adopted": (SESSIONS, ["a_session_that_ended"]),
    "foreign-client": (SESSIONS, ["foreign_client"]),
    "same-client-twice": (SESSIONS, ["a_new_session_fences"]),
    "session-dies-with-peer": (WIRE, ["silent_peer"]),
    "feature-unoffered": (WIRE, ["features_are_negotiated"]),
    "times-miscounted": (WIRE, ["times"]),
    "mandatory-ignored": (WIRE, ["unknown_features"]),
    "no-heartbeat": (WIRE, ["heartbeats_both_ways"]),
    "silent-peer-kept": (WIRE, ["silent_peer"]),
    "no-resize": (WIRE, ["resize"]),
    "goodbye-in-a-hurry": (WIRE, ["goodbye"]),
    "end-session-ignored": (WIRE, ["end_of_session"]),
    "cookie-lost": (WIRE, ["handshake"]),
    "over-max-served": (HOSTILE, ["table"]),
    "einval-closes": (WIRE, ["outside_or_unaligned"]),
    "refused-payload-not-drained": (WIRE, ["outside_or_unaligned"]),
    "flag-ignored": (HOSTILE, ["flags_that"]),
    "type-ignored": (HOSTILE, ["unknown_types"]),
    "compressed-larger": (WIRE, ["compression"]),
    "bad-compression-applied": (HOSTILE, ["bad_compression"]),
    "compression-unbidden": (WIRE, ["every_type"]),
    "welcome-crc": (WIRE, ["handshake"]),
    "list-repeats": (WIRE, ["list"]),
    "info-makes-session": (WIRE, ["info"]),
    "ride-along-dropped": (WIRE, ["ride_along"]),
    "slow-hello-kept": (HOSTILE, ["unfinished_hellos"]),
    "version-1-refused": (WIRE, ["version_1"]),
    "write-lost": (WIRE, ["every_type"]),
    "read-only-writes": (WIRE, ["read_only"]),
    "in-order-only": (WIRE, ["out_of_order"]),
    "hello-flags-ignored": (HOSTILE, ["malformed_hellos"]),
    "truncated-applied": (WIRE, ["truncated"]),
}
assert set(EXPECT) == netblk2_server.BUGS - {"none"}, set(EXPECT) ^ netblk2_server.BUGS


def run(script, names, bug):
    env = {**os.environ, "NETBLK_SERVER": SERVER, "NETBLK_SERVER_ARGS": "", "NETBLK2_BUG": bug, "NETBLK_FULL": ""}
    if bug != "none":  # a fault is noticed soon; what is faultless has all the time it needs
        env.update({"NETBLK_TIME_SCALE": "1", "NETBLK_PATIENCE": "5", "NETBLK1_TIMEOUT": "3"})
    p = subprocess.run([sys.executable, str(ROOT / "tests" / script), *names], env=env, capture_output=True, text=True)
    check("suite " in p.stdout, f"{script} gave no summary: {p.stdout[-200:]} {p.stderr[-300:]}")
    return p.returncode, p.stdout


_results = {}


def expect_noticed(bug):
    # They mostly wait: several at once.
    if bug not in _results:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            _results.update(zip(EXPECT, pool.map(lambda b: run(*EXPECT[b], b), EXPECT)))
    status, out = _results[bug]
    check(status != 0 and "FAIL " in out, f"nothing noticed the fault {bug}: {out[-300:]}")


def add(bug):
    def one(_):
        expect_noticed(bug)
    one.__name__ = "test_notices_" + bug.replace("-", "_")
    test(one, timeout=300)


@test(timeout=180)
def test_faultless_passes(t):
    for script in (WIRE, SESSIONS, HOSTILE):
        # What bounds memory and time is asked of real servers only.
        names = sorted({name for s, names in EXPECT.values() for name in names if s == script and name != "unfinished_hellos"})
        status, out = run(script, names, "none")
        check(status == 0, f"{script} {names} fails on a faultless server: {out[-600:]}")


for _bug in EXPECT:
    add(_bug)

if __name__ == "__main__":
    sys.exit(suite.main("can-fail2"))
