#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""docs/volume-tour.md: exactly its commands, as a newcomer pastes them."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import suite
from suite import check, check_eq, test

PAGE = suite.ROOT / "docs" / "volume-tour.md"

# What must not stay behind when a command fails: the disk, its mount, the server. The page's ports are this test's own.
PROLOGUE = """
set -eu -o pipefail
ip link set lo up
undo() {
  status=$?
  if [ $status != 0 ]; then
    mountpoint -q "$tour/mnt" && umount -l "$tour/mnt"
    [ -n "${device:-}" ] && netblk detach --force "$device"
    [ -n "${server:-}" ] && kill -9 "$server"
    cat "$tour/server.log" >&2
  fi
  exit $status
}
trap undo EXIT
tour=$PWD/netblk-tour
"""


def blocks_of(page, with_root):
    """Its commands; without those under a line that begins with "As root"."""
    found = re.findall(r"([^\n]*)\n\n```sh\n(.*?)^```$", page, re.M | re.S)
    check(len(found) == page.count("```sh"), f"{len(found)} blocks of commands on the page")
    return [block for before, block in found if with_root or not before.startswith("As root")]


def pasted(t, blocks):
    programs = pathlib.Path(command.NETBLK).resolve().parent
    environment = {**command.environment(t), "PATH": f"{programs}:/usr/sbin:/sbin:{os.environ['PATH']}"}
    script = t.tmp / "tour.sh"
    script.write_text(PROLOGUE + "".join(blocks))
    with open(t.tmp / "out", "wb") as out, open(t.tmp / "err", "wb") as err:
        p = subprocess.Popen(["unshare", "-n", "bash", script], cwd=t.tmp, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                             start_new_session=True)
        try:
            p.wait(suite.bound(200))
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Its server too, which it leaves if it is ended.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(p.pid, signal.SIGKILL)
            p.wait()
    out, err = ((t.tmp / name).read_text(errors="replace") for name in ("out", "err"))
    check_eq(p.returncode, 0, f"status of the page's commands; its end: {out[-1500:]!r} {err[-3000:]!r}")
    check(not (t.tmp / "netblk-tour").exists(), "it cleans up")
    return out


@test
def test_the_page(t):
    if os.geteuid() != 0:
        raise suite.Skip("attaching a disk needs root")
    out = pasted(t, blocks_of(PAGE.read_text(), True))
    for words in ("first", "spare", "NBD and netblk/2 agree", "after the snapshot", "flushed before the crash", "written after it",
                  "\n200000\n", "a second ago it was the same", "all are as they were written", "both volumes have the same",
                  "encrypted, and the same", "encrypted, compression lz4"):
        check(words in out, f"{words!r} in {out!r}")


@test
def test_without_what_needs_root(t):
    if os.geteuid() != 0:
        raise suite.Skip("a network of its own needs root")
    blocks = blocks_of(PAGE.read_text(), False)
    for word in ("attach", "mount", "mnt"):
        check(word not in "".join(blocks), f"{word!r} in a block that is for everybody")
    out = pasted(t, blocks)
    for words in ("first", "spare", "NBD and netblk/2 agree", "a second ago it was the same", "both volumes have the same",
                  "encrypted, and the same"):
        check(words in out, f"{words!r} in {out!r}")


if __name__ == "__main__":
    sys.exit(suite.main("volume tour"))
