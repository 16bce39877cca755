#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A netblk/1 server written from the protocol's text alone (protocol/netblk.md, netblk/1), sharing no code with ours.

usage: simple_server.py PORT FILE SIZE_MB

It stands for the servers that others have written, and serves the driver's tests where netblk_server is not built.
"""
import os
import socket
import struct
import sys
import threading

REQUEST = struct.Struct(">BQI")  # cmd, sector, length in bytes: 13 bytes, packed
READ, WRITE, DISCONNECT = 1, 2, 3
OK, ERROR = b"\x00", b"\x01"
SECTOR_BYTES = 512
MAX_LENGTH_BYTES = 32 << 20


def receive(connection, length):
    """Exactly `length` bytes, or None when the connection ends before them."""
    data = bytearray(length)
    view, have = memoryview(data), 0
    while have < length:
        got = connection.recv_into(view[have:])
        if got == 0:
            return None
        have += got
    return data


def serve(connection, fd, size_bytes):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        header = receive(connection, REQUEST.size)
        if header is None:
            return
        command, sector, length = REQUEST.unpack(header)
        if command not in (READ, WRITE) or length > MAX_LENGTH_BYTES:
            return  # DISCONNECT, or nothing that can be kept in step
        data = receive(connection, length) if command == WRITE else b""
        if data is None:
            return  # a WRITE whose data did not arrive whole is not applied at all
        offset = sector * SECTOR_BYTES
        if length == 0 or length % SECTOR_BYTES or offset + length > size_bytes:
            connection.sendall(ERROR)
            continue
        try:
            if command == READ:
                data = os.pread(fd, length, offset)
                connection.sendall(OK + data.ljust(length, b"\x00"))
            else:
                os.pwrite(fd, data, offset)
                os.fdatasync(fd)  # every WRITE is durable before its OK
                connection.sendall(OK)
        except OSError as error:
            if isinstance(error, ConnectionError):
                return
            connection.sendall(ERROR)


def session(connection, fd, size_bytes):
    with connection:
        try:
            serve(connection, fd, size_bytes)
        except ConnectionError:
            pass


def main():
    port, path, size_mb = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    size_bytes = max(os.fstat(fd).st_size, size_mb << 20)
    os.truncate(fd, size_bytes)
    listener = socket.create_server(("", port), backlog=64)
    print(f"serving {path}, {size_bytes} bytes, on port {port}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=session, args=(connection, fd, size_bytes), daemon=True).start()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__.strip())
    main()
