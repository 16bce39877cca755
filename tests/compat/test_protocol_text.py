#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""protocol/netblk.md, protocol/netblk_wire.h, tests/compat/golden and the independent implementation say the same:
every constant's name and value, every struct's fields, offsets and sizes, in both directions; the layout is asserted in
C and in C++; golden bytes are what the text shows and what netblk2.py makes. Each comparison is shown to fail."""

import pathlib
import re
import subprocess
import sys
import tempfile

import golden2
import netblk2
import suite
from suite import ROOT, check, check_eq, test

HEADER = ROOT / "protocol" / "netblk_wire.h"
TEXT = ROOT / "protocol" / "netblk.md"
FLAGS = {"c": ["-std=gnu11"], "c++": ["-std=c++20"]}


def compile_(source, language, *more):
    return subprocess.run(["gcc", "-x", language, *FLAGS[language], "-Wall", "-Wextra", "-Wpadded", "-Werror", *more, "-"], input=source,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False)


def names_in(header):
    """(constants, {struct: [field]}) that the header's text has."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    constants = [name for name in re.findall(r"^#define[ \t]+(\w+)[ \t]+\S", text, re.MULTILINE)]
    for body in re.findall(r"\benum\s+\w+\s*\{(.*?)\}", text, re.DOTALL):
        constants += re.findall(r"\b([A-Z]\w+)\s*=", body)
    structs = {name: re.findall(r"\b(\w+)(?:\[\w+\])?;", body)
               for name, body in re.findall(r"^struct\s+(\w+)\s*\{(.*?)^\}", text, re.DOTALL | re.MULTILINE)}
    return constants, structs


def header_says(header):
    """({constant: value}, {struct: (size, [(field, offset, size)])}) as the compiler sees them."""
    constants, structs = names_in(header)
    check(len(constants) > 60 and len(structs) >= 7, "the header is not read any more: too few names were found in it")
    lines = [f'_Generic({c}, char *: puts("c {c} NETBLK/2"), default: printf("c {c} %llu\\n", (unsigned long long)(uintptr_t)({c})));'
             for c in constants]
    for name, fields in structs.items():
        lines.append(f'printf("s {name} %zu\\n", sizeof(struct {name}));')
        lines += [f'printf("f {name} {field} %zu %zu\\n", __builtin_offsetof(struct {name}, {field}), '
                  f'sizeof(((struct {name} *)0)->{field}));' for field in fields]
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "wire.h").write_text(header, encoding="utf-8")
        program = pathlib.Path(folder) / "program"
        built = compile_('#include <stdio.h>\n#include <stdint.h>\n#include "wire.h"\nint main(void) {\n' + "\n".join(lines) +
                         "\nreturn 0; }\n", "c", "-Wno-pointer-to-int-cast", "-Wno-padded", "-I", folder, "-o", str(program))
        check(built.returncode == 0, f"the header does not compile: {built.stdout[:500]}")
        said = subprocess.run([str(program)], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    values, layouts = {}, {}
    for kind, name, *rest in (line.split() for line in said.splitlines()):
        if kind == "c":
            values[name] = rest[0] if name == "NETBLK2_MAGIC" else int(rest[0])
        elif kind == "s":
            layouts[name] = (int(rest[0]), [])
        else:
            layouts[name][1].append((rest[0], int(rest[1]), int(rest[2])))
    return values, layouts


def text_says(text):
    """The same from the tables of the text; a struct's size is the end of its last field."""
    values, layouts = {}, {}
    for name, value in re.findall(r"^\| `(NETBLK\w+)` \| ([^|]+) \|", text, re.MULTILINE):
        value = value.strip().strip("`")
        check(name not in values, f"the text gives {name} twice")
        values[name] = value if name == "NETBLK2_MAGIC" else int(value, 0)
    for name, table in re.findall(r"^### `struct (\w+)`\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        fields = [(field, int(offset), int(size))
                  for offset, size, field in re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", table, re.MULTILINE)]
        layouts[name] = (max(offset + size for _, offset, size in fields), fields)
    return values, layouts


def differences(header, text):
    (header_values, header_layouts), (text_values, text_layouts) = header_says(header), text_says(text)
    out = [f"{name}: the header says {header_values.get(name, 'nothing')}, the text {text_values.get(name, 'nothing')}"
           for name in sorted(header_values.keys() | text_values.keys()) if header_values.get(name) != text_values.get(name)]
    for name in sorted(header_layouts.keys() | text_layouts.keys()):
        ours, theirs = header_layouts.get(name), text_layouts.get(name)
        if ours != theirs:
            out.append(f"struct {name}: the header says {ours}, the text {theirs}")
    # What a struct's size is called, in both.
    for name, (size, _) in header_layouts.items():
        if header_values.get(name.upper() + "_SIZE") != size:
            out.append(f"{name.upper()}_SIZE is not the size of struct {name}")
    return out


def text_blocks(text):
    """(name, bytes) of each worked example."""
    return [(name, golden2.parse(body)) for name, body in re.findall(r"^```text\n(?:client|server) ([\w-]+)\n(.*?)^```$", text,
                                                                     re.MULTILINE | re.DOTALL)]


def golden_files():
    return {path.stem: golden2.parse(path.read_text(encoding="utf-8")) for path in sorted(golden2.FOLDER.glob("*.hex"))}


def golden_differences(files, made):
    return [f"{name}: {'no such file' if name not in files else 'not what netblk2.py makes'}"
            for name in sorted(files.keys() | made.keys()) if files.get(name) != made.get(name)]


@test
def test_text_and_header_agree(t):
    found = differences(HEADER.read_text(encoding="utf-8"), TEXT.read_text(encoding="utf-8"))
    check(not found, "; ".join(found))


@test(timeout=180)
def test_text_and_header_can_differ(t):
    """Each planted difference is noticed, and named."""
    header, text = HEADER.read_text(encoding="utf-8"), TEXT.read_text(encoding="utf-8")
    planted = {
        "a value in the text": (header, text.replace("| `NETBLK2_MAX_SLOTS` | 4096 |", "| `NETBLK2_MAX_SLOTS` | 4095 |")),
        "a value in the header": (header.replace("NETBLK2_ESTALE = 116", "NETBLK2_ESTALE = 117"), text),
        "a constant that the text lacks": (header.replace("NETBLK2_OK = 0,", "NETBLK2_OK = 0, NETBLK2_EMORE = 7,"), text),
        "a macro that the text lacks": (header.replace("#define NETBLK2_FUA", "#define NETBLK2_FUB 0x08\n#define NETBLK2_FUA"), text),
        "a constant that the header lacks": (header, text.replace("| `NETBLK2_FUA` |", "| `NETBLK2_FUX` | 0x40 | x |\n| `NETBLK2_FUA` |")),
        "an offset in the text": (header, text.replace("| 20 | 4 | `slots` |", "| 21 | 4 | `slots` |")),
        "a size in the text": (header, text.replace("| 16 | 8 | `offset` |", "| 16 | 4 | `offset` |")),
        "a field's name in the text": (header, text.replace("| `sequence` | of the request |", "| `serial` | of the request |")),
        "a field's name in the header": (re.sub(r"\breserved\b", "spare", header), text),
        "a struct that the text lacks": (header, text.replace("### `struct netblk2_export`", "### `struct netblk2_entry`")),
    }
    for what, (other_header, other_text) in planted.items():
        check((other_header, other_text) != (header, text), f"{what}: nothing was planted")
        check(differences(other_header, other_text), f"nothing noticed {what}")


@test
def test_layout_is_asserted_in_c_and_cxx(t):
    """The header compiles in both languages, without padding; with two fields exchanged, or one of another size, in neither."""
    header = HEADER.read_text(encoding="utf-8")
    wrong = {
        "the epoch before the session": header.replace("\t__be64 epoch;", "\t__be64 moved;").replace(
            "\t__u8 session_id[NETBLK2_ID_SIZE]; /* zero: a new session */",
            "\t__be64 epoch;\n\t__u8 session_id[NETBLK2_ID_SIZE];").replace(
            "\t__be64 moved; /* above all earlier ones of this session and index */\n", ""),
        "a cookie of four bytes": header.replace("\t__be64 cookie; /* the client's own", "\t__be32 cookie; /* the client's own"),
        "an unpacked netblk1_request": header.replace("} __attribute__((packed));", "};"),
        "a wrong size": header.replace("#define NETBLK2_REPLY_SIZE 32", "#define NETBLK2_REPLY_SIZE 40"),
    }
    for language in FLAGS:
        built = compile_(header, language, "-fsyntax-only")
        check_eq(built.returncode, 0, f"{language}: {built.stdout[:400]}")
        for what, text in wrong.items():
            check(text != header, f"{what}: nothing was planted")
            built = compile_(text, language, "-fsyntax-only")
            check(built.returncode != 0 and re.search(r"static assertion|size of|not at byte|padding|pad struct", built.stdout),
                  f"{language} compiles a header with {what}")


@test
def test_golden_bytes_are_what_the_independent_implementation_makes(t):
    files, made = golden_files(), golden2.everything()
    found = golden_differences(files, made)
    check(len(files) >= 50 and not found, "; ".join(found))
    # The comparison can fail.
    name = "request-write-crc"
    bent = {**files, name: files[name][:-1] + b"B"}
    check(golden_differences(bent, made) and golden_differences({**files, "more": b""}, made), "a bent golden file goes unnoticed")


@test
def test_golden_bytes_are_read_back(t):
    """Every greeting and message is what the independent implementation takes it for, with a right checksum; one
    flipped bit of it anywhere is noticed."""
    for name, data in golden_files().items():
        kind = name.split("-")[0]
        if kind in ("hello", "welcome"):
            unpack, pack = ((netblk2.unpack_hello, netblk2.pack_hello) if kind == "hello" else
                            (netblk2.unpack_welcome, netblk2.pack_welcome))
            check_eq(pack(unpack(data)), data, name)
            for bit in range(0, len(data) * 8, 7):
                bent = bytearray(data)
                bent[bit // 8] ^= 1 << bit % 8
                if bit >= 64:
                    try:
                        unpack(bytes(bent))
                    except netblk2.Violation:
                        continue
                    raise AssertionError(f"{name}: bit {bit} flipped, and nothing noticed")
            continue
        if kind == "times":
            *told, reserved, crc = netblk2.TIMES_TOLD.unpack(data)
            check_eq(netblk2.pack_times(*told[2:], crc=crc != 0), data, name)
            check_eq((told[0], crc), (netblk2.TIMES, netblk2.crc32c(data[:-4]) if name.endswith("-crc") else 0), name)
            continue
        layout = netblk2.REQUEST if kind == "request" else netblk2.REPLY
        *_, size, payload_crc, crc = layout.unpack_from(data)
        check_eq(size, len(data) - layout.size, f"{name}: payload_length")
        if name.endswith("-crc"):
            check_eq(crc, netblk2.crc32c(data[:layout.size - 4]), f"{name}: crc")
            check_eq(payload_crc, netblk2.crc32c(data[layout.size:]) if size else 0, f"{name}: payload_crc")
        else:
            check_eq((crc, payload_crc), (0, 0), f"{name}: checksums")
        if "lz4" in name:
            check_eq(netblk2.lz4_decompress(data[layout.size:], 512), golden2.BLOCK, name)


@test
def test_examples_of_the_text_are_the_golden_bytes(t):
    files, shown = golden_files(), text_blocks(TEXT.read_text(encoding="utf-8"))
    check(len(shown) >= 20, f"only {len(shown)} examples were found in the text: this test does not see them any more")
    for name, data in shown:
        check_eq(data, files.get(name), f"the example {name}")
    bent = TEXT.read_text(encoding="utf-8").replace("4e 45 54 42 4c 4b 2f 32", "4e 45 54 42 4c 4b 2f 33")
    check(any(data != files[name] for name, data in text_blocks(bent)), "a bent example goes unnoticed")


@test
def test_the_independent_constants_are_the_texts(t):
    """netblk2.py wrote its numbers from the text by hand."""
    values, layouts = text_says(TEXT.read_text(encoding="utf-8"))
    prefixes = {"H_": "NETBLK2_HELLO_", "W_": "NETBLK2_WELCOME_", "F_": "NETBLK2_", "": "NETBLK2_"}
    compared = set()
    own = {"CRC32C": "FEATURE_CRC32C", "LZ4": "FEATURE_LZ4", "ZSTD": "FEATURE_ZSTD", "HEARTBEATS": "FEATURE_HEARTBEAT",
           "RESIZES": "FEATURE_RESIZE", "TIMED": "FEATURE_TIMES", "MANDATORY": "FEATURE_MANDATORY"}
    for name, number in vars(netblk2).items():
        if not name.isupper() or not isinstance(number, (int, bytes)) or name in ("ID0",):
            continue
        prefix = next(p for p in prefixes if name.startswith(p))
        full = "NETBLK2_" + own[name] if name in own else prefixes[prefix] + name[len(prefix):]
        check(full in values, f"netblk2.{name}: the text has no {full}")
        check_eq(number, values[full].encode() if isinstance(number, bytes) else values[full], full)
        compared.add(full)
    derived = {"NETBLK2_MAGIC_SIZE", "NETBLK2_ID_SIZE", "NETBLK2_FEATURE_NAME_SIZE", "NETBLK2_FEATURE_LAST",
               "NETBLK2_HELLO_KNOWN_FLAGS"} | {f"{name.upper()}_SIZE" for name in layouts}
    rest = {name for name in values if name.startswith("NETBLK2_")} - compared - derived
    check(not rest, f"netblk2.py has no {sorted(rest)}")


if __name__ == "__main__":
    sys.exit(suite.main("protocol-text"))
