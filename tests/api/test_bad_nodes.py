"""Nodes that the real API server accepts and that would break a node if they were believed.

Each is there together with a good one; each has a reason that names what clashes, and nothing but the good one's route changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.apiclient import RefusedError
from tests.support.nodes import node
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.cluster import Agent, Cluster

OWN = "10.201.0.0/24"
API_SERVER = "10.99.0.1"

# name: podCIDRs, InternalIPs, state, words of the reason
BAD: dict[str, tuple[list[str], list[str], str, str]] = {
    "no-podcidr": ([], ["10.99.0.101"], "ignored", "podCIDR"),
    "default-route": (["0.0.0.0/0"], ["10.99.0.102"], "rejected", "default route"),
    "half-of-everything": (["0.0.0.0/1"], ["10.99.0.103"], "rejected", "overlaps"),
    "loopback": (["127.0.0.0/8"], ["10.99.0.104"], "rejected", "loopback"),
    "link-local": (["169.254.0.0/16"], ["10.99.0.105"], "rejected", "link-local"),
    "multicast": (["224.0.0.0/8"], ["10.99.0.106"], "rejected", "multicast"),
    "host-bits": (["10.201.9.7/24"], ["10.99.0.107"], "rejected", "10.201.9.7/24"),
    "our-own": ([OWN], ["10.99.0.108"], "rejected", OWN),
    "around-our-own": (["10.201.0.0/16"], ["10.99.0.109"], "rejected", OWN),
    "inside-our-own": (["10.201.0.128/25"], ["10.99.0.110"], "rejected", OWN),
    "node-network": (["10.99.0.0/24"], ["10.99.0.111"], "rejected", "10.99.0."),
    "around-node-network": (["10.99.0.0/16"], ["10.99.0.112"], "rejected", "10.99.0."),
    "api-server": ([f"{API_SERVER}/32"], ["10.99.0.113"], "rejected", API_SERVER),
    "service-range": (["10.96.4.0/24"], ["10.99.0.114"], "rejected", "10.96.0.0/16"),
    "mapped": (["::ffff:10.201.30.0/120"], ["10.99.0.115"], "rejected", "10.201.30.0"),
    "six-loopback": (["::1/128"], ["fd99::116"], "rejected", "::1"),
    "six-everything": (["::/0"], ["fd99::117"], "rejected", "default route"),
    "six-link-local": (["fe80::/64"], ["fd99::118"], "rejected", "fe80::/64"),
    "six-node-network": (["fd99::/64"], ["fd99::119"], "rejected", "fd99::"),
    "no-address": (["10.201.20.0/24"], [], "rejected", "InternalIP"),
    "wrong-family": (["10.201.21.0/24"], ["fd99::121"], "rejected", "InternalIP"),
    "address-nonsense": (["10.201.22.0/24"], ["nonsense"], "rejected", "nonsense"),
    "address-empty": (["10.201.23.0/24"], [""], "rejected", "InternalIP"),
    "address-too-large": (["10.201.24.0/24"], ["300.1.1.1"], "rejected", "300.1.1.1"),
    "address-octal": (["10.201.25.0/24"], ["010.99.0.125"], "rejected", "010.99.0.125"),
    "address-prefix": (["10.201.26.0/24"], ["10.99.0.126/24"], "rejected", "10.99.0.126/24"),
    "address-loopback": (["10.201.27.0/24"], ["127.0.0.1"], "rejected", "loopback"),
    "address-multicast": (["10.201.28.0/24"], ["224.0.0.1"], "rejected", "multicast"),
    "address-zero": (["10.201.29.0/24"], ["0.0.0.0"], "rejected", "0.0.0.0"),
    "address-broadcast": (["10.201.31.0/24"], ["255.255.255.255"], "rejected", "broadcast"),
    "address-ours": (["10.201.32.0/24"], ["10.99.0.2"], "rejected", "own address"),
    "address-elsewhere": (["10.201.33.0/24"], ["192.0.2.1"], "unreachable", "192.0.2.1"),
    "address-in-own-podcidr": (["10.201.34.0/24"], ["10.201.34.1"], "rejected", "podCIDR"),
}


def _all_routes(agent: Agent) -> list[Any]:
    tables = [
        agent.namespace.ip("-4", "route", "show", "table", "all"),
        agent.namespace.ip("-6", "route", "show", "table", "all"),
    ]
    volatile = ("expires", "used", "age")
    return [{k: v for k, v in route.items() if k not in volatile} for table in tables for route in table]


def test_each_bad_node_has_a_reason_and_harms_no_other(cluster: Cluster) -> None:
    agent = cluster.node("self", [OWN, "fd01::/64"])
    before = _all_routes(agent)

    cluster.client.each(lambda item: cluster.add(item[0], item[1][0], item[1][1]), BAD.items())
    cluster.add("good", ["10.201.1.0/24", "fd01:1::/64"], ["10.99.0.201", "fd99::201"])

    agent.await_routes({"10.201.1.0/24": "10.99.0.201"})
    agent.await_routes({"fd01:1::/64": "fd99::201"}, 6)
    until(lambda: {name for name, _ in agent.peers()} == {"good", *BAD}, "all peers in /status")
    peers = {name: peer for (name, _), peer in agent.peers().items() if name != "good"}
    wrong = {
        name: (peer["state"], peer["reason"])
        for name, peer in peers.items()
        if peer["state"] != BAD[name][2] or BAD[name][3] not in peer["reason"]
    }
    assert not wrong
    assert agent.readyz()[0] == 200, "bad peers are no reason to be not ready"
    cluster.remove("good")
    until(lambda: _all_routes(agent) == before, "the kernel is as it was before")


def test_bad_nodes_are_as_harmless_at_the_start(cluster: Cluster) -> None:
    cluster.client.each(lambda item: cluster.add(item[0], item[1][0], item[1][1]), BAD.items())
    cluster.add("good", ["10.201.1.0/24"], ["10.99.0.201"])

    agent = cluster.node("self", [OWN])

    assert agent.routes() == {"10.201.1.0/24": "10.99.0.201"}
    assert agent.routes(6) == {}


def test_node_that_becomes_good_gets_its_route(cluster: Cluster) -> None:
    agent = cluster.node("self", [OWN])
    cluster.add("peer", ["10.201.1.0/24"], ["127.0.0.1"])
    until(lambda: ("peer", 4) in agent.peers() and agent.peers()["peer", 4]["state"] == "rejected", "peer rejected")

    cluster.readdress("peer", ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    cluster.readdress("peer", ["224.0.0.1"])
    agent.await_routes({})


def test_largest_node_that_the_api_takes_is_read_like_any_other(cluster: Cluster) -> None:
    """The API server refuses requests of more than 3 MB; tests/unit has the Node of 10 MB."""
    agent = cluster.node("self", [OWN])
    giant = node("giant", ["10.201.1.0/24"], ["10.99.0.101"], annotations={"filler": "x" * 250_000})
    giant["status"]["images"] = [{"names": [f"image-{i}-" + "y" * 1000], "sizeBytes": i} for i in range(900)]

    cluster.client.create("/api/v1/nodes", giant)
    cluster.add("after", ["10.201.2.0/24"], ["10.99.0.102"])

    agent.await_routes({"10.201.1.0/24": "10.99.0.101", "10.201.2.0/24": "10.99.0.102"})


@pytest.mark.parametrize("cidr", ["nonsense", "10.1.2.0", "10.1.2.0/33", "10.1.2.0/24,10.1.3.0/24"])
def test_api_server_refuses_what_is_no_cidr_at_all(cluster: Cluster, cidr: str) -> None:
    """If this ever changes, such Nodes belong into BAD."""
    with pytest.raises(RefusedError, match="podCIDR"):
        cluster.add("bad", [cidr], ["10.99.0.101"])


def test_api_server_refuses_a_node_without_name(cluster: Cluster) -> None:
    with pytest.raises(RefusedError, match="name"):
        cluster.add("", ["10.201.1.0/24"], ["10.99.0.101"])
