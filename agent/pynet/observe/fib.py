"""The kernel's routes as last seen: dumped whole, then kept up to date from the kernel's own notifications.

What is done about a route follows from this mirror, never from an event by itself. Where an event leaves room for doubt (an
order of routes that it does not tell, an overrun), the mirror calls itself stale and is dumped again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import msgspec

from pynet.core.addresses import contains, covers, is_ipv6_link_local
from pynet.core.host import FibEntry, relevant
from pynet.core.model import FAMILIES, RT_TABLE_MAIN, RTN_UNICAST, RTN_UNREACHABLE, RTPROT_RA, Family, Prefix, Route
from pynet.drivers.netlink import AddressEvent, LinkEvent, Monitor, Netconf, Overrun, PortLeft, RouteEvent, RouteSocket

_FOREIGN_LIMIT: Final = 50_000
"""A node with a full Internet table holds a million foreign prefixes. Beyond this many, only those at a prefix of ours are
kept, and a new peer costs a dump instead of a look."""


class Interest(msgspec.Struct):
    """Which kernel events matter: the rest (a pod's veth coming up, a neighbour's route) is not worth a pass."""

    wanted: Mapping[Prefix, object] = {}
    own_cidrs: tuple[Prefix, ...] = ()
    oifs: Collection[int] = ()
    link_named: Callable[[str], bool] = lambda _name: False


class Changes(msgspec.Struct):
    """What the kernel told since the last look: ``prefixes`` to compare again; whether to ``dump`` routes, to read the ``host``
    (links, addresses, on-link routes), to check ``sysctls``; which ``bridges`` (indexes) have lost a port; ``drift``, those of
    the prefixes that were not our own doing; and ``overruns``, how often some of it was lost.
    """

    prefixes: set[Prefix] = msgspec.field(default_factory=set)
    drift: set[Prefix] = msgspec.field(default_factory=set)
    dump: bool = False
    host: bool = False
    sysctls: bool = False
    bridges: set[int] = msgspec.field(default_factory=set)
    overruns: int = 0

    def add(self, other: Changes) -> None:
        """Take over what ``other`` tells as well."""
        self.prefixes |= other.prefixes
        self.drift |= other.drift
        self.dump |= other.dump
        self.host |= other.host
        self.sysctls |= other.sysctls
        self.bridges |= other.bridges
        self.overruns += other.overruns

    def __bool__(self) -> bool:
        return bool(self.prefixes or self.dump or self.host or self.sysctls or self.bridges)


class Fib:
    """Mirror of one routing table in both families. Used by one thread, the loop's."""

    def __init__(self, socket: RouteSocket, monitor: Monitor, *, table: int, protocol: int) -> None:
        self._socket = socket
        self._monitor = monitor
        self._table = table
        self._protocol = protocol
        self.routes: dict[Prefix, tuple[Route, ...]] = {}
        self.ours: set[Prefix] = set()
        self._to_peers: dict[Family, set[Prefix]] = {4: set(), 6: set()}
        self.partial = False
        self.stale = True
        self._dumped: tuple[bytes, ...] = ()  # digests of the dumps that the mirror was made of, () once it has changed
        self.advertised: frozenset[int] = frozenset()  # interfaces with a default route from router advertisements
        self._on_link: frozenset[FibEntry] = frozenset()

    def dump(self, wanted: Mapping[Prefix, Route]) -> None:
        """Read the whole table anew. ``wanted`` are the desired routes: at their prefixes foreign ones are kept however many
        there are, and a route that is as wanted is kept as the same object (1.5 MB less at 5,000 nodes).

        What is byte for byte the same as the last time is not even decoded. Nearly every resync finds it so, but not where a
        router advertises IPv6 routes: their time left is part of a dump. Raises NetlinkError if the kernel refuses or does not
        answer.
        """
        dumps = [self._socket.dump_routes(family, self._table) for family in FAMILIES]
        # Next hops are resolved by the main table, whichever table ours live in.
        apart = self._table != RT_TABLE_MAIN
        others = [self._socket.dump_routes(family, RT_TABLE_MAIN) for family in FAMILIES] if apart else []
        digests = tuple(each.digest for each in (*dumps, *others))
        if digests == self._dumped and all(digests) and not self.stale and not self.partial:
            return
        self._dumped = ()
        foreign, shared = self._take_over(itertools.chain.from_iterable(dumps), wanted)
        if apart:
            foreign = list(itertools.chain.from_iterable(others))
        self._on_link = relevant(_entries(foreign))
        self.advertised = frozenset(r.oif for r in foreign if r.protocol == RTPROT_RA and not r.prefix.length)
        if shared:  # else the next dump may find more of them wanted, as after a restart
            self._dumped = digests

    def _take_over(self, dumped: Iterable[Route], wanted: Mapping[Prefix, Route]) -> tuple[list[Route], bool]:
        """Make the mirror of what was dumped; returns the foreign routes, and whether each of ours is the wanted object."""
        routes: dict[Prefix, tuple[Route, ...]] = {}
        ours: set[Prefix] = set()
        to_peers: dict[Family, set[Prefix]] = {4: set(), 6: set()}
        foreign: list[Route] = []
        shared = True
        self.partial = False
        self.stale = False
        for each in dumped:
            route = _normal(each)
            want = wanted.get(route.prefix)
            if want == route:
                route = want
            prefix = route.prefix
            if route.protocol == self._protocol:
                shared = shared and route is want
                ours.add(prefix)
                if route.type != RTN_UNREACHABLE:
                    to_peers[prefix.family].add(prefix)
            else:
                foreign.append(route)
                if len(foreign) > _FOREIGN_LIMIT and prefix not in wanted:
                    self.partial = True
                    continue
            have = routes.get(prefix)
            routes[prefix] = (*have, route) if have else (route,)
        self.routes, self.ours, self._to_peers = routes, ours, to_peers
        return foreign, shared

    def on_link(self, own_cidrs: Iterable[Prefix]) -> frozenset[FibEntry]:
        """What decides whether next hops are on-link, without the routes to our own pods."""
        own = tuple(own_cidrs)
        return frozenset(entry for entry in self._on_link if not any(covers(mine, entry.prefix) for mine in own))

    def count_peers(self) -> dict[Family, int]:
        """How many prefixes have a route of our protocol to a peer, per family: our own podCIDR's unreachable route is none."""
        return {family: len(prefixes) for family, prefixes in self._to_peers.items()}

    def read(self, interest: Interest, *, but_own: bool = False) -> Changes:
        """Take in the notifications that wait, without blocking; ``but_own``: a dump comes next, which shows what we did."""
        changes = Changes()
        try:
            events = self._monitor.read(but_routes_of=self._socket.portid if but_own else 0)
        except Overrun:
            changes.dump = changes.host = changes.sysctls = True
            changes.overruns = 1
            return changes
        for event in events:
            if isinstance(event, RouteEvent):
                self._route_event(event, interest, changes)
            elif isinstance(event, LinkEvent):
                if event.link.ifindex in interest.oifs or interest.link_named(event.link.name):
                    changes.host = changes.dump = True
            elif isinstance(event, PortLeft):
                changes.bridges.add(event.bridge)
            elif isinstance(event, AddressEvent):
                self._address_event(event, interest, changes)
            elif isinstance(event, Netconf):
                changes.sysctls = True
        if self.stale:
            changes.dump = True
        return changes

    def _address_event(self, event: AddressEvent, interest: Interest, changes: Changes) -> None:
        address = event.address
        if is_ipv6_link_local(address.address):
            return
        if address.ifindex in interest.oifs:
            # The kernel removes IPv4 routes with their address and says nothing of each.
            changes.host = changes.dump = True
        elif not _inside(address.address, interest.own_cidrs):
            changes.host = True

    def _route_event(self, event: RouteEvent, interest: Interest, changes: Changes) -> None:
        route = event.route
        own_doing = event.portid == self._socket.portid
        if route.table == RT_TABLE_MAIN and route.protocol != self._protocol and self._decides_on_link(route, interest):
            changes.host = changes.dump = True
        if route.table != self._table:
            return
        prefix = route.prefix
        if self.partial and prefix not in interest.wanted and prefix not in self.ours:
            return
        # Beside our local unreachable route the bridge's own comes and goes with its ports; nothing there depends on order.
        exact = (prefix in interest.wanted or prefix in self.ours) and prefix not in interest.own_cidrs
        self._take_in(event, exact=exact)
        if prefix in interest.wanted or route.protocol == self._protocol:
            changes.prefixes.add(prefix)
            if not own_doing:
                changes.drift.add(prefix)

    def _decides_on_link(self, route: Route, interest: Interest) -> bool:
        if _inside(route.prefix.address, interest.own_cidrs) or route.type != RTN_UNICAST or route.prefix in interest.wanted:
            return False
        if not route.gateway:
            return not is_ipv6_link_local(route.prefix.address)
        return any(entry.on_link and covers(entry.prefix, route.prefix) for entry in self._on_link)

    def _take_in(self, event: RouteEvent, *, exact: bool) -> None:
        """Bring the mirror up to date at one prefix. ``exact``: the order of routes matters there."""
        route, prefix = _normal(event.route), event.route.prefix
        have = self.routes.get(prefix, ())
        at_key = [other for other in have if (other.metric, other.tos) == (route.metric, route.tos)]
        if event.deleted:
            rest = tuple(other for other in have if other != route)
            if len(rest) == len(have) and at_key:
                self.stale |= exact  # what went is not what we know of
            self._set(prefix, rest)
        elif exact and (route.multipath or event.append or (at_key and not event.replace and route not in have)):
            self.stale = True  # routes of one key have an order that the event does not tell
        elif route not in have:
            kept = tuple(other for other in have if not (event.replace and at_key and other == at_key[0]))
            self._set(prefix, tuple(sorted((*kept, route), key=lambda other: other.metric)))

    def _set(self, prefix: Prefix, routes: tuple[Route, ...]) -> None:
        self._dumped = ()
        if routes:
            self.routes[prefix] = routes
        else:
            self.routes.pop(prefix, None)
        types = {route.type for route in routes if route.protocol == self._protocol}
        (self.ours.add if types else self.ours.discard)(prefix)
        peers = self._to_peers[prefix.family]
        (peers.add if types - {RTN_UNREACHABLE} else peers.discard)(prefix)


def _normal(route: Route) -> Route:
    """IPv6 shows an unreachable route as one by the loopback interface; what we ask for names none."""
    return route if route.type == RTN_UNICAST or not route.oif else route._replace(oif=0)


def _entries(foreign: Iterable[Route]) -> Iterable[FibEntry]:
    for route in foreign:
        unicast = route.type == RTN_UNICAST
        yield FibEntry(route.prefix, route.oif, unicast and not route.gateway and not route.multipath)


def _inside(address: bytes, networks: Iterable[Prefix]) -> bool:
    return any(contains(network, address) for network in networks)
