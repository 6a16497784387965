"""When somebody keeps undoing what we put right, a file or a Node condition: at once a few times, then ever more slowly."""

from __future__ import annotations

from typing import Final

_QUIET: Final = 60.0  # seconds without a put-back after which the contest is over


class Contest:
    """Counts put-backs of one thing. The first ``free`` of them are not held back; then ``pause`` doubles from 1 s to 60 s.

    Slower than core.fights, which is about routes: each put-back here is a reload of the container runtime, or a write to the
    API server. A thing that stayed right for a minute and twice the last pause starts anew. Time is passed in, in seconds.
    """

    def __init__(self, free: int = 5, longest: float = 60.0) -> None:
        self.count = 0
        self.pause = 0.0
        self._free = free
        self._longest = longest
        self._last = 0.0

    def __str__(self) -> str:
        return f"put back {self.count} times, now only after {self.pause:.0f} s"

    def put_back(self, now: float) -> None:
        """Count one put-back."""
        if self.count and now - self._last > _QUIET + 2 * self.pause:
            self.count = 0
        self.count += 1
        self._last = now
        beyond = self.count - self._free
        self.pause = 0.0 if beyond < 0 else min(self._longest, 2.0 ** min(beyond, 16))

    def wait(self, now: float) -> float:
        """Seconds to leave the thing alone for; 0 if it may be put back now."""
        return max(0.0, self._last + self.pause - now)
