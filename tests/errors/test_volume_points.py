#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Clones, rewinds, sizes and the history of volumes, by `netblk volume` and behind a server."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd
import suite
from command import MIB, refused, run
from suite import check, check_eq, test
from volume_rig import BLOCK, disk, make, not_started, serve, told


def put(t, store, data, at=0):
    s = serve(t, f"d={store}")
    with disk(s) as c:
        c.write(at, data)
        c.flush()
    s.stop()


def seen(t, store, length=BLOCK, at=0):
    s = serve(t, f"d={store}")
    with disk(s) as c:
        data = c.read(at, length)
    s.stop()
    return data


@test
def test_clones(t):
    path = make(t)
    put(t, f"vol:{path}", b"1" * BLOCK)
    run(t, "volume", "snapshot", f"{path}@a")
    run(t, "volume", "clone", f"{path}@a", "c")
    run(t, "volume", "clone", path, "now")
    s = serve(t, f"d=vol:{path}", f"c=vol:{path}@c", f"a=vol:{path}@a")
    with disk(s, "d") as head, disk(s, "c") as clone, disk(s, "a") as then:
        head.write(0, b"2" * BLOCK)
        clone.write(0, b"3" * 512)
        check_eq(head.read(0, BLOCK), b"2" * BLOCK, "the head")
        check_eq(clone.read(0, BLOCK), b"3" * 512 + b"1" * (BLOCK - 512), "the clone")
        check_eq(then.read(0, BLOCK), b"1" * BLOCK, "the snapshot")
        check(not clone.flags & nbd.READ_ONLY, "a clone is writable")
    s.stop()
    run(t, "volume", "snapshot", f"{path}@cs", "--of", "c")
    run(t, "volume", "clone", f"{path}@c", "cc")
    check_eq(seen(t, f"vol:{path}@cc"), b"3" * 512 + b"1" * (BLOCK - 512), "a clone of the clone")
    check_eq(seen(t, f"vol:{path}@now"), b"1" * BLOCK, "a clone of the present")
    listed = {each["name"]: (each["kind"], each["of"]) for each in told(t, "list", path)}
    check_eq(listed, {"a": ("snapshot", ""), "cs": ("snapshot", "c"), "c": ("clone", ""), "now": ("clone", ""), "cc": ("clone", "c")}, "list")
    check(b"CLONE" in run(t, "volume", "list", path)[0], "list for people")
    refused(t, "volume", "delete", f"{path}@c", words="first")
    for name in ("cc", "cs", "c"):
        run(t, "volume", "delete", f"{path}@{name}")
    check_eq((told(t, "info", path)["clones"], told(t, "check", path)["damage"]), (1, []), "clones that are left")
    for words, status in (((f"{path}@a", "a"), 1), ((f"{path}@b", "x"), 1), ((f"{path}@a", "x/y"), 2), ((f"{path}@a",), 2),
                          ((f"{path}@-x", "x"), 2), ((f"{path}@lsn:99999", "x"), 1), ((f"{path}@-10m", "x"), 1)):
        refused(t, "volume", "clone", *words, status=status)


@test
def test_rollback_and_rewind(t):
    path = make(t)
    put(t, f"vol:{path}", b"1" * BLOCK)
    run(t, "volume", "snapshot", f"{path}@a")
    put(t, f"vol:{path}", b"2" * BLOCK)
    generation = told(t, "info", path)["generation"]
    answer = told(t, "rollback", f"{path}@a")
    check_eq(answer["generation"], generation + 1, "generation")
    check_eq(seen(t, f"vol:{path}"), b"1" * BLOCK, "after the rollback")
    check_eq(seen(t, f"vol:{path}@{answer['before']}"), b"2" * BLOCK, "what it was")
    run(t, "volume", "rewind", path, "--undo")
    check_eq(seen(t, f"vol:{path}"), b"2" * BLOCK, "after the undo")
    s = serve(t, f"d=vol:{path}")
    with disk(s):
        refused(t, "volume", "rollback", f"{path}@a", words="in use")
    s.stop()
    s = serve(t, f"d=vol:{path}@a")
    run(t, "volume", "rollback", f"{path}@a")
    s.stop()
    check_eq(seen(t, f"vol:{path}"), b"1" * BLOCK, "while only the snapshot was served")
    for words, status in (((path,), 2), ((f"{path}@a", "--undo"), 2), ((f"{path}@-1h",), 1), ((f"{path}@b",), 1),
                          ((f"{path}@a", "--of", "c"), 1), ((path, "--undo", "--of", "c"), 1)):
        refused(t, "volume", "rewind", *words, status=status)
    refused(t, "volume", "rollback", f"{path}@-1h", status=2, words="rewind")


@test
def test_resize(t):
    path = make(t)
    put(t, f"vol:{path}", b"1" * 2 * MIB, at=14 * MIB)
    run(t, "volume", "snapshot", f"{path}@a")
    run(t, "volume", "resize", path, "15M")
    check_eq(told(t, "info", path)["size_bytes"], 15 * MIB, "the smaller size")
    run(t, "volume", "resize", path, "17M")
    check_eq(seen(t, f"vol:{path}", 3 * MIB, 14 * MIB), b"1" * MIB + bytes(2 * MIB), "after growing again")
    check_eq(seen(t, f"vol:{path}@a", 2 * MIB, 14 * MIB), b"1" * 2 * MIB, "the snapshot")
    run(t, "volume", "clone", f"{path}@a", "c")
    run(t, "volume", "resize", f"{path}@c", "1M")
    check_eq({each["name"]: each["size_bytes"] for each in told(t, "list", path)}, {"a": 16 * MIB, "c": MIB}, "sizes")
    for size, status in (("0", 2), ("513", 2), ("x", 2)):
        refused(t, "volume", "resize", path, size, status=status)
    refused(t, "volume", "resize", f"{path}@a", "1M", words="a")


@test
def test_resize_of_a_served_volume(t):
    path = make(t)
    s = serve(t, f"d=vol:{path}")
    run(t, "volume", "clone", path, "c")
    for size in (24 * MIB, 8 * MIB):
        run(t, "volume", "resize", path, str(size))
        run(t, "volume", "resize", f"{path}@c", str(size // 2))

        def has_it():
            with disk(s) as c:
                return c.size == size
        suite.wait_until(has_it, 60, "the export to have the new size")
        with disk(s) as c:
            c.write(size - BLOCK, b"x" * BLOCK)
            check(c.error_of(nbd.CMD_WRITE, size, BLOCK, data=bytes(BLOCK)) != 0, "a write behind the end is refused")
            check_eq(c.read(size - BLOCK, BLOCK), b"x" * BLOCK, "the end")
    refused(t, "volume", "rollback", f"{path}@c", words="clone")
    s.stop()
    check_eq(told(t, "info", path)["size_bytes"], 8 * MIB, "the size that stays")
    check_eq([each["size_bytes"] for each in told(t, "list", path)], [4 * MIB], "the clone's")


@test
def test_history(t):
    path = make(t, "16M", "v", "--history", "1h")
    check_eq(told(t, "info", path)["settings"]["history"], "1h", "the setting")
    put(t, f"vol:{path}", b"1" * BLOCK)
    lsn = told(t, "info", path)["last_lsn"]
    put(t, f"vol:{path}", b"2" * BLOCK)
    check_eq(seen(t, f"vol:{path}@lsn:{lsn}"), b"1" * BLOCK, "a moment by its number")
    check_eq(seen(t, f"vol:{path}@-0s"), b"2" * BLOCK, "now")
    not_started(t, f"vol:{path}@-2h", ("history", "goes back to"))
    not_started(t, f"vol:{path}@2100-01-01T00:00:00Z", "future")
    run(t, "volume", "rewind", f"{path}@lsn:{lsn}")
    check_eq(seen(t, f"vol:{path}"), b"1" * BLOCK, "after the rewind")
    run(t, "volume", "set", path, "history=none")
    not_started(t, f"vol:{path}@lsn:{lsn}", "history=24h")
    check("none" in run(t, "volume", "info", path)[0].decode(), "info for people")
    for words in ("history", "=1h", "history=ever", "colour=red"):
        refused(t, "volume", "set", path, words, status=2)
    refused(t, "volume", "create", t.tmp / "w", "--size", "1M", "--history", "ever", status=2)


@test
def test_names_that_rewinds_give(t):
    path = make(t)
    run(t, "volume", "snapshot", f"{path}@a")
    for words in (("snapshot", f"{path}@before-rewind-14"), ("clone", f"{path}@a", "before-rewind-14")):
        refused(t, "volume", *words, words=("before-rewind-", "choose"))
    for words in ((f"{path}@lsn:3",), (f"{path}@-5m",)):
        refused(t, "volume", "delete", *words, words="no name", status=2)


@test
def test_settings_are_told(t):
    path = make(t, "16M", "v", "--compress", "lz4", "--history", "1h")
    settings = {"compress": "lz4", "history": "1h", "space-factor": "1.3", "when-full": "shrink-history"}
    told_settings = told(t, "get", path)
    check_eq({key: told_settings[key] for key in settings}, settings, "settings")
    check_eq(run(t, "volume", "get", path, "compress")[0], b"compress=lz4\n", "one of them")
    run(t, "volume", "set", path, "when-full=refuse-writes")
    check("when-full=refuse-writes" in run(t, "volume", "get", path)[0].decode().split("\n"), "one that was set")
    refused(t, "volume", "get", path, "colour", words=("colour", "compress"))
    words = run(t, "volume", "info", path)[0].decode()
    for each in ("not encrypted, compression lz4", "refuse-writes"):
        check(each in words, f"{each!r} in {words!r}")


@test
def test_a_killed_volume_is_told_of_in_the_answer_only(t):
    path = make(t)
    put(t, f"vol:{path}", b"1" * BLOCK)
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        c.write(0, b"2" * BLOCK)
    s.kill()
    for words in ("info", "list", "check"):
        check_eq(run(t, "volume", words, path)[1], "", f"stderr of {words}")
    check("not closed in order" in run(t, "volume", "info", path)[0].decode(), "the state")


if __name__ == "__main__":
    sys.exit(suite.main("volume-points"))
