# SPDX-License-Identifier: GPL-2.0-only
"""An independent netblk/2 codec and client, written to protocol/netblk.md alone.

It shares no code with the project. Blocking sockets; clarity before speed. The server is netblk2_server.py."""

import collections
import contextlib
import ctypes
import ctypes.util
import dataclasses
import os
import socket
import struct
import time

from netblk1 import Closed, default_timeout, recv_exact

MAGIC = b"NETBLK/2"
ID0 = bytes(16)
MAX_HELLO, MAX_WELCOME, MAX_NAME, MAX_FEATURES = 8192, 65536, 4096, 32
MIN_SLOTS, MAX_SLOTS, MAX_CONNECTIONS = 16, 4096, 16
MIN_MAX_PAYLOAD, MAX_PAYLOAD = 64 << 10, 32 << 20
MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS, HEARTBEAT_PERIODS = 100, 600000, 3

CRC32C, LZ4, ZSTD, HEARTBEATS, RESIZES, TIMED = 1, 2, 3, 4, 5, 6
FEATURE_NAMES = {CRC32C: "crc32c", LZ4: "lz4", ZSTD: "zstd", HEARTBEATS: "heartbeat", RESIZES: "resize", TIMED: "times"}
MANDATORY = 1

H_WRITE, H_SHARED, H_TAKEOVER, H_INFO, H_LIST, H_BEGIN = 1, 2, 4, 8, 16, 32
W_READ_ONLY, W_TRIM, W_NEW, W_ADOPTED, W_ROTATIONAL, W_MORE = 1, 2, 4, 8, 16, 32

READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, NOP, GOODBYE, HEARTBEAT, RESIZE, TIMES = range(1, 11)
FUA, NO_UNMAP, END_SESSION, F_LZ4, F_ZSTD = 1, 2, 4, 0x10, 0x20

OK, EPERM, ENOENT, EIO, EAGAIN, ENOMEM, EBUSY, EINVAL, ENOSPC, EROFS, EPROTO, EOPNOTSUPP, ESHUTDOWN, ESTALE = (
    0, 1, 2, 5, 11, 12, 16, 22, 28, 30, 71, 95, 108, 116)

FEATURE = struct.Struct(">HHI16s")
HELLO = struct.Struct(">8sIIHHI16s16sQ16sQIHH")
WELCOME = struct.Struct(">8sIIIHH16s16sQQIIIIIHH")
EXPORT = struct.Struct(">QII")
REQUEST = struct.Struct(">BBHIQQIIII")
REPLY = struct.Struct(">BBHIQIIII")
TIMES_TOLD = struct.Struct(">BBHIQQII")
assert (FEATURE.size, HELLO.size, WELCOME.size, EXPORT.size, REQUEST.size, REPLY.size, TIMES_TOLD.size) == (24, 96, 96, 16, 40, 32, 32)


class Violation(Exception):
    """The peer broke the protocol: the connection must be closed."""


# ---- CRC32C (RFC 3720, B.4)

def _table():
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


_TABLE = _table()


def crc32c(data):
    table, crc = _TABLE, 0xFFFFFFFF
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


# ---- Compression. LZ4 is decompressed by our own lines; the rest is the system's libraries.

def lz4_decompress(block, length):
    out, at = bytearray(), 0
    try:
        while True:
            token, at = block[at], at + 1
            literals = token >> 4
            if literals == 15:
                while True:
                    more, at = block[at], at + 1
                    literals += more
                    if more != 255:
                        break
            if at + literals > len(block):
                raise Violation("LZ4: literals beyond the block")
            out += block[at:at + literals]
            at += literals
            if at == len(block):
                break
            distance = block[at] | block[at + 1] << 8
            at += 2
            count = (token & 15) + 4
            if token & 15 == 15:
                while True:
                    more, at = block[at], at + 1
                    count += more
                    if more != 255:
                        break
            if not 0 < distance <= len(out) or len(out) + count > length:
                raise Violation("LZ4: a match out of range")
            for _ in range(count):
                out.append(out[-distance])
    except IndexError:
        raise Violation("LZ4: the block is cut off") from None
    if len(out) != length:
        raise Violation(f"LZ4: {len(out)} bytes instead of {length}")
    return bytes(out)


def _library(name, *versions):
    for path in (ctypes.util.find_library(name), *versions):
        try:
            if path:
                return ctypes.CDLL(path)
        except OSError:
            continue
    raise RuntimeError(f"lib{name} is not here: it is in scripts/packages.txt")


def lz4_compress(data):
    lib = _library("lz4", "liblz4.so.1")
    room = ctypes.create_string_buffer(lib.LZ4_compressBound(len(data)))
    size = lib.LZ4_compress_default(data, room, len(data), len(room))
    return room.raw[:size]


def zstd_compress(data):
    lib = _library("zstd", "libzstd.so.1")
    lib.ZSTD_compress.restype = ctypes.c_size_t
    room = ctypes.create_string_buffer(len(data) + 1024)
    size = lib.ZSTD_compress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)), 1)
    return room.raw[:size]


def zstd_decompress(frame, length):
    lib = _library("zstd", "libzstd.so.1")
    lib.ZSTD_decompress.restype = ctypes.c_size_t
    room = ctypes.create_string_buffer(length)
    size = lib.ZSTD_decompress(room, ctypes.c_size_t(length), frame, ctypes.c_size_t(len(frame)))
    if size != length:
        raise Violation("Zstandard: not one frame of the length")
    return room.raw


def decompress(flags, payload, length):
    if flags & F_LZ4:
        return lz4_decompress(payload, length)
    if flags & F_ZSTD:
        return zstd_decompress(payload, length)
    return payload


# ---- Hello and welcome

@dataclasses.dataclass
class Feature:
    number: int
    value: int = 0
    mandatory: bool = False
    name: str = None

    def pack(self):
        name = FEATURE_NAMES.get(self.number, "unnamed") if self.name is None else self.name
        return FEATURE.pack(self.number, MANDATORY if self.mandatory else 0, self.value, name.encode())


@dataclasses.dataclass
class Hello:
    flags: int = 0
    connection: int = 0
    slots: int = MIN_SLOTS
    client_id: bytes = ID0
    session_id: bytes = ID0
    epoch: int = 0
    store_uuid: bytes = ID0
    generation: int = 0
    list_from: int = 0
    features: list = dataclasses.field(default_factory=list)
    name: str = ""


@dataclasses.dataclass
class Welcome:
    status: int = OK
    flags: int = 0
    max_connections: int = 1
    session_id: bytes = ID0
    store_uuid: bytes = ID0
    generation: int = 0
    size_bytes: int = 0
    block_bytes: int = 512
    preferred_bytes: int = 4096
    max_payload_bytes: int = MIN_MAX_PAYLOAD
    slots: int = MIN_SLOTS
    features: list = dataclasses.field(default_factory=list)
    body: bytes = b""

    def text(self):
        return self.body.decode("utf-8", "replace")

    def feature(self, number):
        return next((f for f in self.features if f.number == number), None)


def _seal(fixed, tail):
    """Pads, and fills in length and checksum, which are at the same place in both greetings."""
    whole = bytearray(fixed + tail)
    whole += bytes(-len(whole) % 8)
    struct.pack_into(">II", whole, 8, len(whole), 0)
    struct.pack_into(">I", whole, 12, crc32c(whole))
    return bytes(whole)


def reseal(whole):
    """The checksum of a greeting that was changed by hand."""
    whole = bytearray(whole)
    struct.pack_into(">I", whole, 12, 0)
    struct.pack_into(">I", whole, 12, crc32c(whole))
    return bytes(whole)


def pack_hello(h):
    name = h.name if isinstance(h.name, bytes) else h.name.encode()
    return _seal(HELLO.pack(MAGIC, 0, 0, h.flags, h.connection, h.slots, h.client_id, h.session_id, h.epoch, h.store_uuid,
                            h.generation, h.list_from, len(h.features), len(name)),
                 b"".join(f.pack() for f in h.features) + name)


def pack_welcome(w):
    return _seal(WELCOME.pack(MAGIC, 0, 0, w.status, w.flags, w.max_connections, w.session_id, w.store_uuid, w.generation,
                              w.size_bytes, w.block_bytes, w.preferred_bytes, w.max_payload_bytes, w.slots, len(w.body),
                              len(w.features), 0), b"".join(f.pack() for f in w.features) + w.body)


def refusal(status, text):
    return pack_welcome(Welcome(status, 0, 0, block_bytes=0, preferred_bytes=0, max_payload_bytes=0, slots=0,
                                body=text.encode()[:1024]))


def _check_greeting(whole, fixed, tail):
    length, crc = struct.unpack_from(">II", whole, 8)
    zeroed = whole[:12] + bytes(4) + whole[16:]
    if length != len(whole) or length != fixed + tail + -(fixed + tail) % 8:
        raise Violation("the parts of a greeting do not add up")
    if crc32c(zeroed) != crc:
        raise Violation("the checksum of a greeting is wrong")
    if any(whole[fixed + tail:]):
        raise Violation("the padding of a greeting is not zero")


def _unpack_features(whole, at, count):
    features = []
    for i in range(count):
        number, flags, value, name = FEATURE.unpack_from(whole, at + i * FEATURE.size)
        name = name.split(b"\0")[0]
        if number == 0 or not name or any(not 32 < c < 127 for c in name) or flags & ~MANDATORY:
            raise Violation("a feature without number or name, or with unknown flags")
        if features and features[-1].number >= number:
            raise Violation("the list of features does not ascend")
        features.append(Feature(number, value, bool(flags & MANDATORY), name.decode()))
    return features


def unpack_hello(whole):
    (_, _, _, flags, connection, slots, client_id, session_id, epoch, uuid, generation, list_from, count,
     name_length) = HELLO.unpack_from(whole)
    if count > MAX_FEATURES or name_length > MAX_NAME:
        raise Violation("a hello with too many features or too long a name")
    tail = count * FEATURE.size + name_length
    _check_greeting(whole, HELLO.size, tail)
    if flags & ~0x3F:
        raise Violation("a hello with unknown flags")
    name = whole[HELLO.size + count * FEATURE.size:HELLO.size + tail]
    if b"\0" in name:
        raise Violation("a zero byte in a name")
    return Hello(flags, connection, slots, client_id, session_id, epoch, uuid, generation, list_from,
                 _unpack_features(whole, HELLO.size, count), name.decode("utf-8", "surrogateescape"))


def unpack_welcome(whole):
    (_, _, _, status, flags, connections, session_id, uuid, generation, size, block, preferred, payload, slots, body,
     count, _) = WELCOME.unpack_from(whole)
    if count > MAX_FEATURES or body > MAX_WELCOME:
        raise Violation("a welcome with too many features or too long a body")
    tail = count * FEATURE.size + body
    _check_greeting(whole, WELCOME.size, tail)
    return Welcome(status, flags, connections, session_id, uuid, generation, size, block, preferred, payload, slots,
                   _unpack_features(whole, WELCOME.size, count),
                   whole[WELCOME.size + count * FEATURE.size:WELCOME.size + tail])


def check_numbers(w, offered, session_id):
    """What a client must check in a welcome whose status is 0."""
    for f in w.features:
        if f.number not in {o.number for o in offered}:
            raise Violation(f"the welcome has feature {f.name}, which was not offered")
        if f.number == HEARTBEATS and not MIN_HEARTBEAT_MS <= f.value <= MAX_HEARTBEAT_MS:
            raise Violation(f"a heartbeat of {f.value} ms")
    for o in offered:
        if o.mandatory and w.feature(o.number) is None:
            raise Violation(f"the mandatory feature {o.number} is not in force")
    block = w.block_bytes
    if not (MIN_SLOTS <= w.slots <= MAX_SLOTS and 1 <= w.max_connections <= MAX_CONNECTIONS and
            MIN_MAX_PAYLOAD <= w.max_payload_bytes <= MAX_PAYLOAD and 512 <= block <= 65536 and
            block & (block - 1) == 0 and w.preferred_bytes > 0 and w.preferred_bytes % block == 0 and
            w.size_bytes % block == 0 and w.size_bytes < 1 << 63):
        raise Violation(f"impossible numbers in a welcome: {w}")
    if w.session_id != session_id:
        raise Violation("the session of the welcome is not the hello's")


def pack_export(size, flags, name):
    entry = EXPORT.pack(size, flags, len(name.encode())) + name.encode()
    return entry + bytes(-len(entry) % 8)


def unpack_exports(body):
    out, at = [], 0
    while at < len(body):
        if at + EXPORT.size > len(body):
            raise Violation("the list of exports is cut off")
        size, flags, length = EXPORT.unpack_from(body, at)
        end = at + EXPORT.size + length
        if length > MAX_NAME or end + -end % 8 > len(body):
            raise Violation("a name in the list of exports is cut off")
        out.append((size, flags, body[at + EXPORT.size:end].decode()))
        at = end + -end % 8
    return out


# ---- Messages

def pack_request(type_, flags=0, slot=0, sequence=0, cookie=0, offset=0, length=0, payload=b"", crc=False,
                 payload_length=None):
    size = len(payload) if payload_length is None else payload_length
    header = REQUEST.pack(type_, flags, slot, sequence & 0xFFFFFFFF, cookie, offset, length, size,
                          crc32c(payload) if crc and payload else 0, 0)[:-4]
    return header + struct.pack(">I", crc32c(header) if crc else 0) + payload


def pack_reply(type_, flags=0, slot=0, sequence=0, cookie=0, status=0, payload=b"", crc=False):
    header = REPLY.pack(type_, flags, slot, sequence, cookie, status, len(payload),
                        crc32c(payload) if crc and payload else 0, 0)[:-4]
    return header + struct.pack(">I", crc32c(header) if crc else 0) + payload


def pack_times(request_type, count, server_ns, store_ns, crc=False, flags=0, reserved=0):
    header = TIMES_TOLD.pack(TIMES, flags, request_type, count, server_ns, store_ns, reserved, 0)[:-4]
    return header + struct.pack(">I", crc32c(header) if crc else 0)


@dataclasses.dataclass
class Times:
    request_type: int
    count: int
    server_ns: int
    store_ns: int
    type: int = TIMES


@dataclasses.dataclass
class Reply:
    type: int
    flags: int
    slot: int
    sequence: int
    cookie: int
    status: int
    data: bytes = b""


@dataclasses.dataclass
class Asked:
    type: int
    slot: int
    sequence: int
    length: int


def new_id():
    return os.urandom(15) + b"\1"


class Conn:
    """One connection. It checks what a client must check, and raises Violation or Closed."""

    def __init__(self, port, host="127.0.0.1", timeout=None, rcvbuf=None):
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(timeout or default_timeout())
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        try:
            self.sock.connect((host, port))
        except BaseException:
            self.sock.close()
            raise
        self.local_port = self.sock.getsockname()[1]
        self.crc = False
        self.offered = []
        self.session_id = ID0
        self.welcome = None
        self.asked = {}  # by cookie
        self.cookie = 1000
        self.pushed = []  # sizes that the server pushed
        self.heartbeats = 0
        self.times = []  # Times that the server told
        self.untold = collections.Counter()  # replies by type, since the last of them

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except (ConnectionResetError, BrokenPipeError) as e:
            raise Closed("reset while sending") from e

    @contextlib.contextmanager
    def in_one_piece(self):
        """What is asked within is sent at its end and arrives at once."""
        parts, self.send = [], lambda data: parts.append(bytes(data))
        try:
            yield
        finally:
            del self.send
        self.send(b"".join(parts))

    def recv(self, count):
        return recv_exact(self.sock, count)

    def close(self):
        self.sock.close()

    def reset(self):
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        self.sock.close()

    def drain_to_end(self):
        out = bytearray()
        while True:
            try:
                chunk = self.sock.recv(1 << 16)
            except (ConnectionResetError, BrokenPipeError):
                return bytes(out)
            if not chunk:
                return bytes(out)
            out += chunk

    def send_hello(self, hello, ride_along=b""):
        self.offered = hello.features
        self.session_id = ID0 if hello.flags & (H_INFO | H_LIST) else hello.session_id
        self.crc = any(f.number == CRC32C for f in hello.features)
        self.send(pack_hello(hello) + ride_along)

    def recv_welcome(self, check=True):
        head = self.recv(12)
        if head[:8] != MAGIC:
            raise Violation(f"no welcome: {head!r}")
        length = struct.unpack_from(">I", head, 8)[0]
        if not WELCOME.size <= length <= MAX_WELCOME or length % 8:
            raise Violation(f"a welcome of {length} bytes")
        w = unpack_welcome(head + self.recv(length - 12))
        if w.status == OK:
            self.crc = w.feature(CRC32C) is not None
            if check:
                check_numbers(w, self.offered, self.session_id)
        self.welcome = w
        return w

    def greet(self, hello, check=True):
        self.send_hello(hello)
        return self.recv_welcome(check)

    def request(self, type_, slot=0, sequence=0, offset=0, length=0, data=b"", flags=0, cookie=None, **kw):
        """Sends; returns the cookie. `data` is the payload as it goes onto the wire."""
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        self.asked[cookie] = Asked(type_, slot, sequence & 0xFFFFFFFF, length)
        self.send(pack_request(type_, flags, slot, sequence, cookie, offset, length, data, self.crc, **kw))
        return cookie

    def message(self):
        """The next message, whatever it is."""
        header = self.recv(REPLY.size)
        type_, flags, slot, sequence, cookie, status, size, payload_crc, crc = REPLY.unpack(header)
        if self.crc and crc32c(header[:-4]) != crc:
            raise Violation("the checksum of a reply's header is wrong")
        if type_ == TIMES:
            return self.told(header)
        got = Reply(type_, flags, slot, sequence, cookie, status)
        if not READ <= type_ <= RESIZE:
            raise Violation(f"a reply of type {type_}")
        if type_ in (HEARTBEAT, RESIZE):
            if flags or slot or sequence or status or size or payload_crc or (type_ == HEARTBEAT and cookie):
                raise Violation(f"fields that are not zero: {got}")
            if self.welcome.feature(HEARTBEATS if type_ == HEARTBEAT else RESIZES) is None:
                raise Violation(f"type {type_} without its feature")
            if type_ == RESIZE and (cookie % self.welcome.block_bytes or cookie >= 1 << 63):
                raise Violation(f"a size of {cookie}")
            return got
        asked = self.asked.get(cookie)
        if asked is None or (asked.type, asked.slot, asked.sequence) != (type_, slot, sequence):
            raise Violation(f"a reply to nothing: {got}, {asked}")
        carries = type_ == READ and status == OK
        if flags & ~(F_LZ4 | F_ZSTD if carries else 0) or flags == F_LZ4 | F_ZSTD:
            raise Violation(f"flags of a reply: {got}")
        if (flags & F_LZ4 and not self.welcome.feature(LZ4)) or (flags & F_ZSTD and not self.welcome.feature(ZSTD)):
            raise Violation("a compression that is not in force")
        if not carries and (size or payload_crc):
            raise Violation(f"a payload where none is due: {got}")
        if carries and not (0 < size < asked.length if flags else size == asked.length):
            raise Violation(f"a payload of {size} bytes for {asked.length}")
        payload = self.recv(size)
        if self.crc and crc32c(payload) != payload_crc and size:
            raise Violation("the checksum of a reply's payload is wrong")
        got.data = decompress(flags, payload, asked.length) if carries else b""
        del self.asked[cookie]
        self.untold[type_] += 1
        return got

    def told(self, header):
        _, flags, request_type, count, server_ns, store_ns, reserved, _ = TIMES_TOLD.unpack(header)
        got = Times(request_type, count, server_ns, store_ns)
        if self.welcome.feature(TIMED) is None:
            raise Violation("times without the feature")
        if flags or reserved or not READ <= request_type <= NOP:
            raise Violation(f"times that cannot be: {header.hex()}")
        if count == 0 or count != self.untold[request_type]:
            raise Violation(f"times of {count} requests of type {request_type}; {self.untold[request_type]} were answered")
        self.untold[request_type] = 0
        return got

    def reply(self, cookie=None):
        """The next reply; heartbeats, new sizes and times are noted. With a cookie: it must be this one's."""
        while True:
            got = self.message()
            if got.type == HEARTBEAT:
                self.heartbeats += 1
            elif got.type == RESIZE:
                self.pushed.append(got.cookie)
            elif got.type == TIMES:
                self.times.append(got)
            else:
                if cookie is not None and got.cookie != cookie:
                    raise Violation(f"a reply to {got.cookie}, wanted {cookie}")
                return got

    def call(self, type_, slot=0, sequence=0, **kw):
        return self.reply(self.request(type_, slot, sequence, **kw))

    def heartbeat(self):
        self.send(pack_request(HEARTBEAT, crc=self.crc))

    def goodbye(self, flags=0):
        """GOODBYE and its answer; then the server must close."""
        got = self.call(GOODBYE, flags=flags)
        rest = self.drain_to_end()
        if rest:
            raise Violation(f"{len(rest)} bytes behind the answer to GOODBYE")
        self.close()
        return got.status


ALL_FEATURES = (Feature(CRC32C), Feature(LZ4), Feature(ZSTD), Feature(HEARTBEATS, 60000), Feature(RESIZES), Feature(TIMED))


class Session:
    """A session's client: ids, epochs and sequences. The connections are the caller's."""

    def __init__(self, port, client_id=None, flags=H_WRITE, features=(), name="", slots=64, timeout=None):
        self.port, self.flags, self.features, self.name, self.slots = port, flags, list(features), name, slots
        self.client_id = client_id or new_id()
        self.session_id, self.uuid, self.generation = new_id(), ID0, 0
        self.begin = H_BEGIN  # until the first welcome
        self.epochs = {}
        self.sequences = {}
        self.timeout = timeout
        self.welcome = None

    def hello(self, index=0, **changes):
        self.epochs[index] = self.epochs.get(index, 0) + 1
        return dataclasses.replace(
            Hello(self.flags | self.begin, index, self.slots, self.client_id, self.session_id, self.epochs[index], self.uuid,
                  self.generation, 0, self.features, self.name), **changes)

    def knock(self, index=0, **changes):
        """A connection and the welcome to it, whatever it says."""
        c = Conn(self.port, timeout=self.timeout)
        try:
            return c, c.greet(self.hello(index, **changes))
        except BaseException:
            c.close()
            raise

    def open(self, index=0, **changes):
        c, w = self.knock(index, **changes)
        if w.status != OK:
            c.close()
            raise Violation(f"refused with {w.status}: {w.text()}")
        self.took(w)
        return c

    def took(self, w):
        self.begin, self.uuid, self.generation, self.welcome = 0, w.store_uuid, w.generation, w

    def open_patiently(self, index=0, seconds=30):
        """As a client that reconnects: upon EAGAIN and a refused port, again."""
        end = time.monotonic() + seconds
        while True:
            try:
                c, w = self.knock(index)
                if w.status == OK:
                    self.took(w)
                    return c
                c.close()
                if w.status not in (EAGAIN, ENOMEM, ESHUTDOWN, EIO) or time.monotonic() > end:
                    raise Violation(f"refused with {w.status}: {w.text()}")
            except (OSError, Closed):
                if time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def next(self, slot):
        self.sequences[slot] = self.sequences.get(slot, 100 * slot) + 1 & 0xFFFFFFFF
        return self.sequences[slot]

    def ask(self, conn, type_, slot=0, **kw):
        return conn.request(type_, slot, self.next(slot), **kw)

    def call(self, conn, type_, slot=0, **kw):
        return conn.reply(self.ask(conn, type_, slot, **kw))

    def write(self, conn, offset, data, slot=0, flags=0):
        return self.call(conn, WRITE, slot, offset=offset, length=len(data), data=data, flags=flags).status

    def read(self, conn, offset, length, slot=0):
        got = self.call(conn, READ, slot, offset=offset, length=length)
        if got.status != OK:
            raise Violation(f"READ of {length} at {offset}: status {got.status}")
        return got.data
