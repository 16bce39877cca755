#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""NBD's handshake, a test for each sentence of the protocol text that speaks of it.

NETBLK_NBD_PEER=nbdkit (or qemu-nbd, nbd-server) runs it against that server instead of ours."""

import pathlib
import socket
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import nbd
import nbd_target
import suite
from nbd_target import MIB, needs, start
from suite import check, check_eq, test

SIZE = 16 * MIB


def refused(code, call, *args, **kw):
    """`call` must be refused with an option error, `code` or one of them."""
    codes = code if isinstance(code, tuple) else (code,)
    try:
        got = call(*args, **kw)
    except nbd.OptionError as e:
        check(e.code in codes, f"{e}; wanted {[f'2^31+{c - nbd.ERR}' for c in codes]}")
        return e
    raise AssertionError(f"accepted ({got!r}); wanted {[f'2^31+{c - nbd.ERR}' for c in codes]}")


def in_step(c, name="disk"):
    """The next option and the first command are understood."""
    c.go(name)
    check_eq(c.size, SIZE, "the size")
    check_eq(c.read(4096, 512), bytes(512), "the first READ")


def ends(c, what):
    try:
        rest = c.stream.drain()
    except TimeoutError:
        raise AssertionError(f"{what}: the connection stays open") from None
    check_eq(rest, b"", f"{what}: bytes before the end")


# ---- greeting and client flags

@test
def test_server_speaks_first(t):
    c = start(t).connect(greet=False)
    check_eq(c.recv(18), struct.pack(">QQH", nbd.INIT_MAGIC, nbd.OPTION_MAGIC, 3), "the greeting, before a byte is sent")


@test
def test_client_flags_alone(t):
    """Each combination of known client flags reaches transmission."""
    s = start(t)
    for flags in (0, nbd.FIXED_NEWSTYLE, nbd.NO_ZEROES, nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES):
        c = s.connect(flags=flags)
        c.export_name("disk")
        check_eq((c.size, c.read(0, 512)), (SIZE, bytes(512)), f"client flags {flags}")


@test
def test_unknown_client_flags_close(t):
    """The server MUST drop the connection if the client sets an unknown flag."""
    s = start(t)
    for flags in (1 << 2, 1 << 31 | 1, 0xFFFFFFFF, 1 << 16 | 3):
        c = s.connect(flags=flags)
        ends(c, f"client flags {flags:#x}")
        c.close()
    s.client(replies="simple").read(0, 512)


# ---- EXPORT_NAME

@test
def test_export_name_with_zeroes(t):
    c = start(t).connect(flags=nbd.FIXED_NEWSTYLE)
    c.export_name("disk")
    check_eq(c.read(0, 512), bytes(512), "READ after the 124 zeroes")


@test
def test_export_name_without_zeroes(t):
    c = start(t).connect()
    c.export_name("disk")
    check_eq(c.read(0, 512), bytes(512), "READ right after the flags")


@test
def test_export_name_unknown_closes(t):
    """It cannot be refused otherwise."""
    s = start(t)
    for name in ("nonesuch", "Disk", "disk ", "disk\u00e9"):
        c = s.connect()
        c.send_option(nbd.OPT_EXPORT_NAME, name.encode())
        ends(c, f"EXPORT_NAME {name!r}")
        c.close()


@test
def test_export_name_after_options(t):
    """Structured replies hold for EXPORT_NAME too."""
    needs("structured")
    c = start(t).connect()
    c.structured()
    c.set_meta("disk")
    c.export_name("disk")
    check(c.flags & nbd.SEND_DF, "SEND_DF with structured replies")
    check_eq(c.read(0, 512), bytes(512), "READ")
    c.map()


@test
def test_export_name_after_extended_headers(t):
    """A client MUST NOT; the server may close or serve, but not mix the two up."""
    needs("extended")
    c = start(t).connect()
    c.extended()
    c.send_option(nbd.OPT_EXPORT_NAME, b"disk")
    try:
        c.recv(10)
    except nbd.Closed:
        return
    check_eq(c.read(0, 512), bytes(512), "READ with extended headers")


@test
def test_default_export(t):
    """The empty name is the first export, whichever option asks."""
    if nbd_target.PEER in ("qemu-nbd", "nbd-server"):
        raise suite.Skip(f"{nbd_target.PEER} has no default export")
    s = start(t)
    for ask in ("export_name", "go"):
        c = s.connect()
        getattr(c, ask)("")
        check_eq(c.size, SIZE, f"{ask} with an empty name")
    check_eq(s.connect().info("")[nbd.INFO_EXPORT][0], SIZE, "INFO with an empty name")
    check_eq(s.connect().info("", (nbd.INFO_NAME,)).get(nbd.INFO_NAME), "disk", "the default export's own name")


# ---- LIST and descriptions

@test
def test_list(t):
    c = start(t).connect()
    check_eq([name for name, _ in c.list()], ["disk"], "LIST")
    check_eq([name for name, _ in c.list()], ["disk"], "LIST again")
    in_step(c)


@test
def test_list_of_many(t):
    """In the order of configuration, and each with its own size."""
    if nbd_target.PEER == "nbdkit":
        raise suite.Skip("nbdkit lists a folder's files instead")
    exports = {f"e{i}": nbd_target.image(t, (i + 1) * MIB, f"{i}.img") for i in range(12)}
    exports["größe-Ω"] = nbd_target.image(t, 3 * MIB, "utf8.img")
    s = start(t, exports=exports)
    c = s.connect()
    check_eq([name for name, _ in c.list()], list(exports), "LIST")
    for name, path in exports.items():
        check_eq(c.info(name)[nbd.INFO_EXPORT][0], path.stat().st_size, f"the size of {name}")
    c.go("größe-Ω")
    check_eq(c.size, 3 * MIB, "GO")
    c = s.connect()
    c.go("e7")
    check_eq((c.size, c.read(8 * MIB - 512, 512)), (8 * MIB, bytes(512)), "another of them")


@test
def test_description(t):
    """An export's description, in LIST and in INFO."""
    needs("description")
    c = start(t, options=["description=a disk"]).connect()
    check_eq(c.list(), [("disk", "a disk")], "LIST")
    check_eq(c.info("disk", (nbd.INFO_DESCRIPTION,)).get(nbd.INFO_DESCRIPTION), "a disk", "INFO")


@test
def test_list_with_data_is_invalid(t):
    c = start(t).connect()
    refused(nbd.ERR_INVALID, c.option, nbd.OPT_LIST, b"x")
    refused(nbd.ERR_INVALID, c.option, nbd.OPT_LIST, bytes(4000))
    check_eq(len(c.list()), 1, "LIST afterwards")


# ---- INFO and GO

@test
def test_go(t):
    s = start(t)
    c = s.connect()
    infos = c.go("disk", ())
    check_eq(infos[nbd.INFO_EXPORT][0], SIZE, "the size")
    check_eq(c.read(0, 512), bytes(512), "READ right after the ACK")


@test
def test_go_sends_no_zeroes(t):
    """Whatever NO_ZEROES says."""
    c = start(t).connect(flags=nbd.FIXED_NEWSTYLE)
    in_step(c)


@test
def test_go_unknown_export(t):
    """ERR_UNKNOWN, and the session goes on."""
    c = start(t).connect()
    for option in (nbd.OPT_INFO, nbd.OPT_GO):
        for name in (b"nonesuch", b"disk2", b"dis", b"DISK", "d\u00efsk".encode()):
            refused(nbd.ERR_UNKNOWN, c.option, option, nbd.info_data(name))
    in_step(c)


@test
def test_block_sizes(t):
    """Byte granularity, and 32 MiB of payload."""
    infos = start(t).connect().info("disk", (nbd.INFO_BLOCK_SIZE,))
    check(nbd.INFO_BLOCK_SIZE in infos, "BLOCK_SIZE was asked for")
    least, preferred, most = infos[nbd.INFO_BLOCK_SIZE]
    check_eq(least, 1, "the minimum block size of a file")
    check(preferred >= 512, f"preferred {preferred}")
    check(most >= 32 * MIB, f"maximum payload {most}")
    if not nbd_target.PEER:
        check_eq(most, 32 * MIB, "the maximum payload")


@test
def test_info_of_every_kind(t):
    needs("description")
    c = start(t, options=["description=a disk"]).connect()
    infos = c.info("disk", (nbd.INFO_EXPORT, nbd.INFO_NAME, nbd.INFO_DESCRIPTION, nbd.INFO_BLOCK_SIZE))
    check_eq(set(infos) >= {0, 1, 2, 3}, True, f"all four kinds: {infos}")
    check_eq((infos[nbd.INFO_NAME], infos[nbd.INFO_DESCRIPTION]), ("disk", "a disk"), "name and description")


@test
def test_info_requests_unknown_are_ignored(t):
    c = start(t).connect()
    infos = c.info("disk", (7, 100, nbd.INFO_BLOCK_SIZE, 0x8000, 0xFFFF))
    check(nbd.INFO_BLOCK_SIZE in infos, f"what is known is answered beside what is not: {infos}")
    check(not set(infos) - {0, 1, 2, 3}, f"kinds that nobody knows: {infos}")
    in_step(c)


@test
def test_info_request_twice(t):
    """A client MUST NOT; one answer or a refusal, but not two (nbd.py looks)."""
    c = start(t).connect()
    try:
        c.info("disk", (nbd.INFO_BLOCK_SIZE, nbd.INFO_BLOCK_SIZE, nbd.INFO_NAME, nbd.INFO_NAME))
    except nbd.OptionError as e:
        check_eq(e.code, nbd.ERR_INVALID, "the refusal")
    in_step(c)


@test
def test_info_then_go_say_the_same(t):
    s = start(t)
    for wants in ((), (nbd.INFO_BLOCK_SIZE,), (nbd.INFO_NAME, nbd.INFO_DESCRIPTION)):
        for replies in ("simple", "structured", "extended"):
            if replies in nbd_target.LACKS[nbd_target.PEER]:
                continue
            c = s.connect()
            if replies != "simple":
                getattr(c, replies)()
            first = c.info("disk", wants)
            check_eq(c.go("disk", wants), first, f"GO after INFO, {replies}, wants {wants}")


@test
def test_info_enters_nothing(t):
    """Options go on after INFO, of the same export and of others."""
    c = start(t).connect()
    for _ in range(3):
        c.info("disk")
        c.list()
        refused(nbd.ERR_UNKNOWN, c.info, "other")
    in_step(c)


@test
def test_go_malformed(t):
    """Lengths that disagree are INVALID, and the session stays in step."""
    c = start(t).connect()
    good = nbd.info_data(b"disk", (3,))
    for data in (b"", b"\0", good[:3], good[:4], good[:6], good[:8], good[:9], good[:-1], good + b"\0", good + bytes(2),
                 struct.pack(">I", 5) + b"disk\0\0", struct.pack(">I", 0xFFFFFFFF) + b"disk\0\0",
                 struct.pack(">I", 0x80000000) + b"disk\0\0", struct.pack(">I", 0xFFFFFFFA) + b"disk\0\0",
                 struct.pack(">I", 4) + b"disk" + struct.pack(">H", 2) + b"\0\3",
                 struct.pack(">I", 4) + b"disk" + struct.pack(">H", 0xFFFF) + b"\0\3"):
        for option in (nbd.OPT_INFO, nbd.OPT_GO):
            refused(nbd.ERR_INVALID, c.option, option, data)
    in_step(c)


@test
def test_names_that_no_export_has(t):
    """Long ones, and bytes that are no string."""
    c = start(t).connect()
    for name in (b"x" * 255, b"x" * 256, b"x" * 257, b"x" * 4095, b"x" * 4096, "\u00e9".encode() * 2048, b"x" + "\u00e9".encode() * 2047):
        refused((nbd.ERR_UNKNOWN, nbd.ERR_TOO_BIG, nbd.ERR_INVALID), c.option, nbd.OPT_GO, nbd.info_data(name))
    for name in (b"disk\0", b"\0", b"\xff\xfe", b"disk\x80", b"a\nb", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        refused((nbd.ERR_UNKNOWN, nbd.ERR_INVALID), c.option, nbd.OPT_INFO, nbd.info_data(name))
    in_step(c)


# ---- ABORT, STARTTLS, unknown options

@test
def test_abort(t):
    s = start(t)
    s.connect().abort()
    c = s.connect()
    c.structured() if "structured" not in nbd_target.LACKS[nbd_target.PEER] else c.list()
    c.abort()


@test
def test_abort_with_data(t):
    """The data is ignored, however much of it there is."""
    s = start(t)
    for data in (b"goodbye", bytes(4096), *((bytes(16385), bytes(MIB), bytes(3 * MIB)) if not nbd_target.PEER else ())):
        c = s.connect()
        check_eq(c.option(nbd.OPT_ABORT, data), [], f"ABORT with {len(data)} bytes")
        ends(c, f"ABORT with {len(data)} bytes")


@test
def test_abort_without_waiting(t):
    """A client may close without reading the reply."""
    s = start(t)
    for _ in range(20):
        c = s.connect()
        c.send_option(nbd.OPT_ABORT)
        c.close()
    s.check_alive()
    in_step(s.connect())


@test
def test_starttls_is_refused_by_name(t):
    c = start(t).connect()
    e = refused((nbd.ERR_UNSUP, nbd.ERR_POLICY, nbd.ERR_PLATFORM), c.option, nbd.OPT_STARTTLS)
    if not nbd_target.PEER:
        check("TLS" in e.message, f"the reason names TLS: {e.message!r}")
    c.list()
    refused((nbd.ERR_UNSUP, nbd.ERR_POLICY, nbd.ERR_PLATFORM, nbd.ERR_INVALID), c.option, nbd.OPT_STARTTLS, b"x")
    in_step(c)


@test
def test_unknown_options(t):
    """UNSUP, their data skipped, and the next option understood."""
    c = start(t).connect()
    for option in (0, 4, 12, 13, 100, 0x7FFFFFFF, 0x80000001, 0xFFFFFFFF):
        for data in (b"", b"data", bytes(1000)):
            refused(nbd.ERR_UNSUP, c.option, option, data)
        c.list()
    in_step(c)


@test
def test_options_in_any_order(t):
    """No option depends on one that its text does not name."""
    needs("structured")
    s = start(t)
    orders = [("list", "structured", "list_meta", "set_meta"), ("structured", "set_meta", "list", "info", "set_meta"),
              ("info", "structured", "info", "list_meta", "list"), ("structured", "list_meta", "set_meta", "info")]
    if "extended" not in nbd_target.LACKS[nbd_target.PEER]:
        orders += [("extended", "list", "set_meta", "info"), ("structured", "set_meta", "extended", "set_meta"),
                   ("list", "info", "structured", "extended", "list_meta")]
    for order in orders:
        c = s.connect()
        for step in order:
            getattr(c, step)(*(("disk",) if step in ("info", "list_meta", "set_meta") else ()))
        in_step(c)
        if "set_meta" in order:
            c.map()


@test
def test_option_with_wrong_magic_closes(t):
    s = start(t)
    for magic in (0, nbd.INIT_MAGIC, nbd.OPTION_MAGIC ^ 1, nbd.OPTION_REPLY_MAGIC):
        c = s.connect()
        c.send(struct.pack(">QII", magic, nbd.OPT_LIST, 0))
        ends(c, f"option magic {magic:#x}")
        c.close()
    s.check_alive()


@test
def test_options_byte_by_byte(t):
    c = start(t).connect()
    data = struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_LIST, 0)
    for b in data:
        c.send(bytes([b]))
    check_eq(len(c.option_end(nbd.OPT_LIST)), 1, "LIST byte by byte")
    body = nbd.info_data(b"disk", (3,))
    for b in struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_INFO, len(body)) + body:
        c.send(bytes([b]))
    check(len(c.option_end(nbd.OPT_INFO)) >= 2, "INFO byte by byte")
    in_step(c)


# ---- structured replies, extended headers

@test
def test_structured_reply(t):
    needs("structured")
    s = start(t)
    c = s.connect()
    c.structured()
    in_step(c)
    check(c.flags & nbd.SEND_DF, "SEND_DF with structured replies")
    plain = s.client(replies="simple")
    check(not plain.flags & nbd.SEND_DF, "SEND_DF without structured replies")


@test
def test_structured_reply_with_data_is_invalid(t):
    """And structured replies stay off."""
    needs("structured")
    c = start(t).connect()
    refused(nbd.ERR_INVALID, c.option, nbd.OPT_STRUCTURED, b"x")
    in_step(c)


@test
def test_structured_reply_twice(t):
    """The server MAY refuse the second."""
    needs("structured")
    c = start(t).connect()
    c.structured()
    try:
        c.structured()
    except nbd.OptionError as e:
        check_eq(e.code, nbd.ERR_INVALID, "the refusal")
    in_step(c)


@test
def test_extended_headers(t):
    """Alone, and after structured replies; SEND_DF holds with them."""
    needs("extended")
    s = start(t)
    for first in ((), ("structured",)):
        c = s.connect()
        for step in first:
            getattr(c, step)()
        c.extended()
        in_step(c)
        check(c.flags & nbd.SEND_DF, "SEND_DF with extended headers")


@test
def test_extended_headers_with_data_are_invalid(t):
    needs("extended")
    c = start(t).connect()
    refused(nbd.ERR_INVALID, c.option, nbd.OPT_EXTENDED, b"x")
    in_step(c)


@test
def test_extended_headers_are_not_undone(t):
    """STRUCTURED_REPLY after them: EXT_HEADER_REQD."""
    needs("extended")
    c = start(t).connect()
    c.extended()
    refused(nbd.ERR_EXT_HEADER_REQD, c.option, nbd.OPT_STRUCTURED)
    refused(nbd.ERR_INVALID, c.extended)
    in_step(c)


# ---- metadata contexts

@test
def test_list_meta_context(t):
    needs("structured")
    s = start(t)
    for replies in ("structured", "extended"):
        if replies in nbd_target.LACKS[nbd_target.PEER]:
            continue
        c = s.connect()
        getattr(c, replies)()
        check("base:allocation" in c.list_meta("disk"), "no query: all that there are")
        check_eq(c.list_meta("disk", ["base:"]), ["base:allocation"], "the wildcard")
        check_eq(c.list_meta("disk", ["base:allocation"]), ["base:allocation"], "by name")
        check_eq(c.list_meta("disk", ["base:allocation", "base:", "base:allocation"]), ["base:allocation"], "not twice")
        for query in ("base:nonesuch", "x-other:", "x-other:thing", "nbd-server:x", "qemu:dirty-bitmap:none"):
            check_eq(c.list_meta("disk", [query]), [], f"query {query!r}")
        check_eq(c.list_meta("disk", ["x-a:b", "base:allocation", "x-c:"]), ["base:allocation"], "among others")
        refused(nbd.ERR_UNKNOWN, c.list_meta, "nonesuch")
        in_step(c)


@test
def test_list_meta_context_before_structured_replies(t):
    """The server MAY refuse."""
    needs("structured")
    c = start(t).connect()
    try:
        check("base:allocation" in c.list_meta("disk"), "the list, where it is given")
    except nbd.OptionError as e:
        check(e.code in (nbd.ERR_INVALID, nbd.ERR_EXT_HEADER_REQD), f"{e}")
    in_step(c)


@test
def test_set_meta_context(t):
    needs("structured")
    s = start(t)
    c = s.connect()
    c.structured()
    for queries, wanted in ((["base:allocation"], ["base:allocation"]), ([], []), (["base:"], []), (["base:nonesuch"], []),
                            (["x-other:y"], []), (["base:allocation"] * 3, ["base:allocation"]),
                            (["x-a:b", "base:allocation"], ["base:allocation"])):
        check_eq(list(c.set_meta("disk", queries).values()), wanted, f"queries {queries}")
    refused(nbd.ERR_UNKNOWN, c.set_meta, "nonesuch")
    in_step(c)


@test
def test_set_meta_context_needs_structured_replies(t):
    needs("structured")
    c = start(t).connect()
    refused((nbd.ERR_INVALID, nbd.ERR_EXT_HEADER_REQD), c.set_meta, "disk")
    in_step(c)
    check_eq(c.error_of(nbd.CMD_BLOCK_STATUS, 0, 4096), nbd.EINVAL, "BLOCK_STATUS without structured replies")


@test
def test_set_meta_context_replaces(t):
    """Also where it selects nothing, or fails."""
    needs("structured")
    s = start(t)
    good = [b"base:allocation"]
    for what, data, fails in (("none", nbd.option_data(b"disk"), False), ("unknown", nbd.option_data(b"disk", [b"x-a:b"]), False),
                              ("other export", nbd.option_data(b"nonesuch", good), True),
                              ("malformed", nbd.option_data(b"disk", good)[:-3], True)):
        c = s.connect()
        c.structured()
        c.set_meta("disk")
        try:
            c.option(nbd.OPT_SET_META, data)
            check(not fails, f"{what}: accepted")
        except nbd.OptionError:
            check(fails, f"{what}: refused")
        in_step(c)
        check_eq(c.error_of(nbd.CMD_BLOCK_STATUS, 0, 4096), nbd.EINVAL, f"BLOCK_STATUS after {what}")
        check_eq(c.read(0, 512), bytes(512), "READ afterwards")


@test
def test_set_meta_context_of_another_export(t):
    """The contexts are those of the export that GO names."""
    needs("structured", "many-exports")
    if nbd_target.PEER:
        raise suite.Skip("two exports in one folder only")
    s = start(t, exports={"disk": nbd_target.image(t, SIZE), "two": nbd_target.image(t, MIB, "two.img")})
    c = s.connect()
    c.structured()
    c.set_meta("two")
    in_step(c)
    check_eq(c.error_of(nbd.CMD_BLOCK_STATUS, 0, 4096), nbd.EINVAL, "BLOCK_STATUS with contexts of another export")


@test
def test_meta_context_malformed(t):
    needs("structured")
    c = start(t).connect()
    c.structured()
    good = nbd.option_data(b"disk", [b"base:allocation"])
    for data in (b"", good[:3], good[:4], good[:8], good[:11], good[:13], good[:16], good[:-1],
                 struct.pack(">I", 0xFFFFFFFF) + good[4:], struct.pack(">I", 5) + good[4:],
                 good[:8] + struct.pack(">I", 2) + good[12:], good[:8] + struct.pack(">I", 0xFFFFFFFF) + good[12:],
                 good[:12] + struct.pack(">I", 0xFFFFFFFF) + good[16:], good[:12] + struct.pack(">I", 16) + good[16:]):
        for option in (nbd.OPT_LIST_META, nbd.OPT_SET_META):
            refused((nbd.ERR_INVALID, nbd.ERR_UNKNOWN, nbd.ERR_TOO_BIG), c.option, option, data)
    in_step(c)


@test
def test_meta_context_query_without_namespace(t):
    """MAY be INVALID, or select nothing."""
    needs("structured")
    c = start(t).connect()
    c.structured()
    for query in (b"allocation", b"", b":", b":allocation", b"base"):
        for option in (nbd.OPT_LIST_META, nbd.OPT_SET_META):
            try:
                check_eq(c.option(option, nbd.option_data(b"disk", [query])), [], f"query {query!r}")
            except nbd.OptionError as e:
                check_eq(e.code, nbd.ERR_INVALID, f"query {query!r}")
    in_step(c)


@test
def test_many_meta_queries(t):
    """Hundreds are answered, or refused by size."""
    needs("structured")
    c = start(t).connect()
    c.structured()
    for queries in ([f"x-n:{i}" for i in range(100)] + ["base:allocation"], ["base:allocation"] * 150):
        for call in (c.list_meta, c.set_meta):
            try:
                got = call("disk", queries)
                check_eq(list(got.values()) if isinstance(got, dict) else got, ["base:allocation"], f"{len(queries)} queries")
            except nbd.OptionError as e:
                check(e.code in (nbd.ERR_TOO_BIG, nbd.ERR_INVALID), str(e))
    in_step(c)


# ---- what the flags promise

@test
def test_transmission_flags(t):
    """Of a writable file: what DESIGN lists."""
    c = start(t).client(replies="simple")
    wanted = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES
    if not nbd_target.PEER:
        wanted |= nbd.CAN_MULTI_CONN | nbd.SEND_CACHE | nbd.SEND_FAST_ZERO
    check_eq(c.flags & wanted, wanted, "flags that are there")
    check_eq(c.flags & nbd.READ_ONLY, 0, "READ_ONLY of a writable export")


@test
def test_read_only_flags(t):
    c = start(t, ro=True).client(replies="simple")
    check(c.flags & nbd.READ_ONLY, f"flags {c.flags:#x} of a read-only export")


@test
def test_sizes(t):
    """Beyond 32 bits too; of a size that is no multiple of 512 the whole sectors are served (README)."""
    for size in (512, 4096, 1000003, (1 << 32) + 512, 1 << 40):
        s = start(t, path=nbd_target.image(t, size, f"{size}.img"))
        c = s.client(replies="simple")
        wanted = size if nbd_target.PEER == "nbdkit" else size // 512 * 512
        check(c.size == wanted or (nbd_target.PEER and size % 512), f"size {c.size}, wanted {wanted}")
        c.read(c.size - 512, 512)


@test
def test_nodelay_small_requests_are_answered_at_once(t):
    """2,000 round trips one after the other: with Nagle's algorithm and delayed ACKs they would take 80 s."""
    c = start(t).client(replies="simple")
    for _ in range(2000):
        c.read(0, 1)


@test
def test_many_clients(t):
    """Handshakes side by side do not mix."""
    s = start(t)
    clients = [s.connect() for _ in range(40)]
    for c in clients:
        c.send_option(nbd.OPT_GO, nbd.info_data(b"disk", (3,)))
    for c in reversed(clients):
        check(len(c.option_end(nbd.OPT_GO)) >= 1, "GO")
    for c in clients:
        c.size, c.flags = SIZE, 1
        check_eq(c.read(0, 512), bytes(512), "READ")


@test
def test_half_close_in_the_handshake(t):
    """A client that sends its end of stream after an option still gets the answer, then the end."""
    c = start(t).connect()
    c.send_option(nbd.OPT_LIST)
    c.sock.shutdown(socket.SHUT_WR)
    try:
        check_eq(len(c.option_end(nbd.OPT_LIST)), 1, "LIST before the end")
    except nbd.Closed:
        raise AssertionError("LIST was not answered before the end") from None
    ends(c, "half-closed")


if __name__ == "__main__":
    sys.exit(suite.main("nbd-protocol" + (f" ({nbd_target.PEER})" if nbd_target.PEER else "")))
