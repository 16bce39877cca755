# SPDX-License-Identifier: GPL-2.0-only
"""Starts the server under test, and looks at it from outside (/proc)."""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import time

import netblk1
import suite

_rng = random.SystemRandom()
_serial = 0


def free_port():
    """A port that bind() grants on every address, below the range from which the
    kernel takes clients' own ports, so that no client can take it meanwhile; nor can another suite that runs beside this
    one, for as long as the test lasts."""
    for _ in range(1000):
        port = _rng.randrange(11000, 32000)
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0netblk-test-port-{port}")
            for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                with socket.socket(family, socket.SOCK_STREAM) as s:
                    if family == socket.AF_INET6:
                        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    s.bind((host, port))
            suite.Case.now.defer(claim.close)
            return port
        except OSError:
            claim.close()
    raise RuntimeError("no free port")


def listening(pid="self"):
    """{(family, hexadecimal address, port)} of the listening TCP sockets in pid's network namespace."""
    out = set()
    for family in ("tcp", "tcp6"):
        try:
            lines = pathlib.Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            f = line.split()
            if f[3] == "0A":
                addr, port = f[1].rsplit(":", 1)
                out.add((family, addr, int(port, 16)))
    return out


def status_kib(pid, key):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)


def cpu_seconds(pid):
    """What it has used, in user and kernel mode."""
    f = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")


def takes_sigterm(pid):
    """Whether process `pid` has SIGTERM blocked (for a signalfd) or caught."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [int(m, 16) for m in re.findall(r"^Sig(?:Blk|Cgt):\s*([0-9a-f]+)", text, re.M)]
    return any(m >> (signal.SIGTERM - 1) & 1 for m in masks)


def unread(port):
    """Bytes that peers of the TCP port have sent and its process has not yet read, on this machine."""
    total = 0
    for family in ("tcp", "tcp6"):
        try:
            lines = pathlib.Path(f"/proc/net/{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for f in (line.split() for line in lines):
            to, received = (int(x, 16) for x in f[4].split(":"))
            total += received if int(f[1].rsplit(":", 1)[1], 16) == port else 0
            total += to if int(f[2].rsplit(":", 1)[1], 16) == port else 0
    return total


class Server:
    """A running server.  `args` are its whole arguments but NETBLK_SERVER_ARGS."""

    def __init__(self, case, args, ports=(), wrap=(), env=None, ready=True, io=None):
        global _serial
        _serial += 1
        command, extra = suite.server_command()
        if io:  # this test is about one I/O back end, whichever the run is about
            extra = [a for i, a in enumerate(extra) if a != "--io" and extra[i - 1] != "--io"] + ["--io", io]
        self.args = [*wrap, *command, *map(str, args), *extra]
        self.ports = list(ports)
        self.port = self.ports[0] if self.ports else None
        self.case = case
        self.out_path = case.tmp / f"server-{_serial}.out.log"
        self.err_path = case.tmp / f"server-{_serial}.err.log"
        environment = {**os.environ, **(env or {})}
        if wrap:  # the leak checker cannot work in a process that is traced
            environment["ASAN_OPTIONS"] = ":".join(filter(None, [environment.get("ASAN_OPTIONS"), "detect_leaks=0"]))
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.proc = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                         env=environment)
        self.pid = self.proc.pid
        case.defer(self.kill)
        if ready:
            self.wait_ready()

    def wait_ready(self, pid=None, seconds=15):
        """Seen in /proc, not by connecting: a probe would count as a client."""
        def up():
            if self.proc.poll() is not None:
                raise AssertionError(f"server exited with status {self.proc.returncode} at start: "
                                     f"{self.log().strip()[-400:]}")
            have = {p for _, _, p in listening(pid or self.pid)}
            # It may listen before it takes signals: a test that ends it at once means a started server.
            return all(p in have for p in self.ports) and takes_sigterm(self.pid)
        suite.wait_until(up, seconds, f"server listening on {self.ports}")

    def log(self):
        return self.out_path.read_text(errors="replace") + self.err_path.read_text(errors="replace")

    def lines(self):
        return [line for line in self.log().splitlines() if line.strip()]

    def wait_log(self, needle, seconds=5):
        """`needle` is a predicate on a line, or words that a line must contain in any case."""
        match = needle if callable(needle) else (lambda line: needle.lower() in line.lower())
        return suite.wait_until(lambda: next((x for x in self.lines() if match(x)), None), seconds,
                                f"log line with {needle if not callable(needle) else 'what is expected'}; "
                                f"the log's end: {self.log()[-300:]!r}")

    def wait_read(self):
        """Until it has read what its clients have sent."""
        # A listening socket has connections there, which nobody has accepted yet.
        suite.wait_until(lambda: unread(self.port) == 0, 30, "the server to read what was sent")

    def client(self, **kw):
        return netblk1.Client(self.port, **kw)

    def alive(self):
        return self.proc.poll() is None

    def check_alive(self):
        suite.check(self.alive(), f"server ended with status {self.proc.returncode}: {self.log().strip()[-400:]}")

    def rss_kib(self):
        return status_kib(self.pid, "VmRSS")

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def signal(self, sig):
        self.proc.send_signal(sig)

    def stand_still(self):
        """SIGSTOP, and returns when every thread has stopped: kill() returns before, and what is asked meanwhile is answered."""
        def stopped():
            states = []
            for path in pathlib.Path(f"/proc/{self.pid}/task").glob("*/stat"):
                try:
                    states.append(path.read_text().rsplit(")", 1)[1].split()[0])
                except (FileNotFoundError, ProcessLookupError):
                    pass  # a thread that has ended meanwhile
            return states and all(state == "T" for state in states)
        self.signal(signal.SIGSTOP)
        suite.wait_until(stopped, 120, "that every thread of the server has stopped")

    def go_on(self):
        self.signal(signal.SIGCONT)

    def wait(self, seconds=15):
        try:
            return self.proc.wait(suite.bound(seconds))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"server did not exit within {suite.bound(seconds):g} s") from None

    def stop(self, seconds=15):
        """SIGTERM; the exit status must be 0."""
        self.signal(signal.SIGTERM)
        suite.check_eq(self.wait(seconds), 0, "exit status after SIGTERM")

    def kill(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()


def start(case, size_mb=64, path=None, port=None, more=(), **kw):
    """The original command line: PORT FILE SIZE_MB."""
    path = path or case.tmp / "disk.img"
    port = port or free_port()
    server = Server(case, [port, path, size_mb, *more], [port], **kw)
    server.path = pathlib.Path(path)
    return server


def start_export(case, *stores, port=None, more=(), host="127.0.0.1", **kw):
    """--export NAME=STORE ... --listen netblk://HOST:PORT."""
    port = port or free_port()
    args = []
    for s in stores:
        args += ["--export", s]
    args += ["--listen", f"netblk://{host}:{port}", *more]
    return Server(case, args, [port], **kw)


def options(store, **opts):
    """STORE with export options; None as a value is a bare flag.  Assumption: options are
    written as the size is, `?a=b&c=d`; DESIGN shows only one option at a time."""
    parts = [k.replace("_", "-") + ("" if v is None else f"={v}") for k, v in opts.items()]
    if not parts:
        return store
    return store + ("&" if "?" in store else "?") + "&".join(parts)


def run_cli(args, seconds=20, extra=True, env=None, cwd=None):
    """Run the server to its end: (status, stdout, stderr)."""
    command, more = suite.server_command()
    p = subprocess.run([*command, *map(str, args), *(more if extra else [])], stdin=subprocess.DEVNULL,
                       capture_output=True, text=True, timeout=suite.bound(seconds),
                       env={**os.environ, **(env or {})}, cwd=cwd)
    return p.returncode, p.stdout, p.stderr


class Strace:
    """Runs a server under strace: pass its `wrap` to the server.  -D keeps the server
    our own child; the tracer is a grandchild that ends with it."""

    def __init__(self, case, *args):
        if subprocess.run(["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=none", "true"],
                          capture_output=True, check=False).returncode != 0:
            raise suite.Skip("strace cannot trace here")
        self.path = case.tmp / "strace.log"
        self.wrap = ["strace", "-D", "-f", "-yy", "-s", "8", "-o", str(self.path), *args]

    def lines(self, pid):
        """The whole trace, after process `pid` has ended."""
        def ended():
            text = self.path.read_text(errors="replace")
            return re.search(rf"^{pid} +\+\+\+ ", text, re.M) and text
        return suite.wait_until(ended, 10, "the trace's end").splitlines()


def settle(read, bound, seconds=None):
    """Wait until `read()` is at most `bound`; returns the last value either way. `seconds`: of a look at what there is,
    that waits for nothing in particular."""
    end = time.monotonic() + (suite.bound(0) if seconds is None else seconds * suite.TIME_SCALE)
    while True:
        value = read()
        if value <= bound or time.monotonic() > end:
            return value
        time.sleep(0.05)
