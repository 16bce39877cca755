#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""fio --verify on a disk of the netblk/2 client library, while its server is killed, stopped, cut off and restarted.

The disk is the client under FUSE and a loop device. Between client and server stands a proxy that can stand for a
network: it drops connections, and it goes silent in one direction or both. Nothing may be lost, nothing may be read that
was not written, no request may fail, and nothing may hang.  NETBLK names the client (default build/output/netblk)."""

import json
import os
import pathlib
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import serverproc
import suite
from suite import Skip, check, check_eq, test

NETBLK = os.environ.get("NETBLK") or str(suite.ROOT / "build/output/netblk")


def cli(*args, status=0, seconds=60):
    p = subprocess.run([NETBLK, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       timeout=seconds * suite.TIME_SCALE)
    check_eq(p.returncode, status, f"status of netblk {' '.join(map(str, args))}; stderr {p.stderr!r}")
    return p.stdout


class Proxy:
    """A network between one port and another, on a thread of its own."""

    def __init__(self, t, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.listener.setblocking(False)
        self.silent = set()  # of "up", "down": what is not carried
        self.pairs = {}      # socket -> (peer, direction)
        self.waiting = {}    # socket -> bytes not yet taken
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.orders = []
        self.stopping = False
        self.carried = 0
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        t.defer(self.stop)

    def stop(self):
        self.stopping = True
        self.thread.join()

    def cut(self):
        """Every connection is reset."""
        self.orders.append("cut")

    def close(self, one):
        for end in (one, self.pairs.get(one, (None,))[0]):
            if end is None or self.pairs.pop(end, None) is None:
                continue
            self.selector.unregister(end)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.close()
            self.waiting.pop(end, None)

    def accept(self):
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            client.close()
            return
        for end, peer, way in ((client, server, "up"), (server, client, "down")):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs[end] = (peer, way)
            self.selector.register(end, selectors.EVENT_READ)

    def push(self, peer, data):
        try:
            sent = peer.send(data)
        except BlockingIOError:
            sent = 0
        self.carried += sent
        if sent < len(data):
            self.waiting[peer] = data[sent:]
        else:
            self.waiting.pop(peer, None)

    def run(self):
        while not self.stopping:
            if self.orders:
                self.orders.clear()
                for end in list(self.pairs):
                    self.close(end)
            moved = False
            for key, _ in self.selector.select(0.02):
                if key.fileobj is self.listener:
                    self.accept()
                    continue
                end = key.fileobj
                if end not in self.pairs:
                    continue
                peer, way = self.pairs[end]
                if way in self.silent or peer in self.waiting:
                    continue
                try:
                    data = end.recv(1 << 18)
                    if data:
                        moved = True
                        self.push(peer, data)
                        continue
                except BlockingIOError:
                    continue
                except OSError:
                    pass
                self.close(end)
            for peer, data in list(self.waiting.items()):
                try:
                    self.push(peer, data)
                except OSError:
                    self.close(peer)
            if not moved:
                time.sleep(0.001)
        for end in list(self.pairs):
            self.close(end)
        self.listener.close()


def needs():
    if not os.access(NETBLK, os.X_OK):
        raise Skip(f"no client at {NETBLK}")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise Skip("needs root, /dev/fuse and /dev/loop-control")


def status_of(device):
    for entry in json.loads(cli("status", "--json")):
        if entry["device"] == device:
            return entry
    raise AssertionError(f"{device} is not in netblk status")


@test(timeout=1800)
def test_fio_verify_through_every_fault(t):
    needs()
    rng = random.Random(suite.SEED)
    path, port = t.tmp / "disk.img", serverproc.free_port()
    server = serverproc.start_export(t, f"disk=file:{path}?size=64M", port=port)
    proxy = Proxy(t, port)
    device = cli("attach", f"netblk://127.0.0.1:{proxy.port}/disk", "--via", "fuse").strip()
    t.defer(lambda: subprocess.run([NETBLK, "detach", device], capture_output=True, check=False))
    rounds = suite.count(100, 8)
    # A quarter of a second between faults at the least, and up to four for the slowest.
    job = subprocess.Popen(
        ["fio", "--name=verify", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--iodepth=16",
         "--rw=randrw", "--bsrange=4k-64k", "--bs_unaligned=0", "--blockalign=4k", "--size=48m", "--verify=crc32c",
         "--verify_backlog=128", "--verify_fatal=1", "--fsync=32", "--time_based", "--runtime=3600", "--output-format=json",
         f"--randseed={rng.randrange(1 << 30)}"],
        cwd=t.tmp, stdin=subprocess.DEVNULL, stdout=open(t.tmp / "fio.json", "wb"), stderr=open(t.tmp / "fio.err", "wb"))
    t.defer(lambda: (job.kill(), job.wait()))
    happened = {}
    for number in range(rounds):
        kind = ("kill", "stop", "cut", "silent-up", "silent-both", "restart")[number % 6]
        time.sleep(rng.uniform(0.2, 1.2))
        check(job.poll() is None, f"fio ended in round {number}, before {kind}: "
                                  f"{(t.tmp / 'fio.err').read_text(errors='replace')[-400:]}")
        happened[kind] = happened.get(kind, 0) + 1
        if kind in ("kill", "restart"):
            if kind == "kill":
                server.kill()
            else:
                server.stop(60)
            time.sleep(rng.uniform(0, 0.8))
            server = serverproc.start_export(t, f"disk=file:{path}?size=64M", port=port)
        elif kind == "stop":
            server.stand_still()
            time.sleep(rng.uniform(0.1, 3))
            server.go_on()
        elif kind == "cut":
            proxy.cut()
        else:
            proxy.silent = {"up"} if kind == "silent-up" else {"up", "down"}
            time.sleep(rng.uniform(0.1, 3))
            # What was under way when the silence began arrives late, or is cut off: both happen.
            if rng.random() < 0.5:
                proxy.cut()
            proxy.silent = set()
    # It goes on after the last fault: bytes move again.
    before = proxy.carried
    suite.wait_until(lambda: proxy.carried > before + (4 << 20), 60, "data after the last fault")
    job.send_signal(signal.SIGINT)
    job.wait(suite.bound(60))
    text = (t.tmp / "fio.json").read_text(errors="replace")
    report = json.loads(text[text.index("{"):])["jobs"][0]
    check_eq(report["error"], 0, f"fio's error; {(t.tmp / 'fio.err').read_text(errors='replace')[-400:]}")
    check(report["read"]["total_ios"] > 100 and report["write"]["total_ios"] > 100, "fio did little")
    suite.wait_until(lambda: status_of(device)["state"] == "connected", 60, f"a connection after {happened}")
    state = status_of(device)
    check(not state.get("lost"), f"the client says that writes were lost: {state}")
    cli("detach", device)


if __name__ == "__main__":
    sys.exit(suite.main("verify2"))
