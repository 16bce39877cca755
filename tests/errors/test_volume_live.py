#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Volumes that are changed while a server has them: rewinds, and what becomes of the clients."""

import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd
import netblk2 as n2
import serverproc
import suite
from command import refused, run, start
from control_rig import answer, caller, question
from netblk2 import Session
from rig2 import CLIENT
from suite import Skip, check, check_eq, test
from volume_rig import BLOCK, disk, make, not_started, serve, told


OTHER = bytes(range(17, 33))


def write(server, data, name=""):
    with disk(server, name) as c:
        c.write(0, data)
        c.flush()


def read(server, name=""):
    with disk(server, name) as c:
        return c.read(0, BLOCK)


def nobody_is_connected(server):
    """Who has hung up counts until the server has seen it."""
    def all_closed():
        lines = server.lines()
        return sum(" opened: " in line for line in lines) == sum(" closed: " in line for line in lines)
    suite.wait_until(all_closed, 120, "the server to see that its clients have gone")


def needs():
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise Skip("needs root, /dev/fuse and /dev/loop-control")


def now(t, *words):
    """Whoever has hung up may still count as connected. What it says."""
    answer = []

    def done():
        process = start(t, "volume", *words)
        out, err = process.communicate(timeout=120)
        check(process.returncode == 0 or b"connection" in err, f"netblk volume {words}: {err!r}")
        answer[:] = [out]
        return process.returncode == 0
    suite.wait_until(done, 60, f"`netblk volume {' '.join(map(str, words))}` to succeed")
    return answer[0]


@test
def test_rewinds_of_a_served_volume(t):
    path = make(t, "16M", "v", "--history", "1h")
    s = serve(t, f"d=vol:{path}", f"half=vol:{path}?offset=0&size=8M", f"a=vol:{path}@-0s")
    write(s, b"1" * BLOCK, "d")
    run(t, "volume", "snapshot", f"{path}@a")
    write(s, b"2" * BLOCK, "d")
    generation = told(t, "info", path)["generation"]
    answer = json.loads(now(t, "rollback", f"{path}@a", "--json"))
    check_eq((answer["generation"], "not_served" in answer), (generation + 1, False), "what the rollback says")
    check_eq((read(s, "d"), read(s, "half")), (b"1" * BLOCK,) * 2, "after the rollback, by both exports")
    check_eq(read(s, "a"), bytes(BLOCK), "an export of a moment stays")
    now(t, "rewind", path, "--undo")
    check_eq(read(s, "d"), b"2" * BLOCK, "after the undo")
    now(t, "rewind", f"{path}@lsn:{answer['lsn']}")
    check_eq(read(s, "d"), b"1" * BLOCK, "as it was after the rollback")
    write(s, b"3" * BLOCK, "d")
    listed = [each["name"] for each in told(t, "list", path)]
    check_eq(len([name for name in listed if name.startswith("before-rewind-")]), 3, f"what it was before, in {listed}")
    for name in listed:
        run(t, "volume", "delete", f"{path}@{name}")
    check_eq(told(t, "list", path), [], "all are deleted")
    check_eq(read(s, "d"), b"3" * BLOCK, "the disk stays")
    check_eq(told(t, "check", path)["damage"], [], "check")
    s.stop()
    s = serve(t, f"d=vol:{path}")
    check_eq(read(s), b"3" * BLOCK, "after a restart")
    s.stop()
    check_eq(told(t, "info", path)["generation"], generation + 3, "three rewinds")


@test
def test_a_rewind_is_refused_while_clients_are_connected(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}", f"other=vol:{path}")
    write(s, b"1" * BLOCK)
    run(t, "volume", "snapshot", f"{path}@a")
    nobody_is_connected(s)
    with disk(s, "d") as one, disk(s, "d") as two, disk(s, "other") as third:
        two.write(0, b"2" * BLOCK)
        for words in (("rollback", f"{path}@a"), ("rewind", f"{path}@a")):
            refused(t, "volume", *words, words="in use: 2 connections to export 'd', 1 connection to export 'other'")
            refused(t, "volume", *words, words="--disconnect")
        for words in (("rewind", path, "--undo", "--disconnect"), ("rewind", f"{path}@-1h", "--disconnect"),
                      ("rollback", f"{path}@nope", "--disconnect"), ("rollback", f"{path}@a", "--of", "c", "--disconnect")):
            refused(t, "volume", *words)
        one.write(BLOCK, b"2" * BLOCK)
        third.flush()
        check_eq(two.read(0, 2 * BLOCK), b"2" * 2 * BLOCK, "nobody was disconnected for what cannot be")
        check_eq(told(t, "list", path)[-1]["name"], "a", "and nothing has changed")
        run(t, "volume", "rollback", f"{path}@a", "--disconnect")
        for client in (one, two, third):
            try:
                client.read(0, BLOCK)
                check(False, "a connection of before the rollback reads")
            except (nbd.Closed, OSError):
                pass
    s.wait_log("closed: its volume is rewound", 60)
    check_eq((read(s, "d"), read(s, "other")), (b"1" * BLOCK,) * 2, "after the rollback")
    s.stop()


@test
def test_who_has_said_nothing_keeps_nothing_open(t):
    """A netblk/1 client has a place from its first moment, and may be silent for as long as it likes."""
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    run(t, "volume", "snapshot", f"{path}@a")
    nobody_is_connected(s)
    held = []

    def is_seen():
        # One that came while a rollback had the export away has no place in it.
        silent = socket.create_connection(("127.0.0.1", s.port), timeout=120)
        _, err = start(t, "volume", "rollback", f"{path}@a").communicate(timeout=120)
        if b"1 connection to export 'd'" in err:
            held.append(silent)
            return True
        silent.close()
        nobody_is_connected(s)
        return False
    suite.wait_until(is_seen, 60, "the server to count it")
    run(t, "volume", "rollback", f"{path}@a", "--disconnect")
    with held[0] as silent:
        check_eq(silent.recv(1), b"", "what it is told")
    s.stop()


@test
def test_only_the_branch_that_is_rewound(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}", f"a=vol:{path}")
    write(s, b"1" * BLOCK)
    run(t, "volume", "clone", path, "c")
    run(t, "volume", "snapshot", f"{path}@ca", "--of", "c")
    s.stop()
    s = serve(t, f"d=vol:{path}", f"c=vol:{path}@c")
    write(s, b"2" * BLOCK, "c")
    with disk(s, "d") as head:
        now(t, "rollback", f"{path}@ca", "--of", "c")
        check_eq(head.read(0, BLOCK), b"1" * BLOCK, "the connection to another branch stays")
    check_eq(read(s, "c"), b"1" * BLOCK, "the clone")
    nobody_is_connected(s)
    with disk(s, "c"):
        refused(t, "volume", "rewind", path, "--undo", "--of", "c", words="'c' is in use: 1 connection to export 'c'")
    s.stop()


def at_once(t, path, *questions):
    """What each of these is answered, that are asked at the same moment."""
    callers = [caller(t, path) for _ in questions]
    for (c, _), asked in zip(callers, questions):
        c.sendall(asked)
    said = [answer(lines) for _, lines in callers]
    for c, lines in callers:
        lines.close()
        c.close()
    return said


@test
def test_rewinds_at_the_same_moment(t):
    """The second one finds the exports given away already, and must not have the branch when the first one gives them back."""
    path = make(t)
    s = serve(t, f"d=vol:{path}", f"too=vol:{path}")
    for name in ("a", "b"):
        write(s, name.encode() * BLOCK, "d")
        run(t, "volume", "snapshot", f"{path}@{name}")
    for number in range(24):
        if number % 2 == 0:
            nobody_is_connected(s)
        asked = [question("rollback", point=point, disconnect=number % 2 == 1) for point in "abab"]
        for said in at_once(t, path, *asked):
            check("answer" in said or "connection" in said["error"]["message"], f"{said}")
            check("not_served" not in said.get("answer", ()), f"{said}")
        check(read(s, "d") == read(s, "too") and read(s, "d") in (b"a" * BLOCK, b"b" * BLOCK), "both exports answer")
    nobody_is_connected(s)
    both = [start(t, "volume", "rewind", f"{path}@{point}") for point in "ab"]
    for each in both:
        _, err = each.communicate(timeout=120)
        check(each.returncode == 0 or b"connection" in err, err)
    check(read(s, "d") in (b"a" * BLOCK, b"b" * BLOCK), "it answers")
    s.stop()
    check_eq(told(t, "check", path)["damage"], [], "check")


@test
def test_what_comes_while_a_branch_is_given_away(t):
    """It would have the branch reserved when its exports are opened again. It waits, and finds the branch in use, as at any time."""
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    write(s, b"1" * BLOCK, "d")
    run(t, "volume", "snapshot", f"{path}@a")
    header = run(t, "volume", "send", f"{path}@a")[0][:512].hex()
    run(t, "volume", "clone", path, "c")
    run(t, "volume", "snapshot", f"{path}@ca", "--of", "c")
    s.stop()
    s = serve(t, f"d=vol:{path}", f"c=vol:{path}@c")
    rollback, of_clone = question("rollback", point="a", disconnect=True), question("rollback", point="ca", of="c", disconnect=True)
    in_use = [("receive", question("receive", header=header), rollback), ("delete", question("delete", name="c"), of_clone)]
    for _ in range(12):
        for word, asked, rewind in in_use:
            done, said = at_once(t, path, rewind, asked)
            check("answer" in done and "not_served" not in done["answer"], f"{done}")
            check("error" in said and ("in use" in said["error"]["message"] or "there already" in said["error"]["message"]), f"{word}: {said}")
        done, said = at_once(t, path, rollback, question("resize", size_bytes=16 << 20))
        check("answer" in done and "answer" in said, f"{done} {said}")
        for name in ("d", "c"):
            check_eq(read(s, name), b"1" * BLOCK, f"export {name} answers")
    s.stop()


@test
def test_nobody_is_disconnected_for_what_a_receive_forbids(t):
    path, copy = make(t), make(t, name="copy")
    s = serve(t, f"d=vol:{path}")
    write(s, b"1" * BLOCK)
    run(t, "volume", "snapshot", f"{path}@a")
    stream = run(t, "volume", "send", f"{path}@a")[0]
    s.stop()
    run(t, "volume", "snapshot", f"{copy}@empty")
    refused(t, "volume", "receive", copy, input=stream[:1024], words="--resume")
    s = serve(t, f"d=vol:{copy}")
    with disk(s) as c:
        refused(t, "volume", "rollback", f"{copy}@empty", "--disconnect", words=("unfinished", "--abort"))
        check_eq(c.read(0, BLOCK), bytes(BLOCK), "its connection stays")
    s.stop()


@test
def test_a_netblk2_client_that_comes_back_is_refused(t):
    """By another counter of the same uuid it would go on, with all that it has cached."""
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    write(s, b"1" * BLOCK)
    run(t, "volume", "snapshot", f"{path}@a")
    nobody_is_connected(s)
    me = Session(s.port, CLIENT, name="d")
    conn = me.open()
    check_eq(me.write(conn, 0, b"2" * BLOCK), n2.OK, "a write")
    refused(t, "volume", "rollback", f"{path}@a", words="1 connection to export 'd'")
    run(t, "volume", "rollback", f"{path}@a", "--disconnect")
    conn.close()

    def comes_back(server, words):
        me.port = server.port
        again, welcome = me.knock()
        again.close()
        check_eq((welcome.status, words in welcome.text()), (n2.ESTALE, True), f"the welcome, {welcome.text()!r}")
    comes_back(s, "other contents")
    other = Session(s.port, OTHER, name="d")
    with other.open() as mine:
        check_eq(other.read(mine, 0, BLOCK), b"1" * BLOCK, "the disk is another client's to attach")
        check(other.uuid != me.uuid, "the uuid")
        check_eq(other.generation, me.generation + 1, "the counter")
    comes_back(s, "other contents")
    s.stop()
    s = serve(t, f"d=vol:{path}")
    comes_back(s, "other contents")
    other.port = s.port
    with other.open() as mine:
        check_eq(other.read(mine, 0, BLOCK), b"1" * BLOCK, "after a restart it is the same")
    s.stop()
    # The same where nobody served it meanwhile.
    run(t, "volume", "rewind", path, "--undo")
    s = serve(t, f"d=vol:{path}")
    other.port = s.port
    again, welcome = other.knock()
    again.close()
    check_eq(welcome.status, n2.ESTALE, f"the welcome after the undo, {welcome.text()!r}")
    check_eq(read(s), b"2" * BLOCK, "what it was")
    s.stop()


@test
def test_each_branch_has_owners_of_its_own(t):
    path = make(t)
    run(t, "volume", "clone", path, "c")
    s = serve(t, f"d=vol:{path}", f"c=vol:{path}@c")
    one, two = Session(s.port, CLIENT, name="d"), Session(s.port, OTHER, name="c")
    with one.open() as of_head, two.open() as of_clone:
        check_eq((one.write(of_head, 0, b"1" * BLOCK), two.write(of_clone, 0, b"2" * BLOCK)), (n2.OK,) * 2, "writes")
        check(one.uuid != two.uuid, "a clone is another disk")
    for sig in (signal.SIGTERM, signal.SIGKILL):
        s.signal(sig)
        s.wait(60)
        s = serve(t, f"d=vol:{path}", f"c=vol:{path}@c")
        one.port = two.port = s.port
        with one.open() as of_head, two.open() as of_clone:
            check_eq((one.read(of_head, 0, BLOCK), two.read(of_clone, 0, BLOCK)), (b"1" * BLOCK, b"2" * BLOCK), "both come back")
            for name in ("d", "c"):
                third, welcome = Session(s.port, name=name).knock()
                third.close()
                check_eq(welcome.status, n2.EBUSY, f"another writer of {name}")
            check_eq(two.write(of_clone, BLOCK, b"2" * BLOCK), n2.OK, "a write")
    s.stop()


@test
def test_an_attached_client_does_not_replay_onto_other_contents(t):
    needs()
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    write(s, b"1" * BLOCK)
    run(t, "volume", "snapshot", f"{path}@a")
    uri = f"netblk://127.0.0.1:{s.port}/d"

    def rows():
        return [row for row in json.loads(run(t, "status", "--json")[0]) if row["server"] == uri and row["state"] != "gone"]

    def end():
        # The node may be another's by now.
        for row in rows():
            start(t, "detach", "--force", row["device"]).wait()
    t.defer(end)
    out, _ = run(t, "attach", "--via", "fuse", uri)
    device = out.decode().strip()
    with open(device, "r+b", buffering=0) as file:
        file.write(b"2" * BLOCK)
        os.fsync(file.fileno())
        run(t, "volume", "rollback", f"{path}@a", "--disconnect")

        def fails():
            try:
                os.pwrite(file.fileno(), b"3" * BLOCK, 0)
                os.fsync(file.fileno())
            except OSError as error:
                return error.errno == errno.EIO
            return False
        suite.wait_until(fails, 60, "writes to end with EIO")
    status = rows()[0]
    check("other contents" in status["last_error"], f"status says why: {status}")
    # It says that what was written to it did not get there.
    start(t, "detach", device).communicate(timeout=120)
    check_eq(rows(), [], "it is not attached any more")
    check_eq(read(s), b"1" * BLOCK, "nothing of it is on the other contents")
    out, _ = run(t, "attach", "--via", "fuse", uri)
    device = out.decode().strip()
    with open(device, "rb", buffering=0) as file:
        check_eq(file.read(BLOCK), b"1" * BLOCK, "attached anew")
    run(t, "detach", device)
    s.stop()


@test
def test_a_second_server_is_refused(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    write(s, b"1" * BLOCK)
    not_started(t, f"vol:{path}", ("in use", str(s.pid)))
    not_started(t, f"vol:{path}@-0s", "in use")
    check_eq(read(s), b"1" * BLOCK, "the first one goes on")
    s.stop()


@test
def test_a_lock_that_does_not_hold(t):
    """The first server stands still, and a second one has its volume: what the first does afterwards changes nothing."""
    if shutil.which("strace") is None:
        raise Skip("needs strace")
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    late = disk(s)
    late.write(0, b"1" * BLOCK)
    late.flush()
    s.stand_still()
    ports = [serverproc.free_port(), serverproc.free_port()]
    second = serverproc.Server(
        t, ["--export", f"d=vol:{path}", "--listen", f"netblk://127.0.0.1:{ports[0]}", "--listen", f"nbd://127.0.0.1:{ports[1]}"],
        ports, wrap=["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=flock", "-e", "inject=flock:retval=0"], ready=False)

    def traced():
        return [int(pid) for pid in pathlib.Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()]

    def end():
        # It would outlive strace.
        for pid in traced() if second.alive() else ():
            os.kill(pid, signal.SIGKILL)
        second.wait(120)
    t.defer(end)

    def up():
        second.check_alive()
        return set(ports) <= {port for _, _, port in serverproc.listening("self")}
    suite.wait_until(up, 60, "the second server to listen")
    with disk(second) as c:
        check_eq(c.read(0, BLOCK), b"1" * BLOCK, "what the first one made durable")
        c.write(0, b"2" * 64 * BLOCK)
        c.flush()
        time.sleep(0.1)  # longer than it writes without a look
        s.go_on()
        for command, data in ((nbd.CMD_WRITE, b"3" * BLOCK), (nbd.CMD_FLUSH, b""), (nbd.CMD_WRITE, b"3" * BLOCK)):
            error = late.error_of(command, 0, len(data), data=data)
            check_eq(error, nbd.EIO, f"command {command} of the first one's client")
        s.wait_log("another process has opened it for writing since", 60)
        check_eq(c.read(0, 64 * BLOCK), b"2" * 64 * BLOCK, "the second one's")
        s.stop()
        c.write(BLOCK, b"4" * BLOCK)
        c.flush()
    end()
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        check_eq(c.read(0, 64 * BLOCK), b"2" * BLOCK + b"4" * BLOCK + b"2" * 62 * BLOCK, "after a crash of the second one")
    s.stop()
    check_eq(told(t, "check", path)["damage"], [], "check")


if __name__ == "__main__":
    sys.exit(suite.main("volume-live"))
