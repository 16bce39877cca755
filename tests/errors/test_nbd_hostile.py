#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Hostile bytes and hostile habits on an NBD connection: the protocol's errno or a close, and nothing else harmed.

First the table (commands × lengths × offsets, options × lengths), then what other servers fell to, by its number, then
clients that are slow, that vanish, that are many. NETBLK_NBD_PEER=nbdkit runs it against a peer."""

import os
import pathlib
import random
import resource
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd
import nbd_target
import serverproc
import suite
from nbd import EINVAL, ENOSPC, EOVERFLOW, PAYLOAD_LEN
from nbd_target import MIB, PEER, Busy, Witness, needs, start
from suite import Skip, check, check_eq, count, test

SIZE = 64 * MIB
MAX = 32 * MIB
LENGTHS = (0, 1, 511, 512, MAX, MAX + 1, 0xFFFFFFFF)
OFFSETS = (0, 1, SIZE - 1, SIZE, (1 << 63) - 1, (1 << 64) - 512)
META = ("base:allocation",)
# A sanitizer has memory of its own, and keeps what is freed.
MEASURED = not PEER and "san" not in os.environ.get("NETBLK_SERVER", "")
COMMANDS = (nbd.CMD_READ, nbd.CMD_WRITE, nbd.CMD_FLUSH, nbd.CMD_TRIM, nbd.CMD_CACHE, nbd.CMD_WRITE_ZEROES, nbd.CMD_BLOCK_STATUS,
            nbd.CMD_RESIZE, 99)


def many_descriptors(n):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n:
        raise Skip(f"needs {n} descriptors, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n), hard))


def closed(c, what, seconds=None):
    """The connection ends; what the server still said is given back."""
    c.stream.timeout = seconds or c.stream.timeout
    try:
        return c.stream.drain()
    except TimeoutError:
        raise AssertionError(f"{what}: the connection stays open") from None


class Back:
    """Descriptors and memory are as before at the end of the block. The measure begins with the block: what fills once has
    been filled before."""

    def __init__(self, s, slack_kib=1024):
        self.s, self.slack = s, slack_kib

    def __enter__(self):
        self.fds, self.rss = serverproc.settle(self.s.fds, 0, 0.1), serverproc.settle(self.s.rss_kib, 0, 0.1)

    def __exit__(self, kind, *_):
        if kind:
            return False
        got = serverproc.settle(self.s.fds, self.fds)
        check(got <= self.fds, f"descriptors: {self.fds} before, {got} after")
        if not MEASURED:
            return False
        bound = self.rss + self.slack + self.rss // 100
        got = serverproc.settle(self.s.rss_kib, bound)
        check(got <= bound, f"memory: {self.rss} KiB before, {got} KiB after")
        return False


# ---- the table

def answer(c, command, at, n, mode):
    """Sends one cell of the table; returns its error, or None where the server closed."""
    try:
        if command != nbd.CMD_WRITE:
            return c.error_of(command, at, n)
        if n > MAX:
            # The header alone: whoever waits for 4 GiB, or keeps room for them, has lost.
            flags = PAYLOAD_LEN if mode == "extended" else 0
            cookie = c.submit(command, at, n, flags)
            if n == 0xFFFFFFFF:
                c.stream.drain()
                return None
            c.send(bytes(n))
            return c.wait(cookie).error
        return c.error_of(command, at, n, 0, (b"\x25\x60\x95\x13" * (n // 4 + 1))[:n])
    except nbd.Closed:
        return None


def cell(command, at, n, error):
    """Whether an answer is one that the text allows."""
    inside = at + n <= SIZE
    big = n > MAX
    if command in (nbd.CMD_RESIZE, 99):
        return error == EINVAL
    if command == nbd.CMD_FLUSH:
        return error in (0, EINVAL)
    if n == 0:
        return error in (0, EINVAL, ENOSPC)
    if command in (nbd.CMD_READ, nbd.CMD_WRITE) and big:
        return error in (None, EINVAL, EOVERFLOW, *((0,) if inside else (ENOSPC,)))
    if inside:
        return error == 0
    return error == ENOSPC if command in (nbd.CMD_WRITE, nbd.CMD_WRITE_ZEROES) else error == EINVAL


def table(t, mode):
    if mode != "simple":
        needs(mode)
    s = start(t, size=SIZE, path=nbd_target.image(t, SIZE))
    witness = Witness(s, offset=40 * MIB)

    def once():
        c = s.client(replies=mode, meta=META if mode != "simple" else ())
        c.max_payload = None
        for command in COMMANDS:
            if command == nbd.CMD_BLOCK_STATUS and mode == "simple":
                continue
            for n in LENGTHS:
                for at in OFFSETS:
                    error = answer(c, command, at, n, mode)
                    check(PEER or cell(command, at, n, error), f"command {command} length {n} offset {at}: error {error}")
                    if error is None:
                        c.close()
                        c = s.client(replies=mode, meta=META if mode != "simple" else ())
                        c.max_payload = None
                    c.read(512, 512)  # in step
            witness.check()
        c.close()
    once()
    with Back(s):
        once()
    s.check_alive()


@test(timeout=120)
def test_table_simple(t):
    table(t, "simple")


@test(timeout=120)
def test_table_structured(t):
    table(t, "structured")


@test(timeout=120)
def test_table_extended(t):
    table(t, "extended")


@test
def test_table_of_options(t):
    """Every option × length: an answer in step where the data is at most 4,096 bytes, a refusal or a close beyond."""
    s = start(t, size=SIZE)
    witness = Witness(s)

    def once():
        for option in (*range(0, 13), 0x7FFFFFFF, 0xFFFFFFFF):
            for n in (0, 1, 4095, 4096, 4097, 65536, 1 << 31, 0xFFFFFFFF):
                what = f"option {option} with {n} bytes"
                if option == nbd.OPT_EXPORT_NAME and n == 0:
                    continue  # the default export
                c = s.connect()
                try:
                    c.send_option(option, bytes(min(n, 65536)), n)
                    if option in (nbd.OPT_EXPORT_NAME, nbd.OPT_ABORT):
                        if n <= 4096 or option == nbd.OPT_EXPORT_NAME:
                            closed(c, what)
                        continue
                    kind = nbd.REP_SERVER
                    while not kind & nbd.ERR and kind != nbd.REP_ACK:
                        kind, _ = c.option_reply(option)
                    if kind == nbd.REP_ACK and option in (nbd.OPT_STRUCTURED, nbd.OPT_EXTENDED):
                        c.replies = "structured" if option == nbd.OPT_STRUCTURED else "extended"
                    if n <= 4096:
                        c.go("disk")
                        c.read(0, 512)
                except nbd.Closed:
                    check(n > 4096, f"{what}: closed")
                except TimeoutError:
                    raise AssertionError(f"{what}: neither an answer nor a close") from None
                finally:
                    c.close()
        witness.check()
    once()
    with Back(s):
        once()
    s.check_alive()


@test
def test_random_bytes(t):
    """Seeded noise in every phase, from pure to nearly right."""
    s = start(t, size=SIZE)
    witness = Witness(s, offset=60 * MIB)
    rng = random.Random(suite.SEED)

    def option():
        data = rng.choice((b"", rng.randbytes(rng.randrange(40)), nbd.info_data(b"disk", (3,)), nbd.option_data(b"disk", [b"base:"])))
        data = bytearray(data)
        if data and rng.random() < 0.5:
            data[rng.randrange(len(data))] = rng.randrange(256)
        n = len(data) if rng.random() < 0.8 else rng.choice((0, len(data) + 1, 4097, 1 << 31))
        return struct.pack(">QII", nbd.OPTION_MAGIC, rng.choice((*range(13), rng.randrange(1 << 32))), n) + data

    def request(magic=nbd.REQUEST_MAGIC):
        n = rng.choice((0, 1, 512, 4096, rng.randrange(1 << 32), *LENGTHS))
        command = rng.choice((*range(9), *range(9), rng.randrange(1 << 16)))
        at = rng.choice((rng.randrange(32 * MIB), *OFFSETS))
        return struct.pack(">IHHQQI", magic, rng.choice((0, 0, 1, rng.randrange(1 << 16))), command, rng.randrange(1 << 64), at, n) + (
            rng.randbytes(min(n, 1 << 16)) if command == nbd.CMD_WRITE else b"")
    for i in range(count(3000, 300)):
        c = s.connect(greet=False)
        parts = [struct.pack(">I", rng.choice((0, 1, 2, 3, 3, 3, 3, rng.randrange(1 << 32))))]
        parts += [option() for _ in range(rng.randrange(4))]
        if rng.random() < 0.6:
            parts += [struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 4) + b"disk"]
            parts += [request(rng.choice((nbd.REQUEST_MAGIC,) * 9 + (nbd.EXTENDED_REQUEST_MAGIC,))) for _ in range(rng.randrange(1, 12))]
        if rng.random() < 0.2:
            parts.append(rng.randbytes(rng.randrange(1, 200)))
        try:
            c.send(b"".join(parts))
            if rng.random() < 0.5:
                c.half_close()
                closed(c, f"round {i}", 60)
        except (nbd.Closed, OSError):
            pass
        if rng.random() < 0.5:
            c.reset()
        else:
            c.close()
        if i % 20 == 0:
            witness.check()
    s.check_alive()


@test
def test_other_protocols(t):
    s = start(t, size=SIZE)
    witness = Witness(s)
    for hello in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x01" + bytes(12), b"NETBLK/2" + bytes(64), b"SSH-2.0-x\r\n",
                  bytes.fromhex("1603010200010001fc0303") + bytes(500), b"NBDMAGICIHAVEOPT\0\3"):
        c = s.connect(greet=False)
        try:
            c.send(hello)
            c.half_close()
            closed(c, repr(hello[:12]))
        except (nbd.Closed, OSError):
            pass
        c.close()
        witness.check()
    s.check_alive()


@test
def test_names_do_not_forge_log_lines(t):
    """A name with a line feed in it stays within its line."""
    if PEER:
        raise Skip("our log only")
    s = start(t, size=SIZE)
    name = b"x\n2026-01-01T00:00:00.000+00:00 info: FORGED\r\x1b[2J"
    c = s.connect()
    for option in (nbd.OPT_INFO, nbd.OPT_GO):
        c.send_option(option, nbd.info_data(name))
        check(c.option_reply(option)[0] & nbd.ERR, "no such export")
    c.close()
    c = s.connect()
    c.send_option(nbd.OPT_EXPORT_NAME, name)
    closed(c, "EXPORT_NAME")
    s.server.wait_log("forged", 5)
    check(not any(line.startswith("2026-01-01") for line in s.server.lines()), "a forged line")
    check("\x1b" not in s.server.log(), "an escape sequence in the log")


@test
def test_reasons_are_logged(t):
    """A line for each bad peer, which says what it did."""
    if PEER:
        raise Skip("our log only")
    s = start(t, size=SIZE)
    reasons = {}

    def bad(what, act):
        c = s.connect(greet=False)
        c.greeting(None)
        port = f":{c.local_port}"
        act(c)
        closed(c, what)
        c.close()
        line = s.server.wait_log(lambda x: port in x and ("close" in x.lower() or "refus" in x.lower() or "end" in x.lower()), 10)
        reasons[what] = line.split(port, 1)[1]
    bad("client flags", lambda c: c.send(struct.pack(">I", 0x80)))
    bad("option magic", lambda c: c.send(struct.pack(">IQII", 3, 5, 3, 0)))
    bad("request magic", lambda c: c.send(struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 4) + b"disk" + bytes(28)))
    bad("unknown export", lambda c: c.send(struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 4) + b"none"))
    check_eq(len(set(reasons.values())), len(reasons), f"different causes, different words: {reasons}")


# ---- what others fell to

@test
def test_cve_2022_26495_name_length(t):
    """nbd-server: a name length of 0xffffffff wrapped when 1 was added, and a small buffer was filled."""
    s = start(t)
    for length in (0xFFFFFFFF, 0xFFFFFFFE, 0x80000000, 0x7FFFFFFF):
        for option in (nbd.OPT_INFO, nbd.OPT_GO, nbd.OPT_LIST_META, nbd.OPT_SET_META):
            for tail in (b"", b"A" * 100, b"A" * 4000):
                c = s.connect()
                c.send_option(option, struct.pack(">I", length) + tail)
                try:
                    kind, _ = c.option_reply(option)
                    check(kind & nbd.ERR, f"option {option} with a name of {length}: reply {kind}")
                    c.go("disk")
                except nbd.Closed:
                    check(PEER, f"option {option}: closed")
                c.close()
        c = s.connect()
        c.send_option(nbd.OPT_EXPORT_NAME, b"A" * 4000, length)
        closed(c, f"EXPORT_NAME of {length}")
        c.close()
    s.check_alive()


@test
def test_cve_2022_26496_name_longer_than_a_buffer(t):
    """nbd-server: a name was read into a buffer on the stack."""
    s = start(t)
    for n in (1024, 1025, 4096, 4097, 8192, 60000):
        for option in (nbd.OPT_EXPORT_NAME, nbd.OPT_INFO, nbd.OPT_GO):
            c = s.connect()
            name = b"disk" * (n // 4) + b"d" * (n % 4)
            try:
                c.send_option(option, name if option == nbd.OPT_EXPORT_NAME else nbd.info_data(name))
                kind, _ = c.option_reply(option)
                check(kind & nbd.ERR, f"option {option} with a name of {n} bytes: reply {kind}")
            except nbd.Closed:
                pass
            c.close()
    s.check_alive()
    s.client(replies="simple").read(0, 512)


@test
def test_cve_2017_15118_name_copied_to_the_stack(t):
    """qemu: NBD_OPT_GO or INFO with a name of just under the option's length."""
    s = start(t)
    for n in (255, 256, 257, 4085, 4090, 4096):
        c = s.connect()
        try:
            c.option(nbd.OPT_GO, struct.pack(">I", n) + b"x" * n + struct.pack(">H", 0))
            raise AssertionError("accepted")
        except nbd.OptionError as e:
            check(e.code in (nbd.ERR_UNKNOWN, nbd.ERR_INVALID, nbd.ERR_TOO_BIG), str(e))
        except nbd.Closed:
            check(n > 4000, f"a name of {n} bytes: closed")
        c.close()
    s.check_alive()


@test
def test_cve_2017_15119_options_without_end(t):
    """qemu: options whose data is skipped, sent for ever, burned CPU. They are bounded by the handshake's deadline, and by
    what a server takes to be hostile; another client is served meanwhile."""
    s = start(t, size=SIZE)
    witness = Witness(s)
    c = s.connect()
    c.stream.timeout = 5
    junk = struct.pack(">QII", nbd.OPTION_MAGIC, 0x1234, 32 * MIB) + bytes(32 * MIB)
    try:
        for _ in range(4):
            c.send(junk)
            witness.check()
    except (nbd.Closed, TimeoutError):
        pass
    c.close()
    small = s.connect()
    flood = struct.pack(">QII", nbd.OPTION_MAGIC, 0x1234, 0) * 2000
    try:
        for _ in range(20):
            small.send(flood)  # its replies are not read: the server waits, or closes
            witness.check()
    except (nbd.Closed, TimeoutError):
        pass
    small.close()
    witness.check()
    s.check_alive()


@test
def test_cve_2019_14851_options_out_of_turn(t):
    """nbdkit: NBD_OPT_INFO of one export, then GO of another, met an assertion."""
    s = start(t)
    if not PEER:
        s = start(t, exports={"disk": nbd_target.image(t, MIB, "a.img"), "two": nbd_target.image(t, 2 * MIB, "b.img")})
    names = ["disk", "nonesuch"] if PEER else ["disk", "two", "nonesuch", ""]
    rng = random.Random(suite.SEED)
    for _ in range(60):
        c = s.connect()
        for _ in range(rng.randrange(1, 8)):
            try:
                what = rng.choice(("info", "structured", "set_meta", "list_meta", "list"))
                getattr(c, what)(*((rng.choice(names),) if what in ("info", "set_meta", "list_meta") else ()))
            except nbd.OptionError:
                pass
        try:
            c.go(rng.choice(names))
            c.read(0, 512)
        except nbd.OptionError:
            pass
        c.close()
    s.check_alive()


@test
def test_cve_2025_47711_block_status_of_4_gib(t):
    """nbdkit: a status of 4 GiB or more met an assertion. CVE-2025-47712: so did a query near 2^32 that is no multiple of
    a block."""
    needs("structured")
    size = 9 << 30
    s = start(t, size=size, path=nbd_target.image(t, size))
    c = s.client(meta=META)
    for at in (0, 1, 511, 4096, (4 << 30) - 1, 4 << 30, (4 << 30) + 1, size - 1):
        for n in (1, 511, 0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFE00, 0xFFFFFFFE, 0xFFFFFFFF):
            n = min(n, size - at)
            for flags in (0, nbd.REQ_ONE):
                extents = c.status(at, n, flags)
                check(extents[0][1] == 3 and sum(x for x, _ in extents) >= 1, f"{n} at {at}: {extents}")
    s.check_alive()


@test
def test_cve_2017_7539_gone_in_the_handshake(t):
    """qemu: a client that vanished while it was being answered met an assertion. At every length of a handshake."""
    s = start(t)
    whole = struct.pack(">I", 3) + b"".join(
        struct.pack(">QII", nbd.OPTION_MAGIC, option, len(data)) + data for option, data in (
            (nbd.OPT_STRUCTURED, b""), (nbd.OPT_LIST, b""), (nbd.OPT_SET_META, nbd.option_data(b"disk", [b"base:allocation"])),
            (nbd.OPT_GO, nbd.info_data(b"disk", (3,))))) + struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, 0, 1, 0, 4096)
    with Back(s, 4096):
        for cut in range(0, len(whole) + 1, 1 if suite.FULL else 3):
            for how in ("close", "reset"):
                c = s.connect(greet=False)
                try:
                    c.send(whole[:cut])
                except nbd.Closed:
                    pass
                getattr(c, how)()
    s.check_alive()
    s.client(replies="simple").read(0, 512)


@test
def test_cve_2019_14850_nothing_is_opened_for_a_stranger(t):
    """nbdkit opened the back end before it knew the client: a connection costs a socket and no more."""
    s = start(t)
    s.client(replies="simple").read(0, 512)
    before = serverproc.settle(s.fds, 0, 0.3)
    strangers = [s.connect() for _ in range(50)]
    for c in strangers:
        c.send(struct.pack(">QI", nbd.OPTION_MAGIC, nbd.OPT_LIST))
    got = serverproc.settle(s.fds, before + 50)
    check(got <= before + 50, f"{got - before} descriptors for 50 connections")


@test
def test_cve_2021_3716_bytes_behind_starttls(t):
    """nbdkit: options sent in the clear behind STARTTLS were taken for what came over TLS. Refused, they are plain options;
    and what was negotiated before stays plain."""
    s = start(t)
    c = s.connect()
    c.send(struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_STARTTLS, 0) + struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_LIST, 0))
    kind, _ = c.option_reply(nbd.OPT_STARTTLS)
    check(kind & nbd.ERR, f"STARTTLS: reply {kind}")
    check_eq(len(c.option_end(nbd.OPT_LIST)), 1, "LIST behind it")
    c.go("disk")
    c.read(0, 512)


@test
def test_cve_2024_7409_idle_clients_at_the_end(t):
    """qemu: a client that stayed while the server ended met a freed object. 100 in every phase; it ends, with status 0."""
    if PEER:
        raise Skip("our server only")
    s = start(t, size=SIZE)
    idle = []
    for i in range(25):
        idle += [s.connect(greet=False), s.connect(), s.client(replies="simple"), s.client(replies="structured")]
        idle[-3].send(struct.pack(">Q", nbd.OPTION_MAGIC))
        idle[-2].send(struct.pack(">IH", nbd.REQUEST_MAGIC, 0))
        idle[-1].read(0, 512)
    s.server.signal(signal.SIGTERM)
    check_eq(s.server.wait(10), 0, "exit status")
    for c in idle:
        closed(c, "a client of a server that ended")


@test
def test_cve_2015_0847_signals(t):
    """nbd-server: unsafe handlers. SIGHUP and clients at the same time, a few hundred times; then one is served."""
    if PEER:
        raise Skip("our server only")
    config = t.tmp / "netblk.toml"
    port = serverproc.free_port()
    config.write_text(f'listen = ["nbd://127.0.0.1:{port}"]\n[export.disk]\nstore = "mem:64M"\n')
    s = serverproc.Server(t, ["--config", config], [port])
    running = nbd_target.Running(t, s, ("127.0.0.1", port), None, SIZE)
    with Busy(running):
        for _ in range(count(1000, 150)):
            s.signal(signal.SIGHUP)
            running.connect().reset()
    s.check_alive()
    running.client().read(0, 512)


# ---- clients that vanish

@test(timeout=300)
def test_reset_with_replies_queued(t):
    """RST with 32 × 1 MiB of READs queued (Debian's nbdkit 1.32 aborts): descriptors and memory come back."""
    s = start(t, size=SIZE)
    witness = Witness(s, offset=60 * MIB)
    burst = b"".join(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, 0, n, n * MIB, MIB) for n in range(32))

    def once(mode):
        c = s.client(replies=mode, rcvbuf=65536)
        c.max_payload = None
        c.send(burst)
        c.reset()
    for _ in range(30):
        once("structured")
    with Back(s, 8192):
        for i in range(count(10000, 200)):
            once(("simple", "structured")[i % 2])
            if i % 50 == 0:
                witness.check()
    witness.check()
    s.check_alive()


@test(timeout=300)
def test_reset_within_a_write(t):
    """RST in the middle of a WRITE's data: nothing of it is applied, nothing is kept."""
    s = start(t, size=SIZE)
    witness = Witness(s, offset=60 * MIB)

    def once(n):
        c = s.client(replies="simple")
        c.send(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, 1, 7, 0, 4 * MIB) + b"\xee" * n)
        c.reset()
    for _ in range(10):
        once(4 * MIB - 1)
    with Back(s, 8192):
        for i in range(count(1000, 100)):
            once((1000, 65536, MIB, 4 * MIB - 1)[i % 4])
    witness.check()
    check_eq(s.client().read(0, 4 * MIB), bytes(4 * MIB), "WRITEs whose data did not arrive whole")


@test(timeout=120)
def test_client_that_never_reads(t):
    """32 MiB READs × 100 and no reply taken: bounded memory, others served."""
    s = start(t, size=SIZE)
    before = s.rss_kib()
    with Busy(s, offset=60 * MIB):
        clients = [s.client(replies="simple", rcvbuf=4096) for _ in range(4)]
        for c in clients:
            c.send(b"".join(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, 0, n, 0, 32 * MIB) for n in range(100)))
        peak = 0
        for _ in range(10):
            time.sleep(0.1)
            peak = max(peak, s.rss_kib() - before)
        for c in clients:
            c.reset()
    check(not MEASURED or peak <= 512 << 10, f"memory grew by {peak} KiB for four clients that never read")
    s.check_alive()


@test(timeout=120)
def test_announced_bytes_cost_nothing(t):
    """100 connections that announce 32 MiB and send 1 KiB."""
    s = start(t, size=SIZE)
    with Busy(s, offset=60 * MIB):
        before = s.rss_kib()
        clients = [s.client(replies="simple") for _ in range(100)]
        for c in clients:
            c.send(struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, 1, 7, 0, 32 * MIB) + bytes(1024))
        serverproc.settle(s.rss_kib, 0, 0.3)
        grown = s.rss_kib() - before
    check(not MEASURED or grown <= 64 << 10, f"memory grew by {grown} KiB for 100 × 1 KiB of data")
    for c in clients:
        c.reset()


# ---- clients that are slow, and many

def half_handshakes(s, n):
    """Connections that stopped at different places before the handshake's end."""
    out = []
    for i in range(n):
        c = s.connect(greet=i % 5 not in (0, 1))
        if i % 5 == 1:
            c.send(b"\0\0")
        elif i % 5 == 2:
            c.send(struct.pack(">QI", nbd.OPTION_MAGIC, nbd.OPT_GO))
        elif i % 5 == 3:
            c.send(struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_GO, 4096) + bytes(100))
        elif i % 5 == 4:
            c.list()
        out.append(c)
    return out


@test(timeout=120)
def test_half_handshakes(t):
    """1,000 of them, and clients that send a byte a second, are closed by the deadline of 10 s, which later bytes do not
    move; each costs at most 64 KiB; a real client is served all the time, and a new one too."""
    if PEER:
        raise Skip("our server only")
    many_descriptors(4096)
    s = start(t, size=SIZE)
    witness = Witness(s)
    witness.check()
    before, fds = s.rss_kib(), s.fds()
    # Real ones that are ready before the strangers' time is up.
    strangers = half_handshakes(s, 1000)
    grown = s.rss_kib() - before
    slow = [s.connect() for _ in range(20)]
    trickle = iter(struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_LIST, 0) * 100)
    ended = set()
    deadline = time.monotonic() + suite.bound(0)
    while len(ended) < len(slow) and time.monotonic() < deadline:
        byte = bytes([next(trickle)])
        for i, c in enumerate(slow):
            try:
                if i not in ended:
                    c.sock.setblocking(False)
                    c.sock.send(byte)
                    if c.sock.recv(4096) == b"":
                        ended.add(i)
            except BlockingIOError:
                pass
            except OSError:
                ended.add(i)
        witness.check()
        s.connect().abort()
        time.sleep(0.5)
    check_eq(len(ended), len(slow), "clients that send a byte at a time, closed by the deadline")
    for i, c in enumerate(strangers):
        closed(c, f"half a handshake of kind {i % 5}")
        c.close()
    for c in slow:
        c.close()
    check(not MEASURED or grown <= 64 * 1000, f"{grown} KiB for 1,000 half handshakes")
    witness.check()
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")


@test
def test_handshake_deadline_is_a_setting(t):
    """A second, here; and it is over when the handshake is."""
    if PEER:
        raise Skip("our server only")
    s = start(t, more=["--handshake-timeout", "1"])
    c = suite.in_time(1, s.client)
    half = suite.in_time(1, lambda: half_handshakes(s, 5))
    for i, stranger in enumerate(half):
        closed(stranger, f"half a handshake of kind {i}")
    time.sleep(1)
    check_eq(c.read(0, 512), bytes(512), "a client whose handshake ended in time, seconds later")


@test
def test_slow_client_in_transmission(t):
    """A request that comes byte by byte is served; other clients do not wait for it."""
    s = start(t, size=SIZE)
    witness = Witness(s)
    c = s.client()
    head = struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, 0, 1, 5, 0, 8) + b"abcdefgh"
    c.pending[5] = nbd.Request(5, nbd.CMD_WRITE, 0, 0, 8)
    for b in head:
        c.send(bytes([b]))
        witness.check()
    check_eq(c.wait(5).error, 0, "a WRITE byte by byte")
    check_eq(c.read(0, 8), b"abcdefgh", "what it wrote")


@test
def test_connection_storm(t):
    s = start(t, size=SIZE)
    witness = Witness(s)
    witness.check()
    fds = s.fds()
    address = s.address
    socks = []
    for _ in range(2000):
        k = socket.socket()
        k.setblocking(False)
        k.connect_ex(address)
        socks.append(k)
        if len(socks) > 100:
            socks.pop(0).close()
    for k in socks:
        k.close()
    witness.check()
    got = serverproc.settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")


@test
def test_connections_in_parallel_threads(t):
    """Handshakes, commands and ends of 8 threads at once."""
    s = start(t, size=SIZE)

    def work(seed):
        rng = random.Random(seed)
        for _ in range(count(200, 30)):
            c = nbd.Client(s.address, lax=PEER != "")
            try:
                if rng.random() < 0.5:
                    c.structured()
                c.go("disk")
                at = seed * MIB
                c.write(at, bytes([seed]) * 4096)
                check_eq(c.read(at, 4096), bytes([seed]) * 4096, "its own place")
            finally:
                rng.choice((c.close, c.reset))()
    with Busy(s, offset=60 * MIB):
        suite.run_threads([lambda n=n: work(n) for n in range(1, 9)])
    s.check_alive()




if __name__ == "__main__":
    sys.exit(suite.main("nbd-hostile" + (f" ({PEER})" if PEER else "")))
