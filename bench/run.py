#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""netblk_server beside the floor, a bare echo and a bare write-and-sync loop: peers in turn, medians, ratios.

Prints Markdown tables, ratios first, and with --json FILE writes every measurement. Exit status 0 when every
measurement was made and no request failed, 1 otherwise. The goals are printed, not enforced: times are no test here.
"""
import argparse
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from rows2 import Rows2
from rows_attach import RowsAttach
from rows_nbd import RowsNbd
from rows_volume import RowsVolume

HERE = os.path.dirname(os.path.abspath(__file__))
OUTPUT = os.path.join(os.path.dirname(HERE), "build", "output")
START_SECONDS = 20
SPAN = "64M"
SPAN_BYTES = 64 << 20
# netblk/1 has no size of its own: 30 s is far over what a run of the load generator can need beyond --seconds.
GRACE_SECONDS = 120


class Failure(Exception):
    pass


def median(values):
    return statistics.median(values) if values else None


def figure(value, digits=2):
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}"


class Measured(dict):
    """The medians of a peer's rounds, and the rounds themselves."""

    def __init__(self, medians, rounds):
        super().__init__(medians)
        self.rounds = rounds


def ratio(over, under, key):
    """The median of the rounds' own ratios: what slows the machine down for a while slows both down in that round."""
    pairs = [(a[key], b[key]) for a, b in zip(over.rounds, under.rounds)]
    return median([a / b for a, b in pairs if b])


class Machine:
    """Where the programs run: the server on one core, the client on another, where there are two and taskset."""

    def __init__(self, args):
        cores = sorted(os.sched_getaffinity(0))
        self.pinned = not args.no_pin and len(cores) >= 2 and shutil.which("taskset") is not None
        self.server_core, self.client_core = (cores[0], cores[1]) if self.pinned else (None, None)
        self.realtime = args.realtime

    def server(self, command):
        return self._on(self.server_core, command)

    def client(self, command):
        return self._on(self.client_core, command)

    def _on(self, core, command):
        # The project's own programs and the floor: a public server that spins would keep its core to itself for ever.
        if self.realtime and os.path.basename(command[0]).startswith(("netblk", "bench_")):
            command = ["chrt", "-f", "1"] + command
        return ["taskset", "-c", str(core)] + command if self.pinned else command

    def words(self):
        cores = len(os.sched_getaffinity(0))
        where = (f"server pinned to core {self.server_core}, client to core {self.client_core}" if self.pinned
                 else "server and client not pinned")
        before = ", both SCHED_FIFO" if self.realtime else ""
        return f"{cores} cores, Linux {platform.release()}, {where}{before}"


class Server:
    """One peer: a command, the port it will listen on, and how it says so."""

    def __init__(self, bench, name, command, port=None):
        self.name, self.port, self.idle = name, port, []
        self.log = open(os.path.join(bench.directory, f"{name.replace(' ', '-')}.log"), "w+", encoding="utf-8")
        self.command = bench.machine.server(command)
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE if port is None else self.log, stderr=self.log)
        if port is None:
            words = self.process.stdout.readline().split()
            if len(words) != 2 or words[0] != b"port":
                self.stop()
                raise Failure(f"{name} did not start: {shlex.join(self.command)}")
            self.port = int(words[1])
        else:
            self._await_listener()

    @property
    def pid(self):
        return self.process.pid

    def _await_listener(self):
        # The socket table is read, not dialled: a trial connection would be in the server's log and memory.
        wanted = f":{self.port:04X}"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with open("/proc/net/tcp", encoding="ascii") as table:
                for line in table:
                    fields = line.split()
                    if len(fields) > 3 and fields[1].endswith(wanted) and fields[3] == "0A":
                        return
            time.sleep(0.02)
        text = self._tail()
        self.stop()
        raise Failure(f"{self.name} does not listen: {shlex.join(self.command)}\n{text}")

    def _tail(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()[-2000:]

    def stop(self):
        for idle in self.idle:
            idle.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.log.close()


class Bench(Rows2, RowsNbd, RowsAttach, RowsVolume):
    # What rows2 uses of this file.
    Server, Failure, Measured, SPAN, SPAN_BYTES = Server, Failure, Measured, SPAN, SPAN_BYTES
    figure, ratio = staticmethod(figure), staticmethod(ratio)

    @staticmethod
    def say(text):
        print(text, file=sys.stderr)

    def __init__(self, args, directory):
        self.args, self.directory = args, directory
        self.machine = Machine(args)
        self.results, self.images, self.failures = [], [], []
        self.netblk = args.server if os.access(args.server, os.X_OK) else None

    # -- peers ---------------------------------------------------------------------------------------------------

    def tool(self, name):
        return os.path.join(self.args.tools, name)

    def image(self, name):
        """A file whose every block is on the disk, so that no write allocates."""
        path = os.path.join(self.args.data or self.directory, f"netblk-bench-{os.getpid()}-{name}.img")
        if not os.path.exists(path):
            chunk = os.urandom(1 << 20)
            with open(path, "wb") as file:
                for _ in range(SPAN_BYTES >> 20):
                    file.write(chunk)
                os.fsync(file.fileno())
            self.images.append(path)
        return path

    def floor(self, name, *arguments):
        return lambda: Server(self, name, [self.tool("bench_floor"), *arguments])

    def ours(self, name, store, io):
        def start():
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            command = [self.netblk, "--export", f"a={store}", "--listen", f"netblk://127.0.0.1:{port}"]
            if io != "default":
                command += ["--io", io]
            if self.args.server_threads:
                command += ["--threads", str(self.args.server_threads)]
            return Server(self, name, command + shlex.split(self.args.server_options), port)
        return start

    def netblk_peers(self, kind, store):
        if self.netblk is None:
            return {}
        return {f"netblk {kind} {io}": self.ours(f"netblk {kind} {io}", store(io), io) for io in self.args.io}

    def memory_peers(self):
        return {"floor memory": self.floor("floor memory", "memory", "--size", SPAN),
                **self.netblk_peers("memory", lambda io: f"mem:{SPAN}")}

    def file_peers(self, *floor_options):
        return {"floor file": self.floor("floor file", "file", "--path", self.image("floor"), "--size", SPAN,
                                         *floor_options),
                **self.netblk_peers("file", lambda io: f"file:{self.image('netblk-' + io)}")}

    def echo_peer(self, into, out):
        return {"echo": self.floor("echo", "echo", "--in", str(into), "--out", str(out))}

    # -- measuring -----------------------------------------------------------------------------------------------

    def client(self, command):
        run = subprocess.run(self.machine.client(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             timeout=self.args.seconds + GRACE_SECONDS, check=False)
        if run.returncode != 0:
            self.failures.append(f"status {run.returncode}: {shlex.join(command)}: {run.stdout}{run.stderr}".strip())
        try:
            return json.loads(run.stdout)
        except ValueError:
            raise Failure(f"no result from {shlex.join(command)}: {run.stderr.strip()}") from None

    def load(self, server, *options):
        return self.client([self.tool("bench_load"), "--port", str(server.port), "--server-pid", str(server.process.pid),
                            "--seconds", str(self.args.seconds), "--warmup", str(self.args.warmup), "--span", SPAN,
                            *options])

    def rounds(self, row, peers, cases, echo_cases=()):
        """Every case on every peer in turn, ROUNDS times. `cases`: name → options of load. → {(case, peer): medians}

        The echo knows one pair of sizes and takes part in `echo_cases` only.
        """
        servers, raw = {}, {}
        try:
            for name, start in peers.items():
                servers[name] = start()
                if name != "echo":
                    self.load_once(servers[name])
            for number in range(self.args.rounds):
                for case, options in cases.items():
                    for name, server in servers.items():
                        if name == "echo" and case not in echo_cases:
                            continue
                        print(f"  {row}: round {number + 1}, {case}, {name}", file=sys.stderr)
                        result = self.load(server, *options)
                        raw.setdefault((case, name), []).append(result)
        finally:
            for server in servers.values():
                server.stop()
        return {key: Measured(self.keep(row, key[0], key[1], values), values) for key, values in raw.items()}

    def load_once(self, server):
        """Fills the store: untouched memory reads as one page of zeroes."""
        self.client([self.tool("bench_load"), "--port", str(server.port), "--span", SPAN, "--fill", "--seconds", "0.05",
                     "--warmup", "0"])

    def keep(self, row, case, peer, values):
        medians = {}
        for key, sample in values[0].items():
            numbers = [v[key] for v in values]
            medians[key] = median(numbers) if isinstance(sample, (int, float)) else sample
        self.results.append({"row": row, "case": case, "peer": peer, "median": medians, "rounds": values})
        return medians

    def table(self, title, head, lines, note=""):
        out = [f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        out += ["| " + " | ".join(line) + " |" for line in lines]
        if note:
            out += ["", note]
        print("\n".join(out) + "\n", flush=True)

    # -- the rows ------------------------------------------------------------------------------------------------

    def compare(self, row, title, cases, peers, note="", echo_cases=()):
        """The server beside the floor that has the same store, and for one request in flight beside the echo."""
        found = self.rounds(row, peers, cases, echo_cases)
        lines = []
        for case, peer in found:
            m = found[case, peer]
            floor = found[case, peer.replace("netblk", "floor").rsplit(" ", 1)[0]] if peer.startswith("netblk") else None
            echo = found[case, "echo"] if case in echo_cases and peer != "echo" else None
            lines.append([case, peer, figure(ratio(echo, m, "iops")) if echo else "-",
                          figure(ratio(m, echo, "p50_us")) if echo else "-",
                          figure(ratio(m, floor, "server_cpu_us_per_request")) if floor else "-",
                          figure(ratio(m, floor, "iops")) if floor else "-",
                          figure(m["iops"]), figure(m["mib_per_s"]), figure(m["server_cpu_us_per_request"]),
                          figure(m["client_cpu_us_per_request"]), figure(m["p50_us"], 1), figure(m["p99_us"], 1)])
        self.table(title, ["case", "peer", "echo ÷ this, requests/s", "p50 ÷ echo's", "CPU ÷ floor's", "requests/s ÷ floor's",
                           "requests/s", "MiB/s", "server CPU µs", "client CPU µs", "p50 µs", "p99 µs"], lines, note)

    def row_read_one(self):
        self.compare("read-one", "READ 4 KiB from cache, one in flight", {"qd1": ["--rw", "randread"]},
                     {**self.echo_peer(13, 4097), **self.memory_peers(), **self.file_peers()},
                     "Goals: echo ÷ this ≤ 1.2; CPU ÷ floor's ≤ 1.3, like store against like store.", ("qd1",))

    def row_read_deep(self):
        self.compare("read-deep", "READ 4 KiB from cache, pipelined",
                     {"qd32": ["--rw", "randread", "--depth", "32"],
                      "qd32 × 4 connections": ["--rw", "randread", "--depth", "32", "--connections", "4"]},
                     {**self.memory_peers(), **self.file_peers()}, "Goal: CPU ÷ floor's ≤ 1.3.")

    def row_read_large(self):
        self.compare("read-large", "READ 1 MiB from cache",
                     {"qd1": ["--rw", "read", "--bs", "1M"], "qd8": ["--rw", "read", "--bs", "1M", "--depth", "8"]},
                     {**self.memory_peers(), **self.file_peers()})

    def row_write(self):
        self.compare("write", "WRITE to memory",
                     {"4 KiB qd1": ["--rw", "randwrite"], "4 KiB qd32": ["--rw", "randwrite", "--depth", "32"],
                      "1 MiB qd8": ["--rw", "write", "--bs", "1M", "--depth", "8"]},
                     {**self.echo_peer(4109, 1), **self.memory_peers()}, "Goal: CPU ÷ floor's ≤ 1.3.", ("4 KiB qd1",))

    def row_durable(self):
        """1 and 32 clients beside the bare loop; what sharing one fdatasync gains."""
        row, cases = "durable", {"1 client": 1, "32 clients": 32}
        peers = self.file_peers("--durable")
        servers, raw = {}, {}
        loop_path = self.image("loop")
        try:
            for name, start in peers.items():
                servers[name] = start()
            for number in range(self.args.rounds):
                for case, clients in cases.items():
                    print(f"  {row}: round {number + 1}, {case}", file=sys.stderr)
                    raw.setdefault((case, "bare loop"), []).append(self.client(
                        [self.tool("bench_sync_loop"), "--path", loop_path, "--span", SPAN, "--threads", str(clients),
                         "--seconds", str(self.args.seconds)]))
                    for name, server in servers.items():
                        raw.setdefault((case, name), []).append(
                            self.load(server, "--rw", "randwrite", "--connections", str(clients)))
        finally:
            for server in servers.values():
                server.stop()
        found = {key: Measured(self.keep(row, key[0], key[1], values), values) for key, values in raw.items()}
        lines = []
        loop = found["1 client", "bare loop"]
        for case in cases:
            for peer in ("bare loop", *peers):
                m = found[case, peer]
                one = found["1 client", peer]
                cpu = m.get("server_cpu_us_per_request", m.get("cpu_us_per_request"))
                lines.append([case, peer, figure(ratio(m, loop, "iops")),
                              figure(ratio(m, one, "iops")) if case != "1 client" else "-",
                              figure(m["iops"]), figure(cpu), figure(m["p50_us"], 1), figure(m["p99_us"], 1)])
        self.table("Durable WRITE 4 KiB", ["clients", "peer", "÷ one bare loop", "gain over 1 client", "requests/s",
                                           "CPU µs", "p50 µs", "p99 µs"], lines,
                   "“bare loop” is pwrite + fdatasync without a network (32 clients: 32 threads, not pinned to the "
                   "server's core); “floor file” does one fdatasync per WRITE; ours shares one among those that wait.")

    def row_connections(self):
        counts = [1, 2, 4, 8, 16, 32, 64]
        cases = {str(n): ["--rw", "randread", "--connections", str(n)] for n in counts}
        peers = self.memory_peers()
        found = self.rounds("connections", peers, cases)
        lines = []
        for peer in peers:
            for n in counts:
                m = found[str(n), peer]
                lines.append([peer, str(n), figure(ratio(m, found["1", peer], "iops")), figure(m["iops"]),
                              figure(m["server_cores_used"]), figure(m["server_cpu_us_per_request"]),
                              figure(m["client_cpu_us_per_request"]), figure(m["p50_us"], 1), figure(m["p99_us"], 1)])
        self.table("READ 4 KiB, growth with connections, one in flight on each",
                   ["peer", "connections", "÷ one connection", "requests/s", "server cores used", "server CPU µs",
                    "client CPU µs", "p50 µs", "p99 µs"], lines,
                   "The client is one thread on one core: where server cores used and the client's share add up to the "
                   "pinned cores, they are full.")

    def row_idle_memory(self):
        cases = {"after a 4 KiB READ": ["--idle", str(self.args.idle), "--idle-bs", "4K"],
                 "after a 1 MiB READ": ["--idle", str(self.args.idle), "--idle-bs", "1M"],
                 "after a 1 MiB WRITE": ["--idle", str(self.args.idle), "--idle-bs", "1M", "--idle-rw", "write"],
                 "after 64 pipelined 4 KiB WRITEs": ["--idle", str(self.args.idle), "--idle-rw", "write",
                                                     "--idle-burst", "64"]}
        lines = []
        for case, options in cases.items():
            # A fresh server for each: memory that an earlier case grew would hide what this one needs.
            raw = {}
            for _ in range(self.args.rounds):
                for peer, start in self.memory_peers().items():
                    server = start()
                    try:
                        self.load_once(server)
                        print(f"  idle-memory: {case}, {peer}", file=sys.stderr)
                        raw.setdefault(peer, []).append(self.load(server, "--rw", "randread", *options))
                    finally:
                        server.stop()
            for peer, values in raw.items():
                m = self.keep("idle-memory", case, peer, values)
                lines.append([case, peer, figure(m["bytes_per_idle_connection"] / 65536),
                              figure(m["bytes_per_idle_connection"] / 1024, 1), figure(m["rss_start_bytes"] / 2**20, 1),
                              figure(m["rss_idle_bytes"] / 2**20, 1)])
        self.table(f"Server memory for {self.args.idle} idle connections",
                   ["each idle", "peer", "÷ 64 KiB", "KiB per connection", "RSS before, MiB", "RSS with them, MiB"], lines,
                   "RSS from smaps_rollup. Goal: ÷ 64 KiB < 1.")

    def row_idle_beside(self):
        """Two servers of each kind take turns: one with the idle connections, one without."""
        count = self.args.idle
        cases = {f"qd{depth}": ["--rw", "randread", "--depth", str(depth)] for depth in (1, 32)}
        kinds = self.memory_peers()
        peers = {}
        for kind, start in kinds.items():
            peers[f"{kind} alone"] = start
            peers[f"{kind} beside"] = lambda start=start: self.with_idle(start(), count)
        found = self.rounds("idle-beside", peers, cases)
        lines = []
        for kind in kinds:
            for case in cases:
                alone, beside = found[case, f"{kind} alone"], found[case, f"{kind} beside"]
                lines.append([kind, case, figure(ratio(beside, alone, "iops"), 3),
                              figure(ratio(beside, alone, "server_cpu_us_per_request"), 3),
                              figure(alone["iops"]), figure(beside["iops"])])
        self.table(f"One busy connection beside {count} idle ones, READ 4 KiB",
                   ["peer", "depth", "requests/s ÷ alone", "CPU ÷ alone", "alone, requests/s", "beside, requests/s"],
                   lines, "Goal: requests/s ÷ alone ≥ 0.95.")

    @staticmethod
    def with_idle(server, count):
        for _ in range(count):
            idle = socket.create_connection(("127.0.0.1", server.port), START_SECONDS)
            server.idle.append(idle)
            idle.sendall(struct.pack(">BQI", 1, 0, 4096))
            left = 4097
            while left:
                got = len(idle.recv(left))
                if not got:
                    raise Failure(f"{server.name} closed idle connection {len(server.idle)}")
                left -= got
        return server

    ROWS = {"read-one": row_read_one, "read-deep": row_read_deep, "read-large": row_read_large, "write": row_write,
            "durable": row_durable, "connections": row_connections, "idle-memory": row_idle_memory,
            "idle-beside": row_idle_beside, **Rows2.ROWS2, **RowsNbd.ROWS_NBD, **RowsAttach.ROWS_ATTACH, **RowsVolume.ROWS_VOLUME}

    def run(self, rows):
        print(f"{self.machine.words()}; {self.args.rounds} rounds of {self.args.seconds} s, peers in turn, medians; "
              f"{time.strftime('%Y-%m-%d', time.gmtime())}\n")
        if self.netblk is None:
            print(f"No {self.args.server}: only the floor and the echo are measured.\n")
        for row in rows:
            try:
                self.ROWS[row](self)
            except Failure as failure:
                self.failures.append(f"{row}: {failure}")
            except subprocess.TimeoutExpired as late:
                self.failures.append(f"{row}: {late}")
        for failure in self.failures:
            print(f"failed: {failure}", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(Bench.ROWS)} (all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (2)")
    parser.add_argument("--warmup", type=float, default=0.2, help="seconds before each measurement (0.2)")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--io", choices=("uring", "epoll", "both", "default"), default="uring",
                        help="of netblk_server; both measures each (uring)")
    parser.add_argument("--idle", type=int, default=1000, help="idle connections (1000)")
    parser.add_argument("--depths", default="32,128", help="in flight for each connection, netblk/2 rows (32,128)")
    parser.add_argument("--connections", default="1,2,4", help="of which each system's best is taken, row client (1,2,4)")
    parser.add_argument("--nbd-mib", type=int, default=256, help="size of what is served, rows nbd and attach; nbdcopy: four times that (256)")
    parser.add_argument("--volume-mib", type=int, default=1024, help="size of each disk, row volume (1024)")
    parser.add_argument("--peers", default="", help="row attach: words; a disk takes part if its name has one of them")
    parser.add_argument("--server", default=os.path.join(OUTPUT, "netblk_server"), help="path of netblk_server")
    parser.add_argument("--server-threads", type=int,
                        help="netblk_server --threads; 0: its own choice (1; rows nbd, nbdcopy and attach, where the peers choose too: 0)")
    parser.add_argument("--server-options", default="", help="more words for netblk_server")
    parser.add_argument("--tools", default=os.path.join(OUTPUT, "bench"), help="where bench_floor, bench_load, bench_sync_loop are")
    parser.add_argument("--data", help="directory for the files served (a temporary one)")
    parser.add_argument("--no-pin", action="store_true", help="do not pin to cores")
    parser.add_argument("--realtime", action="store_true",
                        help="chrt -f 1 for our servers, the floor and the load generators: before all other work on a busy "
                             "machine (root); public servers and clients stay as they are, so their ratios say nothing then")
    parser.add_argument("--json", metavar="FILE", help="write every measurement")
    args = parser.parse_args()
    unknown = [row for row in args.rows if row not in Bench.ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]}: choose from {', '.join(Bench.ROWS)}")
    if args.seconds <= 0 or args.rounds < 1 or args.idle < 1:
        parser.error("--seconds, --rounds and --idle are positive")
    args.depths, args.connections = ([int(word) for word in words.split(",")] for words in (args.depths, args.connections))
    args.nbd_threads = args.server_threads or 0
    args.server_threads = 1 if args.server_threads is None else args.server_threads
    args.io = ["uring", "epoll"] if args.io == "both" else [args.io]
    return args


def main():
    args = arguments()
    for name in ("bench_floor", "bench_floor_nbd", "bench_load", "bench_load2", "bench_stream", "bench_large_read", "bench_sync_loop"):
        if not os.access(os.path.join(args.tools, name), os.X_OK):
            sys.exit(f"no {os.path.join(args.tools, name)}: build the project first, or say --tools")
    # Ended from outside, it still stops its servers: with --realtime one that is left behind can keep a core to itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="netblk-bench-") as directory:
        bench = Bench(args, directory)
        try:
            bench.run(args.rows or list(Bench.ROWS))
        finally:
            for image in bench.images:
                for path in (image, f"{image}.netblk"):  # and what the server notes beside it
                    if os.path.exists(path):
                        os.unlink(path)
        if args.json:
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump({"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": bench.machine.words(),
                           "command": shlex.join(sys.argv), "failures": bench.failures, "results": bench.results}, file,
                          indent=1)
                file.write("\n")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
