#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What goes into volumes and out of them: send and receive, broken in every way; import and export; what NBD tells of changes."""

import array
import fcntl
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import nbd
import serverproc
import suite
from command import MIB, refused, run
from suite import check, check_eq, test

BLOCK = 4096
HEADER, RECORD = 512, 48


def make(t, name="v", size="8M"):
    path = t.tmp / name
    run(t, "volume", "create", path, "--size", size)
    return path


def serve(t, *stores):
    port = serverproc.free_port()
    args = [word for store in stores for word in ("--export", store)]
    return serverproc.Server(t, [*args, "--listen", f"nbd://127.0.0.1:{port}"], [port])


def told(t, *words):
    return json.loads(run(t, "volume", *words, "--json")[0])


class Disk:
    """The head of a volume behind a server, for a while, and what it must have."""

    def __init__(self, t, path, model):
        self.t, self.path, self.model = t, path, model

    def __enter__(self):
        self.server = serve(self.t, f"d=vol:{self.path}")
        self.client = nbd.Client(("127.0.0.1", self.server.port))
        self.client.go("d")
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.stop()

    def write(self, at, data):
        self.client.write(at, data)
        self.model[at:at + len(data)] = data

    def zero(self, at, n, trim):
        (self.client.trim if trim else self.client.zero)(at, n)
        self.model[at:at + n] = bytes(n)

    def some(self, rng, steps):
        for _ in range(steps):
            n = rng.choice((512, BLOCK, 3 * BLOCK, 65536))
            at = rng.randrange(0, (len(self.model) - n) // 512 + 1) * 512
            if rng.randrange(4) == 0:
                self.zero(at, n, rng.randrange(2) == 0)
            else:
                self.write(at, rng.randbytes(n))


def snapshot(t, path, name):
    run(t, "volume", "snapshot", f"{path}@{name}")


def content(t, point):
    return run(t, "volume", "export", point, "-")[0]


def send(t, what, *more):
    return run(t, "volume", "send", what, *more)[0]


def receive(t, path, stream, **kw):
    return run(t, "volume", "receive", path, input=stream, **kw)


def token(t, path):
    return run(t, "volume", "receive", "--status", path)[0].decode().strip()


def records(stream):
    """Offsets where the records begin, and the end."""
    at, ends = HEADER, []
    while at < len(stream):
        check_eq(stream[at:at + 4], b"NVSR", f"a record at {at}")
        ends.append(at)
        at += RECORD + struct.unpack_from("<I", stream, at + 20)[0]
    check_eq(at, len(stream), "the end of the last record")
    return ends


def source(t, steps=30):
    """A volume with snapshots a and b, and what they have."""
    path, model, rng = make(t, "source"), bytearray(8 * MIB), random.Random(suite.SEED)
    pictures = {}
    for name in ("a", "b"):
        with Disk(t, path, model) as disk:
            disk.some(rng, steps)
        snapshot(t, path, name)
        pictures[name] = bytes(model)
    return path, pictures


# ---- send and receive

@test
def test_whole_and_changes(t):
    path, pictures = source(t)
    whole = send(t, f"{path}@a")
    copy = t.tmp / "copy"
    check_eq(receive(t, copy, whole), (b"", ""), "what `receive` says")
    check(content(t, copy) == pictures["a"], "the disk")
    check(content(t, f"{copy}@a") == pictures["a"], "the snapshot")
    generation = told(t, "info", copy)["generation"]
    changes = send(t, f"{path}@a..b")
    check(len(changes) < len(send(t, f"{path}@b")), "changes are fewer than all")
    receive(t, copy, changes)
    check(content(t, copy) == pictures["b"] and content(t, f"{copy}@a") == pictures["a"], "both")
    check(told(t, "info", copy)["generation"] > generation, "the generation moves")
    check_eq([each["name"] for each in told(t, "list", copy)], ["a", "b"], "names")
    check_eq(told(t, "check", copy)["damage"], [], "check")
    # And on, from the copy, which gives on what it was given.
    third = t.tmp / "third"
    receive(t, third, send(t, f"{copy}@a"))
    receive(t, third, changes)
    check(content(t, f"{third}@b") == pictures["b"], "by way of a copy")
    # And back: what is new in the copy comes to the first one.
    model = bytearray(pictures["b"])
    with Disk(t, copy, model) as disk:
        disk.some(random.Random(3), 10)
    snapshot(t, copy, "c")
    receive(t, path, send(t, f"{copy}@b..c"))
    check(content(t, path) == bytes(model), "the way back")


@test
def test_files_and_names(t):
    path, pictures = source(t, 5)
    run(t, "volume", "send", f"{path}@a", "--output", t.tmp / "stream")
    run(t, "volume", "receive", t.tmp / "copy", "--input", t.tmp / "stream")
    check(content(t, t.tmp / "copy") == pictures["a"], "through a file")
    refused(t, "volume", "send", f"{path}@a", "--output", t.tmp / "stream", words=("stream", "there"))
    long_names = ("x" * 64, "y" * 64, "d..e")
    for name in long_names:
        snapshot(t, path, name)
    send(t, f"{path}@{long_names[0]}..{long_names[1]}")
    whole = send(t, f"{path}@d..e")
    receive(t, t.tmp / "dots", whole)
    check_eq([each["name"] for each in told(t, "list", t.tmp / "dots")], ["d..e"], "a name with dots")


@test
def test_what_is_not_sent(t):
    path, _ = source(t, 2)
    refused(t, "volume", "send", path, words=("snapshot", "@A..B"), status=2)
    for name in ("never", "a..never", "never..b"):
        refused(t, "volume", "send", f"{path}@{name}", words=("never", "netblk volume snapshot"))
    refused(t, "volume", "send", f"{path}@a..a", words="itself")
    for name in ("-10m", "..b", "a b"):
        refused(t, "volume", "send", f"{path}@{name}", words="snapshot", status=2)
    refused(t, "volume", "send", f"{path}@a..", words="snapshot")
    refused(t, "volume", "send", t.tmp / "none@a", words="no volume")
    for bad, status in (("x", 2), ("nvr1-", 2), ("nvr1-" + "0" * 32, 1), ("nvr1-" + "g" * 32, 2)):
        refused(t, "volume", "send", f"{path}@b", "--resume", bad, words=("token", "--status"), status=status)


@test
def test_wrong_bases(t):
    path, pictures = source(t, 5)
    changes, whole = send(t, f"{path}@a..b"), send(t, f"{path}@a")
    refused(t, "volume", "receive", t.tmp / "none", input=changes, words=("no volume", "'a'"))
    check(not (t.tmp / "none").exists(), "nothing is made")
    refused(t, "volume", "receive", make(t, "other"), input=changes, words=("'a'", "does not have"))
    # A snapshot of that name, of another volume.
    snapshot(t, t.tmp / "other", "a")
    refused(t, "volume", "receive", t.tmp / "other", input=changes, words="does not have")
    copy = t.tmp / "copy"
    receive(t, copy, whole)
    refused(t, "volume", "receive", copy, input=whole, words="there already")
    with Disk(t, copy, bytearray(pictures["a"])) as disk:
        disk.write(0, b"x" * 512)
    refused(t, "volume", "receive", copy, input=changes, words=("written to", "rollback"))
    receive(t, path, b"", status=1)
    refused(t, "volume", "receive", path, input=changes, words="there already")


@test
def test_no_stream(t):
    copy = t.tmp / "copy"
    for bad in (b"", b"x", bytes(4 * HEADER), random.Random(1).randbytes(4 * HEADER)):
        refused(t, "volume", "receive", copy, input=bad, words="stream")
        check(not copy.exists(), "nothing is made")
    refused(t, "volume", "receive", "--status", t.tmp / "none", words="no volume")
    refused(t, "volume", "receive", "--status", make(t), words="unfinished")
    refused(t, "volume", "receive", "--abort", t.tmp / "v", words="unfinished")
    refused(t, "volume", "receive", "--abort", "--status", t.tmp / "v", status=2)
    refused(t, "volume", "receive", "--status", "--input", "x", t.tmp / "v", status=2)


def broken(t, stream, copy, pictures):
    """Refused in one line, and nothing of it is seen: the disk is as it was."""
    err = refused(t, "volume", "receive", copy, input=stream)
    check_eq([each["name"] for each in told(t, "list", copy)], ["a"], f"snapshots after {err!r}")
    check(content(t, copy) == pictures["a"], f"the disk after {err!r}")
    return err


@test
def test_bit_flips_and_truncations(t):
    path, pictures = source(t, 8)
    copy = t.tmp / "copy"
    receive(t, copy, send(t, f"{path}@a"))
    changes = send(t, f"{path}@a..b")
    rng = random.Random(suite.SEED)
    starts = records(changes)
    # Each byte of the header and of a record's fixed part matters; and some of the payload.
    places = [rng.randrange(HEADER) for _ in range(4)]
    places += [start + offset for start in (starts[0], starts[-1]) for offset in rng.sample(range(RECORD), 3)]
    places += [rng.randrange(HEADER, len(changes)) for _ in range(6)]
    for at in places:
        bad = bytearray(changes)
        bad[at] ^= 1 << rng.randrange(8)
        broken(t, bytes(bad), copy, pictures)
    cuts = rng.sample(starts, min(4, len(starts))) + [starts[-1], starts[-1] + 1, len(changes) - 1]
    for at in cuts:
        err = broken(t, changes[:at], copy, pictures)
        check("before its end" in err and "--resume" in err, err)
    # A record that is missing, or comes twice.
    for at, again in ((starts[0], 0), (starts[0], 2)):
        end = starts[1]
        broken(t, changes[:at] + changes[at:end] * again + changes[end:], copy, pictures)
    # Half of it is there: nobody may have what it stands on.
    refused(t, "volume", "delete", f"{copy}@a", words="unfinished")
    refused(t, "volume", "snapshot", f"{copy}@c", words="unfinished")
    s = serve(t, f"d=vol:{copy}")
    client = nbd.Client(("127.0.0.1", s.port))
    client.go("d")
    check(client.flags & nbd.READ_ONLY, "the disk is read-only until the end")
    check_eq(client.read(0, MIB), pictures["a"][:MIB], "and as it was")
    client.close()
    s.stop()
    receive(t, copy, changes)
    check(content(t, copy) == pictures["b"], "the disk, in the end")


@test
def test_resume_and_abort(t):
    path, pictures = source(t)
    copy = t.tmp / "copy"
    whole = send(t, f"{path}@a")
    starts = records(whole)
    middle = starts[len(starts) // 2]
    err = refused(t, "volume", "receive", copy, input=whole[:middle + 7], words="--resume")
    mark = token(t, copy)
    check(mark in err, f"{mark} in {err!r}")
    status = json.loads(run(t, "volume", "receive", "--status", "--json", copy)[0])
    check(0 < status["done_bytes"] < 8 * MIB and status["token"] == mark and status["name"] == "a", f"{status}")
    check(content(t, copy) == bytes(8 * MIB), "an empty disk until the end")
    rest = send(t, f"{path}@a", "--resume", mark)
    check(len(rest) < len(whole), "the rest is less than all")
    refused(t, "volume", "send", f"{path}@b", "--resume", mark, words="another transfer")
    refused(t, "volume", "receive", copy, input=send(t, f"{path}@b"), words=("unfinished", "--abort"))
    refused(t, "volume", "receive", t.tmp / "new", input=rest, words="no volume")
    receive(t, copy, rest)
    check(content(t, copy) == pictures["a"] and content(t, f"{copy}@a") == pictures["a"], "in two parts")
    refused(t, "volume", "receive", "--status", copy, words="unfinished")
    # Given up: as before, and another can be received.
    changes = send(t, f"{path}@a..b")
    refused(t, "volume", "receive", copy, input=changes[:records(changes)[-1]], words="--resume")
    run(t, "volume", "receive", "--abort", copy)
    check(content(t, copy) == pictures["a"], "given up")
    receive(t, copy, changes)
    check(content(t, copy) == pictures["b"], "and received after all")


def taken(pipe):
    """Bytes that nobody has read yet."""
    left = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, left)
    return left[0]


@test
def test_killed_and_resumed(t):
    """kill -9 in the middle, again and again; each time it goes on from where it says it is."""
    path, rng = make(t, "source", "64M"), random.Random(suite.SEED)
    model = bytearray(64 * MIB)
    with Disk(t, path, model) as disk:
        for at in range(0, 48 * MIB, MIB):
            disk.write(at, rng.randbytes(MIB))
    snapshot(t, path, "a")
    copy, marks, stream = t.tmp / "copy", [], send(t, f"{path}@a")
    for stop in (20, 12, 20):
        p = command.start(t, "volume", "receive", copy, stdin=subprocess.PIPE)
        p.stdin.write(stream[:min(stop * MIB, len(stream) - RECORD)])
        p.stdin.flush()
        deadline = time.monotonic() + suite.bound(60)
        while taken(p.stdin) and p.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        p.send_signal(signal.SIGKILL)
        p.wait()
        mark = json.loads(run(t, "volume", "receive", "--status", "--json", copy)[0])
        marks.append(mark["done_bytes"])
        stream = send(t, f"{path}@a", "--resume", mark["token"])
        check(content(t, copy) == bytes(64 * MIB), "nothing is seen of it")
    check_eq(marks, sorted(marks), "it never goes back")
    check(marks[-1] > 0, f"how far it was: {marks}")
    receive(t, copy, stream)
    check(content(t, copy) == bytes(model), "the disk")
    check_eq(told(t, "check", copy)["damage"], [], "check")


@test
def test_beside_a_server(t):
    path, pictures = source(t, 5)
    s = serve(t, f"d=vol:{path}")
    copy = t.tmp / "copy"
    receive(t, copy, send(t, f"{path}@a"))
    s2 = serve(t, f"d=vol:{copy}")
    refused(t, "volume", "receive", copy, input=send(t, f"{path}@a..b"), words="in use")
    refused(t, "volume", "export", copy, "-", words=("server", "snapshot"))
    check(content(t, f"{copy}@a") == pictures["a"], "a snapshot is exported beside a server")
    command.run(t, "volume", "clone", f"{copy}@a", "mine")
    refused(t, "volume", "export", f"{copy}@mine", "-", words=("server", "--of mine"))
    s2.stop()
    # Who serves only the snapshot is in nobody's way.
    s2 = serve(t, f"a=vol:{copy}@a")
    receive(t, copy, send(t, f"{path}@a..b"))
    s2.stop()
    s.stop()
    check(content(t, copy) == pictures["b"], "received beside a server")


@test
def test_a_disk_in_use_is_not_written_over(t):
    if os.geteuid() != 0 or not os.path.exists("/dev/loop-control"):
        raise suite.Skip("needs root and /dev/loop-control")
    path, pictures = source(t, 6)
    image = t.tmp / "image"
    image.write_bytes(bytes(len(pictures["a"])))
    loop = subprocess.run(["losetup", "-f", "--show", image], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    t.defer(lambda: subprocess.run(["losetup", "-d", loop], check=False))
    held = os.open(loop, os.O_RDWR | os.O_EXCL)  # as a mount does
    before = image.read_bytes()
    refused(t, "volume", "export", f"{path}@a", loop, words="in use")
    check(image.read_bytes() == before, "nothing was written")
    os.close(held)
    command.run(t, "volume", "export", f"{path}@a", loop)
    check(image.read_bytes() == pictures["a"], "a device of the same size has it all")


@test
def test_many_snapshots(t):
    path, model, rng = make(t, "source"), bytearray(8 * MIB), random.Random(suite.SEED)
    count, pictures = 12, []
    for i in range(count):
        with Disk(t, path, model) as disk:
            disk.some(rng, 6)
        snapshot(t, path, f"s{i}")
        pictures.append(bytes(model))
    copy = t.tmp / "copy"
    receive(t, copy, send(t, f"{path}@s0"))
    i = 0
    while i < count - 1:
        j = rng.randrange(i + 1, count)
        receive(t, copy, send(t, f"{path}@s{i}..s{j}"))
        check(content(t, f"{copy}@s{j}") == pictures[j], f"s{i}..s{j}")
        i = j


# ---- import and export

@test
def test_import_and_export(t):
    rng = random.Random(suite.SEED)
    image = bytearray(3 * MIB + 512)
    for at in range(0, len(image), 300_000):
        image[at:at + 5000] = rng.randbytes(5000)
    image = bytes(image[:3 * MIB + 512])
    raw = t.tmp / "raw"
    raw.write_bytes(image)
    run(t, "volume", "import", t.tmp / "v", raw)
    check_eq(told(t, "info", t.tmp / "v")["size_bytes"], len(image), "size")
    check(told(t, "info", t.tmp / "v")["live_bytes"] < MIB, "zeroes take no space")
    run(t, "volume", "export", t.tmp / "v", t.tmp / "out")
    check((t.tmp / "out").read_bytes() == image, "the way out")
    check(command.used_kib(t.tmp / "out") < 1600, f"{command.used_kib(t.tmp / 'out')} KiB of a sparse file")
    refused(t, "volume", "export", t.tmp / "v", t.tmp / "out", words="there")
    run(t, "volume", "import", t.tmp / "piped", "-", "--size", "4M", input=image)
    check(content(t, t.tmp / "piped") == image + bytes(4 * MIB - len(image)), "from a pipe")
    # An odd end is filled up.
    (t.tmp / "odd").write_bytes(b"x" * 700)
    run(t, "volume", "import", t.tmp / "o", t.tmp / "odd")
    check_eq(content(t, t.tmp / "o"), b"x" * 700 + bytes(324), "an odd end")
    # A hole of a terabyte is not read.
    with open(t.tmp / "sparse", "wb") as f:
        f.truncate(1 << 40)
        f.seek((1 << 39) + 512)
        f.write(b"middle")
    run(t, "volume", "import", t.tmp / "large", t.tmp / "sparse")
    check_eq(told(t, "info", t.tmp / "large")["size_bytes"], 1 << 40, "size")
    check(told(t, "info", t.tmp / "large")["live_bytes"] <= 65536, "one block of data")


@test
def test_what_a_new_volume_is_like(t):
    path, pictures = source(t, 5)
    key = t.tmp / "key"
    key.write_bytes(b"k" * 32)
    how = ("--encrypt", "--key-file", key, "--compress", "zstd", "--history", "2h")
    raw = t.tmp / "raw"
    raw.write_bytes(pictures["a"])
    stream = run(t, "volume", "send", f"{path}@a")[0]
    run(t, "volume", "import", t.tmp / "i", raw, *how)
    run(t, "volume", "receive", t.tmp / "r", *how, input=stream)
    for made in ("i", "r"):
        info = told(t, "info", t.tmp / made, "--key-file", key)
        check((info["encrypted"], info["settings"]["compress"], info["settings"]["history"]) == (True, "zstd", "2h"), f"{info}")
        check(run(t, "volume", "export", t.tmp / made, "-", "--key-file", key)[0] == pictures["a"], "the disk")
    for words in (("import", t.tmp / "w", raw), ("receive", t.tmp / "w")):
        refused(t, "volume", *words, "--compress", "best", input=stream, words="compress", status=2)
        refused(t, "volume", *words, "--key-file", key, input=stream, words="--encrypt", status=2)
        check(not (t.tmp / "w").exists(), "nothing was made")
    changes = run(t, "volume", "send", f"{path}@a..b")[0]
    refused(t, "volume", "receive", t.tmp / "r", *how, input=changes, words="there already")
    refused(t, "volume", "receive", "--status", "--encrypt", t.tmp / "r", status=2)


@test
def test_import_refuses(t):
    raw = t.tmp / "raw"
    raw.write_bytes(bytes(MIB))
    path = make(t)
    refused(t, "volume", "import", path, raw, words="not empty")
    refused(t, "volume", "import", t.tmp / "w", t.tmp / "none", words="none")
    refused(t, "volume", "import", t.tmp / "w", "-", input=b"x", words="--size")
    refused(t, "volume", "import", t.tmp / "w", "-", "--size", "512", input=bytes(1024), words="longer")
    refused(t, "volume", "import", t.tmp / "w", raw, "--size", "512K", words="less")
    refused(t, "volume", "import", t.tmp / "w", raw, "--size", "511", status=2, words="size")
    refused(t, "volume", "import", f"{t.tmp}/w@s", raw, status=2)
    (t.tmp / "empty").write_bytes(b"")
    refused(t, "volume", "import", t.tmp / "w", t.tmp / "empty", words="empty")
    check(not (t.tmp / "w").exists() and not (t.tmp / "w.import").exists(), "nothing is left")
    (t.tmp / "w.import").mkdir()
    refused(t, "volume", "import", t.tmp / "w", raw, words=("w.import", "stopped"))


# ---- other programs

@test
def test_qemu_img_both_ways(t):
    """qcow2 to a volume and back, over NBD, as docs/volume-backup.md has it."""
    if shutil.which("qemu-img") is None:
        raise suite.Skip("no qemu-img")
    rng = random.Random(suite.SEED)
    image = bytearray(8 * MIB)
    for at in range(0, len(image), MIB):
        image[at:at + 100_000] = rng.randbytes(100_000)
    (t.tmp / "raw").write_bytes(image)

    def img(*words):
        p = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=suite.bound(120))
        check_eq(p.returncode, 0, f"qemu-img {words}: {p.stderr}")
        return p.stdout
    img("convert", "-f", "raw", "-O", "qcow2", t.tmp / "raw", t.tmp / "in.qcow2")
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    url = f"nbd://127.0.0.1:{s.port}/d"
    img("convert", "-n", "-f", "qcow2", "-O", "raw", t.tmp / "in.qcow2", url)
    run(t, "volume", "snapshot", f"{path}@a")
    client = nbd.Client(("127.0.0.1", s.port))
    client.go("d")
    client.write(2 * MIB, b"z" * BLOCK)
    client.close()
    changed = json.loads(img("map", "--output=json", "--image-opts",
                             f"driver=nbd,host=127.0.0.1,port={s.port},export=d,x-dirty-bitmap=qemu:dirty-bitmap:a"))
    check_eq([(each["start"], each["length"]) for each in changed if not each["data"]], [(2 * MIB, BLOCK)], "what QEMU sees as changed")
    s.stop()
    check(content(t, f"{path}@a") == bytes(image), "the import")
    s = serve(t, f"a=vol:{path}@a")
    img("convert", "-f", "raw", "-O", "qcow2", f"nbd://127.0.0.1:{s.port}/a", t.tmp / "out.qcow2")
    s.stop()
    check("identical" in img("compare", t.tmp / "in.qcow2", t.tmp / "out.qcow2"), "the same disk")


@test
def test_libnbd_sees_what_changed(t):
    """nbdinfo --map against a model, for each pair of snapshots."""
    if shutil.which("nbdinfo") is None:
        raise suite.Skip("no nbdinfo")
    path, model, rng = make(t), bytearray(8 * MIB), random.Random(suite.SEED)
    pictures = {}
    for name in ("a", "b", "c"):
        with Disk(t, path, model) as disk:
            disk.some(rng, 12)
        snapshot(t, path, name)
        pictures[name] = bytes(model)
    pictures["d"] = bytes(model)
    s = serve(t, f"d=vol:{path}", f"b=vol:{path}@b")

    def info(*words):
        p = subprocess.run(["nbdinfo", "--json", *words], capture_output=True, text=True, timeout=suite.bound(120))
        check_eq(p.returncode, 0, f"nbdinfo {words}: {p.stderr}")
        return json.loads(p.stdout)
    contexts = info(f"nbd://127.0.0.1:{s.port}/d")["exports"][0]["contexts"]
    check_eq(sorted(contexts), sorted(["base:allocation"] + [f"{kind}:{name}" for name in "abc"
                                                            for kind in ("netblk:dirty-since", "qemu:dirty-bitmap")]), "contexts")
    for now in ("d", "b"):
        for then in ("a", "b", "c"):
            for kind in ("netblk:dirty-since", "qemu:dirty-bitmap"):
                made = bytearray(pictures[then])
                for each in info(f"--map={kind}:{then}", f"nbd://127.0.0.1:{s.port}/{now}"):
                    at, end = each["offset"], each["offset"] + each["length"]
                    if each["type"] & 1:
                        made[at:end] = pictures[now][at:end]
                check(bytes(made) == pictures[now], f"what changed in {now} since {then}, by {kind}")
        for each in info("--map", f"nbd://127.0.0.1:{s.port}/{now}"):
            at, end = each["offset"], each["offset"] + each["length"]
            if each["type"] & 2:
                check(not any(pictures[now][at:end]), f"zeroes of {now} at {at}")
    s.stop()


if __name__ == "__main__":
    sys.exit(suite.main("volume_send"))
