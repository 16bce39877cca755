#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Another program's disks of ublk_drv, by its control device alone: one ring, one command.

    ublk_foreign.py            adds disk 0, which nobody serves
    ublk_foreign.py stop N     stops disk N, whosever it is
    ublk_foreign.py delete N
"""
import ctypes
import mmap
import os
import struct
import sys

SETUP, ENTER = 425, 426
SQE128, GETEVENTS, URING_CMD = 1 << 10, 1, 46
ADD, DELETE, STOP = 0x04, 0x05, 0x07

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def command(number, disk, buffer=0, length=0):
    params = (ctypes.c_uint32 * 30)()
    params[2] = SQE128
    ring = call(SETUP, 2, params)
    words = list(params)
    sq, cq = words[10:20], words[20:30]
    # one mapping for both rings (IORING_FEAT_SINGLE_MMAP), one for the entries
    rings = mmap.mmap(ring, max(sq[6] + words[0] * 4, cq[5] + words[1] * 16), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
    entries = mmap.mmap(ring, words[0] * 128, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0x10000000)
    control = os.open("/dev/ublk-control", os.O_RDWR)
    entries[0:128] = struct.pack("<BBHiII", URING_CMD, 0, 0, control, number, 0).ljust(48, b"\0") + \
        struct.pack("<IHHQQQ", disk, 0xffff, length, buffer, 0, 0).ljust(80, b"\0")
    rings[sq[6]:sq[6] + 4] = struct.pack("<I", 0)
    rings[sq[1]:sq[1] + 4] = struct.pack("<I", 1)
    call(ENTER, ring, 1, 1, GETEVENTS, None, 0)
    return struct.unpack_from("<i", rings, cq[5] + 8)[0]


def main():
    if len(sys.argv) == 1:
        # ublksrv_ctrl_dev_info: queues, depth, state, pad, bytes of a buffer, number, pid, pad, flags, and what is the server's
        info = ctypes.create_string_buffer(struct.pack("<HHHHIIiIQQ", 1, 4, 0, 0, 65536, 0, 0, 0, 0, 7).ljust(64, b"\0"), 64)
        result = command(ADD, 0, ctypes.addressof(info), 64)
    else:
        result = command({"stop": STOP, "delete": DELETE}[sys.argv[1]], int(sys.argv[2]))
    if result != 0:
        sys.exit(f"the kernel answers {result}: {os.strerror(-result)}")


if __name__ == "__main__":
    main()
