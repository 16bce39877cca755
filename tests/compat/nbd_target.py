# SPDX-License-Identifier: GPL-2.0-only
"""An NBD server to test: ours, or (NETBLK_NBD_PEER=nbdkit, qemu-nbd, nbd-server) one that others wrote.

Run against a peer, a suite says what that peer does and, where the peer is right, that the suite is. A test names what
it needs beyond the baseline; a peer that lacks it skips the test. The peers' columns of README's table are such runs.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import nbd
import serverproc
import suite
from suite import Skip, check

PEER = os.environ.get("NETBLK_NBD_PEER", "")
MIB = 1 << 20
# What a peer of Debian 12 has not, or does not hold to.
LACKS = {
    "": set(),
    "nbdkit": {"extended", "fast-zero"},
    "qemu-nbd": {"extended", "many-exports"},
    "nbd-server": {"structured", "extended", "fast-zero", "cache", "description"},
}


def needs(*features):
    for feature in features:
        if feature in LACKS[PEER]:
            raise Skip(f"{PEER} lacks {feature}")


class Running:
    """A server with one file or more; address is what nbd.connect() takes."""

    def __init__(self, case, server, address, path, size):
        self.case, self.server, self.address, self.path, self.size = case, server, address, path, size

    @property
    def uri(self):
        if isinstance(self.address, tuple):
            host = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
            return f"nbd://{host}:{self.address[1]}"
        return f"nbd+unix:///?socket={self.address}"

    def uri_of(self, name):
        if isinstance(self.address, tuple):
            return f"{self.uri}/{name}"
        return f"nbd+unix:///{name}?socket={self.address}"

    def connect(self, **kw):
        """A client in the middle of its handshake."""
        client = nbd.Client(self.address, lax=PEER != "", **kw)
        self.case.defer(client.close)
        return client

    def client(self, name="disk", replies="structured", meta=(), wants=(nbd.INFO_BLOCK_SIZE,), **kw):
        """A client that may read and write."""
        c = self.connect(**kw)
        if replies != "simple":
            needs(replies)
            getattr(c, replies)()
        if meta:
            c.set_meta(name, meta)
        c.go(name, wants)
        return c

    @property
    def pid(self):
        return self.server.pid

    def rss_kib(self):
        return serverproc.status_kib(self.pid, "VmRSS")

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def check_alive(self):
        if hasattr(self.server, "check_alive"):
            self.server.check_alive()
        else:
            check(self.server.poll() is None, f"{PEER} ended with status {self.server.returncode}")


def image(case, size, name=None):
    path = case.tmp / (name or f"disk{len(list(case.tmp.glob('disk*.img')))}.img")
    with open(path, "wb") as f:
        f.truncate(size)
    return path


def start(case, size=16 * MIB, path=None, ro=False, listen="tcp", exports=None, more=(), host="127.0.0.1", options=(), **kw):
    """exports: {name: path}; without it one export, `disk`, of a sparse file of `size` bytes. options: of every store of
    ours."""
    if exports is None:
        exports = {"disk": path or image(case, size)}
    path = next(iter(exports.values()))
    if listen == "unix":
        address = case.tmp / f"nbd{len(list(case.tmp.glob('nbd*.sock')))}.sock"
    else:
        address = (host, serverproc.free_port())
    if PEER:
        return Running(case, start_peer(case, exports, ro, address), address, path, size)
    args = []
    for name, store in exports.items():
        store = f"file:{store}" if isinstance(store, os.PathLike) else store
        every = [*options, *(["ro"] if ro else [])]
        args += ["--export", f"{name}={store}" + ("&" if "?" in store else "?") * bool(every) + "&".join(every)]
    if listen == "unix":
        server = serverproc.Server(case, [*args, "--listen", f"nbd+unix://{address}", *more], **kw)
        wait_socket(address, server.check_alive)
    else:
        shown = f"[{host}]" if ":" in host else host
        server = serverproc.Server(case, [*args, "--listen", f"nbd://{shown}:{address[1]}", *more], [address[1]], **kw)
    return Running(case, server, address, path, size)


def wait_socket(path, alive=lambda: None):
    def up():
        alive()
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(str(path)) == 0
    suite.wait_until(up, 15, f"a socket at {path}")


def start_peer(case, exports, ro, address):
    """Only what all three can be told; the first export is the default one."""
    name, path = next(iter(exports.items()))
    if len(exports) > 1:
        needs("many-exports")
    tcp = isinstance(address, tuple)
    if PEER == "nbdkit":
        where = ["-i", address[0], "-p", str(address[1])] if tcp else ["-U", str(address)]
        command = ["nbdkit", "-f", *where, *(["-r"] if ro else []), "--filter=exportname", "file", str(path),
                   f"default-export={name}", f"exportname={name}", "exportname-strict=true", "exportdesc=fixed:a disk"]
        if len(exports) > 1:
            command = ["nbdkit", "-f", *where, "file", f"dir={pathlib.Path(path).parent}"]
    elif PEER == "qemu-nbd":
        where = ["-b", address[0], "-p", str(address[1])] if tcp else ["-k", str(address)]
        command = ["qemu-nbd", "-t", "-f", "raw", "-e", "64", "-x", name, "-D", "a disk", "--discard=unmap", *where,
                   *(["-r"] if ro else []), str(path)]
    else:
        config = case.tmp / "nbd-server.conf"
        where = f"listenaddr={address[0]}\nport={address[1]}\n" if tcp else f"unixsock={address}\n"
        config.write_text("[generic]\nallowlist=true\n" + where + "".join(
            f"[{n}]\nexportname={p}\nflush=true\nfua=true\ntrim=true\nreadonly={'true' if ro else 'false'}\n"
            for n, p in exports.items()))
        return start_nbd_server(case, config, address)
    log = open(case.tmp / "server-peer.err.log", "wb")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end():
        process.terminate()
        process.wait()
        log.close()
    case.defer(end)
    if tcp:
        suite.wait_until(lambda: any(p == address[1] for _, _, p in serverproc.listening()), 15, f"{PEER} listening")
    else:
        wait_socket(address)
    return process


class Daemon:
    """nbd-server leaves its parent, which is what it takes to serve several clients."""

    returncode = None

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        return None if os.path.exists(f"/proc/{self.pid}") else -1


def start_nbd_server(case, config, address):
    pid_file = case.tmp / "nbd-server.pid"
    subprocess.run(["nbd-server", "-C", config, "-p", pid_file], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    pid = int(suite.wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), 15, "nbd-server's pid"))

    def end():
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGTERM)
        suite.wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "nbd-server's end")
    case.defer(end)
    if isinstance(address, tuple):
        suite.wait_until(lambda: any(p == address[1] for _, _, p in serverproc.listening()), 15, f"{PEER} listening")
    else:
        wait_socket(address)
    return Daemon(pid)


class Witness:
    """A well-behaved client that must be served all the time while others misbehave."""

    def __init__(self, running, offset=8 * MIB, **kw):
        self.c, self.offset, self.n = running.client(**kw), offset, 0

    def check(self):
        data = self.n.to_bytes(8, "big") * 512
        self.n += 1
        self.c.write(self.offset, data)
        suite.check_eq(self.c.read(self.offset, 4096), data, "what a well-behaved client wrote")


class Busy:
    """A witness in a thread; `with Busy(running):` checks it to the end of the block."""

    def __init__(self, running, **kw):
        self.witness, self.error, self.stop = Witness(running, **kw), None, threading.Event()

    def _run(self):
        try:
            while not self.stop.is_set():
                self.witness.check()
                self.stop.wait(0.005)
        except BaseException as e:
            self.error = e

    def __enter__(self):
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.stop.set()
        self.thread.join()
        if kind is None and self.error:
            raise AssertionError(f"a well-behaved client meanwhile: {self.error!r}")
        return False
