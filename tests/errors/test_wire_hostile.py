#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Malformed, oversize, out-of-range, truncated and hostile bytes on a netblk/1 connection:
the stated answer, nothing else harmed, nothing left behind."""

import os
import pathlib
import random
import resource
import socket
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import DISCONNECT, ERROR, MAX_LENGTH, OK, READ, SECTOR, WRITE, request
from suite import Skip, check, check_eq, run_threads, test

MIB = 1 << 20
SIZE_MB = 64
SECTORS = SIZE_MB * MIB // SECTOR
LENGTHS = (0, 1, 511, 512, 513, 32 * MIB, 32 * MIB + 1, 32 * MIB + 512, 1 << 31, (1 << 32) - 1)
PLACES = (0, 1, SECTORS - 1, SECTORS, 1 << 54, 1 << 55, (1 << 63) - 1, (1 << 64) - 1)
REQUEST_TIMEOUT = ["--request-timeout", "2"]  # seconds


class Witness:
    """A well-behaved client that must be served all the time while others misbehave."""

    def __init__(self, server, sector=2000):
        self.sector, self.n = sector, 0
        self.conn = server.client()

    def check(self):
        data = self.n.to_bytes(8, "big") * 512
        self.n += 1
        self.conn.write(self.sector, data)
        check_eq(self.conn.read(self.sector, 4096), data, "what a well-behaved client wrote")


def in_range(sector, length):
    return length > 0 and length % SECTOR == 0 and sector * SECTOR + length <= SIZE_MB * MIB


def expect_end(c, what):
    """The server must end the connection, without a further byte."""
    try:
        rest = c.drain_to_end()
    except TimeoutError:
        raise AssertionError(f"{what}: the connection stays open") from None
    check_eq(rest, b"", f"{what}: bytes before the connection ended")
    c.close()


# ---- the table: command × length × sector

@test
def test_table_read(t):
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    c = s.client()
    for length in LENGTHS:
        for sector in PLACES:
            what = f"READ length {length} sector {sector}"
            try:
                c.send(request(READ, sector, length))
                if length > MAX_LENGTH:
                    expect_end(c, what)
                    c = s.client()
                elif in_range(sector, length):
                    check_eq(c.status(), OK, what)
                    check_eq(len(c.recv(length)), length, what)
                else:
                    check_eq(c.status(), ERROR, what)
                    check_eq(c.read(5, 512), bytes(512), f"in step after {what}")
            except (netblk1.Closed, TimeoutError) as e:
                raise AssertionError(f"{what}: {e}") from None
            witness.check()
    s.check_alive()


@test(timeout=120)
def test_table_write(t):
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    c = s.client()
    for length in LENGTHS:
        for sector in PLACES:
            what = f"WRITE length {length} sector {sector}"
            try:
                if length > MAX_LENGTH:
                    # The header alone must end it: the server may not wait for the data.
                    c.send(request(WRITE, sector, length))
                    expect_end(c, what)
                    c = s.client()
                    continue
                if in_range(sector, length):
                    c.write(sector, bytes(length))
                    continue
                # Data that is itself a request: were it not drained, it would be answered.
                data = (request(READ, 0, 512) * (length // 13 + 1))[:length]
                c.pipeline(request(WRITE, sector, length) + data + request(READ, 5, 512))
                check_eq(c.status(), ERROR, what)
                check_eq(c.read_reply(512), bytes(512), f"in step after {what}")
            except (netblk1.Closed, TimeoutError) as e:
                raise AssertionError(f"{what}: {e}") from None
            witness.check()
    s.check_alive()
    check_eq(os.path.getsize(s.path), SIZE_MB * MIB, "size of the file")
    c.half_close()
    check_eq(c.drain_to_end(), b"", "bytes beyond the replies")


@test
def test_table_disconnect(t):
    """Whatever its other fields say: no reply, and the connection ends."""
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    for length in LENGTHS:
        for sector in PLACES:
            c = s.client()
            c.send(request(DISCONNECT, sector, length))
            expect_end(c, f"DISCONNECT length {length} sector {sector}")
    witness.check()


@test
def test_refused_write_drains_every_size(t):
    s = serverproc.start(t, 1)
    with s.client() as c:
        for n in (1, 12, 13, 14, 511, 513, 4095, 4097, 65535, 65537, MIB + 1, 4 * MIB + 3, 32 * MIB - 1):
            c.pipeline(request(WRITE, 0, n) + b"\x02" * n + request(READ, 0, 512))
            check_eq(c.status(), ERROR, f"WRITE of {n}")
            check_eq(c.read_reply(512), bytes(512), f"in step after WRITE of {n}")


@test
def test_size_is_not_a_multiple_of_the_length(t):
    """Every pair (sector, length) around the end of a small device, pipelined."""
    s = serverproc.start(t, 1)
    with s.client() as c:
        pairs = [(sec, n) for sec in range(2040, 2052) for n in range(0, 12 * 512, 256)]
        c.pipeline(b"".join(request(READ, sec, n) for sec, n in pairs))
        for sec, n in pairs:
            good = n and n % 512 == 0 and sec * 512 + n <= MIB
            check_eq(c.status(), OK if good else ERROR, f"READ of {n} at {sec}")
            if good:
                c.recv(n)


# ---- bytes that begin no request

@test
def test_every_first_byte(t):
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    for b in range(256):
        if b in (READ, WRITE, DISCONNECT):
            continue
        c = s.client()
        c.send(bytes([b]) + bytes(12))
        expect_end(c, f"first byte {b:#04x}")
        # After a good request too; that one is answered.
        c = s.client()
        c.send(request(READ, 0, 512) + bytes([b]))
        check_eq(c.read_reply(512), bytes(512), f"READ before first byte {b:#04x}")
        if b == ord("N"):
            c.send(bytes(12))  # netblk/2's first byte, but not its greeting
        expect_end(c, f"first byte {b:#04x} of a second request")
    witness.check()
    s.check_alive()


@test
def test_bad_first_byte_is_enough(t):
    """The first byte alone ends it: no need to wait for the rest of a header."""
    s = serverproc.start(t, 1)
    for b in (0x00, 0x04, 0x47, 0x80, 0xFF):
        c = s.client()
        c.send(bytes([b]))
        expect_end(c, f"first byte {b:#04x} alone")


@test
def test_closing_is_logged_with_its_reason(t):
    """One line when it opens, one when it closes; the second says why, and differently for each cause."""
    s = serverproc.start(t, 1)

    def lines_of(c):
        return [x for x in s.lines() if f":{c.local_port}" in x]

    reasons = {}
    for what, data in (("bad byte", b"\xaa" + bytes(12)), ("too long", request(READ, 0, 32 * MIB + 1)),
                       ("disconnect", request(DISCONNECT)), ("end", b""), ("cut short", request(WRITE, 0, 512) + bytes(9))):
        c = s.client()
        port = f":{c.local_port}"
        if data:
            c.send(data)
        if what in ("end", "cut short"):
            c.half_close()
        expect_end(c, what)
        suite.wait_until(lambda: len(lines_of(c)) >= 2, 5, f"an open and a close line with {port} for {what}")
        time.sleep(0.1)
        got = lines_of(c)
        check_eq(len(got), 2, f"log lines of one connection ({what}): {got}")
        reasons[what] = got[1].split(port, 1)[1]
    check_eq(len(set(reasons.values())), len(reasons), f"different causes, different words: {reasons}")
    check("aa" in reasons["bad byte"].lower() or "170" in reasons["bad byte"], f"the byte is named: {reasons['bad byte']!r}")
    check(str(32 * MIB + 1) in reasons["too long"].replace(",", "") or "32" in reasons["too long"],
          f"the length or its limit is named: {reasons['too long']!r}")


@test
def test_other_protocols(t):
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    for hello in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"NBDMAGICIHAVEOPT" + bytes(16), b"SSH-2.0-x\r\n",
                  bytes.fromhex("160301020001000" "1fc0303") + bytes(500), b"NETBLK/3" + bytes(64), b"NETBLK", b"NETBLK\x001" + bytes(99)):
        c = s.client()
        c.send(hello)
        c.half_close()
        c.drain_to_end()
        c.close()
        witness.check()
    s.check_alive()


@test(timeout=120)
def test_garbage_streams(t):
    """Seeded garbage, from pure noise to nearly right requests; the file may change, nothing else."""
    s = serverproc.start(t, SIZE_MB)
    memory = s.rss_kib()
    witness = Witness(s)
    rng = random.Random(suite.SEED)
    rounds = suite.count(3000, 300)
    for i in range(rounds):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.random()
            if kind < 0.3:
                parts.append(rng.randbytes(rng.randrange(1, 64)))
            elif kind < 0.9:
                cmd = rng.choice((READ, READ, WRITE, WRITE, DISCONNECT, rng.randrange(256)))
                n = rng.choice((0, 512, 1024, rng.randrange(1 << 16), rng.choice(LENGTHS), rng.randrange(1 << 32)))
                at = rng.choice((rng.randrange(0, 1900), rng.choice(PLACES), rng.randrange(1 << 64)))
                parts.append(request(cmd, at, n))
                if cmd == WRITE:
                    parts.append(rng.randbytes(min(n, 1 << 17)))
            else:
                parts.append(b"".join(request(READ, k, 512) for k in range(rng.randrange(1, 50))))
        c = s.client()
        th = c.pipeline(b"".join(parts))
        how = rng.random()
        if how < 0.3:
            c.reset()
        elif how < 0.6:
            c.close()
        else:
            th.join(suite.bound(0))
            try:
                c.half_close()
            except OSError:
                pass
            try:
                c.drain_to_end()
            except TimeoutError:
                raise AssertionError(f"round {i}: the connection neither ended nor was answered") from None
            c.close()
        if i % 20 == 0:
            witness.conn.read(2000, 512)
            s.check_alive()
    s.check_alive()
    with s.client() as c:
        c.read(0, 4096)
    check(s.rss_kib() - memory < 256 << 10, f"RSS grew from {memory} to {s.rss_kib()} KiB")


# ---- slow and silent clients

@test
def test_byte_at_a_time_is_served(t):
    s = serverproc.start(t, 1)
    data = bytes(range(256)) * 2
    with s.client() as c:
        for b in request(WRITE, 9, 512) + data:
            c.send(bytes([b]))
        c.write_reply()
        for b in request(READ, 9, 512) + request(READ, 4096, 512) + request(READ, 9, 512):
            c.send(bytes([b]))
            time.sleep(0.002)
        check_eq(c.read_reply(512), data, "READ sent byte by byte")
        check_eq(c.status(), ERROR, "bad READ sent byte by byte")
        check_eq(c.read_reply(512), data, "second READ sent byte by byte")


def slow_client(t, first, trickle):
    s = serverproc.start(t, SIZE_MB, more=REQUEST_TIMEOUT)
    witness = Witness(s)
    slow = [s.client() for _ in range(20)]
    for c in slow:
        c.send(first)
    done = []

    def run(c):
        # The deadline counts from the request's first byte: later bytes do not move it.
        end = time.monotonic() + suite.bound(0)
        c.sock.settimeout(0.3)
        while time.monotonic() < end:
            try:
                if trickle:
                    c.sock.send(b"\x00")
                if not c.sock.recv(1):
                    done.append(c)
                    return
                raise AssertionError("an incomplete request was answered")
            except TimeoutError:
                pass
            except OSError:
                done.append(c)
                return
        raise AssertionError("an incomplete request outlives its deadline of 2 s by far")
    th = threading.Thread(target=lambda: [witness.check() or time.sleep(0.01) for _ in range(150)], daemon=True)
    th.start()
    run_threads([lambda c=c: run(c) for c in slow])
    th.join()
    check_eq(witness.n, 150, "requests of a well-behaved client served meanwhile")
    check_eq(len(done), 20, "slow connections closed")


@test
def test_half_header_is_closed_by_the_deadline(t):
    slow_client(t, request(READ, 0, 512)[:5], False)


@test
def test_one_byte_is_closed_by_the_deadline(t):
    slow_client(t, request(WRITE, 0, 512)[:1], False)


@test
def test_half_data_is_closed_by_the_deadline(t):
    slow_client(t, request(WRITE, 0, 32 * MIB) + bytes(MIB), False)


@test
def test_trickled_data_is_closed_by_the_deadline(t):
    slow_client(t, request(WRITE, 0, 32 * MIB), True)


@test
def test_trickled_refused_data_is_closed_by_the_deadline(t):
    slow_client(t, request(WRITE, 1 << 60, 32 * MIB) + bytes(7), True)


@test
def test_idle_connection_is_not_closed(t):
    s = serverproc.start(t, 1, more=REQUEST_TIMEOUT)
    fresh, used = s.client(), s.client()
    used.write(1, b"\x5a" * 512)
    time.sleep(4)
    check_eq(fresh.read(0, 512), bytes(512), "a connection silent from its start")
    check_eq(used.read(1, 512), b"\x5a" * 512, "a connection silent between requests")


@test
def test_deadline_is_each_requests_own(t):
    """Not the connection's, which is older than that."""
    s = serverproc.start(t, 1, more=REQUEST_TIMEOUT)

    def in_pieces(c):
        c.send(request(READ, 1, 512)[:6])
        time.sleep(0.2)
        c.send(request(READ, 1, 512)[6:])
        check_eq(c.read_reply(512), bytes(512), "READ in two pieces")

    def attempt():
        with s.client() as c:
            for _ in range(3):
                began = time.monotonic()
                try:
                    in_pieces(c)
                except netblk1.Closed:
                    if time.monotonic() - began < 2:
                        raise
                    return False  # the machine stood still for longer than the deadline
                time.sleep(0.9)
        return True
    suite.wait_until(attempt, 60, "three requests in pieces, each within its deadline")


# ---- many bytes, many connections

def background_reader(s, stop, errors, sector=0):
    try:
        with s.client() as c:
            while True:
                c.read(sector, 4096)
                if stop.is_set():
                    break
    except BaseException as e:
        errors.append(repr(e))


@test(timeout=600)
def test_rst_with_reads_queued(t):
    """RST while 32 READs of 1 MiB are queued: descriptors and memory come back."""
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    burst = request(READ, 0, MIB) * 32
    rng = random.Random(suite.SEED)

    def once(i):
        c = s.client(rcvbuf=65536)
        c.send(burst)
        if i % 3 == 1:
            c.recv(1 + rng.randrange(3 * MIB))
        elif i % 3 == 2:
            time.sleep(rng.random() * 0.01)
        c.reset()
    for i in range(40):  # warm-up: pools may fill once
        once(i)
    witness.check()
    fds = serverproc.settle(s.fds, 0, 0.3)
    rss = serverproc.settle(s.rss_kib, 0, 0.3)
    for i in range(suite.count(10000, 200)):
        once(i)
        if i % 50 == 0:
            witness.check()
    witness.check()
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")
    bound = rss + max(1024, rss // 100) + 8192
    got = serverproc.settle(s.rss_kib, bound)
    check(got <= bound, f"RSS: {rss} KiB before, {got} KiB after")
    s.check_alive()


@test(timeout=300)
def test_rst_with_writes_queued(t):
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    burst = (request(WRITE, 4096, MIB) + bytes(MIB)) * 3 + request(WRITE, 4096, MIB) + bytes(1000)

    def rounds(n):
        for _ in range(n):
            c = s.client()
            th = c.pipeline(burst)
            th.join(random.random() * 0.02)
            c.reset()
            th.join()
        witness.check()
    rounds(suite.count(600, 100))  # pools of buffers fill once; a leak goes on
    fds, rss = serverproc.settle(s.fds, 0, 0.3), serverproc.settle(s.rss_kib, 0, 0.3)
    rounds(suite.count(1000, 100))
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")
    got = serverproc.settle(s.rss_kib, rss + 16384)
    check(got <= rss + 16384, f"RSS: {rss} KiB before, {got} KiB after")


@test(timeout=120)
def test_client_that_never_reads(t):
    """READs of 32 MiB × 200 pipelined and no reply taken: bounded memory, others served."""
    s = serverproc.start(t, SIZE_MB)
    stop, errors = threading.Event(), []
    th = threading.Thread(target=background_reader, args=(s, stop, errors), daemon=True)
    th.start()
    before = s.rss_kib()
    c = s.client(rcvbuf=4096)
    c.send(request(READ, 0, 32 * MIB) * 200)
    peak = 0
    for _ in range(50):
        time.sleep(0.1)
        peak = max(peak, s.rss_kib() - before)
    stop.set()
    th.join()
    check_eq(errors, [], "a well-behaved client meanwhile")
    check(peak <= 256 << 10, f"RSS grew by {peak} KiB for one client that never reads")
    c.reset()
    with s.client() as d:
        d.read(0, 512)


@test(timeout=120)
def test_many_clients_that_never_read(t):
    """Ten such clients: still bounded as a whole (assumption: a session's buffers are a few MiB at most,
    or large requests share one budget)."""
    s = serverproc.start(t, SIZE_MB)
    before = s.rss_kib()
    clients = [s.client(rcvbuf=4096) for _ in range(10)]
    for c in clients:
        c.send(request(READ, 0, 32 * MIB) * 50)
    peak = 0
    for _ in range(30):
        time.sleep(0.1)
        peak = max(peak, s.rss_kib() - before)
    with s.client() as d:
        check_eq(d.read(0, 4096), bytes(4096), "a well-behaved client meanwhile")
    for c in clients:
        c.reset()
    check(peak <= 512 << 10, f"RSS grew by {peak} KiB for ten clients that never read")


@test(timeout=120)
def test_unfinished_large_writes(t):
    """100 connections that announce 32 MiB and send 1 KiB: announced bytes cost no memory."""
    s = serverproc.start(t, SIZE_MB)
    with s.client() as d:
        d.write(0, bytes(MIB))
    before = s.rss_kib()
    clients = [s.client() for _ in range(100)]
    for c in clients:
        c.send(request(WRITE, 0, 32 * MIB) + bytes(1024))
    with s.client() as d:
        for _ in range(50):
            d.write(0, b"\x77" * 4096)
            check_eq(d.read(0, 4096), b"\x77" * 4096, "a well-behaved client meanwhile")
    time.sleep(0.5)
    grown = s.rss_kib() - before
    for c in clients:
        c.reset()
    check(grown <= 64 << 10, f"RSS grew by {grown} KiB for 100 × 1 KiB of data")


@test(timeout=120)
def test_1000_idle_connections(t):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        raise Skip(f"needs 2,048 descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    s = serverproc.start(t, SIZE_MB)
    with s.client() as c:
        c.write(0, bytes(MIB))
        c.read(0, MIB)
    before, fds = s.rss_kib(), s.fds()
    idle = []
    for i in range(1000):
        idle.append(s.client())
        # Every connection has been used once, small and larger; then it falls silent.
        if i % 2:
            idle[-1].read(0, 4096)
    with s.client() as c:
        for _ in range(100):
            c.write(8, b"\x42" * 4096)
            check_eq(c.read(8, 4096), b"\x42" * 4096, "a busy client beside 1,000 idle ones")
    each = (s.rss_kib() - before) / 1000
    check(each < 64, f"{each:.1f} KiB per idle connection")
    for i in (0, 1, 499, 998, 999):
        check_eq(idle[i].read(8, 512), b"\x42" * 512, f"idle connection {i}")
    for c in idle:
        c.close()
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")


@test(timeout=120)
def test_idle_after_large_requests(t):
    """A connection that moved 32 MiB once does not keep that memory while it is idle."""
    s = serverproc.start(t, SIZE_MB)
    with s.client() as c:
        c.write(0, bytes(32 * MIB))
        c.read(0, 32 * MIB)
    before = s.rss_kib()
    idle = [s.client() for _ in range(40)]
    for c in idle:
        c.read(0, 32 * MIB)
        c.write(0, bytes(4 * MIB))
    bound = before + 64 * 1024
    got = serverproc.settle(s.rss_kib, bound)
    check(got <= bound, f"RSS: {before} KiB before, {got} KiB with 40 connections idle after large requests")


@test
def test_connection_storm(t):
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    witness.check()
    fds = s.fds()
    socks = []
    for i in range(2000):
        k = socket.socket()
        k.setblocking(False)
        k.connect_ex(("127.0.0.1", s.port))
        socks.append(k)
        if len(socks) > 100:
            socks.pop(0).close()
    for k in socks:
        k.close()
    witness.check()
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")


@test
def test_descriptors_run_out(t):
    """With no descriptor left for accept, the server goes on serving, does not spin, and recovers."""
    s = serverproc.start(t, SIZE_MB)
    witness = Witness(s)
    witness.check()
    resource.prlimit(s.pid, resource.RLIMIT_NOFILE, (s.fds() + 10, 4096))
    many = [s.client() for _ in range(40)]
    for _ in range(50):
        witness.check()
    # One that spins has no quiet second, however long it is looked at.
    suite.wait_until(lambda: cpu_of(s.pid, 1) < 0.5, 10, "an idle second without half of it in CPU while descriptors are short")
    for c in many:
        c.close()

    def served():
        try:
            with s.client() as c:
                return c.read(0, 512) == bytes(512)
        except (netblk1.Closed, OSError):
            return False
    suite.wait_until(served, 10, "a new client is served after descriptors became free")
    witness.check()


def cpu_of(pid, seconds):
    """The seconds of CPU that it takes in so long a time."""
    before = serverproc.cpu_seconds(pid)
    time.sleep(seconds)
    return serverproc.cpu_seconds(pid) - before


@test
def test_idle_server_uses_no_cpu(t):
    s = serverproc.start(t, 1)
    conns = [s.client() for _ in range(10)]
    for c in conns:
        c.read(0, 512)
    suite.wait_until(lambda: cpu_of(s.pid, 2) < 0.2, 10, "two idle seconds with less than 0.2 s of CPU")


# ---- export options

def refused(s, source=None):
    """Whether a new connection is refused, that is ended without an answer."""
    try:
        with s.client(source=source) as c:
            c.read(0, 512)
            return False
    except (netblk1.Closed, ConnectionRefusedError, ConnectionResetError):
        return True


@test
def test_max_conns(t):
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", max_conns=3))
    first = [s.client() for _ in range(3)]
    for c in first:
        c.read(0, 512)
    for _ in range(5):
        check(refused(s), "a fourth connection is served beyond max-conns=3")
    for c in first:
        c.read(0, 512)
    first.pop().close()
    suite.wait_until(lambda: not refused(s), 5, "a connection after one of three ended")
    check(any("max" in x.lower() or "limit" in x.lower() or "too many" in x.lower() for x in s.lines()),
          f"the refusal is logged with its reason: {s.log()[-300:]!r}")


@test
def test_allow(t):
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="127.0.0.1/32,127.0.0.8/29"), host="0.0.0.0")
    check(not refused(s), "127.0.0.1 is allowed")
    check(not refused(s, "127.0.0.15"), "127.0.0.15 is in 127.0.0.8/29")
    check(refused(s, "127.0.0.2"), "127.0.0.2 is not allowed")
    check(refused(s, "127.0.0.16"), "127.0.0.16 is not allowed")
    s.wait_log("127.0.0.2")
    s.check_alive()
    check(not refused(s), "127.0.0.1 is still allowed")


@test
def test_allow_whole_network(t):
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="127.0.0.0/8"))
    check(not refused(s, "127.200.3.4"), "127.200.3.4 is in 127.0.0.0/8")
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="0.0.0.0/0"))
    check(not refused(s), "0.0.0.0/0 allows every IPv4 address")
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="192.0.2.0/24"))
    check(refused(s), "127.0.0.1 is not in 192.0.2.0/24")


@test
def test_allow_ipv6(t):
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="::1/128"), host="[::1]")
    with s.client(host="::1") as c:
        check_eq(c.read(0, 512), bytes(512), "::1 is allowed")
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="2001:db8::/32"), host="[::1]")
    try:
        with s.client(host="::1") as c:
            c.read(0, 512)
    except (netblk1.Closed, ConnectionError):
        return
    raise AssertionError("::1 is not in 2001:db8::/32, yet it is served")


@test
def test_allow_ipv4_on_a_dual_stack_listener(t):
    """On a socket for both families 127.0.0.1 arrives as ::ffff:127.0.0.1; an IPv4 rule means that client too.
    A listener for IPv6 alone must not take it at all."""
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="127.0.0.1/32"), host="[::]")
    try:
        c = s.client()
    except ConnectionRefusedError:
        return
    check_eq(c.read(0, 512), bytes(512), "127.0.0.1 through [::]")
    check(refused(s, "127.0.0.2"), "127.0.0.2 through [::] is not allowed")


@test
def test_allow_on_every_address(t):
    """No host: every address of both families, as in the original form."""
    s = serverproc.start_export(t, serverproc.options("disk=mem:1M", allow="127.0.0.1/32"), host="")
    check(not refused(s), "127.0.0.1 is allowed")
    check(refused(s, "127.0.0.2"), "127.0.0.2 is not allowed")


@test
def test_read_only_export(t):
    path = t.tmp / "disk.img"
    before = random.Random(1).randbytes(MIB)
    path.write_bytes(before)
    s = serverproc.start_export(t, serverproc.options(f"disk=file:{path}", ro=None))
    with s.client() as c:
        for n in (512, 4096, MIB, 511, 0, 2 * MIB):
            c.pipeline(request(WRITE, 0, n) + request(READ, 0, 512)[:1] * n + request(READ, 8, 1024))
            check_eq(c.status(), ERROR, f"WRITE of {n} to a read-only export")
            check_eq(c.read_reply(1024), before[4096:5120], f"in step after WRITE of {n}")
        check_eq(c.read(0, MIB), before, "the whole export")
    s.stop()
    check_eq(path.read_bytes(), before, "the file")


@test
def test_read_only_file_without_permission(t):
    """A read-only export needs no permission to write (as root: an immutable mount is not at hand,
    so the file is a descriptor opened for reading only)."""
    path = t.tmp / "disk.img"
    path.write_bytes(b"\x33" * MIB)
    path.chmod(0o444)
    s = serverproc.start_export(t, serverproc.options(f"disk=file:{path}", ro=None))
    with s.client() as c:
        check_eq(c.read(0, 512), b"\x33" * 512, "READ")
    modes = []
    for fd in os.listdir(f"/proc/{s.pid}/fd"):
        if os.path.realpath(f"/proc/{s.pid}/fd/{fd}") == str(path):
            info = pathlib.Path(f"/proc/{s.pid}/fdinfo/{fd}").read_text()
            flags = next(x for x in info.splitlines() if x.startswith("flags:")).split()[1]
            modes.append(int(flags, 8) & os.O_ACCMODE)
    check(modes and all(m == os.O_RDONLY for m in modes), f"open modes of a read-only export's file: {modes}")


if __name__ == "__main__":
    sys.exit(suite.main("wire-hostile"))
