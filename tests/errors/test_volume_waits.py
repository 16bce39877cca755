#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Nothing of `netblk volume` is stuck, or keeps others out: stalled pipes and callers, silent holders, signals, forgotten prompts;
and what is left when it is killed."""

import fcntl
import json
import os
import pathlib
import pty
import select
import signal
import subprocess
import sys
import termios
import socket
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import serverproc
import suite
from command import MIB, refused, run
from suite import check, check_eq, test
from control_rig import GREETING, LOCK_WAIT, Stranger, answer, caller, question
from volume_rig import BLOCK, disk, make, serve, told


def filled(t, name="v", mib=2):
    """A volume with a snapshot of more than any pipe or socket takes; what it has."""
    path, content = make(t, "8M", name), os.urandom(mib * MIB)
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        for at in range(0, len(content), MIB):
            c.write(at, content[at:at + MIB])
    s.stop()
    run(t, "volume", "snapshot", f"{path}@a")
    return path, content + bytes(8 * MIB - len(content))


def ended(p):
    try:
        return p.communicate(timeout=suite.bound(60))
    except subprocess.TimeoutExpired:
        raise AssertionError(f"it did not end: {p.args}") from None


def stopped(p, number=signal.SIGTERM):
    """Ends at once, as one who was asked to."""
    suite.wait_until(lambda: p.poll() is not None or serverproc.takes_sigterm(p.pid), 60, "that it takes signals")
    p.send_signal(number)
    _, err = ended(p)
    check_eq(p.returncode, 1, f"status; stderr {err!r}")
    check(b"stopped" in err and err.count(b"\n") == 1, err)


def bytes_in(pipe):
    left = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, left)
    return int.from_bytes(left, sys.byteorder)


class Stalled:
    """A command whose output nobody takes, once it has written some."""

    def __init__(self, t, *words):
        self.end, into = os.pipe()
        t.defer(lambda: os.close(self.end))
        self.p = command.start(t, *words, stdout=into)
        os.close(into)
        suite.wait_until(lambda: self.p.poll() is not None or bytes_in(self.end) > 0, 60, "that it writes")
        check_eq(self.p.poll(), None, "it is at work")


def command_status(t, *words):
    p = command.start(t, *words)
    ended(p)
    return p.returncode


def deleted(t, snapshot):
    """As soon as the server has noticed that nobody wants what it was sending."""
    suite.wait_until(lambda: command_status(t, "volume", "delete", snapshot) == 0, 60, f"that nothing holds {snapshot}")


def begun(p, *files):
    """Looks without a pause: what writes them is over in some milliseconds."""
    end = time.monotonic() + suite.bound(60)
    while p.poll() is None and not any(each.exists() for each in files):
        check(time.monotonic() < end, f"it makes none of {files}: {p.args}")


# ---- pipes that stand still

@test
def test_a_signal_ends_who_writes_to_a_stalled_pipe(t):
    path, _ = filled(t)
    for words in (("send", f"{path}@a"), ("export", f"{path}@a", "-")):
        for number in (signal.SIGTERM, signal.SIGINT):
            stopped(Stalled(t, "volume", *words).p, number)
    s = serve(t, f"d=vol:{path}")
    stopped(Stalled(t, "volume", "send", f"{path}@a").p)
    stopped(Stalled(t, "volume", "export", f"{path}@a", "-").p)
    deleted(t, f"{path}@a")
    s.stop()


@test
def test_a_fifo_without_its_other_end(t):
    path, content = filled(t)
    fifo = t.tmp / "fifo"
    os.mkfifo(fifo)
    for words in (("send", f"{path}@a", "--output", fifo), ("export", f"{path}@a", fifo), ("receive", t.tmp / "w", "--input", fifo),
                  ("receive", path, "--input", fifo)):
        p = command.start(t, "volume", *words)
        # It keeps nobody from the volume.
        run(t, "volume", "snapshot", f"{path}@meanwhile")
        run(t, "volume", "delete", f"{path}@meanwhile")
        stopped(p)
    check(not (t.tmp / "w").exists(), "nothing is made")
    p = command.start(t, "volume", "export", f"{path}@a", fifo)
    check(fifo.read_bytes() == content, "what comes out of it")
    check_eq((p.wait(suite.bound(60)), p.stderr.read()), (0, b""), "its end")


@test
def test_a_receive_that_gets_nothing(t):
    path, _ = filled(t)
    stream = run(t, "volume", "send", f"{path}@a")[0]
    for given in (b"", stream[:100], stream[:600], stream[:MIB]):
        p = command.start(t, "volume", "receive", t.tmp / f"w{len(given)}", stdin=subprocess.PIPE)
        p.stdin.write(given)
        p.stdin.flush()
        suite.wait_until(lambda: p.poll() is not None or not bytes_in(p.stdin), 60, "that it reads")
        suite.wait_until(lambda: p.poll() is not None or serverproc.takes_sigterm(p.pid), 60, "that it takes signals")
        p.send_signal(signal.SIGTERM)
        suite.wait_until(lambda: p.poll() is not None, 60, "its end, though its input is open")
        check_eq(p.returncode, 1, "status")
        check(b"stopped" in p.stderr.read(), "in words")
        p.stdin.close()


# ---- files

@test
def test_a_file_has_its_name_when_it_is_whole(t):
    path, content = filled(t, mib=6)
    out = t.tmp / "out"

    part = t.tmp / "out.part"

    def killed(words, whole):
        """Whether it was, before its end: then no short file has the name of a whole one."""
        p = command.start(t, "volume", *words)
        begun(p, part, out)
        p.kill()
        ended(p)
        if not part.exists():
            check(out.read_bytes() == whole, "what has the name is whole")
            out.unlink()
            return False
        check(not out.exists(), "what is left says that it is not whole")
        refused(t, "volume", *words, words=("out.part", "killed", "remove"))
        part.unlink()
        return True
    stream = run(t, "volume", "send", f"{path}@a")[0]
    for words, whole in ((("export", f"{path}@a", out), content), (("send", f"{path}@a", "--output", out), stream)):
        suite.wait_until(lambda: killed(words, whole), 60, "that it is killed while it writes")
    # Somebody's file that came meanwhile is not replaced.
    p = command.start(t, "volume", "export", f"{path}@a", out)
    begun(p, part, out)
    try:
        with open(out, "xb") as mine:
            mine.write(b"mine")
    except FileExistsError:
        check(out.read_bytes() == content, "whole, as soon as it is there")
        check_eq((ended(p), p.returncode), ((b"", b""), 0), "its end")
    else:
        _, err = ended(p)
        check(p.returncode == 1 and b"is there" in err, err)
        check_eq(out.read_bytes(), b"mine", "the file")
    check(not part.exists(), "nothing is left")
    (t.tmp / "link").symlink_to(t.tmp / "nowhere")
    refused(t, "volume", "export", f"{path}@a", t.tmp / "link", words="link")


# ---- who has the volume

@test
def test_a_server_is_not_kept_out(t):
    def begin(number):
        path, content = filled(t, f"v{number}")
        sending = Stalled(t, "volume", "send", f"{path}@a").p
        s = serve(t, f"d=vol:{path}")
        _, err = ended(sending)
        check(sending.returncode == 1 and b"server was started" in err and b"again" in err, err)
        s.stop()
        # So slow that it goes on beside the server, and for as long as it is let.
        scrub = command.start(t, "volume", "scrub", path, "--rate", "1")
        suite.wait_until(lambda: (path / "control").exists(), 60, "that it has the volume")
        run(t, "volume", "snapshot", f"{path}@beside")
        check_eq(told(t, "info", path)["process"], scrub.pid, "who answers for the volume")
        refused(t, "volume", "upgrade", path, words=("in use", f"process {scrub.pid} (netblk volume scrub)"))
        s = serve(t, f"d=vol:{path}")
        check_eq(told(t, "info", path)["process"], s.pid, "who answers now")
        check_eq(scrub.poll(), None, "the scrub goes on, by the server")
        stopped(scrub, signal.SIGINT)
        s.stop()
    numbers = iter(range(50))
    # A server waits for no longer than that.
    suite.in_time(LOCK_WAIT, lambda: begin(next(numbers)))


@test
def test_a_receive_that_gives_way_says_how_to_go_on(t):
    def begin(number):
        path, content = filled(t, f"v{number}")
        stream = run(t, "volume", "send", f"{path}@a")[0]
        copy = make(t, "8M", f"copy{number}")
        run(t, "volume", "snapshot", f"{copy}@empty")
        p = command.start(t, "volume", "receive", copy, stdin=subprocess.PIPE)
        p.stdin.write(stream[:MIB])
        p.stdin.flush()
        suite.wait_until(lambda: p.poll() is not None or command_status(t, "volume", "receive", "--status", copy) == 0, 60, "that it is under way")
        s = serve(t, f"d=vol:{copy}@empty")
        suite.wait_until(lambda: p.poll() is not None, 60, "its end, though its input is open")
        err = p.stderr.read()
        p.stdin.close()
        check(p.returncode == 1 and err.count(b"\n") == 1, err)
        mark = run(t, "volume", "receive", "--status", copy)[0].strip()
        check(b"a server was started" in err and b"--resume " + mark in err and b"as it was before" in err, f"{err!r}, and the token is {mark!r}")
        run(t, "volume", "receive", copy, input=run(t, "volume", "send", f"{path}@a", "--resume", mark.decode())[0])
        s.stop()
        check(run(t, "volume", "export", copy, "-")[0] == content, "what has come in two parts")
    numbers = iter(range(50))
    # A server waits for no longer than that.
    suite.in_time(LOCK_WAIT, lambda: begin(next(numbers)))


@test
def test_a_holder_that_says_nothing(t):
    heard = threading.Event()

    def greets(c, lines):
        c.sendall(GREETING)
        lines.readline()
        heard.set()
        c.recv(1)

    def begins(c, lines):
        c.sendall(GREETING)
        lines.readline()
        c.sendall(b'{"begun":true}\n')
        heard.set()
        c.recv(1)
    for talk in (greets, begins):
        path = make(t, name=talk.__name__)
        stranger = Stranger(t, path, talk)
        suite.in_time(0.5, lambda: refused(t, "volume", "snapshot", f"{path}@late", "--timeout", "0.5", words=("sign of life", "0.5 s", "list")))
        heard.clear()
        p = command.start(t, "volume", "snapshot", f"{path}@s")
        check(heard.wait(suite.bound(60)), "that it has asked")
        stopped(p)
        stranger.end()
        check_eq(told(t, "list", path), [], "nothing was done after all")
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    s.stand_still()
    refused(t, "volume", "info", path, "--timeout", "0.5", words=("does not answer", str(s.pid), "--timeout"))
    s.go_on()
    run(t, "volume", "info", path)
    s.stop()
    for bad in ("0", "-1", "soon"):
        refused(t, "volume", "info", path, f"--timeout={bad}", status=2)


@test
def test_callers_who_take_nothing(t):
    path, content = filled(t, mib=4)
    s = serve(t, f"d=vol:{path}")

    def stall(**more):
        asked = json.dumps({"netblk_volume": 1, "command": "send", "asked": {"name": "a"}, **more}).encode() + b"\n"
        callers = []
        for _ in range(16):
            # One that has not asked yet would give way to the next, while those of before are still on their way out.
            callers.append(caller(t, path))
            c, lines = callers[-1]
            c.sendall(asked)
            check(json.loads(lines.readline())["begun"], "begun")
        return callers
    there = stall()
    suite.in_time(0.5, lambda: refused(t, "volume", "info", path, "--timeout", "0.5", words=("busy", "16", str(s.pid))))
    for c, lines in there:
        lines.close()
        c.close()
    run(t, "volume", "info", path)
    # They lose their places, and what they keep others from, when nothing moves for as long as they said.
    there = stall(timeout_ms=200)
    s.wait_log("neither given nor taken anything for 0.2 s")
    deleted(t, f"{path}@a")
    check(there, "they are still there")
    s.check_alive()
    s.stop()


@test
def test_a_question_with_its_writing_half_shut(t):
    path, _ = filled(t)
    s = serve(t, f"d=vol:{path}")
    for name, asked in (("snapshot", {"name": "s"}), ("check", {}), ("scrub", {"bytes_per_second": 0}), ("info", {})):
        c, lines = caller(t, path)
        c.sendall(question(name, **asked))
        c.shutdown(1)
        check("answer" in (answer(lines) or {}), f"an answer to {name}")
    # Who has gone altogether is noticed.
    c, lines = caller(t, path)
    c.sendall(question("scrub", bytes_per_second=1))
    lines.readline()
    lines.close()
    c.close()
    s.wait_log("scrub: who asked has gone", seconds=60)
    s.stop()


@test
def test_a_running_receive_is_given_up(t):
    path, _ = filled(t)
    stream = run(t, "volume", "send", f"{path}@a")[0]
    for served in (False, True):
        copy = make(t, "8M", f"copy{served}")
        s = None
        if served:
            run(t, "volume", "snapshot", f"{copy}@empty")
            s = serve(t, f"d=vol:{copy}@empty")
        p = command.start(t, "volume", "receive", copy, stdin=subprocess.PIPE)
        p.stdin.write(stream[:MIB])
        p.stdin.flush()
        suite.wait_until(lambda: p.poll() is not None or command_status(t, "volume", "receive", "--status", copy) == 0, 60, "that it is under way")
        check_eq(p.poll(), None, "it waits for more")
        refused(t, "volume", "receive", copy, input=stream, words=("under way", "--abort"))
        run(t, "volume", "receive", "--abort", copy)
        suite.wait_until(lambda: p.poll() is not None, 60, "its end")
        err = p.stderr.read()
        check(p.returncode == 1 and b"given up" in err, err)
        p.stdin.close()
        refused(t, "volume", "receive", "--status", copy, words="unfinished")
        run(t, "volume", "receive", copy, input=stream)
        if s:
            s.stop()


# ---- keys

def secret(t, name="phrase", text="some words"):
    path = t.tmp / name
    path.write_text(text + "\n")
    return path


class Terminal:
    """`netblk` at a terminal of its own, which stays when it ends."""

    def __init__(self, t, *words):
        self.ours, self.its = pty.openpty()
        t.defer(lambda: (os.close(self.ours), os.close(self.its)))
        self.shown = b""

        def own():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.p = command.start(t, *words, stdin=self.its, stdout=self.its, stderr=self.its, preexec_fn=own)

    def wait_for(self, words):
        end = time.monotonic() + suite.bound(60)
        while words not in self.shown:
            check(time.monotonic() < end, f"{words!r} in what is shown: {self.shown!r}")
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 4096)

    def echoes(self):
        return bool(termios.tcgetattr(self.its)[3] & termios.ECHO)


@test
def test_the_terminal_is_as_it_was(t):
    phrase = secret(t)
    path = make(t, "16M", "v", "--encrypt", "--passphrase-file", phrase)
    for words in (("create", t.tmp / "w", "--size=1M", "--encrypt"), ("info", path), ("set", path, "compress=lz4"), ("key", "change", path)):
        terminal = Terminal(t, "volume", *words)
        terminal.wait_for(b"assphrase of")
        check(not terminal.echoes(), "nothing is shown of what is typed")
        os.write(terminal.ours, b"\x03")
        suite.wait_until(lambda: terminal.p.poll() is not None, 60, f"the end of {words}, of which nothing was typed")
        check(terminal.p.returncode in (1, -signal.SIGINT), f"{terminal.p.returncode} {terminal.shown!r}")
        check(terminal.echoes(), f"what is typed after {words} is shown")
    check(not (t.tmp / "w").exists(), "nothing was made")


@test
def test_a_forgotten_prompt_keeps_nobody_out(t):
    phrase = secret(t)
    path = make(t, "16M", "v", "--encrypt", "--passphrase-file", phrase)
    terminal = Terminal(t, "volume", "set", path, "compress=lz4")
    terminal.wait_for(b"assphrase of")
    run(t, "volume", "snapshot", f"{path}@s", "--passphrase-file", phrase)
    s = serve(t, f"d=vol:{path}?passphrase-file={phrase}")
    # Whoever has it now needs no passphrase.
    os.write(terminal.ours, b"anything\n")
    check_eq(terminal.p.wait(suite.bound(60)), 0, "status")
    check_eq(run(t, "volume", "get", path, "compress")[0], b"compress=lz4\n", "what it did")
    s.stop()


@test
def test_a_key_is_told_to_no_other_user(t):
    if os.geteuid() != 0:
        raise suite.Skip("needs root to be another user")
    key = t.tmp / "key"
    key.write_bytes(b"k" * 32)
    path = make(t, "16M", "v", "--encrypt", "--key-file", key)
    for each in (path, t.tmp):
        os.chmod(each, 0o777)
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            # The way there may be closed to others.
            os.chdir(path)
            os.setgid(65534)
            os.setuid(65534)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind("control")
            listener.listen(8)
            os.write(into, b".")
            while True:
                c = listener.accept()[0]
                try:
                    c.sendall(GREETING)
                    os.write(into, c.recv(4096) or b"-")
                except OSError:
                    os.write(into, b"-")
        finally:
            os._exit(2)
    theirs = [pid]

    def end():
        while theirs:
            os.kill(theirs[0], signal.SIGKILL)
            os.waitpid(theirs.pop(), 0)
    t.defer(end)
    os.close(into)
    t.defer(lambda: os.close(out))
    check_eq(os.read(out, 1), b".", "another user's listener")
    for words in (("key", "change", path, "--new-key-file", key), ("key", "remove", path, "--slot", "0")):
        refused(t, "volume", *words, "--key-file", key, words=("user 65534", str(pid), "no key"))
    end()
    check_eq(os.read(out, 4096).strip(b"-"), b"", "what came to it")
    check_eq(told(t, "info", path, "--key-file", key)["encrypted"], True, "and it is still the same volume")


@test
def test_a_passphrase_is_tried_beside_everything_else(t):
    phrase, other = secret(t), secret(t, "other", "other words")
    path = make(t, "16M", "v", "--encrypt", "--passphrase-file", phrase)
    s = serve(t, f"d=vol:{path}?passphrase-file={phrase}")
    known = {"kind": "passphrase", "hex": b"wrong".hex()}

    def attempt():
        slow, its = caller(t, path)
        slow.sendall(question("key remove", known=known, slot=0))
        check(json.loads(its.readline())["begun"], "begun")
        two = []
        for asked in (question("key remove", known=known, slot=0), question("info")):
            c, lines = caller(t, path)
            c.sendall(asked)
            two.append(answer(lines))
        # Whether the first one was still at it.
        beside = not [line for line in its_lines(slow, its) if b"error" in line]
        said = answer(its) if beside else None
        check(said is None or "opens none" in said["error"]["message"], f"{said}")
        check("answer" in two[1], f"{two[1]}")
        return beside and "being changed" in two[0]["error"]["message"]
    suite.wait_until(attempt, 60, "that a question is answered while a passphrase is tried, and a second one is refused")
    s.stop()


def its_lines(connection, lines):
    """That have come already."""
    come = []
    while select.select([connection], [], [], 0)[0]:
        line = lines.readline()
        come.append(line)
        if not line or b"error" in line:
            break
    return come


if __name__ == "__main__":
    sys.exit(suite.main("volume waits"))
