#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""NBD's transmission phase: every command and flag, in each of the three reply modes where it can differ.

NETBLK_NBD_PEER=nbdkit (or qemu-nbd, nbd-server) runs it against that server instead of ours."""

import functools
import os
import pathlib
import random
import re
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import nbd
import nbd_target
import serverproc
import suite
from nbd import (CMD_BLOCK_STATUS, CMD_CACHE, CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, DF, EINVAL, ENOSPC,
                 ENOTSUP, EOVERFLOW, EPERM, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE)
from nbd_target import MIB, PEER, needs, start
from suite import check, check_eq, test

SIZE = 16 * MIB
GIB = 1 << 30
MODES = ("simple", "structured", "extended")
META = ("base:allocation",)


def modes(*which, timeout=60):
    """Registers a test once for each reply mode."""
    def register(fn):
        for mode in which or MODES:
            def run(t, mode=mode):
                if mode != "simple":
                    needs(mode)
                fn(t, mode)
            run.__name__ = f"{fn.__name__}_{mode}"
            test(timeout=timeout)(run)
        return fn
    return register


@functools.cache
def noise(n, seed=1):
    return random.Random(seed).randbytes(n)


def filled(t, size=SIZE, seed=7):
    path = t.tmp / "disk.img"
    path.write_bytes(noise(size, seed))
    return path


def allocated(path):
    return os.stat(path).st_blocks * 512


# ---- READ and WRITE

@modes()
def test_read_and_write(t, mode):
    """Byte ranges of any alignment."""
    needs("unaligned")
    path = filled(t)
    model = bytearray(path.read_bytes())
    c = start(t, path=path).client(replies=mode)
    rng = random.Random(suite.SEED)
    places = [(0, 1), (1, 1), (511, 2), (512, 512), (4095, 4098), (SIZE - 1, 1), (SIZE - 513, 513), (1, MIB + 1), (0, 3 * MIB + 7)]
    places += [(at, rng.randrange(1, min(70000, SIZE - at))) for at in (rng.randrange(SIZE - 1) for _ in range(60))]
    for at, n in places:
        check_eq(c.read(at, n), bytes(model[at:at + n]), f"READ {n} at {at}")
        data = rng.randbytes(n)
        c.write(at, data)
        model[at:at + n] = data
        check_eq(c.read(max(at - 600, 0), min(n + 1200, SIZE - max(at - 600, 0))),
                 bytes(model[max(at - 600, 0):max(at - 600, 0) + min(n + 1200, SIZE - max(at - 600, 0))]), f"around WRITE {n} at {at}")
    c.flush()
    check_eq(path.read_bytes(), bytes(model), "the file")


@modes()
def test_whole_payload(t, mode):
    """32 MiB in one READ and in one WRITE, as advertised."""
    c = start(t, size=40 * MIB).client(replies=mode)
    data = noise(32 * MIB)
    c.write(4097, data)
    check_eq(c.read(4097, 32 * MIB), data, "32 MiB")
    check_eq(c.read(4096 + 32 * MIB, 4096), data[-1:] + bytes(4095), "behind it")


@modes("simple", "structured")
def test_64_mib_where_a_client_cannot_ask(t, mode):
    """EXPORT_NAME tells no maximum: 64 MiB is served."""
    needs("64MiB")
    c = start(t, size=80 * MIB).connect()
    if mode == "structured":
        c.structured()
    c.export_name("disk")
    data = noise(64 * MIB)
    c.write(0, data)
    check_eq(c.read(0, 64 * MIB), data, "64 MiB")
    check_eq(c.read(64 * MIB, 512), bytes(512), "behind it")
    if PEER:
        return
    try:
        error = c.error_of(CMD_READ, 0, 64 * MIB + 1)
        check(error in (EINVAL, EOVERFLOW), f"READ of 64 MiB + 1: error {error}")
    except nbd.Closed:
        pass


@modes()
def test_over_the_maximum_payload(t, mode):
    """A WRITE beyond 32 MiB from a client that was told: served, refused or closed, and nothing else harmed."""
    s = start(t, size=96 * MIB)
    witness = nbd_target.Witness(s, offset=95 * MIB)
    for n in (32 * MIB + 1, 48 * MIB, 64 * MIB, 64 * MIB + 1, 80 * MIB):
        c = s.client(replies=mode)
        c.max_payload = None
        for command, data in ((CMD_READ, b""), (CMD_WRITE, bytes(n))):
            try:
                error = c.error_of(command, 0, n, 0, data)
                check(error in (0, EINVAL, EOVERFLOW), f"command {command} of {n}: error {error}")
                c.read(0, 512)
            except nbd.Closed:
                c.close()
                c = s.client(replies=mode)
                c.max_payload = None
        witness.check()
        c.close()


@modes()
def test_many_in_flight(t, mode):
    """Each reply has its request's cookie, and every bit of a cookie comes back."""
    needs("unaligned")
    path = filled(t)
    model = path.read_bytes()
    c = start(t, path=path).client(replies=mode)
    rng = random.Random(suite.SEED)
    wanted, cookies = {}, [0, 1, 1 << 63, (1 << 64) - 1, 0xDEADBEEF, *range(100, 800)]
    for cookie in cookies:
        at, n = rng.randrange(SIZE - 9000), rng.choice((1, 512, 4096, rng.randrange(1, 9000)))
        wanted[c.submit(CMD_READ, at, n, cookie=cookie)] = model[at:at + n]
    for cookie in rng.sample(cookies, len(cookies)):
        check_eq(c.wait(cookie).ok().data, wanted[cookie], f"cookie {cookie:#x}")


@modes()
def test_mixed_trace(t, mode):
    """A seeded trace of all commands with up to 16 in flight, none that overlaps another in flight, against a model."""
    needs("unaligned")
    path = filled(t, 4 * MIB)
    model = bytearray(path.read_bytes())
    c = start(t, path=path).client(replies=mode, meta=META if mode != "simple" else ())
    rng = random.Random(suite.SEED)
    flying = {}

    def settle():
        result = c.wait_any().ok()
        at, n, command, seen = flying.pop(result.request.cookie)
        if command == CMD_READ:
            check_eq(result.data, seen, f"READ {n} at {at}")
        elif command == CMD_BLOCK_STATUS:
            for length, state in next(iter(result.extents.values())):
                check(not state & nbd.STATE_ZERO or model.count(0, at, at + length) == length, f"{length} at {at} said to be zero")
                at += length
    for _ in range(suite.count(10000, 1000)):
        at = rng.randrange(4 * MIB)
        n = rng.randrange(1, min(1 << rng.randrange(1, 17), 4 * MIB - at) + 1)
        if any(a < at + n and at < a + m for a, m, _, _ in flying.values()) or len(flying) == 16:
            settle()
            continue
        command = rng.choice([CMD_READ] * 4 + [CMD_WRITE] * 4 + [CMD_WRITE_ZEROES, CMD_FLUSH] +
                             ([CMD_CACHE] if c.flags & nbd.SEND_CACHE else []) + ([CMD_BLOCK_STATUS] if mode != "simple" else []))
        flags = rng.choice((0, FUA)) if command in (CMD_WRITE, CMD_WRITE_ZEROES) else 0
        data = rng.randbytes(n) if command == CMD_WRITE else b""
        if command == CMD_BLOCK_STATUS:
            while flying:
                settle()
        seen = bytes(model[at:at + n])
        cookie = c.submit(command, *((0, 0) if command == CMD_FLUSH else (at, n)), flags, data)
        flying[cookie] = (at, n, command, seen)
        if command in (CMD_WRITE, CMD_WRITE_ZEROES):
            model[at:at + n] = data or bytes(n)
    while flying:
        settle()
    check_eq(c.read(0, 4 * MIB), bytes(model), "the whole export")


# ---- FUA, FLUSH, and what several connections see

@modes()
def test_fua_on_every_command(t, mode):
    """With SEND_FUA the server MUST accept it on all of them."""
    c = start(t).client(replies=mode, meta=META if mode != "simple" else ())
    check(c.flags & nbd.SEND_FUA, "SEND_FUA")
    c.write(0, noise(4096), FUA)
    check_eq(c.read(0, 4096, FUA), noise(4096), "READ with FUA")
    c.zero(4096, 4096, FUA)
    c.trim(8192, 4096, FUA)
    check_eq(c.error_of(CMD_FLUSH, flags=FUA), 0, "FLUSH with FUA")
    if c.flags & nbd.SEND_CACHE:
        c.cache(0, 4096, FUA)
    if mode != "simple":
        c.status(0, 4096, FUA)


@test
def test_flush_and_fua_reach_the_disk(t):
    """A sync of the file between request and reply, seen from outside; none for a plain WRITE."""
    if PEER:
        raise suite.Skip("strace of our server only")
    trace = serverproc.Strace(t, "-e", "trace=fsync,fdatasync,pwrite64,pwritev,pwritev2,sync_file_range,fallocate")
    s = start(t, wrap=trace.wrap, io="epoll")
    c = s.client()
    for n in range(10):
        c.write(n * 4096, noise(4096))
    for n in range(10):
        c.write(n * 4096, noise(4096), FUA)
    for n in range(7):
        c.write(n * 4096, noise(4096))
        c.flush()
    c.zero(0, 4096, FUA)
    c.close()
    s.server.stop()
    lines = [x for x in trace.lines(s.server.pid) if f"<{s.path}>" in x]
    plain = lines[:next(i for i, x in enumerate(lines) if re.search(r"f(data)?sync\(|RWF_(D)?SYNC", x))]
    syncs = [x for x in lines if re.search(r"f(data)?sync\(|RWF_D?SYNC", x)]
    check(len(plain) >= 10, f"10 plain WRITEs come before the first sync: {plain}")
    check(len(syncs) >= 18, f"{len(syncs)} syncs for 11 FUA requests and 7 FLUSHes")


@modes()
def test_flush_on_another_connection(t, mode):
    """CAN_MULTI_CONN: what one connection wrote, a FLUSH on another makes durable: kill -9, and it is all there."""
    path = nbd_target.image(t, SIZE)
    s = start(t, path=path)
    writer, flusher, reader = (s.client(replies=mode) for _ in range(3))
    check(writer.flags & nbd.CAN_MULTI_CONN, "CAN_MULTI_CONN")
    data = noise(MIB)
    for at in range(0, MIB, 65536):
        writer.write(at, data[at:at + 65536])
    check_eq(reader.read(0, MIB), data, "a third connection sees it at once")
    flusher.flush()
    if PEER:
        return
    s.server.signal(signal.SIGKILL)
    s.server.wait()
    again = start(t, path=path).client(replies=mode)
    check_eq(again.read(0, MIB), data, "after kill -9")


# ---- flags

def refused_flags(c, mode):
    """(command, flags) that no text allows."""
    every = [CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES]
    if mode != "simple":
        every.append(CMD_BLOCK_STATUS)
    for command in every:
        if command == CMD_CACHE and not c.flags & nbd.SEND_CACHE:
            continue
        for flags in (NO_HOLE, DF, REQ_ONE, FAST_ZERO, 1 << 6, 1 << 9, 1 << 15, FUA | 1 << 15):
            own = {CMD_READ: DF if mode != "simple" else 0, CMD_WRITE_ZEROES: NO_HOLE | FAST_ZERO, CMD_BLOCK_STATUS: REQ_ONE}
            if flags & ~FUA & ~own.get(command, 0):
                yield command, flags


@modes()
def test_flags_that_do_not_apply(t, mode):
    """EINVAL, with a refused WRITE's data drained."""
    c = start(t).client(replies=mode, meta=META if mode != "simple" else ())
    c.write(0, noise(4096))
    for command, flags in refused_flags(c, mode):
        data = b"\x25\x60\x95\x13" * 1024 if command == CMD_WRITE else b""  # were it not drained, it would be a request
        length = 0 if command == CMD_FLUSH else 4096
        check_eq(c.error_of(command, 0, length, flags, data), EINVAL, f"command {command} with flags {flags:#x}")
    check_eq(c.read(0, 4096), noise(4096), "the export")


@modes("structured", "extended")
def test_read_df(t, mode):
    """DF: one chunk, holes or not; 64 KiB MUST be served, more may be EOVERFLOW."""
    path = nbd_target.image(t, 40 * MIB)
    with open(path, "r+b") as f:
        f.seek(16384)
        f.write(noise(4096))
    model = bytes(16384) + noise(4096) + bytes(65536 - 20480)
    c = start(t, path=path).client(replies=mode)
    check_eq(c.read(0, 65536, DF), model, "64 KiB of data and holes")
    check_eq(c.read(16384, 4096, DF), noise(4096), "data alone")
    check_eq(c.read(32 * MIB, 65536, DF), bytes(65536), "a hole alone")
    result = c.call(CMD_READ, 0, 32 * MIB, DF)
    check(result.error in (0, EOVERFLOW), f"32 MiB with DF: error {result.error}")
    check_eq(c.read(0, 20480), model[:20480], "and without DF")


@modes()
def test_unknown_commands(t, mode):
    """EINVAL, and the stream stays in step."""
    c = start(t).client(replies=mode)
    for command in (nbd.CMD_RESIZE, 9, 10, 100, 255, 256, 0x7FFF, 0xFFFF):
        for at, n in ((0, 0), (0, 4096), (4096, 1)):
            check_eq(c.error_of(command, at, n), EINVAL, f"command {command} at {at} length {n}")
        check_eq(c.read(0, 512), bytes(512), f"READ after command {command}")


# ---- ranges

def outside(extended):
    yield from ((SIZE, 1), (SIZE - 1, 2), (SIZE, 4096), (SIZE + 4096, 512), (1 << 63, 512), ((1 << 63) - 1, 1), ((1 << 64) - 512, 512),
                ((1 << 64) - 1, 1), ((1 << 64) - 4096, 8192), (SIZE - 512, 1024))
    if extended:
        yield from ((0, 1 << 32), (0, (1 << 63) - 1), (1, (1 << 64) - 1), ((1 << 64) - 1, (1 << 64) - 1), (512, (1 << 64) - 512))


@modes()
def test_outside_the_export(t, mode):
    """ENOSPC for WRITE and WRITE_ZEROES, EINVAL for the rest; nothing of it is done."""
    path = filled(t)
    c = start(t, path=path).client(replies=mode, meta=META if mode != "simple" else ())
    for command in (CMD_READ, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, *((CMD_BLOCK_STATUS,) if mode != "simple" else ())):
        if command == CMD_CACHE and not c.flags & nbd.SEND_CACHE:
            continue
        for at, n in (*outside(mode == "extended"), *(((0, 0xFFFFFFFF),) if command != CMD_READ else ())):
            error = c.error_of(command, at, n)
            wanted = (ENOSPC,) if command == CMD_WRITE_ZEROES else (EINVAL, EOVERFLOW) if n >> 32 else (EINVAL,)
            check(error in wanted or (PEER and error in (EINVAL, ENOSPC)), f"command {command} at {at} length {n}: error {error}")
    for at, n in outside(False):
        data = (b"\x25\x60\x95\x13" * (n // 4 + 1))[:n]
        error = c.error_of(CMD_WRITE, at, n, 0, data)
        check(error == ENOSPC or (PEER and error in (EINVAL, ENOSPC)), f"WRITE at {at} length {n}: error {error}")
    check_eq(path.read_bytes(), noise(SIZE, 7), "the file")
    check_eq(c.read(SIZE - 1, 1), noise(SIZE, 7)[-1:], "the last byte")


@modes()
def test_length_zero(t, mode):
    """Unspecified, but the server SHOULD NOT disconnect."""
    c = start(t).client(replies=mode, meta=META if mode != "simple" else ())
    for command in (CMD_READ, CMD_WRITE, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, *((CMD_BLOCK_STATUS,) if mode != "simple" else ())):
        for at in (0, 4096, SIZE):
            flags = PAYLOAD_LEN if mode == "extended" and command == CMD_WRITE else 0
            error = c.error_of(command, at, 0, flags)
            check(error in (0, EINVAL, ENOSPC), f"command {command} of length 0 at {at}: error {error}")
    check_eq(c.read(0, 512), bytes(512), "READ afterwards")


@modes()
def test_flush_with_a_range(t, mode):
    """Reserved fields: served, or EINVAL."""
    c = start(t).client(replies=mode)
    for at, n in ((0, 4096), (4096, 0), ((1 << 64) - 1, 0xFFFFFFFF)):
        check(c.error_of(CMD_FLUSH, at, n) in (0, EINVAL), f"FLUSH at {at} length {n}")
    c.flush()


@modes()
def test_read_only(t, mode):
    """EPERM for every command that writes, with or without FUA, in range or out; what is read goes on."""
    path = filled(t)
    s = start(t, path=path, ro=True)
    c = s.client(replies=mode, meta=META if mode != "simple" else ())
    for flags in (0, FUA) if c.flags & nbd.SEND_FUA else (0,):
        for at, n in ((0, 512), (1, 1), (4096, 65536), (0, MIB)):
            check_eq(c.error_of(CMD_WRITE, at, n, flags, b"\x25\x60\x95\x13" * (n // 4) + b"\x25" * (n % 4)), EPERM, f"WRITE {n}")
            check_eq(c.error_of(CMD_TRIM, at, n, flags), EPERM, f"TRIM {n}")
            check_eq(c.error_of(CMD_WRITE_ZEROES, at, n, flags), EPERM, f"WRITE_ZEROES {n}")
            check_eq(c.read(at, n), noise(SIZE, 7)[at:at + n], f"READ {n}")
    check(c.error_of(CMD_WRITE, SIZE, 512, 0, bytes(512)) in (EPERM, ENOSPC, EINVAL), "WRITE beyond the end")
    if c.flags & nbd.SEND_FLUSH:
        c.flush()
    if mode != "simple":
        c.map()
    check_eq(path.read_bytes(), noise(SIZE, 7), "the file")


# ---- TRIM, WRITE_ZEROES, CACHE

@modes()
def test_trim(t, mode):
    """Outside the range nothing changes; inside, old or zero; and the file gets smaller on the disk."""
    path = filled(t)
    c = start(t, path=path).client(replies=mode)
    before, model = allocated(path), noise(SIZE, 7)
    for at, n in ((4096, 4096), (MIB + 1, 5), (2 * MIB + 100, 20000), (4 * MIB, 4 * MIB), (SIZE - 4096, 4096)):
        c.trim(at, n)
        got = c.read(max(at - 4096, 0), min(n + 8192, SIZE - at + 4096))
        base = max(at - 4096, 0)
        check_eq(got[:at - base], model[base:at], f"before TRIM {n} at {at}")
        check_eq(got[at - base + n:], model[at + n:base + len(got)], f"behind TRIM {n} at {at}")
        check(all(g in (0, m) for g, m in zip(got[at - base:at - base + n], model[at:at + n])), f"TRIM {n} at {at}: other bytes")
    c.flush()
    check(allocated(path) <= before - 4 * MIB, f"{allocated(path)} bytes allocated, {before} before TRIM of 4 MiB")


@modes()
def test_write_zeroes(t, mode):
    """Zeroes to the byte, whatever the alignment; with NO_HOLE the place stays provisioned."""
    needs("unaligned")
    path = filled(t)
    c = start(t, path=path).client(replies=mode)
    model = bytearray(path.read_bytes())
    for flags in (0, NO_HOLE, FUA, NO_HOLE | FUA):
        for at, n in ((flags * MIB + 4096, 4096), (flags * MIB + 10001, 3), (flags * MIB + 20000, 300000), (SIZE - 1, 1)):
            c.zero(at, n, flags)
            model[at:at + n] = bytes(n)
            base = max(at - 8192, 0)
            end = min(at + n + 8192, SIZE)
            check_eq(c.read(base, end - base), bytes(model[base:end]), f"around WRITE_ZEROES {n} at {at} flags {flags}")
    check_eq(path.read_bytes(), bytes(model), "the file")


@test
def test_write_zeroes_no_hole_is_provisioned(t):
    path = filled(t)
    c = start(t, path=path).client()
    before = allocated(path)
    c.zero(0, 4 * MIB, NO_HOLE)
    c.flush()
    check(allocated(path) >= before, f"{allocated(path)} bytes allocated, {before} before WRITE_ZEROES with NO_HOLE")
    check_eq(c.read(0, 4 * MIB), bytes(4 * MIB), "zeroes")
    c.zero(4 * MIB, 4 * MIB)
    c.flush()
    check(allocated(path) <= before - 4 * MIB, f"{allocated(path)} bytes allocated, {before} before; without NO_HOLE a hole is cheaper")


@modes()
def test_fast_zero(t, mode):
    """Done, or ENOTSUP with nothing changed; on a file with holes it is done."""
    needs("fast-zero")
    path = filled(t)
    c = start(t, path=path).client(replies=mode)
    check(c.flags & nbd.SEND_FAST_ZERO, "SEND_FAST_ZERO")
    model = bytearray(path.read_bytes())
    results = []
    for at, n, flags in ((0, MIB, 0), (2 * MIB, 4 * MIB, 0), (7 * MIB, MIB, NO_HOLE), (9 * MIB + 3, 100, 0), (10 * MIB, 4096, FUA)):
        error = c.error_of(CMD_WRITE_ZEROES, at, n, flags | FAST_ZERO)
        check(error in (0, ENOTSUP), f"{n} at {at}: error {error}")
        if not error:
            model[at:at + n] = bytes(n)
        results.append(error)
        check_eq(c.read(0, SIZE), bytes(model), f"after FAST_ZERO {n} at {at}, error {error}")
    check_eq(results[:2], [0, 0], "aligned zeroes on a file: punched")


@modes()
def test_cache(t, mode):
    needs("cache")
    c = start(t, path=filled(t)).client(replies=mode)
    check(c.flags & nbd.SEND_CACHE, "SEND_CACHE")
    for at, n in ((0, 4096), (1, 1), (0, SIZE), (SIZE - 1, 1)):
        c.cache(at, n)
    check_eq(c.read(0, SIZE), noise(SIZE, 7), "the export")


# ---- BLOCK_STATUS

def sparse(t, size=SIZE):
    """Data at 1–2 MiB, at 5 MiB (64 KiB) and at the end (64 KiB)."""
    path = nbd_target.image(t, size)
    with open(path, "r+b") as f:
        for at, n in ((MIB, MIB), (5 * MIB, 65536), (size - 65536, 65536)):
            f.seek(at)
            f.write(noise(n, at))
    return path


def holes_of(path, size):
    """[(offset, length, state)] by SEEK_HOLE and SEEK_DATA."""
    out, at = [], 0
    with open(path, "rb") as f:
        while at < size:
            try:
                data = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                data = size
            if data > at:
                out.append((at, data - at, 3))
                at = data
            if at < size:
                end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
                out.append((at, end - at, 0))
                at = end
    return out


@modes("structured", "extended")
def test_block_status(t, mode):
    """The store's real holes."""
    path = sparse(t)
    c = start(t, path=path).client(replies=mode, meta=META)
    wanted = holes_of(path, SIZE)
    check(len(wanted) >= 5, f"this file system has holes: {wanted}")
    check_eq(c.map(), wanted, "the map")
    check_eq(c.map(MIB - 512, 6 * MIB)[0], (MIB - 512, 512, 3), "a query that begins in a hole")
    check_eq(c.map(5 * MIB + 4096, 5 * MIB + 8192), [(5 * MIB + 4096, 4096, 0)], "a query within data")


@modes("structured", "extended")
def test_block_status_unaligned(t, mode):
    """Any byte range; each answer makes progress and stays true."""
    needs("unaligned")
    path = sparse(t)
    model = path.read_bytes()
    c = start(t, path=path).client(replies=mode, meta=META)
    rng = random.Random(suite.SEED)
    for _ in range(100):
        at = rng.choice((rng.randrange(SIZE), MIB + rng.randrange(-600, 600), SIZE - rng.randrange(1, 70000)))
        n = rng.randrange(1, SIZE - at + 1)
        for flags in (0, REQ_ONE):
            place = at
            for length, state in c.status(at, n, flags):
                if state & nbd.STATE_ZERO:
                    check(model.count(0, place, place + length) == length, f"{length} at {place} said to be zero")
                place += length


@modes("structured", "extended")
def test_block_status_req_one(t, mode):
    path = sparse(t)
    c = start(t, path=path).client(replies=mode, meta=META)
    at, got = 0, []
    while at < SIZE:
        (n, state), = c.status(at, SIZE - at, REQ_ONE)
        got.append((at, n, state))
        at += n
    check_eq(got, holes_of(path, SIZE), "extent by extent")
    check_eq(c.status(0, 4096, REQ_ONE), [(4096, 3)], "cut at the end of the request")


@modes("structured", "extended")
def test_block_status_follows_writes(t, mode):
    path = nbd_target.image(t, SIZE)
    c = start(t, path=path).client(replies=mode, meta=META)
    check_eq(c.map(), [(0, SIZE, 3)], "an empty file")
    c.write(4 * MIB, noise(MIB))
    check_eq(c.map(4 * MIB, 5 * MIB), [(4 * MIB, MIB, 0)], "after a WRITE")
    c.flush()
    c.zero(4 * MIB, 65536)
    check(c.map(4 * MIB, 4 * MIB + 65536)[0][2] & nbd.STATE_ZERO, "after WRITE_ZEROES")
    check_eq(c.map(4 * MIB + 65536, 5 * MIB)[0][2], 0, "beside it")


@modes("structured", "extended")
def test_block_status_not_negotiated(t, mode):
    c = start(t).client(replies=mode)
    check_eq(c.error_of(CMD_BLOCK_STATUS, 0, 4096), EINVAL, "BLOCK_STATUS without a context")
    check_eq(c.read(0, 512), bytes(512), "READ afterwards")


@modes("structured", "extended")
def test_block_status_of_many_extents(t, mode):
    """2,000 holes: no answer is longer than the text allows, and the whole map comes in as many as it takes."""
    path = nbd_target.image(t, 32 * MIB)
    with open(path, "r+b") as f:
        for at in range(0, 32 * MIB, 16384):
            f.seek(at)
            f.write(b"\x01" * 4096)
    wanted = holes_of(path, 32 * MIB)
    c = start(t, path=path, size=32 * MIB).client(replies=mode, meta=META)
    check_eq(c.map(), wanted, "the map")


# ---- lengths beyond 32 bits

@test
def test_64_bit_lengths(t):
    needs("extended")
    size = 10 * GIB
    path = nbd_target.image(t, size)
    with open(path, "r+b") as f:
        for at in (MIB, 5 * GIB, size - MIB):
            f.seek(at)
            f.write(noise(65536))
    c = start(t, path=path, size=size).client(replies="extended", meta=META)
    check_eq(c.size, size, "the size")
    extents = c.status(2 * MIB, size - 2 * MIB)
    check_eq(extents[0], (5 * GIB - 2 * MIB, 3), "a hole of almost 5 GiB in one extent")
    check_eq(c.read(5 * GIB, 65536), noise(65536), "data beyond 4 GiB")
    c.cache(0, 6 * GIB)
    c.zero(4096, 6 * GIB)
    check_eq(c.read(5 * GIB, 65536), bytes(65536), "after WRITE_ZEROES of 6 GiB")
    check_eq(c.read(size - MIB, 65536), noise(65536), "beyond them")
    c.trim(0, size)
    check_eq(c.map(), [(0, size, 3)], "after TRIM of it all")
    check(c.error_of(CMD_WRITE_ZEROES, 4096, size) == ENOSPC, "WRITE_ZEROES beyond the end")
    result = c.call(CMD_READ, 0, 5 * GIB)
    check(result.error in (EINVAL, EOVERFLOW), f"READ of 5 GiB: error {result.error}")
    check_eq(c.read(0, 512), bytes(512), "READ afterwards")
    c.disconnect()


@modes("simple", "structured")
def test_32_bit_lengths_in_full(t, mode):
    """TRIM, WRITE_ZEROES and CACHE of almost 4 GiB: no payload, so no limit."""
    size = 6 * GIB
    path = nbd_target.image(t, size)
    with open(path, "r+b") as f:
        f.seek(3 * GIB)
        f.write(noise(65536))
    c = start(t, path=path, size=size).client(replies=mode)
    n = (1 << 32) - 65536
    if c.flags & nbd.SEND_CACHE:
        check(c.error_of(CMD_CACHE, 0, n) in ((0,) if not PEER else (0, EINVAL, EOVERFLOW)), "CACHE")
    c.zero(0, n)
    check_eq(c.read(3 * GIB, 65536), bytes(65536), "zeroes")
    c.trim(GIB, n)
    check_eq(c.read(size - 512, 512), bytes(512), "the end")


@test
def test_extended_payload_flag(t):
    """A WRITE has its data with PAYLOAD_LEN and, as QEMU's client sends it, without; on other commands the flag is EINVAL, with
    the payload consumed."""
    needs("extended")
    c = start(t).client(replies="extended", meta=META)
    c.write(0, noise(4096))
    cookie = c.submit(CMD_WRITE, 4096, 512)
    c.send(noise(512, 2))
    check_eq(c.wait(cookie).error, 0, "WRITE without PAYLOAD_LEN")
    check_eq(c.read(4096, 512), noise(512, 2), "what it wrote")
    for command in (CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, 77):
        data = b"\x21\xe4\x1c\x71" * 128
        check_eq(c.error_of(command, 0, len(data), PAYLOAD_LEN, data), EINVAL, f"command {command} with a payload")
        check_eq(c.read(0, 4096), noise(4096), f"READ after command {command} with a payload")


@test
def test_extended_block_status_payload(t):
    """The contexts to answer for; where the server has no such form, EINVAL and the payload consumed."""
    needs("extended")
    path = sparse(t)
    c = start(t, path=path).client(replies="extended", meta=META)
    context, = c.contexts
    good = (4096).to_bytes(8, "big") + context.to_bytes(4, "big")
    result = c.call(CMD_BLOCK_STATUS, 0, len(good), PAYLOAD_LEN, good)
    if c.flags & nbd.BLOCK_STATUS_PAYLOAD:
        check_eq(result.error, 0, "the negotiated context")
        check(context in result.extents, "its status")
    else:
        check_eq(result.error, EINVAL, "a payload that the server does not advertise")
    for bad in (good + context.to_bytes(4, "big"), good[:8] + (context ^ 0x55).to_bytes(4, "big"), good[:7], good + b"\0",
                (1 << 63).to_bytes(8, "big") + good[8:]):
        check_eq(c.error_of(CMD_BLOCK_STATUS, 0, len(bad), PAYLOAD_LEN, bad), EINVAL, f"payload {bad.hex()}")
    check_eq(c.read(MIB, 4096), noise(MIB, MIB)[:4096], "READ afterwards")


# ---- the end

@modes()
def test_disc(t, mode):
    """Every request before it is done, the connection ends cleanly, and DISC has no reply."""
    path = nbd_target.image(t, SIZE)
    s = start(t, path=path)
    c = s.client(replies=mode)
    c.disconnect()
    c = s.client(replies=mode)
    data = noise(4 * MIB)
    for at in range(0, 4 * MIB, 65536):
        c.submit(CMD_WRITE, at, 65536, 0, data[at:at + 65536])
    c.submit(nbd.CMD_DISC)
    try:  # the text has them handled; it does not say answered
        while c.pending:
            check_eq(c.wait_any().error, 0, "a WRITE before DISC")
        check_eq(c.stream.drain(), b"", "bytes after the last reply")
        check_eq(c.stream.end, "end of stream", "how it ended")
    except nbd.Closed:
        check(PEER, "WRITEs before DISC were not answered")
    check_eq(s.client(replies=mode).read(0, 4 * MIB), data, "what was written")


@modes()
def test_end_of_stream_is_a_disconnect(t, mode):
    """A client that closes for sending gets its answers, and then the end."""
    c = start(t).client(replies=mode)
    for at in range(0, MIB, 4096):
        c.submit(CMD_WRITE, at, 4096, 0, noise(4096))
    c.half_close()
    while c.pending:
        check_eq(c.wait_any().error, 0, "a WRITE before the end")
    check_eq(c.stream.drain(), b"", "bytes after the last reply")


@test
def test_sigterm_drains(t):
    """What was accepted is answered, with success or ESHUTDOWN; then the end, and status 0."""
    if PEER:
        raise suite.Skip("our server only")
    s = start(t)
    c = s.client()
    idle = s.client()
    middle = s.connect()
    for n in range(64):
        c.submit(CMD_WRITE, n * 65536, 65536, 0, noise(65536))
    c.wait_any()
    s.server.signal(signal.SIGTERM)
    try:
        while c.pending:
            c.receive()
    except nbd.Closed:
        pass
    errors = {r.error for r in c.done.values()}
    check(errors <= {0, nbd.ESHUTDOWN}, f"errors while it ends: {errors}")
    for other in (idle, middle):
        other.stream.drain()
    check_eq(s.server.wait(), 0, "exit status")


if __name__ == "__main__":
    sys.exit(suite.main("nbd-commands" + (f" ({PEER})" if PEER else "")))
