#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Filters of a store behind a running server: parts of a disk, limits, delays, faults, traces."""

import pathlib
import random
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import suite
from netblk1 import ERROR, OK, READ, WRITE, request
from serverproc import free_port, run_cli, start_export
from suite import check, check_eq, test

MIB = 1 << 20


def refused(t, store, *words, code=1):
    """The server does not start, and says why in one line: 2, it is malformed; 1, the world is not so."""
    got, out, err = run_cli(["--export", f"disk={store}", "--listen", f"netblk://127.0.0.1:{free_port()}"])
    check_eq((got, out, err.count("\n")), (code, "", 1), f"{store}: status, stdout, lines on stderr; {err!r}")
    for word in words:
        check(word in err, f"{store}: {word!r} is not in {err!r}")


def image(t, size=8 * MIB, name="disk.img"):
    path = t.tmp / name
    path.write_bytes(random.Random(6).randbytes(size))
    return path


def entry(disk, table, index, kind, first, sectors):
    struct.pack_into("<BBBBBBBBII", disk, table * 512 + 446 + 16 * index, 0, 0, 0, 0, kind, 0, 0, 0, first, sectors)
    struct.pack_into("<H", disk, table * 512 + 510, 0xAA55)


# ---- parts

@test
def test_offset_and_size(t):
    path = image(t)
    before = path.read_bytes()
    s = start_export(t, f"disk=file:{path}?offset=1M&size=2M")
    with s.client() as c:
        check_eq(c.read(0, 2 * MIB), before[MIB:3 * MIB], "the part")
        c.write(0, b"\x11" * 512)
        c.write(2 * MIB // 512 - 1, b"\x22" * 512)
        for command in (request(READ, 2 * MIB // 512, 512), request(WRITE, 2 * MIB // 512 - 1, 1024) + bytes(1024)):
            c.send(command)
            check_eq(c.status(), ERROR, "beyond the part")
    s.stop()
    want = bytearray(before)
    want[MIB:MIB + 512] = b"\x11" * 512
    want[3 * MIB - 512:3 * MIB] = b"\x22" * 512
    check_eq(path.read_bytes(), bytes(want), "the file")


@test
def test_offset_without_size_is_the_rest(t):
    path = image(t)
    s = start_export(t, f"disk=file:{path}?offset=7M")
    with s.client() as c:
        check_eq(c.read(0, MIB), path.read_bytes()[7 * MIB:], "the rest")
        c.send(request(READ, MIB // 512, 512))
        check_eq(c.status(), ERROR, "beyond it")


@test
def test_part_of_memory(t):
    s = start_export(t, "disk=mem:8M?offset=4M&size=1M")
    with s.client() as c:
        c.write(0, b"\x01" * MIB)
        check_eq(c.read(0, MIB), b"\x01" * MIB, "what was written")
        c.send(request(READ, MIB // 512, 512))
        check_eq(c.status(), ERROR, "beyond the part")


@test
def test_part_outside_is_refused(t):
    path = image(t)
    refused(t, f"file:{path}?offset=8M", "not inside it")
    refused(t, f"file:{path}?offset=4M&size=5M", "not inside it")
    refused(t, f"file:{path}?offset=100", "offset=100", code=2)
    refused(t, f"file:{path}?offset=1M&partition=1", "partition=", code=2)
    refused(t, f"file:{path}?partition=0", "partition=0", code=2)
    # With offset=, the size is the part's: nothing is created, nothing grows.
    refused(t, f"file:{t.tmp}/none.img?offset=1M&size=1M", "none.img")
    check(not (t.tmp / "none.img").exists(), "a file was made")
    check_eq(path.stat().st_size, 8 * MIB, "size of the file")


@test
def test_partitions(t):
    disk = bytearray(random.Random(7).randbytes(8 * MIB))
    disk[:512] = bytes(512)
    entry(disk, 0, 0, 0x83, 2048, 2048)
    entry(disk, 0, 1, 0x05, 8192, 8192)
    for table, first, following in ((8192, 64, 2048), (10240, 128, 0)):
        disk[table * 512:table * 512 + 512] = bytes(512)
        entry(disk, table, 0, 0x83, first, 1024)
        if following:
            entry(disk, table, 1, 0x05, following, 2048)
    path = t.tmp / "disk.img"
    path.write_bytes(disk)
    for number, first, sectors in ((1, 2048, 2048), (5, 8256, 1024), (6, 10368, 1024)):
        s = start_export(t, f"disk=file:{path}?partition={number}")
        with s.client() as c:
            check_eq(c.read(0, sectors * 512), bytes(disk[first * 512:(first + sectors) * 512]), f"partition {number}")
            c.send(request(READ, sectors, 512))
            check_eq(c.status(), ERROR, f"beyond partition {number}")
        s.stop()
    refused(t, f"file:{path}?partition=3", "no partition 3")
    refused(t, f"file:{path}?partition=7", "no partition 7")
    refused(t, f"file:{path}?partition=2", "extended")
    refused(t, f"file:{image(t, name='plain.img')}?partition=1", "no partition table")


@test
def test_damaged_partition_tables_are_refused(t):
    disk = bytearray(8 * MIB)
    entry(disk, 0, 0, 0x83, 2048, 1 << 20)
    path = t.tmp / "disk.img"
    path.write_bytes(disk)
    refused(t, f"file:{path}?partition=1", "not inside it")
    entry(disk, 0, 0, 0xEE, 1, (8 * MIB >> 9) - 1)
    gpt = t.tmp / "gpt.img"
    gpt.write_bytes(disk)
    refused(t, f"file:{gpt}?partition=1", "GPT is damaged")
    refused(t, f"file:{t.tmp}/none.img?partition=1", "none.img")


@test
def test_what_is_malformed_is_said_before_anything_is_made(t):
    """Syntax is looked at first, of every export: no file is made for the first when the second is nonsense."""
    made = t.tmp / "made.img"
    for second, word in (("b=file:?size=1M", "path is missing"), ("b=mem:1M?rates=1", "rates"), ("b=disk.img", "disk.img"),
                         ("b=tape:1M", "tape"), ("a=mem:1M", "two exports"), ("b=mem:1", "size"), ("b=file:x?direct=maybe", "direct")):
        got, _, err = run_cli(["--export", f"a=file:{made}?size=1M", "--export", second, "--listen", f"netblk://127.0.0.1:{free_port()}"])
        check_eq((got, err.count("\n"), word in err), (2, 1, True), f"{second}: status, lines, {word!r} in {err!r}")
        check(not made.exists(), f"{second}: a file was made")


# ---- overlays

@test
def test_overlay_is_kept(t):
    """Killed and started again, over and over: what was answered is there, and the image is as it was."""
    path, cow = image(t), t.tmp / "disk.cow"
    before = path.read_bytes()
    model = bytearray(before)
    rng = random.Random(suite.SEED)
    for _ in range(5):
        s = start_export(t, f"disk=file:{path}?overlay={cow}")
        with s.client() as c:
            for _ in range(20):
                at, n = rng.randrange(0, 16000), rng.randrange(1, 40)
                data = rng.randbytes(512 * n)
                c.write(at, data)
                model[at * 512:at * 512 + len(data)] = data
            check_eq(c.read(0, 8 * MIB), bytes(model), "the disk")
        s.kill()
    s = start_export(t, f"disk=file:{path}?overlay={cow}&offset=1M&size=1M")
    with s.client() as c:
        check_eq(c.read(0, MIB), bytes(model[MIB:2 * MIB]), "a part of it")
    s.stop()
    check_eq(path.read_bytes(), before, "the image")


@test
def test_overlay_that_is_discarded(t):
    path = image(t)
    before = path.read_bytes()
    for _ in range(2):
        s = start_export(t, f"disk=file:{path}?overlay=temp")
        with s.client() as c:
            check_eq(c.read(0, MIB), before[:MIB], "the image")
            c.write(0, b"\x01" * MIB)
            check_eq(c.read(0, MIB), b"\x01" * MIB, "what was written")
        s.stop()
    check_eq((path.read_bytes(), [x.name for x in t.tmp.iterdir() if "cow" in x.name]), (before, []), "what is left")


@test
def test_overlay_over_another_image_is_refused(t):
    path, cow = image(t), t.tmp / "disk.cow"
    s = start_export(t, f"disk=file:{path}?overlay={cow}")
    s.stop()
    other = image(t, name="other.img")
    other.write_bytes(bytes(8 * MIB))
    refused(t, f"file:{other}?overlay={cow}", str(cow), "another image")
    refused(t, f"file:{path}?overlay={other}", str(other), "no overlay")
    check_eq(other.read_bytes(), bytes(8 * MIB), "the file that is no overlay")
    refused(t, f"file:{path}?overlay={t.tmp}", str(t.tmp))
    refused(t, f"file:{path}?overlay=/dev/null", "/dev/null", "regular file")
    refused(t, f"file:{t.tmp}/none.img?overlay={t.tmp}/new.cow", "none.img")
    refused(t, f"file:{path}?overlay={t.tmp}/none/new.cow", "new.cow")
    check(not (t.tmp / "new.cow").exists(), "an overlay was made")
    longer = t.tmp / "longer.img"
    longer.write_bytes(path.read_bytes() + bytes(MIB))
    refused(t, f"file:{longer}?overlay={cow}", "bytes")
    for more in ("size=16M", "direct=1"):
        refused(t, f"file:{path}?overlay={cow}&{more}", "overlay", code=2)
    refused(t, "mem:1M?overlay=temp", "overlay", code=2)


# ---- limits

@test
def test_rate_limit(t):
    """Only the lower bound is the filter's: the machine may be slow."""
    s = start_export(t, "disk=mem:8M?rate=2M&burst=64K")
    with s.client() as c:
        began = time.monotonic()
        for i in range(32):
            c.write(i * 128, bytes(65536))
        took = time.monotonic() - began
    check(took >= 0.9, f"2 MiB at 2 MiB/s with a burst of 64 KiB took {took:.2f} s")


@test
def test_iops_limit_is_shared(t):
    s = start_export(t, "disk=mem:1M?iops=200&iops-burst=1")
    clients = [s.client() for _ in range(4)]
    began = time.monotonic()
    for c in clients:
        c.send(request(READ, 0, 512) * 60)
    for c in clients:
        for _ in range(60):
            c.read_reply(512)
    took = time.monotonic() - began
    check(took >= 1.1, f"4 × 60 requests at 200 a second took {took:.2f} s")


@test
def test_limit_lets_the_lost_go(t):
    """What waits for a connection that has gone is not in the way of others."""
    s = start_export(t, "disk=mem:8M?rate=64K&burst=512")
    c = s.client()
    c.send(request(READ, 0, 65536) * 40)  # 40 seconds' worth
    with s.client() as d:
        d.send(request(READ, 0, 512))
        c.reset()
        check_eq(d.read_reply(512), bytes(512), "the other client's")
    s.check_alive()


# ---- delays and faults

@test
def test_delay_of_one_command(t):
    s = start_export(t, "disk=mem:1M?delay-write-ms=300")
    with s.client() as c:
        began = time.monotonic()
        c.write(0, bytes(512))
        check(time.monotonic() - began >= 0.3, "the WRITE was not delayed")
    for bad in ("delay-write-ms=x", "delay-read-ms=-1", "delay-trim-ms=600001"):
        refused(t, f"mem:1M?{bad}", bad, code=2)


@test
def test_fault_count(t):
    s = start_export(t, "disk=mem:1M?fault=read&fault-count=3")
    with s.client() as c:
        statuses = []
        for _ in range(8):
            c.send(request(READ, 0, 512))
            statuses.append(c.status())
            if statuses[-1] == OK:
                c.recv(512)
        check_eq(statuses, [ERROR] * 3 + [OK] * 5, "statuses")
    refused(t, "mem:1M?fault-count=3", "fault=", code=2)
    refused(t, "mem:1M?fault=erase", "erase", code=2)


@test
def test_bad_limits_are_refused(t):
    for bad, word in (("rate=0", "rate=0"), ("rate=fast", "rate=fast"), ("iops=0", "iops=0"), ("burst=1M", "rate="),
                      ("iops-burst=1", "iops="), ("rates=1M", "rates")):
        refused(t, f"mem:1M?{bad}", word, code=2)


# ---- traces

def trace_lines(path):
    return [line.split(" ") for line in path.read_text().splitlines() if not line.startswith("#")]


@test
def test_trace_of_a_store(t):
    log = t.tmp / "disk.trace"
    s = start_export(t, f"disk=mem:1M?trace={log}&fault=read&fault-count=1")
    with s.client() as c:
        c.send(request(READ, 8, 512))
        check_eq(c.status(), ERROR, "the fault")
        c.write(16, bytes(4096))
    lines = trace_lines(log)
    check_eq([line[3:8] for line in lines[:2]], [["read", "4096", "512", "-", "EIO"], ["write", "8192", "4096", "fua", "ok"]],
             "command, offset, length, flags, status")
    for line in lines:
        check_eq(len(line), 9, f"words of {line}")
        check(abs(float(line[0]) - time.time()) < 3600, f"the time of {line}")
        check(int(line[8]) >= 0 and int(line[1]) == 1, f"latency and connection of {line}")


@test
def test_trace_of_all_exports(t):
    log = t.tmp / "all.trace"
    s = start_export(t, "first=mem:1M", "second=mem:1M", more=["--trace", log])
    with s.client() as c:
        c.read(0, 512)
        c.write(0, bytes(512))
    check_eq([line[2:4] for line in trace_lines(log)[:2]], [["first", "read"], ["first", "write"]], "disk and command")
    refused(t, "mem:1M?trace=/nowhere/at/all", "/nowhere/at/all")


@test
def test_trace_on_stdout(t):
    s = start_export(t, "disk=mem:1M", more=["--trace"])
    with s.client() as c:
        c.read(0, 512)
    suite.wait_until(lambda: " disk read 0 512 - ok " in s.log(), 10, "the line on stdout")


if __name__ == "__main__":
    sys.exit(suite.main("filters"))
