"""The host as the kernel shows it: addresses, interfaces that routes may use, and on-link networks, as one Host value."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pynet.config_rules import InterfaceChoice
from pynet.core.addresses import contains, is_ipv6_link_local, parse_address
from pynet.core.host import FibEntry, Host, egress_interfaces
from pynet.core.model import FAMILIES, Family, HostAddress, Link, Prefix
from pynet.drivers.netlink import RouteSocket


class EgressInterfaces:
    """The interfaces that routes to peers may use, by the setting ``interface``."""

    def __init__(self, choice: InterfaceChoice) -> None:
        self._choice = choice
        self._pattern = re.compile(choice.value) if choice.kind == "pattern" else None

    def names(self, name: str) -> bool:
        """Whether the setting means an interface of this name by its name."""
        return self._pattern.search(name) is not None if self._pattern else name == self._choice.value

    def pick(
        self, socket: RouteSocket, links: Iterable[Link], addresses: Iterable[HostAddress], own_ips: Iterable[bytes]
    ) -> dict[Family, frozenset[int]]:
        """Per family, the indexes of the interfaces meant."""
        if self._choice.kind == "auto":
            return egress_interfaces(addresses, own_ips)
        if self._choice.kind == "can-reach":
            route = socket.lookup(parse_address(self._choice.value))
            # One answer for both families: a dual-stack network is one interface.
            return dict.fromkeys(FAMILIES, frozenset({route.oif} if route and route.oif else ()))
        return dict.fromkeys(FAMILIES, frozenset(link.ifindex for link in links if self.names(link.name)))


def read_host(
    socket: RouteSocket,
    egress: EgressInterfaces,
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
    addresses = tuple(
        sorted(
            a for a in every if not any(contains(mine, a.address) for mine in own_cidrs) and not is_ipv6_link_local(a.address)
        )
    )
    interfaces = egress.pick(socket, links, addresses, own_ips)
    named = {a.ifindex for a in addresses} | {e.oif for e in on_link} | set().union(*interfaces.values())
    return Host(
        links={link.ifindex: link for link in links if link.ifindex in named},
        addresses=addresses,
        fib=on_link,
        interfaces=interfaces,
        service_cidrs=service_cidrs,
        api_servers=api_servers,
    )
