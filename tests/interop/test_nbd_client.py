#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Our NBD client, through `netblk copy|info|list|bench`, against the servers of others: nbd-server, nbdkit, qemu-nbd,
qemu-storage-daemon."""

import itertools
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys

for folder in ("compat", "errors"):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / folder))
import nbd_target
import suite
from command import MIB, refused, run, start, used_kib
from proxy import Proxy
from serverproc import free_port
from suite import Skip, check, check_eq, test

SIZE = 64 * MIB


def image(t, name="a", size=SIZE):
    """A disk with holes, zeroes that are no hole, and data, some of it at odd places."""
    path = t.tmp / name
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, length in ((0, 4096), (5 * MIB, 3 * MIB), (20 * MIB + 512, 70_000), (size - 1536, 1024)):
            f.seek(offset)
            f.write(random.randbytes(length))
        f.seek(30 * MIB)
        f.write(bytes(2 * MIB))
    return path


def old_data(path):
    """Something that a copy must overwrite, holes included."""
    path.write_bytes(random.randbytes(SIZE))
    return path


def check_same(a, b, what="the copy"):
    done = subprocess.run(["cmp", a, b], capture_output=True, text=True)
    check(done.returncode == 0, f"{what}: {done.stdout}{done.stderr}")


def answers(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        try:
            s.connect(address)
            return bool(s.recv(1))
        except OSError:
            return False


def serve(t, *command, address, forks=False):
    if not shutil.which(command[0]):
        raise Skip(f"{command[0]} is not installed")
    with open(t.tmp / f"server-{command[0]}.log", "ab") as log:
        p = subprocess.Popen([*map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    t.defer(lambda: (p.kill(), p.wait()))
    suite.wait_until(lambda: p.poll() not in ((None, 0) if forks else (None,)) or answers(address), 20,
                     f"{command[0]} that answers")
    check(forks or p.poll() is None, f"{command[0]} ended with {p.poll()}: {(t.tmp / f'server-{command[0]}.log').read_text()[-400:]}")
    return p


def unix(t, export="", name="s"):
    return f"nbd+unix:///{export}?socket={t.tmp / name}"


# ---- the peers: each gives a URI of a writable disk of SIZE bytes

def nbd_server(t, flush=True, more=""):
    port = free_port()
    old_data(t.tmp / "served")
    conf = t.tmp / "nbd.conf"
    conf.write_text(f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\nallowlist = true\n"
                    f"[disk]\nexportname = {t.tmp / 'served'}\n" + (f"flush = true\nfua = true\ntrim = true\n" if flush else "") + more)
    pid = t.tmp / "nbd-server.pid"

    def end():  # a daemon
        if pid.exists():
            os.kill(int(pid.read_text()), 9)
    t.defer(end)
    serve(t, "nbd-server", "-C", conf, "-p", pid, address=("127.0.0.1", port), forks=True)
    return f"nbd://127.0.0.1:{port}/disk"


def nbdkit(t, *arguments, name="s"):
    serve(t, "nbdkit", "-f", "-U", t.tmp / name, *arguments, address=str(t.tmp / name))
    return unix(t, name=name)


def nbdkit_file(t):
    return nbdkit(t, "file", old_data(t.tmp / "served"))


def nbdkit_memory(t):
    return nbdkit(t, "memory", SIZE)


def qemu_nbd(t, *more):
    serve(t, "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "disk", "-D", "a disk", "--discard=unmap", "-k", t.tmp / "s", *more,
          old_data(t.tmp / "served"), address=str(t.tmp / "s"))
    return unix(t, "disk")


def qemu_storage_daemon(t):
    old_data(t.tmp / "served")
    serve(t, "qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={t.tmp / 'served'},discard=unmap",
          "--nbd-server", f"addr.type=unix,addr.path={t.tmp / 's'},max-connections=8",
          "--export", "type=nbd,id=e,node-name=f,name=disk,writable=on", address=str(t.tmp / "s"))
    return unix(t, "disk")


PEERS = {"nbd_server": nbd_server, "nbdkit_memory": nbdkit_memory, "nbdkit_file": nbdkit_file, "qemu_nbd": qemu_nbd,
         "qemu_storage_daemon": qemu_storage_daemon}


def copies_both_ways(t, peer):
    uri = peer(t)
    a = image(t)
    out, err = run(t, "copy", a, uri)
    check_eq((out, err), (b"", ""), "output in a pipe")
    run(t, "copy", uri, t.tmp / "b")
    check_same(a, t.tmp / "b")
    check(used_kib(t.tmp / "b") <= used_kib(a) + 64, "zeroes of an export are holes in a new file")
    out, _ = run(t, "copy", uri, "-")
    check(out == a.read_bytes(), "an export to stdout")


def tells_of_itself(t, peer):
    uri = peer(t)
    told = json.loads(run(t, "info", "--json", uri)[0])
    check_eq((told["protocol"], told["size_bytes"], told["read_only"]), ("nbd", SIZE, False), "info")
    if shutil.which("nbdinfo"):
        theirs = json.loads(subprocess.run(["nbdinfo", "--json", uri], capture_output=True, text=True, check=True).stdout)
        other = theirs["exports"][0]
        check_eq(told["structured_replies"], theirs["structured"], "structured replies, as nbdinfo sees them")
        check_eq(sorted(told["contexts"]), sorted(other.get("contexts", [])), "contexts, as nbdinfo sees them")
        check_eq(told["description"], other.get("description", ""), "the description, as nbdinfo sees it")
        for ours, name in (("size_bytes", "export-size"), ("read_only", "is_read_only"), ("can_flush", "can_flush"),
                           ("can_fua", "can_fua"), ("can_trim", "can_trim"), ("can_zero", "can_zero"), ("can_df", "can_df"),
                           ("can_multi_conn", "can_multi_conn"), ("can_cache", "can_cache"), ("rotational", "is_rotational"),
                           ("can_fast_zero", "can_fast_zero")):
            if other["export-size"] != 0:  # nbd-server tells sizes to who opens the export, and nbdinfo does not
                check_eq(told[ours], other[name], f"{name}, as nbdinfo sees it")
    text = run(t, "info", uri)[0].decode()
    check(str(SIZE) in text and "NBD" in text, f"info in words: {text!r}")
    server = uri.replace("/disk", "/", 1) if "+unix" in uri else uri.removesuffix("/disk")
    listed = json.loads(run(t, "list", "--json", server)[0])
    check_eq([e["name"] for e in listed], [told["export"]], "list")
    # nbd-server tells sizes to who opens the export only.
    check_eq(listed[0]["size_bytes"], None if peer is nbd_server else SIZE, "the size in the list")
    check_eq(listed[0]["description"], told["description"], "the description in the list")


def is_measured(t, peer):
    uri = peer(t)
    for rw in ("randread", "randrw", "write"):
        told = json.loads(run(t, "bench", "--json", "--yes", "--rw", rw, "--seconds", "0.3", "--depth", "16", "--bs",
                              "64K" if rw == "write" else "4K", uri)[0])
        check(told["errors"] == 0 and told["iops"] > 0, f"{rw}: {told}")


for _kind in (copies_both_ways, tells_of_itself, is_measured):
    for _name, _peer in PEERS.items():
        def _test(t, kind=_kind, peer=_peer):
            kind(t, peer)
        _test.__name__ = f"test_{_name}_{_kind.__name__}"
        test(_test)


# ---- what servers lack, or do differently

@test
def test_several_connections_where_they_may_be(t):
    uri = nbdkit(t, "file", old_data(t.tmp / "served"))
    a = image(t)
    _, err = run(t, "copy", "--connections", "4", a, uri)
    check_eq(err, "", "four connections are no matter of a note")
    check_same(a, t.tmp / "served")
    one = nbdkit(t, "--filter=multi-conn", "file", t.tmp / "served", "multi-conn-mode=disable", name="one")
    _, err = run(t, "copy", "--connections", "4", one, t.tmp / "b")
    check("1 connection" in err, f"a note about connections wanted: {err!r}")
    check_same(a, t.tmp / "b")


@test
def test_holes_are_not_read(t):
    server = serve(t, "nbdkit", "-f", "-U", t.tmp / "s", "--filter=stats", "file", image(t), f"statsfile={t.tmp / 'stats'}",
                   address=str(t.tmp / "s"))
    run(t, "copy", unix(t), t.tmp / "b")
    check_same(t.tmp / "a", t.tmp / "b")
    server.terminate()
    server.wait(20 * suite.TIME_SCALE)
    line = next(line for line in (t.tmp / "stats").read_text().splitlines() if line.startswith("read:"))
    amount, unit = line.split(",")[2].split()
    check(unit in ("bytes", "KiB") or (unit == "MiB" and float(amount) < 10), f"a disk with 4 MiB of data was read as {line!r}")


@test
def test_simple_replies_suffice(t):
    uri = nbdkit(t, "--no-sr", "file", old_data(t.tmp / "served"))
    check_eq(json.loads(run(t, "info", "--json", uri)[0])["structured_replies"], False, "structured replies")
    a = image(t)
    run(t, "copy", a, uri)
    run(t, "copy", uri, t.tmp / "b")
    check_same(a, t.tmp / "b")


@test
def test_newstyle_that_is_not_fixed(t):
    uri = nbdkit(t, "--mask-handshake=0", "file", old_data(t.tmp / "served"))
    a = image(t)
    run(t, "copy", a, uri)
    run(t, "copy", uri, t.tmp / "b")
    check_same(a, t.tmp / "b")
    check_eq(json.loads(run(t, "info", "--json", uri)[0])["size_bytes"], SIZE, "the size")
    refused(t, "list", uri, words=("list",))


@test
def test_oldstyle_is_refused_by_name(t):
    refused(t, "info", nbdkit(t, "--oldstyle", "memory", SIZE), words=("oldstyle",))


@test
def test_a_server_that_wants_tls_is_refused_by_name(t):
    (t.tmp / "psk").write_text("alice:" + "00" * 32 + "\n")
    try:
        uri = nbdkit(t, "--tls=require", f"--tls-psk={t.tmp / 'psk'}", "memory", SIZE)
    except AssertionError as e:
        raise Skip(f"this nbdkit has no TLS: {e}") from None
    for command in (("info", uri), ("list", uri), ("copy", uri, t.tmp / "b")):
        refused(t, *command, words=("TLS",))


@test
def test_filters_that_take_away(t):
    """Without extents, zeroes or cache, and one request at a time."""
    for i, filters in enumerate((["--filter=noextents"], ["--filter=nozero"], ["--filter=noparallel"],
                                 ["--filter=nocache"])):
        uri = nbdkit(t, *filters, "file", old_data(t.tmp / "served"), name=f"s{i}")
        a = image(t)
        run(t, "copy", a, uri)
        check_same(a, t.tmp / "served", str(filters))
        (t.tmp / "b").unlink(missing_ok=True)
        run(t, "copy", uri, t.tmp / "b")
        check_same(a, t.tmp / "b", str(filters))


@test
def test_a_server_without_flush_is_said(t):
    uri = nbd_server(t, flush=False)
    _, err = run(t, "copy", image(t), uri)
    check("no flush" in err, f"a note about the missing flush wanted: {err!r}")


@test
def test_block_sizes_are_kept(t):
    uri = nbdkit(t, "--filter=blocksize-policy", "file", old_data(t.tmp / "served"), "blocksize-minimum=4096",
                 "blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error")
    told = json.loads(run(t, "info", "--json", uri)[0])
    check_eq((told["block_bytes"], told["preferred_bytes"], told["max_payload_bytes"]), (4096, 65536, 131072), "block sizes")
    a = image(t)
    run(t, "copy", a, uri)
    run(t, "copy", uri, t.tmp / "b")
    check_same(a, t.tmp / "b")
    short = t.tmp / "short"
    short.write_bytes(random.randbytes(4096 + 777))
    run(t, "copy", short, uri)
    out, _ = run(t, "copy", uri, "-")
    check(out[:4096 + 777] == short.read_bytes() and out[4096 + 777:8192] == bytes(8192 - 4096 - 777), "the rest of a block is zeroes")


@test
def test_an_odd_size(t):
    odd = t.tmp / "odd"
    odd.write_bytes(random.randbytes(3 * MIB + 777))
    run(t, "copy", nbdkit(t, "file", odd), t.tmp / "b")
    check_same(odd, t.tmp / "b")


@test
def test_long_requests_are_split(t):
    uri = nbdkit(t, "--filter=blocksize-policy", "memory", SIZE, "blocksize-maximum=64K", "blocksize-minimum=512",
                 "blocksize-preferred=4096", "blocksize-error-policy=error")
    told = json.loads(run(t, "bench", "--json", "--rw", "read", "--bs", "4M", "--depth", "4", "--seconds", "0.3", uri)[0])
    check(told["errors"] == 0 and told["iops"] > 0, f"{told}")


@test
def test_errors_are_told(t):
    uri = nbdkit(t, "--filter=error", "file", image(t), "error-pread=EIO", "error-pread-rate=100%")
    refused(t, "copy", uri, t.tmp / "b", words=("cannot read", "Input/output error"))
    full = nbdkit(t, "--filter=error", "memory", SIZE, "error-pwrite=ENOSPC", "error-pwrite-rate=100%", name="full")
    refused(t, "copy", image(t), full, words=("cannot write", "No space left"))
    read_only = nbdkit(t, "-r", "memory", SIZE, name="ro")
    check_eq(json.loads(run(t, "info", "--json", read_only)[0])["read_only"], True, "read_only")
    refused(t, "copy", image(t), read_only, words=("read-only",))


@test
def test_slow_answers_are_waited_for(t):
    uri = nbdkit(t, "--filter=delay", "file", image(t), "delay-read=50ms", "delay-extents=200ms")
    run(t, "copy", uri, t.tmp / "b")
    check_same(t.tmp / "a", t.tmp / "b")


@test
def test_an_export_that_is_not_there(t):
    qemu_nbd(t)
    refused(t, "info", unix(t, "other"), words=("other",))
    refused(t, "copy", unix(t, "other"), t.tmp / "b", words=("other",))


# ---- URIs

@test
def test_uris(t):
    for uri, word in (("nbds://localhost/disk", "TLS"), ("nbds+unix:///?socket=/x", "TLS"), ("nbd+vsock://1/", "vsock"),
                      ("nbd+unix:///disk", "socket"), ("nbd+unix://host/disk?socket=/x", "host"), ("nbd://me@localhost/", "TLS"),
                      ("nbd://localhost/?tls-type=psk", "TLS"), ("nbd://localhost/?socket=/x", "socket"),
                      ("nbd://localhost/?mode=fast", "mode"), ("nbd://localhost:0/", "port"), ("nbd://::1/", "IPv6"),
                      ("nbd:///disk", "host"), ("nbd://localhost/%zz", "%"), ("nbd://localhost/a%00b", "zero byte"),
                      ("nbd://localhost/" + "x" * 5000, "4096"), ("nbd+unix:///?socket=" + "x" * 200, "107"),
                      ("nbd://localhost/a#b", "%23")):
        refused(t, "info", uri, status=2, words=(word,))


@test
def test_names_in_uris(t):
    """Percent-encoded, with a slash in front, empty; and a socket with a blank in its path."""
    folder = t.tmp / "two words"
    folder.mkdir()
    for export, encoded in (("/disk", "/disk"), ("hello world", "hello%20world"), ("ünï?#%", "%C3%BCn%C3%AF%3F%23%25")):
        path = folder / f"s{len(encoded)}"
        serve(t, "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", export, "-k", path, image(t), address=str(path))
        uri = f"nbd+unix:///{encoded}?socket={str(path).replace(' ', '%20')}"
        told = json.loads(run(t, "info", "--json", uri)[0])
        check_eq((told["export"], told["uri"]), (export, uri), "the name, and the URI again")


@test
def test_ipv6(t):
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as e:
        raise Skip(f"no IPv6 here: {e}") from None
    port = free_port()
    p = subprocess.Popen(["nbdkit", "-f", "-p", str(port), "memory", str(SIZE)], stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    t.defer(lambda: (p.kill(), p.wait()))
    suite.wait_until(lambda: answers(("127.0.0.1", port)), 20, "nbdkit that answers")
    check_eq(json.loads(run(t, "info", "--json", f"nbd://[::1]:{port}")[0])["size_bytes"], SIZE, "the size")


# ---- our own server, which has what no other of Debian's has

GIB = 1 << 30
PIECES = ((0, 65536), (5 * GIB + 512, 70_000), (12 * GIB - MIB, MIB))


def pieces(path):
    with open(path, "rb") as f:
        return [os.pread(f.fileno(), length, at) for at, length in PIECES]


def large(t, name):
    path = nbd_target.image(t, 12 * GIB, name)
    with open(path, "r+b") as f:
        for at, length in PIECES:
            f.seek(at)
            f.write(random.randbytes(length))
    return path


def asked(trace, command):
    """The lengths of a trace's requests of one kind."""
    words = [line.split() for line in trace.read_text().splitlines()]
    return [int(w[5]) for w in words if w[3] == command]


@test
def test_extended_headers_with_our_own_server(t):
    """They are agreed on, and holes of more than 4 GiB are asked for, skipped and made in single requests."""
    a, log = large(t, "a.img"), t.tmp / "trace"
    s = nbd_target.start(t, path=a, more=["--trace", log])
    told = json.loads(run(t, "info", "--json", s.uri_of("disk"))[0])
    check_eq((told["extended_headers"], told["size_bytes"]), (True, 12 * GIB), "info")
    check("extended headers" in run(t, "info", s.uri_of("disk"))[0].decode(), "info in words")
    listed = json.loads(run(t, "list", "--json", s.uri)[0])
    check_eq([(e["name"], e["size_bytes"]) for e in listed], [("disk", 12 * GIB)], "list")
    run(t, "copy", s.uri_of("disk"), t.tmp / "b.img")
    check(pieces(t.tmp / "b.img") == pieces(a), "the data of the copy")
    check_eq((t.tmp / "b.img").stat().st_size, 12 * GIB, "the size of the copy")
    check(used_kib(t.tmp / "b.img") <= used_kib(a) + 64, "holes are holes in the copy")
    s.server.stop()
    check(max(asked(log, "block-status")) > 4 * GIB, "a block status of more than 4 GiB")
    check(sum(asked(log, "read")) < 64 * MIB, "holes are not read")
    # The other way: what a hole of the source replaces is zeroed in few requests.
    c, log = nbd_target.image(t, 12 * GIB, "c.img"), t.tmp / "trace2"
    with open(c, "r+b") as f:
        f.seek(3 * GIB)
        f.write(random.randbytes(MIB))
    s = nbd_target.start(t, path=c, more=["--trace", log])
    run(t, "copy", a, s.uri_of("disk"))
    s.server.stop()
    check(pieces(c) == pieces(a), "the data of the copy back")
    with open(c, "rb") as f:
        check(os.pread(f.fileno(), MIB, 3 * GIB) == bytes(MIB), "what was there before is gone")
    check(sum(asked(log, "write")) < 64 * MIB, "holes are not written")


@test
def test_one_long_question_that_fails_makes_not_blind(t):
    a, log = large(t, "a.img"), t.tmp / "trace"
    s = nbd_target.start(t, path=a, options=["fault=status", "fault-count=1"], more=["--trace", log])
    run(t, "copy", s.uri_of("disk"), t.tmp / "b.img")
    check(pieces(t.tmp / "b.img") == pieces(a), "the data of the copy")
    check(used_kib(t.tmp / "b.img") <= used_kib(a) + 64, "holes are holes in the copy")
    s.server.stop()
    first, *others = asked(log, "block-status")
    check(first > 4 * GIB and others and max(others) <= GIB, f"a long question and short ones, not {first} and {others}")
    check(sum(asked(log, "read")) < 64 * MIB, "holes are not read")


@test
def test_our_own_server_is_measured(t):
    told = json.loads(run(t, "bench", "--json", "--rw", "randread", "--seconds", "0.3", "--depth", "16",
                          nbd_target.start(t, size=SIZE).uri_of("disk"))[0])
    check(told["errors"] == 0 and told["iops"] > 0, f"{told}")


# ---- links that go away

def over_tcp(t, port):
    """qemu-nbd: Debian's nbdkit aborts when a client resets a connection with replies queued."""
    return serve(t, "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-x", "disk", "-b", "127.0.0.1", "-p", port, t.tmp / "served",
                 address=("127.0.0.1", port))


@test
def test_reading_survives_cuts(t):
    port = free_port()
    image(t, "served")
    full = (t.tmp / "served")
    with open(full, "r+b") as f:
        f.write(random.randbytes(48 * MIB))
    over_tcp(t, port)
    proxy = Proxy(t, port)
    parts = (8, 16, 24, None)
    proxy.hold(received=parts[0] * MIB)
    p = start(t, "copy", f"nbd://127.0.0.1:{proxy.port}/disk", t.tmp / "b")
    for part, following in itertools.pairwise(parts):
        suite.wait_until(lambda: proxy.received >= part * MIB or p.poll() is not None, 30, "a part of the copy")
        proxy.cut()
        proxy.hold(received=following and following * MIB)
    _, err = p.communicate(timeout=60 * suite.TIME_SCALE)
    check_eq(p.returncode, 0, f"status; {err!r}")
    check_same(full, t.tmp / "b")


def cut_while_writing(t, *options):
    port = free_port()
    old_data(t.tmp / "served")
    over_tcp(t, port)
    proxy = Proxy(t, port)
    parts = (8, 20, 32, None)
    proxy.hold(sent=parts[0] * MIB)
    a = t.tmp / "a"
    a.write_bytes(random.randbytes(SIZE))
    p = start(t, "copy", *options, a, f"nbd://127.0.0.1:{proxy.port}/disk")
    for part, following in itertools.pairwise(parts):
        suite.wait_until(lambda: proxy.sent >= part * MIB or p.poll() is not None, 30, "a part of the copy")
        proxy.cut()
        proxy.hold(sent=following and following * MIB)
    _, err = p.communicate(timeout=60 * suite.TIME_SCALE)
    return a, p.returncode, err.decode()


@test
def test_a_reconnect_with_unflushed_writes_is_a_loss(t):
    _, status, err = cut_while_writing(t)
    check_eq(status, 1, f"status; {err!r}")
    check("not flushed" in err and err.count("\n") == 1, f"the loss in one line wanted: {err!r}")


@test
def test_a_reconnect_that_is_trusted(t):
    a, status, err = cut_while_writing(t, "--reconnect", "trust")
    check_eq(status, 0, f"status; {err!r}")
    check_same(a, t.tmp / "served")


@test
def test_a_loss_is_made_good_by_resume(t):
    a, status, err = cut_while_writing(t)
    check_eq(status, 1, f"status; {err!r}")
    port = free_port()
    over_tcp(t, port)
    run(t, "copy", "--resume", a, f"nbd://127.0.0.1:{port}/disk")
    check_same(a, t.tmp / "served")


@test
def test_a_server_that_stays_away(t):
    port = free_port()
    image(t, "served")
    server = over_tcp(t, port)
    proxy = Proxy(t, port)
    p = start(t, "copy", "--timeout", "1", f"nbd://127.0.0.1:{proxy.port}/disk", t.tmp / "b")
    suite.wait_until(lambda: proxy.received > 0 or p.poll() is not None, 20, "the beginning")
    server.kill()
    proxy.close()
    _, err = p.communicate(timeout=60 * suite.TIME_SCALE)
    check(p.returncode in (0, 1), f"status {p.returncode}; {err!r}")
    refused(t, "info", f"nbd://127.0.0.1:{port}/disk", words=("connect",))


@test
def test_another_disk_is_not_gone_on_with(t):
    """A smaller export behind the same name: the client does not write to it."""
    port = free_port()
    old_data(t.tmp / "served")
    server = over_tcp(t, port)
    proxy = Proxy(t, port)
    proxy.hold(sent=4 * MIB)
    a = t.tmp / "a"
    a.write_bytes(random.randbytes(SIZE))
    p = start(t, "copy", "--reconnect", "trust", a, f"nbd://127.0.0.1:{proxy.port}/disk")
    suite.wait_until(lambda: proxy.sent >= 4 * MIB, 30, "the beginning")
    server.kill()
    server.wait()
    proxy.hold()
    os.truncate(t.tmp / "served", 32 * MIB)
    before = (t.tmp / "served").read_bytes()
    over_tcp(t, port)
    _, err = p.communicate(timeout=60 * suite.TIME_SCALE)
    check_eq(p.returncode, 1, f"status; {err!r}")
    check(b"not what it was" in err, f"the reason wanted: {err!r}")
    check((t.tmp / "served").read_bytes() == before, "the other disk is as it was")


if __name__ == "__main__":
    sys.exit(suite.main("nbd_client"))
