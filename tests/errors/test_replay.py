#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk replay`: what it asks of a disk, in which order, and what it refuses."""

import json
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import suite
from command import MIB, refused, run
from netblk1 import READ, request
from serverproc import Server, free_port, start_export
from suite import check, check_eq, test


def trace(t, *lines, name="a.trace"):
    path = t.tmp / name
    path.write_text("".join(line + "\n" for line in lines))
    return path


def line(at, command, offset=0, length=4096, flags="-", status="ok", latency=100, disk="disk", connection=1):
    return f"1700000000.{at:06} {connection} {disk} {command} {offset} {length} {flags} {status} {latency}"


def replay(t, *args, status=0):
    out, err = run(t, "replay", *args, "--json", status=status, seconds=60)
    return json.loads(out), err


def blank(t, size=MIB):
    path = t.tmp / "disk.img"
    path.write_bytes(bytes(size))
    return path


@test
def test_a_servers_trace_on_another(t):
    """What --trace wrote of one server, asked of another, is traced there as the same."""
    first, second = t.tmp / "first.trace", t.tmp / "second.trace"
    s = start_export(t, "disk=mem:4M", more=["--trace", first])
    rng = random.Random(suite.SEED)
    with s.client() as c:
        for _ in range(60):
            sector, sectors = rng.randrange(0, 8000), rng.randrange(1, 64)
            if rng.random() < 0.5:
                c.write(sector, rng.randbytes(512 * sectors))
            else:
                c.read(sector, 512 * sectors)
    s.stop()
    s = start_export(t, "other=mem:4M", more=["--trace", second])
    result, _ = replay(t, first, f"netblk://127.0.0.1:{s.port}/other", "--as-fast-as-possible", "--yes")
    check_eq((result["requests"], result["errors"], result["differ"]), (60, 0, 0), "requests, errors, differences")
    wanted = [x.split()[3:7] for x in first.read_text().splitlines()]
    # The client's own requests at its beginning are reads; the order is that of one connection with one in flight.
    got = [x.split()[3:7] for x in second.read_text().splitlines()]
    at = len(got) - len(wanted)
    check(at >= 0 and got[at:] == wanted, f"other requests than in the trace: {got[:3]}..., wanted {wanted[:3]}...")


@test
def test_every_command_on_a_file(t):
    path = blank(t)
    log = trace(t, "# a remark", line(1, "write", 4096, 8192, "fua"), line(300, "read", 4096, 512),
                line(600, "flush", 0, 0), line(900, "trim", 8192, 4096), line(1200, "write-zeroes", 512, 512, "no-hole"),
                line(1500, "cache", 0, 4096), line(1800, "block-status", 0, 65536))
    result, _ = replay(t, log, path)
    for key in ("reads", "writes", "flushes", "trims", "write_zeroes", "caches", "block_statuses"):
        check_eq(result[key], 1, key)
    check_eq((result["read_bytes"], result["write_bytes"], result["errors"]), (512, 8192, 0), "bytes, errors")
    check(0 < result["p50_us"] <= result["p99_us"] <= result["max_us"], f"latencies: {result}")
    data = path.read_bytes()
    check(data[4096:8192].count(0) < 100, "the WRITE has no data on the disk")
    check_eq(data[8192:12288], bytes(4096), "what was trimmed")
    check_eq((data[:4096], len(data)), (bytes(4096), MIB), "the rest")


def both_kinds_of_nbd(t, *stores, log=None):
    """An NBD server on TCP and on a unix socket, and the URIs of its export `disk`."""
    port, sock = free_port(), t.tmp / "sock"
    exports = [word for store in stores for word in ("--export", store)]
    s = Server(t, [*exports, "--listen", f"nbd://127.0.0.1:{port}", "--listen", f"nbd+unix://{sock}", *(["--trace", log] if log else [])], [port])
    return s, (f"nbd://127.0.0.1:{port}/disk", f"nbd+unix:///disk?socket={sock}")


@test
def test_onto_nbd_servers(t):
    """Every command arrives as it is in the trace, over TCP and over a unix socket."""
    seen = t.tmp / "seen.trace"
    asked = [("write", 4096, 8192, "fua"), ("write", 65536, 1 << 20, "-"), ("read", 4096, 512, "-"), ("flush", 0, 0, "-"),
             ("trim", 8192, 4096, "-"), ("write-zeroes", 512, 512, "no-hole"), ("write-zeroes", 512, 512, "fast-zero"),
             ("cache", 0, 4096, "-"), ("block-status", 0, 65536, "-")]
    log = trace(t, *(line(1000 * i, command, at, n, flags) for i, (command, at, n, flags) in enumerate(asked)))
    path = blank(t, 4 * MIB)
    s, uris = both_kinds_of_nbd(t, f"disk=file:{path}", log=seen)
    for uri in uris:
        before = len(seen.read_text().splitlines()) if seen.exists() else 0
        result, _ = replay(t, log, uri, "--as-fast-as-possible", "--yes")
        check_eq((result["requests"], result["errors"], result["differ"]), (9, 0, 0), f"{uri}: requests, errors, differences")
        got = [tuple(x.split()[3:7]) for x in seen.read_text().splitlines()[before:]]
        # Some may overtake others in the server; the client asks nothing of its own but reads at its beginning.
        for wanted in asked:
            check(tuple(map(str, wanted)) in got, f"{uri}: {wanted} did not arrive: {got}")
        result, _ = replay(t, log, uri, "--as-fast-as-possible", "--yes", "--connections", "4")
        check_eq((result["requests"], result["errors"]), (9, 0), f"{uri}: requests, errors of four connections")
    s.check_alive()


@test
def test_what_an_nbd_server_cannot_take_is_refused(t):
    path = blank(t, MIB)
    s, uris = both_kinds_of_nbd(t, f"disk=file:{path}", "read=mem:1M,ro")
    larger = trace(t, line(1, "write"), line(2, "read", offset=MIB), name="larger.trace")
    for uri in uris:
        err = refused(t, "replay", larger, uri, "--yes")
        check(str(MIB + 4096) in err and str(MIB) in err, f"both sizes must be named: {err!r}")
        refused(t, "replay", trace(t, line(1, "write")), uri.replace("disk", "read", 1), "--yes")
        refused(t, "replay", trace(t, line(1, "read")), uri.replace("disk", "none", 1))
    check_eq(path.read_bytes(), bytes(MIB), "the disk")
    s.stop()
    for uri in uris:
        refused(t, "replay", trace(t, line(1, "read")), uri)
    refused(t, "replay", larger, "nbd://[::1", status=2)


@test
def test_torn_traces_are_refused_wherever_they_end(t):
    """A number that was cut is another number: only a line with its end counts."""
    path = blank(t)
    whole = line(1, "write") + "\n" + line(300, "read")
    log = t.tmp / "torn.trace"
    for cut in range(len(whole) - len(line(300, "read")) + 1, len(whole) + 1, 3):
        log.write_text(whole[:cut])
        err = refused(t, "replay", log, path)
        check("line 2" in err and str(log) in err, f"{whole[:cut]!r}: the line is not named: {err!r}")
    log.write_text(whole)
    check("torn" in refused(t, "replay", log, path), "it is not called torn")
    check_eq(path.read_bytes(), bytes(MIB), "the disk")
    log.write_text(whole + "\n# a remark without an end")
    replay(t, log, path)


@test
def test_the_same_data_at_each_replay(t):
    log = trace(t, line(1, "write", 0, 65536))
    contents = set()
    for _ in range(2):
        path = blank(t)
        replay(t, log, path)
        contents.add(path.read_bytes())
    check_eq(len(contents), 1, "different disks")


@test
def test_what_overlaps_keeps_its_order(t):
    """All were in flight together in the trace; the last writer of a byte wins."""
    lines = [line(i, "write", 4096 * (i % 7), 8192, latency=900000) for i in range(200)]
    log = trace(t, *lines)
    contents = set()
    for speed in (["--as-fast-as-possible"], ["--speed", "1"]):
        path = blank(t)
        result, _ = replay(t, log, path, *speed)
        check_eq((result["writes"], result["errors"]), (200, 0), "writes, errors")
        contents.add(path.read_bytes())
    last = trace(t, *lines[-7:], name="last.trace")
    path = blank(t)
    replay(t, last, path)
    contents.add(path.read_bytes())
    check_eq(len(contents), 1, "different disks")


@test
def test_speed(t):
    path = blank(t)
    log = trace(t, line(0, "read"), line(900000, "read"))
    result, _ = replay(t, log, path)
    check(result["seconds"] >= 0.89, f"0.9 s of trace in {result['seconds']} s")
    result, _ = replay(t, log, path, "--speed", "3")
    check(result["seconds"] >= 0.29, f"0.3 s of trace in {result['seconds']} s")
    check_eq(result["trace_seconds"], 0.9, "of the trace")


@test
def test_a_trace_that_only_reads_needs_no_yes(t):
    path = t.tmp / "disk.img"
    path.write_bytes(b"\x55" * MIB)
    log = trace(t, line(1, "read"), line(300, "flush", 0, 0))
    replay(t, log, path)
    path.chmod(0o444)
    replay(t, log, path)
    check_eq(path.read_bytes(), b"\x55" * MIB, "the disk")


@test
def test_data_is_not_overwritten_unasked(t):
    path = t.tmp / "disk.img"
    path.write_bytes(b"\x55" * MIB)
    log = trace(t, line(1, "write"))
    check("--yes" in refused(t, "replay", log, path), "--yes is not named")
    check_eq(path.read_bytes(), b"\x55" * MIB, "the disk")
    replay(t, log, path, "--yes")
    check(path.read_bytes() != b"\x55" * MIB, "nothing was written with --yes")
    # A disk in use is not written to, with --yes or without.
    s = start_export(t, f"disk=file:{path}")
    refused(t, "replay", log, path, "--yes")
    s.stop()


@test
def test_errors_are_counted(t):
    s = start_export(t, "disk=mem:1M?fault=read&fault-count=3")
    log = trace(t, *(line(i * 300, "read", status="EIO" if i == 0 else "ok") for i in range(10)))
    result, err = replay(t, log, f"netblk://127.0.0.1:{s.port}/disk", "--as-fast-as-possible", status=1)
    check(1 <= result["errors"] <= 3, f"errors: {result}")
    check_eq(result["errors"] + result["requests"], 10, "all requests")
    check(str(result["errors"]) in err, f"the number is not in {err!r}")


@test
def test_several_disks(t):
    path = blank(t)
    log = trace(t, line(1, "read", disk="a"), line(2, "read", disk="b"), line(3, "read", disk="b"))
    check("--disk" in refused(t, "replay", log, path), "--disk is not named")
    result, _ = replay(t, log, path, "--disk", "b")
    check_eq(result["reads"], 2, "reads of b")
    refused(t, "replay", log, path, "--disk", "c")


@test
def test_bad_traces_are_refused_before_anything_is_asked(t):
    path = blank(t)
    good = line(1, "write")
    for bad in ("nonsense", line(1, "erase"), line(1, "read", length=0), line(1, "read", offset=2**64 - 1),
                line(1, "read", length=2**40), line(1, "write") + " more"):
        err = refused(t, "replay", trace(t, good, bad), path)
        check("line 2" in err, f"{bad}: the line is not named: {err!r}")
    refused(t, "replay", trace(t, good, line(2, "read", offset=MIB)), path)
    refused(t, "replay", trace(t, "# nothing"), path)
    refused(t, "replay", t.tmp / "none.trace", path)
    refused(t, "replay", trace(t, good), t.tmp / "none.img")
    refused(t, "replay", trace(t, good), t.tmp)
    check(not (t.tmp / "none.img").exists(), "a file was made")
    check_eq(path.read_bytes(), bytes(MIB), "the disk")


@test
def test_malformed_arguments(t):
    path, log = blank(t), trace(t, line(1, "read"))
    for words in (["--speed", "0"], ["--speed", "fast"], ["--speed", "2", "--as-fast-as-possible"], ["--connections", "2"]):
        refused(t, "replay", log, path, *words, status=2)


if __name__ == "__main__":
    sys.exit(suite.main("replay"))
