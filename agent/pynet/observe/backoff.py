"""How long to wait after a failure: jittered, exponential, and back to the first step after a success."""

from __future__ import annotations

from typing import Final

import tenacity

_UNANSWERED_CAP: Final = 10.0


class Backoff:
    """Waits in seconds, each random between 0 and a bound that grows from ``first`` to ``cap``.

    Without an answer the bound grows by a quarter each time, up to 10 s, so that a server that restarts is found again soon; it
    costs the server little. With an answer (5xx, 403, a broken stream) it doubles.
    """

    def __init__(self, *, first: float = 0.2, cap: float = 30.0) -> None:
        self._unanswered = tenacity.wait_random_exponential(multiplier=first, max=min(cap, _UNANSWERED_CAP), exp_base=1.25)
        self._answered = tenacity.wait_random_exponential(multiplier=first, max=cap, exp_base=2)
        self._last: bool | None = None
        self._state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})

    def next(self, *, answered: bool) -> float:
        """Seconds to wait now."""
        wait = self._answered if answered else self._unanswered
        if answered != self._last:  # another kind of failure: a server that is back must not pay for the time it was away
            self._last, self._state.attempt_number = answered, 1
        seconds = wait(self._state)
        self._state.attempt_number += 1
        return seconds

    def reset(self) -> None:
        """Begin anew: it went well."""
        self._state.attempt_number = 1
