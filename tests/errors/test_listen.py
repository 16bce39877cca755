#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Where the server listens and whom it lets in: forms of addresses, unix sockets, activation, --stdio, limits, floods."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd
import netblk1
import serverproc
import suite
from serverproc import free_port, run_cli
from suite import Skip, check, check_eq, test

EXPORT = ["--export", "disk=mem:1M"]


def refused(args, status, *words, **kw):
    code, out, err = run_cli([*EXPORT, *args], **kw)
    check(code == status and out == "" and len(err.strip().splitlines()) == 1, f"{args}: {code}, {out!r}, {err!r}")
    for word in words:
        check(word in err, f"{word!r} in the message of {args}: {err!r}")


def half_open(address, count):
    """Connections that take NBD's greeting and say nothing."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    out = []
    for _ in range(count):
        s = socket.socket(family)
        s.settimeout(30 * suite.TIME_SCALE)
        s.connect(address)
        out.append(s)
    return out


def ended(connections):
    count = 0
    for s in connections:
        s.setblocking(False)
        try:
            while True:
                if not s.recv(4096):
                    count += 1
                    break
        except BlockingIOError:
            pass
        except OSError:
            count += 1
    return count


def nbd_server(t, *more, ports=1, **kw):
    chosen = [free_port() for _ in range(ports)]
    listens = [x for p in chosen for x in ("--listen", f"nbd://127.0.0.1:{p}")]
    return serverproc.Server(t, [*EXPORT, *listens, *more], chosen, **kw)


# ---- addresses

@test
def test_bad_addresses(t):
    for uri in ("nbd:/127.0.0.1:1", "nbd://127.0.0.1:x", "nbd://127.0.0.1:70000", "nbd://::1:10810", "nbds://127.0.0.1:1",
                "nbd+unix://", "nbd+unix://host/path", "nbd+unix:///", "nbd+unix:///tmp/", "nbd+unix:///a%zz", "nbd+unix:///a%",
                "nbd+unix:///?socket=/tmp/x", "nbd+unix:///tmp/x?mode=", "nbd+unix:///tmp/x?mode=8", "nbd+unix:///tmp/x?mode=1777",
                "nbd+unix:///tmp/x?owner=me", "unix:///tmp/x"):
        refused(["--listen", uri], 2, uri)


@test
def test_every_address_and_ipv6(t):
    for host in ("", "*", "[::1]"):
        port = free_port()
        s = serverproc.Server(t, [*EXPORT, "--listen", f"nbd://{host}:{port}"], [port])
        address = ("::1", port) if host == "[::1]" else ("127.0.0.1", port)
        with nbd.Client(address) as c:
            c.go("disk")
        warned = [x for x in s.lines() if " warning: " in x]
        check(bool(warned) == (host != "[::1]"), f"a warning off loopback and none on it: {warned}")
        if warned:
            s.wait_log(f"nbd://127.0.0.1:{port}/disk")  # as it is reached from here
        s.stop()


@test
def test_banner_has_uris(t):
    """Names as a URI needs them, the first sixteen; the unnamed one has none."""
    path = t.tmp / "a b.sock"
    port = free_port()
    exports = [x for i in range(20) for x in ("--export", f"n {i}=null:1M")]
    s = serverproc.Server(t, [*exports, "--listen", f"nbd://127.0.0.1:{port}", "--listen", f"nbd+unix://{str(path).replace(' ', '%20')}"],
                          [port])
    s.wait_log(f"nbd://127.0.0.1:{port}/n%2015")
    s.wait_log(f"nbd+unix:///n%200?socket={str(path).replace(' ', '%20')}")
    s.wait_log("and 4 more exports")
    check(not any("n%2016" in x for x in s.lines()), "sixteen are enough")
    s.stop()


# ---- unix sockets

@test
def test_unix_mode_and_removal(t):
    path = t.tmp / "s"
    for query, mode in (("", 0o600), ("?mode=666", 0o666), ("?mode=0660", 0o660)):
        s = serverproc.Server(t, [*EXPORT, "--listen", f"nbd+unix://{path}{query}"])
        suite.wait_until(path.exists, 15, "the socket")
        s.wait_log("listening on")
        check_eq(os.stat(path).st_mode & 0o777, mode, "mode of the socket")
        with nbd.Client(str(path)) as c:
            c.go("disk")
        s.wait_log("uid=")
        s.stop()
        check(not path.exists(), "the socket is removed at the end")


@test
def test_unix_speaks_netblk_too(t):
    path = t.tmp / "s"
    serverproc.Server(t, [*EXPORT, "--listen", f"netblk+unix://{path}"])
    suite.wait_until(path.exists, 15, "the socket")
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30 * suite.TIME_SCALE)
        suite.wait_until(lambda: s.connect_ex(str(path)) == 0, 15, "a connection")
        s.sendall(netblk1.request(netblk1.READ, 0, 512))
        got = b""
        while len(got) < 513:
            got += s.recv(4096)
        check_eq(got, bytes(513), "a READ")


@test
def test_unix_socket_of_a_dead_server(t):
    """kill -9 leaves the file: the next server replaces it, at once."""
    path = t.tmp / "s"
    for _ in range(3):
        s = serverproc.Server(t, [*EXPORT, "--listen", f"nbd+unix://{path}"])
        s.wait_log("listening on")
        with nbd.Client(str(path)) as c:
            c.go("disk")
        s.kill()
        check(path.exists(), "a killed server leaves its file")


@test
def test_unix_socket_of_a_living_server(t):
    path = t.tmp / "s"
    s = serverproc.Server(t, [*EXPORT, "--listen", f"nbd+unix://{path}"])
    s.wait_log("listening on")
    refused(["--listen", f"nbd+unix://{path}"], 1, str(path), f"process {s.pid}")
    with nbd.Client(str(path)) as c:
        c.go("disk")
    (t.tmp / "file").write_text("kept")
    refused(["--listen", f"nbd+unix://{t.tmp}/file"], 1, "no socket")
    check_eq((t.tmp / "file").read_text(), "kept", "what is no socket stays")
    refused(["--listen", f"nbd+unix://{t.tmp}/none/s"], 1, "No such file")
    refused(["--listen", f"nbd+unix://{t.tmp}/{'x' * 120}"], 1, "limit")


# ---- socket activation

ACTIVATE = """
import os, sys
fds, env, command = eval(sys.argv[1]), eval(sys.argv[2]), sys.argv[3:]
held = [os.dup(fd) for fd in fds]
for i, fd in enumerate(held):
    os.dup2(fd, 200 + i)
for i in range(len(held)):
    os.dup2(200 + i, 3 + i, inheritable=True)
os.closerange(3 + len(held), 300)
os.environ.update({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(held)), **env})
os.execvp(command[0], command)
"""


def activated(t, fds, names, more=()):
    command, extra = suite.server_command()
    env = {"LISTEN_FDNAMES": ":".join(names)} if names is not None else {}
    log = t.tmp / "activated.log"
    with open(log, "wb") as out:
        p = subprocess.Popen([sys.executable, "-c", ACTIVATE, repr([f if isinstance(f, int) else f.fileno() for f in fds]), repr(env),
                              *command, *EXPORT, *more, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out,
                             pass_fds=[f if isinstance(f, int) else f.fileno() for f in fds])
    t.defer(lambda: (p.kill(), p.wait(), p.stdout.close()))
    return p, log


def listening_socket(t, family=socket.AF_INET):
    s = socket.socket(family)
    s.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(t.tmp / "given"))
    s.listen()
    t.defer(s.close)
    return s


@test
def test_names_choose_the_protocol(t):
    """netblk... is netblk; every other name, and none, is NBD. The sockets live on for the next start."""
    a, b, c, d = listening_socket(t), listening_socket(t), listening_socket(t), listening_socket(t, socket.AF_UNIX)
    for names in (["netblk-disks", "nbd", "unknown", ""], ["netblk"]):
        p, log = activated(t, [a, b, c, d], names)
        with netblk1.Client(a.getsockname()[1]) as x:
            check_eq(x.read(0, 512), bytes(512), "netblk by its name")
        for s in (b, c, d):
            with nbd.Client(s.getsockname()) as x:
                x.go("disk")
        check(not {q for _, _, q in serverproc.listening(p.pid)} & {10809, 10810}, "no default listeners")
        p.send_signal(signal.SIGTERM)
        check_eq(p.wait(15 * suite.TIME_SCALE), 0, f"status; {log.read_text()}")
        check_eq(p.stdout.read(), b"", "the output is left to who started it")
        check((t.tmp / "given").exists(), "the given socket's file stays")


@test
def test_wrong_descriptors_are_refused_by_name(t):
    good = listening_socket(t)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    idle = socket.socket()
    idle.bind(("127.0.0.1", 0))
    client = socket.create_connection(good.getsockname())
    file = open(t.tmp / "file", "wb")
    for x in (datagram, idle, client, file):
        t.defer(x.close)
    for wrong, word in ((datagram, "UDP"), (idle, "does not listen"), (client, "is a connection"), (file, "is no socket")):
        p, log = activated(t, [good, wrong], ["nbd", "odd"])
        check_eq(p.wait(20 * suite.TIME_SCALE), 1, f"status; {log.read_text()}")
        check("descriptor 4 ('odd')" in log.read_text() and word in log.read_text(), f"{word!r}: {log.read_text()!r}")
    command, extra = suite.server_command()
    for count in ("x", "-1", "100000", "1"):  # the last names descriptor 3, which is not open
        done = subprocess.run(["bash", "-c", 'export LISTEN_PID=$$; exec 3>&-; exec "$@"', "bash", *command, *EXPORT, *extra],
                              env={**os.environ, "LISTEN_FDS": count}, capture_output=True, text=True, check=False,
                              timeout=20 * suite.TIME_SCALE)
        check_eq(done.returncode, 1, f"status with LISTEN_FDS={count}; {done.stderr}")


@test
def test_systemd_socket_activate(t):
    if shutil.which("systemd-socket-activate") is None:
        raise Skip("systemd-socket-activate is not installed")
    command, extra = suite.server_command()
    for name, speaks in (("nbd", "nbd"), ("netblk", "netblk"), (None, "nbd")):
        port = free_port()
        p = subprocess.Popen(["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *([f"--fdname={name}"] if name else []),
                              *command, *EXPORT, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        t.defer(lambda p=p: (p.kill(), p.wait()))
        suite.wait_until(lambda port=port: port in {q for _, _, q in serverproc.listening()}, 15, "systemd-socket-activate")
        if speaks == "nbd":
            with nbd.Client(("127.0.0.1", port)) as x:
                x.go("disk")
        else:
            with netblk1.Client(port) as x:
                check_eq(x.read(0, 512), bytes(512), "netblk by its name")
        p.send_signal(signal.SIGTERM)
        check_eq(p.wait(15 * suite.TIME_SCALE), 0, "status")


# ---- --stdio

@test
def test_stdio_is_not_for_people(t):
    refused(["--stdio"], 1, "--stdio")  # /dev/null and pipes
    refused(["--stdio", "--listen", "nbd://127.0.0.1:1"], 2, "--listen")
    code, _, err = run_cli(["--stdio", free_port(), t.tmp / "x.img", 1])
    check(code == 2 and "--stdio" in err, f"the original form with --stdio: {code}, {err!r}")


@test
def test_stdio_is_drained(t):
    """SIGTERM while the client is there and takes nothing: status 0."""
    ours, theirs = socket.socketpair()
    command, extra = suite.server_command()
    with open(t.tmp / "log", "wb") as log:
        p = subprocess.Popen([*command, *EXPORT, "--stdio", *extra], stdin=theirs, stdout=theirs, stderr=log)
    t.defer(lambda: (p.kill(), p.wait()))
    theirs.close()
    fd = ours.detach()
    with nbd.Client(fds=(fd, fd)) as c:
        c.go("disk")
        p.send_signal(signal.SIGTERM)
        check_eq(p.wait(15 * suite.TIME_SCALE), 0, "status")
    check("stopped" in (t.tmp / "log").read_text(), "what is said goes to stderr")


# ---- limits

@test
def test_a_flood_keeps_nobody_out(t):
    """1,000 that say nothing, on a server whose limits they reach: a real client is served all the same, each costs at
    most 64 KiB, and the stop takes no longer for them."""
    for more in (["--max-connections", "100"], ["--max-connections-per-address", "100"], []):
        # A deadline that no client lives to see: whoever waits for that of others is not served.
        s = nbd_server(t, *more, "--handshake-timeout", "3600")
        address = ("127.0.0.1", s.port)
        before = s.rss_kib()
        flood = half_open(address, 1000)
        with nbd.Client(address) as c:
            c.go("disk")
            check_eq(c.read(0, 512), bytes(512), f"a client in a flood, with {more}")
            grown = s.rss_kib() - before
            check(grown < 1001 * 64, f"{grown} KiB for 1,000 handshakes")
            more_of_it = half_open(address, 200)
            check_eq(c.read(0, 512), bytes(512), f"who is open stays, with {more}")
            if more:
                suite.wait_until(lambda: ended(flood) >= 900, 15, "the oldest have gone")
        s.stop()
        for x in (*flood, *more_of_it):
            x.close()
        lines = len(s.lines())
        check(lines < 1000, f"{lines} lines of the log for 1,200 connections that came to nothing")


@test
def test_who_is_open_is_not_sent_away(t):
    for option in ("--max-connections", "--max-connections-per-address"):
        s = nbd_server(t, option, "2")
        clients = [nbd.Client(("127.0.0.1", s.port)) for _ in range(2)]
        for c in clients:
            c.go("disk")
        try:
            nbd.Client(("127.0.0.1", s.port))
        except (nbd.Closed, OSError):
            pass
        else:
            raise AssertionError(f"a third client with {option} 2")
        s.wait_log("refused: ")
        for c in clients:
            check_eq(c.read(0, 512), bytes(512), "those who were there")
        clients[0].close()

        def let_in():
            try:
                nbd.Client(("127.0.0.1", s.port)).go("disk")
            except (nbd.Closed, OSError):
                return False
            return True
        suite.wait_until(let_in, 15, "a place that came free is given")
        s.stop()


@test
def test_handshake_deadline(t):
    """One deadline for all of it: bytes that trickle in do not move it."""
    s = nbd_server(t, "--handshake-timeout", "1")
    silent, slow = half_open(("127.0.0.1", s.port), 2)
    end = time.monotonic() + suite.bound(0)
    byte = iter(b"\x00\x00\x00\x03" + b"IHAVEOPT" * 1000)
    while ended([slow]) == 0:
        check(time.monotonic() < end, "a client that sends a byte now and then is let go on")
        try:
            slow.send(bytes([next(byte)]))
        except OSError:
            break
        time.sleep(0.1)
    suite.wait_until(lambda: ended([silent]) == 1, 15, "the silent one has gone")
    s.wait_log("the handshake was not over in time")

    def admitted():
        c = nbd.Client(("127.0.0.1", s.port))
        try:
            c.go("disk")
            return c
        except BaseException:
            c.close()
            raise
    with suite.in_time(1, admitted) as c:
        time.sleep(1.5)
        check_eq(c.read(0, 512), bytes(512), "the deadline is the handshake's alone")
    s.stop()


@test
def test_stop_with_idle_and_half_open_clients(t):
    s = nbd_server(t)
    idle = [nbd.Client(("127.0.0.1", s.port)) for _ in range(100)]
    for c in idle:
        c.go("disk")
    flood = half_open(("127.0.0.1", s.port), 100)
    s.stop()
    for x in flood:
        x.close()


@test
def test_settings_of_the_file(t):
    """The file's limits, their reload, and the command line's before them."""
    path, port = t.tmp / "netblk.toml", free_port()

    def write(settings):
        path.write_text(f'listen = "nbd://127.0.0.1:{port}"\n{settings}\n[export.disk]\nstore = "mem:1M"\n')
    for bad, word in (("max-connections = 0", "max-connections"), ("max-connections = \"x\"", "max-connections"),
                      ("max-connections-per-address = 99999", "max-connections-per-address"),
                      ("handshake-timeout = 0", "handshake-timeout"), ("handshake-timeout = nan", "handshake-timeout"),
                      ("send-timeout = -1", "send-timeout"), ("request-timeout = 1e9", "request-timeout"),
                      ("busy-poll = -1", "busy-poll"), ("busy-poll = 10001", "busy-poll"), ("busy-poll = 0.5", "busy-poll"),
                      ("busy-poll = true", "busy-poll")):
        write(bad)
        code, _, err = run_cli(["--config", path])
        check(code == 1 and f"{path}:2" in err and word in err, f"{bad}: {code}, {err!r}")
    write("max-connections = 1\nhandshake-timeout = 100.5\nrequest-timeout = 20\nsend-timeout = 20\nmax-connections-per-address = 9")
    s = serverproc.Server(t, ["--config", path], [port])
    first = nbd.Client(("127.0.0.1", port))
    first.go("disk")
    try:
        nbd.Client(("127.0.0.1", port))
        raise AssertionError("a second client with max-connections = 1")
    except (nbd.Closed, OSError):
        pass
    write("max-connections = 2")
    s.signal(signal.SIGHUP)
    s.wait_log("serves 1 export")
    with nbd.Client(("127.0.0.1", port)) as second:
        second.go("disk")
    s.stop()
    s = serverproc.Server(t, ["--config", path, "--max-connections", "1"], [port])
    first = nbd.Client(("127.0.0.1", port))
    first.go("disk")
    s.signal(signal.SIGHUP)
    s.wait_log("serves 1 export")
    try:
        nbd.Client(("127.0.0.1", port))
        raise AssertionError("the command line goes before the file")
    except (nbd.Closed, OSError):
        pass
    s.stop()


@test
def test_busy_poll(t):
    """--busy-poll: what it takes, that it serves, and that a server without traffic sleeps though connections are open."""
    for bad in ("-1", "10001", "x", "1e3", "0x10", "50us"):
        code, _, err = run_cli(["--export", "disk=mem:1M", f"--busy-poll={bad}"])
        check(code == 2 and "--busy-poll" in err and "10000" in err, f"--busy-poll={bad}: {code}, {err!r}")
    path = t.tmp / "netblk.toml"

    def used(pid):
        """Seconds of processor that all its threads had."""
        return time.clock_gettime((~pid << 3) | 2)

    def sleeps(pid):
        before = used(pid)
        time.sleep(0.5)
        return used(pid) - before < 0.1
    for how in (["--busy-poll"], ["--busy-poll", "10000"], ["--busy-poll=0"], ["--config", path]):
        port = free_port()
        path.write_text(f'listen = "nbd://127.0.0.1:{port}"\nbusy-poll = 10000\n[export.disk]\nstore = "mem:1M"\n')
        if how[0] != "--config":
            how = ["--export", "disk=mem:1M", "--listen", f"nbd://127.0.0.1:{port}", *how]
        s = serverproc.Server(t, how, [port])
        clients = [nbd.Client(("127.0.0.1", port)) for _ in range(3)]
        for c in clients:
            c.go("disk")
            for i in range(200):
                c.write(i * 4096, bytes([i]) * 4096)
                check_eq(c.read(i * 4096, 4096), bytes([i]) * 4096, f"{how}: block {i}")
        suite.wait_until(lambda pid=s.pid: sleeps(pid), 30, f"{how}: a server without traffic sleeps")
        if how[0] == "--config":
            path.write_text(path.read_text().replace("10000", "0"))
            s.signal(signal.SIGHUP)
            s.wait_log("serves 1 export", 30)
        for c in clients:
            check_eq(c.read(4096, 512), b"\x01" * 512, f"{how}: after it slept")
            c.close()
        s.stop()


@test
def test_descriptors_run_out(t):
    """With few descriptors the limit is lower, and half-open connections give theirs."""
    s = nbd_server(t, wrap=["prlimit", "--nofile=256:256"])
    flood = half_open(("127.0.0.1", s.port), 400)
    with nbd.Client(("127.0.0.1", s.port)) as c:
        c.go("disk")
        check_eq(c.read(0, 512), bytes(512), "a client when descriptors are few")
    s.stop()
    for x in flood:
        x.close()


@test
def test_descriptions(t):
    for bad in ("description=%zz", "description=" + "x" * 4097, "description=a%00b"):
        code, _, err = run_cli(["--export", f"disk=mem:1M,{bad}"])
        check(code == 2 and "description" in err, f"{bad[:20]}: {code}, {err[:200]!r}")


if __name__ == "__main__":
    sys.exit(suite.main("listen"))
