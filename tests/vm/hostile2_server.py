#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A netblk/2 server that breaks the protocol in one chosen way, and keeps it otherwise (tests/compat/netblk2_server.py).

usage: hostile2_server.py PORT FILE SIZE_MB FAULT [EVERY [ARGUMENT]]

The fault strikes every EVERY-th request (default 1) of those that begin at 1 MiB or beyond. welcome-* are about whole
connections. Bytes that no test file has are 0xEE.
  cookie         another cookie                      sequence       the next sequence
  slot           another slot                        type           the reply is a FLUSH's
  twice          the reply, and once more            unasked        a reply to a slot that was never used, then the reply
  header-crc     a wrong checksum of the header      payload-crc    a wrong checksum of a READ's data
  short          a byte less data than asked         long           a byte more
  write-data     data behind a WRITE's reply         eio-data       data behind a READ's EIO
  flags          a flag that was not negotiated      status         a status that the table does not have
  garbage        4096 random bytes                   half-close     half of the reply, then close
  reset          half of the reply, then RST         heartbeat      a heartbeat with a cookie
  resize-odd     a size that is no whole blocks      resize-huge    a size of 2^63
  goodbye        a farewell that nobody asked for    unknown-type   a message of type 0x7f
  times-count    times of more than it answered      times-type     times of a GOODBYE
  silent         no reply, and no heartbeat          stuck          no reply, but heartbeats
  edge           the reply comes as a time-out of ARGUMENT milliseconds does (hostile_server.py)
  early          an EIO before the data of a WRITE was received
  welcome-crc    a wrong checksum                    welcome-slots  no slots at all
  welcome-block  blocks of 3 bytes                   welcome-size   a size of 2^63
  welcome-long   a length of 2^32 - 8                welcome-feature  a feature that was not offered
  welcome-half   half a welcome, then nothing        welcome-garbage  random bytes
"""
import os
import random
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "compat"))
import hostile_server  # noqa: E402
import netblk2  # noqa: E402
import netblk2_server  # noqa: E402
from netblk2 import EIO, GOODBYE, HEARTBEAT, RESIZE, WRITE, pack_reply, pack_times  # noqa: E402

HONEST_BYTES = 1 << 20
FAULT, EVERY, EDGE = "", 1, None
SERVER_REPLY = netblk2_server.Conn2.reply


class Count:
    requests = 0


def strikes(offset):
    if offset < HONEST_BYTES:
        return False
    Count.requests += 1
    return Count.requests % EVERY == 0


class Hostile(netblk2_server.Conn2):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.offsets = {}
        self.mute = False

    def send(self, data):
        if data[:8] == netblk2.MAGIC and FAULT.startswith("welcome-") and len(data) > 96:
            data = self.bad_welcome(data)
        if not self.mute:
            super().send(data)

    def send_late(self, data):
        try:
            self.send(data)
        except OSError:
            EDGE.judge(False)
        else:
            EDGE.judge(True)

    def bad_welcome(self, whole):
        def field(at, form, value):
            return netblk2.reseal(whole[:at] + struct.pack(form, value) + whole[at + struct.calcsize(form):])
        if FAULT == "welcome-crc":
            return whole[:12] + bytes(4) + whole[16:]
        if FAULT == "welcome-long":
            return whole[:8] + struct.pack(">I", 0xFFFFFFF8) + whole[12:]
        if FAULT == "welcome-half":
            return whole[:len(whole) // 2]
        if FAULT == "welcome-garbage":
            return b"N" + random.Random(1).randbytes(len(whole))
        if FAULT == "welcome-feature":
            return field(96, ">H", 2)  # the first of the list becomes lz4
        at, form, value = {"welcome-slots": (84, ">I", 0), "welcome-block": (72, ">I", 3), "welcome-size": (64, ">Q", 1 << 63)}[FAULT]
        return field(at, form, value)

    def check(self, type_, flags, slot, sequence, cookie, offset, length, size, payload_crc):
        super().check(type_, flags, slot, sequence, cookie, offset, length, size, payload_crc)
        if FAULT == "early" and type_ == WRITE and strikes(offset):
            self.session.ledger[slot] = [sequence, EIO]
            SERVER_REPLY(self, WRITE, slot, sequence, cookie, EIO)
            netblk2.recv_exact(self.sock, size)
            raise netblk2.Violation("an early answer was given")

    def take(self, type_, flags, slot, sequence, cookie, offset, length, payload):
        self.offsets[slot] = offset
        super().take(type_, flags, slot, sequence, cookie, offset, length, payload)

    def reply(self, type_, slot, sequence, cookie, status, data=b"", spent=(0, 0)):
        crc = netblk2.CRC32C in self.features
        honest = pack_reply(type_, 0, slot, sequence, cookie, status, data, crc)
        if FAULT.startswith("welcome-") or FAULT == "early" or not strikes(self.offsets.get(slot, 0)):
            self.send(honest)
            return

        def forged(t=type_, f=0, s=slot, q=sequence, c=cookie, st=status, d=data):
            return pack_reply(t, f, s, q, c, st, d, crc)
        if FAULT == "edge":
            threading.Timer(max(0, EDGE.due() - time.monotonic()), self.send_late, (honest,)).start()
            return
        bad = bytes([0xEE])
        one = {
            "cookie": lambda: forged(c=cookie ^ 1), "sequence": lambda: forged(q=sequence + 1 & 0xFFFFFFFF),
            "slot": lambda: forged(s=slot + 1), "type": lambda: forged(t=netblk2.FLUSH, d=b""), "twice": lambda: honest + honest,
            "unasked": lambda: forged(s=15, c=7, d=b"") + honest, "header-crc": lambda: honest[:28] + bytes(4) + honest[32:],
            "payload-crc": lambda: honest[:32] + bytes(x ^ 0xFF for x in data[:1]) + data[1:] if data else honest[:28] + bad * 4,
            "short": lambda: forged(d=data[:-1]) if data else forged(d=bad), "long": lambda: forged(d=data + bad),
            "write-data": lambda: forged(d=data + bad * 512), "eio-data": lambda: forged(st=EIO, d=bad * 512),
            "flags": lambda: forged(f=netblk2.F_LZ4), "status": lambda: forged(st=0xDEADBEEF, d=b""),
            "garbage": lambda: random.Random(Count.requests).randbytes(4096), "half-close": lambda: honest[:len(honest) // 2],
            "reset": lambda: honest[:len(honest) // 2], "heartbeat": lambda: pack_reply(HEARTBEAT, cookie=1, crc=crc) + honest,
            "resize-odd": lambda: pack_reply(RESIZE, cookie=1000001, crc=crc) + honest,
            "resize-huge": lambda: pack_reply(RESIZE, cookie=1 << 63, crc=crc) + honest,
            "times-count": lambda: pack_times(type_, 4_000_000_000, 1, 1, crc) + honest,
            "times-type": lambda: pack_times(GOODBYE, 1, 1, 1, crc) + honest,
            "goodbye": lambda: pack_reply(GOODBYE, crc=crc) + honest, "unknown-type": lambda: pack_reply(0x7F, crc=crc) + honest,
            "silent": lambda: b"", "stuck": lambda: b"",
        }[FAULT]()
        self.send(one)
        if FAULT == "silent":
            self.mute = True
        if FAULT in ("half-close", "reset"):
            if FAULT == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.shut()


def main():
    global FAULT, EVERY, EDGE
    if len(sys.argv) < 5:
        sys.exit(__doc__.strip())
    FAULT, EVERY = sys.argv[4], int(sys.argv[5]) if len(sys.argv) > 5 else 1
    EDGE = hostile_server.Edge(int(sys.argv[6]) if len(sys.argv) > 6 else 0)
    if f" {FAULT} " not in __doc__.replace("\n", " "):
        sys.exit(f"unknown fault {FAULT}")
    netblk2_server.Conn2 = Hostile
    export = netblk2_server.Export("", sys.argv[2], int(sys.argv[3]) << 20, "none")
    netblk2_server.Server([export], int(sys.argv[1]), "0.0.0.0", "none")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
