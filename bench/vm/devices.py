#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs in a booted guest: the netblk driver and ublk beside nbd.ko with nbdkit and nbd-server, and ram_block_driver, by fio.

The servers serve files of the guest's tmpfs, or memory, so like store meets like store; a sync costs nothing there. All peers
take turns inside each round, and ratios are medians of the rounds' own ratios.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

SIZE_MB = 64
STORE = "/dev/shm"
START_SECONDS = 20
# name → what fio does
CASES = {
    "READ 4 KiB qd1": ["--rw=randread", "--bs=4k", "--iodepth=1"],
    "READ 4 KiB qd32": ["--rw=randread", "--bs=4k", "--iodepth=32"],
    "WRITE 4 KiB qd1": ["--rw=randwrite", "--bs=4k", "--iodepth=1"],
    "WRITE 4 KiB qd32": ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
    "READ 1 MiB qd1": ["--rw=read", "--bs=1m", "--iodepth=1"],
    "READ 1 MiB qd8": ["--rw=read", "--bs=1m", "--iodepth=8"],
    "WRITE 1 MiB qd1": ["--rw=write", "--bs=1m", "--iodepth=1"],
    "WRITE 1 MiB qd8": ["--rw=write", "--bs=1m", "--iodepth=8"],
}


class Failure(Exception):
    pass


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}: status {done.returncode}: {done.stdout.strip()[-600:]}")
    return done.stdout


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def wait_until(what, condition):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.05)
    raise Failure(f"{what}: not within {START_SECONDS} s")


def listens(port):
    """Reads the socket table: a trial connection would be the one client that `nbd-server -d` serves."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        fields = [line.split() for line in table]
    return any(f[1].endswith(f":{port:04X}") and f[3] == "0A" for f in fields[1:])


def image(name):
    path = os.path.join(STORE, name)
    with open(path, "wb") as file:
        for _ in range(SIZE_MB):
            file.write(os.urandom(1 << 20))
    return path


def spawn(command, port):
    with open(os.path.join(STORE, os.path.basename(command[0]) + ".log"), "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wait_until(" ".join(command), lambda: process.poll() is not None or listens(port))
    if process.poll() is not None:
        raise Failure(f"{' '.join(command)} ended: {read(log.name)[-600:]}")
    return process


def fill(device):
    """Memory that was never written reads as one page of zeroes."""
    run("dd", "if=/dev/urandom", f"of={device}", "bs=1M", f"count={SIZE_MB}", "oflag=direct")


class Peer:
    """Something with a block device. `turn` and `rest` surround its turn in a round."""

    def __init__(self, args):
        self.args = args
        self.device = None
        self.process = None

    def start(self):
        pass

    def turn(self):
        pass

    def rest(self):
        pass

    def measure(self, case):
        return fio(self.args, self.device, case)

    def stop(self):
        pass


class Served(Peer):
    """A server of ours, with a store of its own."""
    port = None

    def start(self):
        store = f"mem:{SIZE_MB}M" if self.args.store == "memory" else f"file:{image(f'netblk-{self.port}.img')}"
        command = [self.args.server, "--export", f"a={store}", "--listen", f"netblk://127.0.0.1:{self.port}"]
        if self.args.io != "default":
            command += ["--io", self.args.io]
        self.process = spawn(command, self.port)

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)


class Netblk(Served):
    """The driver; one module, so it is loaded for each turn."""
    protocol = None
    filled = False

    def turn(self):
        run("insmod", os.path.join(self.args.modules, "net_block_driver.ko"), "server_ip=127.0.0.1",
            f"server_port={self.port}", f"size_mb={SIZE_MB}", f"protocol={self.protocol}", *self.args.driver_options)
        wait_until("/sys/block/netblk/state connected", lambda: read("/sys/block/netblk/state") == "connected")
        self.device = "/dev/netblk"
        if not self.filled:
            fill(self.device)
        self.filled = True

    def rest(self):
        with open("/sys/block/netblk/disconnect", "w", encoding="ascii") as file:
            file.write("1")
        run("rmmod", "net_block_driver")


class Netblk1(Netblk):
    name, protocol, port = "netblk/1", 1, 20809


class Netblk2(Netblk):
    name, protocol, port = "netblk/2", 2, 20812


class Attached(Peer):
    """`netblk attach --via ublk`, for each turn."""
    source = None
    filled = False

    def netblk(self, *words):
        return run(os.path.join(os.path.dirname(self.args.server), "netblk"), *words)

    def turn(self):
        run("modprobe", "ublk_drv")
        self.device = self.netblk("attach", "--via", "ublk", self.source).split()[-1]
        if not self.filled:
            fill(self.device)
        self.filled = True

    def rest(self):
        self.netblk("detach", self.device)


class Ublk(Attached, Served):
    name, port = "ublk", 20814
    source = f"netblk://127.0.0.1:{port}/a"


class UblkStore(Attached):
    """No server: the helper process reads and writes the file."""
    name = "ublk file"

    def start(self):
        self.source = f"file:{image('ublk.img')}"


class Library(Served):
    """The client library in a program (`netblk bench`) and no driver: what is left is the driver's share."""
    name, port = "library", 20813
    filled = False

    def turn(self):
        if not self.filled:
            self.bench("write", "1m", 4, 1)
        self.filled = True

    def bench(self, rw, block, depth, seconds):
        out = run(os.path.join(os.path.dirname(self.args.server), "netblk"), "bench", f"netblk://127.0.0.1:{self.port}",
                  "--rw", rw, "--bs", block.upper(), "--depth", str(depth), "--connections", "1", "--seconds", str(seconds),
                  "--yes", "--json")
        return json.loads(out[out.index("{"):])

    def measure(self, case):
        words = dict(word[2:].split("=") for word in CASES[case])
        found = self.bench(words["rw"], words["bs"], int(words["iodepth"]), self.args.seconds)
        return {key: found[key] for key in ("iops", "mib_per_s", "p50_us", "p99_us", "errors")}


class Nbd(Peer):
    name = "nbd.ko"
    port = 20810

    def start(self):
        run("modprobe", "nbd")
        config = os.path.join(STORE, "nbd.conf")
        with open(config, "w", encoding="ascii") as file:
            file.write(f"[generic]\nlistenaddr = 127.0.0.1\nport = {self.port}\n"
                       f"[bench]\nexportname = {image('nbd.img')}\n")
        self.process = spawn(["nbd-server", "-d", "-C", config], self.port)
        run("nbd-client", "-N", "bench", "127.0.0.1", str(self.port), "/dev/nbd0")
        wait_until("/dev/nbd0 has its size", lambda: read("/sys/block/nbd0/size") == str(SIZE_MB << 11))
        self.device = "/dev/nbd0"

    def stop(self):
        if self.process is None:
            return
        run("nbd-client", "-d", "/dev/nbd0")
        self.process.terminate()
        self.process.wait(20)


class Nbdkit(Peer):
    name = "nbdkit"
    port = 20811

    def start(self):
        run("modprobe", "nbd")
        plugin = ["memory", f"{SIZE_MB}M"] if self.args.store == "memory" else ["file", image("nbdkit.img")]
        self.process = spawn(["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(self.port), *plugin], self.port)
        run("nbd-client", "127.0.0.1", str(self.port), "/dev/nbd1")
        wait_until("/dev/nbd1 has its size", lambda: read("/sys/block/nbd1/size") == str(SIZE_MB << 11))
        self.device = "/dev/nbd1"
        fill(self.device)

    def stop(self):
        if self.process is None:
            return
        run("nbd-client", "-d", "/dev/nbd1")
        self.process.terminate()
        self.process.wait(20)


class Ram(Peer):
    mode = None

    def turn(self):
        before = set(os.listdir("/sys/block"))
        run("insmod", os.path.join(self.args.modules, "ram_block_driver.ko"), f"queue_mode={self.mode}",
            f"size_mb={SIZE_MB}")
        new = set(os.listdir("/sys/block")) - before
        if len(new) != 1:
            raise Failure(f"ram_block_driver made {sorted(new) or 'no device'}")
        self.device = "/dev/" + new.pop()
        wait_until(self.device, lambda: os.path.exists(self.device))
        fill(self.device)

    def rest(self):
        run("rmmod", "ram_block_driver")


class RamRequests(Ram):
    name, mode = "RAM rq", "rq"


class RamRequestBios(Ram):
    name, mode = "RAM rq_bio", "rq_bio"


class RamBios(Ram):
    name, mode = "RAM bio", "bio"


PEERS = (Netblk2, Netblk1, Ublk, UblkStore, Nbdkit, Nbd, Library, RamRequests, RamRequestBios, RamBios)


def fio(args, device, case):
    out = run("fio", "--name=bench", f"--filename={device}", "--direct=1", f"--ioengine={args.engine}", "--thread",
              f"--runtime={args.seconds}", "--ramp_time=0.2", "--time_based", f"--size={SIZE_MB}m", "--randrepeat=0",
              "--norandommap", "--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json", *CASES[case])
    # notes may come before the JSON
    job = json.loads(out[out.index("{"):])["jobs"][0]
    side = job["read" if case.startswith("READ") else "write"]
    # from submission on: a device that completes a request while it is submitted has no completion latency
    percentiles = side["lat_ns"].get("percentile", {})
    result = {"iops": side["iops"], "mib_per_s": side["bw_bytes"] / (1 << 20),
              "p50_us": percentiles.get("50.000000", 0) / 1e3, "p99_us": percentiles.get("99.000000", 0) / 1e3,
              "errors": job["error"]}
    if result["errors"] or not result["iops"]:
        raise Failure(f"fio on {device}, {case}: {result}")
    return result


def measure(args, peers):
    found = {}
    for _ in range(args.rounds):
        for peer in peers:
            peer.turn()
            try:
                for case in args.cases:
                    found.setdefault((case, peer.name), []).append(peer.measure(case))
            finally:
                peer.rest()
    return found


def ratio(found, case, over, under):
    if (case, over) not in found or (case, under) not in found:
        return "-"
    ratios = [a["iops"] / b["iops"] for a, b in zip(found[case, over], found[case, under]) if b["iops"]]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def table(args, names, found):
    ours = next((name for name in names if name.startswith(("netblk", "ublk"))), None)
    others = [name for name in names if name != ours] if ours else []
    print(f"{args.kernel}, {os.cpu_count()} CPU, fio {args.engine} direct, {args.rounds} rounds of {args.seconds} s, "
          f"peers in turn, medians; servers in the guest, {args.store} (tmpfs); {time.strftime('%Y-%m-%d', time.gmtime())}\n")
    head = ["case", *(f"{ours} ÷ {name}" for name in others), *(f"{name}, IOPS · p50 µs" for name in names)]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for case in args.cases:
        cells = [case, *(ratio(found, case, ours, name) for name in others)]
        for name in names:
            rounds = found[case, name]
            cells.append(f"{statistics.median(r['iops'] for r in rounds):,.0f} · "
                         f"{statistics.median(r['p50_us'] for r in rounds):,.0f}")
        print("| " + " | ".join(cells) + " |")


def main():
    out = os.environ.get("NETBLK_OUT", "build/output")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("io_uring", "libaio"), default="io_uring")
    parser.add_argument("--io", choices=("uring", "epoll", "default"), default="default", help="of netblk_server")
    # Debian's 6.1 has no ublk
    has_ublk = subprocess.run(["modprobe", "-n", "-q", "ublk_drv"], check=False).returncode == 0
    parser.add_argument("--peers", default=",".join(p.name for p in PEERS if has_ublk or not issubclass(p, Attached)))
    parser.add_argument("--cases", default="", help="words; a case is run if its name has one of them")
    parser.add_argument("--store", choices=("file", "memory"), default="file", help="of our server and of nbdkit (file)")
    parser.add_argument("--driver-options", default="", help="words for the module, as connections=2")
    parser.add_argument("--server", default=os.path.join(out, "netblk_server"))
    parser.add_argument("--modules", default=os.environ.get("NETBLK_MODULES", "."))
    parser.add_argument("--json")
    args = parser.parse_args()
    args.kernel = f"{os.environ.get('KIND', 'this machine')}: Linux {os.uname().release}"
    words = [word for word in args.cases.split(",") if word]
    args.cases = [case for case in CASES if not words or any(word in case for word in words)]
    known = {p.name: p for p in PEERS}
    names = args.peers.split(",")
    args.driver_options = args.driver_options.split()
    if not args.cases or any(name not in known for name in names):
        parser.error(f"no such case or peer; peers are {', '.join(known)}")
    needed = {Nbd.name: ("nbd-server", "nbd-client"), Nbdkit.name: ("nbdkit", "nbd-client")}
    for tool in ("fio", *(tool for name in names for tool in needed.get(name, ()))):
        if shutil.which(tool) is None:
            sys.exit(f"no {tool}: apt-get install {tool}")
    peers, started, status, found = [known[name](args) for name in names], [], 0, {}
    try:
        for peer in peers:
            started.append(peer)
            peer.start()
        found = measure(args, peers)
    except (Failure, OSError, subprocess.TimeoutExpired) as failure:
        print(f"failed: {failure}", file=sys.stderr)
        status = 1
    for peer in reversed(started):
        try:
            peer.stop()
        except (Failure, OSError, subprocess.TimeoutExpired) as failure:
            print(f"failed: stopping {peer.name}: {failure}", file=sys.stderr)
            status = 1
    if status == 0:
        table(args, names, found)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"kernel": args.kernel, "engine": args.engine, "seconds": args.seconds, "failed": status != 0,
                       "results": [{"case": case, "peer": name, "rounds": rounds}
                                   for (case, name), rounds in found.items()]}, file, indent=1)
    return status


if __name__ == "__main__":
    sys.exit(main())
