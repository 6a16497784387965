"""The bridge's gateway addresses of podCIDRs that this node no longer has: which they are, and their removal.

The bridge plugin refuses a bridge that holds another IPv4 gateway address than the one it wants, and lets IPv6 ones pile up: so
they go, in both families, once our podCIDRs have changed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from pynet.core.addresses import contains, is_ipv6_link_local, mask
from pynet.core.model import HostAddress, Link, Prefix, format_address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence


def stale_gateways(
    bridge: str,
    pod_cidrs: Collection[Prefix],
    links: Iterable[Link],
    addresses: Iterable[HostAddress],
    keep: Collection[bytes] = (),
) -> tuple[Prefix, ...]:
    """The addresses of our bridge that were gateways of podCIDRs we no longer have, as (address, length of its network).

    A gateway is the first address of its network, which is what host-local hands to the bridge plugin. Never link-local ones,
    never those in ``keep`` (our InternalIPs: somebody may have named the wrong bridge), and none at all while we have no
    podCIDR. Pure.
    """
    if not pod_cidrs:
        return ()
    ours = {link.ifindex for link in links if link.name == bridge and link.kind == "bridge"}
    return tuple(
        sorted(
            Prefix(packed, length)
            for ifindex, packed, length in addresses
            if ifindex in ours
            and packed not in keep
            and not _is_link_local(packed)
            and _is_first(packed, length)
            and not any(contains(cidr, packed) for cidr in pod_cidrs)
        )
    )


def remove_addresses(bridge: str, addresses: Sequence[Prefix]) -> None:
    """Take these addresses off the bridge; one that is gone already, or a bridge that is, is no error. Raises OSError.

    Works in the calling thread's network namespace. Imports pyroute2 (10 MB): called only when there is something to remove.
    """
    if not addresses:
        return
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as route:
        for ifindex in route.link_lookup(ifname=bridge):
            for packed, length in addresses:
                text = format_address(packed)
                try:
                    route.addr("del", index=ifindex, address=text, prefixlen=length)
                except NetlinkError as problem:
                    if problem.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                        raise OSError(problem.code, f"{text}/{length} of {bridge} cannot be removed: {problem}") from problem


def _is_first(packed: bytes, length: int) -> bool:
    return int.from_bytes(packed) - int.from_bytes(mask(packed, length)) == 1


def _is_link_local(packed: bytes) -> bool:
    return packed[:2] == b"\xa9\xfe" if len(packed) == 4 else is_ipv6_link_local(packed)
