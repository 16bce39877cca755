#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Stores and filters behind a running server: block devices, direct I/O, delay, faults, read-only."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import ERROR, OK, READ, WRITE, request
from serverproc import free_port, options, run_cli, start, start_export
from suite import Skip, check, check_eq, test

MIB = 1 << 20


def model_run(server, size, content, steps):
    """Random pipelined operations against a model; returns what the store must hold."""
    rng = random.Random(suite.SEED)
    model = bytearray(content)
    with server.client() as c:
        for step in range(steps):
            burst, wanted = bytearray(), []
            for _ in range(rng.randrange(1, 10)):
                n = min(int(rng.paretovariate(0.6)), 1500) * 512
                at = rng.randrange(0, (size - n) // 512 + 1) * 512
                if rng.random() < 0.5:
                    data = rng.randbytes(n)
                    model[at:at + n] = data
                    burst += request(WRITE, at // 512, n) + data
                    wanted.append(b"\x00")
                else:
                    burst += request(READ, at // 512, n)
                    wanted.append(b"\x00" + bytes(model[at:at + n]))
            c.pipeline(bytes(burst))
            for i, w in enumerate(wanted):
                check_eq(c.recv(len(w)), w, f"step {step}, reply {i}")
    return bytes(model)


def loop_device(t, size):
    image = t.tmp / "loop.img"
    image.write_bytes(random.Random(4).randbytes(size))
    p = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if p.returncode != 0:
        raise Skip(f"no loop device: {p.stderr.strip()[:100]}")
    dev = p.stdout.strip()
    t.defer(lambda: subprocess.run(["losetup", "-d", dev], check=False))
    return dev, image


# ---- stores

@test
def test_memory_model(t):
    s = start_export(t, "disk=mem:4M")
    want = model_run(s, 4 * MIB, bytes(4 * MIB), 150)
    with s.client() as c:
        check_eq(c.read(0, 4 * MIB), want, "the whole store")


@test
def test_memory_is_sparse(t):
    """mem:SIZE takes memory for what was written, not for SIZE."""
    s = start_export(t, "disk=mem:64G")
    with s.client() as c:
        c.write((64 << 30) // 512 - 1, b"\x01" * 512)
        check_eq(c.read(0, MIB), bytes(MIB), "what was never written")
    check(s.rss_kib() < 256 << 10, f"RSS is {s.rss_kib()} KiB with 512 bytes written")


@test
def test_direct_model(t):
    """O_DIRECT: the alignment of buffers, lengths and offsets is the server's affair."""
    path = t.tmp / "disk.img"
    path.write_bytes(random.Random(5).randbytes(4 * MIB))
    probe = os.open(path, os.O_RDONLY)
    os.close(probe)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        raise Skip("the file system of the temporary directory has no O_DIRECT") from None
    s = start_export(t, f"disk=file:{path}?direct=1")
    flags = [int(x.split()[1], 8) for fd in os.listdir(f"/proc/{s.pid}/fd")
             if os.path.realpath(f"/proc/{s.pid}/fd/{fd}") == str(path)
             for x in pathlib.Path(f"/proc/{s.pid}/fdinfo/{fd}").read_text().splitlines() if x.startswith("flags:")]
    check(any(f & os.O_DIRECT for f in flags), f"direct=1, yet no descriptor of the file has O_DIRECT: {flags}")
    want = model_run(s, 4 * MIB, path.read_bytes(), suite.count(500, 80))
    s.stop()
    check_eq(path.read_bytes(), want, "the file")


@test
def test_block_device(t):
    dev, image = loop_device(t, 8 * MIB)
    s = start(t, 1, dev)
    want = model_run(s, 8 * MIB, image.read_bytes(), suite.count(500, 60))
    with s.client() as c:
        check_eq(c.read(0, 8 * MIB), want, "the whole device")
        c.send(request(READ, 8 * MIB // 512, 512))
        check_eq(c.status(), ERROR, "READ beyond the block device's end")
        c.send(request(WRITE, 8 * MIB // 512 - 1, 1024) + bytes(1024))
        check_eq(c.status(), ERROR, "WRITE across the block device's end")
    s.stop()
    check_eq(image.read_bytes(), want, "the image below the block device")


@test
def test_block_device_too_small(t):
    """A block device cannot be grown: said in words, and nothing is served."""
    dev, _ = loop_device(t, 8 * MIB)
    code, _, err = run_cli([free_port(), dev, 100])
    check_eq(code, 1, f"status; {err!r}")
    check(dev in err and len(err.strip().splitlines()) == 1, f"one line that names the device: {err!r}")


@test
def test_block_device_is_locked_too(t):
    dev, _ = loop_device(t, 8 * MIB)
    start(t, 1, dev)
    code, _, err = run_cli([free_port(), dev, 1], seconds=30)
    check_eq(code, 1, f"status; {err!r}")
    check(dev in err, f"the device is named: {err!r}")


# ---- filters

@test
def test_delay_does_not_reorder(t):
    s = start_export(t, "disk=mem:1M?delay-ms=30")
    with s.client() as c:
        for i in range(5):
            data = bytes([i + 1]) * 4096
            c.pipeline(request(WRITE, 0, 4096) + data + request(READ, 0, 4096) + request(READ, 1 << 50, 512)
                       + request(READ, 0, 512))
            c.write_reply()
            check_eq(c.read_reply(4096), data, f"READ after WRITE, round {i}")
            check_eq(c.status(), ERROR, "a refused READ keeps its place among slow ones")
            check_eq(c.read_reply(512), data[:512], "the last READ")


@test
def test_sigterm_while_the_store_is_slow(t):
    """Accepted, not yet answered by the store: the answer still comes, then the process exits 0."""
    for sig in (signal.SIGTERM, signal.SIGINT):
        s = start_export(t, "disk=mem:1M?delay-ms=1500")
        conns = [s.client() for _ in range(10)]
        for i, c in enumerate(conns):
            c.send(request(WRITE, i, 512) + bytes([i]) * 512 if i % 2 else request(READ, i, 512))
        s.wait_read()
        s.signal(sig)
        for i, c in enumerate(conns):
            check_eq(c.status(), OK, f"status of the request that connection {i} had in flight")
            if i % 2 == 0:
                check_eq(c.recv(512), bytes(512), "its data")
            check_eq(c.drain_to_end(), b"", "bytes after it")
        check_eq(s.wait(10), 0, "exit status")


@test
def test_client_gone_while_the_store_is_slow(t):
    """The buffers of a request outlive its connection: RST in the middle, 300 times."""
    s = start_export(t, "disk=mem:4M?delay-ms=5")
    fds = None
    for i in range(300):
        c = s.client()
        c.send(request(READ, 0, 65536) * 8 + request(WRITE, 1024, 65536) + bytes([i % 256]) * 65536 + request(READ, 0, 512))
        if i % 2:
            c.reset()
        else:
            c.close()
        if i == 20:
            with s.client() as d:
                d.read(0, 512)
            fds = serverproc.settle(s.fds, 0, 0.5)
    s.check_alive()
    with s.client() as d:
        got = d.read(1024, 65536)
        check(len(set(got)) == 1, f"a WRITE of 64 KiB was applied in part: {sorted(set(got))}")
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")


@test
def test_faults_on_read_and_write(t):
    s = start_export(t, "disk=mem:1M?fault=read+write&fault-one-in=4")
    seen = {READ: [], WRITE: []}
    model = bytearray(4096)
    unknown = set()  # sectors whose last WRITE was refused: old or new
    with s.client() as c:
        for i in range(400):
            k = i % 8
            data = bytes([i % 256]) * 512
            c.send(request(WRITE, k, 512) + data + request(READ, k, 512))
            st = c.status()
            seen[WRITE].append(st)
            if st == OK:
                model[k * 512:k * 512 + 512] = data
                unknown.discard(k)
            else:
                unknown.add(k)
            st = c.status()
            seen[READ].append(st)
            if st == OK:
                got = c.recv(512)
                if k not in unknown:
                    check_eq(got, bytes(model[k * 512:k * 512 + 512]), f"READ {i}")
    for cmd, name in ((READ, "READ"), (WRITE, "WRITE")):
        failed = seen[cmd].count(ERROR)
        check(0 < failed < 400, f"{failed} of 400 {name}s failed with fault-one-in=4")
    s.check_alive()


@test
def test_fault_on_flush_poisons(t):
    """One failed flush: no later WRITE may be called durable, READs go on."""
    s = start_export(t, f"disk=file:{t.tmp}/x.img?size=1M&fault=flush&fault-one-in=5")
    with s.client() as c:
        statuses = []
        for i in range(100):
            c.send(request(WRITE, i, 512) + b"\x11" * 512)
            statuses.append(c.status())
        check(ERROR in statuses, "no WRITE failed with fault=flush")
        first = statuses.index(ERROR)
        check(OK not in statuses[first:], f"WRITE {first} failed by its flush, a later one was said to be durable: {statuses}")
        c.read(0, 512)
    with s.client() as c:
        c.send(request(WRITE, 0, 512) + bytes(512))
        check_eq(c.status(), ERROR, "WRITE of a new connection")
        c.read(0, 512)


@test
def test_readonly_filter(t):
    s = start_export(t, "disk=mem:1M?readonly=1")
    with s.client() as c:
        c.send(request(WRITE, 0, 512) + bytes(512) + request(READ, 0, 512))
        check_eq(c.status(), ERROR, "WRITE")
        check_eq(c.read_reply(512), bytes(512), "in step")


@test
def test_filters_combined(t):
    (t.tmp / "x.img").write_bytes(bytes(MIB))
    s = start_export(t, options(f"disk=file:{t.tmp}/x.img?delay-ms=1", ro=None, max_conns=1))
    with s.client() as c:
        c.send(request(WRITE, 0, 512) + bytes(512))
        check_eq(c.status(), ERROR, "WRITE")
        check_eq(c.read(0, 512), bytes(512), "READ")
        try:
            with s.client() as d:
                d.read(0, 512)
        except (netblk1.Closed, ConnectionError):
            return
        raise AssertionError("served beyond max-conns=1")


if __name__ == "__main__":
    sys.exit(suite.main("stores"))
