#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Direct I/O with judgement: one request at a time, past the page cache, into memory of known content.

usage: dio.py read DEVICE FILE OFFSET LENGTH [COUNT]   prints one word for each of COUNT reads, LENGTH apart:
           same      the bytes of FILE        EIO, ...  the error's name
           stale     the buffer was not filled, though the read succeeded      differs  any other bytes
       dio.py write DEVICE OFFSET LENGTH BYTE [COUNT]  writes BYTE; prints ok or the error's name for each
"""
import errno
import mmap
import os
import sys

POISON = 0xA5  # what the buffer holds before a read: no test file has a run of it


def report(function):
    try:
        return function()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))


def read_one(device, file, offset, length, buffer):
    buffer[:] = bytes([POISON]) * length
    got = os.preadv(device, [buffer], offset)
    if got != length:
        return f"short:{got}"
    data = bytes(buffer)
    if data == os.pread(file, length, offset):
        return "same"
    return "stale" if bytes([POISON]) * 64 in data else "differs"


def main():
    arguments = sys.argv[1:]
    if len(arguments) >= 5 and arguments[0] == "read":
        device = os.open(arguments[1], os.O_RDONLY | os.O_DIRECT)
        file = os.open(arguments[2], os.O_RDONLY)
        offset, length = int(arguments[3]), int(arguments[4])
        buffer = mmap.mmap(-1, length)
        for number in range(int(arguments[5]) if len(arguments) > 5 else 1):
            print(report(lambda: read_one(device, file, offset + number * length, length, buffer)), flush=True)
    elif len(arguments) >= 5 and arguments[0] == "write":
        device = os.open(arguments[1], os.O_WRONLY | os.O_DIRECT)
        offset, length, byte = int(arguments[2]), int(arguments[3]), int(arguments[4])
        buffer = mmap.mmap(-1, length)
        buffer[:] = bytes([byte]) * length
        for number in range(int(arguments[5]) if len(arguments) > 5 else 1):
            at = offset + number * length
            print(report(lambda: "ok" if os.pwritev(device, [buffer], at) == length else "short"), flush=True)
    else:
        sys.exit(__doc__.strip())


if __name__ == "__main__":
    main()
