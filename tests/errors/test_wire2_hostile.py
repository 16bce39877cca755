#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What protocol/netblk.md forbids (11), on a netblk/2 connection: the stated answer, no other connection and no session
harmed, nothing left behind."""

import os
import pathlib
import random
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk2 as n2
import suite
from netblk2 import (EINVAL, END_SESSION, EOPNOTSUPP, EPROTO, FLUSH, FUA, Feature, GOODBYE, HEARTBEAT, Hello, NO_UNMAP, NOP, OK, READ,
                     RESIZE, Session, TRIM, WRITE, WRITE_ZEROES)
from rig2 import CLIENT, CRC, info, session, start
from serverproc import settle
from suite import check, check_eq, run_threads, test

MIB = 1 << 20
SIZE = 64 * MIB
REQUEST_TIMEOUT = ["--request-timeout", "2"]  # seconds


class Witness:
    """A well-behaved client beside the others, on a session of its own."""

    def __init__(self, t, server):
        self.me, self.conn = session(t, server, b"witness" + bytes(9), flags=0, features=CRC)
        self.n = 0

    def check(self):
        check_eq(self.me.read(self.conn, 4096, 512), bytes(512), "what a well-behaved client reads")
        self.n += 1


def expect_end(conn, what):
    try:
        rest = conn.drain_to_end()
    except TimeoutError:
        raise AssertionError(f"{what}: the connection stays open") from None
    check_eq(rest, b"", f"{what}: bytes before the connection ended")
    conn.close()


def expect_close(me, wire, what, **kw):
    """On the session's connection 1: these bytes end it without an answer. A resume goes on."""
    conn = me.open(1, **kw)
    try:
        conn.send(wire)
    except n2.Closed:
        pass
    expect_end(conn, what)


# ---- the table: type × length × offset

@test(timeout=180)
def test_table(t):
    s = start(t, size="64M")
    witness = Witness(t, s)
    me, c = session(t, s, features=CRC)
    most = me.welcome.max_payload_bytes
    lengths = (0, 1, 511, 512, 513, most, most + 1, most + 512, 1 << 31, (1 << 32) - 512, (1 << 32) - 1)
    offsets = (0, 1, SIZE - 1, SIZE - 512, SIZE, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 512, (1 << 64) - 1)
    trims = me.welcome.flags & n2.W_TRIM
    for type_ in (READ, WRITE, TRIM, WRITE_ZEROES):
        for length in lengths:
            for offset in offsets:
                what = f"type {type_} length {length} offset {offset}"
                if type_ == WRITE and length == most and offset not in (1, SIZE):
                    continue  # 32 MiB of refused data twice are enough
                if type_ in (READ, WRITE) and length > most:
                    # The header alone ends it: nobody waits for the data.
                    sequence = me.next(1)
                    expect_close(me, n2.pack_request(type_, 0, 1, sequence, 1, offset, length, crc=True,
                                                     payload_length=length if type_ == WRITE else 0), what)
                    me.sequences[1] -= 1
                    continue
                good = length and not length % 512 and not offset % 512 and offset + length <= SIZE
                want = OK if good else EINVAL
                if type_ == TRIM and not trims:
                    want = EOPNOTSUPP
                n2_crc, c.crc = c.crc, c.crc and length < MIB  # checksums of 32 MiB in Python take their time
                try:
                    if c.crc != n2_crc:
                        plain, p = session(t, s, b"plain" + bytes(11), flags=0)
                        got = p.call(type_, 0, plain.next(0), offset=offset, length=length,
                                     data=bytes(length) if type_ == WRITE else b"")
                        want = n2.EROFS if type_ != READ else want
                        p.close()
                    else:
                        got = me.call(c, type_, offset=offset, length=length, data=bytes(length) if type_ == WRITE else b"")
                finally:
                    c.crc = n2_crc
                check_eq(got.status, want, what)
        witness.check()
    check_eq(me.read(c, 0, 512), bytes(512), "in step")
    check_eq(os.path.getsize(s.path), SIZE, "size of the file")
    s.check_alive()


# ---- headers that are none

LEGAL = {READ: 0, WRITE: FUA | n2.F_LZ4 | n2.F_ZSTD, FLUSH: 0, TRIM: FUA, WRITE_ZEROES: FUA | NO_UNMAP, NOP: 0,
         GOODBYE: END_SESSION, HEARTBEAT: 0}


def header(type_, flags=0, slot=0, sequence=0, cookie=0, offset=0, length=0, payload_length=0, payload_crc=0, crc=True):
    raw = n2.REQUEST.pack(type_, flags, slot, sequence, cookie, offset, length, payload_length, payload_crc, 0)[:-4]
    return raw + struct.pack(">I", n2.crc32c(raw) if crc else 0)


@test(timeout=120)
def test_unknown_types_close(t):
    s = start(t)
    me, witness = session(t, s)
    for type_ in (0, RESIZE, 10, 11, 0x20, 0x4E, 0x7F, 0x80, 0xFE, 0xFF):
        expect_close(me, header(type_, crc=False), f"type {type_}")
        expect_close(me, header(type_, 0, 1, me.next(1), 5, 0, 512, crc=False), f"type {type_} with a range")
        me.sequences[1] -= 1
    expect_close(me, header(HEARTBEAT, crc=False), "HEARTBEAT that was not negotiated")
    check_eq(me.read(witness, 0, 512), bytes(512), "another connection of the session")


@test(timeout=120)
def test_flags_that_a_type_does_not_have_close(t):
    s = start(t)
    every = [Feature(n2.CRC32C), Feature(n2.LZ4), Feature(n2.ZSTD), Feature(n2.HEARTBEATS, 60000)]
    me, witness = session(t, s, features=every)
    for type_, legal in LEGAL.items():
        for bit in range(8):
            if legal >> bit & 1:
                continue
            ranged = type_ in (READ, WRITE, TRIM, WRITE_ZEROES)
            slotted = type_ not in (GOODBYE, HEARTBEAT)
            wire = header(type_, 1 << bit, 1 if slotted else 0, me.sequences.get(1, 100) + 1 if slotted else 0, 0, 0,
                          512 if ranged else 0, 512 if type_ == WRITE else 0, n2.crc32c(bytes(512)) if type_ == WRITE else 0)
            expect_close(me, wire + (bytes(512) if type_ == WRITE else b""), f"type {type_} with flag {1 << bit:#x}")
    both = n2.F_LZ4 | n2.F_ZSTD
    expect_close(me, header(WRITE, both, 1, 5, 0, 0, 512, 100, n2.crc32c(bytes(100))) + bytes(100), "two compressions")
    me.features = [Feature(n2.CRC32C), Feature(n2.LZ4)]
    packed = n2.zstd_compress(bytes(512))
    expect_close(me, n2.pack_request(WRITE, n2.F_ZSTD, 1, 5, 0, 0, 512, packed, True), "a compression that is not in force")
    check_eq(me.read(witness, 0, 512), bytes(512), "nothing of it was applied")


@test(timeout=120)
def test_fields_that_a_type_does_not_use_close(t):
    s = start(t)
    me, witness = session(t, s, features=[Feature(n2.CRC32C), Feature(n2.HEARTBEATS, 60000)])
    slotted = {"slot": 1, "sequence": 50}
    wrong = []
    for type_ in (READ, TRIM, WRITE_ZEROES):
        wrong += [(type_, {**slotted, "length": 512, "payload_length": 512}), (type_, {**slotted, "length": 512, "payload_crc": 1})]
    for type_ in (FLUSH, NOP):
        wrong += [(type_, {**slotted, field: 512}) for field in ("offset", "length", "payload_length", "payload_crc")]
    for type_ in (GOODBYE, HEARTBEAT):
        wrong += [(type_, {field: 1}) for field in ("slot", "sequence", "offset", "length", "payload_length", "payload_crc")]
    wrong += [(HEARTBEAT, {"cookie": 1})]
    # A WRITE whose payload does not fit.
    wrong += [(WRITE, {**slotted, "length": 512, "payload_length": size}) for size in (0, 1, 511, 513, 1024, (1 << 32) - 1)]
    wrong += [(WRITE, {**slotted, "length": 0, "payload_length": 512})]
    for type_, fields in wrong:
        expect_close(me, header(type_, **fields), f"type {type_} with {fields}")
    check_eq(me.read(witness, 0, 512), bytes(512), "another connection")


@test
def test_slots_beyond_the_last_close(t):
    s = start(t)
    me, witness = session(t, s)
    for slot in (me.welcome.slots, me.welcome.slots + 1, 4095, 4096, 0x7FFF, 0xFFFF):
        if slot >= me.welcome.slots:
            expect_close(me, header(NOP, 0, slot, 1, crc=False), f"slot {slot} of {me.welcome.slots}")
    check_eq(me.call(witness, NOP).status, OK, "another connection")


@test(timeout=120)
def test_flipped_bits_close(t):
    """Any one bit of a header or payload, with crc32c in force."""
    s = start(t)
    me, witness = session(t, s, features=CRC)
    data = b"x" * 512
    for bit in list(range(0, 40 * 8, 5)) + [40 * 8, 40 * 8 + 2049, (40 + 512) * 8 - 1]:
        sequence = me.sequences.get(1, 100) + 1
        wire = bytearray(n2.pack_request(WRITE, FUA, 1, sequence, 1, 0, 512, data, True))
        wire[bit // 8] ^= 1 << bit % 8
        expect_close(me, bytes(wire), f"bit {bit} flipped")
    check_eq(me.read(witness, 0, 512), bytes(512), "nothing of it was applied")


@test
def test_bad_compression_closes(t):
    """Garbage, bombs and lies; memory stays bounded by `length`."""
    s = start(t)
    me, witness = session(t, s, features=[Feature(n2.LZ4), Feature(n2.ZSTD)])
    before = s.rss_kib()
    rng = random.Random(suite.SEED)
    bomb = n2.zstd_compress(bytes(64 * MIB))
    for flag, pack in ((n2.F_LZ4, n2.lz4_compress), (n2.F_ZSTD, n2.zstd_compress)):
        good = pack(bytes(4096))
        certain = [good[:-1], pack(bytes(8192)), pack(bytes(512)), b"\xff" * 100, bomb[:4000]]
        cases = certain + [good + b"\0", b"\0", rng.randbytes(300)]
        for bit in range(0, len(good) * 8, 3):
            bent = bytearray(good)
            bent[bit // 8] ^= 1 << bit % 8
            cases.append(bytes(bent))
        for payload in cases:
            if len(payload) >= 4096:
                continue
            conn = me.open(1)
            try:
                conn.send(n2.pack_request(WRITE, flag, 1, me.next(1), 1, 4096, 4096, payload))
                conn.sock.shutdown(1)
            except (n2.Closed, OSError):
                pass
            got = conn.drain_to_end()
            # A flipped bit may still give 4,096 bytes; then it is a WRITE like any other.
            check(got == b"" or payload not in certain and got == n2.pack_reply(WRITE, 0, 1, me.sequences[1], 1), f"answer {got.hex()} to {payload[:20].hex()}")
            if not got:
                me.sequences[1] -= 1
            conn.close()
    check_eq(me.read(witness, 0, 512), bytes(512), "another connection")
    check(s.rss_kib() - before < 40 << 10, f"RSS grew from {before} to {s.rss_kib()} KiB")


# ---- hellos that are none

def expect_refusal(s, wire, want, what):
    with n2.Conn(s.port) as c:
        try:
            c.send(wire)
        except n2.Closed:
            pass
        w = c.recv_welcome(None)
        check_eq(w.status, want, f"{what}: the welcome ({w.text()!r})")
        check(0 < len(w.body) <= 1024, f"{what}: a refusal says why, in {len(w.body)} bytes")
        expect_end(c, what)


def bent_hello(at, value, hello=None, **fields):
    """A good hello with bytes replaced, and a right checksum."""
    whole = bytearray(n2.pack_hello(hello or Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, **fields)))
    whole[at:at + len(value)] = value
    return n2.reseal(whole)


@test(timeout=120)
def test_malformed_hellos_are_refused(t):
    s = start(t)
    witness = Witness(t, s)
    u16, u32 = (lambda v: struct.pack(">H", v)), (lambda v: struct.pack(">I", v))
    crc = [Feature(n2.CRC32C)]
    good = n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1))
    cases = {f"length {n}": good[:8] + u32(n) + good[12:] for n in (0, 1, 88, 95, 97, 100, 8200, 8193, 1 << 31, (1 << 32) - 1)}
    cases.update({f"flag {1 << bit:#x}": bent_hello(16, u16(1 << bit)) for bit in range(6, 16)})
    cases.update({
        "a wrong checksum": good[:12] + bytes(4) + good[16:],
        "a length that is more than its parts": n2.reseal(good[:8] + u32(104) + good[12:] + bytes(8)),
        "features that are not there": bent_hello(92, u16(1)),
        "33 features": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=[Feature(100 + i, name="x") for i in range(33)])),
        "65535 features": bent_hello(92, u16(65535)),
        "a name that is not there": bent_hello(94, u16(1)),
        "a name of 4097 bytes": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, name="n" * 4097)),
        "a name of 65535 bytes": bent_hello(94, u16(65535)),
        "no session id": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=bytes(16), epoch=1)),
        "a zero byte in the name": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, name="a\0b")),
        "padding that is not zero": n2.reseal(n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, name="abc"))[:-1] + b"\1"),
        "feature 0": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=[Feature(0, name="zero")])),
        "a feature without a name": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=[Feature(1, name="")])),
        "a feature with a blank in its name": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=[Feature(1, name="crc 32c")])),
        "a feature with unknown flags": bent_hello(98, u16(2), Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=crc)),
        "features that descend": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=[Feature(2), Feature(1)])),
        "a feature twice": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, features=[Feature(1), Feature(1)])),
        "no client id": n2.pack_hello(Hello(session_id=CLIENT, epoch=1)),
        "no epoch": n2.pack_hello(Hello(client_id=CLIENT, session_id=CLIENT)),
        "INFO and LIST": n2.pack_hello(Hello(n2.H_INFO | n2.H_LIST)),
        "connection 16": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, connection=16)),
        "connection 65535": n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, connection=65535)),
    })
    for what, wire in cases.items():
        expect_refusal(s, wire, EPROTO, what)
        witness.check()
    s.check_alive()


@test
def test_what_only_begins_like_a_hello_is_closed(t):
    s = start(t)
    witness = Witness(t, s)
    for wire in (b"N" + bytes(95), b"NETBLK/1" + bytes(88), b"NETBLK/3" + bytes(88), b"NETBLK\x002" + bytes(88), b"netblk/2" + bytes(88),
                 b"NBDMAGICIHAVEOPT", b"NOTIFY * HTTP/1.1\r\nHost: x\r\n\r\n"):
        with n2.Conn(s.port) as c:
            c.send(wire)
            expect_end(c, f"{wire[:10]}")
        witness.check()


@test
def test_a_second_hello_is_no_request(t):
    s = start(t)
    me, c = session(t, s)
    c.send(n2.pack_hello(me.hello()))
    expect_end(c, "a hello on an open connection")


def slow_clients(t, wires, half_handshakes=0):
    """Rows of (bytes or a function of a session, whether zero bytes trickle in behind them): what is not whole must be
    closed by its deadline, however slowly it goes on, while another client is served."""
    s = start(t, more=REQUEST_TIMEOUT)
    witness = Witness(t, s)
    fds, rss = s.fds(), s.rss_kib()
    stop, done = threading.Event(), []

    def serve():
        while not stop.is_set():
            witness.check()
            time.sleep(0.01)

    def run(wire, trickle):
        if callable(wire):
            me = Session(s.port, flags=n2.H_WRITE | n2.H_SHARED)
            c, wire = me.open(), wire(me)
        else:
            c = n2.Conn(s.port)
        c.send(wire)
        c.sock.settimeout(0.25)
        end = time.monotonic() + suite.bound(15)
        while time.monotonic() < end:
            try:
                if trickle:
                    c.sock.send(b"\0")
                if not c.sock.recv(1):
                    break
                raise AssertionError("what is not whole was answered")
            except TimeoutError:
                pass
            except OSError:
                break
        else:
            raise AssertionError("what is not whole outlives its deadline by far")
        c.close()
        done.append(1)
    halves = [n2.Conn(s.port) for _ in range(half_handshakes)]
    for c in halves:
        c.send(n2.MAGIC)
    grown = s.rss_kib() - rss
    check(grown <= half_handshakes * 64 + 4096, f"RSS grew by {grown} KiB for {half_handshakes} half handshakes")
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    run_threads([lambda w=w: run(*w) for w in wires for _ in range(10)])
    for c in halves:
        expect_end(c, "half a handshake")
    stop.set()
    thread.join()
    check_eq(len(done), 10 * len(wires), "clients that were closed")
    check(witness.n > 20, f"a well-behaved client was served {witness.n} times")
    got = settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")


@test
def test_unfinished_hellos_are_closed_by_the_deadline(t):
    """Of 10 s; and hundreds of half handshakes cost little and disturb nobody."""
    hello = n2.pack_hello(Hello(n2.H_BEGIN, client_id=CLIENT, session_id=CLIENT, epoch=1, name="n" * 4000))
    slow_clients(t, [(hello[:1], False), (hello[:8], False), (hello[:50], False), (hello[:-1], False), (hello[:12], True),
                     (hello[:60], True)], suite.count(1000, 300))


@test
def test_unfinished_requests_are_closed_by_the_deadline(t):
    write = lambda me: n2.pack_request(WRITE, 0, 1, me.next(1), 1, 0, MIB, b"w" * 5000, payload_length=MIB)
    slow_clients(t, [(lambda me: write(me)[:1], False), (lambda me: write(me)[:39], False), (write, False), (write, True)])


# ---- many bytes, many sessions

@test(timeout=600)
def test_rst_with_reads_queued(t):
    """RST while READs of 32 MiB in all are queued: descriptors and memory come back."""
    s = start(t, size="64M")
    witness = Witness(t, s)
    rng = random.Random(suite.SEED)
    me = Session(s.port, flags=0)

    def once(i):
        c = n2.Conn(s.port, rcvbuf=65536)
        c.greet(Session(s.port, me.client_id, flags=0, slots=32).hello())
        c.send(b"".join(n2.pack_request(READ, 0, slot, 1, slot, 0, MIB) for slot in range(min(32, c.welcome.slots))))
        if i % 3 == 1:
            c.recv(1 + rng.randrange(3 * MIB))
        elif i % 3 == 2:
            time.sleep(rng.random() * 0.01)
        c.reset()
    for i in range(40):
        once(i)
    witness.check()
    fds, rss = settle(s.fds, 0, 0.3), settle(s.rss_kib, 0, 0.3)
    for i in range(suite.count(10000, 150)):
        once(i)
        if i % 50 == 0:
            witness.check()
    got = settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")
    bound = rss + max(1024, rss // 100) + 8192
    got = settle(s.rss_kib, bound)
    check(got <= bound, f"RSS: {rss} KiB before, {got} KiB after")
    s.check_alive()


@test(timeout=300)
def test_rst_with_writes_queued(t):
    s = start(t, size="64M")
    witness = Witness(t, s)
    def rounds(n):
        for _ in range(n):
            me = Session(s.port, CLIENT)  # a new session: what was in flight is fenced with the old one
            c = me.open_patiently()
            wire = b"".join(n2.pack_request(WRITE, 0, slot, me.next(slot), slot, 8 * MIB, MIB, bytes(MIB)) for slot in range(3))
            sender = threading.Thread(target=lambda c=c, wire=wire: quietly(c, wire), daemon=True)
            sender.start()
            sender.join(random.random() * 0.02)
            c.reset()
            sender.join()
        witness.check()

    def quietly(c, wire):
        try:
            c.send(wire)
        except (OSError, n2.Closed):
            pass
    rounds(suite.count(300, 40))
    fds, rss = settle(s.fds, 0, 0.3), settle(s.rss_kib, 0, 0.3)
    rounds(suite.count(1000, 80))
    got = settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")
    got = settle(s.rss_kib, rss + 16384)
    check(got <= rss + 16384, f"RSS: {rss} KiB before, {got} KiB after")


@test(timeout=600)
def test_abandoned_sessions_cost_bounded_memory(t):
    """10,000 sessions that nobody comes back to, of readers and of shared writers."""
    s = start(t)
    witness = Witness(t, s)
    writer = n2.H_WRITE | n2.H_SHARED

    def leave(many, flags):
        for i in range(many):
            me = Session(s.port, flags=flags(i), slots=4096)
            c, w = me.knock()
            check(w.status in (OK, n2.ENOMEM, n2.EBUSY), f"a session more: {w.status} {w.text()}")
            if w.status == OK:
                c.send(n2.pack_request(NOP, 0, w.slots - 1, 1))
                c.recv(32)
            c.reset() if i % 2 else c.close()
    leave(200, lambda i: writer if i % 2 else 0)
    fds, rss = settle(s.fds, 0, 0.5), s.rss_kib()
    leave(suite.count(10000, 700), lambda i: writer if i % 2 else 0)
    witness.check()
    got = settle(s.fds, fds)
    check(got <= fds, f"descriptors: {fds} before, {got} after")
    grown = s.rss_kib() - rss
    check(grown <= 16 << 10, f"RSS grew by {grown} KiB")
    me, c = session(t, s, n2.new_id(), flags=n2.H_WRITE | n2.H_TAKEOVER)
    check_eq(me.write(c, 0, b"x" * 512), OK, "whoever takes over can still write")
    s.check_alive()


@test(timeout=120)
def test_client_that_never_reads(t):
    s = start(t, size="64M")
    witness = Witness(t, s)
    before = s.rss_kib()
    me = Session(s.port, flags=0, slots=4096)
    c = n2.Conn(s.port, rcvbuf=4096)
    w = c.greet(me.hello())
    sender = threading.Thread(target=lambda: swallow(c, b"".join(
        n2.pack_request(READ, 0, slot, 1, slot, 0, w.max_payload_bytes) for slot in range(w.slots))), daemon=True)
    sender.start()
    peak = 0
    for _ in range(20):
        time.sleep(0.1)
        peak = max(peak, s.rss_kib() - before)
        witness.check()
    check(peak <= 256 << 10, f"RSS grew by {peak} KiB for one client that never reads")
    c.reset()
    sender.join()


def swallow(c, wire):
    try:
        c.sock.sendall(wire)
    except OSError:
        pass


@test(timeout=120)
def test_announced_bytes_cost_no_memory(t):
    """100 connections that announce 32 MiB each and send 1 KiB."""
    s = start(t, size="64M")
    witness = Witness(t, s)
    before = s.rss_kib()
    conns = []
    for _ in range(100):
        me = Session(s.port, flags=n2.H_WRITE | n2.H_SHARED)
        c, w = me.knock()
        if w.status == OK:
            length = w.max_payload_bytes
            c.send(n2.pack_request(WRITE, 0, 0, 1, 0, 0, length, bytes(1024), payload_length=length))
        conns.append(c)
    for _ in range(50):
        witness.check()
    grown = s.rss_kib() - before
    for c in conns:
        c.reset()
    check(grown <= 64 << 10, f"RSS grew by {grown} KiB for 100 times 1 KiB of data")


@test(timeout=180)
def test_garbage_streams(t):
    """Seeded garbage behind a good hello, from noise to nearly right requests. A session that nobody disturbs is served."""
    s = start(t)
    rng = random.Random(suite.SEED)
    witness = Witness(t, s)
    me = Session(s.port, flags=n2.H_WRITE | n2.H_SHARED, slots=16)
    memory = s.rss_kib()
    for i in range(suite.count(2000, 250)):
        crc = rng.random() < 0.5
        me.features = [Feature(number) for number in (1, 2, 3, 5) if (crc if number == 1 else rng.random() < 0.4)]
        if rng.random() < 0.2:
            me = Session(s.port, me.client_id, flags=me.flags, features=me.features, slots=16)
        try:
            c = me.open(rng.randrange(4))
        except n2.Violation:  # a GOODBYE of ours has ended it
            me = Session(s.port, me.client_id, flags=me.flags, slots=16)
            continue
        parts = []
        for _ in range(rng.randrange(1, 10)):
            if rng.random() < 0.15:
                parts.append(rng.randbytes(rng.randrange(1, 100)))
                continue
            type_ = rng.choice((READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, NOP, GOODBYE, HEARTBEAT, rng.randrange(256)))
            length = rng.choice((0, 512, 4096, 4096, rng.randrange(1 << 16), rng.randrange(1 << 32)))
            data = rng.randbytes(min(length, 1 << 16)) if type_ == WRITE else b""
            slot = rng.choice((rng.randrange(16), rng.randrange(1 << 16)) if rng.random() < 0.1 else (rng.randrange(16),))
            flags = rng.choice((0, 0, 0, FUA, rng.randrange(256)))
            sequence = me.next(slot) if rng.random() < 0.8 else rng.randrange(1 << 32)
            # Far from where the witness reads.
            offset = 8192 + rng.choice((rng.randrange(100) * 512, rng.randrange(1 << 63)))
            wire = bytearray(n2.pack_request(type_, flags, slot, sequence, i, offset, length, data, crc))
            if rng.random() < 0.1:
                wire[rng.randrange(len(wire))] ^= 1 << rng.randrange(8)
            parts.append(bytes(wire))
        sender = threading.Thread(target=swallow, args=(c, b"".join(parts)), daemon=True)
        sender.start()
        how = rng.random()
        if how < 0.7:
            sender.join(rng.random() * 0.02)
            c.reset() if how < 0.3 else c.close()
        else:
            sender.join(suite.bound(0))
            try:
                c.sock.shutdown(1)
                c.drain_to_end()
            except TimeoutError:
                raise AssertionError(f"round {i}: the connection neither ended nor was answered") from None
            except OSError:
                pass
            c.close()
        me.sequences = {}
        if i % 10 == 0:
            witness.check()
            s.check_alive()
    s.check_alive()
    check(s.rss_kib() - memory < 128 << 10, f"RSS grew from {memory} to {s.rss_kib()} KiB")


@test(timeout=120)
def test_hellos_race_for_one_index(t):
    """Many resumes of the same index at once: the highest epoch has the session, the others are refused or fenced."""
    s = start(t)
    me, c = session(t, s)
    for _ in range(suite.count(20, 5)):
        base, got = me.epochs[0], []

        def knock(i, base=base, got=got):
            conn = n2.Conn(s.port)
            try:
                w = conn.greet(Hello(n2.H_WRITE, 0, 64, me.client_id, me.session_id, base + 1 + i, me.uuid, me.generation))
            except n2.Closed:
                check(i != 7, "the highest epoch was fenced")
                return  # let in, and fenced before it was told
            check(w.status in (OK, n2.EAGAIN), f"status {w.status}: {w.text()}")
            got.append((i, w.status, conn))
        run_threads([lambda i=i: knock(i) for i in range(8)])
        me.epochs[0] = base + 8
        check(dict((i, status) for i, status, _ in got)[7] == OK, "the highest epoch was not let in")
        for i, status, conn in got:
            if i != 7:
                conn.drain_to_end()
            else:
                check_eq(me.call(conn, NOP).status, OK, "the highest epoch")
            conn.close()
    s.check_alive()


@test
def test_stop_with_100_idle_clients(t):
    s = start(t)
    conns = [Session(s.port, flags=0, features=CRC).open() for _ in range(80)] + [n2.Conn(s.port) for _ in range(20)]
    s.signal(15)
    check_eq(s.wait(), 0, "exit status")
    for c in conns:
        c.drain_to_end()
        c.close()


@test
def test_closing_is_logged_with_its_reason(t):
    s = start(t)
    me, witness = session(t, s)
    reasons = set()
    for what, wire in (("type", header(77, crc=False)), ("slot", header(NOP, 0, 60000, 1, crc=False)),
                       ("sequence", header(NOP, 0, 0, 5, crc=False) + header(NOP, 0, 0, 9, crc=False)),
                       ("goodbye", header(GOODBYE, crc=False))):
        c = me.open(1)
        me.sequences[0] = 5
        port = f":{c.local_port}"
        c.send(wire)
        c.drain_to_end()
        c.close()
        line = s.wait_log(lambda x: port in x and "open" not in x.split(port, 1)[1][:12].lower() and
                          ("clos" in x.lower() or "end" in x.lower() or "lost" in x.lower()))
        reasons.add(line.split(port, 1)[1])
    check_eq(len(reasons), 4, f"different causes, different words: {reasons}")
    check_eq(info(s).status, OK, "the server")


if __name__ == "__main__":
    sys.exit(suite.main("wire2-hostile"))
