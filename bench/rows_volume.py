# SPDX-License-Identifier: GPL-2.0-only
"""Rows of run.py for volumes: ours beside our own `file` and qemu-nbd on qcow2 and on raw, all by fio's nbd engine."""
import json
import os
import shlex
import shutil
import subprocess
import threading

from rows2 import free_port

# name: fio's rw, block size, in flight, further words
SEQUENTIAL = {"write 1m qd8": ("write", "1m", 8), "read 1m qd8": ("read", "1m", 8)}
RANDOM = {"randread 4k qd32": ("randread", "4k", 32),
          "randwrite 4k qd32, flush every 32": ("randwrite", "4k", 32, "--fsync=32"),
          "read 1m qd8, written at random": ("read", "1m", 8)}
NEW = {"randwrite 4k qd32, flush every 32, new disk": ("randwrite", "4k", 32, "--fsync=32")}
COMPRESSIBLE = ("--refill_buffers", "--buffer_compress_percentage=75", "--buffer_compress_chunk=4096")
PACKED = {"write 1m qd8, flush every 32, compressible": ("write", "1m", 8, "--fsync=32", *COMPRESSIBLE),
          "read 1m qd8, compressible, not from cache": ("read", "1m", 8),
          "read 1m qd8, compressible": ("read", "1m", 8)}
# While it is overwritten: a volume that collects, and one whose space factor lets it wait until after the measurement.
OVERWRITE = {"as fast as it goes": (), "5,000 a second": ("--rate_iops=5000",)}
OVERWRITE_SECONDS = 4.0
MOST_P99 = 3.0
# case: least of the rate of the peer
GOALS = {"write 1m qd8": {"raw": 0.8}, "read 1m qd8": {"raw": 0.8}, "randread 4k qd32": {"raw": 0.7},
         "randwrite 4k qd32, flush every 32": {"raw": 1.0, "qcow2": 2.0},
         "randwrite 4k qd32, flush every 32, new disk": {"raw": 1.0, "qcow2": 2.0}, **{case: {"raw": 1.0} for case in PACKED}}


def forget(path):
    """The next read of the file comes from the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Watch:
    """What the file of a volume takes while it is written to."""

    def __init__(self, bench, folder):
        self.bench, self.folder, self.over, self.infos = bench, folder, threading.Event(), []
        self.thread = threading.Thread(target=self.look)

    def look(self):
        while not self.over.wait(0.25):
            self.infos.append(json.loads(self.bench.volume_command("info", self.folder, "--json")))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def seen(self):
        spare = 12 * self.infos[0]["segment_bytes"]
        return {"factor": max(info["file_bytes"] / info["live_bytes"] for info in self.infos),
                "factor_without_spare": max((info["file_bytes"] - spare) / info["live_bytes"] for info in self.infos),
                "collected_bytes": self.infos[-1]["collected_bytes"] - self.infos[0]["collected_bytes"]}


class RowsVolume:
    """Mixed into Bench."""

    def volume_path(self, name):
        return os.path.join(self.args.data or self.directory, f"netblk-bench-{os.getpid()}-{name}")

    def volume_command(self, command, *words):
        done = subprocess.run([os.path.join(os.path.dirname(self.netblk), "netblk"), "volume", command, *words], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise self.Failure(f"netblk volume {command}: {done.stderr.strip()}")
        return done.stdout

    def volume_made(self, name, *options):
        folder = self.volume_path(name)
        self.volume_command("create", folder, "--size", f"{self.args.volume_mib}M", *options)
        return folder

    def volume_started(self, name, store):
        port = free_port()
        words = [self.netblk, "--export", f"a={store}", "--listen", f"nbd://127.0.0.1:{port}"]
        if self.args.nbd_threads:
            words += ["--threads", str(self.args.nbd_threads)]
        return self.Server(self, name, words + shlex.split(self.args.server_options), port)

    def volume_peers(self, what, compress=False):
        """name: (what starts it, the file that its bytes are in, what takes it away)."""
        peers, mib = {}, self.args.volume_mib

        def ours(name, store, file, gone):
            peers[name] = (lambda: self.volume_started(name, store), file, gone)

        def volume(name, *options):
            folder = self.volume_made(f"{what}-{name}", *options)
            ours(name, f"vol:{folder}", os.path.join(folder, "data"), lambda: shutil.rmtree(folder))

        def image(name, kind):
            path = self.volume_path(f"{what}-{name}.img")
            run = subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, f"{mib}M"], stderr=subprocess.PIPE, text=True,
                                 check=False)
            if run.returncode != 0:
                raise self.Failure(f"qemu-img: {run.stderr.strip()}")
            return path

        def qemu(name, kind):
            path = image(name, kind)

            def start():
                port = free_port()
                return self.Server(self, f"qemu-nbd {name}", ["qemu-nbd", "-t", "-f", kind, "-e", "16", "-b", "127.0.0.1", "-p",
                                                               str(port), "--cache=writeback", "--aio=io_uring", "--discard=unmap",
                                                               path], port)
            peers[name] = (start, path, lambda: os.unlink(path))

        def gone(path):
            for each in (path, f"{path}.netblk"):
                if os.path.exists(each):
                    os.unlink(each)

        if self.netblk is not None:
            volume("vol")
            if compress:
                volume("vol lz4", "--compress", "lz4")
            path = image("file", "raw")
            ours("file", f"file:{path}", path, lambda: gone(path))
        qemu("qcow2", "qcow2")
        qemu("raw", "raw")
        return peers

    def volume_rounds(self, what, cases, fill, compress=False, new=False):
        """Every case on every disk in turn. fill: fio's words for a first whole pass. new: made again for each measurement."""
        size, raw = f"{self.args.volume_mib}M", {}
        servers, peers = {}, {}

        def begin():
            peers.update(self.volume_peers(what, compress))
            for name, (start, _, _) in peers.items():
                servers[name] = start()
                if fill:
                    self.fio_nbd(servers[name], *fill[:3], 1, size, fill[3:], whole=True)

        def end():
            for server in servers.values():
                server.stop()
            for _, _, gone in peers.values():
                gone()
            servers.clear()
            peers.clear()

        try:
            for number in range(self.args.rounds):
                if new or number == 0:
                    end()
                    begin()
                for case, (rw, block, depth, *words) in cases.items():
                    for name, server in servers.items():
                        self.say(f"  volume: round {number + 1}, {case}, {name}")
                        if "not from cache" in case:
                            forget(peers[name][1])
                        raw.setdefault((case, name), []).append(self.fio_nbd(server, rw, block, depth, 1, size, words))
        finally:
            end()
        return {key: self.Measured(self.keep("volume", key[0], key[1], values), values) for key, values in raw.items()}

    def volume_overwritten(self):
        """p99 of writes under the collector, beside those of a volume that does not collect yet; and the space of both."""
        size, found, servers, folders = f"{self.args.volume_mib}M", {}, {}, {}
        seconds, self.args.seconds = self.args.seconds, max(OVERWRITE_SECONDS, self.args.seconds)
        pinned, self.machine.pinned = self.machine.pinned, False
        try:
            for name, factor in (("collects", "1.3"), ("waits", "9.99")):
                folders[name] = self.volume_made(f"overwritten-{name}")
                self.volume_command("set", folders[name], f"space-factor={factor}")
                servers[name] = self.volume_started(name, f"vol:{folders[name]}")
                self.fio_nbd(servers[name], "randwrite", "4k", 32, 1, size, whole=True)
            # To where it has to collect.
            self.fio_nbd(servers["collects"], "randwrite", "4k", 32, 1, size, ("--fsync=32",), whole=True)
            for number in range(self.args.rounds):
                for case, words in OVERWRITE.items():
                    for name, server in servers.items():
                        self.say(f"  volume: round {number + 1}, overwritten {case}, {name}")
                        with Watch(self, folders[name]) as watch:
                            measured = self.fio_nbd(server, "randwrite", "4k", 32, 1, size, ("--fsync=32", *words))
                        found.setdefault((case, name), []).append({**measured, **watch.seen()})
        finally:
            self.args.seconds, self.machine.pinned = seconds, pinned
            for server in servers.values():
                server.stop()
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
        return {key: self.Measured(self.keep("volume-overwritten", key[0], key[1], values), values) for key, values in found.items()}

    def row_volume_overwritten(self):
        found = self.volume_overwritten()
        lines = []
        for case in OVERWRITE:
            with_it, without = found[case, "collects"], found[case, "waits"]
            lines.append([case, self.figure(self.ratio(with_it, without, "p99_us")), f"{with_it['p99_us']:.0f}", f"{without['p99_us']:.0f}",
                          self.figure(with_it["iops"]), self.figure(without["iops"]), f"{with_it['factor']:.2f}",
                          f"{with_it['factor_without_spare']:.2f}", f"{without['factor']:.2f}"])
        self.table(f"Volumes of {self.args.volume_mib} MiB while they are overwritten, 4 KiB at random, 32 in flight, a flush every 32",
                   ["rate", "p99 ÷ p99 without collecting", "p99 µs", "without", "writes/s", "without", "file ÷ live, at most",
                    "without the 12 spare segments", "of the one that does not collect"], lines,
                   f"Goals: ÷ < {MOST_P99:g}; the file within 1.3 times what is live, and a dozen segments.")

    def can_compress(self):
        program = os.path.join(os.path.dirname(self.netblk or ""), "netblk")
        told = subprocess.run([program, "volume", "create", "--help"], stdout=subprocess.PIPE, text=True, check=False).stdout
        return "--compress" in told

    def row_volume(self):
        """Nothing is pinned. The files are under --data, or in the temporary folder: on a disk, since flushes count."""
        if not all(shutil.which(tool) for tool in ("fio", "qemu-nbd", "qemu-img")):
            raise self.Failure("the row volume needs fio, qemu-nbd and qemu-img")
        pinned, self.machine.pinned = self.machine.pinned, False
        sequential, uniform = ("write", "1m", 8), ("randwrite", "4k", 32)
        try:
            found = self.volume_rounds("sequential", SEQUENTIAL, sequential)
            found |= self.volume_rounds("uniform", RANDOM, uniform)
            found |= self.volume_rounds("new", NEW, None, new=True)
            if self.netblk is not None and self.can_compress():
                found |= self.volume_rounds("packed", PACKED, (*sequential, *COMPRESSIBLE), compress=True)
        finally:
            self.machine.pinned = pinned
        lines = []
        for (case, name), m in found.items():
            goal = GOALS.get(case, {}) if name.startswith("vol") and (case not in PACKED or name != "vol") else {}
            ours = name.startswith(("vol", "file"))
            lines.append([case, name, *(self.figure(self.ratio(m, found[case, peer], "iops")) if ours else "-" for peer in ("raw", "qcow2")),
                          ", ".join(f"{peer} ≥ {least}" for peer, least in goal.items()) or "-", self.figure(m["iops"]),
                          self.figure(m["mib_per_s"]), self.figure(m["server_cpu_us_per_request"]), self.figure(m["p50_us"], 1)])
        self.table(f"Volumes of {self.args.volume_mib} MiB beside qemu-nbd: fio's nbd engine on every server",
                   ["case", "disk", "requests/s ÷ raw's", "÷ qcow2's", "goal", "requests/s", "MiB/s", "server CPU µs", "p50 µs"], lines,
                   "qemu-nbd has its usual cache (writeback), io_uring, and qcow2 without preallocation. Nothing is pinned.")

    ROWS_VOLUME = {"volume": row_volume, "volume-overwritten": row_volume_overwritten}
