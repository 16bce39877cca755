# SPDX-License-Identifier: GPL-2.0-only
"""A small test runner.

One line per test (PASS, FAIL or SKIP), then one summary line; exit status 0
only if nothing failed.  Arguments: name filters (substrings), -v for tracebacks
and server logs of failures, -l to list.  Environment:

    NETBLK_SERVER       the server under test (default build/output/netblk_server)
    NETBLK_SERVER_ARGS  further arguments for every server, such as --io epoll
    NETBLK_FULL=1       the stated counts instead of a tenth or less of them
    NETBLK_TIME_SCALE   factor on every bound on waiting (default 3)
    NETBLK_PATIENCE     the least of those bounds, in seconds before the factor (default 30)
    NETBLK_SEED         seed of the randomised tests
"""

import os
import pathlib
import random
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
FULL = os.environ.get("NETBLK_FULL", "") not in ("", "0")
TIME_SCALE = float(os.environ.get("NETBLK_TIME_SCALE", "3"))
# A machine may stand still for seconds: a bound only ends a wait that is hopeless. Shorter for those who want failures.
PATIENCE = float(os.environ.get("NETBLK_PATIENCE", "30"))
SEED = int(os.environ.get("NETBLK_SEED") or random.SystemRandom().randrange(1 << 32))

_tests = []


class Skip(Exception):
    pass


class TestTimeout(BaseException):
    pass


def test(fn=None, *, timeout=60):
    """Register a test; `timeout` is in seconds, before NETBLK_TIME_SCALE."""
    def register(f):
        _tests.append((f.__name__.removeprefix("test_"), f, max(timeout, 4 * PATIENCE)))
        return f
    return register(fn) if fn else register


def count(full, normal):
    return full if FULL else normal


def check(cond, why):
    if not cond:
        raise AssertionError(why)


def check_eq(got, want, what):
    if got == want:
        return
    if isinstance(got, (bytes, bytearray)) and isinstance(want, (bytes, bytearray)):
        n = min(len(got), len(want))
        at = next((i for i in range(n) if got[i] != want[i]), n)
        raise AssertionError(f"{what}: {len(got)} bytes, wanted {len(want)}; first difference at byte {at}: "
                             f"{bytes(got[at:at + 8]).hex()} wanted {bytes(want[at:at + 8]).hex()}")
    raise AssertionError(f"{what}: got {got!r}, wanted {want!r}")


def bound(seconds):
    """What ends a hopeless wait, for what takes `seconds` at most where nothing is in the way."""
    return max(seconds, PATIENCE) * TIME_SCALE


def wait_until(cond, seconds, what):
    """Poll until `cond()`; the bound is scaled and only ends a hopeless wait."""
    end = time.monotonic() + bound(seconds)
    while True:
        value = cond()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {bound(seconds):g} s")
        time.sleep(0.02)


def in_time(seconds, attempt):
    """What `attempt()` gives, which another is allowed to end after `seconds`. One that failed and took that long, as on
    a machine that stood still, says nothing and is made again."""
    for _ in range(50):
        began = time.monotonic()
        try:
            return attempt()
        except Exception:
            if time.monotonic() - began < seconds:
                raise
    raise AssertionError(f"not one of 50 attempts was over within {seconds:g} s")


def run_threads(functions):
    """Run all at once; the first exception of any of them is raised here."""
    errors = []

    def guard(f):
        try:
            f()
        except BaseException as e:
            errors.append(e)
    threads = [threading.Thread(target=guard, args=(f,), daemon=True) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


class Case:
    """What one test may use: a directory of its own, and undo actions run in reverse."""

    now = None  # the one that runs

    def __init__(self, name):
        self.name = name
        self.tmp = pathlib.Path(tempfile.mkdtemp(prefix="netblk-test-"))
        self._undo = []
        Case.now = self

    def defer(self, fn):
        self._undo.append(fn)

    def cleanup(self):
        for fn in reversed(self._undo):
            try:
                fn()
            except Exception:
                traceback.print_exc()
        shutil.rmtree(self.tmp, ignore_errors=True)


def server_command():
    path = os.environ.get("NETBLK_SERVER") or str(ROOT / "build/output/netblk_server")
    if not os.access(path, os.X_OK):
        print(f"no server at {path}: build it, or set NETBLK_SERVER", file=sys.stderr)
        sys.exit(1)
    return [os.path.abspath(path)], shlex.split(os.environ.get("NETBLK_SERVER_ARGS", ""))


def _alarm(*_):
    raise TestTimeout()


def _end(*_):
    raise KeyboardInterrupt  # the running test cleans up after itself


def main(name):
    args = sys.argv[1:]
    verbose = "-v" in args
    listing = "-l" in args
    filters = [a for a in args if not a.startswith("-")]
    tests = [t for t in _tests if not filters or any(f in t[0] for f in filters)]
    if listing:
        for t in tests:
            print(t[0])
        return 0
    if not tests:
        print("no test has such a name", file=sys.stderr)
        return 1
    signal.signal(signal.SIGALRM, _alarm)
    signal.signal(signal.SIGTERM, _end)
    passed = failed = skipped = 0
    for tname, fn, timeout in tests:
        case = Case(tname)
        started = time.monotonic()
        random.seed(SEED)
        detail = None
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout * TIME_SCALE)
            fn(case)
            line = f"PASS {tname}"
            passed += 1
        except Skip as e:
            line = f"SKIP {tname}: {e}"
            skipped += 1
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
            case.cleanup()
            raise
        except TestTimeout:
            where = traceback.extract_tb(sys.exc_info()[2])
            own = [f for f in where if f.filename.endswith(os.path.basename(fn.__code__.co_filename))]
            line = f"FAIL {tname}: did not end within {timeout * TIME_SCALE:g} s (at line {own[-1].lineno if own else '?'})"
            detail = traceback.format_exc()
            failed += 1
        except BaseException as e:
            reason = " ".join(str(e).split()) or "no message"
            kind = "" if isinstance(e, AssertionError) else f"{type(e).__name__}: "
            line = f"FAIL {tname}: {kind}{reason[:600]} (NETBLK_SEED={SEED})"
            detail = traceback.format_exc()
            failed += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if detail and verbose:
            print(detail, file=sys.stderr)
            for log in sorted(case.tmp.glob("server-*.log")):
                text = log.read_text(errors="replace").splitlines()
                print(f"--- {log.name}", *text[-25:], sep="\n", file=sys.stderr)
        case.cleanup()
        if verbose:
            line += f"  [{time.monotonic() - started:.1f} s]"
        print(line, flush=True)
    print(f"suite {name}: {passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 1 if failed else 0
