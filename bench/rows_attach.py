# SPDX-License-Identifier: GPL-2.0-only
"""A row of run.py for ways to attach: FUSE under a loop device, ours beside Debian's nbdfuse, by fio on the block device."""
import json
import os
import shutil
import subprocess
import time

from rows2 import free_port

# name: fio's rw, block size, in flight
CASES = {"READ 4 KiB qd1": ("randread", "4k", 1), "READ 4 KiB qd32": ("randread", "4k", 32),
         "WRITE 4 KiB qd32": ("randwrite", "4k", 32), "READ 1 MiB qd1": ("read", "1m", 1), "READ 1 MiB qd8": ("read", "1m", 8),
         "WRITE 1 MiB qd1": ("write", "1m", 1), "WRITE 1 MiB qd8": ("write", "1m", 8)}
GOALS = {"READ 4 KiB qd32": "≥ 1.5", "READ 1 MiB qd1": "≥ 1", "READ 1 MiB qd8": "≥ 1", "WRITE 1 MiB qd1": "≥ 1",
         "WRITE 1 MiB qd8": "≥ 1"}
MOUNT_SECONDS = 20


class Nbdfuse:
    """nbdfuse with a loop device of direct I/O over its file: what a machine without a module has today."""

    def __init__(self, bench, server, folder, export, *options):
        self.bench, self.folder, self.device = bench, folder, None
        os.mkdir(folder)
        file = os.path.join(folder, "disk")
        self.process = subprocess.Popen(["nbdfuse", *options, file, f"nbd://127.0.0.1:{server.port}/{export}"],
                                        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + MOUNT_SECONDS
        while not os.path.exists(file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise bench.Failure("nbdfuse does not mount: " + self.process.stderr.read().decode()[-300:])
            time.sleep(0.02)
        self.device = told(bench, "losetup", "--find", "--show", "--direct-io=on", file)

    def stop(self):
        if self.device:
            told(self.bench, "losetup", "--detach", self.device)
        told(self.bench, "umount", "--lazy", self.folder, may_fail=True)
        self.process.terminate()
        self.process.wait(MOUNT_SECONDS)


class Attached:
    """A disk of `netblk attach --via fuse`."""

    def __init__(self, bench, program, source):
        self.bench, self.program = bench, program
        self.device = told(bench, program, "attach", source, "--via", "fuse")

    def stop(self):
        told(self.bench, self.program, "detach", self.device)


def told(bench, *command, may_fail=False):
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60,
                         check=False)
    if run.returncode != 0 and not may_fail:
        raise bench.Failure(f"{' '.join(command)}: {run.stderr.strip()[-300:]}")
    return run.stdout.strip()


class RowsAttach:
    """Mixed into Bench."""

    def fio_device(self, device, rw, block, depth):
        run = subprocess.run(
            ["fio", "--name=bench", f"--filename={device}", "--direct=1", "--ioengine=io_uring", f"--rw={rw}", f"--bs={block}",
             f"--iodepth={depth}", "--thread", "--time_based", f"--runtime={round(self.args.seconds * 1000)}ms",
             f"--ramp_time={round(self.args.warmup * 1000)}ms", "--norandommap", "--randrepeat=0", "--lat_percentiles=1",
             "--output-format=json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=self.args.seconds + 60,
            check=False)
        try:
            job = json.loads(run.stdout[run.stdout.index("{"):])["jobs"][0]
        except (ValueError, IndexError) as error:
            raise self.Failure(f"fio on {device}: {run.stderr[-400:]}") from error
        side = job["write" if "write" in rw else "read"]
        if job["error"] or not side["total_ios"]:
            raise self.Failure(f"fio on {device}: error {job['error']}: {run.stderr[-400:]}")
        return {"iops": side["iops"], "mib_per_s": side["bw_bytes"] / (1 << 20), "requests": side["total_ios"], "errors": 0,
                "p50_us": side["lat_ns"]["percentile"]["50.000000"] / 1e3}

    def attach_peers(self):
        """Servers: name: what starts it. Disks: name: its server's name, and what makes it of the server."""
        program = os.path.join(os.path.dirname(self.netblk or ""), "netblk")
        mib = self.args.nbd_mib
        servers = {name: start for name, (_, start) in self.nbd_stores(mib).items()
                   if name in ("nbdkit memory", "nbdkit file", "nbd-server")}
        disks, ours = {}, {}
        for name in servers:
            export = "a" if name == "nbd-server" else ""
            disks[f"nbdfuse, {name}"] = (name, lambda server, folder=name.replace(" ", "-"), export=export: Nbdfuse(
                self, server, os.path.join(self.directory, folder), export))
            if self.netblk is not None:
                ours[f"nbd://, {name}"] = (name, lambda server, export=export: Attached(
                    self, program, f"nbd://127.0.0.1:{server.port}/{export}"))
        if self.netblk is not None:
            for kind, store in (("memory", f"mem:{mib}M"), ("file", f"file:{self.nbd_image('attach', mib)}")):
                servers[f"netblk {kind}"] = self.ours(f"netblk {kind}", store, "default")
                disks[f"netblk/2 {kind}"] = (f"netblk {kind}", lambda server: Attached(
                    self, program, f"netblk://127.0.0.1:{server.port}/a"))
        words = self.args.peers.split(",") if self.args.peers else [""]
        return servers, {name: disk for name, disk in {**disks, **ours}.items() if any(word in name for word in words)}

    def row_attach(self):
        """Nothing is pinned: client, FUSE and server share what there is, as they would."""
        if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("fio", "nbdfuse", "losetup")):
            raise self.Failure("the row attach needs root, fio, nbdfuse and losetup")
        pinned, self.machine.pinned = self.machine.pinned, False
        threads, self.args.server_threads = self.args.server_threads, self.args.nbd_threads
        starts, makes = self.attach_peers()
        servers, disks, raw = {}, {}, {}
        try:
            for name, (of, make) in makes.items():
                if of not in servers:
                    servers[of] = starts[of]()
                disks[name] = make(servers[of])
                # memory that was never written is one page of zeroes
                self.fio_device(disks[name].device, "write", "1m", 8)
            for number in range(self.args.rounds):
                for case, how in CASES.items():
                    self.say(f"  attach: round {number + 1}, {case}")
                    for name, disk in disks.items():
                        raw.setdefault((case, name), []).append(self.fio_device(disk.device, *how))
        finally:
            self.machine.pinned, self.args.server_threads = pinned, threads
            for part in (*disks.values(), *servers.values()):
                part.stop()
        found = {key: self.Measured(self.keep("attach", key[0], key[1], values), values) for key, values in raw.items()}
        lines = []
        for case in CASES:
            for name in makes:
                m = found[case, name]
                # Of the public servers the best is everybody's peer, whatever it keeps its bytes in.
                rivals = [found[case, other] for other in makes if other.startswith("nbdfuse")]
                best = max(rivals, key=lambda r: r["iops"]) if rivals and not name.startswith("nbdfuse") else None
                same = found.get((case, name.replace("nbd://", "nbdfuse"))) if name.startswith("nbd://") else None
                lines.append([case, name, self.figure(self.ratio(m, best, "iops")) if best else "-",
                              self.figure(self.ratio(m, same, "iops")) if same else "-",
                              GOALS.get(case, "-") if best else "-", self.figure(m["iops"]), self.figure(m["mib_per_s"]),
                              self.figure(m["p50_us"], 1)])
        self.table("Attached through FUSE and a loop device: fio on the block device",
                   ["case", "disk", "requests/s ÷ best nbdfuse's", "÷ nbdfuse's of the same server", "goal", "requests/s", "MiB/s",
                    "p50 µs"], lines, "Direct I/O, io_uring; 4 KiB at random, 1 MiB in sequence; all servers on loopback.")

    ROWS_ATTACH = {"attach": row_attach}
