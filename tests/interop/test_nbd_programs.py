#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The NBD programs that people use, against our server: nbdinfo, nbdcopy, nbdsh, nbdfuse, qemu-img, qemu-io, qemu-nbd, fio's
nbd engine, nbdkit's nbd plugin and nbd-client's list.

NETBLK_NBD_PEER=nbdkit (or qemu-nbd, nbd-server) runs it against that server instead."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd_target
import suite
from nbd_target import MIB, PEER, needs, start
from suite import Skip, check, check_eq, test

SIZE = 40 * MIB


def run(*command, status=0, seconds=60, **kw):
    """Runs a program to its end; its standard output."""
    env = dict(os.environ, PATH="/usr/bin:/usr/sbin:/bin:/sbin:" + os.environ.get("PATH", ""))  # nbdsh's Python is Debian's
    path = shutil.which(str(command[0]), path=env["PATH"])
    if not path:
        raise Skip(f"no {command[0]} here")
    p = subprocess.run([path, *map(str, command[1:])], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       timeout=seconds * suite.TIME_SCALE, env=env, **kw)
    check(status is None or p.returncode == status,
          f"{' '.join(map(str, command))[:200]}: status {p.returncode}: {(p.stderr or p.stdout).strip()[-400:]}")
    return p.stdout


def noise(n, seed=1):
    return random.Random(seed).randbytes(n)


def sparse(path, size=SIZE):
    """Data at 1–3 MiB, 20 MiB (64 KiB) and the last MiB; the rest is holes."""
    with open(path, "wb") as f:
        f.truncate(size)
        for at, n in ((MIB, 2 * MIB), (20 * MIB, 65536), (size - MIB, MIB)):
            f.seek(at)
            f.write(noise(n, at))
    return path


def digest(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(4 * MIB):
            h.update(block)
    return h.hexdigest()


def same(a, b):
    check_eq(digest(a), digest(b), f"{pathlib.Path(b).name} against {pathlib.Path(a).name}")


def allocated(path):
    return os.stat(path).st_blocks * 512


def holes_of(path, size):
    out, at = [], 0
    with open(path, "rb") as f:
        while at < size:
            try:
                data = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                data = size
            if data > at:
                out.append((at, data - at, 3))
            if data < size:
                end = os.lseek(f.fileno(), data, os.SEEK_HOLE)
                out.append((data, end - data, 0))
                data = end
            at = data
    return out


# ---- libnbd

@test
def test_nbdinfo(t):
    for listen in ("tcp", "unix"):
        s = start(t, size=SIZE, listen=listen)
        out = run("nbdinfo", s.uri_of("disk"))
        check("newstyle-fixed" in out and str(SIZE) in out, f"nbdinfo: {out}")
        check_eq(run("nbdinfo", "--size", s.uri_of("disk")).strip(), str(SIZE), "nbdinfo --size")


@test
def test_nbdinfo_json(t):
    s = start(t, path=sparse(t.tmp / "disk.img"), options=["description=a disk"])
    info = json.loads(run("nbdinfo", "--json", s.uri_of("disk")))
    check_eq((info["protocol"], info["TLS"]), ("newstyle-fixed", False), "protocol")
    needs("structured")
    check_eq(info["structured"], True, "structured replies")
    export, = info["exports"]
    check_eq(export["export-name"], "disk", "name")
    check("base:allocation" in export["contexts"], f"contexts {export['contexts']}")
    wanted = {"is_read_only": False, "can_flush": True, "can_fua": True, "can_trim": True, "can_zero": True, "can_df": True}
    if not PEER:
        wanted |= {"can_multi_conn": True, "can_cache": True, "can_fast_zero": True, "block_size_minimum": 1, "block_size_maximum": 32 * MIB,
                   "export-size": SIZE, "description": "a disk"}
    check_eq({k: export[k] for k in wanted}, wanted, "what it can")


@test
def test_nbdinfo_list(t):
    if PEER in ("nbdkit", "qemu-nbd"):
        raise Skip(f"{PEER} has one export")
    exports = {name: nbd_target.image(t, (i + 1) * MIB, f"{i}.img") for i, name in enumerate(("disk", "two", "drei"))}
    s = start(t, exports=exports)
    listed = json.loads(run("nbdinfo", "--list", "--json", s.uri))["exports"]
    check_eq([(e["export-name"], e["export-size"]) for e in listed], [("disk", MIB), ("two", 2 * MIB), ("drei", 3 * MIB)], "nbdinfo --list")
    check("drei" in run("nbdinfo", "--list", s.uri), "nbdinfo --list as text")


@test
def test_nbdinfo_can(t):
    s = start(t, size=SIZE)
    yes = ["can connect", "can write", "can flush", "can fua", "can trim", "can zero"]
    no = ["is read-only", "is tls"]
    if not PEER:
        yes += ["can multi-conn", "can cache", "can df", "can fast-zero"]
    for what in yes:
        verb, name = what.split()
        run("nbdinfo", f"--{verb}", name, s.uri_of("disk"))
    for what in no:
        verb, name = what.split()
        run("nbdinfo", f"--{verb}", name, s.uri_of("disk"), status=2)
    s = start(t, size=SIZE, ro=True)
    run("nbdinfo", "--is", "read-only", s.uri_of("disk"))


@test
def test_nbdinfo_map(t):
    needs("structured")
    path = sparse(t.tmp / "disk.img")
    s = start(t, path=path)
    got = [(e["offset"], e["length"], e["type"]) for e in json.loads(run("nbdinfo", "--map", "--json", s.uri_of("disk")))]
    check_eq(got, holes_of(path, SIZE), "nbdinfo --map")
    totals = {e["type"]: e["size"] for e in json.loads(run("nbdinfo", "--map", "--totals", "--json", s.uri_of("disk")))}
    check_eq(sum(totals.values()), SIZE, f"nbdinfo --map --totals: {totals}")


@test
def test_nbdcopy_to_and_from(t):
    source, served, back = t.tmp / "source.img", t.tmp / "served.img", t.tmp / "back.img"
    sparse(source)
    served.write_bytes(noise(SIZE, 3))
    s = start(t, path=served)
    for options in ([], ["--connections=4", "--requests=64"], ["--connections=1", "--requests=1"], ["--synchronous"],
                    ["--request-size=33554432"], ["--request-size=4096", "--sparse=0"], ["--allocated"]):
        with open(served, "r+b") as f:
            f.write(noise(4 * MIB, 4))  # what the copy must replace
        run("nbdcopy", *options, source, s.uri_of("disk"))
        same(source, served)
        back.unlink(missing_ok=True)
        run("nbdcopy", *options, s.uri_of("disk"), back)
        same(source, back)
    s.check_alive()


@test
def test_nbdcopy_keeps_holes(t):
    """Zeroes of the source become holes of the file behind the server; holes there become holes of the copy."""
    source, served, back = t.tmp / "source.img", t.tmp / "served.img", t.tmp / "back.img"
    sparse(source)
    served.write_bytes(noise(SIZE, 3))
    s = start(t, path=served)
    run("nbdcopy", "--flush", source, s.uri_of("disk"))
    check(PEER == "nbd-server" or allocated(served) <= allocated(source) + 4 * MIB,
          f"{allocated(served)} bytes allocated, the source has {allocated(source)}")
    run("nbdcopy", s.uri_of("disk"), back)
    same(source, back)
    check(allocated(back) <= allocated(source) + 4 * MIB, f"the copy has {allocated(back)} bytes, the source {allocated(source)}")


@test
def test_nbdcopy_server_to_server(t):
    if PEER == "nbd-server":
        raise Skip("one configuration")
    a, b = sparse(t.tmp / "a.img"), t.tmp / "b.img"
    b.write_bytes(noise(SIZE, 3))
    one, two = start(t, path=a), start(t, path=b, listen="unix")
    run("nbdcopy", "--connections=4", one.uri_of("disk"), two.uri_of("disk"))
    same(a, b)


@test
def test_nbdcopy_pipes(t):
    source = sparse(t.tmp / "source.img")
    served = nbd_target.image(t, SIZE)
    s = start(t, path=served)
    with open(source, "rb") as f:
        p = subprocess.run(["nbdcopy", "--", "-", s.uri_of("disk")], stdin=f, capture_output=True, timeout=60 * suite.TIME_SCALE)
    check_eq((p.returncode, p.stderr), (0, b""), "nbdcopy from a pipe")
    same(source, served)
    p = subprocess.run(["nbdcopy", s.uri_of("disk"), "-"], capture_output=True, timeout=60 * suite.TIME_SCALE)
    check_eq(hashlib.sha256(p.stdout).hexdigest(), digest(source), "nbdcopy to a pipe")


NBDSH = """
import errno
size = h.get_size()
def fails(want, f, *a, **k):
    try:
        f(*a, **k)
    except nbd.Error as e:
        assert e.errnum == want, (f.__name__, e.errnum, want)
        return
    assert False, f.__name__ + ' did not fail'
h.set_strict_mode(0)
h.pwrite(b'abc' * 1000, 12345)
assert h.pread(3000, 12345) == bytearray(b'abc' * 1000)
assert h.pread(5, 12340) == bytearray(5)
h.pwrite(b'x' * 4096, 0, nbd.CMD_FLAG_FUA)
h.flush()
h.zero(2048, 1024)
assert h.pread(4096, 0) == bytearray(b'x' * 1024 + bytes(2048) + b'x' * 1024)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE)
h.trim(65536, 8192)
fails(errno.ENOSPC, h.pwrite, b'x' * 512, size)
fails(errno.ENOSPC, h.pwrite, b'x' * 512, size - 1)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.pread, 512, 0, 1 << 9)
fails(errno.EINVAL, h.pwrite, b'x' * 512, 0, nbd.CMD_FLAG_REQ_ONE)
big = bytearray(i % 251 for i in range(1 << 20)) * 32
h.pwrite(big, 1 << 20)
assert h.pread(len(big), 1 << 20) == big
if h.can_cache():
    h.cache(1 << 20, 0)
chunks = []
if h.get_structured_replies_negotiated():
    got = h.pread_structured(65536, 0, lambda data, off, status, err: chunks.append((off, len(data), status)))
    assert len(got) == 65536 and sum(n for _, n, _ in chunks) == 65536, chunks
    chunks.clear()
    if h.can_df():
        h.pread_structured(65536, 0, lambda data, off, status, err: chunks.append((off, len(data), status)), nbd.CMD_FLAG_DF)
        assert len(chunks) == 1, chunks
    extents = []
    h.block_status(size, 0, lambda ctx, off, e, err: extents.append((ctx, off, e)))
    assert extents[0][0] == 'base:allocation' and len(extents[0][2]) >= 2, extents
    one = []
    h.block_status(4096, 0, lambda ctx, off, e, err: one.append(e), nbd.CMD_FLAG_REQ_ONE)
    assert len(one[0]) == 2 and one[0][0] <= 4096, one
bufs = []
for i in range(64):
    b = nbd.Buffer.from_bytearray(bytearray([i]) * 65536)
    bufs.append((h.aio_pwrite(b, i * 131072), b))
while h.aio_in_flight() > 0:
    h.poll(-1)
for c, _ in bufs:
    assert h.aio_command_completed(c)
for i in range(64):
    assert h.pread(65536, i * 131072) == bytearray([i]) * 65536
h.shutdown()
"""


@test
def test_nbdsh(t):
    s = start(t, size=SIZE)
    base = [] if "structured" in nbd_target.LACKS[PEER] else ["--base-allocation"]
    run("nbdsh", *base, "-u", s.uri_of("disk"), "-c", NBDSH)


@test
def test_nbdsh_options(t):
    """libnbd's option mode: haggling by hand."""
    needs("structured", "description")
    s = start(t, size=SIZE, options=["description=a disk"])
    name = "" if PEER == "nbdkit" else "disk"
    where = repr(str(s.address)) if not isinstance(s.address, tuple) else None
    connect = f"h.connect_unix({where})" if where else f"h.connect_tcp('{s.address[0]}', '{s.address[1]}')"
    run("nbdsh", "-c", f"""
names = []
h.set_opt_mode(True)
h.set_full_info(True)
{connect}
assert h.get_protocol() == 'newstyle-fixed'
h.opt_list(lambda name, description: names.append((name, description)) or 0)
assert names == [({name!r}, 'a disk')], names
contexts = []
h.set_export_name('disk')
h.opt_list_meta_context(lambda c: contexts.append(c) or 0)
assert 'base:allocation' in contexts, contexts
try:
    h.set_export_name('nonesuch')
    h.opt_info()
    assert False
except nbd.Error as e:
    pass
h.set_export_name('disk')
h.add_meta_context('base:allocation')
h.opt_info()
assert h.get_size() == {SIZE}
h.opt_go()
assert h.can_meta_context('base:allocation')
assert h.pread(512, 0) == bytearray(512)
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
{connect}
h.opt_abort()
h = nbd.NBD()
h.set_request_structured_replies(False)
h.set_export_name('disk')
{connect}
assert not h.get_structured_replies_negotiated()
assert h.pread(512, 0) == bytearray(512)
h.shutdown()
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_export_name('disk')
{connect}
assert h.pread(512, 0) == bytearray(512)
h.shutdown()
""")


@test
def test_nbdfuse_with_a_file_system(t):
    """mkfs, files and fsck on a file that is the export."""
    if not os.path.exists("/dev/fuse") or os.geteuid() != 0:
        raise Skip("needs root and /dev/fuse")
    s = start(t, size=SIZE)
    mount = t.tmp / "mount"
    mount.mkdir()
    disk = mount / "nbd"
    fuse = subprocess.Popen(["nbdfuse", mount, s.uri_of("disk")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end():
        subprocess.run(["fusermount3", "-u", "-z", mount], capture_output=True, check=False)
        fuse.wait()
    t.defer(end)
    suite.wait_until(disk.exists, 20, "nbdfuse's file")
    run("mkfs.ext4", "-q", "-F", disk)
    files = t.tmp / "files"
    files.mkdir()
    for i in range(40):
        (files / f"f{i}").write_bytes(noise(i * 7919 + 1, i))

    commands = t.tmp / "commands"
    commands.write_text("".join(f"write {files}/f{i} f{i}\n" for i in range(40)))
    run("debugfs", "-w", "-f", commands, disk)
    run("e2fsck", "-f", "-n", disk)
    commands.write_text("".join(f"dump f{i} {files}/g{i}\n" for i in range(40)))
    run("debugfs", "-f", commands, disk)
    for i in range(40):
        check_eq((files / f"g{i}").read_bytes(), noise(i * 7919 + 1, i), f"file {i}")


# ---- QEMU

@test
def test_qemu_img_info(t):
    s = start(t, size=SIZE)
    info = json.loads(run("qemu-img", "info", "--output=json", s.uri_of("disk")))
    check_eq(info["virtual-size"], SIZE, "qemu-img info")
    s = start(t, size=SIZE, listen="unix")
    info = json.loads(run("qemu-img", "info", "--output=json", f"nbd+unix:///disk?socket={s.address}"))
    check_eq(info["virtual-size"], SIZE, "qemu-img info, unix")


@test
def test_qemu_img_convert_and_compare(t):
    source = sparse(t.tmp / "source.img")
    qcow2, back = t.tmp / "disk.qcow2", t.tmp / "back.img"
    served = t.tmp / "served.img"
    served.write_bytes(noise(SIZE, 3))
    s = start(t, path=served)
    for options in (["-n"], ["-n", "-W", "-m", "8"]):
        run("qemu-img", "convert", *options, "-f", "raw", "-O", "raw", source, s.uri_of("disk"))
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, s.uri_of("disk"))
        same(source, served)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "8", s.uri_of("disk"), qcow2)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow2, s.uri_of("disk"))
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", s.uri_of("disk"), back)
    same(source, back)
    check(PEER == "nbd-server" or allocated(served) <= allocated(source) + 4 * MIB, "convert punched holes behind the server")


@test
def test_qemu_img_map(t):
    needs("structured")
    path = sparse(t.tmp / "disk.img")
    s = start(t, path=path)
    got = [(e["start"], e["length"], 3 if e["zero"] else 0) for e in
           json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", s.uri_of("disk")))]
    check_eq(got, holes_of(path, SIZE), "qemu-img map")


@test
def test_qemu_img_bench(t):
    s = start(t, size=SIZE)
    for options in (["-d", "32", "-s", "4096", "-c", "5000"], ["-w", "-d", "32", "-s", "4096", "-c", "5000"],
                    ["-w", "-d", "16", "-s", "4096", "-c", "320", "--flush-interval=32"], ["-d", "4", "-s", "1M", "-c", "32"]):
        run("qemu-img", "bench", "-q", "-f", "raw", *options, s.uri_of("disk"))


@test
def test_qemu_img_qcow2_on_it(t):
    """A qcow2 image whose bytes are the export: create, write, check, commit metadata."""
    s = start(t, size=SIZE)
    run("qemu-img", "create", "-q", "-f", "qcow2", s.uri_of("disk"), "32M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 3M", "-c", "write -z 2M 64k", "-c", "discard 3M 64k", "-c", "flush",
        s.uri_of("disk"))
    out = run("qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 1M 1M", "-c", "read -P 0 2M 64k", s.uri_of("disk"))
    check("Pattern verification failed" not in out, out)
    run("qemu-img", "check", "-f", "qcow2", s.uri_of("disk"))


def qemu_io(uri, *commands, status=0):
    out = run("qemu-io", "-f", "raw", *(x for c in commands for x in ("-c", c)), uri, status=status)
    check(status or ("failed" not in out and "rror" not in out), f"qemu-io: {out}")
    return out


@test
def test_qemu_io(t):
    s = start(t, size=SIZE)
    uri = s.uri_of("disk")
    qemu_io(uri, "write -P 0xaa 0 1M", "write -f -P 0xbb 512 512", "read -P 0xaa 0 512", "read -P 0xbb 512 512", "flush")
    qemu_io(uri, "write -z 64k 64k", "write -z -u 128k 64k", "read -P 0 64k 128k", "read -P 0xaa 192k 64k", "discard 192k 64k")
    qemu_io(uri, "aio_write -P 1 1M 64k", "aio_write -P 2 2M 64k", "aio_read 0 1M", "aio_flush", "read -P 1 1M 64k", "read -P 2 2M 64k")
    qemu_io(uri, "write -P 7 4M 32M", "read -P 7 4M 32M")
    qemu_io(uri, "write -P 9 1000000 1000001", "read -P 9 1000000 1000001")
    check("Input/output error" not in qemu_io(uri, "alloc 0 1M", "map"), "map")


@test
def test_qemu_io_read_only(t):
    """A writer is refused, a reader served."""
    s = start(t, size=SIZE, ro=True)
    run("qemu-io", "-f", "raw", "-c", "write 0 512", s.uri_of("disk"), status=1)
    run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", s.uri_of("disk"))


@test
def test_qemu_nbd_over_it(t):
    """qemu-nbd as our client and another's server: two NBD connections in a row."""
    path = sparse(t.tmp / "disk.img")
    s = start(t, path=path)
    sock = t.tmp / "chain.sock"
    chain = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", sock, s.uri_of("disk")], stdin=subprocess.DEVNULL)
    t.defer(lambda: (chain.terminate(), chain.wait()))
    nbd_target.wait_socket(sock)
    back = t.tmp / "back.img"
    run("nbdcopy", f"nbd+unix:///?socket={sock}", back)
    same(path, back)


# ---- fio, nbdkit, nbd-client

def fio(t, uri, *options):
    out = run("fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", "--group_reporting", *options,
              seconds=120, cwd=t.tmp)
    result = json.loads(out[out.index("{"):])["jobs"]
    check_eq([j["error"] for j in result], [0] * len(result), "fio's errors")
    return result


@test
def test_fio_verify(t):
    s = start(t, size=SIZE)
    for options in (["--bs=4k", "--iodepth=32", "--rw=randwrite", "--io_size=16m"],
                    ["--bsrange=512-256k", "--iodepth=16", "--rw=randwrite", "--io_size=40m"],
                    ["--bs=1m", "--iodepth=8", "--rw=write"]):
        job, = fio(t, s.uri_of("disk"), "--size=40m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", *options)
        check(job["write"]["total_ios"] > 0 and job["read"]["total_ios"] > 0, f"fio wrote and read: {options}")


@test
def test_fio_jobs_and_trims(t):
    """Four connections at once, with flushes and trims."""
    s = start(t, size=SIZE, listen="unix")
    fio(t, s.uri_of("disk"), "--size=10m", "--numjobs=4", "--offset_increment=10m", "--rw=randrw", "--bs=4k", "--iodepth=32",
        "--io_size=2m", "--fsync=256")
    fio(t, s.uri_of("disk"), "--size=40m", "--rw=randtrim", "--bs=64k", "--iodepth=8", "--io_size=8m")


@test
def test_nbdkit_nbd_plugin(t):
    """nbdkit as our client: one in front of our server, then one in front of that."""
    path = sparse(t.tmp / "disk.img")
    s = start(t, path=path)
    uri = s.uri_of("disk")
    for depth in (1, 2):
        sock = t.tmp / f"kit{depth}.sock"
        kit = subprocess.Popen(["nbdkit", "-f", "-U", sock, "nbd", f"uri={uri}", *(["shared=true"] if depth == 1 else [])],
                               stdin=subprocess.DEVNULL)
        t.defer(lambda kit=kit: (kit.terminate(), kit.wait()))
        nbd_target.wait_socket(sock)
        uri = f"nbd+unix:///?socket={sock}"
        back = t.tmp / f"back{depth}.img"
        run("nbdcopy", "--connections=4", uri, back)
        same(path, back)
        if "structured" not in nbd_target.LACKS[PEER]:
            got = [(e["offset"], e["length"], e["type"]) for e in json.loads(run("nbdinfo", "--map", "--json", uri))]
            check_eq(got, holes_of(path, SIZE), "the map through it")
        qemu_io(uri, "write -P 3 30M 1M", "flush", "read -P 3 30M 1M", "write -z 30M 1M", "read -P 0 30M 1M", "discard 30M 1M")
    check_eq(PEER or path.read_bytes()[MIB:MIB + 512], PEER or noise(2 * MIB, MIB)[:512], "the file")


@test
def test_nbd_client_list(t):
    def serve(listen):
        names = ("disk",) if PEER in ("nbdkit", "qemu-nbd") else ("disk", "two", "three")
        s = start(t, exports={name: nbd_target.image(t, MIB) for name in names}, listen=listen)
        return s, set(names) if PEER != "nbdkit" else set()
    s, names = serve("tcp")
    out = run("nbd-client", "-l", s.address[0], s.address[1])
    check(names <= set(out.split()), f"nbd-client -l: {out}")
    if PEER != "nbd-server":
        s, names = serve("unix")
        out = run("nbd-client", "-l", "-u", s.address)
        check(names <= set(out.split()), f"nbd-client -l -u: {out}")


if __name__ == "__main__":
    sys.exit(suite.main("nbd-programs" + (f" ({PEER})" if PEER else "")))
