# SPDX-License-Identifier: GPL-2.0-only
"""An independent NBD client, written to the public protocol text (NetworkBlockDevice/nbd, doc/proto.md, with the
extension of extended headers) alone.

It shares no code with the project.  Whatever a server sends is held against that text: what a server MUST and MUST NOT
do raises Violation at once, so that every test that talks through this module is a test of the framing too.
"""

import collections
import os
import select
import socket
import struct
import time

from netblk1 import default_timeout

INIT_MAGIC = 0x4E42444D41474943
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF
EXTENDED_MAGIC = 0x6E8A278C

FIXED_NEWSTYLE, NO_ZEROES = 1, 2  # handshake flags, and the client's answer to each

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_PEEK, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, \
    OPT_SET_META, OPT_EXTENDED = range(1, 12)
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN, ERR_BLOCK_SIZE_REQD, \
    ERR_TOO_BIG, ERR_EXT_HEADER_REQD = (ERR + n for n in range(1, 11))
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = range(4)

# Transmission flags.
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, ROTATIONAL, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN, \
    SEND_RESIZE, SEND_CACHE, SEND_FAST_ZERO, BLOCK_STATUS_PAYLOAD = (1 << n for n in range(13))

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, CMD_RESIZE = range(9)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))

DONE = 1
TYPE_NONE, TYPE_DATA, TYPE_HOLE, TYPE_STATUS, TYPE_STATUS_EXT = 0, 1, 2, 5, 6
TYPE_ERROR, TYPE_ERROR_OFFSET = 0x8001, 0x8002
STATE_HOLE, STATE_ZERO = 1, 2

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
ERRORS = {EPERM: "EPERM", EIO: "EIO", ENOMEM: "ENOMEM", EINVAL: "EINVAL", ENOSPC: "ENOSPC", EOVERFLOW: "EOVERFLOW",
          ENOTSUP: "ENOTSUP", ESHUTDOWN: "ESHUTDOWN"}
MAX_STRING = 4096


class Violation(Exception):
    """The server did what the protocol says that it must not."""


class Closed(Exception):
    """The peer ended the connection; `partial` is what arrived of the awaited bytes."""

    def __init__(self, how, partial=b""):
        super().__init__(f"connection ended ({how}) after {len(partial)} of the awaited bytes")
        self.how, self.partial = how, partial


class OptionError(Exception):
    def __init__(self, option, code, message):
        super().__init__(f"option {option} refused with 2^31+{code - ERR} {message!r}")
        self.code, self.message = code, message


class NbdError(Exception):
    def __init__(self, error, message=""):
        super().__init__(f"{ERRORS.get(error, error)} {message!r}")
        self.error, self.message = error, message


def must(cond, why):
    if not cond:
        raise Violation(why)


def text(data, what):
    must(len(data) <= MAX_STRING, f"{what}: a string of {len(data)} bytes")
    must(b"\0" not in data, f"{what}: a NUL in a string")
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise Violation(f"{what}: not UTF-8: {bytes(data[:40])!r}") from None


class Stream:
    """Bytes both ways over descriptors; what arrives while a send waits is kept, so that no order of calls deadlocks."""

    def __init__(self, rfd, wfd, timeout):
        self.rfd, self.wfd, self.timeout = rfd, wfd, timeout
        for fd in (rfd, wfd):
            os.set_blocking(fd, False)
        self.received, self.queued, self.end = bytearray(), collections.deque(), None
        self.beside = ()  # other connections of this client, which it does not neglect while it sends or waits here

    def _pump(self, deadline):
        wanted = collections.defaultdict(int)  # one entry where both are one socket
        readers = {stream.rfd: stream for stream in (self, *self.beside) if stream.end is None}
        for fd in readers:
            wanted[fd] |= select.POLLIN
        if self.queued:
            wanted[self.wfd] |= select.POLLOUT
        wait = select.poll()
        for fd, events in wanted.items():
            wait.register(fd, events)
        left = deadline - time.monotonic()
        if left <= 0 or not (ready := wait.poll(left * 1000)):
            raise TimeoutError(f"nothing for {self.timeout:g} s; {len(self.received)} bytes not yet used")
        for fd, what in ready:
            if fd == self.wfd and self.queued and what & (select.POLLOUT | select.POLLERR):
                self._write()
            if fd in readers and what & (select.POLLIN | select.POLLHUP | select.POLLERR):
                readers[fd]._read()

    def _read(self):
        try:
            data = os.read(self.rfd, 4 << 20)
        except BlockingIOError:
            return
        except (ConnectionResetError, BrokenPipeError):
            self.end = "reset"
            return
        self.received += data
        if not data:
            self.end = "end of stream"

    def _write(self):
        try:
            while self.queued:
                n = os.write(self.wfd, self.queued[0])
                if n == len(self.queued[0]):
                    self.queued.popleft()
                else:
                    self.queued[0] = self.queued[0][n:]
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError) as e:
            self.queued.clear()
            raise Closed("reset while sending") from e

    def send(self, *parts):
        self.queued.extend(memoryview(p).cast("B") for p in parts if len(p))
        if self.queued:
            self._write()
        deadline = time.monotonic() + self.timeout
        while self.queued:
            before = sum(map(len, self.queued))
            self._pump(deadline)
            if self.queued and sum(map(len, self.queued)) != before:
                deadline = time.monotonic() + self.timeout

    def recv(self, count):
        deadline = time.monotonic() + self.timeout
        while len(self.received) < count:
            if self.end is not None:
                raise Closed(self.end, bytes(self.received))
            before = len(self.received)
            self._pump(deadline)
            if len(self.received) != before:
                deadline = time.monotonic() + self.timeout
        out = bytes(memoryview(self.received)[:count])
        del self.received[:count]
        return out

    def drain(self):
        """Everything up to the end of the connection."""
        deadline = time.monotonic() + self.timeout
        while self.end is None:
            self._pump(deadline)
        out = bytes(self.received)
        self.received.clear()
        return out


def connect(address, timeout=None, source=None, rcvbuf=None):
    """address: a path, or (host, port)."""
    if isinstance(address, tuple):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    else:
        family, address = socket.AF_UNIX, os.fspath(address)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout or default_timeout())
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if source:
            sock.bind((source, 0))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def option_data(name, queries=()):
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""
    out = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return out + b"".join(struct.pack(">I", len(q)) + q for q in queries)


def info_data(name, wants=()):
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(wants)}H", len(wants), *wants)


class Result:
    """The whole answer to one request."""

    def __init__(self, request):
        self.request, self.error, self.message, self.error_offset = request, 0, "", None
        self.data, self.extents, self.chunks = None, {}, []

    def ok(self):
        if self.error:
            raise NbdError(self.error, self.message)
        return self


class Request:
    def __init__(self, cookie, command, flags, offset, length):
        self.cookie, self.command, self.flags, self.offset, self.length = cookie, command, flags, offset, length
        self.covered, self.buffer, self.result = [], None, Result(self)

    def __str__(self):
        return f"command {self.command} flags {self.flags:#x} offset {self.offset} length {self.length}"


class Client:
    """`go` or `export_name` ends the handshake; before it the options, after it the commands."""

    def __init__(self, address=None, *, fds=None, timeout=None, source=None, rcvbuf=None, greet=True,
                 flags=FIXED_NEWSTYLE | NO_ZEROES, lax=False):
        self.sock = None
        if fds is None:
            self.sock = connect(address, timeout, source, rcvbuf)
            fds = (self.sock.fileno(),) * 2
        self.stream = Stream(*fds, timeout or default_timeout())
        self.fds = fds
        self.lax = lax  # what the text only recommends is not demanded
        self.replies, self.contexts, self.pending, self.done = "simple", {}, {}, {}
        self.size = self.flags = None
        self.max_payload, self.min_block, self.cookie = None, 1, 0x1D00000000000000
        self.handshake_flags = None
        if greet:
            try:
                self.greeting(flags)
            except BaseException:
                self.close()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def local_port(self):
        return self.sock.getsockname()[1]

    def send(self, *parts):
        self.stream.send(*parts)

    def recv(self, count):
        return self.stream.recv(count)

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def close(self):
        if self.sock:
            self.sock.close()
        else:
            for fd in set(self.fds):
                os.close(fd)
            self.fds = ()

    def reset(self):
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # ---- the handshake

    def greeting(self, flags=FIXED_NEWSTYLE | NO_ZEROES):
        init, magic, self.handshake_flags = struct.unpack(">QQH", self.recv(18))
        must(init == INIT_MAGIC and magic == OPTION_MAGIC, f"greeting {init:#x} {magic:#x}: not newstyle")
        must(self.handshake_flags & FIXED_NEWSTYLE, "the server is not fixed newstyle")
        must(not self.handshake_flags & ~(FIXED_NEWSTYLE | NO_ZEROES), f"handshake flags {self.handshake_flags:#x}")
        self.client_flags = flags
        if flags is not None:
            self.send(struct.pack(">I", flags))

    def send_option(self, option, data=b"", length=None):
        self.send(struct.pack(">QII", OPTION_MAGIC, option, len(data) if length is None else length) + data)

    def option_reply(self, option):
        """One reply: (type, data)."""
        magic, echoed, kind, length = struct.unpack(">QIII", self.recv(20))
        must(magic == OPTION_REPLY_MAGIC, f"option {option}: reply magic {magic:#x}")
        must(echoed == option, f"a reply to option {echoed} while {option} is asked")
        must(length <= 2 * MAX_STRING + 64, f"option {option}: a reply of {length} bytes")
        data = self.recv(length)
        must(kind & ERR or REP_ACK <= kind <= REP_META, f"option {option}: reply type {kind:#x}")
        must(not kind & ERR or ERR_UNSUP <= kind <= ERR_EXT_HEADER_REQD, f"option {option}: error {kind:#x}")
        must(kind != ERR_TLS_REQD, "TLS_REQD without TLS")
        must(kind != REP_ACK or not data, f"option {option}: an ACK with data")
        allowed = {OPT_LIST: REP_SERVER, OPT_INFO: REP_INFO, OPT_GO: REP_INFO, OPT_LIST_META: REP_META, OPT_SET_META: REP_META}
        must(kind & ERR or kind in (REP_ACK, allowed.get(option)), f"option {option}: reply type {kind}")
        if kind & ERR:
            text(data, f"option {option}: the message")
        return kind, data

    def option(self, option, data=b"", length=None):
        """Sends an option and collects its replies up to the ACK; an error reply is raised."""
        self.send_option(option, data, length)
        return self.option_end(option)

    def option_end(self, option):
        replies = []
        while True:
            kind, data = self.option_reply(option)
            if kind == REP_ACK:
                return replies
            if kind & ERR:
                raise OptionError(option, kind, data.decode())
            replies.append(data)

    def list(self):
        """[(name, description)]"""
        out = []
        for data in self.option(OPT_LIST):
            must(len(data) >= 4, f"SERVER of {len(data)} bytes")
            n, = struct.unpack(">I", data[:4])
            must(n <= len(data) - 4, f"SERVER: a name of {n} bytes in {len(data)}")
            out.append((text(data[4:4 + n], "export name"), text(data[4 + n:], "description")))
        return out

    def structured(self):
        must(not self.option(OPT_STRUCTURED), "STRUCTURED_REPLY: more than an ACK")
        if self.replies == "simple":
            self.replies = "structured"

    def extended(self):
        must(not self.option(OPT_EXTENDED), "EXTENDED_HEADERS: more than an ACK")
        self.replies = "extended"

    def _contexts(self, option, name, queries):
        out = []
        for data in self.option(option, option_data(name.encode(), [q.encode() for q in queries])):
            must(len(data) >= 5, f"META_CONTEXT of {len(data)} bytes")
            context = text(data[4:], "metadata context")
            must(":" in context and not context.startswith(":"), f"metadata context {context!r} has no namespace")
            out.append((struct.unpack(">I", data[:4])[0], context))
        return out

    def list_meta(self, name="", queries=()):
        """Names of contexts."""
        return [context for _, context in self._contexts(OPT_LIST_META, name, queries)]

    def set_meta(self, name="", queries=("base:allocation",)):
        """{id: name}"""
        self.contexts = {}
        got = self._contexts(OPT_SET_META, name, queries)
        must(len({i for i, _ in got}) == len(got), f"two contexts with one id: {got}")
        must(len({c for _, c in got}) == len(got), f"one context twice: {got}")
        self.contexts = dict(got)
        return self.contexts

    def _check_flags(self, flags):
        must(flags & HAS_FLAGS, f"transmission flags {flags:#x} without HAS_FLAGS")
        must(not flags & ~0x1FFF, f"transmission flags {flags:#x}")
        must(not flags & SEND_DF or self.replies != "simple", "SEND_DF without structured replies")
        must(not flags & SEND_FAST_ZERO or flags & SEND_WRITE_ZEROES, "FAST_ZERO without WRITE_ZEROES")
        must(not flags & BLOCK_STATUS_PAYLOAD or self.replies == "extended", "BLOCK_STATUS_PAYLOAD without extended headers")

    def _infos(self, option, name, wants):
        infos = {}
        for data in self.option(option, info_data(name.encode(), wants)):
            must(len(data) >= 2, f"INFO of {len(data)} bytes")
            kind, body = struct.unpack(">H", data[:2])[0], data[2:]
            must(kind not in infos, f"information {kind} twice")
            if kind == INFO_EXPORT:
                must(len(body) == 10, f"INFO_EXPORT of {len(data)} bytes")
                infos[kind] = struct.unpack(">QH", body)
                self._check_flags(infos[kind][1])
            elif kind == INFO_BLOCK_SIZE:
                must(len(body) == 12, f"INFO_BLOCK_SIZE of {len(data)} bytes")
                least, preferred, most = infos[kind] = struct.unpack(">III", body)
                must(least and not least & (least - 1) and least <= 65536, f"minimum block size {least}")
                must(not preferred & (preferred - 1) and preferred >= max(512, least), f"preferred block size {preferred}")
                must(most >= preferred, f"maximum payload {most} below the preferred block size")
            else:
                infos[kind] = text(body, f"information {kind}")
        must(INFO_EXPORT in infos, "an ACK without INFO_EXPORT")
        return infos

    def info(self, name="", wants=()):
        return self._infos(OPT_INFO, name, wants)

    def go(self, name="", wants=(INFO_BLOCK_SIZE,)):
        infos = self._infos(OPT_GO, name, wants)
        self.size, self.flags = infos[INFO_EXPORT]
        if INFO_BLOCK_SIZE in infos:
            self.min_block, _, self.max_payload = infos[INFO_BLOCK_SIZE]
        return infos

    def export_name(self, name=""):
        self.send_option(OPT_EXPORT_NAME, name.encode())
        self.size, self.flags = struct.unpack(">QH", self.recv(10))
        self._check_flags(self.flags)
        if not (self.client_flags & NO_ZEROES and self.handshake_flags & NO_ZEROES):
            must(self.recv(124) == bytes(124), "reserved bytes that are not zero")

    def abort(self):
        must(not self.option(OPT_ABORT), "ABORT: more than an ACK")
        must(self.stream.drain() == b"", "bytes after the reply to ABORT")

    # ---- transmission

    def submit(self, command, offset=0, length=0, flags=0, data=b"", cookie=None):
        """Sends a request and returns its cookie. With extended headers a payload sets PAYLOAD_LEN by itself."""
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        if command == CMD_WRITE and not length:
            length = len(data)
        if self.replies == "extended":
            if len(data):
                flags |= PAYLOAD_LEN
            head = struct.pack(">IHHQQQ", EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)
        must(cookie not in self.pending, "a test used a cookie twice")
        if command != CMD_DISC:
            self.pending[cookie] = Request(cookie, command, flags, offset, length)
        self.send(head, data)
        return cookie

    def _known(self, cookie):
        must(cookie in self.pending, f"a reply with cookie {cookie:#x}, which no request has")
        return self.pending[cookie]

    def _error(self, request, error):
        must(error in ERRORS, f"error {error} to {request}")
        must(error != ENOTSUP or (request.command == CMD_WRITE_ZEROES and request.flags & FAST_ZERO),
             f"ENOTSUP to {request}")
        request.result.error = error

    def receive(self):
        """One message; returns the Result when it completes a request, else None."""
        magic, = struct.unpack(">I", self.recv(4))
        if magic == SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", self.recv(12))
            request = self._known(cookie)
            must(self.replies != "extended", "a simple reply with extended headers")
            must(self.replies == "simple" or request.command != CMD_READ, "a simple reply to a READ with structured replies")
            must(not request.result.chunks, "a simple reply after chunks")
            must(self.replies == "simple" or request.command != CMD_BLOCK_STATUS or error, "a simple reply to BLOCK_STATUS")
            if error:
                self._error(request, error)
            elif request.command == CMD_READ:
                request.result.data = self.recv(request.length)
            return self._finish(request)
        if magic == STRUCTURED_MAGIC:
            must(self.replies == "structured", f"a structured reply in mode {self.replies}")
            flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
            request = self._known(cookie)
        else:
            must(magic == EXTENDED_MAGIC, f"reply magic {magic:#x}")
            must(self.replies == "extended", f"an extended reply in mode {self.replies}")
            flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.recv(28))
            request = self._known(cookie)
            must(offset == request.offset, f"an extended reply for offset {offset} to {request}")
        return self._chunk(request, flags, kind, length)

    def _chunk(self, request, flags, kind, length):
        result = request.result
        must(not flags & ~DONE, f"reply flags {flags:#x}")
        result.chunks.append(kind)
        if kind & 0x8000 or kind == TYPE_NONE:
            must(length <= MAX_STRING + 14, f"chunk type {kind:#x} of {length} bytes")
        elif kind == TYPE_DATA and self.max_payload:
            must(length <= self.max_payload + 8, f"a data chunk of {length} bytes, more than the maximum payload")
        elif kind in (TYPE_STATUS, TYPE_STATUS_EXT):
            must(length <= 8 + 16 * (1 << 20), f"a status chunk of {length} bytes")
        if kind == TYPE_DATA:
            must(request.command == CMD_READ, f"data in the reply to {request}")
            must(length >= 9, f"a data chunk of {length} bytes")
            at, = struct.unpack(">Q", self.recv(8))
            self._content(request, at, length - 8)
            request.buffer[at - request.offset:at - request.offset + length - 8] = self.recv(length - 8)
        elif kind == TYPE_HOLE:
            must(request.command == CMD_READ, f"a hole in the reply to {request}")
            must(length == 12, f"a hole chunk of {length} bytes")
            at, n = struct.unpack(">QI", self.recv(12))
            must(n, "a hole of 0 bytes")
            self._content(request, at, n)
        elif kind in (TYPE_STATUS, TYPE_STATUS_EXT):
            self._status(request, kind, length)
        elif kind == TYPE_NONE:
            must(length == 0 and flags & DONE, f"NONE of {length} bytes, flags {flags:#x}")
        else:
            must(kind in (TYPE_ERROR, TYPE_ERROR_OFFSET), f"chunk type {kind:#x}")
            fixed = 6 if kind == TYPE_ERROR else 14
            must(length >= fixed, f"an error chunk of {length} bytes")
            body = self.recv(length)
            error, n = struct.unpack(">IH", body[:6])
            must(error, "an error chunk with error 0")
            must(n == length - fixed, f"an error chunk of {length} bytes with a message of {n}")
            must(not result.error, f"two errors for {request}")
            self._error(request, error)
            result.message = text(body[6:6 + n], "error message")
            if kind == TYPE_ERROR_OFFSET:
                result.error_offset, = struct.unpack(">Q", body[6 + n:])
                must(request.offset <= result.error_offset < request.offset + max(request.length, 1),
                     "an error outside the request")
        if not flags & DONE:
            return None
        if not result.error:
            if request.command == CMD_READ:
                must(sum(n for _, n in request.covered) == request.length, f"{request}: done, but not all was sent")
                result.data = bytes(request.buffer or b"")
            elif request.command == CMD_BLOCK_STATUS:
                must(self.lax or request.flags & PAYLOAD_LEN or set(result.extents) == set(self.contexts),
                     f"{request}: contexts {set(result.extents)}")
        return self._finish(request)

    def _finish(self, request):
        del self.pending[request.cookie]
        self.done[request.cookie] = request.result
        return request.result

    def _content(self, request, at, n):
        must(request.offset <= at and at + n <= request.offset + request.length, f"content at {at}+{n} for {request}")
        must(all(at + n <= a or a + m <= at for a, m in request.covered), f"content at {at}+{n} twice for {request}")
        must(not (request.flags & DF and request.covered), f"two content chunks for {request}, which has DF")
        request.covered.append((at, n))
        if request.buffer is None:
            request.buffer = bytearray(request.length)

    def _status(self, request, kind, length):
        must(request.command == CMD_BLOCK_STATUS, f"block status in the reply to {request}")
        must(kind == (TYPE_STATUS_EXT if self.replies == "extended" else TYPE_STATUS),
             f"status type {kind} in mode {self.replies}")
        body = self.recv(length)
        if kind == TYPE_STATUS_EXT:
            must(length >= 24 and length % 16 == 8, f"a status chunk of {length} bytes")
            context, n = struct.unpack(">II", body[:8])
            must(n * 16 + 8 == length, f"{n} extents in {length} bytes")
            flat = struct.unpack(f">{2 * n}Q", body[8:])
        else:
            must(length >= 12 and length % 8 == 4, f"a status chunk of {length} bytes")
            context, = struct.unpack(">I", body[:4])
            flat = struct.unpack(f">{(length - 4) // 4}I", body[4:])
        extents = list(zip(flat[::2], flat[1::2]))
        must(context in self.contexts, f"status of context {context}, which was not negotiated")
        must(context not in request.result.extents, f"two chunks of context {context}")
        must(len(extents) <= 1 << 20, f"{len(extents)} extents")
        must(all(n for n, _ in extents), "an extent of length 0")
        effect = request.length if not request.flags & PAYLOAD_LEN else None
        if effect is not None:
            must(sum(n for n, _ in extents[:-1]) < effect, f"extents beyond the one that covers the end of {request}")
            if request.flags & REQ_ONE:
                must(len(extents) == 1 and extents[0][0] <= effect, f"{len(extents)} extents, the first {extents[0][0]} long, "
                     f"to {request}, which has REQ_ONE")
        must(request.offset + sum(n for n, _ in extents) <= self.size, "extents beyond the end of the export")
        must(all(a[1] != b[1] for a, b in zip(extents, extents[1:])) or self.lax, f"neighbours of one status: {extents[:8]}")
        if self.contexts[context] == "base:allocation":
            must(all(not s & ~3 for _, s in extents), f"reserved flags of base:allocation: {extents[:8]}")
        request.result.extents[context] = extents

    def wait(self, cookie):
        """The result of one request; those of others are kept until they are asked for."""
        while cookie not in self.done:
            must(cookie in self.pending, "a test waits for what it did not send")
            self.receive()
        return self.done.pop(cookie)

    def wait_any(self):
        """The next result, of whichever request."""
        while not self.done:
            self.receive()
        return self.done.pop(next(iter(self.done)))

    def call(self, command, offset=0, length=0, flags=0, data=b""):
        return self.wait(self.submit(command, offset, length, flags, data))

    def error_of(self, command, offset=0, length=0, flags=0, data=b""):
        """The error of a request, 0 where it succeeded."""
        return self.call(command, offset, length, flags, data).error

    def read(self, offset, length, flags=0):
        return self.call(CMD_READ, offset, length, flags).ok().data

    def write(self, offset, data, flags=0):
        self.call(CMD_WRITE, offset, len(data), flags, data).ok()

    def flush(self):
        self.call(CMD_FLUSH).ok()

    def zero(self, offset, length, flags=0):
        self.call(CMD_WRITE_ZEROES, offset, length, flags).ok()

    def trim(self, offset, length, flags=0):
        self.call(CMD_TRIM, offset, length, flags).ok()

    def cache(self, offset, length, flags=0):
        self.call(CMD_CACHE, offset, length, flags).ok()

    def status(self, offset, length, flags=0):
        """Extents of the only context."""
        extents = self.call(CMD_BLOCK_STATUS, offset, length, flags).ok().extents
        must(len(extents) == 1, f"{len(extents)} contexts")
        return next(iter(extents.values()))

    def map(self, offset=0, end=None):
        """[(offset, length, state)] of the whole export, coalesced."""
        end = self.size if end is None else end
        out = []
        while offset < end:
            for n, state in self.status(offset, min(end - offset, (1 << 32) - 65536)):
                n = min(n, end - offset)
                if n and out and out[-1][2] == state:
                    out[-1] = (out[-1][0], out[-1][1] + n, state)
                elif n:
                    out.append((offset, n, state))
                offset += n
        return out

    def disconnect(self):
        """DISC: no reply, and the server closes."""
        self.submit(CMD_DISC)
        must(self.stream.drain() == b"", "bytes after DISC")
        must(self.stream.end != "reset", "a reset after DISC")
        self.close()
