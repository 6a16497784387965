"""Small worlds for properties: few prefixes and few nodes, so that clashes are common."""

from __future__ import annotations

from hypothesis import strategies as st
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.host import FibEntry, Host
from pynet.core.model import HostAddress, Link, NodeFacts

OWN = "self"
OWN_FACTS = NodeFacts(OWN, "u-self", 5, ("10.244.0.0/24", "fd00:0:0:1::/64"), ("10.99.0.1", "fd99::1"), os="linux")

CIDRS_4 = [
    "10.244.0.0/24",
    "10.244.0.128/25",
    "10.244.1.0/24",
    "10.244.1.0/25",
    "10.244.2.0/24",
    "10.244.0.0/16",
    "10.99.0.0/24",
    "0.0.0.0/0",
    "127.0.0.0/8",
    "10.244.3.1/24",
    "nonsense",
    "10.96.0.0/24",
    "10.99.0.9/32",
    "224.0.0.0/8",
    "10.244.4.0/24",
]
CIDRS_6 = [
    "fd00:0:0:1::/64",
    "fd00:0:0:2::/64",
    "fd00:0:0:3::/64",
    "fd00::/56",
    "::/0",
    "fe80::/64",
    "fd99::/64",
    "fd00:0:0:2::1/64",
]
IPS_4 = [
    "10.99.0.2",
    "10.99.0.3",
    "10.99.0.4",
    "10.99.0.1",
    "127.0.0.1",
    "224.0.0.1",
    "8.8.8.8",
    "10.244.2.9",
    "garbage",
    "10.98.0.7",
]
IPS_6 = ["fd99::2", "fd99::3", "fd99::1", "::1", "ff02::1", "fd00:0:0:3::5", "2001:db8::1"]

ETH0 = Link(2, "eth0", True, 1500)
ETH1 = Link(3, "eth1", True, 1500)


def host(*, addresses=True, link=True, services=("10.96.0.0/16",), api=("10.99.0.100",), gatewayed=()) -> Host:
    """A node's host: 10.99.0.1/24 and fd99::1/64 on eth0, 10.98.0.1/24 on eth1 that pynet may not use."""
    held = ((2, "10.99.0.1", 24), (2, "fd99::1", 64), (3, "10.98.0.1", 24)) if addresses else ()
    fib = (
        {FibEntry(parse_prefix(p), oif, True) for p, oif in (("10.99.0.0/24", 2), ("fd99::/64", 2), ("10.98.0.0/24", 3))}
        if link
        else set()
    )
    fib |= {FibEntry(parse_prefix(p), 2, False) for p in gatewayed}
    return Host(
        links={2: ETH0, 3: ETH1},
        addresses=tuple(HostAddress(i, parse_address(a), n) for i, a, n in held),
        fib=frozenset(fib),
        interfaces={4: frozenset({2}), 6: frozenset({2})},
        service_cidrs=frozenset(parse_prefix(s) for s in services),
        api_servers=frozenset(parse_address(a) for a in api),
    )


hosts = st.builds(
    host,
    addresses=st.booleans(),
    link=st.booleans(),
    services=st.sampled_from([(), ("10.96.0.0/16",)]),
    gatewayed=st.sampled_from([(), ("10.99.0.2/32",)]),
)

node_names = st.sampled_from(["a", "b", "c", "d", "e", "f"])


@st.composite
def nodes(draw, name=None):
    """A Node of one of six names; now and then a nonsensical one."""
    cidrs = draw(st.lists(st.sampled_from(CIDRS_4), max_size=1)) + draw(st.lists(st.sampled_from(CIDRS_6), max_size=1))
    ips = draw(st.lists(st.sampled_from(IPS_4), max_size=2)) + draw(st.lists(st.sampled_from(IPS_6), max_size=1))
    return NodeFacts(
        name=name or draw(node_names),
        uid=draw(st.sampled_from(["u1", "u2", "u3", "u4"])),
        created=draw(st.integers(0, 4)),
        pod_cidrs=tuple(cidrs),
        internal_ips=tuple(ips),
        node_ip=draw(st.sampled_from(["", "", "", "10.99.0.7", "10.99.0.7, fd99::7", "x"])),
        os=draw(st.sampled_from(["linux", "linux", "", "windows"])),
    )


@st.composite
def events(draw):
    """(name, facts or None) for a peer or, sometimes, for ourselves."""
    if draw(st.integers(0, 9)) == 0:
        cidrs = draw(st.sampled_from([OWN_FACTS.pod_cidrs, ("10.244.1.0/24",), ()]))
        return OWN, NodeFacts(OWN, "u-self", 5, cidrs, OWN_FACTS.internal_ips, os="linux")
    name = draw(node_names)
    return (name, None) if draw(st.integers(0, 3)) == 0 else (name, draw(nodes(name=name)))
