"""When somebody keeps undoing what we do: repair at once, but not for ever at full speed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class _Round(NamedTuple):
    """``since`` the first of the free repairs, or the last of the others."""

    since: float
    repairs: int
    not_before: float
    pause: float


class Fights:
    """Counts repairs per thing (a prefix, a file). The first ``free`` within ``window`` seconds are free; then each one doubles
    a pause, from 1 s to ``longest``. A thing that stays right for ``window``, or twice its pause if that is longer, starts
    anew. Time is passed in, in seconds.
    """

    def __init__(self, free: int = 20, window: float = 10.0, longest: float = 30.0) -> None:
        self._free = free
        self._window = window
        self._longest = longest
        self._rounds: dict[Hashable, _Round] = {}

    def __len__(self) -> int:
        return len(self._rounds)

    def repaired(self, thing: Hashable, now: float) -> None:
        """Count a repair of ``thing``."""
        last = self._rounds.get(thing)
        if last is None or self._over(last, now):
            last = _Round(now, 0, 0.0, 0.0)
        repairs = last.repairs + 1
        if repairs < self._free:
            self._rounds[thing] = last._replace(repairs=repairs)
            return
        pause = min(max(1.0, 2 * last.pause), self._longest)
        self._rounds[thing] = _Round(now, repairs, now + pause, pause)

    def not_before(self, thing: Hashable, now: float) -> float:
        """The time before which ``thing`` is to be left alone; 0 if it may be repaired now."""
        last = self._rounds.get(thing)
        return last.not_before if last is not None and last.not_before > now else 0.0

    def told(self, thing: Hashable) -> str:
        """How often ``thing`` was repaired, and the pause that this has brought: for a person."""
        last = self._rounds[thing]
        return f"put back {last.repairs} times, now only after {last.pause:.0f} s"

    def next_end(self, now: float) -> float:
        """When the first pause ends; infinity if there is none."""
        return min((last.not_before for last in self._rounds.values() if last.not_before > now), default=float("inf"))

    def prune(self, now: float) -> None:
        """Forget what has been quiet."""
        self._rounds = {thing: last for thing, last in self._rounds.items() if not self._over(last, now)}

    def _over(self, last: _Round, now: float) -> bool:
        return now - last.since > max(self._window, 2 * last.pause)
