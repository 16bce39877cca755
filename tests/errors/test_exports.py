#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk info` and `netblk list`: against the server, an old one, and ones that answer nonsense."""

import json
import pathlib
import socket
import struct
import sys
import threading
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import netblk2
import suite
from command import MIB, refused, run, start
from serverproc import free_port, start_export
from suite import check, check_eq, test


def uri_of(server, name=""):
    return f"netblk://127.0.0.1:{server.port}" + (f"/{urllib.parse.quote(name)}" if name else "")


@test
def test_info(t):
    server = start_export(t, f"disk=file:{t.tmp}/disk?size=3M", "memory=mem:5M,ro")
    out, err = run(t, "info", "--json", uri_of(server, "disk"))
    check_eq(err, "", "stderr")
    info = json.loads(out)
    check_eq((info["protocol"], info["export"], info["size_bytes"], info["read_only"]), (2, "disk", 3 * MIB, False), "info")
    check(info["can_trim"] is True and "crc32c" in info["features"], f"{info}")
    check(len(info["store_uuid"]) == 32 and info["generation"] >= 1, f"{info}")
    check(info["block_bytes"] in (512, 4096) and info["max_payload_bytes"] >= 65536 and info["slots"] >= 16, f"{info}")
    check(info["round_trip_us"] >= 0 and info["max_connections"] >= 1, f"{info}")
    info = json.loads(run(t, "info", uri_of(server, "memory"), "--json")[0])
    check_eq((info["size_bytes"], info["read_only"]), (5 * MIB, True), "a read-only export")
    check_eq(json.loads(run(t, "info", uri_of(server), "--json")[0])["size_bytes"], 3 * MIB, "without a name: the first")
    text = run(t, "info", uri_of(server, "disk"))[0].decode()
    check("3 MiB (3145728 bytes)" in text and "netblk/2" in text, f"{text!r}")


@test
def test_generation_is_kept(t):
    port = free_port()
    server = start_export(t, f"disk=file:{t.tmp}/disk?size=1M", port=port)
    before = json.loads(run(t, "info", uri_of(server), "--json")[0])
    server.stop()
    after = json.loads(run(t, "info", uri_of(start_export(t, f"disk=file:{t.tmp}/disk?size=1M", port=port)), "--json")[0])
    check_eq((after["store_uuid"], after["generation"]), (before["store_uuid"], before["generation"]), "after a clean restart")


@test
def test_info_disturbs_nobody(t):
    server = start_export(t, "disk=mem:1M")
    with netblk2.Session(server.port).open() as writer:
        json.loads(run(t, "info", uri_of(server, "disk"), "--json")[0])
        run(t, "list", uri_of(server))
        check(writer.sock.fileno() >= 0, "the writer's connection")
        refused(t, "copy", "/dev/null", uri_of(server, "disk"), words=("--force",))
    server.check_alive()


@test
def test_list(t):
    names = ["first", "two words", "a/b", "ünï", "100%", "q?u#e"]
    server = start_export(t, *[f"{name}=mem:{i + 1}M" + (",ro" if i == 1 else "") for i, name in enumerate(names)])
    listed = json.loads(run(t, "list", "--json", uri_of(server))[0])
    check_eq([e["name"] for e in listed], names, "the names, in their order")
    check_eq([e["size_bytes"] for e in listed], [(i + 1) * MIB for i in range(len(names))], "the sizes")
    check_eq([e["read_only"] for e in listed], [i == 1 for i in range(len(names))], "read-only")
    for entry in listed:
        check_eq(json.loads(run(t, "info", "--json", entry["uri"])[0])["size_bytes"], entry["size_bytes"],
                 f"info of the listed {entry['uri']}")
    text = run(t, "list", uri_of(server))[0].decode()
    check(text.startswith("NAME") and text.count("\n") == len(names) + 1 and "read-only" in text, f"{text!r}")


@test
def test_long_list_has_pages(t):
    """More than one welcome can hold."""
    names = [f"{i:03}" + "n" * 997 for i in range(100)]
    server = start_export(t, *[f"{name}=null:1M" for name in names])
    listed = json.loads(run(t, "list", "--json", uri_of(server))[0])
    check_eq([e["name"] for e in listed], names, "all names, each once")


@test
def test_malformed(t):
    for uri in ("", "x", "127.0.0.1", "nbds://h", "netblk:h", "netblk://", "netblk:///disk", "netblk://h:", "netblk://h:65536",
                "netblk://h:1x", "netblk://a b", "netblk://user@h", "netblk://::1", "netblk://[::1", "netblk://[::1]x",
                "netblk://[h]", "netblk://h/%", "netblk://h/%4", "netblk://h/%zz", "netblk://h/%00", "netblk://h/a?b",
                "netblk://h/a#b", "netblk://h/" + "n" * 4097):
        refused(t, "info", uri, status=2)
    refused(t, "list", "netblk://h/disk", status=2, words="names an export")
    for command in ("info", "list"):
        refused(t, command, status=2)
        refused(t, command, "netblk://h", "netblk://h", status=2)
        refused(t, command, "--nonsense", "netblk://h", status=2)


@test
def test_addresses(t):
    port = free_port()
    server = start_export(t, "disk=mem:1M", host="[::1]", port=port)
    run(t, "info", f"netblk://[::1]:{port}/disk")
    server.stop()
    start_export(t, "disk=mem:1M", port=port)
    run(t, "info", f"netblk://localhost:{port}")
    run(t, "info", f"netblk://localhost:{port}/")


@test
def test_unknown_and_unreachable(t):
    server = start_export(t, "disk=mem:1M", "private=mem:1M,allow=192.0.2.0/24")
    refused(t, "info", uri_of(server, "nothing"), words="nothing")
    refused(t, "info", uri_of(server, "private"), words="allow")
    server.check_alive()
    for command in ("info", "list"):
        refused(t, command, f"netblk://127.0.0.1:{free_port()}", words="refused")
        refused(t, command, "netblk://no-such-host.invalid", words="no-such-host.invalid")


@test
def test_old_server(t):
    old = netblk1.Server(t.tmp / "old.img", MIB)
    t.defer(old.stop)
    info = json.loads(run(t, "info", "--json", f"netblk://127.0.0.1:{old.port}")[0])
    check_eq((info["protocol"], info.get("size_bytes")), (1, None), "info of an old server")
    check("netblk/1 only" in run(t, "info", f"netblk://127.0.0.1:{old.port}")[0].decode(), "the text says so")
    refused(t, "list", f"netblk://127.0.0.1:{old.port}", words="netblk/2")


class Answers:
    """A server that answers each connection with the next of `answers`, the last for ever."""

    def __init__(self, t, *answers, stay=False):
        self.answers, self.stay, self.kept = list(answers), stay, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        t.defer(self.listener.close)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            try:
                sock.recv(8192)
                sock.sendall(answer)
            except OSError:
                pass
            if self.stay:
                self.kept.append(sock)
            else:
                sock.close()


def welcome(**fields):
    return netblk2.pack_welcome(netblk2.Welcome(**fields))


@test
def test_nonsense_is_refused(t):
    good = welcome(size_bytes=MIB, store_uuid=b"u" * 16, generation=1)
    bad = [good[:50], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 512, b"NETBLK/2" + b"\xff" * 88,
           good[:12] + bytes([good[12] ^ 1]) + good[13:], good[:8] + struct.pack(">I", 1 << 31) + good[12:]]
    for answer in bad:
        server = Answers(t, answer)
        for command in ("info", "list"):
            refused(t, command, f"netblk://127.0.0.1:{server.port}")
    check_eq(json.loads(run(t, "info", "--json", f"netblk://127.0.0.1:{Answers(t, good).port}")[0])["size_bytes"], MIB,
             "the same answer unharmed")


@test
def test_silent_server(t):
    server = Answers(t, b"", stay=True)
    refused(t, "info", f"netblk://127.0.0.1:{server.port}")


@test
def test_hostile_lists(t):
    name = "esc\x1b[31m\nfoo"
    one = netblk2.pack_export(MIB, 0, name)
    server = Answers(t, welcome(body=one))
    text = run(t, "list", f"netblk://127.0.0.1:{server.port}")[0]
    check(b"\x1b" not in text and text.count(b"\n") == 2, f"control characters reach the terminal: {text!r}")
    check_eq(json.loads(run(t, "list", "--json", f"netblk://127.0.0.1:{server.port}")[0])[0]["name"], name, "as JSON")
    endless = Answers(t, welcome(body=b"", flags=netblk2.W_MORE))
    refused(t, "list", f"netblk://127.0.0.1:{endless.port}")
    cut = Answers(t, welcome(body=one[:-8]))
    refused(t, "list", f"netblk://127.0.0.1:{cut.port}")


if __name__ == "__main__":
    sys.exit(suite.main("errors/test_exports"))
