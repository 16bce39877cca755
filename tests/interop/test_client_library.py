#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The client library as it is installed: a program of a stranger is built against it, by CMake and by pkg-config,
and writes and reads a block of a running server.

NETBLK_BUILD names the build (default build/release, with netblk_client and netblk_server built)."""

import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import serverproc
import suite
from suite import check, check_eq, test

BUILD = pathlib.Path(os.environ.get("NETBLK_BUILD") or suite.ROOT / "build/release")
SOURCE = suite.ROOT / "tests/interop/client_library"
_work = tempfile.TemporaryDirectory(prefix="netblk-library-")
WORK = pathlib.Path(_work.name)
PREFIX = WORK / "prefix"


def call(*words, env=None):
    p = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                       timeout=300 * suite.TIME_SCALE, env={**os.environ, **(env or {})})
    check_eq(p.returncode, 0, f"status of {' '.join(str(word) for word in words)}: {p.stdout[-2000:]}{p.stderr[-2000:]}")
    return p.stdout


def install():
    if not PREFIX.exists():
        call("cmake", "--install", BUILD, "--component", "client", "--prefix", PREFIX)
    return PREFIX


def pkg_config(*words):
    folder = next(install().rglob("pkgconfig"))
    return shlex.split(call("pkg-config", *words, "netblk-client", env={"PKG_CONFIG_PATH": str(folder)}))


def writes_and_reads(case, program):
    server = serverproc.start_export(case, "disk=mem:64M")
    check_eq(call(program, server.port).strip(), "same 4096 bytes", "what the program says")
    server.stop()


@test(timeout=300)
def test_built_by_cmake(case):
    tree = WORK / "tree"
    call("cmake", "-S", SOURCE, "-B", tree, f"-DCMAKE_PREFIX_PATH={install()}")
    call("cmake", "--build", tree)
    writes_and_reads(case, tree / "stranger")


def by_pkg_config():
    program = WORK / "stranger"
    if not program.exists():
        call("g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", *pkg_config("--cflags"), SOURCE / "main.cc", "-o",
             program, *pkg_config("--libs"))
    return program


@test(timeout=300)
def test_built_by_pkg_config(case):
    writes_and_reads(case, by_pkg_config())


@test(timeout=300)
def test_each_header_stands_alone(_case):
    root = install() / "include"
    headers = sorted(root.rglob("*.h"))
    check(len(headers) > 10, "there are headers")
    for header in headers:
        source = WORK / "one.cc"
        source.write_text(f"#include <{header.relative_to(root)}>\n", encoding="utf-8")
        call("g++", "-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", *pkg_config("--cflags"),
             source)


@test(timeout=300)
def test_nothing_is_installed_under_a_common_name(_case):
    for path in install().rglob("*"):
        if path.is_file() and "include" in path.relative_to(PREFIX).parts:
            check_eq(path.relative_to(PREFIX).parts[:2], ("include", "netblk"), f"the place of {path}")


@test(timeout=300)
def test_without_a_server_is_an_error_in_words(_case):
    p = subprocess.run([str(by_pkg_config()), str(serverproc.free_port())], capture_output=True, text=True, timeout=60)
    check_eq(p.returncode, 1, "status without a server")
    check("refused" in p.stdout, f"words: {p.stdout!r}")


if __name__ == "__main__":
    sys.exit(suite.main("client-library"))
