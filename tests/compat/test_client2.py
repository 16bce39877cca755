#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk`, and so the client library, against the independent netblk/2 server: a faultless one, one that drops its
connections all the time, and ones that break a rule which a client must notice."""

import json
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "errors"))
import command
import serverproc
import suite
from suite import ROOT, check, check_eq, test

MIB = 1 << 20
SERVER = [sys.executable, str(ROOT / "tests/compat/netblk2_server.py")]


class Independent:
    """netblk2_server.py with one export of `data`."""

    def __init__(self, t, data, **env):
        self.path, self.port = t.tmp / "disk.img", serverproc.free_port()
        self.path.write_bytes(data)
        suite_command, suite.server_command = suite.server_command, lambda: (SERVER, [])
        try:
            serverproc.Server(t, ["--export", f"disk=file:{self.path}", "--listen", f"netblk://127.0.0.1:{self.port}"],
                              [self.port], env=env)
        finally:
            suite.server_command = suite_command
        self.uri = f"netblk://127.0.0.1:{self.port}/disk"


@test
def test_questions(t):
    s = Independent(t, bytes(3 * MIB))
    out, _ = command.run(t, "info", "--json", s.uri)
    check_eq(json.loads(out)["size_bytes"], 3 * MIB, "size of netblk info")
    out, _ = command.run(t, "list", s.uri.rsplit("/", 1)[0])
    check(b"disk" in out, f"netblk list: {out!r}")


@test(timeout=120)
def test_copy_there_and_back(t):
    data = random.randbytes(MIB) + bytes(MIB) + b"text " * 50000
    data = data[:len(data) // 4096 * 4096]
    s = Independent(t, bytes(len(data)))
    (t.tmp / "source").write_bytes(data)
    command.run(t, "copy", t.tmp / "source", s.uri)
    check_eq(s.path.read_bytes(), data, "what the server has")
    command.run(t, "copy", s.uri, t.tmp / "back")
    check_eq((t.tmp / "back").read_bytes(), data, "what came back")


@test(timeout=180)
def test_copy_over_a_link_that_breaks(t):
    """The server resets each connection after a few requests, before, between and behind its answers."""
    data = random.randbytes(MIB)
    s = Independent(t, bytes(len(data)), NETBLK2_DROP="5")
    (t.tmp / "source").write_bytes(data)
    command.run(t, "copy", t.tmp / "source", s.uri, seconds=100)
    check_eq(s.path.read_bytes(), data, "what the server has")
    command.run(t, "copy", s.uri, t.tmp / "back", seconds=100)
    check_eq((t.tmp / "back").read_bytes(), data, "what came back")


@test(timeout=120)
def test_a_broken_welcome_is_refused(t):
    s = Independent(t, bytes(MIB), NETBLK2_BUG="welcome-crc")
    out, err = command.run(t, "info", s.uri, status=1)
    check(err.startswith("netblk: ") and out == b"", f"{out!r} {err!r}")


if __name__ == "__main__":
    sys.exit(suite.main("client2"))
