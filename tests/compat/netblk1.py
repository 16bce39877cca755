#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""An independent netblk/1 client and server, written to the protocol text alone.

They share no code with the project: they stand for the clients and servers
that others wrote.  Blocking sockets and threads; clarity before speed.

As a program this file is an old server with the original command line:

    netblk1.py PORT FILE SIZE_MB

The environment variable NETBLK1_BUG plants one named fault in it (see BUGS);
test_can_fail.py uses that to prove that the suites notice such faults.
"""

import os
import signal
import socket
import struct
import sys
import threading
import time

import suite

READ, WRITE, DISCONNECT = 1, 2, 3
OK, ERROR = 0, 1
SECTOR = 512
MAX_LENGTH = 32 << 20
REQUEST = struct.Struct(">BQI")  # cmd u8 | sector u64 | length u32: 13 bytes, packed
assert REQUEST.size == 13


def request(cmd, sector=0, length=0):
    return REQUEST.pack(cmd, sector, length)


class Closed(Exception):
    """The peer ended the connection; `partial` is what arrived of the awaited bytes."""

    def __init__(self, how, partial=b""):
        super().__init__(f"connection ended ({how}) after {len(partial)} of the awaited bytes")
        self.how = how
        self.partial = partial


class Refused(Exception):
    """The server answered status 0x01."""


class BadReply(Exception):
    """The server answered with a status byte that the protocol does not have."""


def recv_exact(sock, count):
    buf = bytearray(count)
    view = memoryview(buf)
    got = 0
    while got < count:
        try:
            n = sock.recv_into(view[got:])
        except (ConnectionResetError, BrokenPipeError) as e:
            raise Closed("reset", bytes(buf[:got])) from e
        if n == 0:
            raise Closed("end of stream", bytes(buf[:got]))
        got += n
    return bytes(buf)


def default_timeout():
    """Of a client, in seconds; it only ends a hopeless wait."""
    return float(os.environ.get("NETBLK1_TIMEOUT") or suite.bound(0))


class Client:
    def __init__(self, port, host="127.0.0.1", timeout=None, source=None, rcvbuf=None):
        timeout = timeout or default_timeout()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(timeout)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if rcvbuf:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            if source:
                self.sock.bind((source, 0))
            self.sock.connect((host, port))
            self.local_port = self.sock.getsockname()[1]
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Raw access, for tests that speak the wire by hand.
    def send(self, data):
        try:
            self.sock.sendall(data)
        except (ConnectionResetError, BrokenPipeError) as e:
            raise Closed("reset while sending") from e

    def recv(self, count):
        return recv_exact(self.sock, count)

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def close(self):
        self.sock.close()

    def reset(self):
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def drain_to_end(self):
        """Everything that still arrives before the peer ends the connection."""
        out = bytearray()
        while True:
            try:
                chunk = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return bytes(out)
            if not chunk:
                return bytes(out)
            out += chunk

    # The protocol.
    def status(self):
        s = self.recv(1)[0]
        if s not in (OK, ERROR):
            raise BadReply(f"status byte 0x{s:02x}")
        return s

    def read_reply(self, length):
        if self.status() != OK:
            raise Refused("READ refused")
        return self.recv(length)

    def write_reply(self):
        if self.status() != OK:
            raise Refused("WRITE refused")

    def read(self, sector, length):
        self.send(request(READ, sector, length))
        return self.read_reply(length)

    def write(self, sector, data):
        self.send(request(WRITE, sector, len(data)) + data)
        self.write_reply()

    def pipeline(self, data):
        """Send `data` from another thread, so that replies can be read meanwhile.
        A client that sends all before it reads any would stop at the socket's limits."""
        def run():
            try:
                self.sock.sendall(data)
            except OSError:
                pass  # the reader sees the end of the connection
        th = threading.Thread(target=run, daemon=True)
        th.start()
        return th

    def disconnect(self):
        """DISCONNECT, then whatever arrives before the end: nothing, by the protocol."""
        self.send(request(DISCONNECT))
        rest = self.drain_to_end()
        self.close()
        return rest


# Faults that can be planted in the server, each a mistake seen in real servers.
BUGS = {
    "none", "little-endian", "sector-off-by-one", "last-sector", "no-drain", "reply-to-disconnect",
    "disconnect-drops", "status-ff", "error-carries-data", "truncated-applied", "out-of-order",
    "wrap", "accept-over-max", "close-on-range", "zero-ok", "unaligned-ok", "garbage-read",
    "write-lost", "torn-overlap", "half-close-drops", "one-client", "bad-byte-kept",
}


class Server:
    """One thread per connection.  Overlapping writes are serialised by one lock."""

    def __init__(self, path, size, port=0, host="127.0.0.1", bug="none"):
        assert bug in BUGS, bug
        self.bug = bug
        self.size = size
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = max(os.fstat(self.fd).st_size, size)
        os.ftruncate(self.fd, self.size)
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.connections = set()
        self.threads = []
        self.listener = socket.create_server((host, port), reuse_port=False, backlog=1024)
        self.port = self.listener.getsockname()[1]
        self.stopping = False
        self.poisoned = False  # by a failed sync: no later write can be called durable
        self.accepted = 0
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self):
        while not self.stopping:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                time.sleep(0.01)  # the client's failure, or a passing want of descriptors
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.connections.add(sock)
                self.accepted += 1
                th = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self.threads = [x for x in self.threads if x.is_alive()] + [th]
                th.start()

    def stop(self):
        if self.stopping:
            return
        self.stopping = True
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        # Closed when nobody is about to use its number any more; dropped when there are no new ones.
        self.thread.join()
        self.listener.close()
        self.drop_all()
        for th in self.threads:
            th.join(10)
        if not any(th.is_alive() for th in self.threads):
            os.close(self.fd)  # else left open: a thread of ours must never meet a reused descriptor

    def drop_all(self):
        with self.lock:
            socks = list(self.connections)
        for s in socks:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _serve(self, sock):
        held = False
        try:
            if self.bug == "one-client":
                self.turn.acquire()
                held = True
            self.serve(sock)
        except (Closed, OSError):
            pass
        finally:
            if held:
                self.turn.release()
            with self.lock:
                self.connections.discard(sock)
            sock.close()

    def in_range(self, sector, length):
        if self.bug == "zero-ok" and length == 0:
            return True
        if self.bug == "unaligned-ok" and length % SECTOR:
            return sector * SECTOR + length <= self.size
        if length == 0 or length % SECTOR:
            return False
        start = sector * SECTOR
        if self.bug == "wrap":
            start %= 1 << 64
        limit = self.size - SECTOR if self.bug == "last-sector" else self.size
        return start + length <= limit

    def serve(self, sock):
        """One connection, until DISCONNECT, a malformed request or the stream's end."""
        held_back = b""
        while True:
            first = recv_exact(sock, 1)
            if first[0] not in (READ, WRITE, DISCONNECT) and self.bug != "bad-byte-kept":
                return
            rest = recv_exact(sock, REQUEST.size - 1)
            if self.bug == "little-endian":
                cmd, sector, length = struct.unpack("<BQI", first + rest)
            else:
                cmd, sector, length = REQUEST.unpack(first + rest)
            if self.bug == "sector-off-by-one" and cmd == WRITE:
                sector += 1
            if self.bug == "disconnect-drops" and cmd == READ:
                # Hold READ replies back until the next request shows up.
                held_back = self.answer_read(sector, length)
                sock.setblocking(True)
                nxt = sock.recv(1, socket.MSG_PEEK)
                if nxt == bytes([DISCONNECT]):
                    return
                sock.sendall(held_back)
                continue
            if cmd == DISCONNECT:
                if self.bug == "reply-to-disconnect":
                    sock.sendall(bytes([OK]))
                return
            if length > MAX_LENGTH and self.bug != "accept-over-max":
                return
            if not self.handle(sock, cmd, sector, length):
                return

    def handle(self, sock, cmd, sector, length):
        """Answer one well-framed request; False ends the connection."""
        if cmd == READ:
            reply = self.answer_read(sector, length)
            if self.bug == "close-on-range" and reply[0] != OK:
                return False
            if self.bug == "half-close-drops":
                sock.settimeout(0.05)
                try:
                    if sock.recv(1, socket.MSG_PEEK) == b"":
                        return False
                except TimeoutError:
                    pass
                finally:
                    sock.settimeout(None)
            sock.sendall(reply)
            return True
        if cmd != WRITE:  # only with bad-byte-kept
            sock.sendall(bytes([ERROR]))
            return True
        if not self.in_range(sector, length):
            if self.bug != "no-drain":
                recv_exact(sock, length)
            sock.sendall(bytes([0xFF if self.bug == "status-ff" else ERROR]))
            return self.bug != "close-on-range"
        try:
            data = recv_exact(sock, length)
        except Closed as e:
            if self.bug == "truncated-applied" and e.partial:
                os.pwrite(self.fd, e.partial, sector * SECTOR)
            raise
        sock.sendall(bytes([OK if self.store(data, sector * SECTOR) else ERROR]))
        return True

    def store(self, data, at):
        """Whether the data was written and is durable."""
        if self.poisoned:
            return False
        try:
            if self.bug == "torn-overlap":
                for i in range(0, len(data), SECTOR):
                    os.pwrite(self.fd, data[i:i + SECTOR], at + i)
            elif self.bug != "write-lost":
                with self.lock:
                    done = 0
                    while done < len(data):  # a file system that fills up writes in part first
                        done += os.pwrite(self.fd, data[done:], at + done)
        except OSError:
            return False
        try:
            os.fdatasync(self.fd)
        except OSError:
            self.poisoned = True
            print("sync failed: every later WRITE is refused", file=sys.stderr, flush=True)
            return False
        return True

    def answer_read(self, sector, length):
        if not self.in_range(sector, length):
            extra = bytes(length) if self.bug == "error-carries-data" else b""
            return bytes([ERROR]) + extra
        try:
            data = os.pread(self.fd, length, sector * SECTOR)
        except OSError:
            return bytes([ERROR])
        if len(data) < length:  # the file was cut by someone else
            return bytes([ERROR])
        if self.bug == "garbage-read" and length > 4096:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.bug == "out-of-order" and length > 512:
            data = data[512:] + data[:512]
        return bytes([OK]) + data


def main():
    args = [a for a in sys.argv[1:] if not a.startswith("--")]
    port, path, size_mb = int(args[0]), args[1], int(args[2])
    server = Server(path, size_mb << 20, port, "0.0.0.0", os.environ.get("NETBLK1_BUG", "none"))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    # A signal may come to another thread, and wakes nobody then: what it calls is run here, once this one looks up.
    while not stop.wait(1):
        pass
    server.stop()


if __name__ == "__main__":
    main()
