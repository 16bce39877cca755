#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk copy`: what it copies, what it refuses, and what it does when the link or the server goes away."""

import itertools
import json
import os
import pathlib
import pty
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import suite
from command import MIB, refused, run, start, used_kib
from proxy import Proxy
from serverproc import free_port, start_export
from suite import Skip, check, check_eq, test


def sparse_image(path, size, *data):
    """A file of `size` with random bytes at each (offset, length)."""
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, length in data:
            f.seek(offset)
            f.write(random.randbytes(length))
    return path


def full_image(path, size):
    path.write_bytes(random.randbytes(size))
    return path


def serve(t, name="disk", size="64M", port=None, **kw):
    """A file export: (server, path, URI)."""
    path = t.tmp / f"{name}.store"
    server = start_export(t, f"{name}=file:{path}?size={size}", port=port, **kw)
    return server, path, f"netblk://127.0.0.1:{server.port}/{name}"


def check_same(a, b, what="the copy"):
    done = subprocess.run(["cmp", a, b], capture_output=True, text=True)
    check(done.returncode == 0, f"{what}: {done.stdout}{done.stderr}")


def state_of(t):
    found = [p for p in (t.tmp / "state").rglob("copy-*") if p.suffix not in (".lock", ".new")]
    return json.loads(found[0].read_text()) if found else None


def wait_state(t, at_least=1):
    return suite.wait_until(lambda: (s := state_of(t)) and s["done_bytes"] >= at_least and s, 20, "a noted position")


# ---- what it copies

@test
def test_file_to_file_keeps_holes(t):
    a = sparse_image(t.tmp / "a", 200 * MIB + 777, (0, 4096), (33 * MIB, 5 * MIB), (100 * MIB + 300, 70_000), (200 * MIB, 777))
    out, err = run(t, "copy", a, t.tmp / "b")
    check_eq((out, err), (b"", ""), "output in a pipe")
    check_same(a, t.tmp / "b")
    check(used_kib(t.tmp / "b") <= used_kib(a) + 64, f"{used_kib(t.tmp / 'b')} KiB used, the source uses {used_kib(a)}")
    check(not list((t.tmp / "state").rglob("copy-*")), "state files are left after success")


@test
def test_every_odd_size(t):
    for size in (0, 1, 511, 512, 513, 4095, 4097, 512 * 1024 - 1, 512 * 1024, 512 * 1024 + 1, 3 * MIB + 5):
        a = full_image(t.tmp / "a", size)
        run(t, "copy", a, t.tmp / f"b{size}")
        check_same(a, t.tmp / f"b{size}", f"a file of {size} bytes")
        out, _ = run(t, "copy", "-", "-", input=a.read_bytes())
        check(out == a.read_bytes(), f"{size} bytes through pipes")


@test
def test_old_data_of_the_target_goes(t):
    """Holes of the source are zeroes in a target that had something else there."""
    a = sparse_image(t.tmp / "a", 40 * MIB, (7 * MIB, MIB), (39 * MIB, 512))
    b = full_image(t.tmp / "b", 40 * MIB)
    run(t, "copy", a, b)
    check_same(a, b)
    check(used_kib(b) < 4 * 1024, f"the target still uses {used_kib(b)} KiB: its zeroes are no holes")


@test
def test_larger_target_keeps_its_end(t):
    a = full_image(t.tmp / "a", 3 * MIB + 100)
    b = full_image(t.tmp / "b", 5 * MIB)
    end = b.read_bytes()[3 * MIB + 100:]
    run(t, "copy", a, b)
    check(b.read_bytes() == a.read_bytes() + end, "the front is the source, the rest as it was")


@test
def test_empty_target_is_none(t):
    a = full_image(t.tmp / "a", MIB)
    (t.tmp / "b").touch()
    run(t, "copy", a, t.tmp / "b")
    check_same(a, t.tmp / "b")


@test
def test_to_an_export_and_back(t):
    _, store, uri = serve(t)
    a = sparse_image(t.tmp / "a", 64 * MIB, (5 * MIB, 9 * MIB), (60 * MIB + 512, 70_000))
    run(t, "copy", a, uri)
    check_same(a, store, "the server's file")
    check(used_kib(store) <= used_kib(a) + 64, f"the server's file uses {used_kib(store)} KiB, the source {used_kib(a)}")
    run(t, "copy", uri, t.tmp / "b")
    check_same(a, t.tmp / "b", "the copy back")
    check(used_kib(t.tmp / "b") <= used_kib(a) + 64, "zeroes of an export are holes in a new file")
    out, _ = run(t, "copy", uri, "-")
    check(out == a.read_bytes(), "an export to stdout")


@test
def test_export_to_export(t):
    server = start_export(t, "a=mem:32M", "b=mem:32M")
    uri = f"netblk://127.0.0.1:{server.port}"
    data = random.randbytes(20 * MIB)
    run(t, "copy", "-", f"{uri}/a", input=data)
    run(t, "copy", "--connections", 4, f"{uri}/a", f"{uri}/b")
    out, _ = run(t, "copy", f"{uri}/b", "-")
    check(out == data + bytes(12 * MIB), "the second export")


@test
def test_last_block_is_filled_with_zeroes(t):
    _, store, uri = serve(t, size="1M")
    run(t, "copy", full_image(t.tmp / "full", MIB), uri)
    a = full_image(t.tmp / "a", 100_001)
    run(t, "copy", a, uri)
    whole = store.read_bytes()
    check(whole[:100_001] == a.read_bytes(), "the data")
    check(whole[100_001:100_352] == bytes(351), "the rest of the last block is zeroes")
    check(whole[100_352:] == (t.tmp / "full").read_bytes()[100_352:], "what is behind it stays")


@test
def test_holes_are_not_sent(t):
    server, store, _ = serve(t, size="300M")
    proxy = Proxy(t, server.port)
    a = sparse_image(t.tmp / "a", 300 * MIB, (100 * MIB, MIB))
    with open(a, "r+b") as f:  # zeroes that are no hole
        f.seek(200 * MIB)
        f.write(bytes(20 * MIB))
    run(t, "copy", a, f"netblk://127.0.0.1:{proxy.port}/disk")
    check_same(a, store)
    check(proxy.sent < 2 * MIB, f"{proxy.sent} bytes went to the server for 1 MiB of data")
    check(used_kib(store) < 3 * 1024, f"{used_kib(store)} KiB used at the server")


@test
def test_fifo_and_null(t):
    a = full_image(t.tmp / "a", 3 * MIB)
    os.mkfifo(t.tmp / "fifo")
    p = start(t, "copy", a, t.tmp / "fifo")
    data = (t.tmp / "fifo").read_bytes()
    check_eq(p.wait(), 0, "status")
    check(data == a.read_bytes(), "what came through the FIFO")
    run(t, "copy", a, "/dev/null")


@test
def test_block_devices(t):
    a = full_image(t.tmp / "a", 3 * MIB)
    loop = attach_loop(t, sparse_image(t.tmp / "backing", 8 * MIB))
    run(t, "copy", a, loop)
    run(t, "copy", loop, t.tmp / "b")
    check((t.tmp / "b").read_bytes() == a.read_bytes() + bytes(5 * MIB), "what the device gives back")


def attach_loop(t, path):
    if os.geteuid() != 0:
        raise Skip("needs root")
    p = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True)
    if p.returncode != 0:
        raise Skip(f"no loop device: {p.stderr.strip()}")
    t.defer(lambda: subprocess.run(["losetup", "-d", p.stdout.strip()]))
    return p.stdout.strip()


# ---- what it refuses

@test
def test_smaller_target_is_refused(t):
    _, store, uri = serve(t, size="1M")
    a = full_image(t.tmp / "a", MIB + 512)
    b = full_image(t.tmp / "b", MIB)
    before = b.read_bytes()
    refused(t, "copy", a, uri, words="nothing was written")
    refused(t, "copy", a, b, words=("nothing was written", "--force"))
    check(b.read_bytes() == before and store.read_bytes() == bytes(MIB), "nothing was written")
    run(t, "copy", "--force", a, b)
    check_same(a, b, "a file that was let grow")
    refused(t, "copy", "--force", a, uri, words="nothing was written")


@test
def test_stdin_longer_and_shorter(t):
    _, store, uri = serve(t, size="1M")
    data = random.randbytes(MIB + 1)
    refused(t, "copy", "-", uri, words="longer", input=data)
    run(t, "copy", "-", uri, input=data[:-1])
    check(store.read_bytes() == data[:-1], "exactly as long")
    run(t, "copy", "-", uri, input=data[1000:2000])
    check(store.read_bytes() == data[1000:2000] + bytes(24) + data[1024:-1], "shorter: the rest of the block zero, then as it was")
    run(t, "copy", "-", t.tmp / "new", input=data)
    check((t.tmp / "new").read_bytes() == data, "a new file has the length of what came")


@test
def test_malformed(t):
    for args in (("copy",), ("copy", "a"), ("copy", "a", "b", "c"), ("copy", "nbds://x/y", "b"),
                 ("copy", "a", "netblk://"), ("copy", "a", "netblk://h:0"), ("copy", "a", "netblk://h/%4"),
                 ("copy", "--connections", "0", "a", "b"), ("copy", "--connections", "17", "a", "b"),
                 ("copy", "--timeout", "x", "a", "b"), ("copy", "--nonsense", "a", "b")):
        refused(t, *args, status=2)


@test
def test_what_is_not_there(t):
    a = full_image(t.tmp / "a", 4096)
    _, _, uri = serve(t)
    refused(t, "copy", t.tmp / "nothing", t.tmp / "b", words="nothing")
    check(not (t.tmp / "b").exists(), "a target was made for a source that is not there")
    refused(t, "copy", a, t.tmp / "no/folder", words="no such file")
    refused(t, "copy", a, t.tmp, words="directory")
    refused(t, "copy", t.tmp, t.tmp / "b", words="directory")
    refused(t, "copy", a, uri + "x", words="netblk list")
    refused(t, "copy", "--timeout", 2, a, f"netblk://127.0.0.1:{free_port()}", words="refused")


@test
def test_same_disk(t):
    a = full_image(t.tmp / "a", 4096)
    os.link(a, t.tmp / "b")
    _, _, uri = serve(t)
    refused(t, "copy", a, a, words="same")
    refused(t, "copy", a, t.tmp / "b", words="same")
    refused(t, "copy", uri, uri, words="same")


@test
def test_read_only_target(t):
    server = start_export(t, "disk=mem:1M,ro")
    a = full_image(t.tmp / "a", 4096)
    refused(t, "copy", a, f"netblk://127.0.0.1:{server.port}/disk", words="read-only")
    refused(t, "copy", "--force", a, f"netblk://127.0.0.1:{server.port}/disk", words="read-only")


@test
def test_mounted_is_never_written(t):
    image = sparse_image(t.tmp / "image", 16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    loop = attach_loop(t, image)
    refused(t, "copy", full_image(t.tmp / "a", 4096), image, words=loop)
    (t.tmp / "mnt").mkdir()
    subprocess.run(["mount", loop, t.tmp / "mnt"], check=True)
    t.defer(lambda: subprocess.run(["umount", t.tmp / "mnt"]))
    before = image.read_bytes()[:4096]
    for more in ((), ("--force",)):
        refused(t, "copy", *more, t.tmp / "a", loop, words=("mounted", "unmount"))
        refused(t, "copy", *more, t.tmp / "a", image, words="mounted")
    check(image.read_bytes()[:4096] == before, "the mounted disk was written to")
    run(t, "copy", loop, t.tmp / "b")  # reading is allowed


@test
def test_file_of_a_running_server(t):
    _, store, _ = serve(t, size="1M")
    a = full_image(t.tmp / "a", 4096)
    refused(t, "copy", a, store, words=("in use", "--force"))
    run(t, "copy", "--force", a, store)
    _, err = run(t, "copy", store, t.tmp / "b")
    check("in use" in err, f"a note that the source is in use wanted: {err!r}")


@test
def test_full_disk(t):
    small = t.tmp / "small"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", small],
                                           capture_output=True).returncode != 0:
        raise Skip("cannot mount a small file system")
    t.defer(lambda: subprocess.run(["umount", small]))
    a = full_image(t.tmp / "a", 9 * MIB)
    refused(t, "copy", a, small / "b", words="no space")
    (small / "b").unlink()
    server = start_export(t, f"disk=file:{small}/disk?size=9M")
    refused(t, "copy", a, f"netblk://127.0.0.1:{server.port}/disk", words="no space")
    refused(t, "copy", a, "/dev/full", words="no space")


@test
def test_old_server(t):
    old = netblk1.Server(t.tmp / "old.img", MIB)
    t.defer(old.stop)
    refused(t, "copy", full_image(t.tmp / "a", 4096), f"netblk://127.0.0.1:{old.port}", words="netblk/2")


@test
def test_one_writer(t):
    """A copy that waits for its input has the export for itself; readers are welcome."""
    _, _, uri = serve(t)
    a = full_image(t.tmp / "a", 4096)
    first = start(t, "copy", "-", uri, stdin=subprocess.PIPE)
    first.stdin.write(random.randbytes(MIB))
    first.stdin.flush()
    suite.wait_until(lambda: run_status(t, "bench", uri, "--rw", "write", "--yes", "--seconds", "0.1") == 1, 10,
                     "a refused second writer")
    refused(t, "copy", a, uri, words="already")
    run(t, "copy", uri, t.tmp / "b")
    first.stdin.close()
    check_eq(first.wait(), 0, "status of the first copy")
    run(t, "copy", a, uri)


def run_status(t, *args):
    p = start(t, *args)
    p.communicate(timeout=suite.bound(60))
    return p.returncode


# ---- when things break

@test
def test_broken_link(t):
    """The link is cut again and again; the copy goes on, both ways."""
    server, store, _ = serve(t)
    proxy = Proxy(t, server.port)
    a = full_image(t.tmp / "a", 64 * MIB)
    parts = (8, 20, 32, 44, None)
    proxy.hold(sent=parts[0] * MIB)
    p = start(t, "copy", a, f"netblk://127.0.0.1:{proxy.port}/disk")
    for part, following in itertools.pairwise(parts):
        suite.wait_until(lambda: proxy.sent >= part * MIB or p.poll() is not None, 30, "a part of the copy")
        proxy.cut()
        proxy.hold(sent=following and following * MIB)
    _, err = p.communicate()
    check_eq(p.returncode, 0, f"status; {err!r}")
    check(proxy.accepted >= 5, f"{proxy.accepted} connections with 4 cuts")
    check_same(a, store, "the copy over a link that was cut")
    parts = [part and proxy.received + part * MIB for part in parts]
    proxy.hold(received=parts[0])
    back = start(t, "copy", f"netblk://127.0.0.1:{proxy.port}/disk", t.tmp / "b")
    for part, following in itertools.pairwise(parts):
        suite.wait_until(lambda: proxy.received >= part or back.poll() is not None, 30, "a part of the copy back")
        proxy.cut()
        proxy.hold(received=following)
    check_eq(back.wait(), 0, "status of the copy back")
    check_same(a, t.tmp / "b", "the copy back over a link that was cut")


@test
def test_server_killed_and_restarted(t):
    port = free_port()
    server, store, uri = serve(t, port=port)
    proxy = Proxy(t, port)
    proxy.hold(sent=20 * MIB)
    a = full_image(t.tmp / "a", 64 * MIB)
    p = start(t, "copy", a, f"netblk://127.0.0.1:{proxy.port}/disk")
    suite.wait_until(lambda: proxy.sent >= 20 * MIB, 20, "a third of the copy")
    server.kill()
    proxy.hold()
    time.sleep(0.5)
    check(p.poll() is None, "the copy waits for the server")
    serve(t, port=port)
    _, err = p.communicate(timeout=60 * suite.TIME_SCALE)
    check_eq(p.returncode, 0, f"status; {err!r}")
    check_same(a, store, "the copy through a restart")


@test
def test_resume_after_the_server_was_gone(t):
    port = free_port()
    server, store, _ = serve(t, port=port)
    proxy = Proxy(t, port, rate=8 * MIB)
    uri = f"netblk://127.0.0.1:{proxy.port}/disk"
    a = full_image(t.tmp / "a", 64 * MIB)

    def noted():
        return (state_of(t) or {"done_bytes": 0})["done_bytes"]

    def begun():
        """A copy that has noted a position, and cannot end well; or None: the machine stood still for longer than that second."""
        shutil.rmtree(t.tmp / "state", ignore_errors=True)
        proxy.cut()
        proxy.hold(sent=proxy.sent + 48 * MIB)
        p = start(t, "copy", "--timeout", 1, a, uri)
        suite.wait_until(lambda: p.poll() is not None or noted() > 0, 60, "a noted position")
        return p if noted() > 0 else None
    p = suite.wait_until(begun, 60, "a copy that notes its position")
    done = noted()
    server.kill()
    _, err = p.communicate(timeout=suite.bound(60))
    check_eq(p.returncode, 1, f"status when the server is gone; {err!r}")
    check("--resume" in err.decode() and err.count(b"\n") == 1, f"one line that names --resume wanted: {err!r}")
    check(state_of(t)["done_bytes"] >= done, "the noted position went back")
    serve(t, port=port)
    proxy.cut()  # what the first one sent and is on its way still is not counted for the second
    sent = proxy.sent
    proxy.rate = None
    proxy.hold()
    run(t, "copy", "--resume", a, uri)
    check_same(a, store, "the resumed copy")
    check(proxy.sent - sent < 65 * MIB - done, f"{proxy.sent - sent} bytes were sent again")
    check(state_of(t) is None, "the state file is left after success")


@test
def test_resume_after_kill(t):
    server, store, _ = serve(t)
    proxy = Proxy(t, server.port, rate=8 * MIB)
    proxy.hold(sent=48 * MIB)
    uri = f"netblk://127.0.0.1:{proxy.port}/disk"
    a = full_image(t.tmp / "a", 64 * MIB)
    p = start(t, "copy", a, uri)
    wait_state(t)
    p.kill()
    p.wait()
    proxy.cut()  # what the first one sent and is on its way still is not counted for the second
    done = state_of(t)["done_bytes"]
    check(store.read_bytes()[:done] == a.read_bytes()[:done], "what is noted as copied is there")
    sent = proxy.sent
    proxy.rate = None
    proxy.hold()
    run(t, "copy", "--resume", a, uri)
    check_same(a, store, "the resumed copy")
    check(proxy.sent - sent < 64 * MIB - done + MIB, f"{proxy.sent - sent} bytes were sent for {64 * MIB - done}")


@test
def test_interrupt_notes_the_position(t):
    for number in (signal.SIGINT, signal.SIGTERM):
        server, store, _ = serve(t, name=f"disk{number}")
        proxy = Proxy(t, server.port, rate=16 * MIB)
        proxy.hold(sent=8 * MIB)
        uri = f"netblk://127.0.0.1:{proxy.port}/disk{number}"
        a = full_image(t.tmp / "a", 64 * MIB)
        p = start(t, "copy", a, uri)
        suite.wait_until(lambda: proxy.sent >= 8 * MIB, 20, "a part of the copy")
        p.send_signal(number)
        proxy.hold()
        _, err = p.communicate(timeout=30 * suite.TIME_SCALE)
        check_eq(p.returncode, 1, f"status; {err!r}")
        done = state_of(t)["done_bytes"]
        check(done > 0, f"only {done} bytes are noted")
        check(store.read_bytes()[:done] == a.read_bytes()[:done], "what is noted as copied is there")
        run(t, "copy", "--resume", a, uri)
        check_same(a, store, "the resumed copy")


@test
def test_resume_of_a_changed_source(t):
    server, store, _ = serve(t)
    proxy = Proxy(t, server.port, rate=8 * MIB)
    proxy.hold(sent=48 * MIB)
    uri = f"netblk://127.0.0.1:{proxy.port}/disk"
    a = full_image(t.tmp / "a", 64 * MIB)
    p = start(t, "copy", a, uri)
    wait_state(t)
    p.kill()
    p.wait()
    with open(a, "r+b") as f:
        f.write(b"changed")
    proxy.rate = None
    proxy.hold()
    _, err = run(t, "copy", "--resume", a, uri)
    check("has changed" in err and "from the start" in err, f"a note that it begins again wanted: {err!r}")
    check_same(a, store, "the copy of the changed source")


@test
def test_resume_of_a_new_file(t):
    """Into a new file; and when somebody replaced the file meanwhile."""
    server, _, uri = serve(t)
    a = full_image(t.tmp / "a", 64 * MIB)
    run(t, "copy", a, uri)
    for replaced in (False, True):
        b = t.tmp / f"b{replaced}"
        proxy = Proxy(t, server.port)
        proxy.hold(received=32 * MIB)
        through = f"netblk://127.0.0.1:{proxy.port}/disk"
        p = start(t, "copy", through, b)
        wait_state(t)
        p.kill()
        p.wait()
        if replaced:
            b.rename(t.tmp / "old")
            full_image(b, 64 * MIB)
        proxy.hold()
        _, err = run(t, "copy", "--resume", through, b)
        check_eq("from the start" in err, replaced, f"whether it began again; {err!r}")
        check_same(a, b, "the resumed copy")


@test
def test_resume_of_nothing(t):
    a = full_image(t.tmp / "a", MIB)
    _, err = run(t, "copy", "--resume", a, t.tmp / "b")
    check("from the start" in err, f"a note wanted: {err!r}")
    check_same(a, t.tmp / "b")
    (t.tmp / "state/netblk").mkdir(parents=True, exist_ok=True)
    p = start(t, "copy", "--resume", "-", t.tmp / "c", stdin=subprocess.PIPE)
    _, err = p.communicate(b"x" * 1000)
    check_eq((p.returncode, (t.tmp / "c").read_bytes()), (0, b"x" * 1000), "a pipe with --resume")


@test
def test_source_that_changes(t):
    server, _, _ = serve(t)
    proxy = Proxy(t, server.port)
    proxy.hold(sent=MIB)
    a = full_image(t.tmp / "a", 32 * MIB)
    p = start(t, "copy", a, f"netblk://127.0.0.1:{proxy.port}/disk")
    suite.wait_until(lambda: proxy.sent >= MIB, 20, "a part of the copy")
    with open(a, "r+b") as f:
        f.seek(31 * MIB)
        f.write(b"changed")
    proxy.hold()
    _, err = p.communicate(timeout=30 * suite.TIME_SCALE)
    check_eq(p.returncode, 1, "status of a copy whose source changed")
    check(b"changed" in err, f"{err!r}")


@test
def test_failed_flush_is_no_success(t):
    server = start_export(t, f"disk=file:{t.tmp}/disk?size=8M&fault=flush")
    refused(t, "copy", full_image(t.tmp / "a", MIB), f"netblk://127.0.0.1:{server.port}/disk", words="flush")


@test
def test_failing_disk(t):
    server = start_export(t, "bad=mem:8M?fault=write", "poor=mem:8M?fault=read")
    uri = f"netblk://127.0.0.1:{server.port}"
    refused(t, "copy", full_image(t.tmp / "a", MIB), f"{uri}/bad", words="cannot write")
    refused(t, "copy", f"{uri}/poor", t.tmp / "b", words="cannot read")


@test
def test_progress_on_a_terminal_only(t):
    server, _, _ = serve(t)
    proxy = Proxy(t, server.port, rate=32 * MIB)
    a = full_image(t.tmp / "a", 16 * MIB)
    ours, theirs = pty.openpty()
    p = start(t, "copy", a, f"netblk://127.0.0.1:{proxy.port}/disk", stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    check_eq(p.wait(), 0, "status")
    check(b" %" in shown and b"MiB" in shown, f"progress on the terminal wanted: {shown[-200:]!r}")
    check(shown.endswith(b"\r\x1b[K"), "the line is taken away at the end")


if __name__ == "__main__":
    sys.exit(suite.main("errors/test_copy"))
