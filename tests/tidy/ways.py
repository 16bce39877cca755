#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The table of ways and promises (docs/ways.md) and the tests that it names are the same.

Each row names a test that a case of its table has for each way; each such test has a row; and tests/vm/run runs each case.
"""
import re

from vm_table import CASES, ROOT, is_run, tell


def rows_of(text):
    cases = ()
    for line in text.splitlines():
        head = re.match(r"\| promise \| tests: ([a-z_, ]+) \|", line)
        if head:
            cases = tuple(head.group(1).split(", "))
        row = re.match(r"\| [^|]+ \| `([a-z0-9-]+)` \|(.*)\|$", line)
        if row:
            yield cases, row.group(1), row.group(2).split("|")


def problems():
    known = {path.stem: re.findall(r"^each ([a-z0-9-]+) ", path.read_text(encoding="utf-8"), re.MULTILINE)
             for path in sorted(CASES.glob("ways*.sh"))}
    told, numbers = set(), set()
    text = (ROOT / "docs" / "ways.md").read_text(encoding="utf-8")
    for cases, name, cells in rows_of(text):
        if name not in [test for case in cases for test in known.get(case, [])]:
            yield f"docs/ways.md: {name} is no test of {', '.join(cases)}"
        if len(cells) != 4:
            yield f"docs/ways.md: {name} has {len(cells)} cells, and there are four ways"
        told.add(name)
        numbers |= {int(number) for cell in cells for number in re.findall(r"\((\d+)\)", cell)}
    reasons = {int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}
    if numbers != reasons:
        yield f"docs/ways.md: numbers without a reason, or reasons without a number: {sorted(numbers ^ reasons)}"
    for case, tests in known.items():
        for name in tests:
            if name not in told:
                yield f"tests/vm/cases/{case}.sh: {name} has no row in docs/ways.md"
        if not is_run(case):
            yield f"tests/vm/cases/{case}.sh: tests/vm/run never runs it"


if __name__ == "__main__":
    tell("ways", problems())
