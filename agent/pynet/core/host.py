"""What the host is, as far as routes to peers depend on it: its addresses, its networks, and which next hops are on-link."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from pynet.core.addresses import covers, host_prefix, mask
from pynet.core.model import Family, HostAddress, Link, Prefix, family_of, format_address


class FibEntry(NamedTuple):
    """A route of somebody else that decides where an address goes: ``on_link`` if it is gatewayless unicast."""

    prefix: Prefix
    oif: int
    on_link: bool


class Host(msgspec.Struct, frozen=True):
    """The host's side of the facts. Two equal Hosts give equal verdicts for the same Nodes.

    ``fib`` holds the on-link routes and those inside them (see :func:`relevant`); ``interfaces`` the indexes that next
    hops of a family may use; ``service_cidrs`` and ``api_servers`` what the cluster told us to protect.
    """

    links: Mapping[int, Link] = {}
    addresses: tuple[HostAddress, ...] = ()
    fib: frozenset[FibEntry] = frozenset()
    interfaces: Mapping[Family, frozenset[int]] = {}
    service_cidrs: frozenset[Prefix] = frozenset()
    api_servers: frozenset[bytes] = frozenset()

    def link_name(self, index: int) -> str:
        """The interface's name, or its index in words if it is gone."""
        link = self.links.get(index)
        return link.name if link else f"interface {index}"


def relevant(entries: Iterable[FibEntry]) -> frozenset[FibEntry]:
    """Keep what can decide whether a next hop is on-link: on-link routes, and the routes inside one (they win over it).

    A default route through a gateway is never kept: an address that matches nothing is not on-link either.
    """
    every = list(entries)
    links = [entry.prefix for entry in every if entry.on_link]
    return frozenset(
        entry for entry in every if entry.on_link or any(covers(link, entry.prefix) for link in links if link.length)
    )


class OnLink:
    """Longest-prefix match over a Host's ``fib``: answers which interface an address is on-link at."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._own = {address.address for address in host.addresses}
        self._tables: dict[Family, list[tuple[int, dict[bytes, FibEntry]]]] = {}
        lengths: dict[Family, dict[int, dict[bytes, FibEntry]]] = {4: {}, 6: {}}
        # Sorted, so that of two routes at one prefix the answer does not depend on the order of a dump: on-link wins.
        for entry in sorted(host.fib, key=lambda e: (e.on_link, -e.oif)):
            lengths[entry.prefix.family].setdefault(entry.prefix.length, {})[entry.prefix.address] = entry
        for family, by_length in lengths.items():
            self._tables[family] = sorted(by_length.items(), reverse=True)

    def find(self, address: bytes) -> tuple[int, str]:
        """(interface index, "") if ``address`` is on-link at an allowed interface, else (0, reason)."""
        family = family_of(address)
        for length, table in self._tables[family]:
            entry = table.get(mask(address, length))
            if entry is not None:
                return self._judge(entry, family)
        return 0, f"next hop {format_address(address)} is not on-link: no connected network of this node holds it"

    def _judge(self, entry: FibEntry, family: Family) -> tuple[int, str]:
        if not entry.on_link:
            return 0, f"next hop is not on-link: route {entry.prefix} sends it through a gateway"
        allowed = self._host.interfaces.get(family, frozenset())
        if entry.oif in allowed:
            return entry.oif, ""
        names = ", ".join(sorted(self._host.link_name(index) for index in allowed)) or "none"
        return 0, f"next hop is on-link at {self._host.link_name(entry.oif)}, but pynet may use {names} (setting `interface`)"


def egress_interfaces(host_addresses: Iterable[HostAddress], own_ips: Iterable[bytes]) -> dict[Family, frozenset[int]]:
    """``interface: auto``: per family, the interfaces that hold our own InternalIP."""
    wanted = set(own_ips)
    found: dict[Family, set[int]] = {4: set(), 6: set()}
    for address in host_addresses:
        if address.address in wanted:
            found[family_of(address.address)].add(address.ifindex)
    return {family: frozenset(indexes) for family, indexes in found.items()}


def usable_families(host: Host) -> set[Family]:
    """The families in which an interface for peers is up and has an address: without one no peer can be on-link."""
    return {
        family
        for family, indexes in host.interfaces.items()
        for index, address, _ in host.addresses
        if index in indexes and family_of(address) == family and (link := host.links.get(index)) is not None and link.up
    }


def connected_networks(host: Host) -> dict[Prefix, str]:
    """Network -> words that name it: of each address of ours, and of each link route at an interface that peers are reached by
    (a /32 address with a link route, as some clouds have it, says nothing of the network by itself).
    """
    allowed = set().union(*host.interfaces.values())
    networks = {
        entry.prefix: f"this node's own network {entry.prefix} (link route at {host.link_name(entry.oif)})"
        for entry in host.fib
        if entry.on_link and entry.oif in allowed and entry.prefix.length
    }
    for index, address, length in host.addresses:
        prefix = Prefix(mask(address, length), length)
        text = f"{format_address(address)}/{length} of {host.link_name(index)}"
        networks[prefix] = f"this node's own network {text}"
        networks.setdefault(host_prefix(address), f"this node's own address {text}")
    return networks


def broadcasts(host: Host) -> dict[bytes, str]:
    """IPv4 broadcast address -> words for its network: the kernel takes none as a gateway."""
    found: dict[bytes, str] = {}
    for index, address, length in host.addresses:
        if len(address) == 4 and length < 31:
            last = int.from_bytes(mask(address, length)) | (1 << 32 - length) - 1
            found[last.to_bytes(4)] = f"{format_address(address)}/{length} of {host.link_name(index)}"
    return found
