# SPDX-License-Identifier: GPL-2.0-only
"""Prints how many thousand ticks this machine's time stamp counter makes in a second; nothing where it has none.

An emulated processor's counter is this one (qemu's cpu_get_host_ticks). A guest that measures it while this machine holds it up
gets another figure, and its clock then runs several times too fast: what it believes to have waited for 60 s took 15.
"""

import ctypes
import mmap
import platform
import time

# rdtsc; shl rdx, 32; or rax, rdx; ret
RDTSC = bytes.fromhex("0f31" "48c1e220" "4809d0" "c3")


def sample(ticks):
    """The counter and the time, read as close to each other as many tries can have them."""
    best = None
    for _ in range(200):
        before, count, after = time.monotonic_ns(), ticks(), time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2, count)
    return best[1:]


def main():
    if platform.machine() != "x86_64":
        return
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(RDTSC)
    ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    began, first = sample(ticks)
    time.sleep(0.2)
    ended, last = sample(ticks)
    print(round((last - first) * 1_000_000 / (ended - began)))


if __name__ == "__main__":
    main()
