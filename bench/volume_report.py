#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Measures volumes, and writes docs/volume-speed.md, docs/volume-cost.json and docs/volume-cost.svg.

    bench/volume_report.py [--rounds 2] [--seconds 1] [--data DIR]     everything; under ten minutes on a quiet machine
    bench/volume_report.py --draw                                      the plot alone, from docs/volume-cost.json

Build first (./build.sh). DIR is on the disk to be measured (the temporary folder), and has 20 GiB free; with less the largest
index is left out, and the page says so.
"""
import argparse
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from rows2 import free_port
from rows_volume import GOALS, MOST_P99, PACKED

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
OUTPUT = os.path.join(ROOT, "build", "output")
DOCS = os.path.join(ROOT, "docs")
GIB = 1 << 30
# (bytes, extents): against size with one number of extents, and against extents on the largest.
SIZES = [(n * GIB, 100_000) for n in (1, 4, 16, 64, 256, 1024)]
EXTENTS = [(1024 * GIB, 10**n) for n in (3, 4, 5, 6, 7)]
# Every block of 4 KiB by itself: (bytes, memory for the index, bytes that the disk needs).
FULL = [(64 * GIB, "256M", 4 * GIB), (1024 * GIB, "1G", 20 * GIB)]
CRASHED = (1024 * GIB, 10**7)  # with a whole GiB of log
# The name, in microseconds: what measures it, and how many of it make one.
LINES = {"read of 4 KiB": ("read_us", 1), "write of 4 KiB, a flush every 32": ("write_us", 1), "snapshot": ("snapshot_ms", 1e3),
         "clean opening": ("open_clean_ms", 1e3), "opening after a crash, 256 MiB of log": ("open_crashed_ms", 1e3)}
COLOURS = ["#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#bc4c00"]


# --- The plot -----------------------------------------------------------------------------------------------------------

def panel(left, title, xs, x_words, curves, low, high):
    """One diagram, both axes logarithmic, as lines of SVG."""
    top, width, height = 50, 380, 300
    span = math.log10(xs[-1] / xs[0])

    def x_of(x):
        return left + width * math.log10(x / xs[0]) / span

    def y_of(y):
        return top + height * (1 - (math.log10(y) - low) / (high - low))

    out = [f'<text x="{left + width / 2}" y="{top - 18}" text-anchor="middle" font-weight="bold">{title}</text>']
    for power in range(low, high + 1):
        y, words = y_of(10**power), f"{10**power:g} µs" if power < 3 else f"{10**(power - 3):g} ms" if power < 6 else f"{10**(power - 6):g} s"
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#d0d7de"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    for x, words in zip(xs, x_words):
        out.append(f'<line x1="{x_of(x):.1f}" y1="{top}" x2="{x_of(x):.1f}" y2="{top + height}" stroke="#eaeef2"/>')
        out.append(f'<text x="{x_of(x):.1f}" y="{top + height + 18}" text-anchor="middle">{words}</text>')
    for colour, values in zip(COLOURS, curves):
        points = [(x_of(x), y_of(y)) for x, y in zip(xs, values)]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="' +
                   " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    return out


def draw(measured):
    def curves(cases):
        return [[max(measured[f"{size} {extents}"][key] * factor, 1e-3) for size, extents in cases] for key, factor in LINES.values()]
    by_size, by_extents = curves(SIZES), curves(EXTENTS)
    values = [value for curve in by_size + by_extents for value in curve]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="960" height="440" font-family="sans-serif" font-size="12">',
           '<rect width="960" height="440" fill="white"/>']
    out += panel(70, "size of the disk, with 100,000 extents", [size / GIB for size, _ in SIZES],
                 ["1 GiB", "4", "16", "64", "256", "1 TiB"], by_size, low, high)
    out += panel(550, "extents, on a disk of 1 TiB", [extents for _, extents in EXTENTS],
                 ["1,000", "10,000", "100,000", "1 million", "10 million"], by_extents, low, high)
    x = 70
    for colour, name in zip(COLOURS, LINES):
        out.append(f'<rect x="{x}" y="405" width="12" height="12" fill="{colour}"/><text x="{x + 18}" y="416">{name}</text>')
        x += 46 + round(6.2 * len(name))
    with open(os.path.join(DOCS, "volume-cost.svg"), "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n</svg>\n")


# --- Measuring ----------------------------------------------------------------------------------------------------------

def run(*command):
    print("  " + " ".join(command), file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()[-600:]}")
    return done.stdout


def engine(folder, *words):
    return json.loads(run(os.path.join(OUTPUT, "bench", "bench_volume"), "--dir", folder, *words))


def cost(folder, size, extents):
    """The median of three where that takes no time."""
    runs = [engine(folder, "--size", str(size), "--extents", str(extents)) for _ in range(3 if extents < 10**6 else 1)]
    return {key: sorted(each[key] for each in runs)[len(runs) // 2] for key in runs[0]}


def full(folder):
    """What the index of a full disk takes, beside what it may: (bytes, setting, figures)."""
    return [(size, memory, engine(folder, "--full", "--size", str(size), "--cache", memory, "--requests", "200K"))
            for size, memory, needed in FULL if shutil.disk_usage(folder).free >= needed]


def memory_of_sparse(folder):
    """MiB of a server with an empty volume of 1 TiB, beside those of one with an empty export of memory."""
    program = os.path.join(OUTPUT, "netblk_server")
    path = os.path.join(folder, "sparse")
    run(os.path.join(OUTPUT, "netblk"), "volume", "create", path, "--size", "1T")
    found = []
    for store in (f"vol:{path}", "mem:1M"):
        port = free_port()
        server = subprocess.Popen([program, "--export", f"a={store}", "--listen", f"nbd://127.0.0.1:{port}"], stderr=subprocess.DEVNULL)
        try:
            for _ in range(600):
                asked = subprocess.run(["qemu-img", "info", "-f", "raw", f"nbd://127.0.0.1:{port}/a"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, check=False)
                if asked.returncode == 0 or server.poll() is not None:
                    break
                time.sleep(0.1)
            with open(f"/proc/{server.pid}/smaps_rollup", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file if ":" in line)
            found.append((int(fields["Rss"].split()[0]) / 1024, int(fields["Anonymous"].split()[0]) / 1024))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    return found


def median(values):
    values = sorted(values)
    return (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2


def ratio(over, under, key):
    """The median of the rounds' own ratios."""
    return median([a[key] / b[key] for a, b in zip(over["rounds"], under["rounds"]) if b[key]])


def goals_of(case, name):
    return GOALS.get(case, {}) if name.startswith("vol") and (case not in PACKED or name != "vol") else {}


def speed_table(found):
    """The table, and each goal: (what, the words of the goal, what was measured, whether it is met)."""
    lines = ["| case | disk | ÷ qemu-nbd on raw | ÷ qemu-nbd on qcow2 | goal | MiB/s · requests/s · server CPU |", "|---|---|---|---|---|---|"]
    judged = []
    for case, name in found:
        if not name.startswith(("vol", "file")):
            continue
        goal = goals_of(case, name)
        ratios = {peer: ratio(found[case, name], found[case, peer], "iops") for peer in ("raw", "qcow2")}
        for peer, least in goal.items():
            judged.append((f"{case}{'' if name == 'vol' else ', LZ4'}", f"≥ {least:g} × {peer}", f"{ratios[peer]:.2f}", ratios[peer] >= least))
        m = found[case, name]["median"]
        lines.append(f"| {case} | {name} | {ratios['raw']:.2f} | {ratios['qcow2']:.2f} | {', '.join(f'{p} ≥ {least:g}' for p, least in goal.items()) or '-'} | "
                     f"{m['mib_per_s']:,.0f} · {m['iops']:,.0f} · {m['server_cpu_us_per_request']:,.1f} µs |")
    return lines, judged


def overwritten_table(found):
    lines = ["| rate | p99 with the collector, µs | without, µs | ratio | writes/s | without | file ÷ live, at most | the same without 12 segments |",
             "|---|---|---|---|---|---|---|---|"]
    judged = []
    for case in dict.fromkeys(case for case, _ in found):
        ours, other = found[case, "collects"], found[case, "waits"]
        times, factor = ratio(ours, other, "p99_us"), max(each["factor_without_spare"] for each in ours["rounds"])
        a, b = ours["median"], other["median"]
        lines.append(f"| {case} | {a['p99_us']:,.0f} | {b['p99_us']:,.0f} | {times:.2f} | {a['iops']:,.0f} | {b['iops']:,.0f} | "
                     f"{max(each['factor'] for each in ours['rounds']):.2f} | {factor:.2f} |")
        judged.append((f"p99 of a write under the collector, {case}", f"< {MOST_P99:g} × without it", f"{times:.2f}", times < MOST_P99))
        judged.append((f"file while it is overwritten, {case}", "≤ 1.3 × live, and 12 segments", f"{factor:.2f}", factor <= 1.305))
    return lines, judged


def cost_goals(measured, crashed, full_ones, sparse):
    million = measured[f"{1024 * GIB} {10**6}"]
    clean = max(m["open_clean_ms"] for m in [*measured.values(), *(m for _, _, m in full_ones)]) / 1e3
    seconds = crashed["open_crashed_ms"] / 1e3 / (crashed["log_mib"] / 1024)
    slowest = max(m["open_crashed_ms"] / 1e3 / (m["log_mib"] / 1024) for m in measured.values())
    judged = [("snapshot of a volume with a million extents", "< 10 ms", f"{million['snapshot_ms']:.2f} ms", million["snapshot_ms"] < 10),
              ("clean opening, whatever the size", "< 1 s", f"{clean:.3f} s at most", clean < 1),
              ("opening after a crash, 1 GiB of log, ten million extents on 1 TiB", "< 5 s for each GiB", f"{seconds:.2f} s", seconds < 5),
              ("opening after a crash, 256 MiB of log, the slowest row of the table below", "< 5 s for each GiB", f"{slowest:.2f} s", slowest < 5)]
    for size, memory, m in full_ones:
        peak = max(m["memory_peak_mib"], m["recover_memory_peak_mib"])
        judged.append((f"memory of {size // GIB:,} GiB written in random blocks of 4 KiB, cache={memory}", "≤ 1 GiB", f"{peak:,.0f} MiB", peak <= 1024))
    judged.append(("memory of an empty volume of 1 TiB, beside that of a server without it", "a few MiB",
                   f"{sparse[0][1] - sparse[1][1]:.1f} MiB", sparse[0][1] - sparse[1][1] < 10))
    return judged


def write_page(load, tables, judged, measured, full_ones, sparse, command):
    met = sum(good for *_, good in judged)
    lines = ["# The speed of volumes", "",
             f"{len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, {time.strftime('%Y-%m-%d', time.gmtime())}; load of the machine "
             f"when it began: {load:.1f}. All of this page, the plot and [its figures](volume-cost.json) are written by", "",
             "```", command, "```", "",
             "## Goals", "", f"{met} of {len(judged)} are met.", "", "| what | goal | measured |", "|---|---|---|",
             *(f"| {what} | {goal} | {value if good else f'**{value}: missed**'} |" for what, goal, value, good in judged), "",
             "## Beside qemu-nbd", "",
             "Disks of 1 GiB on one file system, each behind its own server, all with fio's nbd engine as the client, in turn; medians, and "
             "ratios taken round by round (`bench/run.py volume`). qemu-nbd has its usual cache (writeback), io_uring, and qcow2 without "
             "preallocation. *vol* is `vol:`, *file* our `file:`; a new disk is an empty one, and the others were written whole "
             "before, for the random cases in blocks of 4 KiB in random order. What is written without a flush stays in the system's memory "
             "with raw and qcow2; a volume's log goes to the disk, because space is used again only behind a sync. Few rounds are few: where "
             "a peer stood still in one of them, as while the system wrote its data back, the ratio to it is far off.", "", *tables["speed"], "",
             "## While it is overwritten", "",
             "A volume of 1 GiB that was written twice, beside one whose space factor of 9.99 lets it keep all garbage: 4 KiB at random, 32 in "
             "flight, a flush every 32 (`bench/run.py volume-overwritten`).", "", *tables["overwritten"], "",
             "## Cost against size and extents", "",
             "The engine in one process, without a network (`build/output/bench/bench_volume`). An extent is one entry of the index. Openings "
             "read from the disk, not from the system's memory.", "",
             "![cost against size and extents](volume-cost.svg)", "",
             "| size | extents | read 4 KiB, µs | write 4 KiB, a flush every 32, µs | snapshot, ms | clean opening, ms | after a crash, ms (256 MiB of log) | memory, MiB |",
             "|---|---|---|---|---|---|---|---|"]
    for size, extents in dict.fromkeys(SIZES + EXTENTS):
        m = measured[f"{size} {extents}"]
        lines.append(f"| {size // GIB:,} GiB | {extents:,} | {m['read_us']:.2f} | {m['write_us']:.2f} | {m['snapshot_ms']:.2f} | "
                     f"{m['open_clean_ms']:.1f} | {m['open_crashed_ms']:.0f} | {m['memory_peak_mib']:.0f} |")
    lines += ["", "## Memory", "",
              "Disks of which every block of 4 KiB was written by itself, in random order (`bench_volume --full`: leaves of the index are two "
              "thirds full; the blocks are zeroes that keep their space): 200,000 reads and as many writes at random, then an opening after a "
              "crash with 256 MiB of log. The largest memory of the process, with the program.", "",
              "| size | index on the disk | `cache=` | memory, at most | in an opening after a crash | read 4 KiB, µs | write 4 KiB, µs | opening after a crash, ms |",
              "|---|---|---|---|---|---|---|---|"]
    for size, memory, m in full_ones:
        lines.append(f"| {size // GIB:,} GiB | {m['index_mib'] / 1024:.1f} GiB | {memory} | {m['memory_peak_mib']:,.0f} MiB | {m['recover_memory_peak_mib']:,.0f} MiB | "
                     f"{m['read_us']:.1f} | {m['write_us']:.1f} | {m['open_crashed_ms']:,.0f} |")
    if len(full_ones) < len(FULL):
        lines += ["", f"The one of {FULL[-1][0] // GIB:,} GiB was left out: the disk has less than {FULL[-1][2] // GIB} GiB free."]
    lines += ["",
              f"A server of an empty volume of 1 TiB: {sparse[0][0]:.0f} MiB, of which {sparse[0][1]:.1f} MiB are its own (anonymous) and the rest is "
              f"the program's file; one with an export of 1 MiB of memory instead: {sparse[1][0]:.0f} MiB and {sparse[1][1]:.1f} MiB.", ""]
    with open(os.path.join(DOCS, "volume-speed.md"), "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--data", help="folder on the disk that is measured")
    parser.add_argument("--draw", action="store_true")
    args = parser.parse_args()
    path = os.path.join(DOCS, "volume-cost.json")
    if args.draw:
        with open(path, encoding="utf-8") as file:
            draw(json.load(file))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="netblk-volume-", dir=args.data) as folder:
        out = os.path.join(folder, "speed.json")
        run(os.path.join(HERE, "run.py"), "volume", "volume-overwritten", "--rounds", str(args.rounds), "--seconds", f"{args.seconds:g}",
            "--data", folder, "--json", out)
        with open(out, encoding="utf-8") as file:
            results = json.load(file)["results"]
        found = {row: {(each["case"], each["peer"]): each for each in results if each["row"] == row} for row in ("volume", "volume-overwritten")}
        measured = {f"{size} {extents}": cost(folder, size, extents) for size, extents in dict.fromkeys(SIZES + EXTENTS)}
        crashed = engine(folder, "--size", str(CRASHED[0]), "--extents", str(CRASHED[1]), "--log", "1G")
        full_ones = full(folder)
        sparse = memory_of_sparse(folder)
    tables, judged = {}, []
    for name, row, table in (("speed", "volume", speed_table), ("overwritten", "volume-overwritten", overwritten_table)):
        tables[name], of_table = table(found[row])
        judged += of_table
    judged += cost_goals(measured, crashed, full_ones, sparse)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(measured, file, indent=1)
        file.write("\n")
    draw(measured)
    words = ["bench/volume_report.py", "--rounds", str(args.rounds), "--seconds", f"{args.seconds:g}"]
    write_page(load, tables, judged, measured, full_ones, sparse, " ".join(words))


if __name__ == "__main__":
    main()
