#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The socket `control` of an open volume: `netblk volume` beside a running server, and who else may come to it."""

import fcntl
import itertools
import json
import os
import pathlib
import signal
import socket
import stat
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import serverproc
import suite
from command import refused, run
from control_rig import GREETING, LOCK_WAIT, Stranger, answer, caller, question
from suite import check, check_eq, test
from volume_rig import BLOCK, disk, make, serve, told

# ---- beside a running server

@test
def test_commands_go_to_the_process_that_has_it_open(t):
    path = make(t)
    check(not (path / "control").exists(), "a volume that nobody has open has no socket")
    s = serve(t, f"d=vol:{path}")
    mode = os.stat(path / "control").st_mode
    check(stat.S_ISSOCK(mode) and mode & 0o777 == 0o600, oct(mode))
    check_eq(told(t, "info", path)["process"], s.pid, "who has it open")
    check(f"open in process {s.pid}" in run(t, "volume", "info", path)[0].decode(), "the words of it")
    with disk(s) as c:
        c.write(0, b"1" * BLOCK)
        out, _ = run(t, "volume", "snapshot", f"{path}@s")
        check(out.decode().startswith(f"{path}@s at lsn:"), out)
        c.write(0, b"2" * BLOCK)
    refused(t, "volume", "snapshot", f"{path}@s", words=(str(path), "s"))
    check_eq([each["name"] for each in told(t, "list", path)], ["s"], "its snapshots")
    check_eq(told(t, "check", path)["damage"], [], "a check meanwhile")
    s.wait_log("snapshot, asked by process")
    s.stop()
    check(not (path / "control").exists(), "the socket goes with the server")
    info = told(t, "info", path)
    check_eq((info["process"], info["snapshots"]), (None, 1), "after it")
    s = serve(t, f"old=vol:{path}@s")
    with disk(s) as c:
        check_eq(c.read(0, BLOCK), b"1" * BLOCK, "what was answered before is in the snapshot, and no more")
    refused(t, "volume", "delete", f"{path}@s", words=("in use", "s"))
    s.stop()
    run(t, "volume", "delete", f"{path}@s")


@test
def test_a_killed_server_leaves_a_socket_that_nobody_minds(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    s.kill()
    check((path / "control").exists(), "what a killed server leaves")
    run(t, "volume", "snapshot", f"{path}@a")
    s = serve(t, f"d=vol:{path}")
    s.kill()
    s = serve(t, f"d=vol:{path}")
    run(t, "volume", "snapshot", f"{path}@b")
    check_eq(len(told(t, "list", path)), 2, "snapshots")
    s.stop()


@test
def test_a_path_longer_than_an_address(t):
    folder = t.tmp
    for _ in range(4):
        folder /= "long" * 20
        folder.mkdir()
    path = make(t, name=folder / "v")
    s = serve(t, f"d=vol:{path}")
    run(t, "volume", "snapshot", f"{path}@s")
    check_eq(told(t, "info", path)["process"], s.pid, "who answers")
    s.stop()


@test
def test_what_is_in_the_sockets_place(t):
    for kind in ("file", "folder", "link"):
        path = make(t, name=kind)
        there = path / "control"
        if kind == "file":
            there.write_bytes(b"mine")
        elif kind == "folder":
            there.mkdir()
        else:
            there.symlink_to("/dev/null")
        run(t, "volume", "snapshot", f"{path}@s")
        s = serve(t, f"d=vol:{path}")
        s.wait_log("cannot reach this process")
        with disk(s) as c:
            c.write(0, b"x" * BLOCK)
        s.stop()
        check(os.path.lexists(there), f"the {kind} is left alone")


@test
def test_many_at_once(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    suite.run_threads([lambda i=i: run(t, "volume", "snapshot", f"{path}@s{i}") for i in range(8)])
    s.stop()
    # Each opens it itself, or asks one that has, for which it waits no longer than that.
    numbers, made = itertools.count(), []

    def snapshot():
        name = f"t{next(numbers)}"
        run(t, "volume", "snapshot", f"{path}@{name}")
        made.append(name)
    suite.run_threads([lambda: suite.in_time(LOCK_WAIT, snapshot)] * 4)
    there = [each["name"] for each in told(t, "list", path)]
    check_eq(len(made), 4, "snapshots that were made")
    check({*made, *(f"s{i}" for i in range(8))} <= {*there}, f"{made} in {there}")


@test
def test_a_holder_that_does_not_answer_is_waited_for(t):
    path = make(t)

    def stop():
        with open(path / "data", "rb") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            check_eq(told(t, "info", path)["snapshots"], 0, "beside one that reads")
            p = command.start(t, "volume", "snapshot", f"{path}@s")
            suite.wait_until(lambda: p.poll() is not None or serverproc.takes_sigterm(p.pid), 30, "that it waits")
            p.send_signal(signal.SIGINT)
            _, err = p.communicate(timeout=suite.bound(30))
            check_eq(p.returncode, 1, "status")
            check(b"stopped" in err, err)
    suite.in_time(LOCK_WAIT, stop)

    def let_go():
        with open(path / "data", "rb") as held:
            fcntl.flock(held, fcntl.LOCK_SH)
            p = command.start(t, "volume", "snapshot", f"{path}@s")
            suite.wait_until(lambda: p.poll() is not None or serverproc.takes_sigterm(p.pid), 30, "that it waits")
        _, err = p.communicate(timeout=suite.bound(30))
        check_eq((p.returncode, err), (0, b""), "once it has let go")
    suite.in_time(LOCK_WAIT, let_go)


# ---- who else may come

@test
def test_hostile_callers(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    for bad in (b"\n", b"\0\n", b"x" * 70000, b"5\n", b"[]\n", b"{}\n", b"[" * 60000 + b"\n", b'{"netblk_volume":1}\n',
                b'{"netblk_volume":2,"command":"info"}\n', b'{"netblk_volume":"1","command":"info"}\n',
                b'{"netblk_volume":1,"command":7}\n', question("mend"), question(""),
                b'{"netblk_volume":1,"command":"snapshot"}\n', b'{"netblk_volume":1,"command":"snapshot","asked":[1]}\n',
                question("snapshot"), question("snapshot", name=5), question("snapshot", name=None), question("snapshot", name="../x"),
                question("snapshot", name="n" * 65), question("delete", name={"a": 1}), question("delete", name="none")):
        c, lines = caller(t, path)
        try:
            c.sendall(bad)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused before it was all sent
        said = answer(lines)
        check(said and said["error"]["message"], f"{bad[:60]!r}: {said}")
        c.close()
    check_eq(told(t, "list", path), [], "nothing was done")
    # In the middle of a question, and before.
    for part in (b"", b'{"netblk_volume":1,'):
        c, _ = caller(t, path)
        c.sendall(part)
        c.close()
    # Who says nothing holds up nobody.
    silent = [caller(t, path) for _ in range(16)]
    for i in range(20):
        c, lines = caller(t, path)
        c.sendall(question("info"))
        check_eq(answer(lines)["answer"]["process"], s.pid, "an answer")
    run(t, "volume", "snapshot", f"{path}@s")
    # Who goes before the answer has asked all the same.
    c, lines = caller(t, path)
    c.sendall(question("snapshot", name="gone"))
    lines.readline()
    c.close()
    suite.wait_until(lambda: "gone" in [each["name"] for each in told(t, "list", path)], 30, "that what was begun is done")
    s.check_alive()
    s.stop()
    check(silent, "they were there")


@test
def test_other_users_are_refused(t):
    if os.geteuid() != 0:
        raise suite.Skip("needs root to be another user")
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    for each in (path / "control", path, t.tmp):
        os.chmod(each, 0o777)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os.chdir(path)
            c = socket.socket(socket.AF_UNIX)
            c.connect("control")
            os._exit(0 if c.recv(100) == b"" else 1)
        except ConnectionResetError:
            os._exit(0)
        finally:
            os._exit(2)
    check_eq(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0, "another user is told nothing")
    s.wait_log("user 65534 was refused")
    s.stop()


@test
def test_a_server_that_goes_away(t):
    """Until it says that it has begun, another one is asked, which here is `netblk` itself."""
    def no_greeting(c, lines):
        pass

    def before_the_question(c, lines):
        c.sendall(GREETING)

    def before_it_begins(c, lines):
        c.sendall(GREETING)
        lines.readline()

    for i, talk in enumerate((no_greeting, before_the_question, before_it_begins)):
        path = make(t, name=f"v{i}")
        stranger = Stranger(t, path, talk)
        run(t, "volume", "snapshot", f"{path}@s")
        check(stranger.calls > 0, "it was asked")
        check_eq([each["name"] for each in told(t, "list", path)], ["s"], f"after {talk.__name__}")

    def begins(c, lines):
        c.sendall(GREETING)
        lines.readline()
        c.sendall(b'{"begun":true}\n')
    path = make(t)
    stranger = Stranger(t, path, begins)
    refused(t, "volume", "snapshot", f"{path}@s", words=("went away", "list"))


@test
def test_a_server_that_talks_nonsense(t):
    def says(*lines):
        def talk(c, questions):
            c.sendall(lines[0])
            if len(lines) > 1:
                questions.readline()
                c.sendall(b"".join(lines[1:]))
                c.recv(1)
        return talk

    for i, (talk, words) in enumerate((
            (says(b'{"netblk_volume":2}\n'), "another version"),
            (says(b'{"hello":1}\n'), "another version"),
            (says(GREETING, b'{"begun":true}\n', b"?\n"), "nonsense"),
            (says(GREETING, b'{"begun":true}\n', b'{"bytes":5}\nhello'), "nonsense"),
            (says(GREETING, b'{"begun":true}\n', b'{"answer":[]}\n'), "nonsense"),
            (says(GREETING, b'{"begun":true}\n', b'{"answer":{"size_bytes":"x"}}\n'), "nonsense"),
            (says(GREETING, b'{"begun":true}\n', b'{"error":5}\n'), "no reason"),
            (says(GREETING, b'{"error":{"code":1,"message":"\\u001b[31m"}}\n'), "\\x1b"))):
        path = make(t, name=f"v{i}")
        Stranger(t, path, talk)
        refused(t, "volume", "info", path, words=words)


@test
def test_words_that_there_are(t):
    """Whoever has mistaken one is told which there are."""
    for words in ((), ("frob",), ("snapshto", "/x@y"), ("frob", "--json")):
        first = words[:1] or ("missing",)
        err = refused(t, "volume", *words, status=2, words=(*first, "there are create, info, list, snapshot", "rewind", "netblk volume --help"))
        check("command of volume" in err, err)
    for words in ((), ("frob",), ("frob", "/x")):
        first = words[:1] or ("missing",)
        refused(t, "volume", "key", *words, status=2, words=(*first, "command of volume key", "list", "add", "remove", "netblk volume key --help"))
    # What stands beside a word is no word.
    for words in (("frob", "info", "/x"), ("--frob", "info", "/x"), ("key", "frob", "list", "/x")):
        refused(t, "volume", *words, status=2, words=("frob", "not expected"))
    for words in (("info", "/x", "frob"), ("info", "/x", "--frob"), ("key", "list", "/x", "frob")):
        refused(t, "volume", *words, status=2, words="frob")
    for words in ((), ("rewind",), ("key",), ("key", "add")):
        out, err = run(t, "volume", *words, "--help")
        check_eq(err, "", f"stderr of {words}")
        check(b"Usage: netblk volume" in out, f"{out!r}")


if __name__ == "__main__":
    sys.exit(suite.main("volume control"))
