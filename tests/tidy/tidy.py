#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The style of netblk as a test: each rule is one line of output, and says what to do instead.

    tests/tidy/tidy.py [FOLDER]      FOLDER: a tree to look at; this one by default

A line of C++ that breaks a rule on purpose, as a test of a forbidden act does, says NOLINT and why.
"""
import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import cxx

MAX_LINES = 800
WAY_TITLE = re.compile(r"^## A 4 KiB write['’]s way\s*$", re.MULTILINE)
WAY_FILES = 6

# DESIGN 3: what a room's own code may include beside what those rooms give it in turn.
ROOMS = {
    "base": set(),
    "coro": {"base"},
    "io": {"coro"},
    "io/uring": {"io"},
    "io/epoll": {"io"},
    "block": {"coro"},
    "store": {"block", "io"},
    "store/filter": {"block", "io"},
    "store/volume": {"block", "io"},
    "proto/netblk": {"base", "protocol"},
    "proto/nbd": {"base", "protocol"},
    "transport": {"io"},
    "server": {"proto/netblk", "proto/nbd", "block", "io"},
    "client": {"proto/netblk", "proto/nbd", "block", "io"},
    "attach/fuse": {"block", "io", "client", "proto/netblk", "protocol"},
    "attach/genl": {"base"},
    "attach/netblk_ko": {"block", "io", "client", "proto/netblk", "protocol", "attach/genl"},
    "attach/nbd_netlink": {"block", "io", "client", "proto/nbd", "protocol", "attach/genl"},
    "attach/ublk": {"block", "io", "client", "proto/netblk", "protocol", "io/uring"},
    "admin": {"server", "client"},
}


class Tree:
    """The files of a tree that are the project's: text by path, relative to the root."""

    def __init__(self, root):
        self.root = Path(root)
        self.files = {}
        self.binary = []
        for path in sorted(self._names()):
            full = self.root / path
            if full.is_symlink() or not full.is_file():
                continue
            data = full.read_bytes()
            try:
                if b"\0" in data:
                    raise UnicodeDecodeError("utf-8", data, 0, 1, "a zero byte")
                self.files[path] = data.decode("utf-8")
            except UnicodeDecodeError:
                self.binary.append(path)
        self._code = {}

    def _names(self):
        if (self.root / ".git").exists():
            listed = subprocess.run(["git", "-C", str(self.root), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
                                    stdout=subprocess.PIPE, check=True).stdout.decode().split("\0")
            return {name for name in listed if name}
        names = set()
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if name not in ("build", ".git", "__pycache__")]
            names.update((Path(folder) / name).relative_to(self.root).as_posix() for name in files)
        return names

    def code(self, path):
        if path not in self._code:
            self._code[path] = cxx.code_of(self.files[path])
        return self._code[path]

    def cxx(self, *folders):
        """C++ sources under the folders; kernel/ and protocol/ are C."""
        for path in self.files:
            if path.endswith((".cc", ".h")) and path.startswith(tuple(folder + "/" for folder in folders)):
                yield path

    def allowed(self, path, line):
        return "NOLINT" in self.files[path].split("\n")[line - 1]


CXX_FOLDERS = ("src", "tools", "bench", "fuzz")


def is_test(path):
    return re.search(r"_test\.(cc|h)$", path) is not None


def rooms_of(tree):
    """{room: {"LINK": {...}, "PRIVATE": {...}, "TEST_LINK": {...}}} as src/CMakeLists.txt has them."""
    text = re.sub(r"#[^\n]*", "", tree.files.get("src/CMakeLists.txt", ""))
    known = {name.replace("/", "_"): name for name in re.findall(r"netblk_room\(\s*([\w/]+)", text)}
    known["protocol"] = "protocol"
    rooms = {}
    for name, rest in re.findall(r"netblk_room\(\s*([\w/]+)([^)]*)\)", text):
        links, kind = {"LINK": set(), "PRIVATE": set(), "TEST_LINK": set()}, None
        for word in rest.split():
            if word in links:
                kind = word
            elif word.startswith("netblk::") and kind:
                links[kind].add(known.get(word[len("netblk::"):], word))
        rooms[name] = links
    return rooms


def closure(rooms, start):
    reached, wanted = set(), list(start)
    while wanted:
        room = wanted.pop()
        if room not in reached:
            reached.add(room)
            wanted.extend(rooms.get(room, {"LINK": ()})["LINK"])
    return reached


def room_of(path, rooms):
    folder = path[len("src/"):].rsplit("/", 1)[0]
    return folder if folder in rooms else None


# --- Rules: each yields (path, line, what is wrong and what to do) --------------------------------------------------

def rule_rooms(tree):
    """src/CMakeLists.txt gives a room no more than DESIGN 3 does."""
    for room, links in rooms_of(tree).items():
        if room not in ROOMS:
            yield "src/CMakeLists.txt", 0, f"room {room} is not in the table of rooms: add it there first"
            continue
        for other in sorted((links["LINK"] | links["PRIVATE"]) - ROOMS[room]):
            yield "src/CMakeLists.txt", 0, f"room {room} may not link {other}: ask for less, or pass it in from above"


def rule_layering(tree):
    """A source includes only rooms that its own room links, by their full names."""
    rooms = rooms_of(tree)
    for path in tree.cxx(*CXX_FOLDERS):
        for match in re.finditer(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', tree.files[path], re.MULTILINE):
            line, name = cxx.line_of(tree.files[path], match.start(1)), match.group(1)
            if ".." in name.split("/"):
                yield path, line, f'"{name}": write the header\'s full name'
                continue
            if not path.startswith("src/"):
                continue
            room = room_of(path, rooms)
            if room is None:
                yield path, line, "the folder is no netblk_room() of src/CMakeLists.txt"
                break
            if "/" not in name:
                yield path, line, f'"{name}": write the header\'s full name, "{room}/{name}"'
                continue
            if not is_test(path) and is_test(name):
                yield path, line, f'"{name}" is for tests'
            other = name.rsplit("/", 1)[0]
            start = {room} | rooms[room]["LINK"] | rooms[room]["PRIVATE"]
            if is_test(path):
                start |= rooms[room]["TEST_LINK"]
            if other not in closure(rooms, start):
                yield path, line, f'room {room} does not link {other}: "{name}" is out of its reach'


def rule_one_ring(tree):
    """liburing is known in src/io/uring only."""
    for path in tree.cxx("src", "tools"):
        if path.startswith("src/io/uring/"):
            continue
        for match in re.finditer(r"#\s*include\s*<liburing[./]|\bio_uring_(?:prep|get|submit|queue|peek|wait)\w*\s*\(",
                                 tree.code(path)):
            yield path, cxx.line_of(tree.files[path], match.start()), "use the interfaces of src/io"


# what: (expression, instead, tests too)
BANNED = [
    (r"\.\s*detach\s*\(\s*\)", "a thread is joined by its owner", True),
    (r"\b(?:v?sprintf|strcpy|strcat|gets)\s*\(", "fmt::format, or std::copy with a length", True),
    (r"\b(?:atoi|atol|atoll|atof)\s*\(", "parse_unsigned or parse_size of base/parse.h", True),
    (r"\bstrtok\s*\(", "std::string_view::find", True),
    (r"(?<!:)\b(?:std::)?s?rand\s*\(|\bdrand48\s*\(", "std::mt19937_64 with a seed that is printed", True),
    (r"\bthrow\b", "return an Error (base/result.h), or NETBLK_CHECK", True),
    (r"\bio_uring_setup_buf_ring\b", "io_uring_register_buf_ring: Debian 12's liburing 2.3 has no other", True),
    (r"\bstd::(?:w|s|c)?regex(?:_\w+)?\b", "a few lines of std::string_view", True),
    (r"\bstd::endl\b", "'\\n'", True),
    (r"\busing\s+namespace\s+std\b", "name what you use", True),
    (r"\bstd::async\s*\(", "a coro::Task on a loop, or io/epoll's worker pool", True),
    (r"\bstd::(?:cout|cerr|clog)\b", "log_info, log_warning, log_error of base/log.h", False),
    (r"(?<![\w:.])assert\s*\(", "NETBLK_CHECK: it stays on in every build", True),
]
# Reading the time anywhere else would escape a simulator's clock.
CLOCK_READS = r"\b(?:clock_gettime|gettimeofday|ftime|timespec_get)\s*\(|\b\w+_clock::now\b|(?<![\w:.>])time\s*\(\s*(?:nullptr|NULL|0|&)"
CLOCK_HOMES = ("src/io/clock.h", "src/io/clock.cc", "src/io/loop.cc")


def rule_banned(tree):
    """Calls that have a better one here."""
    for path in tree.cxx("src", "tools"):
        for expression, instead, tests_too in BANNED:
            if is_test(path) and not tests_too or path.startswith("tools/") and not tests_too:
                continue
            for match in re.finditer(expression, tree.code(path)):
                line = cxx.line_of(tree.files[path], match.start())
                if not tree.allowed(path, line):
                    yield path, line, f"'{match.group(0).strip()}': use {instead}"


def rule_clock(tree):
    """The time comes from io::Clock."""
    for path in tree.cxx("src"):
        if path in CLOCK_HOMES or is_test(path):
            continue
        for match in re.finditer(CLOCK_READS, tree.code(path)):
            line = cxx.line_of(tree.files[path], match.start())
            if not tree.allowed(path, line):
                yield path, line, f"'{match.group(0).strip()}': ask an io::Clock, or a Loop's now_ms()"


def rule_no_symmetric_transfer(tree):
    """g++ 12 makes it a tail call only at -O2."""
    for path in tree.cxx("src", "tools"):
        for match in re.finditer(r"(?:coroutine_handle\s*<[^;{}()]*>|\bauto)\s+(?:\w+::)*await_suspend\s*\(|"
                                 r"\bawait_suspend\s*\([^;{}]*\)[^;{}]*->\s*[^;{]*coroutine_handle", tree.code(path)):
            yield (path, cxx.line_of(tree.files[path], match.start()),
                   "await_suspend returns void or bool; what is resumed goes through the ready queue")


_NAMED = re.compile(r"^\s*(?:\(\s*void\s*\)\s*|(?:[\w:<>,&*\s]+[\s&*>])?[\w.]+(?:->\w+)*\s*=\s*)?$")


def rule_await_into_a_local(tree):
    """g++ 12 destroys temporaries twice or never where co_await stands inside an expression."""
    for path in tree.cxx("src", "tools"):
        code = tree.code(path)
        for match in re.finditer(r"\bco_await\b", code):
            line = cxx.line_of(code, match.start())
            if tree.allowed(path, line) or re.search(r"\boperator\s*$", code[:match.start()]):
                continue
            prefix, enclosed = cxx.statement_before(code, match.start())
            rest = cxx.top_level(cxx.statement_after(code, match.end()))
            if not enclosed and not _NAMED.match(cxx.without_heads(prefix)):
                enclosed = "inside an expression"
            if not enclosed and re.search(r"\?|&&|\|\||(?<![-<>=!])[<>]=?\s|[=!]=|\s[-+*/%|&^]\s", rest):
                enclosed = "inside an expression"
            if enclosed:
                yield path, line, f"co_await {enclosed}: await into a named local first"


def rule_no_capturing_coroutine(tree):
    """A lambda's captures die with the lambda, while its frame lives on."""
    for path in tree.cxx("src", "tools"):
        code = tree.code(path)
        for at, captures, body in cxx.lambdas(code):
            line = cxx.line_of(code, at)
            if captures and re.search(r"\bco_(?:await|return|yield)\b", body) and not tree.allowed(path, line):
                yield path, line, "a coroutine that captures: make it a function, and pass what it needs"


def rule_no_lock_across_await(tree):
    """Whoever resumes it may hold the lock, or be another thread."""
    for path in tree.cxx("src", "tools"):
        code = tree.code(path)
        for match in re.finditer(r"\b(?:lock_guard|unique_lock|scoped_lock|shared_lock)\b(?:\s*<[^;{}()]*>)?\s+\w+\s*[({]",
                                 code):
            end = cxx.end_of_enclosing_block(code, match.end() if code[match.end() - 1] == "(" else
                                             cxx.end_of_block(code, match.end() - 1) + 1)
            awaited = re.search(r"\bco_await\b", code[match.end():end])
            line = cxx.line_of(code, match.start())
            if awaited and not tree.allowed(path, line):
                yield path, line, "the lock is alive across a co_await: end its block first"


def rule_file_length(tree):
    """No file over 800 lines."""
    for path, text in tree.files.items():
        lines = text.count("\n")
        if lines > MAX_LINES and path != "LICENSE":
            yield path, lines, f"{lines} lines: split it by what changes together"


def rule_unit_tests_are_built(tree):
    """Each x_test.cc is in a room, each other C++ source is named by its folder's CMakeLists.txt."""
    rooms = rooms_of(tree)
    for path in tree.files:
        folder, name = os.path.split(path)
        if path.startswith("src/") and path.endswith("_test.cc") and room_of(path, rooms) is None:
            yield path, 0, "no netblk_room() of src/CMakeLists.txt globs it"
        if path.endswith(".cc") and path.split("/")[0] in ("tools", "bench", "fuzz"):
            if name not in tree.files.get(folder + "/CMakeLists.txt", ""):
                yield path, 0, f"{folder}/CMakeLists.txt does not build it"


def _names_it(reached_path, text, path):
    """Whether a script that runs, with this text, names this file: whole, from its folder, as a module, or by a glob."""
    folder = os.path.dirname(reached_path)
    for name in {path, path[len("tests/"):], os.path.basename(path)}:
        stem = re.escape(name[:-3] if name.endswith(".py") else name)
        if re.search(rf"(?<![\w.-]){stem}(?![\w-])", text):
            return True
    # "cases/$case.sh" reaches what it may expand to, if the text has that name too: in a table, or a list.
    stem = re.escape(os.path.basename(path).split(".")[0])
    named = re.search(rf"(?<![\w.-]){stem}(?![\w.-])", text) is not None
    shell = re.sub(r"\$\{?\w+\}?", "*", text) if named and text.startswith("#!") else text
    for pattern in re.findall(r"[\w./*-]*\*[\w./*-]*", shell):
        pattern = re.sub(r"^\*/(?=.)", "", pattern)
        if not pattern.strip("*./") or pattern.count("/") == 0 and pattern.endswith("*"):
            continue
        for base in ("", "tests/", folder + "/"):
            if fnmatch.fnmatch(path, base + pattern.lstrip("./")) and (
                    path.count("/") == (base + pattern.lstrip("./")).count("/")):
                return True
    return False


def rule_suites_are_run(tree):
    """Each script and fragment under tests/ is reached from tests/run."""
    if "tests/run" not in tree.files:
        yield "tests/run", 0, "it is missing: nothing runs the tests"
        return
    reached, grew = {"tests/run"}, True
    candidates = {path for path, text in tree.files.items()
                  if path.startswith("tests/") and (path.endswith((".py", ".sh", ".cc", ".c")) or text.startswith("#!"))}
    while grew:
        grew = False
        texts = [(path, tree.files[path]) for path in reached]
        for path in sorted(candidates - reached):
            if any(_names_it(by, text, path) for by, text in texts):
                reached.add(path)
                grew = True
    for path in sorted(candidates - reached):
        yield path, 0, "tests/run does not reach it"


def rule_no_promises(tree):
    """Work that is left goes into an issue."""
    words = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3))
    for path, text in tree.files.items():
        for match in re.finditer(rf"\b(?:{words})\b", text):
            yield path, cxx.line_of(text, match.start()), f"'{match.group(0)}': do it, or open an issue"


def rule_license_line(tree):
    """SPDX at the top of each source file."""
    wanted = "SPDX-License-Identifier: GPL-2.0-only"
    for path, text in tree.files.items():
        name = os.path.basename(path)
        if not (path.endswith((".cc", ".h", ".c", ".py", ".sh", ".cmake", ".js", ".ts", ".service")) or text.startswith("#!")
                or name in ("CMakeLists.txt", "Kbuild", "Makefile")):
            continue
        if wanted not in "\n".join(text.split("\n")[:3]):
            yield path, 1, f"no line '{wanted}' at its top"


def rule_own_feet(tree):
    """Nothing speaks of the machine or the tools with which it was written."""
    places = [r"/wo" + r"rk/\w", r"\.\./sha" + r"red\b", r"/home/(?!\$|\*|user\b)\w", r"/tmp/bash" + "_jobs"]
    words = ["cla" + "ude", "anth" + "ropic", "chat" + "gpt", "co" + "pilot", "language " + "model", "artif" + "actory",
             "co-auth" + "ored-by"]
    expression = re.compile("|".join(places) + r"|\b(?i:" + "|".join(words) + r")\b")
    for path, text in tree.files.items():
        for match in expression.finditer(text):
            yield path, cxx.line_of(text, match.start()), f"'{match.group(0)}' is no part of the project"


def rule_way_of_a_write(tree):
    """A 4 KiB write passes at most six files, and ARCHITECTURE.md names them in order."""
    text = tree.files.get("ARCHITECTURE.md")
    if text is None:
        yield "ARCHITECTURE.md", 0, "it is missing"
        return
    if "ARCHITECTURE.md" not in tree.files.get("README.md", ""):
        yield "README.md", 0, "it does not lead to ARCHITECTURE.md"
    title = WAY_TITLE.search(text)
    if not title:
        yield "ARCHITECTURE.md", 0, "no heading '## A 4 KiB write's way'"
        return
    section = re.split(r"^## ", text[title.end():], maxsplit=1, flags=re.MULTILINE)[0]
    steps = re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)
    files = []
    for step in steps:
        named = re.search(r"[`(\[]((?:src|tools|protocol)/[\w/.]+\.(?:cc|h))[`)\]]", step)
        if not named:
            yield "ARCHITECTURE.md", cxx.line_of(text, title.start()), f"a step that names no file: {step[:60]}"
        elif named.group(1) not in files:
            files.append(named.group(1))
    if not steps:
        yield "ARCHITECTURE.md", cxx.line_of(text, title.start()), "no numbered list under the heading"
    if len(files) > WAY_FILES:
        yield "ARCHITECTURE.md", cxx.line_of(text, title.start()), f"{len(files)} files are on the way, at most {WAY_FILES}"
    for name in files:
        if name not in tree.files:
            yield "ARCHITECTURE.md", cxx.line_of(text, title.start()), f"{name} does not exist"
        elif tree.files[name].count("\n") > MAX_LINES:
            yield name, tree.files[name].count("\n"), f"over {MAX_LINES} lines"


def rule_whitespace(tree):
    """No trailing blanks, no CR, a newline at the end, no tabs in C++."""
    for path, text in tree.files.items():
        if path.endswith(".patch") or path == "LICENSE" or not text:
            continue
        if match := re.search(r"[ \t\r]+$", text, re.MULTILINE):
            yield path, cxx.line_of(text, match.start()), "trailing blanks"
        if not text.endswith("\n"):
            yield path, text.count("\n") + 1, "no newline at its end"
        if text.endswith("\n\n"):
            yield path, text.count("\n"), "blank lines at its end"
        if path.endswith((".cc", ".h")) and path.split("/")[0] in CXX_FOLDERS and "\t" in text:
            yield path, cxx.line_of(text, text.index("\t")), "a tab: C++ is indented by two blanks"


def rule_headers_once(tree):
    """#pragma once in each C++ header."""
    for path in tree.cxx(*CXX_FOLDERS):
        if path.endswith(".h") and not re.search(r"^#pragma once$", tree.files[path], re.MULTILINE):
            yield path, 1, "no '#pragma once'"


HIDDEN = {".ci", ".gitignore", ".gitattributes", ".clang-format", ".clang-tidy", ".editorconfig", ".dockerignore"}


def rule_no_strays(tree):
    """Nothing that a tool left behind."""
    for path in list(tree.files) + tree.binary:
        for part in path.split("/"):
            if part.startswith(".") and part not in HIDDEN:
                yield path, 0, "a hidden file: remove it, or ignore it"
                break
        if re.search(r"\.(o|ko|mod|orig|rej|swp|pyc|img|log|cmd)$|~$", path):
            yield path, 0, "the work of a tool: remove it, or ignore it"
        elif path in tree.binary and not path.endswith((".png", ".webp", ".ico", ".woff2")):
            yield path, 0, "a binary file"


RULES = {name[len("rule_"):].replace("_", "-"): function for name, function in sorted(globals().items())
         if name.startswith("rule_")}


def offences(tree, rule):
    return [f"{path}:{line}: {text}" if line else f"{path}: {text}" for path, line, text in RULES[rule](tree)]


def main():
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent.parent
    tree = Tree(root)
    failed = 0
    for rule in RULES:
        found = offences(tree, rule)
        if not found:
            print(f"PASS {rule}")
            continue
        failed += 1
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        print(f"FAIL {rule}: {found[0]}{more}")
        for line in found[1:]:
            print(f"    {line}")
    print(f"suite tidy: {len(RULES) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
