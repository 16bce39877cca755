#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""fio --verify on an export of our NBD server, which is killed (SIGKILL) and started again, behind a client that retries
(nbdkit's nbd plugin under its retry filter).

What NBD promises is all that such a client can rest on: what was acknowledged is there after the process is gone, what
was not answered is written again. Nothing may be lost, no request may fail, nothing may hang."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd_target
import serverproc
import suite
from nbd_target import MIB
from suite import Skip, check, check_eq, test

SIZE = 256 * MIB


class Killer(threading.Thread):
    """Kills the server `kills` times, each time when it has changed the file since it was started."""

    def __init__(self, t, path, port, kills):
        super().__init__(daemon=True)
        self.t, self.path, self.port, self.kills, self.error = t, path, port, kills, None
        self.rng = random.Random(suite.SEED)
        self.begin()

    def begin(self):
        self.server = serverproc.Server(self.t, ["--export", f"disk=file:{self.path}", "--listen", f"nbd://127.0.0.1:{self.port}"],
                                        [self.port])
        self.changed = os.stat(self.path).st_mtime_ns

    def run(self):
        try:
            for n in range(self.kills):
                suite.wait_until(lambda: os.stat(self.path).st_mtime_ns != self.changed, 60, f"a write after start {n}")
                time.sleep(self.rng.random() * 0.3)
                self.server.check_alive()
                self.server.signal(signal.SIGKILL)
                self.server.wait()
                self.begin()
        except BaseException as e:
            self.error = e


def fio(t, *options, seconds):
    p = subprocess.run(["fio", "--name=x", "--output-format=json", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1",
                        "--randrepeat=0", "--allow_file_create=0", *options],
                       cwd=t.tmp, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds * suite.TIME_SCALE)
    check(p.returncode == 0, f"fio: status {p.returncode}: {p.stderr.strip()[-500:]} {p.stdout[:p.stdout.find('{')].strip()[-500:]}")
    job, = json.loads(p.stdout[p.stdout.index("{"):])["jobs"]
    check_eq(job["error"], 0, "fio's error")
    return job


def retrying(t, port):
    """A socket behind which nbdkit keeps trying to reach the server."""
    sock = t.tmp / "retry.sock"
    with open(t.tmp / "server-nbdkit.log", "wb") as log:
        # retry: of a first connection; retries: of requests, each on a connection of its own
        kit = subprocess.Popen(["nbdkit", "-f", "-U", sock, "--filter=retry", "nbd", f"uri=nbd://127.0.0.1:{port}/disk", "retry=120",
                                "retries=120", "retry-delay=1", "retry-exponential=no"],
                               stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    t.defer(lambda: (kit.terminate(), kit.wait()))
    nbd_target.wait_socket(sock)
    return sock


def while_killed(t, kills, prepare):
    """What prepare(socket) gives back is run again and again until all kills are done, then once more."""
    path, port = nbd_target.image(t, SIZE), serverproc.free_port()
    killer = Killer(t, path, port, kills)
    run = prepare(retrying(t, port))
    killer.start()
    while killer.is_alive():
        run()
    killer.join()
    if killer.error:
        raise killer.error
    run()
    killer.server.check_alive()


@test(timeout=900)
def test_fio_verify_while_the_server_is_killed(t):
    def prepare(sock):
        return lambda: fio(t, "--ioengine=nbd", f"--uri=nbd+unix:///?socket={sock}", "--size=64m", "--io_size=24m", "--rw=randwrite",
                           "--bsrange=4k-64k", "--iodepth=16", seconds=300)
    while_killed(t, suite.count(100, 3), prepare)


@test(timeout=900)
def test_file_system_while_the_server_is_killed(t):
    """ext4 on a loop device on nbdfuse: mounted all the time, and clean at the end."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise Skip("needs root, /dev/fuse and /dev/loop-control")
    fuse, at = t.tmp / "fuse", t.tmp / "at"
    fuse.mkdir()
    at.mkdir()
    loop = []

    def prepare(sock):
        process = subprocess.Popen(["nbdfuse", fuse, f"nbd+unix:///?socket={sock}"], stdin=subprocess.DEVNULL)
        t.defer(process.wait)
        t.defer(lambda: subprocess.run(["fusermount3", "-u", "-z", fuse], capture_output=True, check=False))
        suite.wait_until((fuse / "nbd").exists, 20, "nbdfuse's file")
        loop.append(subprocess.run(["losetup", "-f", "--show", fuse / "nbd"], capture_output=True, text=True, check=True).stdout.strip())
        t.defer(lambda: subprocess.run(["losetup", "-d", loop[0]], capture_output=True, check=False))
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", loop[0]], check=True)
        subprocess.run(["mount", "-o", "errors=remount-ro", loop[0], at], check=True)
        t.defer(lambda: subprocess.run(["umount", "-l", at], capture_output=True, check=False))
        return lambda: fio(t, "--ioengine=psync", f"--directory={at}", "--allow_file_create=1", "--size=16m", "--rw=randwrite",
                           "--bs=4k", "--fsync=512", "--end_fsync=1", seconds=300)
    while_killed(t, suite.count(100, 2), prepare)
    options = subprocess.run(["findmnt", "-no", "OPTIONS", at], capture_output=True, text=True, check=True).stdout.strip().split(",")
    check("rw" in options, f"the file system is still writable: {options}")
    subprocess.run(["umount", at], check=True)
    p = subprocess.run(["e2fsck", "-f", "-n", loop[0]], capture_output=True, text=True, check=False)
    check_eq(p.returncode, 0, f"status of e2fsck: {p.stdout[-300:]}")


if __name__ == "__main__":
    sys.exit(suite.main("nbd-verify"))
