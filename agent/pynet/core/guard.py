"""The removal guard: most routes do not go at once on the word of one list.

An API server restored from a backup, a bug in a controller, or `kubectl delete nodes --all` would otherwise cut off every pod
within a second. A removal of more than ``fraction`` of our routes that is also more than ``minimum`` routes, or that would
leave none of several, is held until a second consistent list, asked for after the hold began, agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from pynet.core.claims import Claim
from pynet.core.model import RTN_UNREACHABLE, Family, Operation, Prefix

_NEVER: Final = float("inf")
_SPREAD: Final = 10.0  # seconds
_LISTS_A_SECOND: Final = 500


class GuardSettings(msgspec.Struct, frozen=True):
    """``fraction`` of the routes (0..1), and ``minimum`` number of them."""

    fraction: float = 0.5
    minimum: int = 10


class Ruling(NamedTuple):
    """Whether departures may happen, and what is new about it, for the log ("": nothing)."""

    allowed: bool
    event: str = ""


class Held(NamedTuple):
    """A removal that waits. ``since`` is the monotonic time at which it was first held."""

    since: float
    routes: int
    reason: str


class RemovalGuard:
    """Judges the departures of each pass. ``held`` is the removal that waits, ``kept`` the peers that it concerns, ``prefixes``
    everywhere to look again meanwhile, ``relist_at`` when to ask for the list that decides. ``spread`` draws a number of
    seconds up to its argument.
    """

    def __init__(self, settings: GuardSettings, spread: Callable[[float], float]) -> None:
        self.held: Held | None = None
        self.kept: frozenset[Claim] = frozenset()
        self.prefixes: frozenset[Prefix] = frozenset()
        self.relist_at = _NEVER
        self._settings = settings
        self._spread = spread

    def judge(self, departures: Sequence[Operation], present: dict[Family, int], *, listed_at: float, now: float) -> Ruling:
        """Whether ``departures`` may happen. ``listed_at``: when the last complete, consistent list was asked for."""
        reason = too_many(departures, present, self._settings)
        if not reason:
            return self._let_go("removal_no_longer_large" if departures else "held_routes_wanted_again")
        if self.held is not None and listed_at > self.held.since:
            return self._let_go("removal_confirmed")
        first = self.held is None
        self._hold(departures, reason, now)
        if first:
            # A thousand agents must not all ask for a list in the same moment.
            self.relist_at = now + self._spread(min(_SPREAD, sum(present.values()) / _LISTS_A_SECOND))
        return Ruling(allowed=False, event="removal_held" if first else "")

    def relist(self, now: float) -> bool:
        """Whether to ask for a list now; True once."""
        if now < self.relist_at:
            return False
        self.relist_at = _NEVER
        return True

    def _hold(self, departures: Sequence[Operation], reason: str, now: float) -> None:
        since = self.held.since if self.held else now
        self.prefixes = frozenset(route.prefix for _, route in departures)
        self.kept = frozenset(Claim(route.prefix, route.gateway) for _, route in departures if route.type != RTN_UNREACHABLE)
        self.held = Held(since, len(self.prefixes), reason)

    def _let_go(self, event: str) -> Ruling:
        before, self.held = self.held, None
        self.kept, self.prefixes, self.relist_at = frozenset(), frozenset(), _NEVER
        return Ruling(allowed=True, event=event if before else "")


def too_many(departures: Sequence[Operation], present: dict[Family, int], settings: GuardSettings) -> str:
    """Why ``departures`` must not happen at once, "" if they may. ``present`` counts the peers with a route in the kernel, per
    family; each family is judged on its own, and one that is too much holds all of them.
    """
    leaving = _per_family({route.prefix for _, route in departures if route.type != RTN_UNREACHABLE})
    for family, count in leaving.items():
        total = present.get(family, 0)
        many = count > settings.fraction * total
        if many and (count > settings.minimum or (count >= total > 1)):
            return f"{count} of {total} IPv{family} routes would go at once"
    return ""


def _per_family(prefixes: Iterable[Prefix]) -> dict[Family, int]:
    counts: dict[Family, int] = {4: 0, 6: 0}
    for prefix in prefixes:
        counts[prefix.family] += 1
    return counts
