#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The operating system fails a call of the server: the client hears 0x01, nobody else notices,
and a failed sync is never made good by a second one."""

import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import ERROR, OK, READ, WRITE, request
from serverproc import start
from suite import Skip, check, check_eq, test

MIB = 1 << 20
PWRITE = "pwrite64,pwritev,pwritev2"
PREAD = "pread64,preadv,preadv2"


def write_status(c, sector, data):
    c.send(request(WRITE, sector, len(data)) + data)
    return c.status()


def injected(t, *rules, size_mb=4, path=None):
    """A server whose named system calls fail by strace's fault injection; the calls of the
    thread pool are visible only on the epoll back end."""
    args = []
    for rule in rules:
        args += ["-e", f"inject={rule}"]
    names = ",".join(sorted({n for r in rules for n in r.split(":")[0].split(",")}))
    return start(t, size_mb, path, wrap=serverproc.Strace(t, "-e", f"trace={names}", *args).wrap, io="epoll")


def first_failing(c, data, sector=0, tries=50):
    """WRITE until one is refused; how many were taken before."""
    for i in range(tries):
        if write_status(c, sector + i, data) == ERROR:
            return i
    raise AssertionError(f"none of {tries} WRITEs was refused: the injected failure did not arrive")


# strace counts `when=` for each thread of the server, so the thread that meets it is not known
# in advance: the tests write until it strikes.

@test
def test_failed_sync_poisons_the_export(t):
    s = injected(t, "fdatasync,fsync:error=EIO:when=10")
    with s.client() as c, s.client() as d:
        taken = first_failing(c, b"\x55" * 512, tries=500)
        for i in range(20):
            check_eq(write_status(c, i, b"\x66" * 512), ERROR, f"WRITE {i} after a failed sync, which took {taken} WRITEs")
            check_eq(write_status(d, i, b"\x66" * 512), ERROR, f"WRITE {i} of another connection")
        check_eq(d.read(0, 512)[:1] in (b"\x55", b"\x66"), True, "READs go on")
    with s.client() as e:
        check_eq(write_status(e, 0, bytes(512)), ERROR, "WRITE of a new connection")
    s.wait_log(lambda line: "sync" in line.lower() and ("error" in line.lower() or "fail" in line.lower()))
    s.check_alive()


@test
def test_failed_write(t):
    """A write that fails is refused; the export is not poisoned."""
    for err in ("EIO", "ENOSPC"):
        s = injected(t, f"{PWRITE}:error={err}:when=5", path=t.tmp / f"{err}.img")
        with s.client() as c:
            first_failing(c, b"\x55" * 512, tries=500)
            oks = sum(write_status(c, 1000 + i, b"\x44" * 512) == OK for i in range(20))
            check(oks >= 8, f"{oks} of 20 WRITEs are taken after one failed with {err}")
        s.check_alive()


@test
def test_failed_read(t):
    s = injected(t, f"{PREAD}:error=EIO:when=20")  # the first few are the dynamic linker's
    with s.client() as c:
        c.write(0, b"\x21" * 4096)
        seen = []
        for _ in range(600):
            c.send(request(READ, 0, 4096))
            st = c.status()
            seen.append(st)
            if st == OK:
                check_eq(c.recv(4096), b"\x21" * 4096, "READ")
        check(ERROR in seen, "no READ was refused: the injected failure did not arrive")
        check(seen.count(OK) > 300, f"{seen.count(OK)} of 600 READs served beside the failing ones")
    s.check_alive()


@test
def test_interrupted_calls(t):
    """EINTR is not an error."""
    s = injected(t, f"{PWRITE}:error=EINTR:when=3+7", f"{PREAD}:error=EINTR:when=20+7",
                 "recvfrom,recvmsg,readv,sendto,sendmsg,writev,accept4:error=EINTR:when=5+11")
    for r in range(5):
        with s.client() as c:
            for i in range(50):
                data = bytes([i + r + 1]) * 4096
                c.write(8 * i, data)
                check_eq(c.read(8 * i, 4096), data, f"round {r}, {i}")
    s.check_alive()


@test
def test_accept_errors(t):
    """accept may fail for reasons that are the client's, or pass: the listener stays."""
    for err in ("ECONNABORTED", "EMFILE", "ENFILE", "ENOMEM", "EPROTO"):
        s = injected(t, f"accept4,accept:error={err}:when=1+2", path=t.tmp / f"{err}.img")
        served = 0
        for _ in range(6):
            try:
                with s.client() as c:
                    c.read(0, 512)
                    served += 1
            except (netblk1.Closed, OSError):
                pass
        check(served >= 3, f"{served} of 6 clients served while every second accept fails with {err}")
        s.check_alive()


@test
def test_no_space(t):
    """A sparse file on a full file system: WRITEs are refused, in step, and those that fit are taken."""
    mnt = t.tmp / "small"
    mnt.mkdir()
    p = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", mnt], capture_output=True, text=True)
    if p.returncode != 0:
        raise Skip(f"cannot mount a tmpfs: {p.stderr.strip()}")
    t.defer(lambda: subprocess.run(["umount", "-l", mnt], check=False))
    s = start(t, 64, mnt / "disk.img")
    with s.client() as c:
        c.write(0, b"\x31" * MIB)
        refused = 0
        for i in range(2, 30):
            st = write_status(c, i * 2048, bytes([i]) * MIB)
            refused += st == ERROR
            if st == OK:
                check_eq(c.read(i * 2048, MIB), bytes([i]) * MIB, "a WRITE that was taken on a full file system")
        check(refused >= 26, f"{refused} of 28 WRITEs refused on a file system of 2 MiB")
        c.write(0, b"\x32" * 65536)
        check_eq(c.read(0, 65536), b"\x32" * 65536, "a WRITE over allocated blocks")
    s.check_alive()
    s.stop()


@test
def test_file_truncated_behind_its_back(t):
    """READs of what is gone: an error or whole data, never a short reply, a hang or a crash."""
    s = start(t, 4)
    with s.client() as c:
        c.write(0, b"\x41" * 4 * MIB)
        os.truncate(s.path, MIB + 512)
        for sector, n in ((0, MIB), (2048, 512), (2048, 1024), (2049, 512), (0, 4 * MIB), (8191, 512)):
            c.send(request(READ, sector, n))
            if c.status() == OK:
                got = c.recv(n)
                have = max(0, min(n, MIB + 512 - sector * 512))
                check_eq(got, b"\x41" * have + bytes(n - have), f"READ of {n} at {sector}")
        check_eq(c.read(0, 512), b"\x41" * 512, "in step afterwards")
    s.check_alive()


@test
def test_file_deleted_behind_its_back(t):
    s = start(t, 1)
    with s.client() as c:
        c.read(0, 512)  # it listens before it has opened the file
        os.unlink(s.path)
        c.write(0, b"\x41" * 512)
        check_eq(c.read(0, 512), b"\x41" * 512, "the open file")
    s.stop()


if __name__ == "__main__":
    sys.exit(suite.main("store-errors"))
