#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A netblk/1 server that breaks the protocol in one chosen way, and keeps it otherwise.

usage: hostile_server.py PORT FILE SIZE_MB FAULT [EVERY [ARGUMENT]]

The fault strikes every EVERY-th request (default 1: each one; 0: none) of those that begin at 1 MiB or beyond: below,
the server is honest, so that a client may look for partitions and meet the fault with the request that a test makes.
accept-close, deaf and unsolicited are about whole connections. A byte that the protocol does not allow is
0xEE, so that a driver that takes it for data is found out.
  status        the status byte is 0xEE
  error         the status byte is ERROR
  short         one byte less than the READ asked for (or no status for a WRITE), then nothing more
  short-close   the same, then close
  long          one byte too many
  write-data    512 bytes after the OK of a WRITE
  garbage       4096 random bytes instead of the reply
  half-close    half of a READ's data (or nothing), then close
  reset         half of a READ's data (or nothing), then RST
  unsolicited   4096 bytes as soon as a connection is made, then honest
  extra-ok      a second OK without a request
  delay         the reply comes ARGUMENT milliseconds late
  edge          the reply comes as a time-out of ARGUMENT milliseconds does, give or take 5 (see Edge)
  trickle       the reply comes one byte each ARGUMENT milliseconds
  silent        no reply, ever; the connection stays open
  deaf          as silent, and nothing is received
  accept-close  connections are accepted and closed at once
"""
import os
import queue
import random
import socket
import struct
import sys
import threading
import time

class Edge:
    """When to answer, so that a client's time-out strikes now before the answers and now after them. Where exactly it
    strikes (a tick, a late acknowledgement) nobody says: later answers after those in time, earlier ones after a strike
    find it, and stay about 5 ms around it."""

    def __init__(self, late_ms):
        self.late, self.step, self.random = late_ms / 1000, 0.02, random.Random(1)
        self.lock = threading.Lock()
        self.begun, self.wait, self.in_time, self.before = 0.0, 0.0, None, None

    def due(self):
        """Requests that come together are answered together."""
        now = time.monotonic()
        with self.lock:
            if now - self.begun > self.late / 4:
                self.adapt()
                self.begun = now
                self.wait = max(0, self.late + self.random.uniform(-0.005, 0.005))
            return self.begun + self.wait

    def adapt(self):
        if self.in_time is not None:
            if self.before is not None and self.before != self.in_time:
                self.step = max(0.003, self.step / 2)
            self.late += self.step if self.in_time else -self.step
            self.before, self.in_time = self.in_time, None

    def judge(self, in_time):
        with self.lock:
            self.in_time = in_time


REQUEST = struct.Struct(">BQI")
BAD = 0xEE
HONEST_BYTES = 1 << 20


class Server:
    def __init__(self, path, size_mb, fault, every, argument):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(self.fd).st_size < size_mb << 20:
            os.truncate(self.fd, size_mb << 20)
        self.fault, self.every, self.argument = fault, every, argument
        self.count = 0
        self.lock = threading.Lock()
        self.random = random.Random(1)
        self.edge = Edge(argument)

    def strikes(self):
        with self.lock:
            self.count += 1
            return self.every > 0 and self.count % self.every == 0

    def session(self, connection):
        with connection:
            try:
                self.serve(connection)
            except OSError:
                pass

    def reset(self, connection):
        # SO_LINGER with a time of zero turns close into RST
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def send_when_due(self, connection, replies):
        while True:
            due, reply = replies.get()
            time.sleep(max(0, due - time.monotonic()))
            try:
                connection.sendall(reply)
            except OSError:
                self.edge.judge(False)
                return
            if due:
                self.edge.judge(True)

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = queue.SimpleQueue()
        if self.fault == "edge":
            threading.Thread(target=self.send_when_due, args=(connection, replies), daemon=True).start()
        if self.fault == "accept-close":
            return
        if self.fault == "deaf":
            time.sleep(3600)
        if self.fault == "unsolicited" and self.strikes():
            connection.sendall(bytes([BAD]) * 4096)
        stream = connection.makefile("rb", buffering=1 << 20)
        while True:
            header = stream.read(REQUEST.size)
            if len(header) < REQUEST.size:
                return
            command, sector, length = REQUEST.unpack(header)
            if command == 1:
                reply = b"\x00" + os.pread(self.fd, length, sector * 512)
            elif command == 2:
                data = stream.read(length)
                if len(data) < length:
                    return
                reply = b"\x00"
                if self.fault != "error" or sector * 512 < HONEST_BYTES:
                    os.pwrite(self.fd, data, sector * 512)
            else:
                return
            if self.fault == "edge":
                replies.put((self.edge.due() if sector * 512 >= HONEST_BYTES else 0, reply))
            elif self.fault == "unsolicited" or sector * 512 < HONEST_BYTES or not self.strikes():
                connection.sendall(reply)
            elif not self.misbehave(connection, reply, command):
                return

    def misbehave(self, connection, reply, command):
        """Sends something else than `reply`; False ends the connection."""
        fault = self.fault
        if fault == "status":
            connection.sendall(bytes([BAD]) + reply[1:])
        elif fault == "error":
            connection.sendall(b"\x01")
        elif fault in ("short", "short-close"):
            connection.sendall(reply[:-1])
            if fault == "short":
                time.sleep(3600)
            return False
        elif fault == "long":
            connection.sendall(reply + bytes([BAD]))
        elif fault == "write-data":
            connection.sendall(reply + (bytes([BAD]) * 512 if command == 2 else b""))
        elif fault == "garbage":
            connection.sendall(self.random.randbytes(4096))
        elif fault in ("half-close", "reset"):
            connection.sendall(reply[:len(reply) // 2])
            if fault == "reset":
                self.reset(connection)
            return False
        elif fault == "extra-ok":
            connection.sendall(reply + b"\x00")
        elif fault == "delay":
            time.sleep(self.argument / 1000)
            connection.sendall(reply)
        elif fault == "trickle":
            for byte in reply:
                connection.sendall(bytes([byte]))
                time.sleep(self.argument / 1000)
        elif fault == "silent":
            time.sleep(3600)
        else:
            sys.exit(f"unknown fault {fault}")
        return True


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__.strip())
    port, path, size_mb, fault = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if f"\n  {fault} " not in __doc__:
        sys.exit(f"unknown fault {fault}")
    every = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    argument = int(sys.argv[6]) if len(sys.argv) > 6 else 0
    server = Server(path, size_mb, fault, every, argument)
    listener = socket.create_server(("", port), backlog=64)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=server.session, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
