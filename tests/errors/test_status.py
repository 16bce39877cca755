#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk status` and `netblk top` on the host, by the way of fuse: every documented key, where the time of requests
went, the age of the oldest; and that attach and detach do not wait for ever for each other.

Durations are compared from below, or with each other until a quiet moment comes."""

import errno
import fcntl
import json
import os
import pathlib
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import serverproc
import suite
from proxy import Proxy
from suite import Skip, check, check_eq, test

KEYS = {"device", "way", "state", "server", "protocol", "name", "size_bytes", "read_only", "lost", "lost_why", "generation",
        "read_bytes", "write_bytes", "errors", "reconnects", "last_error", "pid", "uses", "leaving", "leaving_failed", "owner",
        "in_flight", "oldest_ms", "reads", "writes", "read_wait_ms", "write_wait_ms", "reads_per_s", "writes_per_s",
        "read_mib_per_s", "write_mib_per_s", "read_latency_us", "write_latency_us", "latency"}
TOP_KEYS = {"device", "name", "way", "server", "state", "lost", "in_flight", "oldest_ms", "latency", "errors", "reconnects",
            "reads_per_s", "writes_per_s", "read_mib_per_s", "write_mib_per_s", "read_latency_us", "write_latency_us"}
SPLIT = {"queue_us", "round_trip_us", "wire_us", "server_us", "media_us"}


def needs():
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise Skip("needs root, /dev/fuse and /dev/loop-control")


def attach(t, uri, *args):
    out, _ = command.run(t, "attach", "--via", "fuse", *args, uri)
    device = out.decode().strip()

    def end():
        # The node may be another's by now.
        rows = json.loads(subprocess.run([command.NETBLK, "status", "--json"], stdout=subprocess.PIPE, check=True).stdout)
        if any(row["device"] == device and row["server"] == uri and row["state"] != "gone" for row in rows):
            subprocess.run([command.NETBLK, "detach", "--force", device], stderr=subprocess.DEVNULL, check=False)
    t.defer(end)
    return device


def status(t, device):
    rows = json.loads(command.run(t, "status", "--json", device)[0])
    check_eq(len(rows), 1, "rows of one device")
    return rows[0]


def read_at(device, block):
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        import mmap
        memory = mmap.mmap(-1, 4096)
        check_eq(os.preadv(fd, [memory], block * 4096), 4096, "bytes read")
    finally:
        os.close(fd)


def until(what, condition, seconds=60):
    end = time.monotonic() + seconds * suite.TIME_SCALE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def read_split(t, device):
    return status(t, device)["latency"]["read"]


@test
def test_every_key_is_there(t):
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    device = attach(t, f"netblk://127.0.0.1:{s.port}/disk")
    row = status(t, device)
    check_eq(set(row), KEYS, "keys of status")
    check_eq(set(row["latency"]), {"read", "write", "flush"}, "kinds")
    for kind, split in row["latency"].items():
        check_eq(set(split), SPLIT, f"keys of {kind}")
    check_eq((row["way"], row["state"], row["owner"], row["protocol"], row["leaving_failed"]),
             ("fuse", "connected", "exclusive", "2", ""), "row")
    check(isinstance(row["oldest_ms"], int), f"oldest_ms: {row['oldest_ms']}")
    top = json.loads(command.run(t, "top", "--once", "--interval", "0.2", "--json", device)[0])
    check_eq([set(one) for one in top], [TOP_KEYS], "keys of top")
    check_eq(set(top[0]["latency"]), SPLIT, "keys of top's split")


@test(timeout=180)
def test_a_slow_store_is_told_from_a_slow_wire(t):
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M&delay-read-ms=30")
    proxy = Proxy(t, s.port)
    device = attach(t, f"netblk://127.0.0.1:{proxy.port}/disk")
    blocks = iter(range(4096))

    def media_above_wire():
        for _ in range(5):  # so that a bad moment of the network is soon made up for
            read_at(device, next(blocks))
        split = read_split(t, device)
        return split["media_us"] is not None and split["media_us"] > split["wire_us"]
    until("the medium is what is slow", media_above_wire)
    split = read_split(t, device)
    check(split["media_us"] >= 20_000, f"a medium that takes 30 ms: {split}")
    check(split["round_trip_us"] >= 20_000, f"{split}")
    words = command.run(t, "status", device)[0].decode()
    check("media" in words and "wire" in words, f"the table of one disk: {words}")

    proxy.delay_s = 0.5  # each way
    before = split["wire_us"]

    def wire_above_media():
        read_at(device, next(blocks))
        now = read_split(t, device)
        return now["wire_us"] > now["media_us"] and now["wire_us"] > before
    until("the wire is what is slow", wire_above_media, 120)


@test(timeout=240)
def test_the_age_of_the_oldest(t):
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    device = attach(t, f"netblk://127.0.0.1:{s.port}/disk")
    read_at(device, 0)
    until("nothing waits", lambda: status(t, device)["oldest_ms"] == 0)
    enough = threading.Event()

    def read_on():
        # One is left unanswered; those that some cache had are not.
        for block in range(100, 4000):
            if enough.is_set():
                break
            read_at(device, block)
    s.stand_still()
    reader = threading.Thread(target=read_on)
    try:
        reader.start()
        until("an old request", lambda: (row := status(t, device))["oldest_ms"] >= 700 and row["in_flight"] >= 1, 120)
    finally:
        enough.set()
        s.go_on()
        reader.join()
    until("nothing waits", lambda: status(t, device)["oldest_ms"] == 0)


@test
def test_throughput(t):
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    device = attach(t, f"netblk://127.0.0.1:{s.port}/disk")
    busy = True

    def reads():
        while busy:
            read_at(device, 7)
    reader = threading.Thread(target=reads)
    reader.start()
    try:
        until("reads in status", lambda: status(t, device)["reads_per_s"] > 0 and status(t, device)["read_mib_per_s"] > 0)
        until("reads in top", lambda: json.loads(command.run(t, "top", "--once", "--interval", "0.3", "--json", device)[0])[0]
              ["latency"]["queue_us"] is not None)
    finally:
        busy = False
        reader.join()


@test
def test_top_ends_in_order_and_names_what_is_unknown(t):
    needs()
    command.refused(t, "top", "no-such-disk", words="no-such-disk is not attached")
    p = command.start(t, "top", "--interval", "0.2")
    check(p.stdout.readline() != b"", "a first look, with disks or without")
    p.send_signal(signal.SIGINT)
    p.stdout.read()
    check_eq(p.wait(timeout=60), 0, "status after an interrupt")


@test
def test_top_fits_its_terminal(t):
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    device = attach(t, f"netblk://127.0.0.1:{s.port}/disk")
    for columns, wanted, unwanted in ((80, "MEDIA", "SOURCE"), (300, "SOURCE", None)):
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        p = command.start(t, "top", "--once", "--interval", "0.1", device, stdout=other)
        os.close(other)
        text = b""
        try:
            while more := os.read(main, 65536):
                text += more
        except OSError:
            pass  # the other end is closed
        os.close(main)
        check_eq(p.wait(timeout=60), 0, "status of top")
        lines = text.decode().replace("\r", "").splitlines()
        check(device in text.decode() and max(map(len, lines)) <= columns, f"{columns} columns: {lines}")
        check(wanted in lines[0] and (unwanted is None or unwanted not in lines[0]), f"{columns} columns: {lines[0]}")


@test(timeout=180)
def test_a_lazy_detach_that_fails_is_told(t):
    """What was written did not arrive: the process that detached at the last close has nobody to tell but status."""
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    uri = f"netblk://127.0.0.1:{s.port}/disk"
    device = attach(t, uri, "--timeout", "5")
    user = os.open(device, os.O_RDWR | os.O_EXCL)
    os.pwrite(user, b"lost" * 4096, 0)
    command.run(t, "detach", "--lazy", device)
    check(status(t, device)["leaving"], "a lazy detach waits")
    s.kill()
    os.close(user)

    def told():
        rows = json.loads(command.run(t, "status", "--json")[0])
        return [row["leaving_failed"] for row in rows if row["server"] == uri and row["leaving_failed"]]
    until("the failure in status", told, 120)
    check("lazy detach failed" in command.run(t, "status")[0].decode(), "the table")
    command.run(t, "reset", device)
    check_eq(told(), [], "what is told when it was taken note of")


@test
def test_who_holds_the_others_up_is_named(t):
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    uri = f"netblk://127.0.0.1:{s.port}/disk"
    device = attach(t, uri)
    with open("/run/netblk.lock", "a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        who = f"process {os.getpid()} "
        command.refused(t, "attach", "--via", "fuse", "--lock-wait", "0.2", uri, words=[who, "--lock-wait"])
        check_eq(status(t, device)["state"], "connected", "state")
        command.refused(t, "detach", "--lock-wait", "0", device, words=[who, "is detached, but keeps its name"])
    command.run(t, "detach", device)


@test(timeout=180)
def test_a_mounted_disk_is_detached_by_force_or_lazily_alone(t):
    needs()
    if not shutil.which("mkfs.ext4"):
        raise Skip("needs mkfs.ext4")
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    uri = f"netblk://127.0.0.1:{s.port}/disk"
    folder = t.tmp / "mnt"
    folder.mkdir()

    def mount(device):
        subprocess.run(["mount", device, folder], check=True)
        t.defer(lambda: subprocess.run(["umount", "--lazy", folder], stderr=subprocess.DEVNULL, check=False))

    def unmount():
        subprocess.run(["umount", folder], check=True, timeout=60 * suite.TIME_SCALE)

    def is_gone(device):
        return all(row["device"] != device or row["server"] != uri for row in json.loads(command.run(t, "status", "--json")[0]))
    device = attach(t, uri)
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    mount(device)
    for options in ([], ["--wait", "0.3"]):
        command.refused(t, "detach", *options, device, words=[f"mounted on {folder}", "unmount it first", "--force"])
    command.refused(t, "detach", "--force", "--lazy", device, words="excludes", status=2)
    row = status(t, device)
    check_eq((row["state"], row["leaving"]), ("connected", False), "state and leaving after detach was refused")
    with open(folder / "kept", "wb") as file:
        file.write(b"kept" * 4096)
        file.flush()
        os.fsync(file.fileno())
    # at once: what is mounted fails
    command.run(t, "detach", "--force", device)
    check(is_gone(device), "status shows what was detached by force")
    try:
        with open(folder / "new", "wb", buffering=0) as file:
            file.write(b"new")
            os.fsync(file.fileno())
        raise AssertionError("a file was written to a disk that was detached by force")
    except OSError as error:
        check(error.errno in (errno.EIO, errno.EROFS), f"of a file system whose disk has gone: {error}")
    unmount()
    # when it is unmounted: it goes on until then
    device = attach(t, uri)
    mount(device)
    check_eq((folder / "kept").read_bytes(), b"kept" * 4096, "what was synced before")
    command.run(t, "detach", "--lazy", device)
    check(status(t, device)["leaving"], "a lazy detach waits")
    (folder / "more").write_bytes(b"more" * 4096)
    unmount()
    until("the end of the disk", lambda: is_gone(device))
    device = attach(t, uri)
    mount(device)
    check_eq((folder / "more").read_bytes(), b"more" * 4096, "what was written while the disk was leaving")
    unmount()
    command.run(t, "detach", device)


@test
def test_a_malformed_store_is_told_from_one_that_fails(t):
    """2: the words of the command; 1: what is there. No helper is started for what nobody could mean."""
    for source in ("file:", "mem:", "mem:x", "null:-1", "file:disk?nope=1", "elsewhere:disk"):
        command.refused(t, "attach", "--via", "fuse", source, words=source.split(":", maxsplit=1)[0], status=2)
        command.refused(t, "attach", "--explain", source, words=source.split(":", maxsplit=1)[0], status=2)
    command.run(t, "attach", "--explain", "file:not-there")
    needs()
    command.refused(t, "attach", "--via", "fuse", f"file:{t.tmp}/not-there", words="not-there")


def starting_helper(uri):
    """The process of the helper that makes a disk of the source, or nothing."""
    for record in pathlib.Path("/run/netblk").glob("[0-9]*/state.json"):
        try:
            found = json.loads(record.read_text())
        except (OSError, ValueError):
            continue  # it is being replaced, or has just gone
        if found["server"] == uri and not found["device"]:
            return found["pid"]
    return None


def nothing_is_left_of(t, uri, pid):
    until("the end of the helper", lambda: not os.path.exists(f"/proc/{pid}"))
    check(starting_helper(uri) is None, "the record of the helper stays")
    rows = json.loads(command.run(t, "status", "--json")[0])
    check(all(row["server"] != uri for row in rows), f"a disk of it stays: {rows}")
    for mount in pathlib.Path("/run/netblk").glob("[0-9]*/mnt"):
        record = mount.parent / "state.json"
        # Another one's detach unmounts before it removes its record; and the number may be given away anew.
        stays = not record.exists() and f" {mount} " in pathlib.Path("/proc/self/mounts").read_text(encoding="utf-8")
        check(not stays or record.exists(), f"{mount} stays")


@test(timeout=180)
def test_a_helper_that_hangs_before_its_disk_is_there_is_ended(t):
    """Its server accepts and says nothing, for which --timeout gives it long; then the helper itself is stopped."""
    needs()
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'disk'}?size=16M")
    uri = f"netblk://127.0.0.1:{s.port}/disk"
    command.refused(t, "attach", "--via", "fuse", "--start-wait", "0", uri, words="--start-wait", status=2)
    command.refused(t, "attach", "--via", "fuse", "--start-wait", "soon", uri, words="--start-wait", status=2)
    s.stand_still()
    # Less than the 15 s that a helper waits for a welcome.
    for stopped in (False, True):
        attaching = command.start(t, "attach", "--via", "fuse", "--start-wait", "12", "--timeout", "600", uri)
        pid = suite.wait_until(lambda: starting_helper(uri), 60, "a helper")
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        out, err = attaching.communicate(timeout=100 * suite.TIME_SCALE)
        err = err.decode()
        check_eq((attaching.returncode, out, err.count("\n")), (1, b"", 1), f"status, stdout, lines on stderr: {err}")
        for word in (f"helper of {uri} (process {pid})", "within 12 s", "it was killed", "stopped" if stopped else "waited in the kernel",
                     f"whether {uri} answers", "--start-wait"):
            check(word in err, f"{word!r} in the message wanted: {err!r}")
        nothing_is_left_of(t, uri, pid)
    # Who is slow, and not too slow, is waited for. By another server: what the two that were killed said is still to be
    # read by the first one.
    s = serverproc.start_export(t, f"disk=file:{t.tmp / 'slow'}?size=16M")
    uri = f"netblk://127.0.0.1:{s.port}/disk"
    s.stand_still()
    attaching = command.start(t, "attach", "--via", "fuse", "--start-wait", "100", "--timeout", "100", uri)
    until("a helper", lambda: starting_helper(uri))
    check(attaching.poll() is None, "an attach without a server has ended")
    s.go_on()
    out, err = attaching.communicate(timeout=100 * suite.TIME_SCALE)
    check_eq(attaching.returncode, 0, f"status of an attach whose server came late: {err.decode()}")
    device = attach(t, uri)
    check_eq(out.decode().strip(), device, "the disk")
    read_at(device, 0)
    command.run(t, "detach", device)


if __name__ == "__main__":
    sys.exit(suite.main("status"))
