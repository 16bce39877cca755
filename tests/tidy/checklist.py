#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The driver's checklist (docs/driver-checklist.md) and the tests that it names are the same.

Each of K1 to K24 has a row; each test of a row is in its case, with the row's number in its name; each test with a number in
its name is in the row; and each case that is named has a row in the table of tests/vm/run.
"""
import re

from vm_table import CASES, ROOT, is_run, tell

NUMBERS = range(1, 25)


def tests_of(case):
    text = (CASES / f"{case}.sh").read_text(encoding="utf-8")
    return re.findall(r"\b(?:t|both) ([A-Za-z0-9$_-]*K\d[^\s;]*)", text)


def numbers_in(name):
    return {int(number) for number in re.findall(r"(?:^|-)K(\d+)(?=-)", name)}


def matches(pattern, name):
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def problems():
    rows, known = {}, {}
    for line in (ROOT / "docs" / "driver-checklist.md").read_text(encoding="utf-8").splitlines():
        found = re.match(r"\| (\d+) \| [^|]+ \| ([^|]+) \|", line)
        if found:
            rows[int(found.group(1))] = {part.split(":")[0].strip(): re.findall(r"`([^`]+)`", part)
                                         for part in found.group(2).split(";")}
    for path in sorted(CASES.glob("*.sh")):
        known[path.stem] = tests_of(path.stem)
    for number in NUMBERS:
        if number not in rows:
            yield f"docs/driver-checklist.md: no row of K{number}"
    for number, cases in rows.items():
        for case, patterns in cases.items():
            if not is_run(case):
                yield f"docs/driver-checklist.md: K{number} names the case {case}, which tests/vm/run never runs"
            for pattern in patterns:
                if not any(matches(pattern, name) and number in numbers_in(name) for name in known.get(case, [])):
                    yield f"docs/driver-checklist.md: K{number} names {pattern}, which tests/vm/cases/{case}.sh does not have"
    for case, names in known.items():
        for name in names:
            for number in numbers_in(name):
                if not any(matches(pattern, name) for pattern in rows.get(number, {}).get(case, [])):
                    yield f"tests/vm/cases/{case}.sh: the test {name} is not in the row of K{number} of docs/driver-checklist.md"


if __name__ == "__main__":
    tell("checklist", problems())
