# SPDX-License-Identifier: GPL-2.0-only
"""What comparisons of documents with the tests of the driver share: the table of cases, and how problems are told."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "vm" / "cases"
_TABLE = (ROOT / "tests" / "vm" / "run").read_text(encoding="utf-8")


def is_run(case):
    return re.search(rf"^(?:first|short|full) .*\| {case} +\|", _TABLE, re.MULTILINE) is not None


def tell(suite, problems):
    """Ends the program: a line for each problem, then the verdict."""
    found = list(problems)
    for problem in found:
        print(problem)
    print(f"FAIL {suite}: see above" if found else f"PASS {suite}")
    print(f"suite {suite}: {0 if found else 1} passed, {1 if found else 0} failed, 0 skipped")
    sys.exit(1 if found else 0)
