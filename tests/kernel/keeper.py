"""A part of the agent that keeps rules (Masquerade, Forward), at work in a namespace."""

from __future__ import annotations

import queue
from typing import Any, Self

import structlog

from tests.support.netns import Namespace
from tests.support.waiting import until


class Keeper:
    """``it``, what ``make`` made, and what it told; ``usual`` is what it is given if nothing is said. A context manager."""

    def __init__(self, make: Any, netns: Namespace, usual: Any) -> None:
        self.netns, self.usual = netns, usual
        self.results: queue.Queue[tuple[str, str]] = queue.Queue()
        self.drifts: queue.Queue[tuple[str, float]] = queue.Queue()
        self.it = make(lambda *result: self.results.put(result), lambda *drift: self.drifts.put(drift), structlog.get_logger())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.it.stop(15)

    def submit(self, wanted: Any = None) -> None:
        with self.netns.entered():
            self.it.submit(wanted or self.usual)

    def is_settled(self, wanted: Any = None) -> bool:
        return self.it._applier.settled(wanted or self.usual)

    def settle(self, wanted: Any = None) -> None:
        self.submit(wanted)
        until(lambda: self.is_settled(wanted), f"applied (error: {self.it.error})")
        assert self.it.ok

    def resync(self) -> None:
        self.it.resync()
        until(self.it._applier.idle, "resync")
