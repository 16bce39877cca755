#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Does what fsync promised survive a power loss at any moment? A file system's work, recorded below the server by
dm-log-writes (which logs a write when a flush has covered it), is replayed to every flush and looked at.

usage: flush_order.py write FOLDER DM-NAME COUNT     writes, fsyncs, and marks the log after each fsync that succeeded
       flush_order.py check LOG-DEVICE SIZE_MB POINTS [drop]   replays; prints what it saw; exit 3 at the first lie.
           POINTS: how many of the flushes to look at, evenly (every mark is one besides)
           drop: leaves out every flushed write of the file system's data: the check must notice (it can fail)
"""
import hashlib
import os
import random
import struct
import subprocess
import sys
import tempfile

MAGIC, FLUSH, FUA, DISCARD, MARK = 0x6A736677736872, 1, 2, 4, 8
SUPER, ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


def content(number):
    return hashlib.shake_128(b"%d" % number).digest(700 + number * 3001 % 90000)


def mark(dm_name, text):
    subprocess.run(["dmsetup", "message", dm_name, "0", "mark", text], check=True)


def write(folder, dm_name, count):
    dice = random.Random(1)
    mark(dm_name, "made")
    directory = os.open(folder, os.O_RDONLY)
    for number in range(count):
        # what nobody promised anything about, before and between
        with open(f"{folder}/noise-{dice.randrange(4)}", "wb") as noise:
            noise.write(dice.randbytes(dice.randrange(200000)))
        name, data = f"{folder}/file-{number}", content(number)
        way = number % 3
        fd = os.open(name + ".new" if way == 1 else name, os.O_CREAT | os.O_WRONLY | (os.O_DSYNC if way == 2 else 0))
        for at in range(0, len(data), 30000):
            os.write(fd, data[at:at + 30000])
        if way != 2:
            os.fsync(fd)
        os.close(fd)
        if way == 1:
            os.rename(name + ".new", name)
        os.fsync(directory)
        mark(dm_name, f"file-{number}")


class Lie(Exception):
    pass


def run(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


def look(image, copy, promised):
    run("cp", "--sparse=always", image, copy)
    run("e2fsck", "-E", "journal_only", "-fy", copy)
    after = run("e2fsck", "-fn", copy)
    if after.returncode:
        raise Lie(f"e2fsck: {after.stdout[-300:]}")
    with tempfile.TemporaryDirectory() as folder:
        commands = "".join(f"dump /file-{n} {folder}/{n}\n" for n in range(promised))
        subprocess.run(["debugfs", "-f", "-", copy], input=commands, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        for n in range(promised):
            try:
                with open(f"{folder}/{n}", "rb") as f:
                    if f.read() != content(n):
                        raise Lie(f"file-{n} was synced and has other bytes")
            except FileNotFoundError:
                raise Lie(f"file-{n} was synced and is not there") from None


def entries(log):
    magic, version, number, sector_bytes = SUPER.unpack(os.pread(log, SUPER.size, 0))
    if magic != MAGIC or version != 1:
        sys.exit("this is no log of dm-log-writes")
    at = sector_bytes
    for _ in range(number):
        sector, sectors, flags, length = ENTRY.unpack(os.pread(log, ENTRY.size, at))
        text = os.pread(log, length, at + ENTRY.size).decode() if flags & MARK else ""
        at += sector_bytes
        yield sector * sector_bytes, sectors * sector_bytes, flags, text, at
        if not flags & DISCARD:
            at += sectors * sector_bytes


def check(log_path, size_mb, points, drop):
    log = os.open(log_path, os.O_RDONLY)
    listed = list(entries(log))
    made = next(i for i, entry in enumerate(listed) if entry[3] == "made")
    flushes = [i for i, entry in enumerate(listed) if i > made and entry[2] & (FLUSH | FUA)]
    marks = [i for i, entry in enumerate(listed) if i > made and entry[2] & MARK]
    if not marks or not flushes:
        sys.exit(f"{len(flushes)} flushes and {len(marks)} marks: nothing was tested")
    chosen = set(marks) | set(flushes[::max(1, len(flushes) // points)])
    promised, writes = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        image, copy = folder + "/image", folder + "/copy"
        target = os.open(image, os.O_RDWR | os.O_CREAT)
        os.truncate(target, size_mb << 20)
        for i, (offset, length, flags, text, at) in enumerate(listed):
            if flags & DISCARD:
                os.pwrite(target, bytes(length), offset)
            elif length and not (drop and i > made):
                os.pwrite(target, os.pread(log, length, at), offset)
                writes += 1
            if text.startswith("file-"):
                promised = int(text.removeprefix("file-")) + 1
            if i in chosen:
                try:
                    look(image, copy, promised)
                except Lie as lie:
                    print(f"at entry {i} of {len(listed)}, after {promised} promises: {lie}")
                    sys.exit(3)
    print(f"{len(chosen)} moments of {len(flushes)} flushes, {len(marks)} promises, {writes} writes replayed: all kept")


def main():
    arguments = sys.argv[1:]
    if len(arguments) == 4 and arguments[0] == "write":
        write(arguments[1], arguments[2], int(arguments[3]))
    elif len(arguments) in (4, 5) and arguments[0] == "check":
        check(arguments[1], int(arguments[2]), int(arguments[3]), arguments[4:] == ["drop"])
    else:
        sys.exit(__doc__.strip())


if __name__ == "__main__":
    main()
