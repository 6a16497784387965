"""The values that flow through the loop: facts in, desired state and verdicts out, operations to the kernel.

Plain values only: no sockets, no clock, no logging. Addresses are packed bytes in network order (4 or 16 of them), so the
family of a value is the length of its bytes; text is made only where a person reads it.
"""

from __future__ import annotations

import socket
from typing import Final, Literal, NamedTuple

import msgspec

Family = Literal[4, 6]
FAMILIES: Final[tuple[Family, ...]] = (4, 6)

# The kernel's numbers (linux/rtnetlink.h) for what our routes use.
RTN_UNICAST: Final = 1
RTN_UNREACHABLE: Final = 7
RT_SCOPE_UNIVERSE: Final = 0
RTPROT_KERNEL: Final = 2
RTPROT_BOOT: Final = 3
RTPROT_STATIC: Final = 4
RTPROT_RA: Final = 9
RT_TABLE_MAIN: Final = 254

UNREACHABLE_METRIC: Final = 4294967294
"""Metric of the local ``unreachable`` route: worse than any other, in both families. The IPv6 connected route of a bridge
has metric 256, so anything better than that would cut off our own pods."""


def family_of(address: bytes) -> Family:
    """4 for a packed IPv4 address, 6 for an IPv6 one."""
    return 4 if len(address) == 4 else 6


def format_address(address: bytes) -> str:
    """The usual text of a packed address."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


class Prefix(NamedTuple):
    """A network: packed ``address`` with no host bits set, and prefix ``length`` in bits."""

    address: bytes
    length: int

    @property
    def family(self) -> Family:
        """4 or 6."""
        return family_of(self.address)

    def __str__(self) -> str:
        return f"{format_address(self.address)}/{self.length}"


NODE_IP_ANNOTATION: Final = "pynet.io/node-ip"


class NodeFacts(msgspec.Struct, frozen=True, gc=False):
    """What we keep of a Node object: strings as the API server gave them, not yet judged.

    ``created`` is seconds since the epoch (0 if unknown); ``internal_ips`` every status.addresses entry of type InternalIP, in
    order; ``node_ip`` the annotation NODE_IP_ANNOTATION ("" if none); ``os`` status.nodeInfo.operatingSystem ("" if unknown);
    ``condition`` (status, reason) of NetworkUnavailable, kept for our own Node only.
    """

    name: str
    uid: str = ""
    created: int = 0
    pod_cidrs: tuple[str, ...] = ()
    internal_ips: tuple[str, ...] = ()
    node_ip: str = ""
    os: str = ""
    condition: tuple[str, str] | None = None


class Route(NamedTuple):
    """One route of the kernel, desired or as dumped.

    ``gateway`` is packed, b"" if there is none (it may be of the other family: RTA_VIA). ``oif`` is 0 if there is none.
    ``multipath`` says that the kernel holds more than one next hop, or a next-hop object, in this route.
    """

    prefix: Prefix
    metric: int
    gateway: bytes = b""
    oif: int = 0
    protocol: int = 0
    type: int = RTN_UNICAST
    table: int = RT_TABLE_MAIN
    scope: int = RT_SCOPE_UNIVERSE
    tos: int = 0
    multipath: bool = False


class Link(NamedTuple):
    """A network interface. ``up`` is IFF_UP; ``kind`` the IFLA_INFO_KIND ("bridge", "veth", "" for a physical one)."""

    ifindex: int
    name: str
    up: bool
    mtu: int
    kind: str = ""
    master: int = 0


class HostAddress(NamedTuple):
    """An address of ours: packed ``address`` (host bits and all) with its on-link prefix ``length``, on ``ifindex``."""

    ifindex: int
    address: bytes
    length: int


class Operation(NamedTuple):
    """One route message. ``add`` is CREATE|EXCL, ``replace`` is CREATE|REPLACE at the route's own key, ``delete`` names
    the exact route (protocol, and for IPv6 gateway and oif).
    """

    kind: Literal["add", "replace", "delete"]
    route: Route
