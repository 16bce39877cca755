#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Breaks one session rule of the real client or server at a time, and runs the simulator on it until a seed fails.

    tests/sim/mutants.py [--build DIR] [--seeds N] [NAME...]

A rule that can be broken without a seed that notices is not checked. Each mutant is one replaced piece of text in one
source, compiled as the build compiles it and linked before the libraries; nothing is changed in the tree.
"""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# name: (source to compile, file to change, text, instead[, the program's scenario])
MUTANTS = {
    # A fence is confirmed before what it fences has ended.
    "fence-is-not-waited-for": ("src/server/session_table.cc", "src/server/session_table.cc",
                                "if (list.empty()) co_return true;", "if (list.size() < 1000) co_return true;"),
    # A connection that is fenced goes on reading and submitting.
    "fence-stops-nothing": ("src/server/session_table.cc", "src/server/session_table.cc",
                            "presence.link_->gone_flag().store(true, std::memory_order_release);\n"
                            "  presence.loop_.post(*new Presence::Order(std::move(shared), *this));",
                            "(void)shared;\n  presence.ended_ = true;"),
    # A request that was answered runs again when it is replayed.
    "ledger-replays": ("src/server/session2.cc", "src/server/ledger.h", "if (!rerun) return", "if (sequence == 7) return"),
    # A new session leaves the same client's older ones alone.
    "older-sessions-live-on": ("src/server/session_table.cc", "src/server/session_table.cc",
                               "if (session->client_id == hello.client_id || (writes && takeover && session->writes))",
                               "if (session->client_id != hello.client_id && writes && takeover && session->writes)"),
    # A second writer is not refused.
    "no-ebusy": ("src/server/session_table.cc", "src/server/session_table.cc",
                 "if (writes && other != nullptr && !takeover && !beside_others)",
                 "if (writes && other != nullptr && other->client_id.is_zero())"),
    # Ownership is granted before it is durable.
    "owner-is-not-durable": ("src/server/session_table.cc", "src/server/session_table.cc",
                             "} else if (claim.owners_changed) {",
                             "} else if (claim.owners_changed && answer.session == nullptr) {"),
    # The client takes a new generation for the old one.
    "loss-is-forgotten": ("src/client/session2_welcome.cc", "src/client/session2_welcome.cc",
                          "if (gone == 0) return;", "if (gone < 1'000'000) return;"),
    # Flushes that wait while a loss is told may still succeed, and later ones do.
    "loss-fails-no-flush": ("src/client/session2_welcome.cc", "src/client/session2_welcome.cc",
                            "lost_.store(true, std::memory_order_release);", ";"),
    # After a deadline the client goes on without a fence.
    "abandoned-without-a-fence": ("src/client/session2.cc", "src/client/session2.cc",
                                  "void Session2::set_fence(Link2& link, bool on) {",
                                  "void Session2::set_fence(Link2& link, bool on) {\n  if (on) return;"),
}


def commands(build, program):
    with open(build / "compile_commands.json", encoding="utf-8") as file:
        compile_of = {str(Path(each["file"]).relative_to(ROOT)): each["command"] for each in json.load(file)
                      if each["file"].startswith(str(ROOT))}
    link = subprocess.run(["ninja", "-C", str(build), "-t", "commands", program], stdout=subprocess.PIPE, check=True,
                          text=True).stdout.strip().split("\n")[-1]
    return compile_of, link


def make(mutant, place, build, compile_of, link):
    """Builds the mutant; returns the program, or in words why there is none."""
    source, changed, text, instead = mutant[:4]
    original = (ROOT / changed).read_text(encoding="utf-8")
    if original.count(text) != 1:
        return None, f"{changed} has the text to change {original.count(text)} times: adapt the mutant to the code"
    mutated = original.replace(text, instead)
    folder = (place / "include" / Path(changed).relative_to("src")).parent
    folder.mkdir(parents=True)
    if changed.endswith(".h"):
        (place / "include" / Path(changed).relative_to("src")).write_text(mutated, encoding="utf-8")
        to_compile = ROOT / source
    else:
        to_compile = place / Path(source).name
        to_compile.write_text(mutated, encoding="utf-8")
    words = shlex.split(compile_of[source])
    target = words.index("-o")
    command = words[:target] + words[target + 2:]
    command = [word for word in command if word not in ("-c", str(ROOT / source), "-Werror")]
    command[1:1] = [f"-I{place / 'include'}"]
    result = subprocess.run(command + ["-w", "-O1", "-o", str(place / "mutant.o"), "-c", str(to_compile)], cwd=build,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        return None, "it does not compile: " + result.stdout[:600]
    # An object that comes before a library takes the place of the library's own.
    program = place / "mutant"
    linked = re.sub(r"-o \S+", f"{shlex.quote(str(place / 'mutant.o'))} -o {shlex.quote(str(program))}", link, count=1)
    result = subprocess.run(["bash", "-c", linked], cwd=build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False)
    return (program, "") if result.returncode == 0 else (None, "it does not link: " + result.stdout[:600])


def try_one(name, mutant, build, folder, found, seeds):
    program, why = make(mutant, Path(folder) / name, build, *found)
    if program is None:
        return name, False, why
    scenario = ["--scenario", mutant[4]] if len(mutant) > 4 else []
    result = subprocess.run([str(program), *scenario, "--until-failure", "--seeds", f"1..{seeds}", "--jobs", "1"],
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    line = next((line for line in result.stdout.split("\n") if line.startswith("FAIL seed-")), "")
    os.unlink(program)
    return name, bool(line), line[len("FAIL "):].split("; replay")[0] or f"not noticed in {seeds} seeds"


def run(program, mutants, suite, seeds, text, rest=()):
    """rest: names that only --full tries."""
    parser = argparse.ArgumentParser(description=text.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--seeds", type=int, default=seeds, help="at most, for each mutant")
    parser.add_argument("--full", action="store_true", default=os.environ.get("NETBLK_FULL") == "1")
    parser.add_argument("name", nargs="*")
    arguments = parser.parse_args()
    names = arguments.name or [name for name in mutants if arguments.full or name not in rest]
    found = commands(arguments.build, program)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [pool.submit(try_one, name, mutants[name], arguments.build, folder, found, arguments.seeds) for name in names]
        for job in jobs:
            name, noticed, words = job.result()
            passed, failed = passed + noticed, failed + (not noticed)
            print(f"PASS mutant-{name}: {words}" if noticed else f"FAIL mutant-{name}: {words}", flush=True)
    print(f"suite {suite}: {passed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run("netblk_sim", MUTANTS, "sim-mutants", 8000, __doc__))
