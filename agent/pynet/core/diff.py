"""Desired and actual routes in, route operations and conflicts out.

Routes are compared prefix by prefix. What the kernel holds at a prefix is a list, in the order in which the kernel prefers
routes of one metric. Whose a route is decides what may be done with it:

* ours: our protocol, or at exactly our key (prefix, table, metric, tos 0) while this process has programmed that key;
* foreign: any other. It is left alone; where the kernel prefers it to ours, or ours had to be withheld, that is a conflict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from pynet.core.model import (
    RTN_UNICAST,
    RTPROT_BOOT,
    RTPROT_KERNEL,
    RTPROT_STATIC,
    Operation,
    Prefix,
    Route,
)

ForeignPolicy = Literal["respect", "replace"]

_REPLACEABLE: Final = frozenset({RTPROT_BOOT, RTPROT_STATIC})


class Difference(NamedTuple):
    """What one prefix needs. ``adds`` come before ``removes`` when applied; ``rival`` is the foreign route that the kernel
    prefers or that made us withhold ours, None if ours is (or will be) the kernel's choice.
    """

    adds: tuple[Operation, ...] = ()
    removes: tuple[Operation, ...] = ()
    rival: Route | None = None
    withheld: bool = False


class Plan(msgspec.Struct):
    """The operations of a pass, adds first, and the conflicts found on the way: by prefix the foreign route, and whether
    ours is withheld for it.
    """

    adds: list[Operation] = []
    removes: list[Operation] = []
    departures: list[Operation] = []  # removes of prefixes that are no longer wanted: what the removal guard counts
    rivals: dict[Prefix, tuple[Route, bool]] = {}

    @property
    def operations(self) -> list[Operation]:
        """Everything in the order it is to be applied: no moment without a route that should be there."""
        return [*self.adds, *self.removes, *self.departures]


class Differ:
    """Compares by one protocol, table and foreign policy. ``programmed`` maps a prefix to the route that this process wrote."""

    def __init__(self, protocol: int, foreign: ForeignPolicy, programmed: Mapping[Prefix, Route]) -> None:
        self._protocol = protocol
        self._replace_foreign = foreign == "replace"
        self._programmed = programmed

    def plan(
        self, prefixes: Iterable[Prefix], desired: Mapping[Prefix, Route], actual: Mapping[Prefix, Sequence[Route]]
    ) -> Plan:
        """Compare at ``prefixes``; the result depends on nothing else."""
        plan = Plan()
        for prefix in prefixes:
            want = desired.get(prefix)
            have = actual.get(prefix, ())
            if want is None:
                plan.departures.extend(self._departure(prefix, have))
                continue
            if not have:
                plan.adds.append(Operation("add", want))
                continue
            if len(have) == 1 and have[0] == want:
                continue
            difference = self.compare(want, have)
            plan.adds.extend(difference.adds)
            plan.removes.extend(difference.removes)
            if difference.rival is not None:
                plan.rivals[prefix] = (difference.rival, difference.withheld)
        return plan

    def compare(self, want: Route, have: Sequence[Route]) -> Difference:
        """What it takes to make ``want`` the route at its key, given all routes ``have`` at its prefix."""
        at_key = [route for route in have if route.metric == want.metric and route.tos == 0]
        elsewhere = [route for route in have if not (route.metric == want.metric and route.tos == 0)]
        adds, withheld = self._adds(want, at_key, elsewhere)
        replaced = at_key[:1] if adds else []  # what stands first at our key gives way to ours in place
        removes = [
            Operation("delete", route)
            for route in have
            if route != want and route not in replaced and self._removable(route, at_key=route in at_key, withheld=withheld)
        ]
        gone = {operation.route for operation in removes}.union(replaced)
        rival = self._rival(want, [route for route in have if route not in gone], withheld)
        return Difference(adds, tuple(removes), rival, withheld)

    def _adds(self, want: Route, at_key: list[Route], elsewhere: list[Route]) -> tuple[tuple[Operation, ...], bool]:
        """The operation that brings ours in, if one is needed and allowed; and whether ours is withheld."""
        if want in at_key:
            return (), False
        if not at_key:
            withheld = self._would_beat_foreign(want, elsewhere)
            return () if withheld else (Operation("add", want),), withheld
        if self._touchable(at_key[0]) or (self._replace_foreign and _replaceable(at_key[0])):
            return (Operation("replace", want),), False
        return (), True

    def _removable(self, route: Route, *, at_key: bool, withheld: bool) -> bool:
        """Stale routes of ours go. At our key so do others that we may touch: before ours (`ip route prepend`) they hide it,
        behind it they would take over from it. With `foreign: replace`, boot and static ones go once ours is there.
        """
        if route.protocol == self._protocol or (at_key and self._touchable(route)):
            return True
        return self._replace_foreign and not withheld and _replaceable(route)

    def _would_beat_foreign(self, want: Route, elsewhere: list[Route]) -> bool:
        """IPv6: a static route "without metric" has 1024, so ours beside it would win silently: ours is withheld."""
        if want.prefix.family == 4 or self._replace_foreign or want.type != RTN_UNICAST:
            return False
        return any(route.metric > want.metric and route.protocol != self._protocol for route in elsewhere)

    def _touchable(self, route: Route) -> bool:
        return route.protocol == self._protocol or route.prefix in self._programmed

    def _rival(self, want: Route, rest: Sequence[Route], withheld: bool) -> Route | None:
        """The foreign route that the kernel would choose over ``want``, or that ours was withheld for."""
        if want.type != RTN_UNICAST:
            return None  # our local unreachable route is meant to lose
        # A route for a type of service is no rival: it takes the traffic that is marked so, and no other.
        foreign = [route for route in rest if route.protocol != self._protocol and not route.tos]
        if withheld:
            return min(foreign, key=lambda route: route.metric, default=None)
        before_ours = rest[: rest.index(want)] if want in rest else []
        better = [route for route in foreign if route.metric < want.metric or route in before_ours]
        return min(better, key=lambda route: route.metric, default=None)

    def _departure(self, prefix: Prefix, have: Sequence[Route]) -> list[Operation]:
        """Deletes for a prefix that is no longer wanted: ours by protocol, or still at the key that we programmed."""
        mine = self._programmed.get(prefix)
        gone = []
        for route in have:
            at_our_key = mine is not None and route.metric == mine.metric and route.tos == 0
            if route.protocol == self._protocol or (at_our_key and route.protocol != RTPROT_KERNEL):
                gone.append(Operation("delete", route))
        return gone


def _replaceable(route: Route) -> bool:
    return route.protocol in _REPLACEABLE and route.type == RTN_UNICAST
