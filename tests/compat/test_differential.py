#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The same bytes to the server under test and to the old server written by others: the same
replies to the last byte, the same end of the connection, the same file afterwards."""

import random
import sys
import threading
import time

import netblk1
import serverproc
import suite
from netblk1 import DISCONNECT, MAX_LENGTH, READ, WRITE, request
from suite import check_eq, test

MIB = 1 << 20
SIZE = 2 * MIB


def stream(rng):
    """Requests, good and refused, then one of the ways in which a connection ends.
    Nothing follows what closes a connection: bytes that the server leaves unread would
    make TCP reset it, and that may discard replies."""
    out = bytearray()
    for _ in range(rng.randrange(1, 60)):
        cmd = rng.choice((READ, WRITE))
        n = rng.choice((0, 1, 511, 512, 512, 513, 1024, 4096, 4096, 8192, 65536, 65536 + 512, rng.randrange(1 << 17), MIB))
        at = rng.choice((rng.randrange(0, SIZE // 512), rng.randrange(0, 32), SIZE // 512 - 1, SIZE // 512,
                         SIZE // 512 - n // 512, 1 << 54, 1 << 55, (1 << 64) - 1, rng.randrange(1 << 64)))
        out += request(cmd, max(at, 0), n)
        if cmd == WRITE:
            out += rng.randbytes(n)
    end = rng.randrange(6)
    if end == 0:
        out += request(DISCONNECT)
    elif end == 1:
        out += request(rng.choice((READ, WRITE)), rng.randrange(1 << 64), rng.randrange(MAX_LENGTH + 1, 1 << 32))
    elif end == 2:
        out += bytes([rng.choice([b for b in range(256) if b not in (READ, WRITE, DISCONNECT, ord("N"))])])
    elif end == 3:
        out += request(WRITE, 0, 4096)[:rng.randrange(1, 13)]
    elif end == 4:
        out += request(WRITE, 0, 4096) + rng.randbytes(rng.randrange(0, 4096))
    return bytes(out)


def talk(port, data, cuts):
    """Send `data` in the pieces that `cuts` gives, then half-close; all that comes back."""
    with netblk1.Client(port) as c:
        def send():
            try:
                for lo, hi in zip([0, *cuts], [*cuts, len(data)]):
                    c.sock.sendall(data[lo:hi])
                    time.sleep(0.0005)
                c.half_close()
            except OSError:
                pass
        th = threading.Thread(target=send, daemon=True)
        th.start()
        out = c.drain_to_end()
        th.join()
        return out


@test(timeout=300)
def test_same_replies_same_file(t):
    content = random.Random(suite.SEED).randbytes(SIZE)
    ours, theirs = t.tmp / "ours.img", t.tmp / "theirs.img"
    ours.write_bytes(content)
    theirs.write_bytes(content)
    s = serverproc.start(t, 1, ours)
    old = netblk1.Server(theirs, SIZE)
    t.defer(old.stop)
    for i in range(suite.count(3000, 200)):
        rng = random.Random(f"{suite.SEED}.{i}")
        data = stream(rng)
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 5, 20))))
        check_eq(talk(s.port, data, cuts), talk(old.port, data, []), f"replies to stream {i}")
        if i % 20 == 19:
            check_eq(ours.read_bytes(), theirs.read_bytes(), f"the file after stream {i}")
    check_eq(ours.read_bytes(), theirs.read_bytes(), "the file")


if __name__ == "__main__":
    sys.exit(suite.main("differential"))
