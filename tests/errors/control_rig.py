# SPDX-License-Identifier: GPL-2.0-only
"""The socket `control` of a volume, from both sides: who calls, and programs that answer in the place of netblk."""

import json
import os
import pathlib
import socket
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import suite
from suite import check_eq

# Seconds that a command waits for a process which has the volume and does not answer.
LOCK_WAIT = 10
GREETING = b'{"netblk_volume":1,"process":1}\n'


def caller(t, path):
    """A connection to the socket, whose greeting has been read. Where it is busy, as it is until callers that have gone are
    no longer there, it is tried again."""
    def connected():
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(suite.bound(60))
        with within(path):
            s.connect("control")
        lines = s.makefile("rb")
        greeting = json.loads(lines.readline())
        if "error" in greeting:
            lines.close()
            s.close()
            return None
        t.defer(s.close)
        check_eq(greeting["netblk_volume"], 1, "the version that it greets with")
        return s, lines
    return suite.wait_until(connected, 60, "that it is not busy")


class within:
    """The paths of sockets are short: from the folder itself."""
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.back = os.open(".", os.O_RDONLY)
        os.chdir(self.path)

    def __exit__(self, *_):
        os.fchdir(self.back)
        os.close(self.back)


def question(command_name, **asked):
    return json.dumps({"netblk_volume": 1, "command": command_name, "asked": asked}).encode() + b"\n"


def answer(lines):
    """What it says of a question: the answer, or the error."""
    for line in lines:
        said = json.loads(line)
        if "answer" in said or "error" in said:
            return said
    return None


class Stranger:
    """Somebody else's program at the socket: each connection is given to `talk`."""

    def __init__(self, t, path, talk):
        self.socket = socket.socket(socket.AF_UNIX)
        with within(path):
            self.socket.bind("control")
        self.socket.listen(8)
        self.calls = 0
        self.talk = talk
        self.ended = False
        t.defer(self.end)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while True:
            try:
                c, _ = self.socket.accept()
            except OSError:
                return
            self.calls += 1
            with c:
                try:
                    self.talk(c, c.makefile("rb"))
                except OSError:
                    pass

    def end(self):
        if self.ended:
            return
        self.ended = True
        # Closed when nobody is about to use its number any more.
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.socket.close()
