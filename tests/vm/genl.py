#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The driver's generic netlink family, spoken from its header's text alone (protocol/netblk_genl.h).

usage: genl.py add [OPTIONS] | add-many COUNT [OPTIONS] | remove N | disconnect N | status N | list | raw COMMAND [TYPE=HEX...]
       genl.py handover N HOST PORT [SIZE_BYTES]    netblk/1 on a socket connected here
       genl.py refused N KIND                       hands over what must be refused: see refuse()
       genl.py watch SECONDS COUNT                  prints events: "netblk-1 connecting handed-over"
       genl.py keep N HOST PORT                     hands over, and again whenever the connection is lost
       genl.py keep2 N PORT CONNECTIONS [EXPORT]    the same with a netblk/2 session, which it resumes
An answer is one line for each device; a refusal prints errno's name and the kernel's words, and exits with 1.
"""
import errno
import pathlib
import re
import select
import socket
import struct
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
HEADER = (pathlib.Path(__file__).resolve().parents[2] / "protocol" / "netblk_genl.h").read_text(encoding="utf-8")


def enum(name):
    body = re.search(rf"enum {name} {{(.*?)}};", HEADER, re.DOTALL).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    return {word: number for number, word in enumerate(re.findall(r"\w+", body))}


COMMANDS = {key.removeprefix("NETBLK_GENL_").lower(): value for key, value in enum("netblk_genl_command").items()}
A = {key.removeprefix("NETBLK_A_").lower(): value for key, value in enum("netblk_genl_attribute").items()}
NAMES = {value: key for key, value in A.items()}
REQUEST, MULTI, ACK, DUMP, NESTED = 1, 2, 4, 0x300, 0x8000


class Refused(Exception):
    pass


def attribute(kind, value):
    data = struct.pack("=HH", len(value) + 4, kind) + value
    return data + bytes(-len(data) % 4)


def u32(kind, value):
    return attribute(A[kind], struct.pack("=I", value & 0xFFFFFFFF))


def u64(kind, value):
    return attribute(A[kind], struct.pack("=Q", value & (2**64 - 1)))


def attributes(data):
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3:]


class Family:
    def __init__(self):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
        self.socket.bind((0, 0))
        for option in (10, 11):  # NETLINK_CAP_ACK, NETLINK_EXT_ACK
            self.socket.setsockopt(270, option, 1)
        self.family, self.groups = 16, {}
        try:
            answer = self.ask(3, attribute(2, b"netblk\0"), version=2)  # CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME
        except Refused:
            sys.exit("ENOENT there is no family")
        for kind, value in attributes(answer[0]):
            if kind == 1:
                self.family = struct.unpack("=H", value)[0]
            if kind == 7:
                for _, group in attributes(value):
                    inside = dict(attributes(group))
                    self.groups[inside[1].rstrip(b"\0").decode()] = struct.unpack("=I", inside[2])[0]

    def ask(self, command, data=b"", flags=ACK, version=1):
        body = struct.pack("=BBH", command, version, 0) + data
        self.socket.send(struct.pack("=IHHII", len(body) + 16, self.family, REQUEST | flags, 1, 0) + body)
        answers = []
        while True:
            received = self.socket.recv(1 << 16)
            while received:
                length, kind, of_message, _, _ = struct.unpack_from("=IHHII", received)
                message, received = received[16:length], received[(length + 3) & ~3:]
                if kind == 3:  # NLMSG_DONE
                    return answers
                if kind == 2:  # NLMSG_ERROR
                    code = -struct.unpack_from("=i", message)[0]
                    if code == 0:
                        return answers
                    words = ""
                    if of_message & 0x200:  # NLM_F_ACK_TLVS
                        words = dict(attributes(message[20:])).get(1, b"").rstrip(b"\0").decode()
                    raise Refused(f"{errno.errorcode.get(code, code)} {words}")
                answers.append(message[4:])


def described(data):
    found = {NAMES.get(kind, kind): value for kind, value in attributes(data)}
    words = [found["name"].rstrip(b"\0").decode(), found["state"].rstrip(b"\0").decode(),
             f"size={struct.unpack('=Q', found['size_bytes'])[0]}", f"protocol={struct.unpack('=I', found['protocol'])[0]}",
             f"reconnects={struct.unpack('=Q', found['reconnects'])[0]}"]
    return " ".join(words + [flag for flag in ("handed_over", "lost") if flag in found])


def sockets(*descriptors):
    inside = b"".join(attribute(A["socket"] | NESTED, u32("fd", fd)) for fd in descriptors)
    return attribute(A["sockets"] | NESTED, inside)


def hand_over(family, number, *descriptors, size=None, protocol=1):
    data = u32("number", number) + u32("protocol", protocol) + sockets(*descriptors)
    return family.ask(COMMANDS["connect"], data + (u64("size_bytes", size) if size is not None else b""))


def refuse(family, number, kind, host="127.0.0.1", port=10809):
    """What must not be taken: kinds of descriptors, sizes, and a netblk/2 session with a part missing or wrong."""
    tcp = socket.create_connection((host, port)) if not kind.startswith("fd-") or kind == "fd-twice" else None
    if kind.startswith("size-"):
        return hand_over(family, number, tcp.fileno(), size=eval(kind[5:], {}))  # pylint: disable=eval-used
    if kind.startswith("2-"):
        values = {"size_bytes": u64("size_bytes", 1 << 20), "block_bytes": u32("block_bytes", 512), "slots": u32("slots", 64),
                  "max_payload_bytes": u32("max_payload_bytes", 1 << 20), "session_id": attribute(A["session_id"], b"s" * 16),
                  "client_id": attribute(A["client_id"], b"c" * 16), "store_uuid": attribute(A["store_uuid"], b"u" * 16),
                  "generation": u64("generation", 1)}
        name, _, value = kind[2:].partition("=")
        if value:
            values[name] = attribute(A[name], bytes.fromhex(value))
        else:
            del values[name]
        inside = attribute(A["socket"] | NESTED, u32("fd", tcp.fileno()) + u64("epoch", 1))
        return family.ask(COMMANDS["connect"], u32("number", number) + attribute(A["sockets"] | NESTED, inside)
                          + b"".join(values.values()))
    listener = socket.create_server(("127.0.0.1", 0))
    unconnected = socket.socket()
    closed = 1000  # nothing has so high a number
    unix, _other = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 6)
    with open("/dev/null", "rb") as file:
        descriptors = {"fd-udp": [udp.fileno()], "fd-raw": [raw.fileno()], "fd-unix": [unix.fileno()],
                       "fd-netlink": [family.socket.fileno()], "fd-listening": [listener.fileno()],
                       "fd-unconnected": [unconnected.fileno()], "fd-closed": [closed], "fd-negative": [-1],
                       "fd-huge": [2**31 - 1], "fd-file": [file.fileno()], "fd-none": [],
                       "fd-twice": [tcp.fileno(), tcp.fileno()] if tcp else []}
        return hand_over(family, number, *descriptors[kind])


def watch(family, seconds, count):
    family.socket.setsockopt(270, 1, family.groups["events"])  # NETLINK_ADD_MEMBERSHIP
    print("watching", flush=True)
    end = time.monotonic() + seconds
    while count > 0 and select.select([family.socket], [], [], max(0, end - time.monotonic()))[0]:
        print(described(family.socket.recv(1 << 16)[20:]), flush=True)
        count -= 1


def keep(family, number, host, port):
    events = Family()
    events.socket.setsockopt(270, 1, events.groups["events"])
    while True:
        try:
            with socket.create_connection((host, port)) as tcp:
                print(described(hand_over(family, number, tcp.fileno())[0]), flush=True)
        except OSError:
            time.sleep(0.1)
            continue
        while True:
            line = described(events.socket.recv(1 << 16)[20:])
            if line.startswith(("netblk " if number == 0 else f"netblk-{number} ") + "connecting"):
                break


def hand_over2(family, number, session, connections):
    """All that the welcome said, and a socket for each connection."""
    import netblk2  # pylint: disable=import-outside-toplevel

    welcome = session.welcome
    features, heartbeat = 0, b""
    for feature in welcome.features:
        features |= 1 << feature.number
        if feature.number == netblk2.HEARTBEAT:
            heartbeat = u32("heartbeat_ms", feature.value)
    inside = b"".join(attribute(A["socket"] | NESTED, u32("fd", c.sock.fileno()) + u64("epoch", session.epochs[index]))
                      for index, c in enumerate(connections))
    return family.ask(COMMANDS["connect"], b"".join([
        u32("number", number), attribute(A["sockets"] | NESTED, inside), u64("size_bytes", welcome.size_bytes),
        u32("block_bytes", welcome.block_bytes), u32("preferred_bytes", welcome.preferred_bytes),
        u32("max_payload_bytes", welcome.max_payload_bytes), u32("slots", welcome.slots), u32("flags", welcome.flags),
        u32("features", features), heartbeat, attribute(A["session_id"], session.session_id),
        attribute(A["client_id"], session.client_id), attribute(A["store_uuid"], welcome.store_uuid),
        u64("generation", welcome.generation)]))


def keep2(family, number, port, count, export):
    import netblk2  # pylint: disable=import-outside-toplevel

    events = Family()
    events.socket.setsockopt(270, 1, events.groups["events"])
    session = netblk2.Session(port, name=export, features=[netblk2.Feature(netblk2.CRC32C),
                                                           netblk2.Feature(netblk2.HEARTBEAT, 60000)])
    while True:
        connections = [session.open_patiently(index) for index in range(count)]
        print(described(hand_over2(family, number, session, connections)[0]), flush=True)
        for connection in connections:
            connection.close()
        while True:
            line = described(events.socket.recv(1 << 16)[20:])
            # one connection of several is enough: a hand-over is always of all of them
            if line.split()[0] == ("netblk" if number == 0 else f"netblk-{number}") and line.split()[1] == "connecting":
                break


def main():
    family, words = Family(), sys.argv[1:]
    command = words[0]
    answers = []
    try:
        if command == "add":
            answers = family.ask(COMMANDS["add"], attribute(A["options"], " ".join(words[1:]).encode() + b"\0"))
        elif command == "add-many":
            options = " ".join(words[2:]).encode() + b"\0"
            for _ in range(int(words[1])):
                answers += family.ask(COMMANDS["add"], attribute(A["options"], options))
        elif command in ("remove", "disconnect", "status"):
            answers = family.ask(COMMANDS[command], u32("number", int(words[1])))
        elif command == "list":
            answers = family.ask(COMMANDS["status"], flags=DUMP)
        elif command == "raw":
            data = b"".join(attribute(int(kind), bytes.fromhex(value)) for kind, value in (word.split("=") for word in words[2:]))
            answers = family.ask(int(COMMANDS.get(words[1], words[1])), data)
        elif command == "handover":
            with socket.create_connection((words[2], int(words[3]))) as tcp:
                answers = hand_over(family, int(words[1]), tcp.fileno(), size=int(words[4]) if len(words) > 4 else None)
        elif command == "refused":
            answers = refuse(family, int(words[1]), words[2])
        elif command == "watch":
            watch(family, float(words[1]), int(words[2]))
        elif command == "keep":
            keep(family, int(words[1]), words[2], int(words[3]))
        elif command == "keep2":
            keep2(family, int(words[1]), int(words[2]), int(words[3]), words[4] if len(words) > 4 else "")
        else:
            sys.exit(__doc__.strip())
    except Refused as reason:
        print(reason)
        sys.exit(1)
    for answer in answers:
        print(described(answer))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__.strip())
    main()
