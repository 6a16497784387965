"""What commands that print data share: --output, and text that is safe to show on a terminal."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """Add --output text|json, as ``args.output``."""
    parser.add_argument("--output", choices=("text", "json"), default="text", help="for a person, or for a program (text)")


def printable(text: str) -> str:
    """``text`` in one line, with everything that a terminal would obey made visible: a Node's name is not to be trusted."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as they must be; the last column is not padded."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)][:-1]
    padded = [[cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)] for row in cells]
    return ["  ".join(row).rstrip() for row in padded]


def duration(seconds: float) -> str:
    """A length of time as a person says it: 0.8s, 42s, 12m, 3h12m, 5d4h."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size}{unit}{rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole // 60}m" if whole >= 60 else f"{whole}s"
