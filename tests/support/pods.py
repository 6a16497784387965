"""Pods made by hand: a namespace behind the node's bridge, as the CNI bridge plugin would make it."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BRIDGE = "pynet0"


@dataclass(frozen=True)
class Pod:
    """A pod: its namespace, and its addresses in the order of the podCIDRs."""

    namespace: Namespace
    addresses: tuple[str, ...]

    def reaches(self, address: str, *, count: int = 2) -> bool:
        """Whether pings to ``address`` come back."""
        said = self.namespace.run("ping", "-n", "-c", str(count), "-i", "0.05", "-W", "2", address, check=False)
        return f"{count} received" in said


@contextlib.contextmanager
def attach(node: Namespace, pod_cidrs: Sequence[str], number: int = 2) -> Iterator[Pod]:
    """A pod on ``node`` with address ``number`` of each podCIDR; the bridge has the first address, and is made if need be."""
    networks = [ipaddress.ip_network(cidr) for cidr in pod_cidrs]
    with Namespace() as namespace:
        if not node.run("ip", "link", "show", BRIDGE, check=False):
            node.run("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
            node.run("ip", "link", "set", BRIDGE, "up")
            for network in networks:
                node.run("ip", "addr", "add", f"{network[1]}/{network.prefixlen}", "dev", BRIDGE, *_nodad(network))
        node.run("ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        node.run("ip", "link", "set", f"veth{number}", "master", BRIDGE, "up")
        namespace.run("ip", "link", "set", "eth0", "up")
        for network in networks:
            namespace.run("ip", "addr", "add", f"{network[number]}/{network.prefixlen}", "dev", "eth0", *_nodad(network))
            namespace.run("ip", f"-{network.version}", "route", "add", "default", "via", str(network[1]))
        yield Pod(namespace, tuple(str(network[number]) for network in networks))


def _nodad(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[str, ...]:
    return ("nodad",) if network.version == 6 else ()
