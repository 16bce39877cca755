# SPDX-License-Identifier: GPL-2.0-only
"""A TCP proxy that can be slow, stop on its way, cut what goes through it, and count it."""

import socket
import threading
import time


class Pair:
    """A client, the server's end for it, and how many of the two that carry between them are left. The last one closes
    both: a number of a socket that is closed under a thread's feet may be another connection's when the thread comes to use
    it."""

    def __init__(self, client, server):
        self.ends, self.left, self.over = (client, server), 2, False

    def end(self):
        self.over = True
        for sock in self.ends:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Proxy:
    """Listens on a port of its own, and connects to `to_port` on loopback.  rate: bytes a second to the server; None: no
    limit. delay_s: for which each piece is held up, both ways. Both may change."""

    def __init__(self, case, to_port, rate=None):
        self.to_port, self.rate, self.delay_s = to_port, rate, 0
        self.sent = self.received = 0  # to the server, from it
        self.accepted = 0
        self.open = True
        self._holds = {True: None, False: None}
        self._pairs = []
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()
        case.defer(self.close)

    def hold(self, sent=None, received=None):
        """Once so many bytes went to the server, or came from it, the rest waits; None: nothing does. What is tested in the
        middle of something is not over before its turn comes."""
        with self._changed:
            self._holds = {True: sent, False: received}
            self._changed.notify_all()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = socket.create_connection(("127.0.0.1", self.to_port))
            except OSError:
                client.close()
                continue
            pair = Pair(client, server)
            with self._changed:
                if not self.open:
                    client.close()
                    server.close()
                    continue
                self._pairs.append(pair)
            # A small buffer, so that what is cut was not all sent before.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._carry, args=(pair, source, sink, up), daemon=True).start()

    def _carry(self, pair, source, sink, up):
        try:
            while data := source.recv(64 << 10):
                if self.delay_s:
                    time.sleep(self.delay_s)
                with self._changed:
                    self._changed.wait_for(lambda: pair.over or not self._is_held(up))
                sink.sendall(data)
                if up:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                if up and self.rate:
                    time.sleep(len(data) / self.rate)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pair.end()
        with self._changed:
            self._changed.notify_all()
            pair.left -= 1
            if pair.left == 0:
                if pair in self._pairs:
                    self._pairs.remove(pair)
                for sock in pair.ends:
                    sock.close()

    def _is_held(self, up):
        limit = self._holds[up]
        return limit is not None and (self.sent if up else self.received) >= limit

    def cut(self):
        """Ends every connection; new ones go through."""
        with self._changed:
            for pair in self._pairs:
                pair.end()
            self._pairs = []
            self._changed.notify_all()

    def close(self):
        self.open = False
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._acceptor.join()
        self._listener.close()
        self.cut()
