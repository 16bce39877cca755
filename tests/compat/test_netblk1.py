#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""netblk/1 as its text has it, against a running server, by an independent client."""

import os
import random
import struct
import sys
import threading

import netblk1
import serverproc
import suite
from netblk1 import DISCONNECT, ERROR, MAX_LENGTH, READ, SECTOR, WRITE, request
from suite import check, check_eq, run_threads, test

MIB = 1 << 20


def noise(n, seed=None):
    return random.Random(seed if seed is not None else random.random()).randbytes(n)


def file_bytes(path, sector, length):
    with open(path, "rb") as f:
        f.seek(sector * SECTOR)
        return f.read(length)


# ---- golden bytes

@test
def test_golden_read(t):
    path = t.tmp / "disk.img"
    data = noise(4096, 1)
    path.write_bytes(bytes(7 * SECTOR) + data)
    s = serverproc.start(t, 1, path)
    with s.client() as c:
        c.send(bytes.fromhex("01" "0000000000000007" "00001000"))
        check_eq(c.recv(1 + 4096), b"\x00" + data, "READ of sector 7, 4096 bytes")
        c.half_close()
        check_eq(c.drain_to_end(), b"", "bytes after the reply")


@test
def test_golden_write(t):
    s = serverproc.start(t, 1)
    data = noise(1024, 2)
    with s.client() as c:
        c.send(bytes.fromhex("02" "0000000000000102" "00000400") + data)
        check_eq(c.recv(1), b"\x00", "reply of WRITE")
        check_eq(file_bytes(s.path, 0x102, 1024), data, "the file at sector 258")
        c.half_close()
        check_eq(c.drain_to_end(), b"", "bytes after the reply")
    whole = s.path.read_bytes()
    check_eq(len(whole), MIB, "size of the file")
    check(not any(whole[:0x102 * SECTOR]) and not any(whole[0x102 * SECTOR + 1024:]), "WRITE changed other sectors")


@test
def test_golden_disconnect(t):
    s = serverproc.start(t, 1)
    with s.client() as c:
        c.send(bytes.fromhex("03" "0000000000000000" "00000000"))
        check_eq(c.drain_to_end(), b"", "bytes after DISCONNECT")
    s.client().close()
    s.check_alive()


@test
def test_golden_error(t):
    s = serverproc.start(t, 1)
    with s.client() as c:
        c.send(bytes.fromhex("01" "0000000000000800" "00000200"))  # 1 MiB is 0x800 sectors
        check_eq(c.recv(1), b"\x01", "READ beyond the end")
        c.send(bytes.fromhex("02" "0000000000000800" "00000200") + noise(512))
        check_eq(c.recv(1), b"\x01", "WRITE beyond the end")
        c.half_close()
        check_eq(c.drain_to_end(), b"", "an error reply carries no data")
    check_eq(os.path.getsize(s.path), MIB, "size of the file")


@test
def test_sector_is_64_bit_big_endian(t):
    """Every byte of a sector number that a sparse file can hold lands in its place."""
    s = serverproc.start(t, 10240)
    rng = random.Random(3)
    with s.client() as c:
        for sector in (0x01, 0x0123, 0x012345, 0x01234567, 10240 * 2048 - 1):
            data = rng.randbytes(512)
            c.write(sector, data)
            check_eq(file_bytes(s.path, sector, 512), data, f"the file at sector {sector:#x}")
            check_eq(c.read(sector, 512), data, f"READ of sector {sector:#x}")


# ---- order and pipelining

@test
def test_pipelined_mixed_1000(t):
    """1,000 requests in one burst: replies in order, each READ sees the WRITEs before it."""
    s = serverproc.start(t, 1)
    rng = random.Random(suite.SEED)
    model = bytearray(MIB)
    sent, wanted = bytearray(), []
    for _ in range(1000):
        n = rng.choice((1, 1, 2, 8, 9)) * SECTOR
        sector = rng.randrange(0, 64)
        at = sector * SECTOR
        kind = rng.random()
        if kind < 0.5:
            data = rng.randbytes(n)
            model[at:at + n] = data
            sent += request(WRITE, sector, n) + data
            wanted.append(b"\x00")
        elif kind < 0.9:
            sent += request(READ, sector, n)
            wanted.append(b"\x00" + bytes(model[at:at + n]))
        elif kind < 0.95:
            sent += request(READ, MIB // SECTOR, n)
            wanted.append(b"\x01")
        else:
            sent += request(WRITE, MIB // SECTOR, n) + rng.randbytes(n)
            wanted.append(b"\x01")
    with s.client() as c:
        c.pipeline(bytes(sent))
        for i, w in enumerate(wanted):
            check_eq(c.recv(len(w)), w, f"reply {i}")
        c.half_close()
        check_eq(c.drain_to_end(), b"", "bytes after the last reply")
    check_eq(s.path.read_bytes(), bytes(model), "the file")


@test
def test_read_after_write_same_burst(t):
    s = serverproc.start(t, 4)
    with s.client() as c:
        for n in (SECTOR, 4096, 65536, MIB):
            old, new = noise(n, n), noise(n, n + 1)
            c.write(0, old)
            c.pipeline(request(READ, 0, n) + request(WRITE, 0, n) + new + request(READ, 0, n))
            check_eq(c.read_reply(n), old, f"READ before the WRITE, {n} bytes")
            c.write_reply()
            check_eq(c.read_reply(n), new, f"READ after the WRITE, {n} bytes")


@test
def test_one_segment_many_requests(t):
    """Requests split at every place by TCP: the boundaries of segments mean nothing."""
    s = serverproc.start(t, 1)
    data = noise(1024, 5)
    burst = request(WRITE, 3, 1024) + data + request(READ, 3, 1024) + request(READ, 4096, 512) + request(READ, 4, 512)
    wanted = b"\x00" + b"\x00" + data + b"\x01" + b"\x00" + data[512:]
    with s.client() as c:
        for cut in [*range(1, 30), 500, 1036, 1037, 1038, 1049, 1050, 1051, 1063, len(burst) - 1]:
            c.send(burst[:cut])
            if cut >= 1037:
                check_eq(c.recv(1), b"\x00", f"first reply, cut at {cut}")
                c.send(burst[cut:])
                check_eq(c.recv(len(wanted) - 1), wanted[1:], f"replies, cut at {cut}")
            else:
                c.send(burst[cut:])
                check_eq(c.recv(len(wanted)), wanted, f"replies, cut at {cut}")


@test
def test_disconnect_answers_what_was_before_it(t):
    s = serverproc.start(t, 8)
    rng = random.Random(6)
    data = rng.randbytes(MIB)
    with s.client() as c:
        c.write(0, data)
        c.pipeline(request(READ, 0, MIB) + request(WRITE, 4096, 4096) + data[:4096] + request(READ, 0, 4096)
                   + request(DISCONNECT))
        check_eq(c.read_reply(MIB), data, "READ before DISCONNECT")
        c.write_reply()
        check_eq(c.read_reply(4096), data[:4096], "READ right before DISCONNECT")
        check_eq(c.drain_to_end(), b"", "bytes after DISCONNECT")
    check_eq(file_bytes(s.path, 4096, 4096), data[:4096], "WRITE before DISCONNECT")


@test
def test_nothing_is_served_after_disconnect(t):
    s = serverproc.start(t, 1)
    data = b"\xa5" * 512
    with s.client() as c:
        try:
            c.send(request(DISCONNECT) + request(WRITE, 0, 512) + data)
        except netblk1.Closed:
            pass
        check_eq(c.drain_to_end(), b"", "bytes after DISCONNECT")
    with s.client() as c:
        check_eq(c.read(0, 512), bytes(512), "sector 0 after a WRITE that followed DISCONNECT")


@test
def test_half_close_still_gets_replies(t):
    s = serverproc.start(t, 64)
    data = noise(32 * MIB, 7)
    with s.client() as c:
        c.write(0, data)
    for n, many in ((512, 1), (4096, 100), (MIB, 20), (32 * MIB, 2)):
        with s.client() as c:
            c.send(request(READ, 0, n) * many)
            c.half_close()
            for i in range(many):
                check_eq(c.read_reply(n), data[:n], f"READ {i} of {many} × {n} after a half-close")
            check_eq(c.drain_to_end(), b"", "bytes after the last reply")
    with s.client() as c:
        c.send(request(WRITE, 100, 1024) + data[:1024] + request(READ, 100, 1024) + request(READ, 0, 512)[:9])
        c.half_close()
        c.write_reply()
        check_eq(c.read_reply(1024), data[:1024], "READ of what was just written, half-closed")
        check_eq(c.drain_to_end(), b"", "the incomplete request gets no reply")


# ---- lengths and the end of the device

@test
def test_lengths(t):
    s = serverproc.start(t, 64)
    big = noise(MAX_LENGTH, 8)
    with s.client() as c:
        for n in (512, 1024, 1536, 4096, 4608, 65536, 65536 + 512, 128 << 10, MIB - 512, MIB, MIB + 512,
                  3 * MIB + 1536, 16 * MIB, 32 * MIB - 512, 32 * MIB):
            sector = 1 if n % 1024 else 8
            c.write(sector, big[:n])
            check_eq(file_bytes(s.path, sector, n), big[:n], f"the file after WRITE of {n}")
            check_eq(c.read(sector, n), big[:n], f"READ of {n}")
            big = big[512:] + big[:512]
        check_eq(c.read(0, 512), bytes(512), "sector 0")


@test
def test_every_multiple_up_to_256_sectors(t):
    s = serverproc.start(t, 1)
    disk = noise(MIB, 9)
    with s.client() as c:
        c.write(0, disk)
        c.pipeline(b"".join(request(READ, k, k * SECTOR) for k in range(1, 257)))
        for k in range(1, 257):
            check_eq(c.read_reply(k * SECTOR), disk[k * SECTOR:2 * k * SECTOR], f"READ of {k} sectors at {k}")


@test
def test_last_sector(t):
    s = serverproc.start(t, 1)
    last = MIB // SECTOR - 1
    with s.client() as c:
        a, b = noise(512, 10), noise(1024, 11)
        c.write(last, a)
        check_eq(c.read(last, 512), a, "last sector")
        c.write(last - 1, b)
        check_eq(c.read(last - 1, 1024), b, "last two sectors")
        for sector, n in ((last, 1024), (last + 1, 512), (last - 1, 1536), (0, MIB + 512)):
            c.send(request(READ, sector, n))
            check_eq(c.status(), ERROR, f"READ of {n} at {sector}")
            c.send(request(WRITE, sector, n) + bytes(n))
            check_eq(c.status(), ERROR, f"WRITE of {n} at {sector}")
        check_eq(c.read(last - 1, 1024), b, "last two sectors after refused WRITEs over them")
        check_eq(c.read(0, MIB)[-1024:], b, "the whole device in one READ")
    check_eq(os.path.getsize(s.path), MIB, "size of the file")


@test
def test_odd_file_size(t):
    """Assumption: of a file that is no multiple of 512, the part beyond the last whole sector is not served."""
    path = t.tmp / "odd.img"
    path.write_bytes(noise(2 * MIB + 700, 12))
    before = path.read_bytes()
    s = serverproc.start(t, 1, path)
    with s.client() as c:
        check_eq(c.read(4096, 512), before[2 * MIB:2 * MIB + 512], "the last whole sector")
        c.send(request(READ, 4097, 512))
        check_eq(c.status(), ERROR, "READ of the sector that is not whole")
        c.send(request(WRITE, 4097, 512) + bytes(512))
        check_eq(c.status(), ERROR, "WRITE of the sector that is not whole")
    s.stop()
    check_eq(path.read_bytes(), before, "the file")


# ---- many clients

@test(timeout=90)
def test_64_clients_disjoint(t):
    s = serverproc.start(t, 64)
    per = MIB // SECTOR
    models = [bytearray(MIB) for _ in range(64)]

    def work(k):
        rng = random.Random(suite.SEED + k)
        with s.client(timeout=120) as c:
            for _ in range(10):
                burst, wanted = bytearray(), []
                for _ in range(4):
                    n = rng.choice((1, 8, 16, 64)) * SECTOR
                    at = rng.randrange(0, per - n // SECTOR)
                    data = rng.randbytes(n)
                    models[k][at * SECTOR:at * SECTOR + n] = data
                    burst += request(WRITE, k * per + at, n) + data + request(READ, k * per + at, n)
                    wanted.append(data)
                c.send(burst)
                for data in wanted:
                    c.write_reply()
                    check_eq(c.read_reply(len(data)), data, f"client {k}")
    run_threads([lambda k=k: work(k) for k in range(64)])
    with s.client() as c:
        for k in range(64):
            check_eq(c.read(k * per, MIB), bytes(models[k]), f"what client {k} wrote")
    check_eq(s.path.read_bytes(), b"".join(bytes(m) for m in models), "the file")


def overlap(t, n, shift, rounds):
    """Four clients write overlapping ranges at once; serialised writes leave each stretch
    between two range boundaries to exactly one of them."""
    s = serverproc.start(t, 16)
    clients = [s.client() for _ in range(4)]
    for c in clients:
        t.defer(c.close)
    step = shift // SECTOR
    for r in range(rounds):
        tags = [bytes([1 + (r * 4 + k) % 255]) for k in range(4)]
        gate = threading.Barrier(4)

        def work(k):
            payload = request(WRITE, k * step, n) + tags[k] * n
            # The last byte releases the write: all four are let go together.
            clients[k].send(payload[:-1])
            gate.wait(30)
            clients[k].send(payload[-1:])
            clients[k].write_reply()
        run_threads([lambda k=k: work(k) for k in range(4)])
        disk = clients[0].read(0, n + 3 * shift)
        edges = sorted({k * shift for k in range(4)} | {k * shift + n for k in range(4)})
        winners = []
        for lo, hi in zip(edges, edges[1:]):
            seen = set(disk[lo:hi])
            writers = [k for k in range(4) if k * shift <= lo and hi <= k * shift + n]
            check(len(seen) == 1 and seen <= {tags[k][0] for k in writers},
                  f"round {r}: bytes {lo}..{hi} hold {sorted(seen)}: a mix of overlapping writes")
            winners.append((lo, hi, next(k for k in writers if tags[k][0] == disk[lo]), writers))
        # One order of the four must explain every stretch: "a before b" may not contradict itself.
        later = {(w, k) for _, _, w, ws in winners for k in ws if k != w}
        check(not any((b, a) in later for a, b in later), f"round {r}: no order of the writes explains {winners}")


@test
def test_overlapping_writes_same_range(t):
    overlap(t, 64 << 10, 0, suite.count(300, 60))


@test
def test_overlapping_writes_1m_same_range(t):
    overlap(t, MIB, 0, suite.count(100, 20))


@test
def test_overlapping_writes_shifted(t):
    overlap(t, 256 << 10, 64 << 10, suite.count(200, 40))


@test
def test_overlapping_8m(t):
    overlap(t, 8 * MIB, MIB, suite.count(20, 4))


@test
def test_writes_seen_by_other_connections(t):
    s = serverproc.start(t, 1)
    with s.client() as a, s.client() as b:
        for i in range(200):
            data = struct.pack(">Q", i) * 512
            a.write(i % 8, data)
            check_eq(b.read(i % 8, 4096), data, f"what the other connection wrote, round {i}")
            a, b = b, a


# ---- a WRITE cut short is not applied

def end_connection(c, how):
    if how == "fin":
        c.half_close()
        check_eq(c.drain_to_end(), b"", "reply to a WRITE that did not arrive whole")
        c.close()
    elif how == "close":
        c.close()
    else:
        c.reset()


def truncations(t, how):
    path = t.tmp / "disk.img"
    path.write_bytes(b"\x11" * (64 * MIB))
    s = serverproc.start(t, 64, path)
    for n in (512, 1024, 4096, MIB, 32 * MIB):
        whole = request(WRITE, 0, n) + b"\xee" * n
        cuts = {*range(1, 13), 13, 14, 13 + 511, 13 + 512, 13 + n // 2, 13 + n - 512, 13 + n - 1}
        for cut in sorted(x for x in cuts if x < len(whole)):
            c = s.client()
            c.send(whole[:cut])
            end_connection(c, how)
    # Behind whole requests too: those are applied, the cut one is not.
    c = s.client()
    c.send((request(WRITE, 100, 4096) + b"\x22" * 4096) * 3 + request(WRITE, 108, 4096) + b"\xee" * 4095)
    for _ in range(3):
        c.write_reply()
    end_connection(c, how)
    s.stop()  # drained: nothing can be applied later
    disk = path.read_bytes()
    want = bytearray(b"\x11" * (64 * MIB))
    want[100 * SECTOR:108 * SECTOR] = b"\x22" * 4096
    check(b"\xee" not in disk, f"a WRITE cut short was applied, first at byte {disk.find(bytes([0xee]))}")
    check_eq(disk, bytes(want), "the file")


@test
def test_truncated_write_fin(t):
    truncations(t, "fin")


@test
def test_truncated_write_close(t):
    truncations(t, "close")


@test
def test_truncated_write_rst(t):
    truncations(t, "rst")


# ---- a model

@test(timeout=120)
def test_random_model(t):
    """Random pipelined operations of several clients on areas of their own, with reconnects,
    against a model; then the file is opened afresh and must be the model."""
    rng = random.Random(suite.SEED)
    clients, area = 4, 2 * MIB
    s = serverproc.start(t, 8)
    model = bytearray(clients * area)
    conns = [s.client() for _ in range(clients)]
    for step in range(suite.count(2000, 300)):
        k = rng.randrange(clients)
        if rng.random() < 0.05:
            if rng.random() < 0.5:
                check_eq(conns[k].disconnect(), b"", "bytes after DISCONNECT")
            else:
                conns[k].reset()
            conns[k] = s.client()
        burst, wanted = bytearray(), []
        for _ in range(rng.randrange(1, 12)):
            n = min(int(rng.paretovariate(0.7)), 600) * SECTOR
            at = rng.randrange(0, (area - n) // SECTOR + 1) * SECTOR + k * area
            if rng.random() < 0.5:
                data = rng.randbytes(n)
                model[at:at + n] = data
                burst += request(WRITE, at // SECTOR, n) + data
                wanted.append(b"\x00")
            else:
                burst += request(READ, at // SECTOR, n)
                wanted.append(b"\x00" + bytes(model[at:at + n]))
        conns[k].pipeline(bytes(burst))
        for i, w in enumerate(wanted):
            check_eq(conns[k].recv(len(w)), w, f"step {step}, client {k}, reply {i}")
    for c in conns:
        c.close()
    check_eq(s.path.read_bytes(), bytes(model), "the file while the server runs")
    s.stop()
    s = serverproc.start(t, 8, s.path)
    with s.client() as c:
        check_eq(c.read(0, len(model)), bytes(model), "the device after a restart")
    check_eq(s.path.read_bytes(), bytes(model), "the file after a restart")


@test
def test_reconnect_500_times(t):
    s = serverproc.start(t, 1)
    for i in range(500):
        with s.client() as c:
            data = struct.pack(">I", i) * 128
            c.write(i, data)
            check_eq(c.read(i, 512), data, f"round {i}")
    fds = s.fds()
    check(serverproc.settle(s.fds, 64) <= 64, f"{fds} descriptors are open after 500 connections ended")


if __name__ == "__main__":
    sys.exit(suite.main("netblk1"))
