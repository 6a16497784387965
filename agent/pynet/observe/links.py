"""The host as the kernel shows it: addresses, interfaces that routes may use, and on-link networks, as one Host value."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pynet.core.addresses import contains, parse_address
from pynet.core.host import FibEntry, Host, egress_interfaces
from pynet.core.model import FAMILIES, Family, HostAddress, Link, Prefix, family_of
from pynet.drivers.netlink import RouteSocket


class InterfaceSpec:
    """The setting ``interface``: auto, a name, /a regular expression/, or can-reach=ADDRESS."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._pattern = re.compile(text[1:-1]) if text.startswith("/") else None
        self._target = parse_address(text.removeprefix("can-reach=")) if text.startswith("can-reach=") else None

    def names(self, name: str) -> bool:
        """Whether an interface of this name is meant by its name."""
        return self._pattern.search(name) is not None if self._pattern else name == self.text

    def pick(
        self, socket: RouteSocket, links: Iterable[Link], addresses: Iterable[HostAddress], own_ips: Iterable[bytes]
    ) -> dict[Family, frozenset[int]]:
        """Per family, the interfaces that next hops may use."""
        if self.text == "auto":
            return egress_interfaces(addresses, own_ips)
        if self._target is not None:
            route = socket.lookup(self._target)
            found = frozenset({route.oif}) if route and route.oif else frozenset()
            return {f: found if f == family_of(self._target) else frozenset() for f in FAMILIES}
        named = frozenset(link.ifindex for link in links if self.names(link.name))
        return dict.fromkeys(FAMILIES, named)


def read_host(
    socket: RouteSocket,
    spec: InterfaceSpec,
    *,
    own_cidrs: tuple[Prefix, ...],
    own_ips: tuple[bytes, ...],
    on_link: frozenset[FibEntry],
    service_cidrs: frozenset[Prefix],
    api_servers: frozenset[bytes],
) -> Host:
    """Read links and addresses, and put them together with what else is known of the host.

    Addresses of our own pods' interfaces are left out, so that the coming and going of pods changes nothing.
    """
    links = socket.dump_links()
    every = [address for family in FAMILIES for address in socket.dump_addresses(family)]
    addresses = tuple(sorted(a for a in every if not any(contains(mine, a.address) for mine in own_cidrs) and not _quiet(a)))
    interfaces = spec.pick(socket, links, addresses, own_ips)
    named = {a.ifindex for a in addresses} | {e.oif for e in on_link} | set().union(*interfaces.values())
    return Host(
        links={link.ifindex: link for link in links if link.ifindex in named},
        addresses=addresses,
        fib=on_link,
        interfaces=interfaces,
        service_cidrs=service_cidrs,
        api_servers=api_servers,
    )


def _quiet(address: HostAddress) -> bool:
    """IPv6 link-local: one on each interface, never a next hop of ours, and refused as a podCIDR anyway."""
    packed = address.address
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
