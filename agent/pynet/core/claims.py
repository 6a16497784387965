"""What a Node claims, one family at a time: its podCIDR and the address to reach it by; and whether a claim may be believed.

The API server accepts Nodes with any podCIDR and any InternalIP, and a kubelet may write its own addresses, so every claim
is judged before it can become a route. A refusal names the two things that clash and what mends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from pynet.core.addresses import contains, covers, host_prefix, parse_address, parse_prefix
from pynet.core.host import Host, broadcasts, connected_networks
from pynet.core.model import FAMILIES, NODE_IP_ANNOTATION, Family, NodeFacts, Prefix, family_of, format_address

_SPECIAL: Final = {
    parse_prefix(text): words
    for text, words in {
        "0.0.0.0/8": "'this network' (0.0.0.0/8)",
        "127.0.0.0/8": "loopback (127.0.0.0/8)",
        "169.254.0.0/16": "link-local (169.254.0.0/16)",
        "224.0.0.0/4": "multicast (224.0.0.0/4)",
        "240.0.0.0/4": "reserved and broadcast (240.0.0.0/4)",
        "::/128": "the unspecified address (::)",
        "::1/128": "loopback (::1)",
        "fe80::/10": "link-local (fe80::/10)",
        "ff00::/8": "multicast (ff00::/8)",
    }.items()
}
_MAPPED: Final = {Prefix(bytes(10) + b"\xff\xff" + bytes(4), 96): "IPv4-mapped IPv6 (::ffff:0:0/96)"}


class Claim(NamedTuple):
    """A well-formed claim: ``prefix`` is to be reached by ``next_hop``, both of one family."""

    prefix: Prefix
    next_hop: bytes


class Refusal(NamedTuple):
    """Why a Node gets no route in one family. ``state`` is "ignored" or "rejected"; ``prefix`` is None if unreadable."""

    state: str
    reason: str
    prefix: Prefix | None = None
    next_hop: bytes = b""


def _family_of_text(text: str) -> Family:
    return 6 if ":" in text else 4


def pod_cidrs(node: NodeFacts) -> dict[Family, str]:
    """The first podCIDR of each family, as text."""
    found: dict[Family, str] = {}
    for text in node.pod_cidrs:
        found.setdefault(_family_of_text(text), text)
    return found


def read_claims(node: NodeFacts) -> dict[Family, Claim | Refusal]:
    """What ``node`` claims in each family it has a podCIDR for; a single Refusal under 4 if it takes no part at all."""
    if node.os not in {"", "linux"}:
        return {4: Refusal("ignored", f"operating system is {node.os}, not linux")}
    cidrs = pod_cidrs(node)
    if not cidrs:
        return {4: Refusal("ignored", "no podCIDR: is kube-controller-manager run with --allocate-node-cidrs?")}
    addresses = node_addresses(node)
    return {family: _claim(text, addresses[family]) for family, text in cidrs.items()}


def _claim(cidr: str, address: bytes | str) -> Claim | Refusal:
    try:
        prefix = parse_prefix(cidr)
    except ValueError as error:
        return Refusal("rejected", f"podCIDR {error}")
    if isinstance(address, str):
        return Refusal("rejected", address, prefix)
    return Claim(prefix, address)


def node_addresses(node: NodeFacts) -> dict[Family, bytes | str]:
    """For each family the packed address to reach ``node`` by, or the reason why there is none.

    The annotation ``pynet.io/node-ip`` comes before status.addresses; the first InternalIP of a family counts.
    """
    found: dict[Family, bytes | str] = {}
    texts = [(f"annotation {NODE_IP_ANNOTATION}", text.strip()) for text in node.node_ip.split(",") if text.strip()]
    texts += [("InternalIP", text) for text in node.internal_ips]
    for source, text in texts:
        family = _family_of_text(text)
        if family in found:
            continue
        try:
            found[family] = parse_address(text)
        except ValueError as error:
            found[family] = f"{source} {error}"
    for family in FAMILIES:
        found.setdefault(family, f"no IPv{family} InternalIP among the Node's addresses (status.addresses)")
    return found


class _Range(NamedTuple):
    first: int
    last: int
    words: str


class ClaimGuard:
    """Judges well-formed claims by what must never be routed away. Built anew when the host or the settings change.

    ``own`` are our own podCIDRs; ``cluster_cidrs`` the ranges a podCIDR must lie in (empty: not checked).
    """

    def __init__(self, host: Host, own: Iterable[Prefix], cluster_cidrs: tuple[Prefix, ...]) -> None:
        self._cluster = cluster_cidrs
        self._cluster_words = ", ".join(str(prefix) for prefix in cluster_cidrs)
        own = tuple(own)
        networks = {prefix: f"our own podCIDR {prefix}" for prefix in own}
        connected = connected_networks(host)
        # Our bridge's and our pods' addresses lie in our own podCIDR: one name for them is enough.
        networks |= {p: w for p, w in connected.items() if not any(contains(mine, p.address) for mine in own)}
        networks |= {prefix: f"the Service range {prefix}" for prefix in host.service_cidrs}
        for address in host.api_servers:
            networks[host_prefix(address)] = f"the API server's address {format_address(address)}"
        # In the order in which they are named; lo's own network is loopback first of all.
        self._protected = _ranges(_SPECIAL | _MAPPED | networks | _SPECIAL)
        self._hops = _ranges(_SPECIAL | _MAPPED)
        self._own_addresses = {address.address for address in host.addresses}
        self._broadcasts = broadcasts(host)
        self._connected = tuple(connected)

    def judge(self, claim: Claim) -> str:
        """The reason to refuse ``claim``, "" if there is none."""
        return self.judge_prefix(claim.prefix) or self._judge_next_hop(claim)

    def judge_prefix(self, prefix: Prefix) -> str:
        """The reason to refuse ``prefix`` as a podCIDR, "" if there is none."""
        if prefix.length == 0:
            return f"podCIDR {prefix} is the default route"
        first, last = bounds(prefix)
        for protected in self._protected[prefix.family]:
            if first <= protected.last and protected.first <= last:
                return f"podCIDR {prefix} overlaps {protected.words}"
        if self._cluster and not any(covers(cluster, prefix) for cluster in self._cluster):
            return f"podCIDR {prefix} lies outside clusterCIDRs ({self._cluster_words})"
        return ""

    def _judge_next_hop(self, claim: Claim) -> str:
        address = int.from_bytes(claim.next_hop)
        for special in self._hops[family_of(claim.next_hop)]:
            if special.first <= address <= special.last:
                return f"node address {format_address(claim.next_hop)} is in {special.words}"
        if claim.next_hop in self._own_addresses:
            return f"node address {format_address(claim.next_hop)} is this node's own address: two nodes claim it"
        if claim.next_hop in self._broadcasts:
            network = self._broadcasts[claim.next_hop]
            return (
                f"node address {format_address(claim.next_hop)} is the broadcast address of this node's own network {network}"
            )
        # It could not be routed to anyway, and must not keep the peer out whose podCIDR it lies in.
        if _holds(self._cluster, claim.next_hop) and not _holds(self._connected, claim.next_hop):
            where = f"in clusterCIDRs ({self._cluster_words}), and in no network of this node"
            return f"node address {format_address(claim.next_hop)} lies {where}"
        if contains(claim.prefix, claim.next_hop):
            return f"node address {format_address(claim.next_hop)} lies in the Node's own podCIDR {claim.prefix}"
        return ""


def _holds(networks: Iterable[Prefix], address: bytes) -> bool:
    return any(contains(network, address) for network in networks)


def bounds(prefix: Prefix) -> tuple[int, int]:
    """The first and the last address of a network, as integers."""
    first = int.from_bytes(prefix.address)
    return first, first | ((1 << (len(prefix.address) * 8 - prefix.length)) - 1)


def _ranges(networks: dict[Prefix, str]) -> dict[Family, list[_Range]]:
    found: dict[Family, list[_Range]] = {4: [], 6: []}
    for prefix, words in networks.items():
        found[prefix.family].append(_Range(*bounds(prefix), words))
    return found
