#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""kill -9 of a server on a volume, under load: nothing that was answered is lost, nothing is half there, and `check` finds
every block as it was written. What a power cut leaves is tests/sim/volume's business."""

import pathlib
import random
import signal
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "errors"))
import command
import nbd
import serverproc
import suite
from suite import check, check_eq, test

BLOCK = 4096
SLOTS = 96          # places of 12 KiB
SLOT = 3 * BLOCK
SIZE = 4 << 20


def pattern(tag, n=SLOT):
    return struct.pack(">Q", tag) * (n // 8) if tag else bytes(n)


def serve(t, path, port):
    return serverproc.Server(t, ["--export", f"d=vol:{path}", "--listen", f"nbd://127.0.0.1:{port}"], [port])


def open_disk(port):
    client = nbd.Client(("127.0.0.1", port))
    client.go("d")
    return client


@test(timeout=1800)
def test_kill9_under_writers(t):
    rng = random.Random(suite.SEED)
    path, port = t.tmp / "v", serverproc.free_port()
    command.run(t, "volume", "create", path, "--size", "4M", "--segment-size", "64K")
    tag, held = 0, [0] * SLOTS
    rounds, kills = suite.count(1000, 40), 0
    for r in range(rounds):
        s = serve(t, path, port)
        with open_disk(port) as c:
            for i in range(SLOTS):
                check_eq(c.read(i * SLOT, SLOT), pattern(held[i]), f"round {r}: place {i} after a restart")
            sent = {}  # cookie: (place, tag); several of one place are in flight at once
            open_tags = [[] for _ in range(SLOTS)]
            durable = set()
            goal = rng.randrange(1, 60)
            answered = 0
            while answered < goal:
                while len(sent) < 16:
                    place = rng.choice([i for i in range(SLOTS) if i not in durable])
                    tag += 1
                    mine = 0 if rng.random() < 0.1 else tag
                    if mine:
                        # One that must be durable is answered later than what follows it: nothing follows it in its place.
                        flags = nbd.FUA if not open_tags[place] and rng.random() < 0.25 else 0
                        if flags:
                            durable.add(place)
                        cookie = c.submit(nbd.CMD_WRITE, place * SLOT, SLOT, data=pattern(mine), flags=flags)
                    else:
                        cookie = c.submit(nbd.CMD_WRITE_ZEROES, place * SLOT, SLOT)
                    sent[cookie] = (place, mine)
                    open_tags[place].append(mine)
                done = c.wait_any()
                place, mine = sent.pop(done.request.cookie)
                check_eq(done.error, 0, f"round {r}: the answer of a write")
                answered += 1
                # Those of one place are applied, and so answered, in some order: the last answered one holds.
                open_tags[place].remove(mine)
                durable.discard(place)
                held[place] = mine
            s.signal(signal.SIGKILL)
        s.wait()
        kills += 1
        # What was under way is there whole, or not at all.
        if any(open_tags):
            s = serve(t, path, port)
            with open_disk(port) as c:
                for i in range(SLOTS):
                    got = c.read(i * SLOT, SLOT)
                    allowed = [held[i], *open_tags[i]]
                    check(got in [pattern(x) for x in allowed],
                          f"round {r}: place {i} has tag {struct.unpack('>Q', got[:8])[0]}, and may have {allowed}")
                    held[i] = struct.unpack(">Q", got[:8])[0]
                s.signal(signal.SIGKILL)
            s.wait()
            kills += 1
        if r % 10 == 9:
            command.run(t, "volume", "check", path)
    command.run(t, "volume", "check", path)
    print(f"COUNT kills of a server on a volume under load, nothing answered lost: {kills}", flush=True)


if __name__ == "__main__":
    sys.exit(suite.main("volume-kill"))
