#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""One process holds a store: a second is refused in words, after a wait of up to 10 s."""

import os
import pathlib
import signal
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import serverproc
import suite
from serverproc import free_port, options, run_cli, start, start_export
from suite import check, check_eq, test


@test
def test_second_server_is_refused(t):
    s = start(t, 1)
    began = time.monotonic()
    code, _, err = run_cli([free_port(), s.path, 1], seconds=30)
    check_eq(code, 1, f"status; {err!r}")
    check(str(s.path) in err, f"the file is named: {err!r}")
    check(any(w in err.lower() for w in ("use", "held", "lock", "another")), f"the reason is in words: {err!r}")
    check(time.monotonic() - began > 1, "refused at once: a restart that overlaps its predecessor would fail")
    with s.client() as c:
        c.write(0, b"\x01" * 512)


@test
def test_waiting_server_proceeds(t):
    """The first exits meanwhile: the second takes over, with its data."""
    a = start(t, 1)
    with a.client() as c:
        c.write(0, b"\x02" * 512)
    b = start(t, 1, a.path, ready=False)
    b.wait_log("wait")
    check(b.alive(), f"the second server gave up at once: {b.log()}")
    a.stop()
    b.wait_ready()
    with b.client() as c:
        check_eq(c.read(0, 512), b"\x02" * 512, "content")


@test
def test_waiting_server_takes_no_client(t):
    """Who can connect meets open stores: while a server waits for one, its port refuses."""
    a = start(t, 1)
    b = start(t, 1, a.path, ready=False)
    b.wait_log("wait")
    try:
        socket.create_connection(("127.0.0.1", b.port), suite.bound(0)).close()
    except ConnectionRefusedError:
        pass
    else:
        raise AssertionError("a client is let in before the store is open")
    a.stop()
    b.wait_ready()


@test
def test_waiting_server_can_be_stopped(t):
    """SIGTERM during the wait ends it at once."""
    a = start(t, 1)
    b = start(t, 1, a.path, ready=False)
    b.wait_log("wait")
    b.signal(signal.SIGTERM)
    b.wait()
    check("stopped while waiting" in b.log(), f"refused, and not stopped: {b.log()}")
    a.check_alive()


@test
def test_waiting_after_kill_9(t):
    a = start(t, 1)
    b = start(t, 1, a.path, ready=False)
    b.wait_log("wait")
    a.proc.kill()
    a.proc.wait()
    b.wait_ready()
    with b.client() as c:
        check_eq(c.read(0, 512), bytes(512), "content")


@test
def test_restart_at_once_after_kill_9(t):
    """Same port, same file, clients still connected: no lock and no port stays behind."""
    port = free_port()
    s = start(t, 1, port=port)
    for i in range(10):
        conns = [s.client() for _ in range(5)]
        for c in conns:
            c.write(i, bytes([i + 1]) * 512)
        s.proc.kill()
        s.proc.wait()
        s = start(t, 1, s.path, port=port)  # a lock that stays behind ends it after 10 s
        with s.client() as c:
            check_eq(c.read(i, 512), bytes([i + 1]) * 512, f"round {i}")
        for c in conns:
            c.close()


@test
def test_restart_at_once_after_sigterm(t):
    port = free_port()
    s = start(t, 1, port=port)
    for i in range(10):
        conns = [s.client() for _ in range(5)]
        for c in conns:
            c.read(0, 512)
        s.stop()
        s = start(t, 1, s.path, port=port)
        for c in conns:
            c.close()


@test
def test_same_file_under_two_names(t):
    """The store is the file, not its name."""
    s = start(t, 1)
    os.symlink(s.path, t.tmp / "link.img")
    os.link(s.path, t.tmp / "hard.img")
    b = start(t, 1, t.tmp / "link.img", ready=False)
    c = start(t, 1, t.tmp / "hard.img", ready=False)
    for other in (b, c):
        check_eq(other.wait(15), 1, "status of a server of the same file by another name")


@test
def test_two_exports_of_one_file(t):
    code, _, err = run_cli(["--export", f"a=file:{t.tmp}/x.img?size=1M", "--export", f"b=file:{t.tmp}/x.img?size=1M",
                            "--listen", f"netblk://127.0.0.1:{free_port()}"], seconds=30)
    check(code in (1, 2), f"two writable exports of one file: status {code}, {err!r}")
    check("x.img" in err and len(err.strip().splitlines()) == 1, f"one line that names the file: {err!r}")


@test
def test_lock_of_a_reader(t):
    """A read-only export of a file that a server writes is refused as well: it would serve
    what changes under it."""
    s = start(t, 1)
    code, _, err = run_cli(["--export", options(f"a=file:{s.path}", ro=None),
                            "--listen", f"netblk://127.0.0.1:{free_port()}"], seconds=30)
    check_eq(code, 1, f"status; {err!r}")
    # A line that tells of the wait may come before.
    check(str(s.path) in err.strip().splitlines()[-1], f"a last line that names the file: {err!r}")


@test
def test_two_files_two_servers(t):
    a = start(t, 1, t.tmp / "a.img")
    b = start_export(t, f"x=file:{t.tmp}/b.img?size=1M")
    for s in (a, b):
        with s.client() as c:
            c.write(0, b"\x01" * 512)


if __name__ == "__main__":
    sys.exit(suite.main("store-lock"))
