"""Short-lived programs of the distribution (nft, iptables): found, run with a deadline, always reaped, errors in one line."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STANDARD_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
DEADLINE: Final = 10.0
"""Seconds after which a program that still runs is killed."""


class CommandError(RuntimeError):
    """A program could not be run, failed or took too long. ``text`` is its own words in one line; ``status`` its exit status,
    None if it has none.
    """

    def __init__(self, name: str, text: str, status: int | None = None) -> None:
        super().__init__(f"{name}: {text}")
        self.text = text
        self.status = status


class MissingError(CommandError):
    """The program is not installed."""


def find(name: str) -> str | None:
    """The path of a program, None if it is not installed."""
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    """Ours, then the folders of a system's programs: a service's PATH may lack the sbin ones."""
    return ":".join(filter(None, (os.environ.get("PATH"), STANDARD_PATH)))


def run(
    arguments: Sequence[str],
    data: bytes = b"",
    *,
    started: Callable[[int], None] | None = None,
    deadline: float = DEADLINE,
) -> bytes:
    """Run a program with ``data`` as its standard input; return its standard output.

    ``started`` is called with the child's process id before it is given its input. Raises CommandError, MissingError.
    """
    name = arguments[0]
    path = find(name)
    if path is None:
        raise MissingError(name, f"not installed (looked in {_search_path()})")
    try:
        child = subprocess.Popen(
            [path, *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": _search_path(), "LC_ALL": "C"},  # errors are told apart by their words
        )
    except OSError as error:
        raise CommandError(name, f"cannot be started: {error.strerror}") from None
    with child:
        try:
            if started is not None:
                started(child.pid)
            said, complaint = child.communicate(data, timeout=deadline)
        except subprocess.TimeoutExpired:
            raise CommandError(name, f"killed after {deadline:g} s") from None
        finally:
            child.kill()  # nothing once it has ended; the with statement reaps it
    if child.returncode:
        raise CommandError(name, _words(complaint) or f"exit status {child.returncode}", child.returncode)
    return said


def _words(complaint: bytes) -> str:
    """What a program said on its standard error: the first line that says something. iptables puts remarks before it."""
    for line in complaint.decode(errors="replace").splitlines():
        words = " ".join(line.split())
        if words and not words.startswith("#"):
            return words
    return ""
