#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""kill -9 right after an OK loses nothing, and no OK is sent before its data is durable.

A killed process leaves its page cache, so the first half alone would not notice a missing
fdatasync; the second half reads the order of the server's system calls."""

import pathlib
import random
import re
import struct
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import WRITE, request
from serverproc import start
from suite import check, check_eq, run_threads, test

MIB = 1 << 20


def pattern(tag, n):
    return struct.pack(">Q", tag) * (n // 8)


def check_disk(path, expected, what):
    """`expected`: byte offset -> (length, last acknowledged tag, tags sent after it)."""
    disk = path.read_bytes()
    for at, (n, acked, later) in expected.items():
        got = disk[at:at + n]
        allowed = [pattern(acked, n)] + [pattern(x, n) for x in later]
        check(got in allowed, f"{what}: at byte {at}: tag {struct.unpack('>Q', got[:8])[0]}, "
                              f"acknowledged was {acked}, later ones sent: {later}")
    return disk


@test(timeout=600)
def test_kill9_right_after_ok(t):
    rng = random.Random(suite.SEED)
    path, port = t.tmp / "disk.img", serverproc.free_port()
    tag, model = 0, bytearray(4 * MIB)
    for r in range(suite.count(1000, 100)):
        s = start(t, 4, path, port=port)
        with s.client() as c:
            check_eq(c.read(0, len(model)), bytes(model), f"round {r}: the device after a restart")
            for _ in range(rng.randrange(1, 6)):
                n = rng.choice((512, 4096, 4096, 65536, MIB))
                at = rng.randrange(0, (len(model) - n) // 512 + 1) * 512
                tag += 1
                c.write(at // 512, pattern(tag, n))
                model[at:at + n] = pattern(tag, n)
            s.proc.kill()
        s.proc.wait()
        check_eq(path.read_bytes(), bytes(model), f"round {r}: the file after kill -9")


@test(timeout=600)
def test_kill9_under_concurrent_writers(t):
    rng = random.Random(suite.SEED)
    path, port = t.tmp / "disk.img", serverproc.free_port()
    writers, slots, n = 8, 16, 4096
    acked = {(w, k): 0 for w in range(writers) for k in range(slots)}
    tag = [0]
    lock = threading.Lock()
    for r in range(suite.count(500, 50)):
        s = start(t, 4, path, port=port)
        sent = {key: [] for key in acked}
        acks = [0]
        enough = threading.Event()
        goal = rng.randrange(1, 200)

        def work(w):
            try:
                with s.client() as c:
                    while True:
                        # A burst of four, then its replies: what has none when the server dies may be there or not.
                        burst = []
                        for k in random.sample(range(slots), 4):
                            with lock:
                                tag[0] += 1
                                mine = tag[0]
                            sent[w, k].append(mine)
                            burst.append((k, mine))
                        c.send(b"".join(request(WRITE, (w * slots + k) * n // 512, n) + pattern(x, n) for k, x in burst))
                        for k, x in burst:
                            c.write_reply()
                            acked[w, k] = x
                            sent[w, k].remove(x)
                            with lock:
                                acks[0] += 1
                                if acks[0] >= goal:
                                    enough.set()
            except (netblk1.Closed, OSError):
                pass
        threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in range(writers)]
        for th in threads:
            th.start()
        check(enough.wait(suite.bound(0)), f"round {r}: {acks[0]} of {goal} OKs within {suite.bound(0):g} s")
        s.proc.kill()
        s.proc.wait()
        for th in threads:
            th.join()
        expected = {(w * slots + k) * n: (n, acked[w, k], sent[w, k]) for w, k in acked}
        disk = check_disk(path, expected, f"round {r}")
        for w, k in acked:
            acked[w, k] = struct.unpack(">Q", disk[(w * slots + k) * n:][:8])[0]
    s = start(t, 4, path, port=port)
    with s.client() as c:
        check_eq(c.read(0, 4 * MIB), path.read_bytes(), "the device after the last restart")


@test
def test_kill9_large_writes(t):
    path, port = t.tmp / "disk.img", serverproc.free_port()
    data = [random.Random(i).randbytes(32 * MIB) for i in range(2)]
    for r in range(suite.count(40, 6)):
        s = start(t, 64, path, port=port)
        with s.client() as c:
            c.write(0, data[r % 2])
            c.send(request(WRITE, 32 * MIB // 512, 32 * MIB) + data[r % 2][:random.randrange(32 * MIB)])
            s.proc.kill()
        s.proc.wait()
        disk = path.read_bytes()
        check(disk[:32 * MIB] == data[r % 2], f"round {r}: an acknowledged WRITE of 32 MiB is not whole")
        check(not any(disk[32 * MIB:]), f"round {r}: a WRITE that did not arrive whole was applied")


# ---- the order of system calls

SYSCALLS = "pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,sync_file_range,sendto,sendmsg,sendmmsg"
LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>(.*)|(\w+)\((.*))$")
RESULT = re.compile(r"\) += (-?\d+)")


def calls(lines):
    """[(name, arguments, result, start, end)]: start and end are positions in the trace."""
    out, pending = [], {}
    for at, line in enumerate(lines):
        m = LINE.match(line)
        if not m:
            continue
        pid, resumed, tail, name, rest = m.groups()
        if name and rest.endswith("<unfinished ...>"):
            pending[pid] = (name, rest.removesuffix("<unfinished ...>"), at)
            continue
        if resumed:
            name, args, begun = pending.pop(pid)
            rest = args + tail
        else:
            begun = at
        r = RESULT.search(rest)
        if r:
            out.append((name, rest[:r.start()], int(r.group(1)), begun, at))
    return out


def trace_writers(t, writers, each, n=4096):
    """Run `writers` clients × `each` durable WRITEs; per client the byte offsets in order, and the calls."""
    tracer = serverproc.Strace(t, "-e", f"trace={SYSCALLS}")
    s = start(t, 64, wrap=tracer.wrap, io="epoll")
    offsets, ports = {}, {}

    def work(w):
        with s.client(timeout=120) as c:
            ports[w] = c.local_port
            offsets[w] = [(w * each + i) * n for i in range(each)]
            for at in offsets[w]:
                c.write(at // 512, pattern(at + 1, n))
    run_threads([lambda w=w: work(w) for w in range(writers)])
    s.stop(30)
    got = calls(tracer.lines(s.pid))
    on_file = [x for x in got if str(s.path) in x[1].split(",")[0]]
    check(on_file, "the trace shows no call on the file: its form has changed, or the store's file descriptor is not seen")
    return s, offsets, ports, got, on_file


def durable_points(on_file, n):
    """For each written offset: the position in the trace from which on it is durable."""
    written, synced = {}, {}
    syncs = sorted((c for c in on_file if c[0] in ("fdatasync", "fsync") and c[2] == 0), key=lambda c: c[3])
    for name, args, result, _, end in on_file:
        if name not in ("pwrite64", "pwritev", "pwritev2") or result <= 0:
            continue
        numbers = [x.strip() for x in args.split(",")]
        at = int(numbers[-2] if name == "pwritev2" else numbers[-1])
        for part in range(at, at + result, n):
            written[part] = end
            if name == "pwritev2" and "SYNC" in numbers[-1]:
                synced[part] = end
            else:
                # The first sync that *began* after the write had ended.
                synced[part] = min((c[4] for c in syncs if c[3] > end), default=None)
    return written, synced, syncs


def check_order(offsets, ports, got, on_file, server_port, n=4096):
    written, synced, syncs = durable_points(on_file, n)
    for w, ats in offsets.items():
        peer = re.compile(rf"TCP[^>]*:{server_port}->[^>]*:{ports[w]}\b")
        sends = [c for c in got if c[0] in ("sendto", "sendmsg", "write", "writev") and c[2] > 0
                 and peer.search(c[1].split(",")[0].replace("\\", ""))]
        starts = [c[3] for c in sends for _ in range(c[2])]
        check_eq(len(starts), len(ats), f"OK bytes that the trace shows on connection {w}")
        for at, sent in zip(ats, starts):
            check(at in written, f"no write at {at} is in the trace, but it was acknowledged")
            check(written[at] < sent, f"the OK of the WRITE at {at} was sent before the write ended")
            check(synced[at] is not None and synced[at] < sent,
                  f"the OK of the WRITE at {at} was sent (line {sent}) before a sync that began after the write "
                  f"(line {written[at]}) had ended (line {synced[at]})")
    return syncs


@test(timeout=120)
def test_durable_before_ok_one_client(t):
    s, offsets, ports, got, on_file = trace_writers(t, 1, 50)
    syncs = check_order(offsets, ports, got, on_file, s.port)
    check(len(syncs) >= 50, f"{len(syncs)} syncs for 50 WRITEs one after another")


@test(timeout=180)
def test_durable_before_ok_32_clients(t):
    s, offsets, ports, got, on_file = trace_writers(t, 32, 20)
    check_order(offsets, ports, got, on_file, s.port)


@test(timeout=180)
def test_group_commit(t):
    """32 concurrent writers share syncs; one alone cannot."""
    s, offsets, ports, got, on_file = trace_writers(t, 32, 20)
    syncs = [c for c in on_file if c[0] in ("fdatasync", "fsync") and c[2] == 0]
    writes = sum(len(x) for x in offsets.values())
    check(0 < len(syncs) < writes, f"{len(syncs)} syncs for {writes} WRITEs of 32 concurrent writers: none was shared")


@test(timeout=120)
def test_durable_before_ok_pipelined(t):
    """One client, WRITEs pipelined: still none is acknowledged before its sync."""
    n, many = 4096, 100
    tracer = serverproc.Strace(t, "-e", f"trace={SYSCALLS}")
    s = start(t, 64, wrap=tracer.wrap, io="epoll")
    with s.client() as c:
        port = c.local_port
        c.pipeline(b"".join(request(WRITE, i * n // 512, n) + pattern(i + 1, n) for i in range(many)))
        for _ in range(many):
            c.write_reply()
    s.stop(30)
    got = calls(tracer.lines(s.pid))
    on_file = [x for x in got if str(s.path) in x[1].split(",")[0]]
    check_order({0: [i * n for i in range(many)]}, {0: port}, got, on_file, s.port)


if __name__ == "__main__":
    sys.exit(suite.main("kill9"))
