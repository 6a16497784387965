"""When to try again what did not work: later each time, up to half a minute."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 30.0
_NEVER: Final = float("inf")


class Retry:
    """``at`` is when the next attempt is due, infinity if none is. Time is passed in, in seconds."""

    def __init__(self) -> None:
        self.at = _NEVER
        self._pause = 0.0

    @property
    def planned(self) -> bool:
        """Whether an attempt is to come."""
        return self.at < _NEVER

    def later(self, now: float, *, first: float) -> None:
        """Plan an attempt: after ``first`` seconds, or twice the pause before."""
        self._pause = min(max(first, 2 * self._pause), _LONGEST)
        self.at = now + self._pause

    def take(self, now: float) -> bool:
        """Whether the attempt is due; if so it counts as begun."""
        if now < self.at:
            return False
        self.at = _NEVER
        return True

    def done(self) -> None:
        """All is well: the next failure begins anew."""
        self.at, self._pause = _NEVER, 0.0
