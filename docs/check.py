#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The documents say nothing that is not there.

    docs/check.py [NAME...]      NAME: parts of test names

Paths in backticks exist; relative links and anchors resolve; options are the programs' own, and each is in its
manual page; attributes, parameters and defaults are the driver's; messages are in the source; README.md and
README.zh-CN.md are level; the Python example of the protocol does what it shows; manual pages are clean.

Environment: NETBLK_OUTPUT, the folder with netblk_server and netblk (default build/output).
"""

import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUTPUT = pathlib.Path(os.environ.get("NETBLK_OUTPUT", ROOT / "build" / "output"))
DOCUMENTS = [ROOT / name for name in ("README.md", "README.zh-CN.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "test-report.md")
MAN_PAGES = sorted((ROOT / "docs" / "man").glob("*.[0-9]"))
# Folders of the project: a word in backticks that begins with one of them is a path.
TOP = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "build"}
# Options that belong to the programs of others, which the documents name too.
FOREIGN = {"--component", "--reload", "--shared", "--gtest_filter", "--preset", "--build", "--target", "--install", "--prefix", "--cflags", "--libs", "--map", "--output",
           "--image-opts", "--sparse"}
SCRIPT_OPTIONS = {"build.sh": {"--keep", "--vm", "--full"}, "tests/": {"--list", "--full"}}

# Pages of the commands of netblk; the others are in docs/attach.md.
GUIDES = {"volume": "volumes.md", "copy": "copy.md", "bench": "bench.md", "replay": "replay.md", "info": "exports.md", "list": "exports.md",
          "table": "boot.md", "status": "status.md", "top": "status.md"}

results = []


def test(function):
    results.append(function)
    return function


class Fail(Exception):
    pass


class Skip(Exception):
    pass


def fail_if(problems):
    if problems:
        raise Fail("; ".join(problems[:5]) + (f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def without_fences(text):
    return re.sub(r"^```.*?^```[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def code_spans(text):
    return re.findall(r"`([^`\n]+)`", without_fences(text))


def code_blocks(text):
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```[ \t]*$", text, re.MULTILINE | re.DOTALL)


def anchors(text):
    found = set()
    for title in re.findall(r"^#{1,6} (.+)$", without_fences(text), re.MULTILINE):
        title = title.replace("`", "").strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


def run(*command):
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=60, check=False).stdout


def program(name):
    path = OUTPUT / name
    if not path.exists():
        raise Skip(f"{path} is not built")
    return path


def options_of_help(text):
    """Long options, as the first word of a line of --help has them."""
    return set(re.findall(r"^\s+(?:-\w,)?(--[\w-]+)", text, re.MULTILINE))


def commands_of_help(text):
    return [word for some in re.findall(r"^Subcommands:\n((?:  .*\n)+)", text, re.MULTILINE)
            for word in re.findall(r"^  (\w+)", some, re.MULTILINE)]


def options_of_commands():
    """Those of each command of netblk, with those of the commands that it has in turn."""
    client = program("netblk")
    found = {}
    for word in commands_of_help(run(client, "--help")):
        text = run(client, word, "--help")
        found[word] = options_of_help(text)
        for inner in commands_of_help(text):
            deeper = run(client, word, inner, "--help")
            found[word] |= options_of_help(deeper).union(
                *(options_of_help(run(client, word, inner, last, "--help")) for last in commands_of_help(deeper)))
    return found


def options_of_programs():
    server, client = program("netblk_server"), program("netblk")
    of_client = options_of_help(run(client, "--help")).union(*options_of_commands().values())
    return {"netblk_server": options_of_help(run(server, "--help")), "netblk": of_client}


def man_text(path):
    """The page as a reader sees it, on long lines and without overstriking."""
    if not shutil.which("groff"):
        raise Skip("groff is not installed")
    done = subprocess.run(["groff", "-mandoc", "-Tascii", "-P-cbou", "-rLL=300n", str(path)], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, errors="replace", timeout=60, check=True)
    return done.stdout


@test
def paths_exist():
    problems = []
    for document in DOCUMENTS:
        for span in code_spans(document.read_text(encoding="utf-8")):
            for word in span.split():
                word = word.rstrip(",;").lstrip("./")
                head = word.split("/")[0]
                if "/" not in word or head not in TOP or word.startswith("build/"):
                    continue
                if not any(True for _ in ROOT.glob(word.rstrip("/"))):
                    problems.append(f"{name_of(document)}: `{word}` does not exist")
    fail_if(problems)


@test
def commands_name_files_that_exist():
    """Scripts that a code block runs by a path of the project."""
    problems = []
    for document in DOCUMENTS:
        for language, block in code_blocks(document.read_text(encoding="utf-8")):
            if language not in ("", "sh"):
                continue
            for word in re.findall(r"(?<![\w/.:=])(?:\./)?((?:" + "|".join(sorted(TOP)) + r")/[\w./-]+)", block):
                if not (ROOT / word).exists():
                    problems.append(f"{name_of(document)}: {word} does not exist")
    fail_if(problems)


@test
def links_resolve():
    problems = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(text)):
            if re.match(r"\w+:", target):
                continue
            path, _, anchor = target.partition("#")
            to = (document.parent / path).resolve() if path else document
            if not to.exists():
                problems.append(f"{name_of(document)}: link to {target}: no such file")
            elif anchor and anchor not in anchors(to.read_text(encoding="utf-8")):
                problems.append(f"{name_of(document)}: link to {target}: no such heading")
    fail_if(problems)


@test
def every_document_is_reached():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fail_if([f"README.md does not lead to {name_of(path)}" for path in DOCUMENTS + MAN_PAGES
             if path.name not in readme and path.name != "README.md"])


@test
def options_exist():
    """An option in a document or manual page is one of our programs', or of the script on its line."""
    known = options_of_programs()
    ours = known["netblk_server"] | known["netblk"]
    problems = []
    for document in DOCUMENTS:
        for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
            allowed = ours | FOREIGN
            for script, options in SCRIPT_OPTIONS.items():
                allowed = allowed | options if script in line or "`run`" in line else allowed
            if "bench/" in line:
                continue  # bench/README.md owns them
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
                # `--keep` and its like are build.sh's wherever they stand
                if option not in allowed and option not in SCRIPT_OPTIONS["build.sh"] | {"--help", "--version"}:
                    problems.append(f"{name_of(document)}:{number}: no program has {option}")
    for name, page in (("netblk_server", "netblk_server.8"), ("netblk", "netblk.8")):
        text = man_text(ROOT / "docs" / "man" / page)
        for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known[name]:
            problems.append(f"{page}: {name} has no {option}")
    fail_if(problems)


@test
def commands_use_their_own_options():
    """A command line of a code block gives each program options of that program."""
    known = options_of_programs()
    problems = []
    for document in DOCUMENTS:
        for _, block in code_blocks(document.read_text(encoding="utf-8")):
            for line in block.splitlines():
                found = re.match(r"(?:\w+=\$\()?(?:\./)?(netblk_server|netblk)\s(.*)", line)
                if found:
                    unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", found.group(2))) - known[found.group(1)]
                    problems += [f"{name_of(document)}: '{line}': no {option}" for option in sorted(unknown)]
    fail_if(problems)


@test
def manual_pages_have_every_option():
    known = options_of_programs()
    problems = []
    for name, page in (("netblk_server", "netblk_server.8"), ("netblk", "netblk.8")):
        text = man_text(ROOT / "docs" / "man" / page)
        words = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
        problems += [f"{page} does not have {option}" for option in sorted(known[name] - words)]
    guide = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    problems += [f"docs/server.md does not have {option}" for option in sorted(known["netblk_server"]) if option not in guide]
    for command, options in options_of_commands().items():
        name = GUIDES.get(command, "attach.md")
        guide = (ROOT / "docs" / name).read_text(encoding="utf-8")
        problems += [f"docs/{name} does not have {option} of netblk {command}"
                     for option in sorted(options - {"--version", "--help"}) if option not in guide]
    fail_if(problems)


def driver_source():
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "kernel").glob("net_block*.[ch]")))


@test
def parameters_are_the_drivers():
    """docs/driver.md and net_block_driver(4) have every parameter, with its default."""
    source = driver_source() + (ROOT / "protocol" / "netblk_wire.h").read_text(encoding="utf-8")
    config = (ROOT / "kernel" / "net_block_config.c").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^static [\w ]+?\*?(\w+) = (\w+|\"\w*\");\nmodule_param\(\1,", config, re.MULTILINE))
    fields = dict(re.findall(r"^\t\.(\w+) = (\w+),", config, re.MULTILINE))
    defaults |= {name: fields[name] for name in re.findall(r"^module_param_named\((\w+),", config, re.MULTILINE)}
    if len(defaults) < 9:
        raise Fail(f"only {len(defaults)} parameters were found in the source: this test does not see them any more")
    guide = (ROOT / "docs" / "driver.md").read_text(encoding="utf-8")
    table = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", guide.split("## Attributes")[0], re.MULTILINE)}
    page = man_text(ROOT / "docs" / "man" / "net_block_driver.4")
    problems = []
    for name, value in defaults.items():
        macro = re.search(rf"#define {value} (\S+)", source)
        value = (macro.group(1) if macro else value).strip('"')
        if table.get(name) != (value or "empty"):
            problems.append(f"docs/driver.md: {name} is {table.get(name)}, the source says {value}")
        if f"{name}={value}" not in page:
            problems.append(f"net_block_driver.4 does not have {name}={value}")
    problems += [f"docs/driver.md: no parameter {name}" for name in table.keys() - defaults.keys()]
    fail_if(problems)


@test
def attributes_are_the_drivers():
    source = "".join((ROOT / "kernel" / name).read_text(encoding="utf-8") for name in ("net_block_sysfs.c", "net_block_sysfs_session.c"))
    names = set(re.findall(r"DEVICE_ATTR_(?:RO|WO|RW)\((\w+)\)", source)) | set(re.findall(r"__ATTR\((\w+),", source))
    if len(names) < 26:
        raise Fail(f"only {len(names)} attributes were found in the source: this test does not see them any more")
    problems = []
    for document in (ROOT / "README.md", ROOT / "README.zh-CN.md"):
        rows = set(re.findall(r"^\| `(\w+)` \|", re.split(r"^###.*/sys/block/netblk.*$", document.read_text(encoding="utf-8"),
                                                           flags=re.MULTILINE)[1].split("\n## ")[0], re.MULTILINE))
        problems += [f"{document.name}: no row for {name}" for name in sorted(names - rows)]
        problems += [f"{document.name}: the driver has no {name}" for name in sorted(rows - names)]
    guide = (ROOT / "docs" / "driver.md").read_text(encoding="utf-8")
    page = man_text(ROOT / "docs" / "man" / "net_block_driver.4")
    problems += [f"docs/driver.md does not have {name}" for name in sorted(names) if f"`{name}`" not in guide]
    problems += [f"net_block_driver.4 does not have {name}" for name in sorted(names) if name not in page]
    # every file that the driver makes in sysfs
    whole = driver_source()
    made = set(re.findall(r"(?:DEVICE|BUS)_ATTR_(?:RO|WO|RW)\((\w+)\)", whole)) | set(re.findall(r"__ATTR\((\w+),", whole))
    made |= set(re.findall(r"^NETBLK_(?:COUNT|LATENCY|SPLIT)\((\w+),", whole, re.MULTILINE))
    made -= {"name"}  # a macro's own word
    text = (ROOT / "kernel" / "ABI-sysfs-netblk").read_text(encoding="utf-8")
    described = set(re.findall(r"^What:\t\t/sys/(?:block/netblk|bus/netblk)/(?:\w+/)?(\w+)$", text, re.MULTILINE))
    problems += [f"ABI-sysfs-netblk does not have {name}" for name in sorted(made - described)]
    problems += [f"ABI-sysfs-netblk: the driver has no {name}" for name in sorted(described - made)]
    fail_if(problems)


def literals():
    """All string literals of the sources, each with its place holders made alike."""
    text = []
    for folder in ("kernel", "src", "tools"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".c", ".cc", ".h") and "_test" not in path.name:
                source = path.read_text(encoding="utf-8")
                # neighbours are one literal
                source = re.sub(r'"\s*\n?\s*(?:NETBLK_\w+\s*)?"', "", source)
                text += re.findall(r'"((?:[^"\\\n]|\\.)*)"', source)
    # of the scripts, whole
    text += [path.read_text(encoding="utf-8") for path in sorted((ROOT / "packaging" / "initramfs-tools").rglob("*")) if path.is_file()]
    return "\n".join(text)


@test
def messages_are_in_the_source():
    """The words between the place holders of each message in docs/troubleshooting.md are in some string literal."""
    source = re.sub(r"\\(.)", r"\1", literals())
    document = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    # what other programs and the kernel say
    foreign = re.compile(r"insmod|rmmod|write error|superblock|wrong fs|partition table|Unknown symbol|Required key|`dead`")
    # words of errno, and parts of one message in different places
    errno_text = re.compile(r"No such file or directory|Permission denied|Address already in use|Cannot assign requested "
                            r"address|Too many open files|-E[A-Z]+")
    problems = []
    rows = 0
    for row in re.findall(r"^\| (.+?) \| .*\|$", document, re.MULTILINE):
        if foreign.search(row):
            continue
        for message in re.findall(r"`([^`]+)`", row):
            rows += 1
            message = errno_text.sub("\0", message)
            for part in re.split(r"\0|\.\.\.|0xNN|33554432|\b(?:[A-Z]+:P|[A-Z]{2,}|[NMPA])\b|[:;'\"()<>,]|nbd://|\d+ s\b|^netblk |\bre(?=connected)|\b(?:read|write) of\b", message):
                part = part.strip()
                # a word at either end may stand for a place holder
                tries = [part] + ([part.rsplit(" ", 1)[0], part.split(" ", 1)[1]] if part.count(" ") > 1 else [])
                if len(part) > 3 and not any(words in source for words in tries) and not part.startswith("/dev/"):
                    problems.append(f"'{message}': no literal has '{part}'")
    if rows < 60:
        raise Fail(f"only {rows} messages were found: this test does not see them any more")
    fail_if(problems)


def commands(block):
    """A block without comments and without what only its language changes."""
    lines = (re.sub(r"\s+#.*$", "", line).rstrip() for line in block.splitlines())
    return [line for line in lines if line]


@test
def readmes_are_level():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    problems = []
    levels = [re.findall(r"^(#{1,6}) ", without_fences(text), re.MULTILINE) for text in (english, chinese)]
    if levels[0] != levels[1]:
        problems.append(f"headings: {len(levels[0])} and {len(levels[1])}, or of other levels")
    blocks = [code_blocks(text) for text in (english, chinese)]
    if [language for language, _ in blocks[0]] != [language for language, _ in blocks[1]]:
        problems.append(f"code blocks: {len(blocks[0])} and {len(blocks[1])}, or of other languages")
    else:
        for (language, left), (_, right) in zip(*blocks):
            if language != "mermaid" and commands(left) != commands(right):
                problems.append(f"a code block differs: {left.splitlines()[0]!r}")
    for what, pattern in (("table rows", r"^\|.*\|$"), ("list entries", r"^- "), ("links", r"\]\([^)]+\)")):
        counts = [len(re.findall(pattern, without_fences(text), re.MULTILINE)) for text in (english, chinese)]
        if counts[0] != counts[1]:
            problems.append(f"{what}: {counts[0]} and {counts[1]}")
    fail_if(problems)


@test
def the_manuals_quick_start_is_whole():
    """Each command of the manual is in the page, letter by letter."""
    text = (ROOT / "docs" / "quick-start-driver.md").read_text(encoding="utf-8")
    wanted = """./netblk_server 10809 /tmp/netblk_storage.img 100
insmod net_block_driver.ko
cat /sys/block/netblk/state
mkfs.ext4 /dev/netblk ; mkdir -p /mnt/netblk ; mount /dev/netblk /mnt/netblk
echo "Hello Network Block Device!" > /mnt/netblk/test.txt ; cat /mnt/netblk/test.txt
mkfs.xfs /dev/netblk
mkfs.btrfs /dev/netblk
df -h | grep netblk ; mount | grep netblk
dd if=/dev/urandom of=/mnt/netblk/largefile bs=1M count=10 ; sync
dd if=/dev/zero of=/mnt/netblk/perftest bs=1M count=100 oflag=direct ; echo 3 > /proc/sys/vm/drop_caches
dd if=/mnt/netblk/perftest of=/dev/null bs=1M iflag=direct
umount /mnt/netblk ; echo "1" > /sys/block/netblk/disconnect ; rmmod net_block_driver ; pkill netblk_server
echo "192.168.1.100" > /sys/block/netblk/server_ip
echo "20000" > /sys/block/netblk/server_port"""
    lines = {line for _, block in code_blocks(text) for line in block.splitlines()}
    fail_if([f"docs/quick-start-driver.md does not have '{line}'" for line in wanted.splitlines() if line not in lines])


def run_example(page):
    """The Python of a page against a server, and its output beside the text block that follows it."""
    server = program("netblk_server")
    blocks = code_blocks((ROOT / "docs" / page).read_text(encoding="utf-8"))
    at = next(i for i, (language, _) in enumerate(blocks) if language == "python")
    example, expected = blocks[at][1], blocks[at + 1][1]
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = os.path.join(folder, "log")
        with open(log, "w", encoding="utf-8") as out:
            process = subprocess.Popen([server, "--export", f"disk=file:{folder}/disk.img?size=100M", "--listen",
                                        f"netblk://127.0.0.1:{port}"], stdout=out, stderr=out)
        try:
            for _ in range(300):
                if "listening on" in pathlib.Path(log).read_text(encoding="utf-8"):
                    break
                if process.poll() is not None:
                    raise Fail(f"the server ended: {pathlib.Path(log).read_text(encoding='utf-8')}")
                time.sleep(0.05)
            done = subprocess.run([sys.executable, "-c", example.replace("10809", str(port))], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, timeout=60, check=False)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    if done.stdout != expected:
        raise Fail(f"{page}: it printed {done.stdout!r}")


@test
def examples_of_the_protocols_run():
    for page in ("protocol-netblk1.md", "protocol-netblk2.md"):
        run_example(page)


@test
def manual_pages_are_clean():
    problems, tools = [], [tool for tool in ("groff", "mandoc") if shutil.which(tool)]
    if not tools:
        raise Skip("neither groff nor mandoc is installed")
    for page in MAN_PAGES:
        if "groff" in tools:
            problems += [f"groff: {line}" for line in run("groff", "-mandoc", "-ww", "-z", page).splitlines()]
        if "mandoc" in tools:
            found = run("mandoc", "-Tlint", page).splitlines()
            # our pages are not installed where mandoc looks for those that they refer to
            problems += [line for line in found if "referenced manual not found" not in line and "mandoc.db" not in line]
    fail_if(problems)


def main():
    passed = failed = skipped = 0
    for function in results:
        name = function.__name__
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        try:
            function()
        except Skip as reason:
            skipped += 1
            print(f"SKIP {name}: {reason}")
        except Fail as reason:
            failed += 1
            print(f"FAIL {name}: {reason}")
        except Exception as reason:  # the suite goes on with the next
            failed += 1
            print(f"FAIL {name}: {type(reason).__name__}: {reason}")
        else:
            passed += 1
            print(f"PASS {name}")
    print(f"suite docs: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
