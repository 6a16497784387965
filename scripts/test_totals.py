"""Add up pytest's JUnit reports, and fail where a test was skipped or a suite ran nothing: in CI both hide a hole.

Prints one line a suite and the totals last, as ``N passed, N failed, N skipped``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET


class Totals(NamedTuple):
    """How many tests of one report passed, failed (errors included), and were skipped, and why."""

    passed: int
    failed: int
    skipped: list[str]


def read(report: Path) -> Totals:
    """Read the totals of one JUnit file. Raises OSError or ParseError if it cannot be read."""
    passed, failed, skipped = 0, 0, []
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 (our own pytest wrote it)
        skip = case.find("skipped")
        if skip is not None:
            skipped.append(f"{case.get('classname')}::{case.get('name')}: {skip.get('message', '')}")
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        else:
            passed += 1
    return Totals(passed, failed, skipped)


def main(paths: list[str]) -> int:
    """Print the totals of the reports named; 1 if anything failed, was skipped, or did not run."""
    wrong = False
    passed, failed, skipped = 0, 0, 0
    for path in map(Path, paths):
        totals = read(path)
        passed, failed, skipped = passed + totals.passed, failed + totals.failed, skipped + len(totals.skipped)
        print(f"{path.stem}: {totals.passed} passed, {totals.failed} failed, {len(totals.skipped)} skipped")
        for line in totals.skipped:
            print(f"  skipped: {line}")
        wrong = wrong or totals.passed == 0
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if wrong or failed or skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
