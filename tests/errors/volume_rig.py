# SPDX-License-Identifier: GPL-2.0-only
"""What suites of volumes share: making them, serving them, asking about them."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import nbd
import serverproc
from command import run
from suite import check, check_eq

BLOCK = 4096


def make(t, size="16M", name="v", *more):
    path = t.tmp / name
    out, err = run(t, "volume", "create", path, "--size", size, *more)
    check_eq((out, err), (b"", ""), "what `create` says")
    return path


def serve(t, *stores, status_of_start=True):
    """One server: its netblk and its NBD listener."""
    ports = [serverproc.free_port(), serverproc.free_port()]
    args = [word for store in stores for word in ("--export", store)]
    return serverproc.Server(t, [*args, "--listen", f"netblk://127.0.0.1:{ports[0]}", "--listen", f"nbd://127.0.0.1:{ports[1]}"],
                             ports, ready=status_of_start)


def disk(server, name=""):
    client = nbd.Client(("127.0.0.1", server.ports[1]))
    client.go(name)
    return client


def told(t, *words):
    return json.loads(run(t, "volume", *words, "--json")[0])


def not_started(t, store, words, status=1):
    code, out, err = serverproc.run_cli(["--export", f"d={store}", "--listen", f"netblk://127.0.0.1:{serverproc.free_port()}"])
    check_eq(code, status, f"status for {store}; stderr {err!r}")
    for word in (words,) if isinstance(words, str) else words:
        check(word.lower() in err.lower(), f"{word!r} in {err!r}")
