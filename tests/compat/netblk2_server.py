#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""An independent netblk/2 server, written to protocol/netblk.md alone. A thread for each connection; clarity before speed.

    netblk2_server.py PORT FILE SIZE_MB
    netblk2_server.py --export NAME=file:PATH[?size=16M][&delay-ms=N][&ro][&fault=read] --listen netblk://HOST:PORT

Beside each FILE lies FILE.netblk2 with its uuid and owners. netblk/1 is answered by netblk1.py's code. The environment
variable NETBLK2_BUG plants one named fault (see BUGS): test_can_fail2.py proves with it that the suites notice them.
"""

import json
import os
import random
import re
import signal
import socket
import struct
import sys
import tempfile
import threading
import time

import netblk1
import netblk2
from netblk2 import (CRC32C, EAGAIN, EBUSY, EINVAL, EIO, ENOENT, EOPNOTSUPP, EPERM, EPROTO, EROFS, ESTALE, ESHUTDOWN,
                     END_SESSION, F_LZ4, F_ZSTD, FLUSH, FUA, GOODBYE, H_BEGIN, H_INFO, H_LIST, H_SHARED, H_TAKEOVER, H_WRITE, HEARTBEAT,
                     HEARTBEATS, ID0, LZ4, NO_UNMAP, NOP, OK, READ, RESIZE, RESIZES, TIMED, TRIM, W_ADOPTED, W_MORE, W_NEW, W_READ_ONLY,
                     W_TRIM, WRITE, WRITE_ZEROES, ZSTD, Closed, Feature, Violation, Welcome, crc32c, recv_exact)

# Faults that can be planted, each a way to break one rule of the text.
BUGS = {
    "none", "header-crc-ignored", "payload-crc-ignored", "replay-runs-again", "replay-status-lost", "gap-accepted",
    "slot-unchecked", "no-fence", "late-write", "epoch-ignored", "two-writers", "takeover-leaves-owner", "stale-adopted",
    "owner-not-durable", "adopts-any-store", "begins-unbidden", "released-adopted", "foreign-client", "feature-unoffered",
    "mandatory-ignored", "times-miscounted", "no-heartbeat", "silent-peer-kept", "session-dies-with-peer", "no-resize", "goodbye-in-a-hurry",
    "end-session-ignored", "cookie-lost", "over-max-served", "einval-closes", "refused-payload-not-drained", "flag-ignored",
    "type-ignored", "compressed-larger", "bad-compression-applied", "compression-unbidden", "welcome-crc",
    "list-repeats", "info-makes-session", "ride-along-dropped", "slow-hello-kept", "version-1-refused", "write-lost",
    "read-only-writes", "same-client-twice", "in-order-only", "hello-flags-ignored", "truncated-applied",
}
# NETBLK2_DROP=N: each connection is reset after about N requests; that is no fault, but a bad link.
DROP = int(os.environ.get("NETBLK2_DROP", "0"))
HELLO_SECONDS, FENCE_SECONDS = 10, 10
SLOTS, CONNECTIONS, PAYLOAD = 256, 8, 32 << 20


class Session:
    def __init__(self, session_id, client_id, flags, slots):
        self.id, self.client_id, self.flags = session_id, client_id, flags
        self.writes = bool(flags & H_WRITE)
        self.slots = slots
        self.ledger = {}  # slot: [sequence, status or None while it runs]
        self.epochs, self.conns = {}, {}
        self.over = False


class Export:
    def __init__(self, name, path, size, bug, delay=0.0, read_only=False, fault=""):
        self.name, self.bug, self.delay, self.read_only, self.fault = name, bug, delay, read_only, fault
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, max(os.fstat(self.fd).st_size, size))
        self.lock = threading.Condition()
        self.store = threading.Lock()
        self.sessions = {}
        self.record_path = path + ".netblk2"
        try:
            with open(self.record_path, encoding="ascii") as f:
                record = json.load(f)
        except OSError:
            record = {"uuid": os.urandom(16).hex(), "counter": 1, "owners": []}
        self.uuid, self.counter = bytes.fromhex(record["uuid"]), record["counter"]
        self.owners = [tuple(o) for o in record["owners"]]  # (client id, session id, shared)
        self.keep()

    def keep(self):
        owners = [] if self.bug == "owner-not-durable" else self.owners
        with open(self.record_path + ".new", "w", encoding="ascii") as f:
            json.dump({"uuid": self.uuid.hex(), "counter": self.counter, "owners": owners}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(self.record_path + ".new", self.record_path)

    def size(self):
        return os.fstat(self.fd).st_size // 512 * 512

    def owns(self, session):
        return any(o[:2] == (session.client_id.hex(), session.id.hex()) for o in self.owners)

    # ---- sessions; self.lock is held

    def fence(self, conns):
        for c in conns:
            c.fenced = True
            if self.bug != "no-fence":
                c.shut()
        end = time.monotonic() + FENCE_SECONDS
        while any(c.running for c in conns) and self.bug not in ("no-fence", "late-write"):
            if not self.lock.wait(max(0, end - time.monotonic())):
                return False
        return True

    def end_session(self, session):
        session.over = True
        return self.fence(list(session.conns.values()))

    def settle(self, hello, session_id):
        """Ownership of a new session: None, or (status, text)."""
        if not hello.flags & H_WRITE or self.read_only:
            return None
        mine, shared = hello.client_id.hex(), bool(hello.flags & H_SHARED)
        rivals = [o for o in self.owners if o[0] != mine and not (shared and o[2])]
        if rivals and not hello.flags & H_TAKEOVER and self.bug != "two-writers":
            return EBUSY, f"client {rivals[0][0]} writes"
        for owner in rivals:
            session = self.sessions.get(bytes.fromhex(owner[1]))
            if session and self.bug not in ("takeover-leaves-owner", "two-writers") and not self.end_session(session):
                return EAGAIN, "a fence is under way"
        self.owners = [o for o in self.owners if o not in rivals and o[0] != mine] + [(mine, session_id.hex(), shared)]
        self.keep()
        return None

    def admit(self, hello, conn):
        """(status, text, session, flags)"""
        with self.lock:
            if hello.store_uuid not in (ID0, self.uuid) and self.bug != "adopts-any-store":
                return ESTALE, "another store", None, 0
            known = self.sessions.get(hello.session_id)
            if known:
                if known.client_id != hello.client_id and self.bug != "foreign-client":
                    return EPERM, "the session is another client's", None, 0
                if known.over and self.bug != "stale-adopted":
                    return (ESTALE, "the session is over", None, 0) if self.fence(list(known.conns.values())) else (
                        EAGAIN, "a fence is under way", None, 0)
                epoch = known.epochs.get(hello.connection)
                if epoch is not None and hello.epoch <= epoch and self.bug != "epoch-ignored":
                    return EAGAIN, "an older hello than the last", None, 0
                known.epochs[hello.connection] = hello.epoch
                old = known.conns.get(hello.connection)
                if old and not self.fence([old]):
                    return EAGAIN, "a fence is under way", None, 0
                if known.over and self.bug != "stale-adopted":
                    return ESTALE, "the session is over", None, 0
                known.conns[hello.connection] = conn
                return OK, "", known, 0
            session = Session(hello.session_id, hello.client_id, hello.flags, min(max(hello.slots, 16), SLOTS))
            if not hello.flags & H_BEGIN and self.bug != "begins-unbidden":
                if session.writes and not self.owns(session) and not self.read_only and self.bug != "stale-adopted" and (
                        self.owners or self.bug != "released-adopted"):
                    return ESTALE, "the session owns nothing here", None, 0
                return self.enter(session, hello, conn, W_ADOPTED)
            for other in [s for s in self.sessions.values() if s.client_id == hello.client_id and not s.over]:
                if self.bug != "same-client-twice" and not self.end_session(other):
                    return EAGAIN, "a fence is under way", None, 0
            refused = self.settle(hello, session.id)
            if refused:
                return *refused, None, 0
            return self.enter(session, hello, conn, W_NEW)

    def enter(self, session, hello, conn, flag):
        self.sessions[session.id] = session
        session.epochs[hello.connection] = hello.epoch
        session.conns[hello.connection] = conn
        return OK, "", session, flag

    # ---- the store

    def run(self, type_, flags, offset, length, data):
        if self.fault == {READ: "read", FLUSH: "flush"}.get(type_, "none"):
            return EIO, b""
        with self.store:
            try:
                if type_ == READ:
                    got = os.pread(self.fd, length, offset)
                    return (OK, got) if len(got) == length else (EIO, b"")
                if type_ in (WRITE, WRITE_ZEROES) and self.bug != "write-lost":
                    os.pwrite(self.fd, data if type_ == WRITE else bytes(length), offset)
                if type_ == FLUSH or flags & FUA:
                    os.fdatasync(self.fd)
                return OK, b""
            except OSError:
                return EIO, b""


class Conn2:
    def __init__(self, server, sock):
        self.server, self.bug, self.sock = server, server.bug2, sock
        self.fenced = False
        self.running = 0  # handed to the store and not ended; under the export's lock
        self.send_lock = threading.Lock()
        self.untold = {}  # type: [replies, nanoseconds in the server, in the store]; under send_lock
        self.session = self.export = None
        self.features = {}
        self.sent_at = time.monotonic()
        self.open = True

    def shut(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def send(self, data):
        with self.send_lock:
            self.sent_at = time.monotonic()
            self.sock.sendall(data)

    # ---- hello

    def refuse(self, status, text):
        self.send(netblk2.refusal(status, text))

    def greet(self):
        """True: there is a session. The eight magic bytes are still to come."""
        if self.bug != "slow-hello-kept":
            # The whole hello has its time, not each byte.
            timer = threading.Timer(HELLO_SECONDS, self.shut)
            timer.daemon = True
            timer.start()
        try:
            head = recv_exact(self.sock, 8)
            if head != netblk2.MAGIC:
                return False
            head += recv_exact(self.sock, 4)
            length = struct.unpack(">I", head[8:])[0]
            if not 96 <= length <= netblk2.MAX_HELLO or length % 8:
                self.refuse(EPROTO, f"a hello of {length} bytes")
                return False
            hello = netblk2.unpack_hello(head + recv_exact(self.sock, length - 12))
        except Violation as e:
            if self.bug == "hello-flags-ignored" and "flags" in str(e):
                self.send(netblk2.pack_welcome(Welcome()))
                return True
            self.refuse(EPROTO, str(e))
            return False
        finally:
            if self.bug != "slow-hello-kept":
                timer.cancel()
        return self.answer(hello)

    def negotiate(self, hello):
        """The features in force, or the name of one that is not here."""
        out = []
        for f in hello.features:
            if f.number in netblk2.FEATURE_NAMES and not (f.number == RESIZES and self.bug == "no-resize" and not f.mandatory):
                value = min(max(f.value, 100), 600000) if f.number == HEARTBEATS else 0
                out.append(Feature(f.number, value))
            elif f.mandatory and self.bug != "mandatory-ignored":
                return None, f.name
        if self.bug == "feature-unoffered" and not any(f.number == LZ4 for f in out):
            out = sorted(out + [Feature(LZ4)], key=lambda f: f.number)
        return out, None

    def answer(self, hello):
        exports = self.server.exports
        session_wanted = not hello.flags & (H_INFO | H_LIST)
        unnamed = ID0 in (hello.client_id, hello.session_id) or hello.epoch == 0
        if hello.flags & H_INFO and hello.flags & H_LIST or session_wanted and unnamed:
            self.refuse(EPROTO, "INFO and LIST together, or no client, session or epoch")
            return False
        if hello.connection >= CONNECTIONS:
            self.refuse(EPROTO, "there is no such connection")
            return False
        features, missing = self.negotiate(hello)
        if missing:
            self.refuse(EOPNOTSUPP, f"the feature '{missing}' is not here")
            return False
        if hello.flags & H_LIST:
            rest = exports if self.bug == "list-repeats" else exports[hello.list_from:]
            body, n = b"", 0
            for e in rest:
                entry = netblk2.pack_export(e.size(), W_READ_ONLY if e.read_only else 0, e.name)
                if len(body) + len(entry) > 60000:
                    break
                body, n = body + entry, n + 1
            self.send(netblk2.pack_welcome(Welcome(
                OK, W_MORE if n < len(rest) else 0, 0, block_bytes=0, preferred_bytes=0, max_payload_bytes=0, slots=0, body=body)))
            return False
        export = next((e for e in exports if e.name == hello.name), exports[0] if not hello.name else None)
        if export is None:
            self.refuse(ENOENT, f"no export is called {hello.name}")
            return False
        if self.server.stopping:
            self.refuse(ESHUTDOWN, "the server stops")
            return False
        read_only = export.read_only or (session_wanted and not hello.flags & H_WRITE)
        w = Welcome(OK, W_TRIM | (W_READ_ONLY if read_only else 0), CONNECTIONS, ID0, export.uuid, export.counter, export.size(), 512, 4096,
                    PAYLOAD, min(max(hello.slots, 16), SLOTS), features)
        if session_wanted or self.bug == "info-makes-session":
            status, text, session, flag = export.admit(hello, self)
            if status != OK:
                self.refuse(status, text)
                return False
            self.session, self.export = session, export
            w.session_id, w.slots, w.flags = session.id, session.slots, w.flags | flag
            if not session.writes:
                w.flags |= W_READ_ONLY
            self.may_write = session.writes and not export.read_only
        whole = netblk2.pack_welcome(w)
        if self.bug == "welcome-crc":
            whole = whole[:12] + bytes(4) + whole[16:]
        self.features = {f.number: f.value for f in features}
        self.told = w.size_bytes
        self.send(whole)
        return session_wanted

    # ---- requests

    def keep_alive(self):
        period = self.features[HEARTBEATS] / 1000
        while self.open:
            time.sleep(period / 8)
            if time.monotonic() - self.sent_at >= period * 0.8 and self.bug != "no-heartbeat":
                try:
                    self.send(netblk2.pack_reply(HEARTBEAT, crc=CRC32C in self.features))
                except OSError:
                    return

    def push_sizes(self):
        size = self.told
        while self.open:
            time.sleep(0.2)
            now = self.export.size()
            if now != size and self.bug != "no-resize":
                size = now
                try:
                    self.send(netblk2.pack_reply(RESIZE, cookie=size, crc=CRC32C in self.features))
                except OSError:
                    return

    def tell_times(self):
        while self.open:
            time.sleep(0.2)
            with self.send_lock:
                told, self.untold = self.untold, {}
                for type_, (count, server_ns, store_ns) in told.items():
                    try:
                        self.sock.sendall(netblk2.pack_times(type_, count + (self.bug == "times-miscounted"), server_ns, store_ns,
                                                             CRC32C in self.features))
                    except OSError:
                        return

    def serve(self):
        if not self.greet():
            return
        if HEARTBEATS in self.features:
            if self.bug != "silent-peer-kept":
                self.sock.settimeout(self.features[HEARTBEATS] / 1000 * netblk2.HEARTBEAT_PERIODS)
            threading.Thread(target=self.keep_alive, daemon=True).start()
        if RESIZES in self.features:
            threading.Thread(target=self.push_sizes, daemon=True).start()
        if TIMED in self.features:
            threading.Thread(target=self.tell_times, daemon=True).start()
        crc = CRC32C in self.features
        first = True
        left = random.randrange(1, 2 * DROP) if DROP else -1
        while not self.fenced or self.bug == "no-fence":
            if left == 0:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            left -= 1
            header = recv_exact(self.sock, netblk2.REQUEST.size)
            type_, flags, slot, sequence, cookie, offset, length, size, payload_crc, sum_ = netblk2.REQUEST.unpack(header)
            if crc and crc32c(header[:-4]) != sum_ and self.bug != "header-crc-ignored":
                raise Violation("the checksum of a header")
            self.check(type_, flags, slot, sequence, cookie, offset, length, size, payload_crc)
            if type_ == HEARTBEAT:
                continue
            if self.bug == "einval-closes" and self.refused(type_, offset, length):
                return
            if self.bug == "refused-payload-not-drained" and self.refused(type_, offset, length):
                payload = b""
            else:
                try:
                    payload = recv_exact(self.sock, size)
                except Closed as e:
                    if self.bug == "truncated-applied":
                        self.export.run(WRITE, 0, offset, length, e.partial)
                    raise
            if crc and payload and crc32c(payload) != payload_crc and self.bug != "payload-crc-ignored":
                raise Violation("the checksum of a payload")
            if type_ == WRITE and payload:
                try:
                    payload = netblk2.decompress(flags, payload, length)
                except Violation:
                    if self.bug != "bad-compression-applied":
                        raise
                    payload = bytes(length)
            if type_ == GOODBYE:
                self.goodbye(flags, cookie)
                return
            if self.bug == "ride-along-dropped" and first:
                time.sleep(0.1)
                first = False
                continue
            first = False
            self.take(type_, flags, slot, sequence, cookie, offset, length, payload)

    def check(self, type_, flags, slot, sequence, cookie, offset, length, size, payload_crc):
        if not READ <= type_ <= HEARTBEAT or type_ == HEARTBEAT and HEARTBEATS not in self.features:
            if self.bug == "type-ignored":
                return
            raise Violation(f"type {type_}")
        packed = flags & (F_LZ4 | F_ZSTD)
        legal = {WRITE: FUA | F_LZ4 | F_ZSTD, TRIM: FUA, WRITE_ZEROES: FUA | NO_UNMAP, GOODBYE: END_SESSION}.get(type_, 0)
        if self.bug != "flag-ignored" and (
                flags & ~legal or packed == F_LZ4 | F_ZSTD or packed == F_LZ4 and LZ4 not in self.features or
                packed == F_ZSTD and ZSTD not in self.features):
            raise Violation(f"flags {flags}")
        if type_ in (READ, WRITE) and length > (PAYLOAD if self.bug != "over-max-served" else 1 << 32):
            raise Violation(f"a length of {length}")
        if type_ == WRITE and not (0 < size < length if packed else size == length) and self.bug != "flag-ignored":
            raise Violation(f"a payload of {size} for {length}")
        if type_ != WRITE and (size or payload_crc) or type_ in (FLUSH, NOP, GOODBYE, HEARTBEAT) and (offset or length):
            raise Violation("fields that are not zero")
        if type_ in (GOODBYE, HEARTBEAT) and (slot or sequence) or type_ == HEARTBEAT and cookie:
            raise Violation("fields that are not zero")
        if type_ not in (GOODBYE, HEARTBEAT) and slot >= self.session.slots and self.bug != "slot-unchecked":
            raise Violation(f"slot {slot}")

    def refused(self, type_, offset, length):
        if type_ not in (READ, WRITE, TRIM, WRITE_ZEROES):
            return 0
        if type_ != READ and not self.may_write and self.bug != "read-only-writes":
            return EROFS
        if length == 0 or length % 512 or offset % 512 or offset + length > self.export.size():
            return EINVAL
        return 0

    def take(self, type_, flags, slot, sequence, cookie, offset, length, payload):
        export, ledger = self.export, self.session.ledger
        came_ns = time.monotonic_ns()
        with export.lock:
            if self.fenced and self.bug != "no-fence":
                return
            entry = ledger.get(slot)
            if entry and entry[0] == sequence and entry[1] is not None and type_ != READ and self.bug != "replay-runs-again":
                status = OK if self.bug == "replay-status-lost" else entry[1]
                self.reply(type_, slot, sequence, cookie, status)
                return
            if entry and self.bug != "gap-accepted" and (
                    entry[1] is None or sequence not in (entry[0], entry[0] + 1 & 0xFFFFFFFF)):
                raise Violation(f"sequence {sequence} behind {entry}")
            ledger[slot] = entry = [sequence, None]
            self.running += 1

        def work():
            submitted_ns = time.monotonic_ns()
            if export.delay and type_ != NOP:
                time.sleep(export.delay)
            status = self.refused(type_, offset, length)
            data = b""
            if not status and type_ != NOP:
                status, data = export.run(type_, flags, offset, length, payload)
            spent = submitted_ns - came_ns, time.monotonic_ns() - submitted_ns
            with export.lock:
                entry[1] = status
                self.running -= 1
                try:
                    if not self.fenced or self.bug == "no-fence":
                        self.reply(type_, slot, sequence, cookie, status, data, spent)
                except OSError:
                    self.shut()
                export.lock.notify_all()
        if export.delay and self.bug != "in-order-only":
            threading.Thread(target=work, daemon=True).start()
        else:
            work()

    def reply(self, type_, slot, sequence, cookie, status, data=b"", spent=(0, 0)):
        flags = 0
        if data and (LZ4 in self.features or ZSTD in self.features or self.bug == "compression-unbidden"):
            packed, flag = (netblk2.zstd_compress(data), F_ZSTD) if ZSTD in self.features else (netblk2.lz4_compress(data), F_LZ4)
            if len(packed) < len(data) or self.bug == "compressed-larger":
                data, flags = packed, flag
        whole = netblk2.pack_reply(type_, flags, slot, sequence, 0 if self.bug == "cookie-lost" else cookie, status, data,
                                   CRC32C in self.features)
        with self.send_lock:
            self.sent_at = time.monotonic()
            self.sock.sendall(whole)
            if TIMED in self.features:
                sums = self.untold.setdefault(type_, [0, 0, 0])
                self.untold[type_] = [sums[0] + 1, sums[1] + spent[0], sums[2] + spent[1]]

    def goodbye(self, flags, cookie):
        export, session = self.export, self.session
        with export.lock:
            while self.running and self.bug != "goodbye-in-a-hurry":
                export.lock.wait()
            self.fenced = True
            status = OK
            if flags & END_SESSION and self.bug != "end-session-ignored":
                session.over = True
                if not export.fence([c for c in session.conns.values() if c is not self]):
                    status = EAGAIN
                else:
                    export.owners = [o for o in export.owners if o[1] != session.id.hex()]
                    export.keep()
        self.send(netblk2.pack_reply(GOODBYE, cookie=cookie, status=status, crc=CRC32C in self.features))

    def leave(self):
        self.open = False
        if self.session and self.bug == "session-dies-with-peer":
            with self.export.lock:
                self.session.over = True


class Server(netblk1.Server):
    """Both versions on one port: netblk/1 on the first export."""

    def __init__(self, exports, port, host, bug):
        self.exports = exports
        self.bug2 = bug
        super().__init__(exports[0].path, exports[0].size(), port, host)

    def serve(self, sock):
        if sock.recv(1, socket.MSG_PEEK) != b"N":
            if self.bug2 != "version-1-refused":
                netblk1.Server.serve(self, sock)
            return
        conn = Conn2(self, sock)
        try:
            conn.serve()
        except (Violation, TimeoutError) as e:
            print(f"closed: {e}", file=sys.stderr, flush=True)
        finally:
            if conn.session:
                # What came whole before is answered.
                with conn.export.lock:
                    while conn.running and not conn.fenced:
                        conn.export.lock.wait()
            conn.leave()

    def drop_all(self):
        """A stop: nothing more is read; what was accepted is answered."""
        with self.lock:
            for sock in self.connections:
                try:
                    sock.shutdown(socket.SHUT_RD)
                except OSError:
                    pass

    def in_range(self, sector, length):
        self.size = self.exports[0].size()
        return super().in_range(sector, length)


def parse_size(text):
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", text).groups()
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def main():
    bug = os.environ.get("NETBLK2_BUG", "none")
    assert bug in BUGS, bug
    args = sys.argv[1:]
    exports, host, port = [], "0.0.0.0", None
    while args:
        if args[0] == "--export":
            name, store = args[1].split("=", 1)
            path, _, query = store.removeprefix("file:").partition("?")
            options = dict((o.split("=", 1) + [""])[:2] for o in query.split("&") if o)
            if path.startswith("mem:"):
                options["size"] = path.removeprefix("mem:")
                path = os.path.join(tempfile.mkdtemp(prefix="netblk2-"), "memory")
            exports.append(Export(name, path, parse_size(options.get("size", "0")), bug,
                                  int(options.get("delay-ms", "0")) / 1000, "ro" in options, options.get("fault", "")))
        elif args[0] == "--listen":
            host, port = re.fullmatch(r"netblk://(.*):(\d+)", args[1]).groups()
        elif not args[0].startswith("--"):
            port = args[0]
            exports.append(Export("", args[1], int(args[2]) << 20, bug))
            args = args[1:]
        args = args[2:]
    server = Server(exports, int(port), host, bug)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    # A signal may come to another thread, and wakes nobody then: what it calls is run here, once this one looks up.
    while not stop.wait(1):
        pass
    server.stop()


if __name__ == "__main__":
    main()
