#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Direct I/O with judgement: one request at a time, past the page cache, into memory of known content.

usage: dio.py read DEVICE FILE OFFSET LENGTH [COUNT]   prints one word for each of COUNT reads, LENGTH apart:
           same      the bytes of FILE        EIO, ...  the error's name
           stale     the buffer was not filled, though the read succeeded      differs  any other bytes
       dio.py write DEVICE OFFSET LENGTH BYTE [COUNT]  writes BYTE; prints ok or the error's name for each
       dio.py mixed DEVICE FILE COUNT THREADS          COUNT reads (of the second MiB) and writes (of the third) of 4096
           bytes by THREADS at once; prints how often each word came, then FILE's verdict on the last writes
"""
import collections
import errno
import mmap
import os
import random
import sys
import threading

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


def mixed(device, file, count, threads):
    words, wrote = collections.Counter(), {}

    def work(number):
        dice, buffer = random.Random(number), mmap.mmap(-1, 4096)
        mine = range((2 << 20) + number * 16384, (2 << 20) + (number + 1) * 16384, 4096)
        for n in range(count // threads):
            if dice.random() < 0.7:
                word = report(lambda: read_one(device, file, (1 << 20) + dice.randrange(256) * 4096, 4096, buffer))
            else:
                offset, data = dice.choice(mine), dice.randbytes(64) * 64
                buffer[:] = data
                word = report(lambda: "ok" if os.pwritev(device, [buffer], offset) == 4096 else "short")
                if word == "ok":
                    wrote[offset] = data
            words[word] += 1

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for word, times in sorted(words.items()):
        print(word, times)
    print("last writes", "differ" if any(os.pread(file, 4096, at) != data for at, data in wrote.items()) else "same")


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
    elif len(arguments) == 5 and arguments[0] == "mixed":
        mixed(os.open(arguments[1], os.O_RDWR | os.O_DIRECT), os.open(arguments[2], os.O_RDONLY), int(arguments[3]), int(arguments[4]))
    else:
        sys.exit(__doc__.strip())


if __name__ == "__main__":
    main()
