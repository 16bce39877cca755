#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk bench`: what it measures and what it refuses.  No test asserts a speed."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import suite
from command import MIB, refused, run, start
from serverproc import cpu_seconds, free_port, start_export
from suite import Skip, check, check_eq, test

KEYS = {"iops", "mib_per_s", "p50_us", "p99_us", "errors"}


def bench(t, target, *more, status=0, requests=200):
    """A short run; on a machine that stalled meanwhile a longer one, so that it says something."""
    for seconds in ("0.3", "1", "4", "16"):
        out, err = run(t, "bench", target, "--seconds", seconds, "--json", *more, status=status, seconds=60)
        result = json.loads(out)
        check(KEYS <= result.keys(), f"the keys {KEYS} wanted: {result}")
        if result["reads"] + result["writes"] >= requests:
            break
    return result, err


def check_sane(result, block=4096):
    check(result["iops"] > 0 and result["errors"] == 0, f"{result}")
    check(0 < result["p50_us"] <= result["p99_us"] <= result["max_us"], f"{result}")
    check(abs(result["mib_per_s"] - result["iops"] * block / MIB) <= 0.01 + result["mib_per_s"] / 100, f"{result}")
    requests = result["reads"] + result["writes"]
    check(abs(result["iops"] * result["seconds"] - requests) <= 1 + requests / 50, f"{result}")


def works_for(server, seconds):
    """Until the server has spent so much CPU from now on: it answers requests."""
    before = cpu_seconds(server.pid)
    suite.wait_until(lambda: cpu_seconds(server.pid) > before + seconds, 30, "requests to be answered")


def serve(t, store="mem:64M"):
    server = start_export(t, f"disk={store}")
    return server, f"netblk://127.0.0.1:{server.port}/disk"


@test
def test_every_mode(t):
    _, uri = serve(t)
    file = t.tmp / "file"
    file.write_bytes(bytes(16 * MIB))
    for target in (uri, file):
        for mode in ("read", "write", "randread", "randwrite", "randrw"):
            result, _ = bench(t, target, "--rw", mode, "--yes")
            check_sane(result)
            reads, writes = result["reads"], result["writes"]
            check((reads > 0) == (mode != "write" and mode != "randwrite"), f"{mode}: {reads} reads")
            check((writes > 0) == ("read" not in mode), f"{mode}: {writes} writes")
            if mode == "randrw":
                check(0.3 < reads / (reads + writes) < 0.7, f"half and half wanted: {reads} reads, {writes} writes")


@test
def test_sizes_and_depths(t):
    _, uri = serve(t)
    for more, block in ((("--bs", "512"), 512), (("--bs", "64k", "--depth", "4"), 65536), (("--bs", "1M", "--depth", "1"), MIB),
                        (("--bs", "16M", "--depth", "2"), 16 * MIB), (("--depth", "128", "--connections", "4"), 4096),
                        (("--depth", "1"), 4096)):
        result, _ = bench(t, uri, *more, requests=5)
        check_sane(result, block)
        check_eq(result["bs_bytes"], block, "bs_bytes")


@test
def test_a_time_in_which_nothing_ended(t):
    """It goes on until something has: who asks for a rate is told one."""
    server = start_export(t, "disk=mem:16M?delay-read-ms=1500")
    out, _ = run(t, "bench", f"netblk://127.0.0.1:{server.port}/disk", "--seconds", "0.1", "--depth", "1", "--json")
    result = json.loads(out)
    check(result["reads"] > 0 and result["iops"] > 0 and result["errors"] == 0, f"{result}")
    check(result["seconds"] > 0.1, f"{result}")


@test
def test_text(t):
    _, uri = serve(t)
    out, err = run(t, "bench", uri, "--seconds", "0.2")
    check(b"requests/s" in out and b"p99" in out and err == "", f"{out!r} {err!r}")


@test
def test_whole_disk_is_used(t):
    """Random writes reach the whole of a small disk; sequential ones go round."""
    server = start_export(t, f"disk=file:{t.tmp}/disk?size=1M")
    uri = f"netblk://127.0.0.1:{server.port}/disk"
    for mode in ("randwrite", "write"):
        (t.tmp / "disk").write_bytes(bytes(MIB))

        # How many writes fit into a moment is the machine's business: as many moments as it takes.
        def all_is_written():
            bench(t, uri, "--rw", mode, "--bs", "64K", "--yes")
            data = (t.tmp / "disk").read_bytes()
            return all(any(data[at:at + 65536]) for at in range(0, MIB, 65536))

        suite.wait_until(all_is_written, 60, f"{mode} to have written every part")


@test
def test_data_is_not_destroyed(t):
    for name, at in (("begin", 0), ("boot", 510), ("in the first MiB", 900_000), ("end", 8 * MIB - 100)):
        path = t.tmp / "file"
        content = bytearray(8 * MIB)
        content[at:at + 16] = random.randbytes(16)
        path.write_bytes(content)
        server = start_export(t, f"disk=file:{path}")
        uri = f"netblk://127.0.0.1:{server.port}/disk"
        for mode in ("write", "randwrite", "randrw"):
            refused(t, "bench", uri, "--rw", mode, "--seconds", "0.1", words="--yes")
        server.stop()
        for mode in ("write", "randwrite", "randrw"):
            refused(t, "bench", path, "--rw", mode, "--seconds", "0.1", words="--yes")
        check(path.read_bytes() == content, f"data at the {name} was written over")
        bench(t, path, "--rw", "randread")
        bench(t, path, "--rw", "randwrite", "--yes")
        check(path.read_bytes() != content, "--yes writes")


@test
def test_file_systems_are_named(t):
    path = t.tmp / "file"
    path.write_bytes(bytes(8 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    refused(t, "bench", path, "--rw", "write", words=("ext", "--yes"))


@test
def test_empty_disk_needs_no_yes(t):
    _, uri = serve(t)
    bench(t, uri, "--rw", "randwrite")
    refused(t, "bench", uri, "--rw", "randwrite", words="--yes")


@test
def test_mounted_is_never_written(t):
    if os.geteuid() != 0:
        raise Skip("needs root")
    image = t.tmp / "image"
    with open(image, "wb") as f:
        f.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    p = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if p.returncode != 0:
        raise Skip(f"no loop device: {p.stderr.strip()}")
    loop = p.stdout.strip()
    t.defer(lambda: subprocess.run(["losetup", "-d", loop]))
    (t.tmp / "mnt").mkdir()
    subprocess.run(["mount", loop, t.tmp / "mnt"], check=True)
    t.defer(lambda: subprocess.run(["umount", t.tmp / "mnt"]))
    for target in (loop, image):
        refused(t, "bench", target, "--rw", "randwrite", "--yes", "--seconds", "0.1", words="mounted")
    check_sane(bench(t, loop)[0])  # reading is allowed


@test
def test_file_of_a_server(t):
    start_export(t, f"disk=file:{t.tmp}/disk?size=4M")
    refused(t, "bench", t.tmp / "disk", "--rw", "write", "--yes", words="in use")


@test
def test_second_writer(t):
    server, uri = serve(t)
    writer = start(t, "copy", "-", uri, stdin=subprocess.PIPE)
    server.wait_log("opened: export 'disk'", 20)
    refused(t, "bench", uri, "--rw", "write", "--yes", "--seconds", "0.1", words="is written by")
    check_sane(bench(t, uri)[0])
    writer.stdin.close()
    check_eq(writer.wait(), 0, "the first writer's status")


@test
def test_readers_side_by_side(t):
    _, uri = serve(t)
    results = []
    for seconds in ("0.5", "2", "8"):  # see bench()
        both = [start(t, "bench", uri, "--seconds", seconds, "--json") for _ in range(2)]
        results = []
        for p in both:
            out, err = p.communicate()
            check_eq(p.returncode, 0, f"status; {err!r}")
            results.append(json.loads(out))
        if all(result["reads"] > 0 for result in results):
            break
    for result in results:
        check_sane(result)


@test
def test_malformed(t):
    _, uri = serve(t)
    for more in (("--rw", "rw"), ("--rw", ""), ("--bs", "0"), ("--bs", "1000"), ("--bs", "x"), ("--bs", "33M"), ("--depth", "0"),
                 ("--depth", "5000"), ("--depth", "x"), ("--connections", "0"), ("--connections", "17"), ("--seconds", "0"),
                 ("--seconds", "-1"), ("--seconds", "x"), ("--depth", "1024", "--connections", "16"),
                 ("--bs", "32M", "--depth", "100"), ("--nonsense",), ("more",)):
        refused(t, "bench", uri, *more, status=2)
    refused(t, "bench", status=2)
    refused(t, "bench", "nbds://h/x", status=2)
    refused(t, "bench", t.tmp / "x", "--connections", "2", status=2)


@test
def test_what_cannot_be_measured(t):
    server = start_export(t, "disk=mem:1M,ro")
    uri = f"netblk://127.0.0.1:{server.port}"
    refused(t, "bench", f"{uri}/disk", "--rw", "write", words="read-only")
    refused(t, "bench", f"{uri}/nothing", words="netblk list")
    refused(t, "bench", f"{uri}/disk", "--bs", "2M", words="less than")
    check_sane(bench(t, f"{uri}/disk")[0])
    refused(t, "bench", t.tmp / "nothing", words="no such file")
    refused(t, "bench", t.tmp, words="neither")
    refused(t, "bench", "/dev/null", words="neither")
    (t.tmp / "empty").touch()
    refused(t, "bench", t.tmp / "empty", words="less than")
    refused(t, "bench", f"netblk://127.0.0.1:{free_port()}", words="refused")
    old = netblk1.Server(t.tmp / "old.img", MIB)
    t.defer(old.stop)
    refused(t, "bench", f"netblk://127.0.0.1:{old.port}", words="netblk/2")


@test
def test_errors_are_counted(t):
    _, uri = serve(t, "mem:8M?fault=read&fault-one-in=10")
    result, err = bench(t, uri, status=1)
    check(result["errors"] > 0 and result["reads"] > result["errors"], f"{result}")
    check(err.count("\n") == 1 and "requests failed" in err, f"{err!r}")
    _, uri = serve(t, "mem:8M?fault=read")
    out, err = run(t, "bench", uri, "--seconds", "60", "--json", status=1, seconds=20)
    check("failed" in err, f"a disk that only fails ends early: {err!r}")


@test
def test_interrupt(t):
    server, uri = serve(t)
    for turn, number in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        p = start(t, "bench", uri, "--seconds", "600", "--json")
        suite.wait_until(lambda: server.log().count("opened: export 'disk'") >= turn, 20, "the session of the bench")
        works_for(server, 1)
        p.send_signal(number)
        out, err = p.communicate(timeout=suite.bound(0))
        check_eq(p.returncode, 0, f"status; {err!r}")
        result = json.loads(out)
        check_sane(result)
        check(0 < result["seconds"] < 100, f"{result}")


@test
def test_server_dies(t):
    server, uri = serve(t)
    p = start(t, "bench", uri, "--seconds", "600", "--json")
    server.wait_log("opened: export 'disk'", 20)
    works_for(server, 0.5)
    server.kill()
    out, err = p.communicate(timeout=60 * suite.TIME_SCALE)
    check_eq(p.returncode, 1, f"status; {err!r}")
    check(b"failed" in err and err.count(b"\n") == 1, f"{err!r}")
    check(json.loads(out)["errors"] > 0, f"{out!r}")


if __name__ == "__main__":
    sys.exit(suite.main("errors/test_bench"))
