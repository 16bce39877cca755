#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Where an NBD client may find our server: TCP over IPv4 and IPv6, unix sockets, sockets that another opened (LISTEN_FDS),
standard input and output, the default ports; and how many clients may come."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import nbd
import nbd_target
import netblk1
import serverproc
import suite
from nbd_target import MIB, start
from suite import Skip, check, check_eq, test

DATA = bytes(range(256)) * 16


def use(c):
    """Writes, flushes and reads with a client whose handshake is to come."""
    c.structured()
    c.go("")
    c.write(4096, DATA)
    c.flush()
    check_eq(c.read(4096, 4096), DATA, "what was written")
    c.disconnect()


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as s:
            s.bind(("::1", 0))
            return True
    except OSError:
        return False


@test
def test_tcp_ipv4(t):
    use(start(t).connect())


@test
def test_tcp_ipv6(t):
    if not has_ipv6():
        raise Skip("no IPv6 here")
    s = start(t, host="::1")
    use(s.connect())
    with socket.socket() as k:
        check(k.connect_ex(("127.0.0.1", s.address[1])) != 0, "a listener at ::1 does not listen at 127.0.0.1")


@test
def test_several_listeners(t):
    """NBD at two ports, a unix socket, and netblk beside them: one export, one content."""
    ports = [serverproc.free_port() for _ in range(3)]
    path = t.tmp / "n.sock"
    s = serverproc.Server(t, ["--export", "disk=mem:16M", "--listen", f"nbd://127.0.0.1:{ports[0]}", "--listen",
                              f"nbd://127.0.0.1:{ports[1]}", "--listen", f"nbd+unix://{path}", "--listen",
                              f"netblk://127.0.0.1:{ports[2]}"], ports)
    use(nbd.Client(("127.0.0.1", ports[0])))
    for address in (("127.0.0.1", ports[1]), path):
        with nbd.Client(address) as c:
            c.go("disk")
            check_eq(c.read(4096, 4096), DATA, f"through {address}")
    with netblk1.Client(ports[2]) as c:
        check_eq(c.read(8, 4096), DATA, "through netblk/1")
    s.stop()


@test
def test_unix_socket(t):
    """Made with the server, gone with it, and a stale one is no obstacle; one in use, or a plain file, is."""
    path = t.tmp / "nbd.sock"

    def serve(**kw):
        return serverproc.Server(t, ["--export", "disk=mem:16M", "--listen", f"nbd+unix://{path}"], **kw)
    s = serve()
    nbd_target.wait_socket(path, s.check_alive)
    use(nbd.Client(path))
    second = serve(ready=False)
    check(second.wait() != 0, "a second server at a socket in use ended")
    use(nbd.Client(path))
    s.stop()
    check(not path.exists(), "the socket is removed")
    s = serve()
    nbd_target.wait_socket(path, s.check_alive)
    s.signal(signal.SIGKILL)
    s.wait()
    check(path.exists(), "a killed server leaves its socket")
    s = serve()
    nbd_target.wait_socket(path, s.check_alive)
    use(nbd.Client(path))
    s.stop()
    path.write_text("mine")
    check(serve(ready=False).wait() != 0, "a server at a plain file ended")
    check_eq(path.read_text(), "mine", "the plain file")


@test
def test_unix_socket_is_not_followed_elsewhere(t):
    """A path that is too long, or in no folder, is refused by name."""
    for path in (t.tmp / ("x" * 120), t.tmp / "none" / "nbd.sock"):
        status, _, err = serverproc.run_cli(["--export", "disk=mem:16M", "--listen", f"nbd+unix://{path}"])
        check(status in (1, 2) and str(path)[:60] in err, f"status {status}: {err!r}")


# ---- LISTEN_FDS

def activated(t, sockets, names, args=("--export", "disk=mem:16M")):
    """Our server with sockets that systemd would have opened."""
    command, extra = suite.server_command()
    dup = "".join(f"exec {30 + i}<&{s.fileno()}; " for i, s in enumerate(sockets))
    dup += "".join(f"exec {3 + i}<&{30 + i} {30 + i}<&-; " for i in range(len(sockets)))
    log = open(t.tmp / "server-activated.err.log", "wb")
    environment = dict(os.environ, LISTEN_FDS=str(len(sockets)))
    environment.pop("LISTEN_FDNAMES", None)
    if names is not None:
        environment["LISTEN_FDNAMES"] = ":".join(names)
    p = subprocess.Popen(["bash", "-c", dup + 'export LISTEN_PID=$$; exec "$@"', "bash", *command, *args, *extra],
                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[s.fileno() for s in sockets])
    t.defer(lambda: (p.kill(), p.wait(), log.close()))
    return p


def tcp_socket(t, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    s.listen(16)
    t.defer(s.close)
    return s


def unix_socket(t, name="a.sock"):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.bind(str(t.tmp / name))
    s.listen(16)
    t.defer(s.close)
    return s


@test
def test_socket_activation(t):
    """TCP and unix sockets for NBD, one for netblk; a client that came before the server is served too."""
    one, two, three = tcp_socket(t), unix_socket(t), tcp_socket(t)
    early = nbd.Client(one.getsockname(), greet=False)
    p = activated(t, [one, two, three], ["nbd", "nbd", "netblk"])
    early.greeting()
    use(early)
    with nbd.Client(two.getsockname()) as c:
        c.go("disk")
        check_eq(c.read(4096, 4096), DATA, "through the unix socket")
    with netblk1.Client(three.getsockname()[1]) as c:
        check_eq(c.read(8, 4096), DATA, "through netblk/1")
    p.terminate()
    check_eq(p.wait(15 * suite.TIME_SCALE), 0, "exit status")
    check((t.tmp / "a.sock").exists(), "a socket that another opened is left where it is")


@test
def test_socket_activation_for_another_process(t):
    """LISTEN_PID of another: the sockets are not ours."""
    one = tcp_socket(t)
    port = serverproc.free_port()
    s = serverproc.Server(t, ["--export", "disk=mem:16M", "--listen", f"nbd://127.0.0.1:{port}"], [port],
                          env={"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "nbd"})
    use(nbd.Client(("127.0.0.1", port)))
    s.stop()
    one.close()


@test
def test_socket_activation_of_what_does_not_listen(t):
    """A datagram socket: refused by name, status 1 or 2."""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    t.defer(s.close)
    p = activated(t, [s], ["nbd"])
    check(p.wait(15 * suite.TIME_SCALE) in (1, 2), "exit status")
    check("socket" in (t.tmp / "server-activated.err.log").read_text(), "the reason is said")


# ---- --stdio

def stdio(t, rfd, wfd, *more):
    command, extra = suite.server_command()
    log = open(t.tmp / "server-stdio.err.log", "wb")
    p = subprocess.Popen([*command, "--export", "disk=mem:16M", "--stdio", *more, *extra], stdin=rfd, stdout=wfd, stderr=log)
    t.defer(lambda: (p.kill(), p.wait(), log.close()))
    return p


@test
def test_stdio_of_a_socket(t):
    ours, its = socket.socketpair()
    p = stdio(t, its, its)
    its.close()
    fd = ours.detach()
    c = nbd.Client(fds=(fd, fd))
    use(c)
    check_eq(p.wait(15 * suite.TIME_SCALE), 0, "exit status after the client's end")


@test
def test_stdio_of_pipes(t):
    """Large requests too: bytes both ways through two pipes."""
    to_server, from_us = os.pipe()
    to_us, from_server = os.pipe()
    p = stdio(t, to_server, from_server)
    os.close(to_server)
    os.close(from_server)
    c = nbd.Client(fds=(to_us, from_us))
    c.extended()
    c.go("disk")
    data = os.urandom(8 * MIB)
    cookies = [c.submit(nbd.CMD_WRITE, 0, len(data), 0, data)]
    cookies += [c.submit(nbd.CMD_READ, 8 * MIB, MIB) for _ in range(8)]
    for cookie in cookies:
        check_eq(c.wait(cookie).error, 0, "requests through pipes")
    check_eq(c.read(0, len(data)), data, "8 MiB through a pipe")
    c.close()  # no DISC: the end of its input ends it
    check_eq(p.wait(15 * suite.TIME_SCALE), 0, "exit status after the end of its input")


@test
def test_stdio_with_libnbd(t):
    """libnbd starts the server itself, on a socket pair."""
    command, extra = suite.server_command()
    wanted = [*command, "--export", "disk=mem:16M", "--stdio", *extra]
    run_program("nbdsh", "-c", f"h.connect_command({wanted!r}); h.pwrite(b'x' * 512, 512); assert h.pread(512, 512) == b'x' * 512; "
                "h.shutdown()")


@test
def test_socket_activation_with_libnbd(t):
    """As libnbd and nbdcopy's brackets have it: one unix socket without a name, which is NBD's."""
    image = t.tmp / "a.img"
    image.write_bytes(os.urandom(2 * MIB))
    command, extra = suite.server_command()
    back = t.tmp / "b.img"
    run_program("nbdcopy", "--", "[", *command, "--export", f"disk=file:{image}", *extra, "]", back)
    check_eq(back.read_bytes(), image.read_bytes(), "nbdcopy [ netblk_server ]")


def run_program(*command):
    env = dict(os.environ, PATH="/usr/bin:" + os.environ.get("PATH", ""))  # nbdsh's Python is Debian's
    p = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60 * suite.TIME_SCALE, env=env)
    check_eq(p.returncode, 0, f"{command[0]}: {p.stderr.strip()[-400:]}")


# ---- the defaults and what is said at the start

@test
def test_what_is_said(t):
    """The URI to use, on a line of the start."""
    s = start(t)
    s.server.wait_log(f"nbd://127.0.0.1:{s.address[1]}")
    s.server.stop()
    s = start(t, listen="unix")
    s.server.wait_log(f"socket={s.address}")


@test
def test_default_listeners(t):
    """No --listen: netblk on 10809 and NBD on 10810, of the loopback alone. In a network of its own, where they are free."""
    command, extra = suite.server_command()
    log = t.tmp / "server-default.err.log"
    script = f'ip link set lo up; exec "$@" > {log} 2>&1'
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0:
        raise Skip("needs root for a network of its own")
    p = subprocess.Popen(["unshare", "-n", "bash", "-c", script, "bash", *command, "--export", "disk=mem:16M", *extra],
                         stdin=subprocess.DEVNULL)
    t.defer(lambda: (p.kill(), p.wait()))
    want = {("tcp", "0100007F", port) for port in (10809, 10810)}
    if has_ipv6():
        want |= {("tcp6", "00000000000000000000000001000000", port) for port in (10809, 10810)}
    suite.wait_until(lambda: want <= serverproc.listening(p.pid), 15, f"the default listeners; {log.read_text() if log.exists() else ''}")
    got = serverproc.listening(p.pid)
    check(all(port in (10809, 10810) for _, _, port in got), f"nothing else: {got}")
    check(all(a in ("0100007F", "00000000000000000000000001000000") for _, a, _ in got), f"the loopback alone: {got}")
    where = ["nsenter", "-t", str(p.pid), "-n"]
    out = subprocess.run([*where, "nbdinfo", "--size", "nbd://127.0.0.1:10810"], capture_output=True, text=True, check=False)
    check_eq(out.stdout.strip(), str(16 * MIB), f"nbdinfo of the default listener {out.stderr}")


@test
def test_the_original_form_has_no_nbd(t):
    """PORT FILE SIZE_MB: netblk on PORT and nothing else."""
    s = serverproc.start(t, 1)
    sockets = {os.readlink(f"/proc/{s.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{s.pid}/fd")}
    ports = set()
    for family in ("tcp", "tcp6"):
        for line in pathlib.Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    check_eq(ports, {s.port}, "its ports")
    with nbd.connect(("127.0.0.1", s.port)) as k:
        k.settimeout(0.3)
        try:
            check_eq(k.recv(1), b"", "a netblk port says nothing first")
        except TimeoutError:
            pass


# ---- limits

def served(address):
    """Whether a new connection gets as far as a READ."""
    try:
        with nbd.Client(address) as c:
            c.go("disk")
            return c.read(0, 512) == bytes(512)
    except (nbd.Closed, nbd.OptionError, ConnectionError):
        return False


@test
def test_connection_limit(t):
    s = start(t, more=["--max-connections", "3"])
    first = [s.client(replies="simple") for _ in range(3)]
    for _ in range(5):
        check(not served(s.address), "a fourth connection")
    for c in first:
        check_eq(c.read(0, 512), bytes(512), "those that are served go on")
    first.pop().disconnect()
    suite.wait_until(lambda: served(s.address), 10, "a connection after one has ended")


@test
def test_connection_limit_of_an_address(t):
    """Of one address; another's connections do not count."""
    port = serverproc.free_port()
    serverproc.Server(t, ["--export", "disk=mem:16M", "--listen", f"nbd://127.0.0.1:{port}", "--max-connections-per-address", "2"], [port])
    address = ("127.0.0.1", port)

    def client(source):
        c = nbd.Client(address, source=source)
        t.defer(c.close)
        c.go("disk")
        return c
    ones = [client("127.0.0.1") for _ in range(2)]
    for _ in range(5):
        check(not served(address), "a third connection of one address")
    twos = [client("127.0.0.2") for _ in range(2)]
    for c in ones + twos:
        check_eq(c.read(0, 512), bytes(512), "those that are served")
    ones[0].disconnect()
    suite.wait_until(lambda: served(address), 10, "a connection after one has ended")


@test
def test_half_open_connections_give_way(t):
    """At the limit, strangers in their handshake do not keep a real client out for longer than their deadline."""
    s = start(t, more=["--max-connections", "10", "--handshake-timeout", "2"])
    strangers = [nbd.connect(s.address) for _ in range(30)]
    suite.wait_until(lambda: served(s.address), 10, "a real client")
    for k in strangers:
        k.close()
    suite.wait_until(lambda: served(s.address), 10, "another")


@test
def test_export_max_conns(t):
    s = start(t, options=["max-conns=2"])
    first = [s.client(replies="simple") for _ in range(2)]
    check(not served(s.address), "a third client of max-conns=2")
    c = s.connect()
    try:
        c.go("disk")
        raise AssertionError("a third GO")
    except nbd.OptionError as e:
        check(e.code in (nbd.ERR_POLICY, nbd.ERR_UNKNOWN), str(e))
    first.pop().disconnect()
    suite.wait_until(lambda: served(s.address), 10, "a client after one has ended")


@test
def test_allow(t):
    """An address that allow= does not name sees no export and gets none; another does."""
    s = start(t, options=["allow=127.0.0.2/32"])
    c = s.connect()
    check_eq(c.list(), [], "LIST for an address that is not allowed")
    try:
        c.go("disk")
        raise AssertionError("GO from an address that is not allowed")
    except nbd.OptionError as e:
        check(e.code in (nbd.ERR_POLICY, nbd.ERR_UNKNOWN), str(e))
    c = s.connect()
    c.send_option(nbd.OPT_EXPORT_NAME, b"disk")
    check_eq(c.stream.drain(), b"", "EXPORT_NAME from an address that is not allowed")
    c = s.connect(source="127.0.0.2")
    check_eq([name for name, _ in c.list()], ["disk"], "LIST for one that is")
    c.go("disk")
    check_eq(c.read(0, 512), bytes(512), "READ for one that is")


if __name__ == "__main__":
    sys.exit(suite.main("nbd-listen"))
