"""Facts in, desired routes and verdicts out.

:class:`Desired` holds what follows from the Nodes and the host, and keeps it up to date with work in proportion to what
changed: one Node of 5,000 costs microseconds. That it always equals what a fresh computation would give, whatever the
order of events, is a property that tests/unit/test_desired.py checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from pynet.core.addresses import covers, overlap, parse_prefix
from pynet.core.claims import Claim, ClaimGuard, Refusal, node_addresses, pod_cidrs, read_claims
from pynet.core.host import Host, OnLink, broadcasts, connected_networks, usable_families
from pynet.core.members import Members
from pynet.core.model import (
    FAMILIES,
    RT_TABLE_MAIN,
    RTN_UNREACHABLE,
    UNREACHABLE_METRIC,
    Family,
    NodeFacts,
    Prefix,
    Route,
)
from pynet.core.overlap import Aged, Overlaps


class Settings(msgspec.Struct, frozen=True):
    """What the configuration says about routes. ``metric`` + ``metric_buckets`` must stay below 256."""

    own_name: str
    cluster_cidrs: tuple[Prefix, ...] = ()
    protocol: int = 110
    table: int = RT_TABLE_MAIN
    metric: int = 100
    metric_buckets: int = 64
    unreachable_local: bool = True


class Verdict(NamedTuple):
    """What was decided about a peer in one family. ``state`` is accepted, unreachable, rejected or ignored; the last three
    have a ``reason``. What became of an accepted one is known to the routes, not here.
    """

    state: str
    reason: str = ""
    prefix: Prefix | None = None
    next_hop: bytes = b""
    uid: str = ""


class Fault(NamedTuple):
    """A fault of our own that puts peers into ``state``, however good their Nodes are."""

    state: str
    reason: str


class OwnNode(NamedTuple):
    """Our own Node: ``cidrs`` are those podCIDRs that may be used, ``refused`` the reasons why others may not."""

    known: bool = False
    uid: str = ""
    cidrs: tuple[Prefix, ...] = ()
    addresses: tuple[bytes, ...] = ()
    refused: tuple[str, ...] = ()


def spread_metric(prefix: Prefix, settings: Settings) -> int:
    """The metric of a peer's route: a function of the destination only, spread over ``metric_buckets`` values.

    The kernel hashes IPv4 next hops by metric but not by gateway, so that thousands of routes with one metric share one
    bucket: 5,000 of them take 650 ms to add instead of 30 (docs/adr/0003).
    """
    network = int.from_bytes(prefix.address) >> (len(prefix.address) * 8 - prefix.length)
    return settings.metric + (network * 2654435761 >> 8) % settings.metric_buckets


class Desired:
    """``routes`` (by prefix, at most one each), ``owners`` (prefix to peer) and ``verdicts`` (by node name and family)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.routes: dict[Prefix, Route] = {}
        self.owners: dict[Prefix, tuple[str, Family]] = {}
        self.verdicts: dict[tuple[str, Family], Verdict] = {}
        self.nodes: dict[str, NodeFacts] = {}
        self.own = OwnNode()
        self.host = Host()
        self.members = Members()
        self.revision = 0  # goes up with each change of a verdict or of our own Node
        self.changed: set[tuple[str, Family]] = set()  # peers with another verdict, for whoever reports them to take out
        self._claims: dict[Family, dict[str, Claim]] = {4: {}, 6: {}}
        self._overlaps: dict[Family, Overlaps] = {4: Overlaps(32), 6: Overlaps(128)}
        self._guard = ClaimGuard(self.host, (), settings.cluster_cidrs)
        self._on_link = OnLink(self.host)

    def update(self, changes: Mapping[str, NodeFacts | None]) -> set[Prefix]:
        """Take over Node changes (None: gone). Returns the prefixes whose desired route may have changed."""
        touched: set[Prefix] = set()
        affected: dict[Family, set[str]] = {4: set(), 6: set()}
        own_name = self.settings.own_name
        if own_name in changes:  # first: all others are judged by what is ours
            self._note(own_name, changes[own_name])
            touched |= self._settle_own()
        for name, facts in changes.items():
            if name != own_name:
                self._note(name, facts)
                self._place(name, facts, affected, touched)
        self._settle(affected, touched)
        return touched

    def _note(self, name: str, facts: NodeFacts | None) -> None:
        if facts is None:
            self.nodes.pop(name, None)
        else:
            self.nodes[name] = facts

    def set_host(self, host: Host) -> set[Prefix]:
        """Take over what the host is now. Returns the prefixes whose desired route may have changed."""
        old, self.host = self.host, host
        if host == old:
            return set()
        self._on_link = OnLink(host)
        touched = self._settle_own()
        if _protected(host) != _protected(old):
            touched |= self._judge_all()
        self._find_links(touched)
        return touched

    def unreachable(self) -> frozenset[Prefix]:
        """The podCIDRs of peers that are there, and not on-link now."""
        return frozenset(v.prefix for v in self.verdicts.values() if v.state == "unreachable" and v.prefix is not None)

    def own_faults(self) -> dict[Family, Fault]:
        """By family, what of our own settings or interfaces keeps every peer out. May be called from any thread."""
        own, host, cluster = self.own, self.host, self.settings.cluster_cidrs
        usable = usable_families(host)
        found: dict[Family, Fault] = {}
        for prefix in own.cidrs:
            if cluster and not any(covers(each, prefix) for each in cluster):
                words = ", ".join(map(str, cluster))
                reason = f"our own podCIDR {prefix} lies outside clusterCIDRs ({words}): mend the setting"
                found[prefix.family] = Fault("rejected", reason)
            elif prefix.family not in usable:
                names = ", ".join(sorted(map(host.link_name, host.interfaces.get(prefix.family, ())))) or "none"
                reason = f"no interface that `interface` means ({names}) is up and has an IPv{prefix.family} address"
                found[prefix.family] = Fault("unreachable", reason)
        return found

    def _settle_own(self) -> set[Prefix]:
        """Judge our own podCIDRs; where they changed, everything about peers is judged again."""
        own = _own_node(self.nodes.get(self.settings.own_name), self.host)
        if own == self.own:
            return set()
        before, self.own = self.own, own
        self.revision += 1
        touched = set(before.cidrs) | set(own.cidrs)
        for prefix in before.cidrs:
            self.routes.pop(prefix, None)
        touched |= self._judge_all()
        if self.settings.unreachable_local:
            for prefix in own.cidrs:
                self.routes[prefix] = Route(
                    prefix, UNREACHABLE_METRIC, b"", 0, self.settings.protocol, RTN_UNREACHABLE, self.settings.table
                )
        return touched

    def _judge_all(self) -> set[Prefix]:
        """Build the guard anew and judge every claim by it; only claims whose fate changes cost more than the look."""
        self._guard = ClaimGuard(self.host, self.own.cidrs, self.settings.cluster_cidrs)
        touched: set[Prefix] = set()
        affected: dict[Family, set[str]] = {4: set(), 6: set()}
        for family in FAMILIES:
            for name, claim in self._claims[family].items():
                self._judge(name, family, claim, affected[family], touched)
        self._settle(affected, touched)
        return touched

    def _find_links(self, touched: set[Prefix]) -> None:
        """Ask again whether each next hop is on-link. Who wins among overlapping claims does not depend on it."""
        for (name, family), verdict in list(self.verdicts.items()):
            if (claim := _standing(verdict)) is not None:
                self._link(name, family, claim, verdict.uid, touched)

    def _link(self, name: str, family: Family, claim: Claim, uid: str, touched: set[Prefix]) -> None:
        oif, reason = self._on_link.find(claim.next_hop)
        verdict = Verdict("unreachable" if reason else "accepted", reason, *claim, uid)
        route = self._route(claim, oif) if oif else None
        if verdict != self.verdicts.get((name, family)) or route != self.routes.get(claim.prefix):
            self._assign(name, family, verdict, route, touched)

    def _place(self, name: str, facts: NodeFacts | None, affected: dict[Family, set[str]], touched: set[Prefix]) -> None:
        """Put what a Node claims (None: nothing any more) into the index, or its refusal among the verdicts."""
        claims = read_claims(facts) if facts else {}
        for family in FAMILIES:
            claim = claims.get(family)
            if isinstance(claim, Claim):
                self._claims[family][name] = claim
                self._judge(name, family, claim, affected[family], touched)
                continue
            self._claims[family].pop(name, None)
            affected[family] |= self._overlaps[family].remove(name)
            if isinstance(claim, Refusal):
                uid = facts.uid if facts else ""
                self._assign(name, family, Verdict(*claim, uid=uid), None, touched)
            else:
                self._assign(name, family, None, None, touched)

    def _judge(self, name: str, family: Family, claim: Claim, affected: set[str], touched: set[Prefix]) -> None:
        facts = self.nodes[name]
        reason = self._guard.judge(claim)
        overlaps = self._overlaps[family]
        if reason:
            affected |= overlaps.remove(name)
            self._assign(name, family, Verdict("rejected", reason, *claim, facts.uid), None, touched)
            return
        aged = Aged(claim, facts.created, facts.uid)
        if overlaps.get(name) != aged:
            affected |= overlaps.put(name, aged)

    def _settle(self, affected: dict[Family, set[str]], touched: set[Prefix]) -> None:
        """Decide who wins among the affected claims, and which of them are on-link."""
        winners: list[tuple[str, Family]] = []
        for family, names in affected.items():
            for name, winner in self._overlaps[family].grant(names).items():
                if not winner:
                    winners.append((name, family))
                    continue
                # Losers give up their prefix before a winner takes it: a prefix has one owner.
                claim = self._claims[family][name]
                reason = self._clash(claim, self._claims[family][winner], winner)
                self._assign(name, family, Verdict("rejected", reason, *claim, self.nodes[name].uid), None, touched)
        for name, family in winners:
            self._link(name, family, self._claims[family][name], self.nodes[name].uid, touched)

    @staticmethod
    def _clash(claim: Claim, other: Claim, winner: str) -> str:
        if overlap(claim.prefix, other.prefix):
            what = f"podCIDR {claim.prefix} overlaps {other.prefix} of node {winner}"
        else:
            what = f"podCIDR {claim.prefix} or its node address clashes with {other.prefix} of node {winner}"
        return f"{what}, which is older and keeps it; delete one of the two Nodes"

    def _route(self, claim: Claim, oif: int) -> Route:
        settings = self.settings
        metric = spread_metric(claim.prefix, settings)
        return Route(claim.prefix, metric, claim.next_hop, oif, settings.protocol, table=settings.table)

    def _assign(self, name: str, family: Family, verdict: Verdict | None, route: Route | None, touched: set[Prefix]) -> None:
        """Write down a verdict and its route, and give up what this peer had before."""
        key = (name, family)
        before = self.verdicts.get(key)
        if before is not None and before.prefix is not None and self.owners.get(before.prefix) == key:
            if route is None or route.prefix != before.prefix:
                del self.owners[before.prefix]
                self.routes.pop(before.prefix, None)
            touched.add(before.prefix)
        if before != verdict:
            self.revision += 1
            self.changed.add(key)
            on_link = verdict is not None and verdict.state == "accepted"
            self.members.note(key, _standing(before), _standing(verdict), on_link=on_link)
        if verdict is None:
            self.verdicts.pop(key, None)
        else:
            self.verdicts[key] = verdict
        if route is not None:
            self.routes[route.prefix] = route
            self.owners[route.prefix] = key
            touched.add(route.prefix)


def _standing(verdict: Verdict | None) -> Claim | None:
    """What a peer has by its verdict: nothing if it is rejected or ignored."""
    if verdict is None or verdict.prefix is None or verdict.state not in {"accepted", "unreachable"}:
        return None
    return Claim(verdict.prefix, verdict.next_hop)


def _own_node(facts: NodeFacts | None, host: Host) -> OwnNode:
    if facts is None:
        return OwnNode()
    addresses = tuple(address for address in node_addresses(facts).values() if isinstance(address, bytes))
    cidrs: list[Prefix] = []
    refused: list[str] = []
    guard = ClaimGuard(_without_pods(host), (), ())
    for text in pod_cidrs(facts).values():
        try:
            prefix = parse_prefix(text)
        except ValueError as error:
            refused.append(f"own podCIDR {error}")
            continue
        reason = guard.judge_prefix(prefix)
        if reason:
            refused.append(f"own {reason}")
        else:
            cidrs.append(prefix)
    return OwnNode(True, facts.uid, tuple(cidrs), addresses, tuple(refused))


def _protected(host: Host) -> tuple[object, ...]:
    """What of the host the guard's judgement depends on: an interface made anew under its old name changes none of it."""
    return connected_networks(host), broadcasts(host), host.service_cidrs, host.api_servers


def _without_pods(host: Host) -> Host:
    """The host without the addresses of pod interfaces: our own podCIDR may clash with uplinks, not with itself."""
    uplinks = set().union(*host.interfaces.values())
    return msgspec.structs.replace(host, addresses=tuple(a for a in host.addresses if a.ifindex in uplinks))
