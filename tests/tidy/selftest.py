#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Each rule of tidy can fail: one forbidden thing is planted in a clean small tree, and its rule alone must see it."""
import sys
import tempfile
from pathlib import Path

import tidy

SPDX = "// SPDX-License-Identifier: GPL-2.0-only\n"
HASH = "# SPDX-License-Identifier: GPL-2.0-only\n"
HEADER = SPDX + "#pragma once\n"

CLEAN = {
    "README.md": "# A tree\nThe way in: ARCHITECTURE.md.\n",
    "ARCHITECTURE.md": "# Map\n\n## A 4 KiB write's way\n\n1. `src/coro/task.h`: first.\n2. `src/io/loop.cc`: second.\n"
                       "3. [src/io/loop.cc] again.\n\n## Others\n\n1. Not a step.\n",
    "LICENSE": "words \n",
    "CMakeLists.txt": HASH,
    ".gitignore": "/build/\n",
    "src/CMakeLists.txt": HASH + "netblk_room(base LINK fmt::fmt)\nnetblk_room(coro LINK netblk::base)\n"
                          "netblk_room(io LINK netblk::coro TEST_LINK netblk::io_epoll)\n"
                          "netblk_room(io/uring LINK netblk::io PRIVATE PkgConfig::LIBURING)\n"
                          "netblk_room(io/epoll LINK netblk::io)\n"
                          "netblk_room(block LINK netblk::coro)\n"
                          "netblk_room(store LINK netblk::block netblk::io)  # netblk_room(none LINK netblk::none)\n",
    "src/base/check.h": HEADER,
    "src/coro/task.h": HEADER + '#include "base/check.h"\n',
    "src/io/loop.h": HEADER + '#include "coro/task.h"\n#include "base/check.h"\n',
    "src/io/loop.cc": SPDX + '#include "io/loop.h"\n// Here clock_gettime( is at home.\nvoid f() { clock_gettime(0, nullptr); }\n',
    "src/io/fake_test.h": HEADER,
    "src/io/loop_test.cc": SPDX + '#include "io/loop.h"\n#include "io/epoll/epoll.h"\n#include "io/fake_test.h"\n'
                           "void g() { throw 1; }  // NOLINT: the forbidden act\n",
    "src/io/epoll/epoll.h": HEADER,
    "src/io/uring/ring.cc": SPDX + "#include <liburing.h>\nvoid f() { io_uring_submit(nullptr); }\n",
    "src/store/a.cc": SPDX + '#include "block/device.h"\n',
    "src/block/device.h": HEADER,
    # What looks forbidden and is not.
    "src/store/innocent.cc": SPDX + r'''
// sprintf(x), co_await a ? b : c, throw, std::endl, rand()
const char* text = "strcpy(a, b); throw; std::regex";
const char* raw = R"(atoi(x) // " co_await)";
Task<void> fine(Thing& thing) {
  const int got = co_await thing.recv(a, b ? c : d);
  int second = co_await recv(*thing, std::span(x).first(3));
  second = co_await thing->recv({a, b});
  thing.last = co_await other();
  (void)co_await thing.third();
  const std::pair<int, long> pair = co_await both();
  const auto& ref = co_await refers();
  co_await thing.last();
  if (got > 0 && second) co_await thing.wait();
  while (!done() || a) co_await event.wait();
  for (int i = 0; i < 3; ++i) co_await next(i);
  for (;;) {
    const int a = co_await recv(thing);
    if (a <= 0) co_return;
  }
  switch (got) {
    case kOne: co_await a(); break;
    case Kind::kTwo: co_await b(); break;
    default: co_await c();
  }
  do co_await d(); while (x);
  {
    const std::lock_guard lock(mutex_);
    ++count;
  }
  co_await thing.end();
  const int value = co_await await([&thing](Op& op) { return thing.start(op) || thing.x; });
  run([](Thing& inner) -> coro::Task<void> { co_await inner.wait(); }(thing));
  list[index] = other[0](x);
  std::lock_guard<std::mutex> after(mutex_);
}
auto operator co_await() && { return Awaiter{}; }
struct Awaiter {
  void await_suspend(std::coroutine_handle<> waiter) const { waiter_ = waiter; }
  bool await_suspend(std::coroutine_handle<Promise> waiter);
  std::coroutine_handle<> waiter_;
};
void calls() {
  snprintf(a, 3, "x"); my_rand(); op.operand(3); set.insert(strand()); strtoull(a, b, 10); brand(x); filter.grand();
  const auto late = loop.time(3); runtime(0); thread.detached(); mystrcpy(x); uptime(nullptr);
  const int big = 1'000'000; const char quote = '"'; f("'");
}
'''.lstrip("\n"),
    "kernel/driver.c": "// SPDX-License-Identifier: GPL-2.0-only\nint f(void)\n{\n\tstrcpy(a, b);\n}\n",
    "protocol/wire.h": "/* SPDX-License-Identifier: GPL-2.0-only */\n#ifndef W\n\tint x;\n#endif\n",
    "tools/CMakeLists.txt": HASH + "add_executable(tool tool.cc)\n",
    "tools/tool.cc": SPDX + '#include "store/a.h"\n#include "local.h"\nint main() { std::cerr << 1; }\n',
    "tests/run": "#!/bin/sh\n" + HASH + "python3 tests/errors/test_one.py\n# suites: compat/test_two\n"
                 "for script in tests/tidy/*.py; do $script; done\ntests/vm/run\n",
    "tests/errors/test_one.py": "#!/usr/bin/env python3\n" + HASH + "import helper\n",
    "tests/errors/helper.py": HASH,
    "tests/compat/test_two.py": HASH,
    "tests/tidy/tidy.py": HASH,
    "tests/vm/run": "#!/bin/bash\n" + HASH + "for c in cases/*.sh; do :; done\nfor c in one two; do \"$here/steps/$c.sh\"; done\n",
    "tests/vm/cases/boot.sh": "#!/bin/bash\n" + HASH + "mktemp netblk-XXXXXX\n",
    "tests/vm/steps/one.sh": HASH,
    "tests/vm/kernel.patch": "+ trailing \n",
}

AWAIT = "src/store/plant.cc"


def coroutine(statement):
    return {AWAIT: SPDX + "Task<int> f() {\n  " + statement + "\n}\n"}


def append(path, text):
    return {path: CLEAN[path] + text}


# (rule, what is planted, files)
PLANTS = [
    ("rooms", "a link that DESIGN does not give", append("src/CMakeLists.txt", "netblk_room(transport LINK netblk::block)\n")),
    ("rooms", "a private link", append("src/CMakeLists.txt", "netblk_room(transport LINK netblk::io PRIVATE netblk::store)\n")),
    ("rooms", "a room that is not in the table", append("src/CMakeLists.txt", "netblk_room(cellar LINK netblk::base)\n")),
    ("layering", "an upper room", append("src/block/device.h", '#include "store/file_store.h"\n')),
    ("layering", "a room beside it", append("src/io/epoll/epoll.h", '#include "io/uring/ring.h"\n')),
    ("layering", "a test's room in code", append("src/io/loop.cc", '#include "io/epoll/epoll.h"\n')),
    ("layering", "a test's header in code", append("src/io/loop.cc", '#include "io/fake_test.h"\n')),
    ("layering", "two dots", append("src/store/a.cc", '#include "../block/device.h"\n')),
    ("layering", "two dots in a tool", append("tools/tool.cc", '#  include "../src/store/a.h"\n')),
    ("layering", "no room named", append("src/io/loop.cc", '#include "loop.h"\n')),
    ("layering", "a folder without a room", {"src/attic/a.cc": SPDX + '#include "base/check.h"\n'}),
    ("one-ring", "liburing in a store", append("src/store/a.cc", "#include <liburing.h>\n")),
    ("one-ring", "its calls in the epoll loop", append("src/io/epoll/epoll.h", "inline void f() { io_uring_prep_nop(0); }\n")),
    ("banned", "detach", append("src/store/a.cc", "void f() { thread.detach(); }\n")),
    ("banned", "sprintf", append("src/store/a.cc", "void f() { sprintf(a, b); }\n")),
    ("banned", "strcpy", append("src/store/a.cc", "void f() { std::strcpy(a, b); }\n")),
    ("banned", "atoi", append("src/store/a.cc", "int f() { return atoi(a); }\n")),
    ("banned", "strtok", append("src/store/a.cc", "int f() { return strtok(a, b); }\n")),
    ("banned", "rand", append("src/io/loop_test.cc", "int f() { return rand(); }\n")),
    ("banned", "std::rand", append("src/io/loop_test.cc", "int f() { return std::rand(); }\n")),
    ("banned", "throw", append("src/store/a.cc", "void f() { throw 1; }\n")),
    ("banned", "buf_ring of a later liburing", append("src/io/uring/ring.cc", "void f() { io_uring_setup_buf_ring(0); }\n")),
    ("banned", "std::regex", append("tools/tool.cc", "std::regex r;\n")),
    ("banned", "std::endl", append("tools/tool.cc", "void f() { out << std::endl; }\n")),
    ("banned", "using namespace std", append("tools/tool.cc", "using namespace std;\n")),
    ("banned", "std::async", append("src/store/a.cc", "void f() { std::async(g); }\n")),
    ("banned", "std::cerr", append("src/store/a.cc", "void f() { std::cerr << 1; }\n")),
    ("banned", "assert", append("src/store/a.cc", "void f() { assert(a); }\n")),
    ("clock", "clock_gettime", append("src/store/a.cc", "void f() { ::clock_gettime(0, &t); }\n")),
    ("clock", "steady_clock", append("src/store/a.cc", "void f() { std::chrono::steady_clock::now(); }\n")),
    ("clock", "time(nullptr)", append("src/store/a.cc", "void f() { time(nullptr); }\n")),
    ("no-symmetric-transfer", "a handle returned",
     append("src/coro/task.h", "struct A { std::coroutine_handle<> await_suspend(std::coroutine_handle<> h) { return h; } };\n")),
    ("no-symmetric-transfer", "auto returned",
     append("src/coro/task.h", "struct A { auto await_suspend(std::coroutine_handle<> h) { return h; } };\n")),
    ("no-symmetric-transfer", "a trailing result",
     append("src/coro/task.h", "auto A::await_suspend(int h) noexcept -> std::coroutine_handle<P> { return h; }\n")),
    ("await-into-a-local", "in ?:, taken", coroutine("const int x = a ? co_await b() : 0;")),
    ("await-into-a-local", "in ?:, the condition", coroutine("const int x = co_await b() ? 1 : 0;")),
    ("await-into-a-local", "after &&", coroutine("const bool x = a && co_await b();")),
    ("await-into-a-local", "before &&", coroutine("const bool x = co_await b() && a;")),
    ("await-into-a-local", "after ||", coroutine("const bool x = a || co_await b();")),
    ("await-into-a-local", "in an argument list", coroutine("use(co_await b());")),
    ("await-into-a-local", "in a later argument", coroutine("const int x = use(1, co_await b());")),
    ("await-into-a-local", "in braces", coroutine("const Pair x{co_await b()};")),
    ("await-into-a-local", "in braces after =", coroutine("const Pair x = {1, co_await b()};")),
    ("await-into-a-local", "in an index", coroutine("list[co_await b()] = 1;")),
    ("await-into-a-local", "in an if", coroutine("if (co_await b()) c();")),
    ("await-into-a-local", "in a while", coroutine("while (co_await b()) c();")),
    ("await-into-a-local", "in a co_return", coroutine("co_return co_await b();")),
    ("await-into-a-local", "in a sum", coroutine("const int x = 1 + co_await b();")),
    ("await-into-a-local", "in a sum, first", coroutine("const int x = co_await b() + 1;")),
    ("await-into-a-local", "in a comparison", coroutine("const bool x = co_await b() == 1;")),
    ("await-into-a-local", "added", coroutine("x += co_await b();")),
    ("no-capturing-coroutine", "a reference", coroutine("scope.spawn([&]() -> Task<void> { co_await b(); }());")),
    ("no-capturing-coroutine", "this", coroutine("auto f = [this] { co_return; };")),
    ("no-capturing-coroutine", "a value, no body but a return", coroutine("auto f = [x](int y) mutable -> Task<int> { co_return x; };")),
    ("no-lock-across-await", "lock_guard", coroutine("const std::lock_guard lock(mutex_);\n  co_await b();")),
    ("no-lock-across-await", "unique_lock in a loop",
     coroutine("for (;;) {\n    std::unique_lock<std::mutex> lock{m};\n    if (x) {\n      co_await b();\n    }\n  }")),
    ("file-length", "801 lines", {"src/store/long.cc": SPDX + "\n" * 799 + "int x;\n"}),
    ("file-length", "a long script", {"tests/errors/helper.py": HASH + "x = 1\n" * 800}),
    ("unit-tests-are-built", "a test outside every room", {"src/attic/a_test.cc": SPDX}),
    ("unit-tests-are-built", "a tool that is not built", {"tools/other.cc": SPDX}),
    ("suites-are-run", "a suite that nothing names", {"tests/errors/test_three.py": HASH}),
    ("suites-are-run", "a script beside the globbed ones", {"tests/vm/cases/old/boot.sh": "#!/bin/bash\n" + HASH}),
    ("suites-are-run", "a script beside those of a list", {"tests/vm/steps/three.sh": HASH}),
    ("suites-are-run", "a name inside another", {"tests/errors/est_one.py": HASH}),
    ("suites-are-run", "no tests/run", {"tests/run": None}),
    ("no-promises", "in code", append("src/store/a.cc", "// TO" + "DO: later\n")),
    ("no-promises", "in prose", append("README.md", "FIX" + "ME\n")),
    ("no-promises", "three crosses", append("tests/run", "# " + "X" * 3 + "\n")),
    ("license-line", "a source without", {"src/store/bare.cc": '#include "block/device.h"\n'}),
    ("license-line", "a script without", {"tests/vm/run": CLEAN["tests/vm/run"].replace(HASH, "")}),
    ("license-line", "another license", {"src/base/check.h": "// SPDX-License-Identifier: MIT\n#pragma once\n"}),
    ("own-feet", "a path of a machine", append("README.md", "See /wo" + "rk/main.\n")),
    ("own-feet", "a folder beside the project", append("tests/run", "cat ../sha" + "red/x\n")),
    ("own-feet", "the name of a tool", append("README.md", "Written with Cla" + "ude.\n")),
    ("way-of-a-write", "no ARCHITECTURE.md", {"ARCHITECTURE.md": None}),
    ("way-of-a-write", "no heading", {"ARCHITECTURE.md": "# Map\n"}),
    ("way-of-a-write", "no list", {"ARCHITECTURE.md": "## A 4 KiB write's way\n\n## More\n1. `src/io/loop.cc`\n"}),
    ("way-of-a-write", "a file that is not there", {"ARCHITECTURE.md": "## A 4 KiB write's way\n1. `src/io/gone.cc`\n"}),
    ("way-of-a-write", "a step without a file", {"ARCHITECTURE.md": "## A 4 KiB write's way\n1. The loop.\n"}),
    ("way-of-a-write", "seven files", {
        "ARCHITECTURE.md": "## A 4 KiB write’s way\n" + "".join(f"{n}. `src/{name}`\n" for n, name in enumerate(
            ("base/check.h", "coro/task.h", "io/loop.h", "io/loop.cc", "io/epoll/epoll.h", "store/a.cc", "block/device.h"), 1))}),
    ("way-of-a-write", "README does not lead there", {"README.md": "# A tree\n"}),
    ("whitespace", "a trailing blank", append("src/store/a.cc", "int x; \n")),
    ("whitespace", "CR", append("README.md", "x\r\n")),
    ("whitespace", "no newline at the end", append("README.md", "x")),
    ("whitespace", "blank lines at the end", append("README.md", "x\n\n")),
    ("whitespace", "a tab in C++", append("src/store/a.cc", "\tint x;\n")),
    ("headers-once", "a header without", {"src/base/check.h": SPDX}),
    ("no-strays", "a hidden file", {"kernel/.cache.d": "x\n"}),
    ("no-strays", "an object", {"kernel/driver.o": "x\n"}),
    ("no-strays", "a binary", {"docs/blob": b"\0\1\2"}),
]


def failing_rules(files):
    with tempfile.TemporaryDirectory(prefix="netblk-tidy-") as folder:
        for path, content in files.items():
            if content is None:
                continue
            full = Path(folder) / path
            full.parent.mkdir(parents=True, exist_ok=True)
            full.write_bytes(content if isinstance(content, bytes) else content.encode())
        tree = tidy.Tree(folder)
        found = {rule: tidy.offences(tree, rule) for rule in tidy.RULES}
        return {rule: lines for rule, lines in found.items() if lines}


def main():
    counts = {"PASS": 0, "FAIL": 0}

    def tell(name, reason):
        counts["FAIL" if reason else "PASS"] += 1
        print(f"FAIL {name}: {reason}" if reason else f"PASS {name}")

    noise = failing_rules(CLEAN)
    tell("a clean tree passes", "; ".join(f"{rule}: {lines[0]}" for rule, lines in noise.items()))
    for rule, what, files in PLANTS:
        seen = failing_rules({**CLEAN, **files})
        # A thing may break a second rule by its nature: a file in no room is neither layered nor built.
        by_nature = set()
        if any(path.startswith("src/attic/") for path in files):
            by_nature = {"layering", "unit-tests-are-built"}
        beside = set(seen) - {rule} - by_nature
        reason = ""
        if rule not in seen:
            reason = "it is not seen"
        elif beside:
            reason = "other rules fail too: " + "; ".join(f"{name}: {seen[name][0]}" for name in sorted(beside))
        tell(f"{rule}: {what}", reason)
    unplanted = sorted(set(tidy.RULES) - {rule for rule, _, _ in PLANTS})
    tell("every rule has a plant", ", ".join(unplanted))
    print(f"suite tidy-selftest: {counts['PASS']} passed, {counts['FAIL']} failed, 0 skipped")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
