#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compressed and encrypted volumes: `netblk volume key`, keys of every command, and of exports."""

import errno
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import suite
from command import refused, run
from suite import check, check_eq, test
from volume_rig import BLOCK, disk, make, not_started, serve, told

PLANTED = b"planted-in-plain-0123456789abcdef"


def key_file(t, name="key", byte=b"k"):
    path = t.tmp / name
    path.write_bytes(byte * 32)
    return path


def passphrase(t, text, name="phrase"):
    path = t.tmp / name
    path.write_text(text + "\n")
    return path


def sector():
    return (PLANTED * 16)[:512]


def fill(t, store, pattern=PLANTED, blocks=64):
    server = serve(t, f"d={store}")
    client = disk(server, "d")
    data = (pattern * (BLOCK * blocks // len(pattern) + 1))[:BLOCK * blocks]
    client.write(0, data)
    client.flush()
    check_eq(client.read(0, len(data)), data, "what was written")
    client.disconnect()
    server.stop()
    return data


# ---- compression

@test
def test_compression_is_a_setting(t):
    path = make(t, "16M", "v", "--compress", "lz4")
    data = fill(t, f"vol:{path}", blocks=1024)
    check(told(t, "info", path)["live_bytes"] < len(data) // 4, "compressed")
    for value in ("zstd", "none"):
        run(t, "volume", "set", path, f"compress={value}")
        fill(t, f"vol:{path}", blocks=256)
    refused(t, "volume", "set", path, "compress=gzip", words=("compress", "gzip"), status=2)
    refused(t, "volume", "create", t.tmp / "w", "--size=1M", "--compress=best", words=("compress", "best"), status=2)
    check_eq(told(t, "check", path)["damage"], [], "damage")


# ---- encryption

@test
def test_a_key_file_opens_it_and_nothing_else(t):
    key, other = key_file(t), key_file(t, "other", b"x")
    path = make(t, "16M", "v", "--encrypt", "--key-file", key)
    before = (path / "data").read_bytes()
    refused(t, "volume", "info", path, words=("encrypted", "--key-file"))
    refused(t, "volume", "info", path, "--key-file", other, words=("opens none of its key slots", "nothing has been touched"))
    refused(t, "volume", "snapshot", f"{path}@s", "--key-file", other, words="opens none")
    refused(t, "volume", "info", path, "--passphrase-file", key, words="opens none")
    refused(t, "volume", "info", path, "--key-file", t.tmp / "none", words=("cannot open the key", "none"))
    refused(t, "volume", "info", path, "--key-file", key, "--passphrase-file", key, words="one of them")
    not_started(t, f"vol:{path}", ("encrypted", "key-file"))
    not_started(t, f"vol:{path}?key-file={other}", "opens none")
    not_started(t, f"vol:{path}?key-file={key}&passphrase-file={key}", "not both", status=2)
    check_eq((path / "data").read_bytes(), before, "a wrong key touches nothing")
    check(told(t, "info", path, "--key-file", key)["encrypted"], "encrypted")
    fill(t, f"vol:{path}?key-file={key}")
    run(t, "volume", "snapshot", f"{path}@a-name-nobody-sees", "--key-file", key)
    check_eq([each["name"] for each in told(t, "list", path, "--key-file", key)], ["a-name-nobody-sees"], "snapshots")
    check_eq(told(t, "check", path, "--key-file", key)["damage"], [], "damage")
    raw = (path / "data").read_bytes()
    for text in (PLANTED, PLANTED[:16], b"a-name-nobody-sees", b"k" * 16):
        check(text not in raw, f"{text!r} is in the file")


@test
def test_keys_that_make_no_volume(t):
    short = t.tmp / "short"
    short.write_bytes(b"x" * 15)
    key = key_file(t)
    refused(t, "volume", "create", t.tmp / "v", "--size=1M", "--encrypt", "--key-file", short, words="too short")
    refused(t, "volume", "create", t.tmp / "v", "--size=1M", "--key-file", key, words="--encrypt", status=2)
    (t.tmp / "empty").write_text("\n")
    refused(t, "volume", "create", t.tmp / "v", "--size=1M", "--encrypt", "--passphrase-file", t.tmp / "empty", words="empty")
    check(not (t.tmp / "v").exists(), "nothing was made")
    path = make(t)
    refused(t, "volume", "info", path, "--key-file", key, words="not encrypted")
    refused(t, "volume", "key", "list", path, words="not encrypted")


@test
def test_a_changed_passphrase(t):
    old, new, key = passphrase(t, "old words", "old"), passphrase(t, "new words", "new"), key_file(t)
    path = make(t, "16M", "v", "--encrypt", "--passphrase-file", old)
    fill(t, f"vol:{path}?passphrase-file={old}")
    size = os.stat(path / "data").st_blocks
    check_eq(told(t, "key", "change", path, "--passphrase-file", old, "--new-passphrase-file", new), {"path": str(path), "slot": 0}, "answer")
    check(os.stat(path / "data").st_blocks <= size + 4096, "it was not written anew")
    refused(t, "volume", "info", path, "--passphrase-file", old, words="opens none")
    not_started(t, f"vol:{path}?passphrase-file={old}", "opens none")
    refused(t, "volume", "key", "remove", path, "--slot", "0", "--passphrase-file", new, words=("only key", "add another"))
    check_eq(told(t, "key", "add", path, "--passphrase-file", new, "--new-key-file", key)["slot"], 1, "slot")
    check_eq([(each["slot"], each["kind"]) for each in told(t, "key", "list", path)], [(0, "passphrase"), (1, "key file")], "keys")
    refused(t, "volume", "key", "remove", path, "--slot", "0", "--passphrase-file", old, words="opens none")
    refused(t, "volume", "key", "remove", path, "--slot", "7", "--key-file", key, words="no key in slot 7")
    refused(t, "volume", "key", "remove", path, "--slot", "8", "--key-file", key, words="bad --slot", status=2)
    run(t, "volume", "key", "remove", path, "--slot", "0", "--key-file", key)
    refused(t, "volume", "info", path, "--passphrase-file", new, words="opens none")
    check_eq(told(t, "check", path, "--key-file", key)["damage"], [], "damage")


@test
def test_keys_of_a_running_server(t):
    key, new = key_file(t), key_file(t, "new", b"n")
    path = make(t, "16M", "v", "--encrypt", "--key-file", key)
    server = serve(t, f"d=vol:{path}?key-file={key}")
    client = disk(server, "d")
    client.write(0, sector())
    refused(t, "volume", "key", "change", path, "--key-file", new, "--new-key-file", key, words="opens none")
    run(t, "volume", "key", "change", path, "--key-file", key, "--new-key-file", new)
    check_eq(client.read(0, 512), sector(), "it goes on")
    client.disconnect()
    server.stop()
    not_started(t, f"vol:{path}?key-file={key}", "opens none")
    check(told(t, "info", path, "--key-file", new)["encrypted"], "encrypted")


@test
def test_a_second_export_needs_the_key_too(t):
    key = key_file(t)
    path = make(t, "16M", "v", "--encrypt", "--key-file", key)
    run(t, "volume", "snapshot", f"{path}@s", "--key-file", key)
    server = serve(t, f"d=vol:{path}?key-file={key}", f"s=vol:{path}@s?key-file={key}")
    check_eq(disk(server, "s").read(0, 512), bytes(512), "the snapshot")
    server.stop()


@test
def test_a_process_with_a_key_leaves_no_core(t):
    key = key_file(t)
    path = make(t, "16M", "v", "--encrypt", "--key-file", key)
    server = serve(t, f"d=vol:{path}?key-file={key}")
    disk(server, "d").write(0, sector())
    limits = pathlib.Path(f"/proc/{server.pid}/limits").read_text()
    line = next(each for each in limits.split("\n") if each.startswith("Max core file size"))
    check_eq(line.split()[4:6], ["0", "0"], line)
    os.kill(server.pid, signal.SIGABRT)
    _, status = os.waitpid(server.pid, 0)
    server.proc.returncode = -signal.SIGABRT
    check(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT and not os.WCOREDUMP(status), f"status {status}")


@test
def test_nobody_of_its_user_looks_into_a_process_with_a_key(t):
    if os.geteuid() != 0:
        raise suite.Skip("needs root to be another user")
    key = key_file(t)
    path = make(t, "16M", "v", "--encrypt", "--key-file", key)
    # What any user can run and read, wherever the tree is.
    program = t.tmp / "netblk"
    shutil.copy(command.NETBLK, program)
    for each in (t.tmp, program, path, path / "data", key):
        os.chmod(each, 0o777)
    fill(t, f"vol:{path}?key-file={key}")
    p = subprocess.Popen([program, "volume", "scrub", path, "--rate", "1", "--key-file", key], user=65534, group=65534,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    t.defer(lambda: (p.kill(), p.wait()))
    # The kernel gives the files of such a process to root.
    suite.wait_until(lambda: (path / "control").exists(), 60, "that it has the volume")
    check_eq(int(re.search(r"^Uid:\s+(\d+)", pathlib.Path(f"/proc/{p.pid}/status").read_text(), re.M)[1]), 65534, "whose process it is")
    check_eq(os.stat(f"/proc/{p.pid}/mem").st_uid, 0, "whose memory it is")


@test
def test_a_terminal_is_asked_and_shows_nothing(t):
    words = "typed at a terminal"
    path = make(t, "16M", "v", "--encrypt", "--passphrase-file", passphrase(t, words))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(command.NETBLK, [command.NETBLK, "volume", "info", str(path)], command.environment(t))
    ended = []
    t.defer(lambda: ended or (os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)))
    t.defer(lambda: os.close(terminal))
    shown, typed, end = b"", False, time.monotonic() + suite.bound(60)
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            got = os.read(terminal, 4096)
        except OSError as error:
            check_eq(error.errno, errno.EIO, "the terminal's end")
            break
        if not got:
            break
        shown += got
        if not typed and b"Passphrase of" in shown:
            typed = True
            os.write(terminal, words.encode() + b"\n")

    def wait():
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended.append(status)
        return done
    suite.wait_until(wait, 60, f"its end; shown {shown!r}")
    check_eq(os.waitstatus_to_exitcode(ended[0]), 0, f"status; shown {shown!r}")
    check(b"16 MiB" in shown, shown)
    check(words.encode() not in shown, "the passphrase was shown")


if __name__ == "__main__":
    sys.exit(suite.main("volume-keys"))
