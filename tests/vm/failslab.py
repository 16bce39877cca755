#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""One allocation fails: the first, then the second, until what is done makes no more. Uses the kernel's fail-nth.

usage: failslab.py MODULE MOST PROTOCOL loading|connect|thread|adding
  loading   the module is loaded                 connect   connect is written; its writer's allocations fail
  adding    a device is added                    thread    the same; those of the device's thread fail
Prints how many allocations there were and how it ended each time; exit 1 when what went well does not work.
"""
import collections
import ctypes
import errno
import os
import subprocess
import sys
import time

if len(sys.argv) != 5:
    sys.exit(__doc__.strip())
module, most, protocol, what = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE, DELETE_MODULE = 313, 176  # x86-64
SYSFS = "/sys/block/netblk/"
fd = os.open(module, os.O_RDONLY) if what == "loading" else -1


def write(path, text):
    f = -1
    try:
        f = os.open(path, os.O_WRONLY)
        os.write(f, text)
        return 0
    except OSError as error:
        return error.errno
    finally:
        if f >= 0:
            os.close(f)


def load():
    return ctypes.get_errno() if libc.syscall(FINIT_MODULE, fd, b"server_ip=127.0.0.1 protocol=" + protocol.encode(), 0) else 0


def begin():
    if what in ("connect", "thread"):
        write(SYSFS + "disconnect", b"1")


# the device's thread makes the sockets, its writer the request for it; adding is a thread, a disk and a connect in one
def act():
    if what == "loading":
        return load()
    if what == "adding":
        return write("/sys/bus/netblk/add", b"server_ip=127.0.0.1 size_mb=8 access=shared number=1 protocol=" + protocol.encode())
    return write(SYSFS + "connect", b"1")


def end(error):
    """What went well must work, and go."""
    if error:
        return
    if what == "loading":
        if libc.syscall(DELETE_MODULE, b"net_block_driver", 0):
            raise SystemExit(f"the module cannot be unloaded: {os.strerror(ctypes.get_errno())}")
    elif what == "adding":
        if not os.path.exists("/sys/block/netblk-1"):
            raise SystemExit("an add that succeeded made no disk")
        while write("/sys/bus/netblk/remove", b"1") == errno.EBUSY:
            time.sleep(0.01)
    else:
        with open(SYSFS + "state", encoding="ascii") as f:
            state = f.read().strip()
        if state != "connected":
            raise SystemExit(f"a connect that succeeded left the state {state}")


def main():
    task = "thread-self"
    if what == "thread":
        task = subprocess.run(["pgrep", "-x", "netblk"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0]
    outcomes = collections.Counter()
    for nth in range(1, most):
        begin()
        fail_nth = os.open(f"/proc/{task}/fail-nth", os.O_RDWR)
        os.pwrite(fail_nth, str(nth).encode(), 0)
        error = act()
        left = int(os.pread(fail_nth, 16, 0))
        os.pwrite(fail_nth, b"0", 0)
        os.close(fail_nth)
        outcomes[errno.errorcode.get(error, "done")] += 1
        if what == "adding" and error and os.path.exists("/sys/block/netblk-1"):
            raise SystemExit(f"an add that failed with {errno.errorcode[error]} left a disk")
        end(error)
        if left:
            print(f"{what}, netblk/{protocol}: {nth - 1} allocations failed in turn: {dict(outcomes)}")
            if nth < 4 or "ENOMEM" not in outcomes and what != "thread":
                raise SystemExit("no allocation of the driver failed: nothing was tested")
            raise SystemExit(0)
    raise SystemExit(f"not through after {nth} allocations: {dict(outcomes)}")


if __name__ == "__main__":
    main()
