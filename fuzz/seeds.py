#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Writes the first corpora: of the netblk/2 fuzz targets from tests/compat/golden, of NBD's from the protocol's text.

    fuzz/seeds.py FOLDER      FOLDER/greeting2, messages2, nbd_options and nbd_requests are made
"""
import pathlib
import struct
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "compat"))
import golden2


def nbd(folder):
    """A handshake, and some requests of each kind of header, which the first byte chooses."""
    def option(number, data=b""):
        return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data

    def text(word):
        return struct.pack(">I", len(word)) + word

    go = text(b"disk") + struct.pack(">HHHH", 3, 1, 2, 3)
    contexts = text(b"disk") + struct.pack(">I", 2) + text(b"base:") + text(b"base:allocation")
    options = [option(8), option(11), option(3), option(5), option(9, contexts), option(10, contexts), option(6, go), option(7, go)]
    (folder / "nbd_options").mkdir(parents=True, exist_ok=True)
    (folder / "nbd_options" / "handshake").write_bytes(b"".join(options))
    (folder / "nbd_options" / "go").write_bytes(go)
    (folder / "nbd_options" / "contexts").write_bytes(contexts)
    compact = b"".join(struct.pack(">IHHQQI", 0x25609513, 1, command, command, 4096, 8) + (b"x" * 8 if command == 1 else b"")
                       for command in range(9))
    extended = b"".join(struct.pack(">IHHQQQ", 0x21E41C71, 0x20 if command in (1, 7) else 0, command, command, 4096, 12) +
                        (struct.pack(">QI", 512, 1) if command in (1, 7) else b"") for command in range(9))
    (folder / "nbd_requests").mkdir(parents=True, exist_ok=True)
    for choice, stream in enumerate((compact, compact, extended)):
        (folder / "nbd_requests" / f"stream-{choice}").write_bytes(bytes([choice]) + stream)


def main():
    folder = pathlib.Path(sys.argv[1])
    nbd(folder)
    streams = {}
    for target in ("greeting2", "messages2"):
        (folder / target).mkdir(parents=True, exist_ok=True)
    for path in sorted(golden2.FOLDER.glob("*.hex")):
        data, name = golden2.parse(path.read_text(encoding="utf-8")), path.stem
        if name.startswith(("hello", "welcome")):
            (folder / "greeting2" / name).write_bytes(data)
            continue
        # The first byte of a message chooses the framing: checksums, both compressions, and which way it goes.
        crc = name.endswith("-crc")
        choice = bytes([(1 if crc else 0) | 6 | (32 if name.startswith(("reply", "times")) else 0) | (64 if name.startswith("times") else 0)])
        (folder / "messages2" / name).write_bytes(choice + data)
        streams.setdefault(choice, []).append(data)
    for choice, parts in streams.items():
        (folder / "messages2" / f"stream-{choice.hex()}").write_bytes(choice + b"".join(parts))


if __name__ == "__main__":
    main()
