"""Waiting for a condition, with a bound: what tests do instead of sleeping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable


T = TypeVar("T")


def until(probe: Callable[[], T], what: str, *, seconds: float = 10.0) -> T:
    """Call ``probe`` until its result is true, and return that; an AssertionError (or OSError) of it counts as "not yet".

    Raises AssertionError with ``what`` was awaited and how the last probe ended.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object
        try:
            result = probe()
            if result:
                return result
            last = result
        except (AssertionError, OSError) as not_yet:
            last = f"{type(not_yet).__name__}: {not_yet}"
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}; last seen: {last}")
        time.sleep(0.01)
