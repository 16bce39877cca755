# SPDX-License-Identifier: GPL-2.0-only
"""A TCP proxy that can be slow, cut what goes through it, and count it."""

import socket
import threading
import time


class Proxy:
    """Listens on `port`, and connects to `to_port` on loopback.  rate: bytes a second to the server; None: no limit."""

    def __init__(self, case, to_port, rate=None):
        self.to_port, self.rate = to_port, rate
        self.sent = self.received = 0  # to the server, from it
        self.accepted = 0
        self.open = True
        self._pairs = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        case.defer(self.close)

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
            with self._lock:
                if not self.open:
                    client.close()
                    server.close()
                    continue
                self._pairs.append((client, server))
            # A small buffer, so that what is cut was not all sent before.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            for source, sink, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, up), daemon=True).start()

    def _pump(self, source, sink, up):
        try:
            while data := source.recv(64 << 10):
                sink.sendall(data)
                if up:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                if up and self.rate:
                    time.sleep(len(data) / self.rate)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for sock in (source, sink):
                _end(sock)

    def cut(self):
        """Ends every connection; new ones go through."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for sock in pair:
                _end(sock)

    def close(self):
        self.open = False
        self._listener.close()
        self.cut()


def _end(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()
