#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Traces of writes and reads whose every byte is known: 50,000 writes and more over several connections, requests of up to
47 MiB, zeroes, trims and flushes between them. NETBLK_NBD_PEER=nbdkit runs them against a peer."""

import pathlib
import random
import select
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd
import nbd_target
import suite
from nbd import CMD_FLUSH, CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, FUA
from nbd_target import MIB, PEER, needs, start
from suite import check, check_eq, test

NOISE = random.Random(99).randbytes(64 * MIB)


def slice_of(rng, n):
    at = rng.randrange(len(NOISE) - n)
    return memoryview(NOISE)[at:at + n]


def trace(t, clients, size, path, writes, length, depth, align=1, zeroes=True):
    """`writes` requests that change, and half as many that read, `depth` in flight on each connection, and none that
    overlaps another in flight. What was acknowledged on one connection is read on all."""
    rng = random.Random(suite.SEED)
    model = bytearray(path.read_bytes())
    flying = {}  # (client, cookie) -> (offset, length, what a READ must give)
    changed = 0

    def settle(i):
        result = clients[i].wait_any().ok()
        at, n, wanted = flying.pop((i, result.request.cookie))
        if wanted is not None:
            check_eq(result.data, wanted, f"READ {n} at {at}")

    def collect():
        """At least one answer of any connection."""
        ready = [i for i, c in enumerate(clients) if c.done or c.stream.received]
        if not ready:
            busy = {clients[i].sock: i for i in {i for i, _ in flying}}
            found, _, _ = select.select(list(busy), [], [], 60 * suite.TIME_SCALE)
            check(found, "no answer on any connection")
            ready = [busy[s] for s in found]
        for i in ready:
            if any(j == i for j, _ in flying):
                settle(i)
    while changed < writes:
        i = rng.randrange(len(clients))
        n = -(-length(rng) // align) * align
        at = rng.randrange((size - n) // align + 1) * align
        if sum(j == i for j, _ in flying) >= depth or any(a < at + n and at < a + m for a, m, _ in flying.values()):
            collect()
            continue
        kind = rng.random()
        if kind < 0.33:
            flying[i, clients[i].submit(CMD_READ, at, n)] = (at, n, bytes(model[at:at + n]))
            continue
        changed += 1
        if kind < 0.38 and zeroes:
            cookie = clients[i].submit(CMD_WRITE_ZEROES, at, n, rng.choice((0, nbd.NO_HOLE)))
            model[at:at + n] = bytes(n)
        else:
            data = slice_of(rng, n)
            cookie = clients[i].submit(CMD_WRITE, at, n, FUA if kind < 0.385 else 0, data)
            model[at:at + n] = data
        flying[i, cookie] = (at, n, None)
        if kind > 0.999:
            flying[i, clients[i].submit(CMD_FLUSH)] = (size, 0, None)
    while flying:
        collect()
    clients[0].flush()
    at = 0
    while at < size:
        n = min(32 * MIB, size - at)
        check_eq(clients[-1].read(at, n), bytes(model[at:at + n]), f"the whole at the end, at {at}")
        at += n
    check(path.read_bytes() == bytes(model), "the file at the end")


def connections(s, n, replies):
    """EXPORT_NAME where requests are longer than what is advertised."""
    out = []
    for _ in range(n):
        c = s.connect()
        if replies != "simple":
            needs(replies)
            getattr(c, replies)()
        if replies == "extended":
            c.go("disk", ())
        else:
            c.export_name("disk")
        out.append(c)
    for c in out:
        c.stream.beside = [other.stream for other in out if other is not c]
    return out


def small(rng):
    return rng.choice((512, 1024, 4096, 4096, 4096, 8192, 16384, rng.randrange(1, 65536)))


@test(timeout=600)
def test_trace(t):
    """50,000 writes (a tenth in the first tier) of up to 64 KiB, 16 in flight on each of four connections."""
    path = nbd_target.image(t, 32 * MIB)
    s = start(t, size=32 * MIB, path=path)
    trace(t, connections(s, 4, "structured" if "structured" not in nbd_target.LACKS[PEER] else "simple"), 32 * MIB, path,
          suite.count(60000, 5000), small, 16)


@test(timeout=600)
def test_trace_simple_replies(t):
    path = nbd_target.image(t, 32 * MIB)
    s = start(t, size=32 * MIB, path=path, listen="unix")
    trace(t, connections(s, 2, "simple"), 32 * MIB, path, suite.count(60000, 2000), small, 32)


@test(timeout=600)
def test_trace_extended_headers(t):
    needs("extended")
    path = nbd_target.image(t, 32 * MIB)
    s = start(t, size=32 * MIB, path=path)
    trace(t, connections(s, 2, "extended"), 32 * MIB, path, suite.count(60000, 2000), small, 32)


@test(timeout=600)
def test_trace_of_huge_requests(t):
    """1 to 47 MiB, as the NBD project's own tester has them."""
    needs("64MiB")
    size = 160 * MIB
    path = nbd_target.image(t, size)
    s = start(t, size=size, path=path)
    trace(t, connections(s, 2, "simple"), size, path, suite.count(1000, 40), lambda rng: rng.randrange(1, 47 * MIB + 1), 2, zeroes=False)


@test(timeout=600)
def test_trace_on_memory(t):
    """The memory store, which has no file to compare with: what it reads back."""
    if PEER:
        raise suite.Skip("our store")
    s = start(t, size=32 * MIB, exports={"disk": "mem:32M"})

    class Memory:
        def __init__(self):
            self.first = bytes(32 * MIB)

        def read_bytes(self):
            first, self.first = self.first, None
            return first if first is not None else s.client().read(0, 32 * MIB)
    trace(t, connections(s, 4, "structured"), 32 * MIB, Memory(), suite.count(60000, 3000), small, 16)


if __name__ == "__main__":
    sys.exit(suite.main("nbd-integrity" + (f" ({PEER})" if PEER else "")))
