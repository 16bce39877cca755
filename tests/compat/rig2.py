# SPDX-License-Identifier: GPL-2.0-only
"""What the netblk/2 suites share: a server with one export, and sessions on it."""

import netblk2 as n2
import serverproc
from netblk2 import Feature, Hello, Session
from suite import check_eq

CRC = (Feature(n2.CRC32C),)


def start(t, size="16M", name="disk", more=(), **options):
    """One export of a file; with options of the store."""
    path = t.tmp / f"{name}.img"
    query = "".join(f"&{key.replace('_', '-')}={value}" for key, value in options.items())
    s = serverproc.start_export(t, f"{name}=file:{path}?size={size}{query}", more=more)
    s.path = path
    return s


CLIENT = bytes(range(1, 17))


def session(t, server, client_id=CLIENT, **kw):
    """A new session; those of the same client before it are over."""
    made = Session(server.port, client_id, **kw)
    conn = made.open()
    t.defer(conn.close)
    return made, conn


def info(server, name="", flags=n2.H_INFO, **fields):
    with n2.Conn(server.port) as c:
        w = c.greet(Hello(flags, name=name, **fields), check=bool(flags & n2.H_INFO))
        check_eq(c.drain_to_end(), b"", "bytes behind a welcome that makes no session")
        return w
