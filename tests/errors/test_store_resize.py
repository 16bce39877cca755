#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A store that grows or shrinks while it is served."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import serverproc
import suite
from netblk1 import ERROR, OK, READ, WRITE, request
from serverproc import free_port, options
from suite import Skip, check, check_eq, test

MIB = 1 << 20


def opened(server):
    """It listens before it has opened its stores; what is cut before that is simply opened smaller."""
    server.wait_log("listening on netblk")
    return server


def start(*args, **kw):
    return opened(serverproc.start(*args, **kw))


def start_export(*args, **kw):
    return opened(serverproc.start_export(*args, **kw))


def status(c, command, at, length=512, byte=b"\x33"):
    c.send(request(command, at // 512, length) + (byte * length if command == WRITE else b""))
    st = c.status()
    if st == OK and command == READ:
        c.recv(length)
    return st


def until(c, command, at, wanted, what):
    suite.wait_until(lambda: status(c, command, at) == wanted, 5, what)


@test
def test_growing_is_noticed(t):
    s = start(t, 1)
    with s.client() as c:
        check_eq(status(c, READ, MIB), ERROR, "READ beyond the end")
        os.truncate(s.path, 2 * MIB)
        until(c, READ, MIB, OK, "a READ of what was added")
        c.write(2 * MIB // 512 - 1, b"\x44" * 512)
        check_eq(c.read(2 * MIB // 512 - 1, 512), b"\x44" * 512, "the last sector")
        check_eq(status(c, READ, 2 * MIB), ERROR, "READ beyond the new end")
    s.wait_log("its size was 1 MiB and is now 2 MiB")


@test
def test_shrinking_is_noticed(t):
    s = start(t, 2)
    with s.client() as c:
        c.write(0, b"\x44" * 512)
        os.truncate(s.path, MIB)
        # At once: nobody has looked yet, but the file has no such bytes.
        check_eq(status(c, READ, MIB), ERROR, "READ of what was cut")
        check_eq(status(c, READ, MIB - 512, 1024), ERROR, "READ across the cut")
        check_eq(status(c, READ, MIB - 512), OK, "READ before the cut")
        check_eq(c.read(0, 512), b"\x44" * 512, "in step")
    s.wait_log("its size was 2 MiB and is now 1 MiB")
    s.check_alive()


@test
def test_a_write_does_not_grow_a_file_that_was_cut(t):
    """Right after the cut, before the server's next look."""
    for cut in (MIB, 512, 0):
        s = start(t, 2, t.tmp / f"{cut}.img")
        with s.client() as c:
            c.write(0, b"\x44" * 512)
            os.truncate(s.path, cut)
            for at in (2 * MIB - 512, cut):
                check_eq(status(c, WRITE, at), ERROR, f"WRITE at {at} of a file that was cut to {cut}")
            check_eq(os.stat(s.path).st_size, cut, "the file's size")
            check_eq(status(c, WRITE, max(cut - 512, 0), 1024), ERROR, "WRITE across the cut")
            check_eq(os.stat(s.path).st_size, cut, "the file's size")
            if cut:
                check_eq(status(c, WRITE, 0), OK, "WRITE before the cut")
        s.check_alive()
        s.stop()


@test
def test_cutting_under_load(t):
    """Writers at the end of the file while it is cut and grown: clean answers, and no damage before the cut."""
    s = start(t, 4)
    stop = threading.Event()

    def load(sector):
        with s.client() as c:
            i = 0
            while not stop.is_set():
                i += 1
                check(status(c, WRITE if i % 2 else READ, (sector + i % 64) * 512) in (OK, ERROR), "an answer")

    def cutter():
        try:
            for i in range(40):
                os.truncate(s.path, (1 if i % 2 == 0 else 4) * MIB)
                stop.wait(0.02)
        finally:
            stop.set()

    with s.client() as c:
        c.write(0, b"\x77" * 4096)
    suite.run_threads([lambda: load(3 * 2048), lambda: load(3 * 2048 + 64), lambda: load(1024), cutter])
    s.check_alive()
    with s.client() as c:
        check_eq(c.read(0, 4096), b"\x77" * 4096, "what lies before every cut")


@test
def test_sizes_are_whole_sectors(t):
    image = t.tmp / "odd.img"
    image.write_bytes(b"\x55" * (MIB + 100))
    s = start_export(t, f"d=file:{image}")
    with s.client() as c:
        check_eq(status(c, READ, MIB - 512), OK, "READ of the last sector")
        check_eq(status(c, READ, MIB), ERROR, "READ of a part of a sector")
        os.truncate(image, MIB + 1023)
        until(c, READ, MIB, OK, "READ of the sector that is whole by now")
        check_eq(status(c, READ, MIB + 512), ERROR, "READ of the next part")


@test
def test_through_filters(t):
    image = t.tmp / "disk.img"
    image.write_bytes(bytes(MIB))
    s = start_export(t, options(f"d=file:{image}?delay-ms=1&readonly=1"))
    with s.client() as c:
        os.truncate(image, 2 * MIB)
        until(c, READ, MIB, OK, "READ of what was added below the filters")


@test
def test_sighup_looks_at_once(t):
    s = start(t, 1)
    os.truncate(s.path, 2 * MIB)
    s.signal(signal.SIGHUP)
    s.wait_log("is now 2 MiB")
    with s.client() as c:
        check_eq(status(c, READ, MIB), OK, "READ of what was added")


@test
def test_block_device(t):
    image = t.tmp / "loop.img"
    image.write_bytes(bytes(2 * MIB))
    p = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if p.returncode != 0:
        raise Skip(f"no loop device: {p.stderr.strip()[:100]}")
    dev = p.stdout.strip()
    t.defer(lambda: subprocess.run(["losetup", "-d", dev], check=False))
    s = start(t, 1, dev, more=["--state-dir", t.tmp / "state"])
    with s.client() as c:
        for size in (4 * MIB, MIB):
            os.truncate(image, size)
            subprocess.run(["losetup", "-c", dev], check=True)
            until(c, READ, size, ERROR, f"READ beyond {size}")
            until(c, READ, size - 512, OK, f"READ of the last sector of {size}")
            check_eq(status(c, WRITE, size), ERROR, f"WRITE beyond {size}")


# ---- a larger size= in the configuration

class Configured:
    def __init__(self, t, *stores):
        self.path, self.port = t.tmp / "netblk.toml", free_port()
        self.write(*stores)
        self.server = opened(serverproc.Server(t, ["--config", self.path], [self.port]))

    def write(self, *stores):
        self.path.write_text(f'listen = "netblk://127.0.0.1:{self.port}"\n' + "".join(
            f'[export.e{i}]\nstore = "{store}"\n' for i, store in enumerate(stores)))

    def reload(self, *stores):
        self.write(*stores)
        before = sum("SIGHUP" in line for line in self.server.lines())
        self.server.signal(signal.SIGHUP)
        return suite.wait_until(
            lambda: next(iter([x for x in self.server.lines() if "SIGHUP" in x][before:]), None), 5, "a reload")


@test
def test_reload_grows_without_reopening(t):
    image = t.tmp / "disk.img"
    conf = Configured(t, f"file:{image}?size=1M")
    record = pathlib.Path(f"{image}.netblk")
    generation = record.read_text().splitlines()[1:3]
    with conf.server.client() as c:
        c.write(0, b"\x11" * 512)
        conf.reload(f"file:{image}?size=3M")
        check_eq(status(c, READ, 3 * MIB - 512), OK, "READ of what was added, on the same connection")
        check_eq(c.read(0, 512), b"\x11" * 512, "the old data")
        check_eq(os.stat(image).st_size, 3 * MIB, "the file's size")
        conf.reload(f"file:{image}?size=2M")
        check_eq(status(c, READ, 3 * MIB - 512), OK, "READ after a smaller size=: it is never shrunk")
        conf.reload(f"file:{image}")
        check_eq(status(c, READ, 3 * MIB - 512), OK, "READ without a size=")
        conf.reload(f"file:{image}?size=4M")
        check_eq(status(c, READ, 4 * MIB - 512), OK, "READ after it grew again")
    conf.server.stop()
    check_eq(record.read_text().splitlines()[1:3], generation, "the generation")
    serverproc.Server(t, ["--config", conf.path], [conf.port]).stop()
    check_eq(record.read_text().splitlines()[1:3], generation, "the generation after a restart")


@test
def test_reload_that_cannot_grow_changes_nothing(t):
    image = t.tmp / "disk.img"
    conf = Configured(t, f"file:{image}?size=1M", "mem:1M")
    with conf.server.client() as c:
        line = conf.reload(f"file:{image}?size=8191P", "mem:2M")
        check("stays as it was" in line, f"a size that no file system has: {line}")
        line = conf.reload(f"file:{image}?size=4000000T", "mem:2M")
        check("stays as it was" in line and str(image) in line, f"a size that no file system has: {line}")
        line = conf.reload(f"file:{image}?size=1000", "mem:2M")
        check("stays as it was" in line, f"no whole sectors: {line}")
        check_eq(status(c, READ, MIB - 512), OK, "READ")
        check_eq(os.stat(image).st_size, MIB, "the file's size")


@test
def test_reload_of_another_option_reopens(t):
    image = t.tmp / "disk.img"
    conf = Configured(t, f"file:{image}?size=1M")
    conf.reload(f"file:{image}?size=2M&delay-ms=1")
    suite.wait_until(lambda: any("serves 1 export" in x for x in conf.server.lines()), 15, "the reload")
    with conf.server.client() as c:
        check_eq(status(c, READ, 2 * MIB - 512), OK, "READ of the store that was opened anew")


if __name__ == "__main__":
    sys.exit(suite.main("store-resize"))
