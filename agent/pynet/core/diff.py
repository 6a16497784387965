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
    """The operations of a pass, adds first, and the conflicts found on the way (prefix to foreign route)."""

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
        adds, removes, withheld = self._at_key(want, at_key, elsewhere)
        removes += [Operation("delete", route) for route in elsewhere if route.protocol == self._protocol]
        if self._replace_foreign and not withheld:
            removes += [Operation("delete", r) for r in (*elsewhere, *at_key) if self._may_replace(r) and r != want]
        gone = {operation.route for operation in removes} | {o.route for o in adds if o.kind == "delete"}
        replaced = bool(adds)  # whatever stood first at our key gives way
        rest = [r for r in elsewhere if r not in gone] + [r for r in at_key if r not in gone and not replaced]
        rival = self._rival(want, rest, withheld)
        return Difference(tuple(adds), tuple(_once(removes)), rival, withheld)

    def _at_key(
        self, want: Route, at_key: list[Route], elsewhere: list[Route]
    ) -> tuple[list[Operation], list[Operation], bool]:
        """(adds, removes, withheld) for what stands at exactly our key."""
        if not at_key:
            if self._would_beat_foreign(want, elsewhere):
                return [], [], True
            return [Operation("add", want)], [], False
        touchable = [route for route in at_key if self._touchable(route)]
        if want in at_key:
            # Others at our key: those before ours (`ip route prepend`) hide it, those behind it would take over from it.
            return [], [Operation("delete", route) for route in touchable if route != want], False
        if at_key[0] in touchable or (self._replace_foreign and self._may_replace(at_key[0])):
            return [Operation("replace", want)], [Operation("delete", r) for r in touchable if r != at_key[0]], False
        return [], [], True

    def _would_beat_foreign(self, want: Route, elsewhere: list[Route]) -> bool:
        """IPv6: a static route "without metric" has 1024, so ours beside it would win silently: ours is withheld."""
        if want.prefix.family == 4 or self._replace_foreign or want.type != RTN_UNICAST:
            return False
        return any(route.metric > want.metric and route.protocol != self._protocol for route in elsewhere)

    def _touchable(self, route: Route) -> bool:
        return route.protocol == self._protocol or route.prefix in self._programmed

    def _may_replace(self, route: Route) -> bool:
        return route.protocol in _REPLACEABLE and route.type == RTN_UNICAST

    def _rival(self, want: Route, rest: Sequence[Route], withheld: bool) -> Route | None:
        """The foreign route that the kernel would choose over ``want``, or that ours was withheld for."""
        if want.type != RTN_UNICAST:
            return None  # our local unreachable route is meant to lose
        foreign = [route for route in rest if route != want and route.protocol != self._protocol]
        if withheld:
            return min(foreign, key=lambda route: route.metric, default=None)
        before_ours = [r for r in rest[: rest.index(want)] if r.metric == want.metric] if want in rest else []
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


def _once(operations: Iterable[Operation]) -> list[Operation]:
    return list(dict.fromkeys(operations))
