#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Writes the first corpora: of the netblk/2 fuzz targets from tests/compat/golden, of NBD's from the protocol's text, and of
the volumes' some changes of each kind (the volumes and streams that are changed are made by the targets themselves).

    fuzz/seeds.py FOLDER      FOLDER/greeting2, messages2, nbd_options, nbd_requests, volume and volume_stream are made
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


def volumes(folder):
    """Each image as it is, and with a change of each kind (fuzz/volume_image.cc, volume_stream_fuzz.cc)."""
    def put(target, name, *parts):
        (folder / target).mkdir(parents=True, exist_ok=True)
        (folder / target / name).write_bytes(b"".join(bytes([part]) if isinstance(part, int) else part for part in parts))

    def edit(at, how, value):
        return struct.pack("<BH", how, at) + value

    # Of a superblock: state, size of the segments, the manifest's place; of a manifest: sections; of a record: its fields; of a page: an entry.
    changes = {"state": b"\0\0\1" + edit(72, 2, struct.pack("<I", 1)), "shift": b"\0\0\1" + edit(76, 2, struct.pack("<I", 28)),
               "manifest-at": b"\0\0\1" + edit(96, 11, b"\1"), "log": b"\1\0" + edit(20, 3, struct.pack("<Q", 9)),
               "longer": b"\2\0\2\0" + struct.pack("<HB", 8, 7), "shorter": b"\2\1\3\1" + struct.pack("<HB", 8, 7),
               "length": b"\3" + struct.pack("<H", 90) + edit(12, 6, b"\x0d"), "blocks": b"\3" + struct.pack("<H", 200) + edit(60, 6, b"\x0c"),
               "point": b"\4" + struct.pack("<H", 219) + edit(0, 2, struct.pack("<I", 6)), "entry": b"\5\0" + edit(40, 3, struct.pack("<Q", 5)),
               "child": b"\5\2" + edit(56, 10, b"\1"), "count": b"\5\1" + edit(10, 9, b"\xff"),
               "stray": b"\6" + struct.pack("<HHB", 2200, 2500, 3), "rot": b"\x87" + struct.pack("<H", 2300) + b"\1" + edit(9, 12, b"\3")}
    for image in range(5):
        for how in (0, 1):
            put("volume", f"image-{image}-{how}", image, how)
            for name, change in changes.items():
                put("volume", f"{name}-{image}-{how}", image, how, change)
    kinds = {"size": b"\0" + edit(120, 3, struct.pack("<Q", 8192)), "base": b"\0" + edit(80, 12, b"\0"), "kind": b"\2" + edit(16, 8, b"\1"),
             "payload": b"\x0a" + edit(20, 8, b"\1"), "data": b"\3" + edit(99, 12, b"\1"), "gone": b"\x0c", "twice": b"\x0d\3",
             "short": b"\6" + struct.pack("<H", 100), "unsummed": b"\x87" + b"\2" + edit(8, 8, b"\1"), "cut": b"\7" + struct.pack("<I", 3000)[:3]}
    for choice in range(9):
        put("volume_stream", f"stream-{choice}", choice)
        for name, change in kinds.items():
            put("volume_stream", f"{name}-{choice}", choice, change)


def main():
    folder = pathlib.Path(sys.argv[1])
    nbd(folder)
    volumes(folder)
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
