# SPDX-License-Identifier: GPL-2.0-only
"""Rows of run.py for NBD: our server beside Debian's servers and the floor, all with the same public clients."""
import os
import shlex
import shutil
import subprocess
import time

from rows2 import free_port, process_seconds

# name: fio's rw, block size, in flight for each connection, connections
CASES = {"randread 4k qd1": ("randread", "4k", 1, 1), "randread 4k qd32": ("randread", "4k", 32, 1),
         "randwrite 4k qd32": ("randwrite", "4k", 32, 1), "randrw 4k qd32 x 4": ("randrw", "4k", 32, 4),
         "read 1m qd8": ("read", "1m", 8, 1), "write 1m qd8": ("write", "1m", 8, 1)}
# case, kind of store: what is judged: (key, least or most, of the best peer)
GOALS = {("randrw 4k qd32 x 4", "memory"): "requests/s ≥ 2, CPU ≤ 0.35", ("randrw 4k qd32 x 4", "file"): "≥ 1.2, ≤ 0.9",
         ("randread 4k qd32", "file"): "≥ 1.25, ≤ 0.75", ("read 1m qd8", "file"): "≥ 1, ≤ 0.7",
         ("write 1m qd8", "file"): "≥ 1, ≤ 1", ("read 1m qd8", "memory"): "≥ 1, ≤ 0.7", ("write 1m qd8", "memory"): "≥ 1, ≤ 1"}


class RowsNbd:
    """Mixed into Bench."""

    def nbd_image(self, name, mib):
        where = "/dev/shm" if os.path.isdir("/dev/shm") else self.directory
        path = os.path.join(where, f"netblk-bench-{os.getpid()}-{name}.img")
        if path not in self.images:
            self.images.append(path)
            chunk = os.urandom(16 << 20)
            with open(path, "wb") as file:
                for _ in range(mib >> 4):
                    file.write(chunk)
        return path

    def nbd_netblk(self, name, store, *options):
        def start():
            port = free_port()
            words = [self.netblk, "--export", f"a={store}", "--listen", f"nbd://127.0.0.1:{port}", *options]
            if self.args.nbd_threads:
                words += ["--threads", str(self.args.nbd_threads)]
            return self.Server(self, name, words + shlex.split(self.args.server_options), port)
        return start

    def busy_poll(self):
        if self.netblk is None:
            return ()
        told = subprocess.run([self.netblk, "--help"], stdout=subprocess.PIPE, text=True, check=False).stdout
        return ("--busy-poll", "50") if "--busy-poll" in told else ()

    def nbd_stores(self, mib, only=None):
        """name: (kind of store, a function that starts it); for a file, each its own on tmpfs: the page cache."""
        size = f"{mib}M"
        peers = {}

        def add(name, kind, start, program=None):
            if (only is None or name in only) and (program is None or shutil.which(program)):
                peers[name] = (kind, start)

        def plain(name, words):
            def start():
                port = free_port()
                return self.Server(self, name, [word.replace("PORT", str(port)) for word in words], port)
            return start

        def image(name):
            return self.nbd_image(f"{name}-{mib}", mib)

        floor = self.tool("bench_floor_nbd")
        add("floor memory", "memory", lambda: self.Server(self, "floor memory", [floor, "memory", "--size", size]))
        add("floor file", "file", lambda: self.Server(self, "floor file", [floor, "file", image("floor")]))
        if self.netblk is not None:
            add("netblk memory", "memory", self.nbd_netblk("netblk memory", f"mem:{size}"))
            add("netblk file", "file", lambda: self.nbd_netblk("netblk file", f"file:{image('netblk')}")())
            if self.busy_poll():
                add("netblk memory, busy poll", "memory", self.nbd_netblk("netblk memory, busy poll", f"mem:{size}",
                                                                          *self.busy_poll()))
                add("netblk file, busy poll", "file", lambda: self.nbd_netblk(
                    "netblk file, busy poll", f"file:{image('netblk-poll')}", *self.busy_poll())())
        add("nbdkit memory", "memory", plain("nbdkit memory", ["nbdkit", "-f", "-i", "127.0.0.1", "-p", "PORT", "memory", size]),
            "nbdkit")
        add("nbdkit file", "file", lambda: plain("nbdkit file", ["nbdkit", "-f", "-i", "127.0.0.1", "-p", "PORT", "file",
                                                                 image("nbdkit")])(), "nbdkit")
        add("qemu-nbd", "file", lambda: plain("qemu-nbd", ["qemu-nbd", "-t", "-f", "raw", "-e", "16", "-b", "127.0.0.1", "-p",
                                                           "PORT", "--cache=writeback", "--aio=io_uring", image("qemu")])(),
            "qemu-nbd")
        add("nbd-server", "file", lambda: self.nbd_server(image("nbd-server")), "nbd-server")
        return peers

    def row_nbd(self):
        """One client for all; nothing is pinned, so that servers with many threads and clients with many jobs get both
        cores."""
        pinned, self.machine.pinned = self.machine.pinned, False
        mib = self.args.nbd_mib
        stores, servers, raw = self.nbd_stores(mib), {}, {}
        try:
            for name, (kind, start) in stores.items():
                servers[name] = start()
                if kind == "memory":
                    self.fio_nbd(servers[name], "write", "1m", 8, 1, f"{mib}M")
            for number in range(self.args.rounds):
                for case, (rw, block, depth, connections) in CASES.items():
                    self.say(f"  nbd: round {number + 1}, {case}")
                    for name, server in servers.items():
                        if "busy" in name and depth > 1:
                            continue
                        raw.setdefault((case, name), []).append(
                            self.fio_nbd(server, rw, block, depth, connections, f"{mib}M"))
        finally:
            self.machine.pinned = pinned
            for server in servers.values():
                server.stop()
        found = {key: self.Measured(self.keep("nbd", key[0], key[1], values), values) for key, values in raw.items()}
        lines = []
        for case in CASES:
            for name, (kind, _) in stores.items():
                m = found.get((case, name))
                if m is None:
                    continue
                cells = ["-"] * 6
                if name.startswith("netblk"):
                    # A store in memory has the peer of its kind; of the servers of files the best one is a peer to both.
                    rivals = [found[case, n] for n, (k, _) in stores.items()
                              if not n.startswith(("netblk", "floor")) and (k == kind or kind == "memory")]
                    if rivals:
                        best = max(rivals, key=lambda r: r["iops"])
                        thrifty = min(rivals, key=lambda r: r["server_cpu_us_per_request"])
                        quick = min(rivals, key=lambda r: r["p50_us"])
                        cells[:3] = [self.figure(self.ratio(m, best, "iops")),
                                     self.figure(self.ratio(m, thrifty, "server_cpu_us_per_request")),
                                     self.figure(self.ratio(m, quick, "p50_us"))]
                    floor = found[case, f"floor {kind}"]
                    goal = GOALS.get((case, kind), "CPU ≤ 1.3 of the floor's")
                    if case.endswith("qd1"):
                        goal = "p50 ≤ 0.7 of the peer's" if "busy" in name else "requests/s ≥ 0.9 of the floor's"
                    cells[3:] = [self.figure(self.ratio(m, floor, "iops")),
                                 self.figure(self.ratio(m, floor, "server_cpu_us_per_request")), goal]
                lines.append([case, name, *cells, self.figure(m["iops"]), self.figure(m["mib_per_s"]),
                              self.figure(m["server_cpu_us_per_request"]), self.figure(m["p50_us"], 1)])
        self.table("NBD: fio's nbd engine on every server",
                   ["case", "server", "requests/s ÷ best peer's", "CPU ÷ thriftiest peer's", "p50 ÷ quickest peer's",
                    "requests/s ÷ floor's", "CPU ÷ floor's", "goal", "requests/s", "MiB/s", "server CPU µs", "p50 µs"], lines,
                   "Nothing is pinned. CPU: all threads, children included, per request. The floor's goal is 1.3 in every case, but "
                   "for busy polling, which takes a processor.")

    def row_nbdcopy(self):
        """An image (1 GiB) to and from each server, with nbdcopy's own choice of connections and with four."""
        if not shutil.which("nbdcopy"):
            raise self.Failure("no nbdcopy here")
        pinned, self.machine.pinned = self.machine.pinned, False
        stores = self.nbd_stores(4 * self.args.nbd_mib, ("floor memory", "netblk memory", "nbdkit memory", "netblk file",
                                                         "nbdkit file", "qemu-nbd", "nbd-server"))
        local = self.nbd_image("local-copy", 4 * self.args.nbd_mib)
        raw = {}
        try:
            for number in range(self.args.rounds):
                for name, (_, start) in stores.items():
                    self.say(f"  nbdcopy: round {number + 1}, {name}")
                    server = start()
                    try:
                        uri = f"nbd://127.0.0.1:{server.port}/{'a' if name == 'nbd-server' else ''}"
                        for way, words in {"to": [local, uri], "from": [uri, "null:"]}.items():
                            for how, more in {"its default": [], "4 connections": ["--connections=4"]}.items():
                                before, began = process_seconds(server.pid), time.monotonic()
                                run = subprocess.run(["nbdcopy", *more, *words], stderr=subprocess.PIPE, text=True, timeout=120,
                                                     check=False)
                                took = time.monotonic() - began
                                if run.returncode != 0:
                                    raise self.Failure(f"nbdcopy {way} {name}: {run.stderr[-300:]}")
                                raw.setdefault((f"{way} the server, {how}", name), []).append(
                                    {"seconds": took, "errors": 0, "server_cpu_s": process_seconds(server.pid) - before})
                    finally:
                        server.stop()
        finally:
            self.machine.pinned = pinned
        found = {key: self.Measured(self.keep("nbdcopy", key[0], key[1], values), values) for key, values in raw.items()}
        lines = []
        for (case, name), m in found.items():
            rivals = [each for (c, n), each in found.items() if c == case and not n.startswith(("netblk", "floor"))
                      and (stores[n][0] == stores[name][0])]
            best = min(rivals, key=lambda r: r["seconds"]) if rivals and name.startswith("netblk") else None
            lines.append([case, name, self.figure(self.ratio(best, m, "seconds")) if best else "-", self.figure(m["seconds"], 3),
                          self.figure(m["server_cpu_s"], 3)])
        self.table(f"nbdcopy of an image of {4 * self.args.nbd_mib} MiB", ["case", "server", "quickest peer's time ÷ this", "seconds", "server CPU s"],
                   sorted(lines), "Goal: > 1, like store against like store. Each server starts anew in each round.")

    ROWS_NBD = {"nbd": row_nbd, "nbdcopy": row_nbdcopy}
