#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk attach --via fuse` against an old netblk/1 server written by others, and against hostile ones.

NETBLK names the client (default build/output/netblk).  Needs root, /dev/fuse and loop devices.
What is promised: a device never reads data that the server did not give for that request, every
wait ends, and the device can always be removed."""

import errno
import json
import mmap
import os
import pathlib
import random
import re
import shutil
import stat
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import ERROR, OK, READ, WRITE, recv_exact
from suite import Skip, check, check_eq, test

MIB = 1 << 20
SIZE = 64 * MIB
NETBLK = os.environ.get("NETBLK") or str(suite.ROOT / "build/output/netblk")
DEAD_TIME = 60  # seconds within which I/O on a dead server must have failed (15 s is promised)


def cli(*args, seconds=60, status=None):
    p = subprocess.run([NETBLK, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       timeout=seconds * suite.TIME_SCALE)
    if status is not None:
        check_eq(p.returncode, status, f"status of netblk {' '.join(map(str, args))}; stderr {p.stderr!r}")
    return p


def needs():
    if not os.access(NETBLK, os.X_OK):
        raise Skip(f"no client at {NETBLK}")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise Skip("needs root, /dev/fuse and /dev/loop-control")


def bounded(fn, seconds, what):
    """fn() in a thread: a hang of it fails the test instead of hanging it."""
    out = []

    def run():
        try:
            out.append((True, fn()))
        except BaseException as e:
            out.append((False, e))
    th = threading.Thread(target=run, daemon=True)
    th.start()
    th.join(seconds * suite.TIME_SCALE)
    check(out, f"{what}: still waiting after {seconds * suite.TIME_SCALE:g} s")
    if out[0][0]:
        return out[0][1]
    raise out[0][1]


class Disk:
    """The attached device, by direct I/O: what is read comes from the server, not from a cache."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    def read(self, at, n):
        with mmap.mmap(-1, n) as buf:
            got = os.preadv(self.fd, [buf], at)
            check_eq(got, n, f"bytes that a read of {n} at {at} returned")
            return buf[:n]

    def write(self, at, data):
        with mmap.mmap(-1, len(data)) as buf:
            buf[:] = data
            check_eq(os.pwritev(self.fd, [buf], at), len(data), f"bytes that a write at {at} took")

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Attached:
    def __init__(self, t, server, *more, size="64M"):
        needs()
        p = cli("attach", f"netblk://127.0.0.1:{server.port}", "--size", size, "--via", "fuse", *more, status=0)
        self.stdout = p.stdout
        self.dev = p.stdout.strip()
        self.server = server
        self.is_there = True
        # The node may be another's by now.
        t.defer(lambda: self.is_there and cli("detach", self.dev))
        check(p.stdout == self.dev + "\n" and self.dev.startswith("/dev/"),
              f"the device's path alone on stdout: {p.stdout!r}")
        check(stat.S_ISBLK(os.stat(self.dev).st_mode), f"{self.dev} is a block device")

    def disk(self, t):
        d = Disk(self.dev)
        t.defer(d.close)
        return d

    def detach(self):
        bounded(lambda: cli("detach", self.dev, status=0), 30, "detach")
        self.is_there = False

    def expect_gone(self):
        """Other suites run beside this one: the node may be one of their disks, or be about to be one."""
        self.is_there = False

        def is_gone():
            rows = json.loads(cli("status", "--json", status=0).stdout)
            check(all(row["server"] != f"netblk://127.0.0.1:{self.server.port}" for row in rows), f"status has it still: {rows}")
            left = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
            return self.dev + ":" not in left or any(row["device"] == self.dev for row in rows)
        suite.wait_until(is_gone, 60, f"that {self.dev} is not left behind")


class Rogue(netblk1.Server):
    """An old server that answers well until `mode` is set."""

    mode = None
    hits = 0

    def handle(self, sock, cmd, sector, length):
        mode = self.mode
        if mode is None:
            return super().handle(sock, cmd, sector, length)
        self.hits += 1
        if cmd == WRITE:
            recv_exact(sock, length)
        junk = b"\xde\xad" * (length // 2)
        if mode == "bad-status":
            sock.sendall(b"\x02" + (junk if cmd == READ else b""))
            return True
        if mode == "short-data":
            sock.sendall(bytes([OK]) + (junk[:-1] if cmd == READ else b""))
            return False
        if mode == "half-data-then-silence":
            sock.sendall(bytes([OK]) + junk[:length // 2] if cmd == READ else b"")
            self.wait_for_end(sock)
            return False
        if mode == "excess-data":
            answer = self.answer_read(sector, length) if cmd == READ else bytes([OK])
            sock.sendall(answer + junk)
            return True
        if mode == "close-mid-reply":
            sock.sendall(bytes([OK]) if cmd == READ else b"")
            return False
        if mode == "close":
            return False
        if mode == "error":
            sock.sendall(bytes([ERROR]))
            return True
        if mode == "error-with-data":
            sock.sendall(bytes([ERROR]) + junk)
            return True
        if mode == "silence":
            self.wait_for_end(sock)
            return False
        if mode == "trickle":
            answer = bytes([OK]) + (junk if cmd == READ else b"")
            for b in answer[:-1]:
                sock.sendall(bytes([b]))
                time.sleep(0.5)
            return False
        raise AssertionError(mode)

    def wait_for_end(self, sock):
        while sock.recv(65536):
            pass


def rogue(t, content_seed=1):
    path = t.tmp / "disk.img"
    path.write_bytes(random.Random(content_seed).randbytes(SIZE))
    s = Rogue(path, SIZE)
    s.path = path
    t.defer(s.stop)
    return s


# ---- a well-behaved old server

@test
def test_attach_read_write_detach(t):
    s = rogue(t)
    a = Attached(t, s)
    p = subprocess.run(["blockdev", "--getsize64", a.dev], capture_output=True, text=True, check=True)
    check_eq(int(p.stdout), SIZE, "size of the device")
    d = a.disk(t)
    data = s.path.read_bytes()
    for at, n in ((0, 4096), (SIZE - 4096, 4096), (MIB, MIB), (512 * 9, 512), (8 * MIB, 16 * MIB)):
        check_eq(d.read(at, n), data[at:at + n], f"read of {n} at {at}")
    for at, n in ((0, 4096), (SIZE - 4096, 4096), (MIB, MIB), (512 * 9, 512), (8 * MIB, 16 * MIB)):
        new = random.Random(at).randbytes(n)
        d.write(at, new)
        check_eq(d.read(at, n), new, f"read of what was written, {n} at {at}")
        with open(s.path, "rb") as f:
            f.seek(at)
            check_eq(f.read(n), new, f"the server's file, {n} at {at}")
    d.close()
    a.detach()
    a.expect_gone()
    suite.wait_until(lambda: not s.connections, 5, "the connection ends with the device")


@test
def test_attach_output_in_a_substitution(t):
    """$(netblk attach …) returns: the helper does not keep stdout open."""
    needs()
    s = rogue(t)
    p = subprocess.run(["bash", "-c", f'd=$("{NETBLK}" attach netblk://127.0.0.1:{s.port} --size 64M --via fuse) && echo "<$d>"'
                        f' && "{NETBLK}" detach "$d"'], capture_output=True, text=True, timeout=30 * suite.TIME_SCALE)
    check(p.returncode == 0 and p.stdout.startswith("</dev/"), f"status {p.returncode}, {p.stdout!r}, {p.stderr!r}")


@test(timeout=120)
def test_random_model(t):
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    rng = random.Random(suite.SEED)
    model = bytearray(s.path.read_bytes())
    for i in range(suite.count(3000, 400)):
        n = min(int(rng.paretovariate(0.7)), 2048) * 512
        at = rng.randrange(0, (SIZE - n) // 512 + 1) * 512
        if rng.random() < 0.5:
            data = rng.randbytes(n)
            d.write(at, data)
            model[at:at + n] = data
        else:
            check_eq(d.read(at, n), bytes(model[at:at + n]), f"step {i}: read of {n} at {at}")
    d.close()
    a.detach()
    check_eq(s.path.read_bytes(), bytes(model), "the server's file")


@test(timeout=120)
def test_file_system(t):
    if not shutil.which("mkfs.ext4"):
        raise Skip("mkfs.ext4 is not installed")
    s = rogue(t)
    a = Attached(t, s)
    mnt = t.tmp / "mnt"
    mnt.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", a.dev], check=True, capture_output=True)
    subprocess.run(["mount", a.dev, mnt], check=True)
    t.defer(lambda: subprocess.run(["umount", "-l", mnt], capture_output=True))
    files = {f"f{i}": random.Random(i).randbytes(random.Random(i).randrange(1, MIB)) for i in range(20)}
    for name, data in files.items():
        (mnt / name).write_bytes(data)
    subprocess.run(["umount", mnt], check=True)
    a.detach()
    fsck = subprocess.run(["fsck.ext4", "-n", "-f", s.path], capture_output=True, text=True)
    check_eq(fsck.returncode, 0, f"fsck of the server's file: {fsck.stdout[-200:]}")
    a = Attached(t, s)
    subprocess.run(["mount", a.dev, mnt], check=True)
    for name, data in files.items():
        check_eq((mnt / name).read_bytes(), data, name)
    subprocess.run(["umount", mnt], check=True)
    a.detach()


@test
def test_status(t):
    s = rogue(t)
    a = Attached(t, s)
    text = cli("status", "--json", status=0).stdout
    check(a.dev in text, f"status --json lists {a.dev}: {text!r}")
    entry = next(x for x in walk(json.loads(text)) if a.dev in x.values())
    check_eq(entry.get("size_bytes"), SIZE, f"size_bytes in {entry}")
    check(a.dev in cli("status", status=0).stdout, "status lists the device")
    a.detach()
    a.expect_gone()


def walk(x):
    """Every object in a JSON value."""
    if isinstance(x, dict):
        yield x
        x = list(x.values())
    if isinstance(x, list):
        for y in x:
            yield from walk(y)


@test
def test_detach_twice(t):
    s = rogue(t)
    a = Attached(t, s)
    a.detach()
    p = cli("detach", a.dev, status=0)
    check(p.stdout == "" and p.stderr.strip() != "", f"detach of what is not attached: a note on stderr; {p!r}")


@test
def test_detach_while_open(t):
    """A device in use is not pulled away silently: refused, and it goes on."""
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    data = s.path.read_bytes()
    p = cli("detach", a.dev)
    if p.returncode != 0:
        check_eq(p.returncode, 1, "status")
        check_eq(len(p.stderr.strip().splitlines()), 1, f"lines on stderr: {p.stderr!r}")
        check_eq(d.read(MIB, 4096), data[MIB:MIB + 4096], "read after a refused detach")
        d.close()
        a.detach()


@test
def test_two_devices(t):
    s1 = rogue(t, 1)
    path = t.tmp / "two.img"
    path.write_bytes(random.Random(2).randbytes(SIZE))
    s2 = Rogue(path, SIZE)
    t.defer(s2.stop)
    a, b = Attached(t, s1), Attached(t, s2)
    check(a.dev != b.dev, "two devices")
    d, e = a.disk(t), b.disk(t)
    check_eq(d.read(0, MIB), s1.path.read_bytes()[:MIB], "the first")
    check_eq(e.read(0, MIB), path.read_bytes()[:MIB], "the second")
    d.close()
    a.detach()
    check_eq(e.read(MIB, MIB), path.read_bytes()[MIB:2 * MIB], "the second, after the first has gone")
    e.close()
    b.detach()


# ---- bad arguments, no server

@test
def test_attach_errors(t):
    needs()
    port = serverproc.free_port()
    for args, status in ((["attach"], 2), (["attach", "nonsense", "--size", "1M", "--via", "fuse"], 2),
                         (["attach", f"netblk://127.0.0.1:{port}x", "--size", "1M", "--via", "fuse"], 2),
                         (["attach", f"netblk://127.0.0.1:{port}", "--size", "abc", "--via", "fuse"], 2),
                         (["attach", f"netblk://127.0.0.1:{port}", "--size", "1000", "--via", "fuse"], 2),
                         (["attach", f"netblk://127.0.0.1:{port}", "--size", "1M", "--via", "magic"], 2),
                         (["attach", f"netblk://127.0.0.1:{port}", "--via", "fuse"], None),
                         (["attach", f"netblk://127.0.0.1:{port}", "--size", "1M", "--via", "fuse"], 1),
                         (["frobnicate"], 2)):
        p = cli(*args)
        check(p.returncode in ((status,) if status else (1, 2)), f"{args}: status {p.returncode}, {p.stderr!r}")
        check(p.stdout == "" and p.stderr.strip() != "", f"{args}: words on stderr only: {p!r}")
    check("size" in cli("attach", f"netblk://127.0.0.1:{port}", "--via", "fuse").stderr, "what is missing is named: --size")


@test
def test_attach_too_large(t):
    """netblk/1 carries no size; one beyond the export's end is noticed at attach."""
    s = rogue(t)
    needs()
    p = cli("attach", f"netblk://127.0.0.1:{s.port}", "--size", "1G", "--via", "fuse")
    if p.returncode == 0:
        cli("detach", p.stdout.strip())
    check_eq(p.returncode, 1, f"status of an attach with 1G of 64M: {p.stderr!r}")


@test
def test_attach_to_a_silent_server(t):
    s = rogue(t)
    s.mode = "silence"
    needs()
    p = bounded(lambda: cli("attach", f"netblk://127.0.0.1:{s.port}", "--size", "64M", "--via", "fuse"), DEAD_TIME, "attach")
    check_eq(p.returncode, 1, f"status: {p.stderr!r}")


# ---- a server that comes and goes

@test(timeout=120)
def test_connections_dropped_under_io(t):
    """Every connection is cut again and again: no error, no wrong byte."""
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    model = bytearray(s.path.read_bytes())
    stop = threading.Event()

    def cutter():
        while not stop.wait(0.4):
            s.drop_all()
    th = threading.Thread(target=cutter, daemon=True)
    th.start()
    rng = random.Random(suite.SEED)
    try:
        n = 0
        while s.accepted <= 10 or n < 50:
            at = rng.randrange(0, SIZE // 65536) * 65536
            if rng.random() < 0.5:
                data = rng.randbytes(65536)
                d.write(at, data)
                model[at:at + 65536] = data
            else:
                check_eq(d.read(at, 65536), bytes(model[at:at + 65536]), f"step {n}: read at {at}")
            n += 1
    finally:
        stop.set()
        th.join()
    d.close()
    a.detach()
    check_eq(s.path.read_bytes(), bytes(model), "the server's file")


@test(timeout=180)
def test_server_restarted(t):
    """The server goes away and comes back on its port within the dead time: I/O waits, then goes on."""
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    data = s.path.read_bytes()
    check_eq(d.read(0, 4096), data[:4096], "read before")
    port = s.port
    s.stop()
    result = []
    th = threading.Thread(target=lambda: result.append(d.read(MIB, 4096)), daemon=True)
    th.start()
    time.sleep(2)
    s2 = Rogue(s.path, SIZE, port)
    t.defer(s2.stop)
    th.join(30 * suite.TIME_SCALE)
    check_eq(result, [data[MIB:MIB + 4096]], "the read that waited for the server")
    d.write(2 * MIB, b"\x77" * 4096)
    check_eq(d.read(2 * MIB, 4096), b"\x77" * 4096, "read of what was written after the restart")
    d.close()
    a.detach()


@test(timeout=240)
def test_server_gone_for_good(t):
    """EIO within the dead time, again and again, and the device can be removed."""
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    s.stop()
    for fn in (lambda: d.read(MIB, 4096), lambda: d.write(2 * MIB, bytes(4096))):
        try:
            bounded(fn, DEAD_TIME, "I/O on a server that is gone")
        except OSError as e:
            check_eq(e.errno, errno.EIO, "errno")
        else:
            raise AssertionError("I/O on a server that is gone succeeded")
    d.close()
    # The write that failed is lost: detach may say so by status 1, but the device must be gone.
    p = bounded(lambda: cli("detach", a.dev), DEAD_TIME, "detach from a server that is gone")
    check(p.returncode in (0, 1), f"status of detach: {p!r}")
    a.expect_gone()


def hostile(t, mode):
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    data = s.path.read_bytes()
    check_eq(d.read(0, 4096), data[:4096], "read before")
    s.mode = mode
    for at, n in ((4 * MIB, 4096), (8 * MIB, MIB)):
        try:
            got = bounded(lambda at=at, n=n: d.read(at, n), DEAD_TIME, f"a read while the server does {mode}")
        except OSError as e:
            check_eq(e.errno, errno.EIO, "errno of the read")
        else:
            check_eq(got, data[at:at + n], f"a read that succeeded while the server does {mode}")
    wrote = True
    try:
        bounded(lambda: d.write(16 * MIB, b"\x99" * 4096), DEAD_TIME, f"a write while the server does {mode}")
    except OSError as e:
        check_eq(e.errno, errno.EIO, "errno of the write")
        wrote = False
    check(s.hits > 0, "the hostile server was never asked")
    if wrote and mode not in ("excess-data", "short-data"):
        # Those two do say OK to a WRITE; with any other mode there was none.
        raise AssertionError(f"a write succeeded while the server does {mode}")
    s.mode = None

    def recovered():
        try:
            return d.read(20 * MIB, 4096) == data[20 * MIB:20 * MIB + 4096]
        except OSError:
            return False
    # Assumption: once the server behaves, the device goes on by itself.
    suite.wait_until(recovered, 20, f"recovery after {mode}")
    d.close()
    a.detach()


def add(mode):
    def one(t):
        hostile(t, mode)
    one.__name__ = "test_hostile_" + mode.replace("-", "_")
    test(one, timeout=240)


for _mode in ("bad-status", "short-data", "half-data-then-silence", "excess-data", "close-mid-reply", "close", "error",
              "error-with-data", "silence", "trickle"):
    add(_mode)


@test(timeout=120)
def test_detach_during_silence(t):
    """A read that waits for a silent server does not hold the removal for ever."""
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    s.mode = "silence"
    th = threading.Thread(target=lambda: swallow(lambda: d.read(MIB, 4096)), daemon=True)
    th.start()
    time.sleep(0.5)
    p = bounded(lambda: cli("detach", a.dev), DEAD_TIME, "detach during I/O")
    th.join(DEAD_TIME * suite.TIME_SCALE)
    check(not th.is_alive(), "a read hangs after detach")
    d.close()
    if p.returncode != 0:
        a.detach()


def swallow(fn):
    try:
        fn()
    except OSError:
        pass


def helper_pids(port):
    """The client's processes, by their connection to the server's port."""
    p = subprocess.run(["ss", "-Htnp", f"dport = :{port}"], capture_output=True, text=True)
    return {int(x) for x in re.findall(r"pid=(\d+)", p.stdout)}


@test(timeout=120)
def test_helper_killed(t):
    """kill -9 of the client's own process: I/O fails at once, and detach cleans up."""
    s = rogue(t)
    a = Attached(t, s)
    d = a.disk(t)
    pids = helper_pids(s.port) - {os.getpid()}
    if not pids:
        raise Skip("the helper's process cannot be found (ss -p)")
    for pid in pids:
        os.kill(pid, 9)
    try:
        bounded(lambda: d.read(MIB, 4096), 30, "a read after the helper was killed")
    except OSError:
        pass
    else:
        raise AssertionError("a read succeeded after the helper was killed")
    d.close()
    a.detach()
    mounts = pathlib.Path("/proc/mounts").read_text()
    b = Attached(t, s)
    check_eq(len([x for x in mounts.splitlines() if "netblk" in x and "fuse" in x and str(s.port) in x]), 0,
             "mounts left behind by a killed helper")
    e = b.disk(t)
    check_eq(e.read(0, 4096), s.path.read_bytes()[:4096], "read through a new device")
    e.close()
    b.detach()


if __name__ == "__main__":
    sys.exit(suite.main("client-vs-old-server"))
