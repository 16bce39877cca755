#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Writes the first corpora of the netblk/2 fuzz targets from tests/compat/golden.

    fuzz/seeds.py FOLDER      FOLDER/greeting2 and FOLDER/messages2 are made
"""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "compat"))
import golden2


def main():
    folder = pathlib.Path(sys.argv[1])
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
        choice = bytes([(1 if crc else 0) | 6 | (32 if name.startswith("reply") else 0)])
        (folder / "messages2" / name).write_bytes(choice + data)
        streams.setdefault(choice, []).append(data)
    for choice, parts in streams.items():
        (folder / "messages2" / f"stream-{choice.hex()}").write_bytes(choice + b"".join(parts))


if __name__ == "__main__":
    main()
