"""A flood of events must not take a whole core."""

from __future__ import annotations

from typing import Final

_BURST: Final = 2.0
_LONGEST: Final = 1.0


class Pace:
    """Allows a burst of 2 s of work; beyond it, as much rest as work. Rest that is taken anyway counts."""

    def __init__(self) -> None:
        self._credit = _BURST

    def rest(self, worked: float, idle: float) -> float:
        """The seconds to rest, 1 at most, after ``idle`` seconds of waiting and then ``worked`` seconds of work."""
        self._credit = min(_BURST, self._credit + idle) - worked
        if self._credit >= 0:
            return 0.0
        owed, self._credit = -self._credit, 0.0
        return min(owed, _LONGEST)
