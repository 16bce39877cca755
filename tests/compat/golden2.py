#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The messages whose bytes are in tests/compat/golden, as the independent implementation makes them.

    golden2.py          prints them all, for protocol/netblk.md and for new files

src/proto/netblk/golden2_test.cc has the same messages in C++."""

import pathlib

import netblk2 as n
from netblk2 import Feature, Hello, Welcome

FOLDER = pathlib.Path(__file__).resolve().parent / "golden"
CLIENT, SESSION, UUID = (bytes(range(first, first + 16)) for first in (0x00, 0x10, 0x20))
BLOCK = b"A" * 512
# One LZ4 block of 512 times 'A', by hand: a literal, a match of 506 bytes one byte back, five literals.
LZ4_BLOCK = bytes.fromhex("1f410100ffe8504141414141")


def hellos():
    offered = [Feature(n.CRC32C, 0, True), Feature(n.HEARTBEATS, 5000), Feature(n.RESIZES)]
    return {
        "hello-new": n.pack_hello(Hello(n.H_WRITE | n.H_BEGIN, 0, 64, CLIENT, SESSION, 1, features=offered, name="disk")),
        "hello-resume": n.pack_hello(Hello(n.H_WRITE, 1, 64, CLIENT, SESSION, 7, UUID, 3, 0, offered, "disk")),
        "hello-plain": n.pack_hello(Hello(n.H_BEGIN, client_id=CLIENT, session_id=SESSION, epoch=1)),
        "hello-info": n.pack_hello(Hello(n.H_INFO, name="disk")),
        "hello-list": n.pack_hello(Hello(n.H_LIST, list_from=2)),
        "hello-unknown-feature": n.pack_hello(Hello(n.H_BEGIN, client_id=CLIENT, session_id=SESSION, epoch=1, features=[Feature(900, 5, True, "teleport")])),
    }


def welcomes():
    inforce = [Feature(n.CRC32C), Feature(n.HEARTBEATS, 5000), Feature(n.RESIZES)]
    none = {"block_bytes": 0, "preferred_bytes": 0, "max_payload_bytes": 0, "slots": 0, "max_connections": 0}
    usual = {"max_connections": 8, "store_uuid": UUID, "generation": 3, "size_bytes": 100 << 20, "block_bytes": 512,
             "preferred_bytes": 4096, "max_payload_bytes": 8 << 20, "slots": 64}
    return {
        "welcome-new": n.pack_welcome(Welcome(n.OK, n.W_NEW | n.W_TRIM, session_id=SESSION, features=inforce, **usual)),
        "welcome-adopted": n.pack_welcome(Welcome(n.OK, n.W_ADOPTED | n.W_READ_ONLY, session_id=SESSION, **usual)),
        "welcome-busy": n.pack_welcome(Welcome(n.EBUSY, body=b"client " + CLIENT.hex().encode() + b" writes", **none)),
        "welcome-list": n.pack_welcome(Welcome(n.OK, n.W_MORE, body=n.pack_export(100 << 20, 0, "disk") +
                                               n.pack_export(4096, n.W_READ_ONLY, "golden image"), **none)),
    }


def messages(crc):
    at = {"slot": 5, "sequence": 0x80000001, "cookie": 0x1122334455667788}
    ranged = {**at, "offset": 1 << 20, "length": 512}
    ask = lambda type_, flags=0, **kw: n.pack_request(type_, flags, crc=crc, **kw)
    say = lambda type_, flags=0, **kw: n.pack_reply(type_, flags, crc=crc, **kw)
    return {
        "request-read": ask(n.READ, **ranged),
        "request-write": ask(n.WRITE, n.FUA, payload=BLOCK, **ranged),
        "request-write-lz4": ask(n.WRITE, n.F_LZ4, payload=LZ4_BLOCK, **ranged),
        "request-flush": ask(n.FLUSH, **at),
        "request-trim": ask(n.TRIM, **{**ranged, "length": (1 << 32) - 512}),
        "request-write-zeroes": ask(n.WRITE_ZEROES, n.FUA | n.NO_UNMAP, **ranged),
        "request-nop": ask(n.NOP, **at),
        "request-goodbye": ask(n.GOODBYE, n.END_SESSION, cookie=at["cookie"]),
        "request-heartbeat": ask(n.HEARTBEAT),
        "reply-read": say(n.READ, payload=BLOCK, **at),
        "reply-read-lz4": say(n.READ, n.F_LZ4, payload=LZ4_BLOCK, **at),
        "reply-read-eio": say(n.READ, status=n.EIO, **at),
        "reply-write": say(n.WRITE, **at),
        "reply-write-enospc": say(n.WRITE, status=n.ENOSPC, **at),
        "reply-flush": say(n.FLUSH, **at),
        "reply-trim": say(n.TRIM, **at),
        "reply-write-zeroes": say(n.WRITE_ZEROES, **at),
        "reply-nop": say(n.NOP, **at),
        "reply-goodbye": say(n.GOODBYE, cookie=at["cookie"]),
        "reply-heartbeat": say(n.HEARTBEAT),
        "reply-resize": say(n.RESIZE, cookie=200 << 20),
        "times-write": n.pack_times(n.WRITE, 3, 1_500_000, 5_000_000_000, crc),
    }


def everything():
    out = {**hellos(), **welcomes()}
    for crc in (True, False):
        out.update({name + ("-crc" if crc else "-plain"): data for name, data in messages(crc).items()})
    return out


def parse(text):
    """The bytes of hexadecimal lines; what follows a '#' is a comment, and `*N` repeats the byte before N times in all."""
    out = bytearray()
    for line in text.splitlines():
        for word in line.split("#")[0].split():
            if word.startswith("*"):
                out += out[-1:] * (int(word[1:]) - 1)
            else:
                out += bytes.fromhex(word)
    return bytes(out)


def lines(data):
    out, at = [], 0
    while at < len(data):
        run = len(data[at:]) - len(data[at:].lstrip(data[at:at + 1]))
        if run > 64:
            out.append(f"{data[at]:02x} *{run}")
            at += run
        else:
            out.append(data[at:at + 16].hex(" "))
            at += 16
    return "\n".join(out) + "\n"


def main():
    for name, data in everything().items():
        print(f"# {name}\n{lines(data)}")


if __name__ == "__main__":
    main()
