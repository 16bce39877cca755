#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Our own NBD client (`netblk copy` to nbd://) while our server is killed (SIGKILL) and started again, over and over.

A killed process leaves its page cache, so `--reconnect trust` may go on: nothing that was acknowledged is gone. Where
the machine loses its power instead, what was not flushed is gone: the client must say so, and what it calls safe must be
there. The power fails here by an overlay whose header forgets which boot it was open in: what no flush covered is not in
its durable map, and nothing of it comes back."""

import os
import pathlib
import random
import re
import signal
import sys
import time

for folder in ("compat", "errors"):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / folder))
import serverproc
import suite
from command import MIB, run, start
from suite import check, check_eq, test

SIZE = 32 * MIB
BOOT_ID_AT, BOOT_ID_BYTES = 512, 36  # src/store/overlay.h


class Killed:
    """A server on one port and one file, that can be killed; `lose`: as by a power failure."""

    def __init__(self, t, store, changes, lose=False):
        self.t, self.store, self.changes, self.lose, self.kills = t, store, changes, lose, 0
        self.port = serverproc.free_port()
        self.rng = random.Random(suite.SEED)
        self.begin()

    def begin(self, limit="rate=12M"):
        join = "&" if "?" in self.store else "?"
        self.server = serverproc.Server(self.t, ["--export", f"disk={self.store}{join}{limit}", "--listen", f"nbd://127.0.0.1:{self.port}"],
                                        [self.port])
        self.changed = os.stat(self.changes).st_mtime_ns

    def restart(self, **limit):
        self.server.stop()
        self.begin(**limit)

    def uri(self):
        return f"nbd://127.0.0.1:{self.port}/disk"

    def kill_while(self, copy):
        """Once the copy has changed something since the start. False: it has ended before."""
        suite.wait_until(lambda: os.stat(self.changes).st_mtime_ns != self.changed or copy.poll() is not None, 60, "a write, or the end")
        time.sleep(self.rng.random() * 0.4)
        if copy.poll() is not None:
            return False
        self.server.check_alive()
        self.server.signal(signal.SIGKILL)
        self.server.wait()
        self.kills += 1
        if self.lose:
            with open(self.changes, "r+b") as f:
                f.seek(BOOT_ID_AT)
                f.write(bytes(BOOT_ID_BYTES))
        self.begin()
        return True


def source(t):
    path = t.tmp / "source"
    path.write_bytes(random.Random(suite.SEED).randbytes(SIZE))
    return path


def ended(p):
    """Its status and what it says of it: one line where it failed. That nothing was there to resume is a note."""
    _, err = p.communicate(timeout=120 * suite.TIME_SCALE)
    said = [line for line in err.decode().splitlines() if "copying from the start" not in line]
    check((p.returncode, len(said)) in ((0, 0), (1, 1)), f"status and lines on stderr: {p.returncode}, {err!r}")
    return p.returncode, "".join(said)


@test(timeout=900)
def test_a_trusted_copy_goes_on_through_every_kill(t):
    disk = t.tmp / "disk.img"
    disk.write_bytes(bytes(SIZE))
    a, want = source(t), suite.count(100, 3)
    killed = Killed(t, f"file:{disk}", disk)
    while killed.kills < want:
        p = start(t, "copy", "--reconnect", "trust", a, killed.uri())
        while killed.kills < want and killed.kill_while(p):
            pass
        check_eq(ended(p), (0, ""), f"status and stderr after {killed.kills} kills")
        check(disk.read_bytes() == a.read_bytes(), f"the disk after {killed.kills} kills is not the source")
    killed.server.check_alive()


def safe_bytes(err):
    found = re.search(r"(\d+) bytes are copied and safe", err)
    return int(found.group(1)) if found else 0


@test(timeout=900)
def test_what_is_called_safe_survives_a_power_failure(t):
    base, cow, back = t.tmp / "base.img", t.tmp / "disk.cow", t.tmp / "back"
    base.write_bytes(bytes(SIZE))
    a, want = source(t), suite.count(100, 3)
    data = a.read_bytes()
    store = f"file:{base}?overlay={cow}"
    serverproc.start_export(t, f"disk={store}").stop()  # makes it
    killed = Killed(t, store, cow, lose=True)
    resume, losses = [], 0
    while killed.kills < want or losses == 0:
        p = start(t, "copy", *resume, a, killed.uri())
        was_killed = killed.kill_while(p)
        status, err = ended(p)
        if status != 0:
            check(was_killed and "not flushed" in err, f"the loss, after a kill, must be named: {err!r}")
            losses += 1
        # What is there now that the power is back: all, or what was called safe.
        killed.restart(limit="ro=0")
        back.unlink(missing_ok=True)
        run(t, "copy", killed.uri(), back, seconds=120)
        safe = SIZE if status == 0 else safe_bytes(err)
        check(back.read_bytes()[:safe] == data[:safe], f"kill {killed.kills}: of {safe} bytes that were safe some are gone; {err!r}")
        resume = ["--resume"] if status != 0 else []
        killed.server.stop()
        if status == 0:  # An overlay that has all of it loses nothing more.
            cow.unlink()
            serverproc.start_export(t, f"disk={store}").stop()
        killed.begin()
    killed.restart(limit="ro=0")
    run(t, "copy", *resume, a, killed.uri(), seconds=120)
    killed.server.stop()
    s = serverproc.start_export(t, f"disk={store}")
    with s.client() as c:
        for at in range(0, SIZE, 8 * MIB):
            check(c.read(at // 512, 8 * MIB) == data[at:at + 8 * MIB], f"the disk at the end, from byte {at} on")
    check(base.read_bytes() == bytes(SIZE), "the image below has changed")


@test(timeout=300)
def test_a_copy_from_a_server_that_is_killed_only_waits(t):
    """Reads promise nothing that a kill could break."""
    disk, back = source(t), t.tmp / "back"
    killed = Killed(t, f"file:{disk}", disk)
    for n in range(suite.count(30, 2)):
        back.unlink(missing_ok=True)
        p = start(t, "copy", killed.uri(), back)
        suite.wait_until(lambda: p.poll() is not None or (back.exists() and back.stat().st_blocks > 0), 60, "a part of the copy")
        if p.poll() is None:
            killed.server.signal(signal.SIGKILL)
            killed.server.wait()
            killed.begin()
        check_eq(ended(p), (0, ""), f"round {n}: status and stderr")
        check(back.read_bytes() == disk.read_bytes(), f"round {n}: the copy is not the disk")


@test(timeout=300)
def test_a_server_that_does_not_come_back(t):
    disk = t.tmp / "disk.img"
    disk.write_bytes(bytes(SIZE))
    a = source(t)
    killed = Killed(t, f"file:{disk}", disk)
    p = start(t, "copy", "--timeout", "1", a, killed.uri())
    suite.wait_until(lambda: os.stat(disk).st_mtime_ns != killed.changed or p.poll() is not None, 60, "a write")
    killed.server.signal(signal.SIGKILL)
    killed.server.wait()
    status, err = ended(p)
    check_eq(status, 1, f"status; {err!r}")
    safe = safe_bytes(err)
    check(disk.read_bytes()[:safe] == a.read_bytes()[:safe], f"of {safe} bytes that were safe some are gone")


if __name__ == "__main__":
    sys.exit(suite.main("nbd-client-kill"))
