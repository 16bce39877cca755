#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The configuration file, and its reload by SIGHUP."""

import os
import pathlib
import re
import signal
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk1
import serverproc
import suite
from netblk1 import READ, WRITE, request
from serverproc import free_port, run_cli
from suite import check, check_eq, test

MIB = 1 << 20


def toml(listen, exports):
    """The one place that knows the file's form: `exports` is a list of (name, {key: value})."""
    def value(v):
        if isinstance(v, bool):
            return str(v).lower()
        if isinstance(v, int):
            return str(v)
        if isinstance(v, list):
            return "[" + ", ".join(value(x) for x in v) + "]"
        return '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"'
    lines = [f"listen = {value(listen)}"] if listen is not None else []
    for name, keys in exports:
        lines.append(f"\n[export.{name}]")
        lines += [f"{k} = {value(v)}" for k, v in keys.items()]
    return "\n".join(lines) + "\n"


class Configured:
    def __init__(self, t, exports, ports=1):
        self.t = t
        self.path = t.tmp / "netblk.toml"
        self.ports = [free_port() for _ in range(ports)]
        self.write(exports)
        self.server = serverproc.Server(t, ["--config", self.path], self.ports)

    def write(self, exports, ports=None):
        ports = self.ports if ports is None else ports
        self.path.write_text(toml([f"netblk://127.0.0.1:{p}" for p in ports], exports))

    def reload(self, exports=None, text=None):
        """SIGHUP, and wait until the log says that it was taken notice of."""
        if exports is not None:
            self.write(exports)
        if text is not None:
            self.path.write_text(text)
        before = len(self.server.lines())
        over = re.compile(r"SIGHUP: .*( serves \d+ exports?$|stays as it was$)")
        self.server.signal(signal.SIGHUP)
        suite.wait_until(lambda: any(over.search(line) for line in self.server.lines()[before:]), 5, "the reload's end in the log")
        self.server.check_alive()
        return self.server.lines()[before:]

    def client(self, **kw):
        return netblk1.Client(self.ports[0], **kw)


def size_of(client):
    lo, hi = 0, 1 << 30
    while lo < hi:
        mid = (lo + hi + 1) // 2
        client.send(request(READ, mid - 1, 512))
        if client.status() == 0:
            client.recv(512)
            lo = mid
        else:
            hi = mid - 1
    return lo * 512


def writable(client):
    client.send(request(WRITE, 0, 512) + b"\x61" * 512)
    return client.status() == 0


def closed(client):
    """Whether the server ended this connection (it may not yet have, when asked at once)."""
    try:
        client.sock.settimeout(0.2)
        return client.sock.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        client.sock.settimeout(netblk1.default_timeout())


@test
def test_config_serves(t):
    c = Configured(t, [("disk", {"store": f"file:{t.tmp}/x.img?size=5M"})])
    with c.client() as x:
        check_eq(size_of(x), 5 * MIB, "size of the device")
        check(writable(x), "writable")
    c.server.stop()


@test
def test_config_several_listeners(t):
    c = Configured(t, [("disk", {"store": "mem:1M"})], ports=2)
    for p in c.ports:
        with netblk1.Client(p) as x:
            check_eq(size_of(x), MIB, f"size through port {p}")


@test
def test_config_first_export_in_document_order(t):
    """netblk/1 means the first export: first in the file, not in the alphabet."""
    c = Configured(t, [("zebra", {"store": "mem:1M"}), ("aardvark", {"store": "mem:2M"}), ("mole", {"store": "mem:3M"})])
    with c.client() as x:
        check_eq(size_of(x), MIB, "size of the first export in the file")


@test
def test_config_options(t):
    c = Configured(t, [("disk", {"store": "mem:1M", "ro": True, "allow": ["127.0.0.1/32"], "max-conns": 2})])
    with c.client() as a, c.client() as b:
        check(not writable(a), "ro = true, yet a WRITE is taken")
        check_eq(b.read(0, 512), bytes(512), "READ on the second connection")
        for source in (None, "127.0.0.2"):
            with c.client(source=source) as x:
                try:
                    x.read(0, 512)
                    raise AssertionError(f"served beyond max-conns, or to {source}")
                except netblk1.Closed:
                    pass


@test
def test_config_allow_as_text(t):
    """The names and the values are those of the command line, so the text form is accepted too."""
    c = Configured(t, [("disk", {"store": "mem:1M", "allow": "127.0.0.1/32,127.0.0.2/32"})])
    with c.client(source="127.0.0.2") as x:
        check_eq(x.read(0, 512), bytes(512), "127.0.0.2 is allowed")


# ---- bad files

def bad_config(t, text, status, *words):
    path = t.tmp / "bad.toml"
    path.write_text(text)
    code, out, err = run_cli(["--config", path])
    said = f"status {code}, stderr {err!r}, for {text!r}"
    check(code == status or status is None and code in (1, 2), f"status {status} wanted; {said}")
    check_eq(len(err.strip().splitlines()), 1, f"lines on stderr; {said}")
    for w in words:
        check(str(w) in err, f"{w!r} in the message wanted; {said}")
    check("bad.toml" in err, f"the file is named; {said}")
    return err


@test
def test_malformed_toml(t):
    listen = f'listen = ["netblk://127.0.0.1:{free_port()}"]\n'
    for text, line in ((listen + "[export.disk\nstore = 1\n", 2), (listen + '[export.disk]\nstore = "mem:1M\n', 3),
                       (listen + "\n\n= 5\n", 4), (listen + '[export.a]\nstore="mem:1M"\n[export.a]\nstore="mem:1M"\n', 4),
                       ("\x00", 1), (listen + "a = \xff\xfe\n", 2)):
        bad_config(t, text, 1, f":{line}")


@test
def test_unknown_keys(t):
    listen = f'listen = ["netblk://127.0.0.1:{free_port()}"]\n'
    disk = '[export.disk]\nstore = "mem:1M"\n'
    for text, word in ((listen + "colour = 1\n" + disk, "colour"), (listen + disk + 'flavour = "x"\n', "flavour"),
                       (listen + disk + "[exports.two]\nstore = 'mem:1M'\n", "exports")):
        bad_config(t, text, None, word)


@test
def test_wrong_types_and_values(t):
    listen = f'listen = ["netblk://127.0.0.1:{free_port()}"]\n'
    for text, word in ((listen + "[export.disk]\nstore = 5\n", "store"), (listen + "[export.disk]\nro = true\n", "store"),
                       (listen + '[export.disk]\nstore = "mem:1M"\nro = "perhaps"\n', "ro"),
                       (listen + '[export.disk]\nstore = "mem:1M"\nmax-conns = "x"\n', "max-conns"),
                       (listen + '[export.disk]\nstore = "mem:1M"\nmax-conns = -1\n', "max-conns"),
                       (listen + '[export.disk]\nstore = "mem:1M"\nallow = ["nowhere"]\n', "nowhere"),
                       (listen + '[export.disk]\nstore = "floppy:1M"\n', "floppy"),
                       ("listen = 5\n[export.disk]\nstore = 'mem:1M'\n", "listen"),
                       ("listen = ['netblk://127.0.0.1:x']\n[export.disk]\nstore = 'mem:1M'\n", "127.0.0.1:x"),
                       (listen, "export")):
        bad_config(t, text, None, word)


@test
def test_missing_and_unreadable_file(t):
    code, _, err = run_cli(["--config", t.tmp / "none.toml"])
    check_eq((code, len(err.strip().splitlines())), (1, 1), f"status and lines: {err!r}")
    check("none.toml" in err, f"the file is named: {err!r}")
    code, _, err = run_cli(["--config", t.tmp])
    check_eq((code, len(err.strip().splitlines())), (1, 1), f"status and lines for a directory: {err!r}")


# ---- SIGHUP

@test
def test_reload_adds_changes_removes_others(t):
    """The first export's connections never notice what happens to the others."""
    first = ("first", {"store": "mem:1M"})
    c = Configured(t, [first])
    stop, errors, n = threading.Event(), [], [0]

    def work():
        try:
            with c.client() as x:
                while not stop.is_set():
                    data = n[0].to_bytes(8, "big") * 64
                    x.write(n[0] % 2048, data)
                    check_eq(x.read(n[0] % 2048, 512), data, "what was written")
                    n[0] += 1
        except BaseException as e:
            errors.append(repr(e))
    th = threading.Thread(target=work, daemon=True)
    th.start()
    for exports in ([first, ("second", {"store": "mem:2M"})],
                    [first, ("second", {"store": "mem:3M", "ro": True}), ("third", {"store": f"file:{t.tmp}/t.img?size=1M"})],
                    [first, ("third", {"store": f"file:{t.tmp}/t.img?size=1M", "max-conns": 1})],
                    [first], [first]):
        at = n[0]
        c.reload(exports)
        suite.wait_until(lambda: n[0] > at + 10 or errors, 5, "the first export's client goes on")
    stop.set()
    th.join()
    check_eq(errors, [], "the first export's client")
    # What was removed was also let go of: another process may hold the file now.
    s = serverproc.start(t, 1, t.tmp / "t.img")
    s.stop()


@test
def test_reload_makes_an_export_first(t):
    c = Configured(t, [("one", {"store": "mem:1M"})])
    with c.client() as x:
        check_eq(size_of(x), MIB, "size before")
    c.reload([("two", {"store": "mem:2M"}), ("one", {"store": "mem:1M"})])
    with c.client() as x:
        check_eq(size_of(x), 2 * MIB, "a new connection means the export that is first now")


@test
def test_reload_removes_the_first(t):
    c = Configured(t, [("one", {"store": f"file:{t.tmp}/one.img?size=1M"}), ("two", {"store": "mem:2M"})])
    with c.client() as old:
        old.write(0, b"\x10" * 512)
        c.reload([("two", {"store": "mem:2M"})])
        with c.client() as x:
            check_eq(size_of(x), 2 * MIB, "a new connection's device")
        # Assumption: a removed export's connections are ended, after what they had accepted.
        suite.wait_until(lambda: closed(old), 5, "connections of a removed export end")
    s = serverproc.start(t, 1, t.tmp / "one.img")
    with s.client() as x:
        check_eq(x.read(0, 512), b"\x10" * 512, "the removed export's file, held by another server")


@test
def test_reload_changes_ro(t):
    c = Configured(t, [("one", {"store": f"file:{t.tmp}/one.img?size=1M"})])
    with c.client() as x:
        check(writable(x), "writable before")
    c.reload([("one", {"store": f"file:{t.tmp}/one.img?size=1M", "ro": True})])
    with c.client() as x:
        check_eq(x.read(0, 512), b"\x61" * 512, "content after the change")
        check(not writable(x), "ro = true after the reload, yet a WRITE is taken")
    c.reload([("one", {"store": f"file:{t.tmp}/one.img?size=1M"})])
    with c.client() as x:
        check(writable(x), "writable again")


@test
def test_reload_changes_admission(t):
    c = Configured(t, [("one", {"store": "mem:1M"})])
    c.reload([("one", {"store": "mem:1M", "allow": ["127.0.0.1/32"]})])
    with c.client(source="127.0.0.2") as x:
        try:
            x.read(0, 512)
            raise AssertionError("allow= of the reload has no effect")
        except netblk1.Closed:
            pass
    c.reload([("one", {"store": "mem:1M", "max-conns": 1})])
    with c.client() as a:
        a.read(0, 512)
        with c.client() as b:
            try:
                b.read(0, 512)
                raise AssertionError("max-conns of the reload has no effect")
            except netblk1.Closed:
                pass


@test
def test_reload_of_the_same_file_disturbs_nothing(t):
    """An unchanged mem: export keeps its content; connections stay."""
    exports = [("one", {"store": "mem:1M"})]
    c = Configured(t, exports)
    with c.client() as x:
        x.write(5, b"\x44" * 512)
        for _ in range(5):
            c.reload(exports)
            check_eq(x.read(5, 512), b"\x44" * 512, "the old connection")
            with c.client() as y:
                check_eq(y.read(5, 512), b"\x44" * 512, "a new connection")


@test
def test_reload_bad_file_keeps_the_old(t):
    exports = [("one", {"store": "mem:1M"})]
    c = Configured(t, exports)
    with c.client() as x:
        x.write(5, b"\x44" * 512)
        good = c.path.read_text()
        for text, word in (("[export.one\n", ":1"), (good + "colour = 1\n", "colour"),
                           (good.replace("mem:1M", "floppy:1M"), "floppy"), ("", "export"),
                           (good + '\n[export.two]\nstore = "file:/no/such/dir/x.img?size=1M"\n', "/no/such/dir")):
            said = c.reload(text=text)
            check(any(word in line for line in said), f"the log names {word!r}: {said}")
            check_eq(x.read(5, 512), b"\x44" * 512, "the old connection after a refused reload")
            with c.client() as y:
                check_eq(y.read(5, 512), b"\x44" * 512, "a new connection after a refused reload")
        c.path.unlink()
        said = c.reload()
        check(any("netblk.toml" in line for line in said), f"the log names the missing file: {said}")
        check_eq(x.read(5, 512), b"\x44" * 512, "the old connection after the file went missing")
    c.server.stop()


@test
def test_sighup_without_config(t):
    """Nothing to reload: noted at most, never the default action, which is death."""
    s = serverproc.start(t, 1)
    with s.client() as x:
        s.signal(signal.SIGHUP)
        time.sleep(0.5)
        s.check_alive()
        check_eq(x.read(0, 512), bytes(512), "after SIGHUP")
    s.stop()


@test(timeout=120)
def test_reload_storm(t):
    """Many SIGHUPs under load, the file changing each time: no crash, no lost descriptor."""
    first = ("first", {"store": "mem:1M"})
    c = Configured(t, [first])
    with c.client() as x:
        x.read(0, 512)
        c.reload([first])
        fds = serverproc.settle(c.server.fds, 0, 0.3)
        for i in range(suite.count(500, 60)):
            # Replaced in one step: a reload never sees half a file.
            new = c.path.with_suffix(".new")
            text = toml([f"netblk://127.0.0.1:{p}" for p in c.ports],
                        [first] + [(f"e{k}", {"store": f"file:{t.tmp}/e{k}.img?size=1M"}) for k in range(i % 4)])
            new.write_text(text)
            os.replace(new, c.path)
            c.server.signal(signal.SIGHUP)
            check_eq(x.read(0, 512), bytes(512), f"round {i}")
            time.sleep(0.01)
        c.reload([first])
        got = serverproc.settle(c.server.fds, fds)
        check(got <= fds, f"descriptors: {fds} before, {got} after")
    c.server.stop()


if __name__ == "__main__":
    sys.exit(suite.main("config"))
