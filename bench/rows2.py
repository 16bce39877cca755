# SPDX-License-Identifier: GPL-2.0-only
"""Rows of run.py for netblk/2: the client library against public NBD servers and clients, and against its own bounds."""
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time

KINDS = {"randread": "READ", "randwrite": "WRITE"}
# src/base/limits.h: what a connection may hold of data, and its receive buffer; protocol/netblk.md: slots.
LIMITS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src", "base", "limits.h")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process_seconds(pid):
    """CPU of a process, its dead threads, and its children, living or waited for."""
    def own(each):
        try:
            return time.clock_gettime((~each << 3) | 2)
        except OSError:
            return 0.0
    waited, living = 0.0, 0.0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(entry) == pid:
            waited = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        elif int(fields[1]) == pid:
            living += own(int(entry))
    return own(pid) + waited + living


def limit(name):
    with open(LIMITS, encoding="utf-8") as file:
        words = re.search(rf"{name} = ([^;]+);", file.read()).group(1)
    number, _, shift = words.replace("u", "").partition("<<")
    return int(number) << int(shift or 0)


class Rows2:
    """Mixed into Bench."""

    def load2(self, server, *options):
        return self.client([self.tool("bench_load2"), "--port", str(server.port), "--server-pid", str(server.process.pid),
                            "--seconds", str(self.args.seconds), "--warmup", str(self.args.warmup), *options])

    def fill2(self, server):
        self.client([self.tool("bench_load2"), "--port", str(server.port), "--fill", "--seconds", "0.05", "--warmup", "0"])

    # -- public servers and clients ------------------------------------------------------------------------------

    def nbd_peers(self):
        """Of the same size, in memory: nbdkit's memory plugin, and files on tmpfs for the others."""
        where = "/dev/shm" if os.path.isdir("/dev/shm") else self.directory
        peers = {}

        def image(name):
            path = os.path.join(where, f"netblk-bench-{os.getpid()}-{name}.img")
            with open(path, "wb") as file:
                for _ in range(self.SPAN_BYTES >> 20):
                    file.write(os.urandom(1 << 20))
            self.images.append(path)
            return path

        def nbdkit():
            port = free_port()
            return self.Server(self, "nbdkit memory", ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory",
                                                       self.SPAN], port)

        def qemu():
            port = free_port()
            return self.Server(self, "qemu-nbd", ["qemu-nbd", "-t", "-f", "raw", "-e", "16", "-b", "127.0.0.1", "-p", str(port),
                                                  "--cache=writeback", "--aio=threads", image("qemu")], port)

        def nbd_server():
            return self.nbd_server(image("nbd-server"))

        if shutil.which("nbdkit"):
            peers["nbdkit memory"] = nbdkit
        if shutil.which("qemu-nbd"):
            peers["qemu-nbd"] = qemu
        if shutil.which("nbd-server"):
            peers["nbd-server"] = nbd_server
        return peers

    def nbd_server(self, path):
        """It goes into the background and forks a child for each connection: its pid is in a file."""
        pid_file = os.path.join(self.directory, "nbd-server.pid")

        class NbdServer(self.Server):
            @property
            def pid(self):
                with open(pid_file, encoding="ascii") as file:
                    return int(file.read())

            def stop(self):
                try:
                    os.kill(self.pid, signal.SIGTERM)
                except (OSError, ValueError):
                    pass
                super().stop()

        port = free_port()
        config = os.path.join(self.directory, "nbd-server.conf")
        with open(config, "w", encoding="ascii") as file:
            file.write(f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n[a]\nexportname = {path}\n")
        words = ["nbd-server", "-C", config, "-p", pid_file]
        return NbdServer(self, "nbd-server", ["sh", "-c", f"{shlex.join(words)}; exec sleep 86400"], port)

    def fio_nbd(self, server, rw, block, depth, connections, size=None, words=(), whole=False):
        """fio's nbd engine: the best public client here for random requests; one connection for each of its jobs. whole: each
        block once, instead of for --seconds."""
        lasts = ["--randrepeat=0"] if whole else ["--time_based", f"--runtime={round(self.args.seconds * 1000)}ms", "--norandommap",
                                                  "--randrepeat=0"]
        export = "a" if server.name == "nbd-server" else ""
        before = process_seconds(server.pid)
        run = subprocess.run(self.machine.client(
            ["fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd://127.0.0.1:{server.port}/{export}", f"--rw={rw}",
             f"--bs={block}", f"--iodepth={depth}", f"--numjobs={connections}", "--thread", "--group_reporting",
             f"--size={size or self.SPAN}", *lasts, *words, "--lat_percentiles=1", "--output-format=json"]), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, timeout=self.args.seconds + (600 if whole else 60), check=False)
        time.sleep(0.05)  # until the children of a forking server have ended
        used = process_seconds(server.pid) - before
        try:
            job = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]
        except (ValueError, IndexError) as error:
            raise self.Failure(f"fio on {server.name}: {run.stderr[-400:]}") from error
        side = job["write" if "write" in rw else "read"]
        if rw == "randrw":
            side = {**side, **{key: side[key] + job["write"][key] for key in ("iops", "bw_bytes", "total_ios")}}
        if job["error"] or not side["total_ios"]:
            raise self.Failure(f"fio on {server.name}: error {job['error']}: {run.stderr[-400:]}")
        return {"iops": side["iops"], "mib_per_s": side["bw_bytes"] / (1 << 20), "requests": side["total_ios"], "errors": 0,
                "p50_us": side["lat_ns"]["percentile"]["50.000000"] / 1e3,
                "p99_us": side["lat_ns"]["percentile"]["99.000000"] / 1e3, "connections": connections, "depth": depth,
                "server_cpu_us_per_request": used * 1e6 / side["total_ios"]}

    # -- the rows ------------------------------------------------------------------------------------------------

    def best(self, found, peer, kind, depth):
        """The peer's best number of connections: by the median of its requests per second."""
        return max((self.Measured(self.keep("client", f"{kind} {depth}", f"{peer} x{n}", found[peer, kind, depth, n]),
                                  found[peer, kind, depth, n]) for n in self.args.connections), key=lambda m: m["iops"])

    def row_client(self):
        nbd = self.nbd_peers() if shutil.which("fio") else {}
        ours = self.netblk_peers("memory", lambda io: f"mem:{self.SPAN}")
        floor = {"floor memory": self.floor("floor memory", "memory", "--size", self.SPAN)}
        servers, found = {}, {}
        try:
            for name, start in {**floor, **ours, **nbd}.items():
                servers[name] = start()
                if name in ours:
                    self.fill2(servers[name])
                elif name in floor:
                    self.load_once(servers[name])
                elif name == "nbdkit memory":
                    self.fio_nbd(servers[name], "write", "1m", 8, 1)
            for number in range(self.args.rounds):
                for kind in KINDS:
                    for depth in self.args.depths:
                        for n in self.args.connections:
                            self.say(f"  client: round {number + 1}, {kind} 4K, {depth} in flight, {n} connections")
                            for name, server in servers.items():
                                if name in nbd:
                                    result = {"": self.fio_nbd(server, kind, "4k", depth, n)}
                                elif name in floor:
                                    result = {"": self.load(server, "--rw", kind, "--depth", str(depth),
                                                            "--connections", str(n))}
                                else:
                                    how = ("--rw", kind, "--depth", str(depth), "--connections", str(n))
                                    result = {"": self.load2(server, *how), " no crc": self.load2(server, "--no-crc", *how)}
                                for suffix, value in result.items():
                                    found.setdefault((name + suffix, kind, depth, n), []).append(value)
        finally:
            for server in servers.values():
                server.stop()
        lines = []
        for kind in KINDS:
            for depth in self.args.depths:
                bests = {name: self.best(found, name, kind, depth) for name in dict.fromkeys(key[0] for key in found)}
                rivals = {name: m for name, m in bests.items() if name in nbd}
                rival = max(rivals.values(), key=lambda m: m["iops"]) if rivals else None
                for name, m in bests.items():
                    mine = name.startswith("netblk")
                    lines.append([
                        f"{KINDS[kind]} 4 KiB, {depth} in flight", name, f"{m['connections']:.0f}",
                        self.figure(self.ratio(m, rival, "iops")) if mine and rival else "-",
                        self.figure(self.ratio(m, rival, "server_cpu_us_per_request")) if mine and rival else "-",
                        self.figure(self.ratio(m, bests["floor memory"], "server_cpu_us_per_request")) if mine else "-",
                        self.figure(m["iops"]), self.figure(m["server_cpu_us_per_request"]), self.figure(m["p50_us"], 1)])
        self.table("Client library to server, memory, over loopback; each over its best number of connections",
                   ["case", "peer", "connections", "requests/s ÷ best NBD", "CPU ÷ best NBD's", "CPU ÷ floor's", "requests/s",
                    "server CPU µs", "p50 µs"], lines,
                   "Goals: requests/s ÷ best NBD ≥ 2; CPU ÷ best NBD's ≤ 0.5; CPU ÷ floor's ≤ 1.3 (the floor has no "
                   "checksum: “no crc” is like against like). NBD servers are driven by fio's nbd engine.")

    def row_sequential(self):
        """1 MiB one after another beside a bare stream of the same messages."""
        cases = {"READ 1 MiB": ["--rw", "read"], "WRITE 1 MiB": ["--rw", "write"]}
        depths, peers = (4, 16), self.netblk_peers("memory", lambda io: f"mem:{self.SPAN}")
        servers, raw = {}, {}
        bare = self.Server(self, "bare stream", [self.tool("bench_stream"), "serve"])
        try:
            for name, start in peers.items():
                servers[name] = start()
                self.fill2(servers[name])
            for number in range(self.args.rounds):
                self.say(f"  sequential: round {number + 1}")
                raw.setdefault(("", "bare stream"), []).append(self.client(
                    [self.tool("bench_stream"), "send", str(bare.port), str(self.args.seconds)]))
                for case, options in cases.items():
                    for name, server in servers.items():
                        for depth in depths:
                            for crc in ("", " no crc"):
                                more = ["--no-crc"] if crc else []
                                raw.setdefault((case, f"{name}{crc}, {depth} in flight"), []).append(
                                    self.load2(server, *options, "--bs", "1M", "--depth", str(depth), *more))
        finally:
            for server in (bare, *servers.values()):
                server.stop()
        found = {key: self.Measured(self.keep("sequential", key[0], key[1], values), values) for key, values in raw.items()}
        stream = found.pop(("", "bare stream"))
        lines = [["stream of 1 MiB", "bare stream", "1", self.figure(stream["mib_per_s"]), "-", "-"]]
        for (case, peer), m in found.items():
            lines.append([case, peer, self.figure(self.ratio(m, stream, "mib_per_s")), self.figure(m["mib_per_s"]),
                          self.figure(m["server_cpu_us_per_request"]), self.figure(m["client_cpu_us_per_request"])])
        self.table("1 MiB sequential beside a bare loopback stream", ["case", "peer", "÷ bare stream", "MiB/s", "server CPU µs",
                                                                     "client CPU µs"], lines, "Goal: ÷ bare stream ≥ 0.9.")

    def row_crc(self):
        cases = {f"{KINDS[kind]} 4 KiB, {depth} in flight": ["--rw", kind, "--depth", str(depth)] for kind in KINDS
                 for depth in self.args.depths}
        peers = self.netblk_peers("memory", lambda io: f"mem:{self.SPAN}")
        servers, raw = {}, {}
        try:
            for name, start in peers.items():
                servers[name] = start()
                self.fill2(servers[name])
            for number in range(self.args.rounds):
                self.say(f"  crc: round {number + 1}")
                for case, options in cases.items():
                    for name, server in servers.items():
                        raw.setdefault((case, name, True), []).append(self.load2(server, *options))
                        raw.setdefault((case, name, False), []).append(self.load2(server, "--no-crc", *options))
        finally:
            for server in servers.values():
                server.stop()
        lines = []
        for case in cases:
            for name in peers:
                on, off = (self.Measured(self.keep("crc", case, f"{name} {'crc' if crc else 'no crc'}",
                                                   raw[case, name, crc]), raw[case, name, crc]) for crc in (True, False))
                lines.append([case, name, self.figure(self.ratio(off, on, "iops")), self.figure(on["iops"]),
                              self.figure(off["iops"]), self.figure(self.ratio(on, off, "server_cpu_us_per_request"))])
        self.table("CRC32C of headers and payloads", ["case", "peer", "requests/s without ÷ with", "with", "without",
                                                      "server CPU with ÷ without"], lines,
                   "Goal: without ÷ with ≤ 1.10.")

    def row_memory2(self):
        """A fresh server for each, so that nothing that an earlier case grew hides what this one needs."""
        bound = limit("kConnectionDataBytes") + limit("kReceiveBusyBytes")
        cases = {"4 KiB READ, 128 in flight": ["--rw", "randread", "--depth", "128"],
                 "4 KiB WRITE, 128 in flight": ["--rw", "randwrite", "--depth", "128"],
                 "1 MiB READ, 32 in flight": ["--rw", "read", "--bs", "1M", "--depth", "32"],
                 "1 MiB WRITE, 32 in flight": ["--rw", "write", "--bs", "1M", "--depth", "32"]}
        lines = []
        for case, options in cases.items():
            raw = {}
            for _ in range(self.args.rounds):
                for name, start in self.netblk_peers("memory", lambda io: f"mem:{self.SPAN}").items():
                    server = start()
                    try:
                        self.fill2(server)
                        time.sleep(1.2)  # the buffers of that are given back
                        self.say(f"  memory2: {case}, {name}")
                        raw.setdefault(name, []).append(self.load2(server, *options, "--connections", "4", "--idle-ms", "300"))
                    finally:
                        server.stop()
            for name, values in raw.items():
                for value in values:
                    value["idle_bytes_per_connection"] = max(0, value["rss_idle_bytes"] - value["rss_start_bytes"]) / 4
                    value["busy_bytes_per_connection"] = max(0, value["rss_busy_bytes"] - value["rss_start_bytes"]) / 4
                m = self.keep("memory2", case, name, values)
                lines.append([case, name, self.figure(m["idle_bytes_per_connection"] / 1024, 0),
                              self.figure(m["busy_bytes_per_connection"] / 1024, 0), self.figure(bound / 1024, 0),
                              self.figure(m["busy_bytes_per_connection"] / bound)])
                if max(value["busy_bytes_per_connection"] for value in values) > bound:
                    self.failures.append(f"memory2: {case}, {name}: over the bound of {bound} bytes")
        self.table("Server memory per connection of a session of four", ["case", "peer", "idle, KiB", "right after the load, KiB",
                                                                         "bound, KiB", "÷ bound"], lines,
                   "Growth of Rss over the server without a connection, one quarter. Bound: kConnectionDataBytes + "
                   "kReceiveBusyBytes of src/base/limits.h.")

    def row_large_read(self):
        path, found = self.image("large"), {}
        for number in range(self.args.rounds):
            self.say(f"  large-read: round {number + 1}")
            for size in ("64K", "1M"):
                for crc in ((), ("--crc",)):
                    command = self.machine.client([self.tool("bench_large_read"), path, size, str(self.args.seconds / 4), *crc])
                    command = command[command.index(self.tool("bench_large_read")):]  # both of its threads need a core
                    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
                    if run.returncode != 0:
                        raise self.Failure(f"{shlex.join(command)}: status {run.returncode}")
                    for line in run.stdout.splitlines():
                        result = json.loads(line)
                        found.setdefault((f"{size}{', CRC32C' if crc else ''}", result["way"]), []).append(result)
        lines = []
        kept = {key: self.Measured(self.keep("large-read", key[0], key[1], values), values) for key, values in found.items()}
        for (case, way), m in kept.items():
            lines.append([case, way, self.figure(self.ratio(m, kept[case, "send"], "cpu_us_per_message")),
                          self.figure(m["mib_per_s"]), self.figure(m["cpu_us_per_message"])])
        self.table("A large READ from a file in the page cache: how its data reach the socket",
                   ["message", "way", "CPU ÷ pread + send", "MiB/s", "sender's CPU µs"], lines)

    ROWS2 = {"client": row_client, "sequential": row_sequential, "crc": row_crc, "memory2": row_memory2,
             "large-read": row_large_read}
