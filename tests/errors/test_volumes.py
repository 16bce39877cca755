#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk volume`, and volumes behind a running server, over netblk/2 and NBD."""

import json
import os
import pathlib
import random
import re
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import nbd
import netblk2 as n2
import serverproc
import suite
from command import MIB, refused, run
from suite import check, check_eq, test
from volume_rig import BLOCK, disk, make, not_started, serve, told


# ---- the command

@test
def test_create_info_list(t):
    path = make(t, "10G")
    info = told(t, "info", path)
    check_eq((info["size_bytes"], info["snapshots"], info["closed_clean"], info["damage"]), (10 << 30, 0, True, ""), "info")
    check(re.fullmatch("[0-9a-f]{32}", info["uuid"]), info["uuid"])
    check_eq(info["generation"], 1, "the generation of a new volume")
    check_eq(told(t, "list", path), [], "snapshots of a new volume")
    check(command.used_kib(path / "data") < 16 * 1024, f"{command.used_kib(path / 'data')} KiB for an empty volume")
    text = run(t, "volume", "info", path)[0].decode()
    check(info["uuid"] in text and "10 GiB" in text and "closed in order" in text, text)
    check_eq(run(t, "volume", "list", path)[0].decode().split(), ["SNAPSHOT", "TIME", "LSN", "SIZE"], "the head of an empty list")


@test
def test_create_refuses(t):
    path = make(t)
    refused(t, "volume", "create", path, "--size", "1M", words=("not empty", str(path)))
    refused(t, "volume", "create", t.tmp / "no" / "v", "--size", "1M", words="cannot make")
    (t.tmp / "file").write_bytes(b"x")
    refused(t, "volume", "create", t.tmp / "file", "--size", "1M", words="no folder")
    for size in ("0", "1000", "x", "-1", "513", ""):
        refused(t, "volume", "create", t.tmp / "w", f"--size={size}", words="size", status=2)
    for size in ("1K", "3M", "512M", "x"):
        refused(t, "volume", "create", t.tmp / "w", "--size=1M", f"--segment-size={size}", words="segment", status=2)
    refused(t, "volume", "create", t.tmp / "w", words="--size", status=2)
    refused(t, "volume", "create", f"{t.tmp}/w@s", "--size", "1M", words="snapshot", status=2)
    check(not (t.tmp / "w").exists(), "a refused `create` leaves nothing")


@test
def test_create_takes_an_empty_folder_and_odd_names(t):
    (t.tmp / "empty").mkdir()
    make(t, "1M", "empty")
    out, _ = run(t, "volume", "create", f"{t.tmp}/a%40b c", "--size", "512K", "--segment-size", "64K")
    check((t.tmp / "a@b c" / "data").exists(), "the folder has its @")
    check_eq(told(t, "info", f"{t.tmp}/a%40b c")["segment_bytes"], 65536, "segment size")
    check_eq(oct(os.stat(t.tmp / "a@b c" / "data").st_mode & 0o777), "0o600", "who may read it")


@test
def test_what_is_no_volume(t):
    (t.tmp / "folder").mkdir()
    (t.tmp / "file").write_bytes(bytes(MIB))
    for what in ("missing", "folder", "file"):
        for word in ("info", "list", "check"):
            refused(t, "volume", word, t.tmp / what, words=("no volume", "create"))
        not_started(t, f"vol:{t.tmp / what}", "no volume")
    for content in (b"", bytes(2 * MIB), random.Random(1).randbytes(2 * MIB)):
        (t.tmp / "folder" / "data").write_bytes(content)
        refused(t, "volume", "info", t.tmp / "folder", words=str(t.tmp / "folder"))
        not_started(t, f"vol:{t.tmp / 'folder'}", str(t.tmp / "folder"))
        check_eq((t.tmp / "folder" / "data").read_bytes(), content, "what is no volume is left alone")
    (t.tmp / "folder" / "data").unlink()
    os.symlink("/etc/passwd", t.tmp / "folder" / "data")
    refused(t, "volume", "info", t.tmp / "folder", words="data")
    os.unlink(t.tmp / "folder" / "data")
    os.mkfifo(t.tmp / "folder" / "data")
    refused(t, "volume", "info", t.tmp / "folder", words="regular")


@test
def test_malformed_arguments(t):
    for words in (("volume",), ("volume", "mend", "x"), ("volume", "info"), ("volume", "snapshot", t.tmp / "v"),
                  ("volume", "snapshot", f"{t.tmp}/v@"), ("volume", "snapshot", f"{t.tmp}/v@1st"), ("volume", "info", f"{t.tmp}/v@s"),
                  ("volume", "snapshot", f"{t.tmp}/v@{'n' * 65}"), ("volume", "snapshot", f"{t.tmp}/v@a b"), ("volume", "list", "@s")):
        refused(t, *words, status=2)
    for store in ("vol:", f"vol:{t.tmp}/v@", f"vol:{t.tmp}/v@-x", f"vol:{t.tmp}/v?size=1M", f"vol:{t.tmp}/v?overlay=temp"):
        not_started(t, store, "'", status=2)


@test
def test_snapshots(t):
    path = make(t)
    out, _ = run(t, "volume", "snapshot", f"{path}@first")
    check(re.fullmatch(rf"{re.escape(str(path))}@first at lsn:\d+\n", out.decode()), out)
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        c.write(0, b"1" * BLOCK)
    s.stop()
    run(t, "volume", "snapshot", f"{path}@a.b-c_D9")
    listed = told(t, "list", path)
    check_eq([each["name"] for each in listed], ["first", "a.b-c_D9"], "names in the order of their moments")
    check(listed[0]["lsn"] < listed[1]["lsn"] and listed[0]["time"] <= listed[1]["time"], f"{listed}")
    check_eq({each["size_bytes"] for each in listed}, {16 * MIB}, "sizes")
    refused(t, "volume", "snapshot", f"{path}@first", words="first")
    check_eq(told(t, "info", path)["snapshots"], 2, "snapshots")
    run(t, "volume", "delete", f"{path}@first")
    check_eq([each["name"] for each in told(t, "list", path)], ["a.b-c_D9"], "what is left")
    refused(t, "volume", "delete", f"{path}@first", words="first")


# ---- served

@test
def test_over_nbd_and_netblk2(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    rng = random.Random(suite.SEED)
    session = n2.Session(s.port)
    with disk(s, "d") as c, session.open() as conn:
        check_eq(c.size, 16 * MIB, "size")
        model = bytearray(16 * MIB)
        for step in range(150):
            n = rng.choice((512, 1024, BLOCK, 3 * BLOCK, 65536, MIB))
            at = rng.randrange(0, (len(model) - n) // 512 + 1) * 512
            what = rng.randrange(8)
            if what < 3:
                data = rng.randbytes(n)
                c.write(at, data, flags=rng.choice((0, nbd.FUA)))
                model[at:at + n] = data
            elif what < 5:
                data = rng.randbytes(n)
                check_eq(session.write(conn, at, data), n2.OK, f"step {step}: a write over netblk/2")
                model[at:at + n] = data
            elif what == 5:
                rng.choice((c.trim, c.zero))(at, n)
                model[at:at + n] = bytes(n)
            elif what == 6:
                c.flush()
            else:
                check_eq(c.read(at, n), bytes(model[at:at + n]), f"step {step}: a read over NBD")
                check_eq(session.read(conn, at, n), bytes(model[at:at + n]), f"step {step}: a read over netblk/2")
        whole = b"".join(c.read(at, MIB) for at in range(0, 16 * MIB, MIB))
        check_eq(whole, bytes(model), "the whole disk")
    s.stop()
    check_eq(told(t, "check", path)["damage"], [], "check")
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        check_eq(b"".join(c.read(at, MIB) for at in range(0, 16 * MIB, MIB)), bytes(model), "the whole disk after a restart")
    s.stop()


@test
def test_a_snapshot_is_a_read_only_export(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        c.write(0, b"1" * 2 * BLOCK)
    s.stop()
    run(t, "volume", "snapshot", f"{path}@then")
    # The snapshot first: both are of one volume, which is opened once.
    s = serve(t, f"then=vol:{path}@then", f"d=vol:{path}", f"ro=vol:{path},ro")
    with disk(s, "d") as head, disk(s, "then") as then, disk(s, "ro") as ro:
        head.write(BLOCK, b"2" * BLOCK)
        head.trim(0, 512)
        check_eq(head.read(0, 2 * BLOCK), bytes(512) + b"1" * (BLOCK - 512) + b"2" * BLOCK, "the head")
        check_eq(ro.read(0, 2 * BLOCK), bytes(512) + b"1" * (BLOCK - 512) + b"2" * BLOCK, "the head, read-only")
        check_eq(then.read(0, 2 * BLOCK), b"1" * 2 * BLOCK, "the snapshot")
        for c in (then, ro):
            check(c.flags & nbd.READ_ONLY, "the export says that it is read-only")
            check(c.error_of(nbd.CMD_WRITE, 0, BLOCK, data=bytes(BLOCK)) != 0, "a write to it is refused")
        check_eq(then.read(0, 2 * BLOCK), b"1" * 2 * BLOCK, "the snapshot")
    s.stop()
    s = serve(t, f"then=vol:{path}@then")
    with disk(s, "then") as c:
        check_eq(c.read(0, 2 * BLOCK), b"1" * 2 * BLOCK, "the snapshot alone")
    s.stop()
    not_started(t, f"vol:{path}@never", ("never", "list"))


@test
def test_parts_and_filters(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}?offset=1M&size=2M")
    with disk(s) as c:
        check_eq(c.size, 2 * MIB, "size of the part")
        c.write(0, b"x" * BLOCK)
    s.stop()
    s = serve(t, f"d=vol:{path}?readonly=1")
    with disk(s) as c:
        check_eq(c.read(MIB - BLOCK, 2 * BLOCK), bytes(BLOCK) + b"x" * BLOCK, "what the part wrote")
        check(c.error_of(nbd.CMD_WRITE, 0, BLOCK, data=bytes(BLOCK)) != 0, "a write is refused")
    s.stop()


@test
def test_the_memory_of_the_index(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}?cache=16M&readonly=0")
    with disk(s) as c:
        c.write(0, b"x" * BLOCK)
        check_eq(c.read(0, BLOCK), b"x" * BLOCK, "what was written")
    s.stop()
    for size in ("0", "-1", "x", "", "16777215", "15M", "1K", "2T", "64 M", "99999999999999999999"):
        not_started(t, f"vol:{path}?cache={size}", f"bad cache={size} in 'vol:{path}?cache={size}': the memory for the volume's index is "
                    "16 MiB to 1 TiB, in bytes or K, M, G", status=2)
    not_started(t, "mem:1M?cache=16M", "unknown option 'cache'", status=2)
    not_started(t, f"file:{t.tmp / 'image'}?size=1M&cache=16M", "unknown option 'cache'", status=2)


@test
def test_the_generation(t):
    """It stays over a stop in order and over a killed process; who resumes finds the same disk."""
    path = make(t)

    def seen():
        s = serve(t, f"d=vol:{path}")
        session = n2.Session(s.port, bytes(range(1, 17)))
        with session.open():
            return s, (session.uuid, session.generation)
    s, first = seen()
    with disk(s) as c:
        c.write(0, b"1" * BLOCK)
    s.stop()
    s, second = seen()
    check_eq(second, first, "after a stop in order")
    with disk(s) as c:
        c.write(0, b"2" * BLOCK)
        s.signal(signal.SIGKILL)
    s.wait()
    s, third = seen()
    check_eq(third, first, "after a kill of the process")
    s.stop()


# ---- damage

@test
def test_a_flipped_bit_is_an_error_and_never_wrong_data(t):
    path = make(t, "4M")
    s = serve(t, f"d=vol:{path}")
    rng = random.Random(suite.SEED)
    blocks = [rng.randbytes(BLOCK) for _ in range(64)]
    with disk(s) as c:
        for i, block in enumerate(blocks):
            c.write(i * BLOCK, block)
    s.stop()
    data = path / "data"
    content = data.read_bytes()
    at = content.index(blocks[17]) + rng.randrange(BLOCK)
    check_eq(content.count(blocks[17]), 1, "places of a block on the disk")
    with open(data, "r+b") as f:
        f.seek(at)
        f.write(bytes([content[at] ^ 1 << rng.randrange(8)]))
    out, err = run(t, "volume", "check", path, status=1)
    check(b"17" in out and "damaged" in err, f"check: {out} {err}")
    check_eq(len(told_of_damage(t, path)), 1, "damaged places")
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        for i, block in enumerate(blocks):
            if i == 17:
                check_eq(c.error_of(nbd.CMD_READ, i * BLOCK, BLOCK), nbd.EIO, "the damaged block")
            else:
                check_eq(c.read(i * BLOCK, BLOCK), block, f"block {i}")
        s.wait_log("17")
        c.write(17 * BLOCK, blocks[0])
        check_eq(c.read(17 * BLOCK, BLOCK), blocks[0], "what was written anew")
    s.stop()
    check_eq(told(t, "check", path)["damage"], [], "after it was written anew")


def told_of_damage(t, path):
    out, _ = run(t, "volume", "check", path, "--json", status=1)
    return json.loads(out)["damage"]


if __name__ == "__main__":
    sys.exit(suite.main("volumes"))
