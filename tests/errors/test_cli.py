#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The server's command line, configuration file, signals and log, as users meet them."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import ERROR, OK, READ, WRITE, request
from serverproc import free_port, options, run_cli, start, start_export
from suite import Skip, check, check_eq, test

MIB = 1 << 20


def one_line_error(args, status, *words, **kw):
    """Exit status `status`, nothing on stdout, one line on stderr that has each of `words`."""
    code, out, err = run_cli(args, **kw)
    said = f"{args}: status {code}, stderr {err!r}"
    check(code == status, f"status {status} wanted; {said}")
    lines = [x for x in err.splitlines() if x.strip()]
    check(len(lines) == 1, f"one line on stderr wanted; {said}")
    check(out.strip() == "", f"nothing on stdout wanted; {args}: {out!r}")
    for w in words:
        check(str(w).lower() in err.lower(), f"{w!r} in the message wanted; {said}")
    return err


def device_size(client):
    """netblk/1 carries no size: found by bisection of the last readable sector."""
    lo, hi = 0, 1 << 40
    while lo < hi:
        mid = (lo + hi + 1) // 2
        client.send(request(READ, mid - 1, 512))
        if client.status() == OK:
            client.recv(512)
            lo = mid
        else:
            hi = mid - 1
    return lo * 512


# ---- PORT FILE SIZE_MB

@test
def test_creates_the_file(t):
    s = start(t, 10)
    check_eq(os.path.getsize(s.path), 10 * MIB, "size of the created file")
    with s.client() as c:
        check_eq(device_size(c), 10 * MIB, "size of the device")
    mode = os.stat(s.path).st_mode & 0o777
    check(mode & 0o022 == 0, f"the created file is writable by others: {mode:o}")
    s.stop()


@test
def test_created_file_is_sparse(t):
    s = start(t, 1000)
    check(os.stat(s.path).st_blocks * 512 < 10 * MIB, "a new file of 1,000 MiB takes its space at once")


@test
def test_grows_the_file(t):
    path = t.tmp / "disk.img"
    path.write_bytes(b"\x21" * 5000)
    s = start(t, 3, path)
    check_eq(path.stat().st_size, 3 * MIB, "size of the grown file")
    with s.client() as c:
        check_eq(c.read(0, 8192), b"\x21" * 5000 + bytes(3192), "old content, then zeros")


@test
def test_never_shrinks_the_file(t):
    path = t.tmp / "disk.img"
    data = random.Random(1).randbytes(5 * MIB)
    path.write_bytes(data)
    s = start(t, 2, path)
    with s.client() as c:
        check_eq(device_size(c), 5 * MIB, "size of the device: the bigger of file and SIZE_MB")
        check_eq(c.read(0, 5 * MIB), data, "content")
    s.stop()
    check_eq(path.read_bytes(), data, "the file")


@test
def test_relative_path(t):
    port = free_port()
    command, extra = suite.server_command()
    p = subprocess.Popen([*command, str(port), "a.img", "1", *extra], cwd=t.tmp, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    t.defer(lambda: (p.kill(), p.wait()))
    suite.wait_until(lambda: (t.tmp / "a.img").exists() and (t.tmp / "a.img").stat().st_size == MIB, 5, "a.img of 1 MiB")


@test
def test_odd_file_names(t):
    """No character of FILE means anything in the original form."""
    for name in ("with space.img", "a?size=5M.img", "file:x.img", "ä.img", "a=b,c.img", "a%41.img"):
        s = start(t, 1, t.tmp / name)
        with s.client() as c:
            c.write(0, b"\x01" * 512)
        check_eq((t.tmp / name).stat().st_size, MIB, f"size of {name!r}")
        s.stop()


@test
def test_listens_on_every_address(t):
    s = start(t, 1)
    have = {a for _, a, p in serverproc.listening() if p == s.port}
    check(have & {"00000000", "0" * 32}, f"the original form listens on every address, not only {have}")
    with s.client(host="127.9.8.7") as c:
        check_eq(c.read(0, 512), bytes(512), "through 127.9.8.7")


@test
def test_bad_port(t):
    for port in ("0", "65536", "abc", "-1", "99999999999999999999", "", "12x", "1.5", "0x10"):
        args = ["--", port, t.tmp / "x.img", 10] if port.startswith("-") else [port, t.tmp / "x.img", 10]
        if port.startswith("-"):
            # As a user types it; whether it is taken for an option or for a number, it is status 2.
            one_line_error([port, t.tmp / "x.img", 10], 2, port)
        else:
            one_line_error(args, 2, port, "port")
        check(not (t.tmp / "x.img").exists(), f"the file was made in spite of bad port {port!r}")


@test
def test_bad_size(t):
    for size in ("abc", "-5", "99999999999999999999", "", "10x", "1.5", "17592186044416", "9223372036854775807"):
        words = [size] if not size.startswith("-") else ["5"]
        one_line_error([free_port(), t.tmp / "x.img", size], 2, *words)
        check(not (t.tmp / "x.img").exists(), f"the file was made in spite of bad size {size!r}")


@test
def test_size_zero(t):
    """Assumption: 0 MiB of a file that does not exist is no device, so an error; with an existing
    file it may mean the file's own size."""
    code, _, err = run_cli([free_port(), t.tmp / "x.img", 0])
    check(code in (1, 2), f"status {code}")
    check_eq(len(err.strip().splitlines()), 1, f"lines on stderr: {err!r}")


@test
def test_size_beyond_the_file_system(t):
    one_line_error([free_port(), t.tmp / "x.img", 1 << 34], 1, "x.img")


@test
def test_wrong_number_of_arguments(t):
    for args in ([], [10809], [10809, "x.img"], [10809, "x.img", 1, "more"]):
        code, _, err = run_cli(args, cwd=t.tmp)
        check_eq(code, 2, f"status of {args}")
        check(err.strip() != "", f"{args}: nothing on stderr")
    code, out, err = run_cli([], extra=False)
    check_eq(code, 2, "status without arguments")
    check("PORT FILE SIZE_MB" in out + err, f"usage is shown: {(out + err)!r}")


@test
def test_help(t):
    for flag in ("--help", "-h"):
        code, out, err = run_cli([flag], extra=False)
        check_eq((code, err), (0, ""), f"{flag}: status and stderr")
        for word in ("PORT", "FILE", "SIZE_MB", "--export", "--listen", "--config", "--request-timeout", "--io"):
            check(word in out, f"{flag} does not mention {word}")


@test
def test_version(t):
    code, out, err = run_cli(["--version"], extra=False)
    check_eq((code, err), (0, ""), "status and stderr")
    check(re.search(r"\d+\.\d+", out) and len(out.strip().splitlines()) == 1, f"a version in one line: {out!r}")


@test
def test_unknown_option(t):
    code, _, err = run_cli(["--frobnicate"])
    check_eq(code, 2, "status")
    check("frobnicate" in err, f"the option is named: {err!r}")


# ---- operating-system failures: status 1, one line

@test
def test_port_in_use(t):
    s = start(t, 1)
    one_line_error([s.port, t.tmp / "y.img", 1], 1, s.port, "in use")


@test
def test_missing_directory(t):
    one_line_error([free_port(), t.tmp / "no/such/x.img", 1], 1, "no/such/x.img")


@test
def test_file_is_a_directory(t):
    one_line_error([free_port(), t.tmp, 1], 1, t.tmp, "directory")


@test
def test_file_is_not_a_disk(t):
    one_line_error([free_port(), "/dev/null", 1], 1, "/dev/null")
    os.mkfifo(t.tmp / "fifo")
    one_line_error([free_port(), t.tmp / "fifo", 1], 1, "fifo")


@test
def test_unreadable_file(t):
    path = t.tmp / "x.img"
    path.write_bytes(bytes(MIB))
    path.chmod(0)
    t.tmp.chmod(0o755)
    if os.geteuid() != 0:
        one_line_error([free_port(), path, 1], 1, "x.img", "denied")
        return
    command, extra = suite.server_command()
    p = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command,
                        str(free_port()), str(path), "1", *extra], capture_output=True, text=True, timeout=suite.bound(0))
    if "setpriv" in p.stderr or p.returncode == 127 or p.returncode == 126:
        raise Skip(f"cannot run the server as another user: {p.stderr.strip()[:100]}")
    check_eq(p.returncode, 1, f"status; {p.stderr!r}")
    check_eq(len(p.stderr.strip().splitlines()), 1, f"lines on stderr: {p.stderr!r}")
    check("x.img" in p.stderr and "denied" in p.stderr.lower(), f"file and reason named: {p.stderr!r}")


# ---- --export and --listen

@test
def test_export_file(t):
    s = start_export(t, f"disk=file:{t.tmp}/x.img?size=10M")
    with s.client() as c:
        check_eq(device_size(c), 10 * MIB, "size of the device")
        c.write(3, b"\x07" * 512)
    check_eq((t.tmp / "x.img").read_bytes()[1536:2048], b"\x07" * 512, "the file")
    s.stop()
    s = start_export(t, f"disk=file:{t.tmp}/x.img")
    with s.client() as c:
        check_eq(device_size(c), 10 * MIB, "size of the device without size=")
        check_eq(c.read(3, 512), b"\x07" * 512, "content")


@test
def test_export_file_missing_without_size(t):
    one_line_error(["--export", f"disk=file:{t.tmp}/none.img", "--listen", f"netblk://127.0.0.1:{free_port()}"],
                   1, "none.img")
    check(not (t.tmp / "none.img").exists(), "a file without a size was made")


@test
def test_export_mem(t):
    s = start_export(t, "disk=mem:3M")
    with s.client() as c:
        check_eq(device_size(c), 3 * MIB, "size of the device")
        c.write(6143, b"\x09" * 512)
        check_eq(c.read(6142, 1024), bytes(512) + b"\x09" * 512, "content")


@test
def test_export_null(t):
    s = start_export(t, "disk=null:1T")
    with s.client() as c:
        last = (1 << 40) // 512 - 1
        c.write(last, b"\x09" * 512)
        check_eq(c.read(last, 512), bytes(512), "a null store reads as zeros")
        c.send(request(READ, last + 1, 512))
        check_eq(c.status(), ERROR, "beyond the end")


@test
def test_size_suffixes(t):
    for text, size in (("1048576", MIB), ("1536K", 1536 << 10), ("2M", 2 * MIB), ("3G", 3 << 30)):
        s = start_export(t, f"disk=null:{text}")
        with s.client() as c:
            check_eq(device_size(c), size, f"size of null:{text}")
        s.stop()


@test
def test_bad_stores(t):
    listen = ["--listen", f"netblk://127.0.0.1:{free_port()}"]
    for export, word in (("disk=floppy:1M", "floppy"), ("disk=mem:", "mem"), ("disk=mem:abc", "abc"), ("disk=mem:0", "0"),
                         ("disk=mem:-1M", "-1M"), ("disk=mem:1X", "1X"), ("disk=mem:99999999999T", "99999999999T"),
                         ("disk=mem:1M?colour=red", "colour"), ("disk=file:", "file"), ("disk", "disk"),
                         ("disk=", "disk"), (options("disk=mem:1M", max_conns="many"), "many"),
                         (options("disk=mem:1M", max_conns="-1"), "-1"),
                         (options("disk=mem:1M", allow="300.0.0.1/8"), "300.0.0.1"),
                         (options("disk=mem:1M", allow="10.0.0.0/33"), "10.0.0.0/33"), ("disk=mem:1000", "1000")):
        one_line_error(["--export", export, *listen], 2, word)


@test
def test_same_export_name_twice(t):
    one_line_error(["--export", "disk=mem:1M", "--export", "disk=mem:2M",
                    "--listen", f"netblk://127.0.0.1:{free_port()}"], 2, "disk")


@test
def test_bad_listen(t):
    for uri in ("gopher://127.0.0.1:1", "netblk://127.0.0.1:abc", "netblk://127.0.0.1:65536", "netblk://127.0.0.1:0x5",
                "netblk://[::1:5", "127.0.0.1"):
        one_line_error(["--export", "disk=mem:1M", "--listen", uri], 2, uri)


@test
def test_listen_without_export(t):
    code, _, err = run_cli(["--listen", f"netblk://127.0.0.1:{free_port()}"])
    check_eq(code, 2, f"status; {err!r}")
    check("export" in err.lower(), f"what is missing is named: {err!r}")


@test
def test_listen_ipv6(t):
    s = start_export(t, "disk=mem:1M", host="[::1]")
    with s.client(host="::1") as c:
        check_eq(c.read(0, 512), bytes(512), "through ::1")
    try:
        with s.client(host="127.0.0.1"):
            pass
    except ConnectionRefusedError:
        return
    raise AssertionError("a listener on [::1] accepts 127.0.0.1")


@test
def test_listen_loopback_only(t):
    s = start_export(t, "disk=mem:1M")
    have = {(f, a) for f, a, p in serverproc.listening() if p == s.port}
    check_eq(have, {("tcp", "0100007F")}, "addresses listened on")


@test
def test_several_listeners(t):
    a, b = free_port(), free_port()
    s = serverproc.Server(t, ["--export", "disk=mem:1M", "--listen", f"netblk://127.0.0.1:{a}",
                              "--listen", f"netblk://127.0.0.1:{b}"], [a, b])
    with netblk1.Client(a) as x, netblk1.Client(b) as y:
        x.write(1, b"\x05" * 512)
        check_eq(y.read(1, 512), b"\x05" * 512, "through the other port")
    s.stop()


@test
def test_first_export_is_netblk1s(t):
    """The first one given, not the first by name."""
    s = start_export(t, "zebra=mem:1M", "aardvark=mem:2M", "mole=mem:3M")
    with s.client() as c:
        check_eq(device_size(c), MIB, "size of the first export")


@test
def test_default_listeners(t):
    """Without --listen: netblk on 10809, loopback only; in a network namespace, as the port may be taken."""
    if subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True).returncode != 0:
        raise Skip("no network namespace can be made here")
    s = serverproc.Server(t, ["--export", "disk=mem:1M"],
                          wrap=["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"], ready=False)
    s.ports = [10809]
    s.wait_ready(s.pid)
    have = serverproc.listening(s.pid)
    loopback = {"0100007F", "00000000000000000000000001000000"}
    check(all(a in loopback for _, a, _ in have), f"only loopback addresses are listened on: {have}")
    check(("tcp", "0100007F", 10809) in have, f"127.0.0.1:10809 is listened on: {have}")
    check({p for _, _, p in have} <= {10809, 10810}, f"only 10809 and NBD's 10810: {have}")
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import netblk1; c = netblk1.Client(10809); "
            "sys.exit(c.read(0, 512) != bytes(512))")
    p = subprocess.run(["nsenter", "-t", str(s.pid), "-n", sys.executable, "-c", code,
                        str(suite.ROOT / "tests/compat")], capture_output=True, text=True, timeout=suite.bound(0))
    check_eq(p.returncode, 0, f"a READ through 127.0.0.1:10809: {p.stderr[-200:]}")
    s.stop()


# ---- the log

@test
def test_plaintext_warning(t):
    def warnings(s):
        time.sleep(0.2)
        return [x for x in s.lines() if "warn" in x.lower()]
    s = start_export(t, "disk=mem:1M", host="0.0.0.0")
    suite.wait_until(lambda: warnings(s), 3, "a warning about a plaintext listener off loopback")
    check(any(str(s.port) in x for x in warnings(s)), f"the warning names the listener: {warnings(s)}")
    s = start_export(t, "disk=mem:1M")
    check_eq(warnings(s), [], "warnings with a loopback listener")
    s = start(t, 1)
    suite.wait_until(lambda: warnings(s), 3, "the original form listens on every address: a warning too")


@test
def test_banner_is_short(t):
    s = start(t, 1)
    s.wait_log(str(s.path))
    s.wait_log(str(s.port))
    time.sleep(0.3)
    lines = s.lines()
    check(1 <= len(lines) <= 12, f"{len(lines)} lines at start")
    check(any(str(s.port) in x for x in lines), f"the port is named: {lines}")
    check(any(str(s.path) in x for x in lines), f"the file is named: {lines}")
    check(all(len(x) < 200 for x in lines), f"lines are short: {lines}")


@test
def test_one_line_per_open_and_close(t):
    s = start(t, 1)
    for i in range(5):
        with s.client() as c:
            for _ in range(100):
                c.read(0, 512)
            c.send(request(READ, 1 << 40, 512))
            c.status()
            c.disconnect()
        suite.wait_until(lambda: len([x for x in s.lines() if f":{c.local_port}" in x]) >= 2, 5,
                         f"lines that name the peer's port {c.local_port}")
    time.sleep(0.3)
    mine = [x for x in s.lines() if f":{c.local_port}" in x]
    check_eq(len(mine), 2, f"lines for one connection: {mine}")


@test
def test_log_flood(t):
    """A client that sends a thousand bad requests does not write a thousand lines."""
    s = start(t, 1)
    before = len(s.lines())
    with s.client() as c:
        c.pipeline(request(READ, 1 << 40, 512) * 5000)
        for _ in range(5000):
            check_eq(c.status(), ERROR, "READ out of range")
    time.sleep(0.3)
    check(len(s.lines()) - before < 100, f"{len(s.lines()) - before} lines for 5,000 refused requests")


# ---- signals

# Seconds that a stop waits for a client that takes no reply, and for all of them.
STALL, DRAIN = 5, 30


def in_flight(t, sig):
    """Accepted is answered, answered is durable, and a connection ends between replies.
    Every WRITE has a sector and a pattern of its own: the file tells which were applied."""
    def attempt(n):
        path = t.tmp / f"disk-{n}.img"
        path.unlink(missing_ok=True)
        s = start(t, 300, path)
        many = min(2000, 250 * MIB // n)
        with s.client() as c:
            c.pipeline(b"".join(request(WRITE, i * (n // 512), n) + bytes([1 + i % 255]) * n for i in range(many)))
            answered = 0
            for _ in range(5):
                c.write_reply()
                answered += 1
            s.signal(sig)
            rest = c.drain_to_end()
            check(not any(rest), f"replies during the drain: {set(rest)}")
            answered += len(rest)
        check_eq(s.wait(10), 0, "exit status")
        disk = s.path.read_bytes()
        applied = [i for i in range(many) if disk[i * n:(i + 1) * n] == bytes([1 + i % 255]) * n]
        torn = [i for i in range(many) if i not in set(applied) and any(disk[i * n:(i + 1) * n])]
        check_eq(torn, [], "WRITEs applied in part")
        check_eq(len(applied), answered, f"WRITEs of {n} applied and WRITEs answered")
    for n in (512, 65536, MIB):
        suite.in_time(STALL, lambda n=n: attempt(n))


@test(timeout=90)
def test_sigterm_in_flight(t):
    in_flight(t, signal.SIGTERM)


@test(timeout=90)
def test_sigint_in_flight(t):
    in_flight(t, signal.SIGINT)


@test
def test_sigterm_during_a_large_read(t):
    """A READ that was accepted is answered whole, to a client that takes its time."""
    path = t.tmp / "disk.img"
    data = random.Random(1).randbytes(32 * MIB)
    path.write_bytes(data)

    def attempt():
        s = start(t, 1, path)
        with s.client(rcvbuf=65536) as c:
            c.send(request(READ, 0, 32 * MIB))
            check_eq(c.status(), OK, "status")
            first = c.recv(100000)
            s.signal(signal.SIGTERM)
            s.wait_log("to drain")
            time.sleep(0.5)
            # Stopped meanwhile, as by a debugger or a container's pause: what waits in the kernel is interrupted.
            s.stand_still()
            s.go_on()
            check_eq(first + c.recv(32 * MIB - 100000), data, "the reply under way at SIGTERM")
            check_eq(c.drain_to_end(), b"", "bytes after it")
        check_eq(s.wait(10), 0, "exit status")
    suite.in_time(STALL, attempt)


@test
def test_sigterm_with_stuck_clients(t):
    """Clients that take no replies, or never finish a request, do not hold the exit for ever."""
    def attempt():
        s = start(t, 64)
        stuck = [s.client(rcvbuf=4096) for _ in range(5)]
        for c in stuck[:3]:
            c.send(request(READ, 0, 32 * MIB) * 20)
        stuck[3].send(request(WRITE, 0, MIB) + bytes(1000))
        stuck[4].send(request(READ, 0, 512)[:5])
        time.sleep(0.5)
        s.stop(60)
    suite.in_time(DRAIN, attempt)


def timed_stop(t, sig):
    s = start(t, 1)
    idle = [s.client() for _ in range(100)]
    for c in idle[::2]:
        c.read(0, 512)
    s.signal(sig)
    check_eq(s.wait(), 0, "exit status")
    for c in idle:
        check_eq(c.drain_to_end(), b"", "bytes on an idle connection at the stop")


@test
def test_sigterm_100_idle(t):
    timed_stop(t, signal.SIGTERM)


@test
def test_sigint_100_idle(t):
    timed_stop(t, signal.SIGINT)


@test
def test_sigterm_refuses_new_connections(t):
    def attempt():
        s = start(t, 64)
        with s.client(rcvbuf=4096) as c:
            c.send(request(READ, 0, 32 * MIB))
            c.status()
            s.signal(signal.SIGTERM)
            suite.wait_until(lambda: s.port not in {p for _, _, p in serverproc.listening()}, 5,
                             "the listener closes while the drain goes on")
            c.recv(32 * MIB)
        check_eq(s.wait(10), 0, "exit status")
    suite.in_time(STALL, attempt)


@test
def test_second_sigterm(t):
    s = start(t, 1)
    s.signal(signal.SIGTERM)
    try:
        s.signal(signal.SIGTERM)
    except ProcessLookupError:
        pass
    s.wait(5)
    check(s.proc.returncode in (0, -signal.SIGTERM), f"status {s.proc.returncode}")


@test
def test_sigpipe_and_closed_stderr(t):
    """A log reader that goes away does not take the server with it."""
    port = free_port()
    command, extra = suite.server_command()
    p = subprocess.Popen([*command, str(port), str(t.tmp / "d.img"), "1", *extra], stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    t.defer(lambda: (p.kill(), p.wait()))
    suite.wait_until(lambda: port in {q for _, _, q in serverproc.listening()}, 10, "listening")
    p.stdout.close()
    for _ in range(5):
        with netblk1.Client(port) as c:
            c.read(0, 512)
            c.disconnect()
    check(p.poll() is None, f"the server ended with {p.returncode} when its log's reader went away")
    p.terminate()
    check_eq(p.wait(30), 0, "exit status")


if __name__ == "__main__":
    sys.exit(suite.main("cli"))
