# SPDX-License-Identifier: GPL-2.0-only
"""Running `netblk`, for the suites of its commands.  NETBLK names it (default build/output/netblk)."""

import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import suite
from suite import check, check_eq

MIB = 1 << 20
NETBLK = os.environ.get("NETBLK") or str(suite.ROOT / "build/output/netblk")


def environment(case):
    """State files go where the test's own things are."""
    return {**os.environ, "XDG_STATE_HOME": str(case.tmp / "state")}


def start(case, *args, **kw):
    if not os.access(NETBLK, os.X_OK):
        raise suite.Skip(f"no client at {NETBLK}")
    kw.setdefault("stdin", subprocess.DEVNULL)
    p = subprocess.Popen([NETBLK, *map(str, args)], stdout=kw.pop("stdout", subprocess.PIPE),
                         stderr=kw.pop("stderr", subprocess.PIPE), env=environment(case), **kw)
    case.defer(lambda: (p.kill(), p.wait()))
    return p


def run(case, *args, status=0, input=None, seconds=60):
    """To its end: (stdout in bytes, stderr in text)."""
    p = start(case, *args, stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL)
    try:
        out, err = p.communicate(input, timeout=seconds * suite.TIME_SCALE)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"netblk {' '.join(map(str, args))} did not end") from None
    err = err.decode(errors="replace")
    check_eq(p.returncode, status, f"status of netblk {' '.join(map(str, args))}; stderr {err!r}")
    return out, err


def refused(case, *args, words=(), status=1, **kw):
    """It fails with nothing on stdout and one line on stderr that has each of `words`."""
    out, err = run(case, *args, status=status, **kw)
    check_eq(out, b"", f"stdout of netblk {' '.join(map(str, args))}")
    check(err.count("\n") == 1 and err.startswith("netblk: "), f"one line on stderr wanted: {err!r}")
    for word in (words,) if isinstance(words, str) else words:
        check(word.lower() in err.lower(), f"{word!r} in the message wanted: {err!r}")
    return err


def used_kib(path):
    return os.stat(path).st_blocks // 2
