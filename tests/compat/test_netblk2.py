#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""netblk/2 from outside: handshake, features, messages, compression, heartbeat, resize, end. Each test names its section
of protocol/netblk.md. What sessions promise is in test_sessions2.py, what is forbidden in errors/test_wire2_hostile.py."""

import contextlib
import os
import random
import select
import sys
import time

import golden2
import netblk1
import netblk2 as n2
import serverproc
import suite
from netblk2 import (EINVAL, EIO, ENOENT, EOPNOTSUPP, EROFS, FLUSH, FUA, Feature, Hello, NO_UNMAP, NOP, OK, READ, Session, TRIM,
                     WRITE, WRITE_ZEROES)
from rig2 import CLIENT, CRC, info, session, start
from suite import check, check_eq, test

MIB = 1 << 20


@contextlib.contextmanager
def suite_closed():
    """What is asked ends with its answer, or with the connection."""
    try:
        yield
    except (OSError, EOFError, n2.Violation):
        pass


# ---- 5: hello and welcome

@test
def test_handshake(t):
    s = start(t)
    me, c = session(t, s, slots=40)
    w = me.welcome
    check(w.flags & n2.W_NEW and not w.flags & (n2.W_READ_ONLY | n2.W_ADOPTED | n2.W_MORE), f"flags {w.flags:#x}")
    check_eq(w.size_bytes, 16 * MIB, "size")
    check(n2.ID0 not in (w.session_id, w.store_uuid), "a session and a store have ids")
    check(16 <= w.slots <= 40, f"{w.slots} slots for a wish of 40")
    check_eq((w.body, w.features), (b"", []), "body and features")
    check_eq(me.read(c, 0, 4096), bytes(4096), "the first bytes")
    check_eq(c.goodbye(), OK, "GOODBYE")


@test
def test_slots_are_within_the_limits(t):
    s = start(t)
    for wish in (0, 1, 16, 1 << 20, (1 << 32) - 1):
        me, c = session(t, s, slots=wish)
        check(16 <= me.welcome.slots <= max(16, min(wish, 4096)), f"{me.welcome.slots} slots for a wish of {wish}")
        # The last slot works.
        check_eq(me.call(c, NOP, me.welcome.slots - 1).status, OK, "NOP on the last slot")
        c.close()


@test
def test_golden_conversation(t):
    """The golden requests, byte for byte, get the golden replies, byte for byte."""
    s = start(t, size="100M")
    everything = golden2.everything()
    for crc in ("crc", "plain"):
        for name in ("write", "read", "write-lz4", "flush", "trim", "write-zeroes", "nop", "goodbye"):
            features = (CRC if crc == "crc" else ()) + ((Feature(n2.LZ4),) if "lz4" in name else ())
            me = Session(s.port, golden2.CLIENT, features=features)
            c = me.open()
            t.defer(c.close)
            if name == "trim" and not me.welcome.flags & n2.W_TRIM:
                continue
            # The golden TRIM is longer than this disk.
            reply = {"write-lz4": "write"}.get(name, name)
            want = everything[f"reply-{reply}-{crc}"]
            if name == "trim":
                at = {"slot": 5, "sequence": 0x80000001, "cookie": 0x1122334455667788}
                want = n2.pack_reply(TRIM, status=EINVAL, crc=crc == "crc", **at)
            c.send(everything[f"request-{name}-{crc}"])
            check_eq(c.recv(len(want)), want, f"the reply to {name} ({crc})")
            c.close()


@test
def test_hello_arrives_byte_by_byte(t):
    s = start(t)
    me = Session(s.port, features=CRC)
    with n2.Conn(s.port) as c:
        c.offered, c.session_id = me.features, me.session_id
        for byte in n2.pack_hello(me.hello()):
            c.send(bytes([byte]))
            time.sleep(0.001)
        check_eq(c.recv_welcome().status, OK, "welcome")
        check_eq(c.call(READ, 0, 1, length=512).data, bytes(512), "READ")


@test
def test_export_by_name(t):
    path = [t.tmp / f"{i}.img" for i in range(2)]
    s = serverproc.start_export(t, f"first=file:{path[0]}?size=1M", f"second disk=file:{path[1]}?size=2M")
    for name, size in (("", MIB), ("first", MIB), ("second disk", 2 * MIB)):
        check_eq(info(s, name).size_bytes, size, f"size of {name!r}")
        me, c = session(t, s, name=name)
        check_eq(me.welcome.size_bytes, size, f"size of {name!r}")
        check_eq(me.write(c, 0, name.ljust(512).encode()), OK, "WRITE")
        c.goodbye(n2.END_SESSION)
    check_eq(path[1].read_bytes()[:11], b"second disk", "what the second has")
    for name in ("third", "FIRST", "first/", "second", "x" * 4096):
        c, w = Session(s.port, name=name).knock()
        check_eq(w.status, ENOENT, f"the welcome for {name[:20]!r}")
        check(w.text(), "a refusal says why")
        check_eq(c.drain_to_end(), b"", "bytes behind a refusal")


@test
def test_info(t):
    s = start(t)
    writer, c = session(t, s)
    for _ in range(3):
        w = info(s, "disk", features=[Feature(n2.CRC32C), Feature(n2.LZ4)])
        check_eq((w.size_bytes, w.session_id, w.store_uuid), (16 * MIB, n2.ID0, writer.uuid), "size, session, store")
        check(not w.flags & n2.W_READ_ONLY, "the export is not read-only")
        check(w.feature(n2.CRC32C), "crc32c would be in force")
    check_eq(info(s, "no such").status, ENOENT, "INFO of what is not there")
    check_eq(writer.write(c, 0, bytes(512)), OK, "the writer goes on")


@test
def test_list(t):
    names = ["disk", "a b c", "ü" * 50] + [f"{i:04d}" + "x" * 900 for i in range(100)]
    (t.tmp / "1.img").write_bytes(bytes(2048))
    s = serverproc.start_export(t, *(f"{name}=file:{t.tmp}/{i}.img" + ("?ro" if i == 1 else f"?size={i + 1}K")
                                     for i, name in enumerate(names)))
    got, more, rounds = [], True, 0
    while more and rounds < 50:
        w = info(s, flags=n2.H_LIST, list_from=len(got))
        check_eq((w.status, w.session_id), (OK, n2.ID0), "LIST")
        part = n2.unpack_exports(w.body)
        check(part, "LIST says MORE, and then nothing")
        got, more, rounds = got + part, w.flags & n2.W_MORE, rounds + 1
    check(rounds > 1, "a list of 90 KiB came as one welcome")
    check_eq([name for _, _, name in got], names, "the names, in order")
    check_eq([(size, flags) for size, flags, _ in got][:3], [(1024, 0), (2048, n2.W_READ_ONLY), (3072, 0)], "sizes and flags")
    w = info(s, flags=n2.H_LIST, list_from=len(names))
    check_eq((w.status, w.body, w.flags & n2.W_MORE), (OK, b"", 0), "a list from behind the last")
    check_eq(info(s, flags=n2.H_LIST, list_from=0xFFFFFFFF).body, b"", "a list from far behind the last")


@test
def test_read_only_export_and_session(t):
    path = t.tmp / "golden.img"
    path.write_bytes(b"G" * MIB)
    s = serverproc.start_export(t, f"golden=file:{path}?ro")
    for flags in (n2.H_WRITE, 0):
        me, c = session(t, s, flags=flags)
        check(me.welcome.flags & n2.W_READ_ONLY, "READ_ONLY in the welcome")
        for type_, data in ((WRITE, bytes(512)), (TRIM, b""), (WRITE_ZEROES, b"")):
            check_eq(me.call(c, type_, length=512, data=data).status, EROFS, f"type {type_}")
        check_eq(me.read(c, 0, 512), b"G" * 512, "READ")
        check_eq(me.call(c, FLUSH).status, OK, "FLUSH")
    s2 = start(t)
    me, c = session(t, s2, flags=0)
    check(me.welcome.flags & n2.W_READ_ONLY, "a session without WRITE is read-only")
    check_eq(me.write(c, 0, b"x" * 512), EROFS, "WRITE on a read-only session")
    check_eq(me.read(c, 0, 512), bytes(512), "READ after it")


# ---- 4: features

@test
def test_features_are_negotiated(t):
    s = start(t)
    offers = [[], [n2.CRC32C], [n2.LZ4], [n2.ZSTD], [n2.HEARTBEATS], [n2.RESIZES], [n2.TIMED], [1, 2, 3, 4, 5, 6], [2, 3], [1, 5], [1, 6]]
    for offer in offers:
        offered = [Feature(number, 5000 if number == n2.HEARTBEATS else 0) for number in offer]
        me, c = session(t, s, features=offered)
        check_eq([f.number for f in me.welcome.features], offer, "features in force")
        check_eq([f.name for f in me.welcome.features], [n2.FEATURE_NAMES[number] for number in offer], "their names")
        check_eq(me.write(c, 4096, b"f" * 4096), OK, "WRITE")
        check_eq(me.read(c, 4096, 4096), b"f" * 4096, "READ")
        c.close()


@test
def test_unknown_features(t):
    s = start(t)
    me, c = session(t, s, features=[Feature(n2.CRC32C), Feature(7, 1, name="seventh"), Feature(65535, 9, name="x" * 16)])
    check_eq([f.number for f in me.welcome.features], [n2.CRC32C], "features in force")
    c, w = Session(s.port, features=[Feature(n2.CRC32C, 0, True), Feature(900, 5, True, "teleport")]).knock()
    check_eq(w.status, EOPNOTSUPP, "a mandatory feature that is not there")
    check("teleport" in w.text(), f"the refusal names it: {w.text()!r}")
    check_eq(c.drain_to_end(), b"", "bytes behind a refusal")
    check_eq(info(s, features=[Feature(900, 5, True, "teleport")]).status, EOPNOTSUPP, "INFO with it")
    # The number decides, not the name.
    me, c = session(t, s, features=[Feature(n2.CRC32C, 0, True, "whatever")])
    check_eq([f.number for f in me.welcome.features], [n2.CRC32C], "features in force")


@test
def test_heartbeat_is_clamped(t):
    s = start(t)
    for wish in (0, 1, 100, 5000, 600000, 600001, (1 << 32) - 1):
        me, c = session(t, s, features=[Feature(n2.HEARTBEATS, wish)])
        got = me.welcome.feature(n2.HEARTBEATS).value
        check(100 <= got <= 600000, f"{got} ms")
        if 1000 <= wish <= 60000:
            check_eq(got, wish, "a wish within the range")
        c.close()


# ---- 6: messages

@test
def test_every_type(t):
    s = start(t)
    for features in ((), CRC):
        me, c = session(t, s, features=features)
        data = os.urandom(8192)
        check_eq(me.write(c, 8192, data), OK, "WRITE")
        check_eq(me.read(c, 8192, 8192), data, "READ")
        check_eq(me.write(c, 65536, data, flags=FUA), OK, "WRITE with FUA")
        check_eq(me.call(c, FLUSH).status, OK, "FLUSH")
        check_eq(me.call(c, NOP).status, OK, "NOP")
        for flags in (0, FUA, NO_UNMAP, FUA | NO_UNMAP):
            me.write(c, 8192, data)
            check_eq(me.call(c, WRITE_ZEROES, offset=8704, length=1024, flags=flags).status, OK, f"WRITE_ZEROES {flags}")
            check_eq(me.read(c, 8192, 8192), data[:512] + bytes(1024) + data[1536:], "what WRITE_ZEROES left")
        trims = me.welcome.flags & n2.W_TRIM
        for flags in (0, FUA):
            check_eq(me.call(c, TRIM, offset=65536, length=4096, flags=flags).status, OK if trims else EOPNOTSUPP, "TRIM")
        check_eq(me.read(c, 65536 + 4096, 4096), data[4096:], "what TRIM left")
        check_eq(me.call(c, WRITE_ZEROES, offset=0, length=16 * MIB).status, OK, "WRITE_ZEROES of all")
        check_eq(me.read(c, 0, MIB), bytes(MIB), "zeros")


@test
def test_outside_or_unaligned_is_einval(t):
    s = start(t, size="1M")
    me, c = session(t, s)
    limit = me.welcome.max_payload_bytes
    for offset, length in ((MIB, 512), (MIB - 512, 1024), (0, 0), (MIB, 0), (1, 512), (0, 513), (256, 256), (1 << 63, 512),
                           ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024), (0, limit), (0, MIB + 512)):
        for type_ in (READ, WRITE, TRIM, WRITE_ZEROES):
            if type_ == TRIM and not me.welcome.flags & n2.W_TRIM or length > limit and type_ in (READ, WRITE):
                continue
            # What a refused WRITE carries looks like requests: were it not dropped, it would be answered.
            data = (n2.pack_request(NOP, slot=3, sequence=7) * (length // 40 + 1))[:length] if type_ == WRITE else b""
            check_eq(me.call(c, type_, offset=offset, length=length, data=data).status, EINVAL, f"type {type_} {offset} {length}")
        check_eq(me.read(c, 0, 512), bytes(512), "in step after it")
    for type_ in (TRIM, WRITE_ZEROES):
        if type_ == WRITE_ZEROES or me.welcome.flags & n2.W_TRIM:
            check_eq(me.call(c, type_, length=(1 << 32) - 512).status, EINVAL, "longer than the disk")
    check_eq(me.read(c, MIB - 512, 512), bytes(512), "the last block")


@test
def test_longest_payload(t):
    s = start(t, size="64M")
    me, c = session(t, s)
    n = me.welcome.max_payload_bytes
    data = random.randbytes(n)
    check_eq(me.write(c, 512, data), OK, "the longest WRITE")
    check_eq(me.read(c, 512, n), data, "the longest READ")


@test
def test_replies_out_of_order(t):
    """What can be answered at once does not wait for what cannot."""
    s = start(t, delay_ms=1000)
    me, c = session(t, s, features=CRC)
    with c.in_one_piece():  # else the second may come when the first has been answered
        slow = me.ask(c, WRITE, 0, offset=0, length=512, data=b"s" * 512)
        quick = me.ask(c, NOP, 1)
    check_eq([c.reply().cookie, c.reply().cookie], [quick, slow], "the order of the replies")


@test
def test_large_reads_without_checksums(t):
    """The data may come from the file's pages without passing the server: it is the same data, in whole replies, also to a
    client that reads slowly; a file that was cut behind the server's back is an error, and not somebody else's bytes."""
    path = t.tmp / "large.img"
    content = random.randbytes(16 * MIB)
    path.write_bytes(content)
    s = serverproc.start_export(t, f"disk=file:{path}")
    for features in ((), CRC):
        me, c = session(t, s, slots=64, features=features)
        asked = {}
        for slot in range(24):
            length = (65536, 69632, MIB, 4096)[slot % 4]
            at = random.randrange(0, len(content) - length) // 512 * 512
            asked[me.ask(c, READ, slot, offset=at, length=length)] = (at, length)
        time.sleep(0.3)
        for _ in range(24):
            r = c.reply()
            at, length = asked.pop(r.cookie)
            check_eq(r.data, content[at:at + length], f"{length} bytes at {at}, features {features}")
    me, c = session(t, s, slots=64)
    os.truncate(path, 8 * MIB)
    with suite_closed():
        me.ask(c, READ, 1, offset=12 * MIB, length=MIB)
        check(c.reply().status in (EINVAL, EIO), "a READ behind the file's end")
    s.check_alive()


@test
def test_many_in_flight(t):
    """All slots at once, in a random order of slots; each reply is its request's."""
    s = start(t, delay_ms=20)
    me, c = session(t, s, slots=256, features=CRC)
    slots = list(range(me.welcome.slots))
    check(len(slots) >= 16, "slots")
    for _ in range(3):
        random.shuffle(slots)
        asked = {}
        for slot in slots:
            data = bytes([slot % 251 + 1]) * 4096
            asked[me.ask(c, WRITE, slot, offset=slot * 4096, length=4096, data=data)] = slot
        got = [c.reply() for _ in slots]
        check_eq({r.cookie for r in got}, set(asked), "cookies")
        check_eq({r.status for r in got}, {OK}, "statuses")
        asked = {me.ask(c, READ, slot, offset=slot * 4096, length=4096): slot for slot in slots}
        for _ in slots:
            r = c.reply()
            check_eq(r.data, bytes([asked[r.cookie] % 251 + 1]) * 4096, f"slot {asked[r.cookie]}")


@test
def test_cookies_are_the_clients_own(t):
    """Any, also the same for two requests at once: slot and sequence tell them apart."""
    s = start(t)
    me, c = session(t, s)
    for cookie in (0, 1, (1 << 64) - 1, 0x8000000000000000):
        check_eq(c.reply(me.ask(c, READ, offset=0, length=512, cookie=cookie)).status, OK, f"cookie {cookie:#x}")
    c.send(b"".join(n2.pack_request(NOP, slot=slot, sequence=9, cookie=7) for slot in (3, 4)))
    got = sorted(n2.REPLY.unpack(c.recv(32))[2:6] for _ in range(2))
    check_eq(got, [(3, 9, 7, 0), (4, 9, 7, 0)], "slot, sequence, cookie, status")


@test
def test_unaligned_arrival(t):
    """Requests cut into pieces of every size, and many in one piece."""
    s = start(t)
    me, c = session(t, s, features=CRC)
    data = os.urandom(1024)

    def batch():
        out = b""
        for slot in range(8):
            out += n2.pack_request(WRITE, 0, slot, me.next(slot), 0, slot * 1024, 1024, data, True)
            out += n2.pack_request(NOP, 0, slot + 8, me.next(slot + 8), 0, crc=True)
        return out
    for piece in (1, 3, 39, 40, 41, 1063, 1064, 1065, 100000):
        wire = batch()
        for at in range(0, len(wire), piece):
            c.send(wire[at:at + piece])
        got = sorted(n2.REPLY.unpack(c.recv(32))[2] for _ in range(16))
        check_eq(got, list(range(16)), f"slots answered, pieces of {piece}")
    check_eq(me.read(c, 7168, 1024), data, "the last WRITE's data")


@test
def test_ride_along(t):
    """READs behind the hello are answered behind the welcome."""
    s = start(t, size="1M")
    s.path.write_bytes(bytes(range(256)) * 4096)
    for features in ((), CRC, n2.ALL_FEATURES):
        me = Session(s.port, CLIENT, features=features)
        with n2.Conn(s.port) as c:
            crc = bool(features)
            asked, wire = {}, b""
            for slot in range(16):
                length = 65536 if slot == 5 else 512
                c.asked[slot] = n2.Asked(READ, slot, 50 + slot, length)
                wire += n2.pack_request(READ, 0, slot, 50 + slot, slot, slot * 512, length, crc=crc)
                asked[slot] = length
            c.send_hello(me.hello(), wire)
            check_eq(c.recv_welcome().status, OK, "welcome")
            for _ in asked:
                r = c.reply()
                check_eq((r.status, r.data), (OK, (bytes(range(256)) * 300)[:asked[r.cookie]]), f"slot {r.slot}")
            check_eq(c.call(NOP, 3, 54).status, OK, "the next sequence of the slot")


@test
def test_checksums_are_made(t):
    """The client of this suite checks every checksum; here: that they are there, and zero where they are not in force."""
    s = start(t)
    for features in ((), CRC):
        me, c = session(t, s, features=features)
        me.write(c, 0, b"c" * 512)
        c.send(n2.pack_request(READ, 0, 0, me.next(0), 1, 0, 512, crc=bool(features)))
        header = c.recv(32)
        payload_crc, crc = n2.REPLY.unpack(header)[-2:]
        want = (n2.crc32c(b"c" * 512), n2.crc32c(header[:28])) if features else (0, 0)
        check_eq((payload_crc, crc), want, "checksums of a READ's reply")
        check_eq(c.recv(512), b"c" * 512, "data")


@test
def test_broken_payload_is_mended_by_a_replay(t):
    """6.4: a wrong payload checksum closes; nothing is applied; after a resume the replay goes through."""
    s = start(t)
    me, c = session(t, s, features=CRC)
    me.write(c, 0, b"old." * 128)
    sequence = me.next(1)
    bent = bytearray(n2.pack_request(WRITE, 0, 1, sequence, 7, 0, 512, b"new." * 128, True))
    bent[100] ^= 0x10
    c.send(bytes(bent))
    check_eq(c.drain_to_end(), b"", "an answer to a broken payload")
    c.close()
    check_eq(s.path.read_bytes()[:4], b"old.", "a broken WRITE was applied")
    c = me.open()
    check(not me.welcome.flags & n2.W_NEW, "the session lives")
    check_eq(c.call(WRITE, 1, sequence, offset=0, length=512, data=b"new." * 128).status, OK, "the replay")
    check_eq(me.read(c, 0, 512), b"new." * 128, "after the replay")


@test
def test_truncated_write_is_not_applied(t):
    s = start(t)
    me, c = session(t, s)
    me.write(c, 0, b"old." * 1024)
    c.send(n2.pack_request(WRITE, 0, 1, me.next(1), 7, 0, 4096, b"new." * 1000, payload_length=4096))
    c.close()
    time.sleep(0.3)
    c = me.open()
    check_eq(me.read(c, 0, 4096), b"old." * 1024, "a WRITE that did not arrive whole")


# ---- 6.5: compression

@test
def test_compression(t):
    s = start(t)
    text = (b"the quick brown fox jumps over the lazy dog. " * 400)[:16384]
    noise = os.urandom(16384)
    for numbers in ((n2.LZ4,), (n2.ZSTD,), (n2.LZ4, n2.ZSTD), (n2.CRC32C, n2.LZ4), (n2.CRC32C, n2.ZSTD)):
        me, c = session(t, s, features=[Feature(number) for number in numbers])
        for number, flag, pack in ((n2.LZ4, n2.F_LZ4, n2.lz4_compress), (n2.ZSTD, n2.F_ZSTD, n2.zstd_compress)):
            if number not in numbers:
                continue
            for at, plain in ((0, text), (65536, bytes(16384)), (131072, text[:512])):
                packed = pack(plain)
                check_eq(me.call(c, WRITE, offset=at, length=len(plain), data=packed, flags=flag).status, OK, "a compressed WRITE")
                check_eq(me.read(c, at, len(plain)), plain, "what it wrote")
        check_eq(me.write(c, 0, noise), OK, "a plain WRITE")
        # message() raises if the payload of a reply is compressed and not smaller.
        check_eq(me.read(c, 0, 16384), noise, "noise")
        check_eq(me.write(c, 0, text), OK, "a plain WRITE of text")
        check_eq(me.read(c, 0, 16384), text, "text")
    # Zeros are worth it, whatever the server's taste: at least one side of the wire shows it.
    me, c = session(t, s, features=[Feature(n2.LZ4)])
    me.call(c, WRITE_ZEROES, length=65536)
    c.send(n2.pack_request(READ, 0, 0, me.next(0), 1, 0, 65536))
    *_, size, _, _ = n2.REPLY.unpack(c.recv(32))
    check(size < 65536, "64 KiB of zeros came plain though LZ4 is in force")


# ---- 9: heartbeat, resize, end

@test
def test_heartbeats_both_ways(t):
    s = start(t)
    me, c = session(t, s, features=[Feature(n2.CRC32C), Feature(n2.HEARTBEATS, 300)])
    period = me.welcome.feature(n2.HEARTBEATS).value / 1000

    # We send ours; the server must, and must keep us for longer than three periods.
    def both(c):
        got = sent = 0
        pause = 0.0  # the longest between two of ours
        began = last = time.monotonic()
        try:
            while got < 2 or time.monotonic() < began + 4.5 * period:
                check(time.monotonic() < began + suite.bound(60), f"{got} heartbeats in {sent} thirds of a period")
                c.heartbeat()
                sent, pause, last = sent + 1, max(pause, time.monotonic() - last), time.monotonic()
                if select.select([c.sock], [], [], period / 3)[0]:
                    check_eq(c.message().type, n2.HEARTBEAT, "an unasked message")
                    got += 1
            check_eq(me.read(c, 0, 512), bytes(512), "READ")
        except n2.Closed:
            pause = max(pause, time.monotonic() - last)
            check(pause > 2 * period, f"closed after {sent} heartbeats, {pause:.3f} s apart at most")
            return False  # the machine stood still, and so did we
        return True
    while not both(c):
        c = me.open()


@test
def test_silent_peer_is_gone_and_its_session_stays(t):
    s = start(t)
    me, c = session(t, s, features=[Feature(n2.HEARTBEATS, 200)])
    started = time.monotonic()
    me.write(c, 0, b"h" * 512)
    before = dict(me.sequences)
    while True:  # the server's heartbeats, then the end
        try:
            check_eq(c.message().type, n2.HEARTBEAT, "an unasked message")
        except n2.Closed:
            break
        check(time.monotonic() - started < suite.bound(0), "a silent peer is kept")
    check(time.monotonic() - started > 0.5, "closed before three periods of silence")
    c = me.open()
    check(not me.welcome.flags & (n2.W_NEW | n2.W_ADOPTED), "the session stayed")
    c.asked.clear()
    check_eq(c.call(WRITE, 0, before[0], offset=0, length=512, data=b"i" * 512).status, OK, "a replay")
    check_eq(me.read(c, 0, 512), b"h" * 512, "it was not applied again")


@test
def test_no_heartbeat_without_the_feature(t):
    s = start(t)
    me, c = session(t, s)
    check(not select.select([c.sock], [], [], 1)[0], "something came unasked")
    check_eq(me.read(c, 0, 512), bytes(512), "a silent connection without heartbeats is kept")


@test
def test_resize(t):
    s = start(t, size="1M")
    me, c = session(t, s, features=[Feature(n2.CRC32C), Feature(n2.RESIZES)])
    second = me.open(1)
    other, plain = session(t, s, n2.new_id(), flags=0)

    def hears(conn, size):
        while not conn.pushed or conn.pushed[-1] != size:
            got = conn.message()
            check_eq(got.type, n2.RESIZE, "an unasked message")
            conn.pushed.append(got.cookie)
    for size in (2 * MIB, 5 * MIB, MIB):
        os.truncate(s.path, size)
        for conn in (c, second):
            hears(conn, size)
        check_eq(info(s).size_bytes, size, "INFO")
        check_eq(me.read(c, size - 512, 512), bytes(512), "READ of the last block")
        check_eq(me.call(c, READ, offset=size, length=512).status, EINVAL, "READ behind the end")
        check_eq(other.call(plain, READ, offset=size - 512, length=512).status, OK, "READ on a connection without the feature")


@test
def test_times(t):
    """Of each type, in sums, of the replies before; and nothing on a connection that did not ask."""
    s = start(t, delay_ms=50)
    me, c = session(t, s, features=[Feature(n2.CRC32C), Feature(n2.TIMED)])
    other, plain = session(t, s, n2.new_id(), flags=0)
    began = time.monotonic_ns()
    for _ in range(3):
        check_eq(me.write(c, 0, b"t" * 4096), OK, "WRITE")
    asked = [me.ask(c, READ, slot, length=512) for slot in range(4)]
    check_eq({c.reply().cookie for _ in asked}, set(asked), "four READs at once")
    check_eq(me.call(c, READ, offset=1, length=512).status, EINVAL, "a READ that is refused")
    check_eq(me.call(c, FLUSH).status, OK, "FLUSH")
    check_eq(other.read(plain, 0, 512), b"t" * 512, "READ on a connection without the feature")
    took = time.monotonic_ns() - began
    wanted = {WRITE: 3, READ: 5, FLUSH: 1}
    while sum(told.count for told in c.times) < sum(wanted.values()):
        c.times.append(c.message())
    for type_, count in wanted.items():
        mine = [told for told in c.times if told.request_type == type_]
        check_eq(sum(told.count for told in mine), count, f"requests of type {type_}")
        store_ns = sum(told.store_ns for told in mine)
        delayed = 4 if type_ == READ else count
        check(store_ns >= delayed * 30_000_000, f"type {type_}: {store_ns} ns in a store that takes 50 ms for each")
        most = took * (4 if type_ == READ else 1)
        check(store_ns + sum(told.server_ns for told in mine) <= most, f"type {type_}: more than the {most} ns that went by")
    check_eq(me.read(c, 0, 512), b"t" * 512, "READ after it")
    check(not select.select([plain.sock], [], [], 1)[0], "times came unasked")


@test
def test_goodbye(t):
    """Everything in flight is answered first; the session and its ownership stay."""
    s = start(t, delay_ms=300)
    me, c = session(t, s, features=CRC)
    asked = {me.ask(c, WRITE, slot, offset=slot * 512, length=512, data=b"g" * 512) for slot in range(4)}
    bye = c.request(n2.GOODBYE)
    c.send(n2.pack_request(NOP, slot=9, sequence=1, crc=True))  # nothing behind it is read
    got = [c.reply() for _ in range(5)]
    check_eq({r.cookie for r in got[:4]}, asked, "replies before the answer to GOODBYE")
    check_eq((got[4].cookie, got[4].type, got[4].status), (bye, n2.GOODBYE, OK), "the answer to GOODBYE")
    check_eq(c.drain_to_end(), b"", "bytes behind it")
    check_eq(Session(s.port).knock()[1].status, n2.EBUSY, "another writer after GOODBYE")
    c = me.open()
    check(not me.welcome.flags & n2.W_NEW, "the session stays")
    check_eq(me.read(c, 0, 2048), b"g" * 2048, "what was written")


@test
def test_end_of_session(t):
    s = start(t)
    me, c = session(t, s, features=CRC)
    second = me.open(1)
    me.write(second, 0, b"e" * 512, slot=1)
    check_eq(c.goodbye(n2.END_SESSION), OK, "END_SESSION")
    check_eq(second.drain_to_end(), b"", "the other connection is ended")
    check_eq(me.knock()[1].status, n2.ESTALE, "a hello of a session that is over")
    other, c = session(t, s, n2.new_id())
    check_eq(other.read(c, 0, 512), b"e" * 512, "another may write now")


@test
def test_stop_answers_what_was_accepted(t):
    s = start(t, delay_ms=1500)
    me, c = session(t, s)
    with c.in_one_piece():
        asked = {me.ask(c, WRITE, slot, offset=slot * 512, length=512, data=b"t" * 512) for slot in range(4)}
        has_them = me.ask(c, NOP, 4)
    c.reply(has_them)
    s.signal(15)
    check_eq({c.reply().cookie for _ in range(4)}, asked, "replies during the stop")
    check_eq(c.drain_to_end(), b"", "bytes behind them")
    check_eq(s.wait(), 0, "exit status")
    check_eq(s.path.read_bytes()[:2048], b"t" * 2048, "what was accepted")


# ---- 1: both versions on one port

@test
def test_version_1_beside_version_2(t):
    s = start(t)
    me, c = session(t, s, features=CRC)
    with s.client() as old:
        for i in range(20):
            data = bytes([i + 1]) * 4096
            old.write(i * 8, data)
            check_eq(me.read(c, i * 4096, 4096), data, "netblk/2 reads what netblk/1 wrote")
            check_eq(me.write(c, i * 4096, data), OK, "WRITE")
            check_eq(old.read(i * 8, 4096), data, "and back")
        old.send(netblk1.request(netblk1.DISCONNECT))
        check_eq(old.drain_to_end(), b"", "netblk/1's end")
    check_eq(me.call(c, FLUSH).status, OK, "netblk/2 goes on")


@test
def test_failed_reads_have_no_payload(t):
    s = start(t, fault="read")
    me, c = session(t, s, features=CRC)
    for slot in range(4):
        check_eq(me.call(c, READ, slot, length=4096).status, EIO, "READ of a failing store")
    check_eq(me.call(c, NOP).status, OK, "in step")


if __name__ == "__main__":
    sys.exit(suite.main("netblk2"))
