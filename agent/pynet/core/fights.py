"""When somebody keeps undoing what we do: repair at once, but not for ever at full speed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

_WINDOW: Final = 10.0
_FREE_REPAIRS: Final = 20
_LONGEST: Final = 30.0


class _Round(NamedTuple):
    began: float
    repairs: int
    not_before: float
    pause: float


class Fights:
    """Counts repairs per thing (a prefix, say). The first 20 within 10 s are free; then each one doubles a pause, from 1 s to
    30 s. A thing left alone for twice its pause starts anew. Time is passed in, in seconds.
    """

    def __init__(self) -> None:
        self._rounds: dict[Hashable, _Round] = {}

    def __len__(self) -> int:
        return len(self._rounds)

    def repaired(self, thing: Hashable, now: float) -> None:
        """Count a repair of ``thing``."""
        last = self._rounds.get(thing)
        if last is None or now - last.began > max(_WINDOW, 2 * last.pause):
            last = _Round(now, 0, 0.0, 0.0)
        repairs = last.repairs + 1
        if repairs < _FREE_REPAIRS:
            self._rounds[thing] = last._replace(repairs=repairs)
            return
        pause = min(max(1.0, 2 * last.pause), _LONGEST)
        self._rounds[thing] = _Round(now, repairs, now + pause, pause)

    def not_before(self, thing: Hashable, now: float) -> float:
        """The time before which ``thing`` is to be left alone; 0 if it may be repaired now."""
        last = self._rounds.get(thing)
        return last.not_before if last is not None and last.not_before > now else 0.0

    def paused(self, now: float) -> list[Hashable]:
        """The things that are being left alone."""
        return [thing for thing, last in self._rounds.items() if last.not_before > now]

    def next_end(self, now: float) -> float:
        """When the first pause ends; infinity if there is none."""
        return min((last.not_before for last in self._rounds.values() if last.not_before > now), default=float("inf"))

    def prune(self, now: float) -> None:
        """Forget what has been quiet."""
        quiet = [t for t, last in self._rounds.items() if now - last.began > max(_WINDOW, 2 * last.pause)]
        for thing in quiet:
            del self._rounds[thing]
