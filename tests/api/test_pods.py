"""What it is all for: pods of different nodes reach each other, and the outside sees the node."""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING

from tests.support.pods import attach
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.cluster import Cluster


def test_pods_of_three_nodes_reach_each_other_in_both_families(cluster: Cluster) -> None:
    cidrs = [[f"10.201.{i}.0/24", f"fd01:{i}::/64"] for i in range(3)]
    agents = [cluster.node(f"n{i}", cidrs[i]) for i in range(3)]
    for agent in agents:
        until(lambda agent=agent: len(agent.routes(4)) == len(agent.routes(6)) == 2, "two routes per family")
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(attach(agent.namespace, cidrs[i])) for i, agent in enumerate(agents)]
        pairs = list(itertools.permutations(pods, 2))
        lost = [(a.addresses, to) for a, b in pairs for to in b.addresses if not a.reaches(to)]
        assert lost == []


def test_pod_reaches_a_node_that_joined_later(cluster: Cluster) -> None:
    first = cluster.node("first", ["10.201.0.0/24"])
    with attach(first.namespace, ["10.201.0.0/24"]) as pod:
        assert not pod.reaches("10.201.1.2", count=1)
        second = cluster.node("second", ["10.201.1.0/24"])
        with attach(second.namespace, ["10.201.1.0/24"]):
            until(lambda: pod.reaches("10.201.1.2", count=1), "the new node's pod")


def test_peers_see_the_pods_address_and_the_outside_the_nodes(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    peer = cluster.node("peer", ["10.201.1.0/24"])
    outside = cluster.join("outside")
    outside.namespace.run("ip", "route", "add", "10.201.0.0/24", "via", "10.99.0.2")
    agent.await_routes({"10.201.1.0/24": "10.99.0.3"})
    with attach(agent.namespace, ["10.201.0.0/24"]) as pod, attach(peer.namespace, ["10.201.1.0/24"]) as other:
        assert _source(pod, other.namespace, other.addresses[0]) == pod.addresses[0]
        assert _source(pod, peer.namespace, "10.99.0.3") == pod.addresses[0]
        assert _source(pod, outside.namespace, "10.99.0.4") == "10.99.0.2"


def _source(pod, there, address: str) -> str:
    """The source address that a connection of ``pod`` to ``address`` has when it arrives ``there``."""
    import socket

    with there.entered(), socket.create_server((address, 8080)) as server:
        with pod.namespace.entered():
            client = socket.create_connection((address, 8080), timeout=5)
        with client, server.accept()[0] as arrived:
            return str(arrived.getpeername()[0])


def test_conflist_has_the_podcidrs_of_the_node(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24", "fd01::/64"])

    conflist = json.loads((agent.conf_dir / "05-pynet.conflist").read_text())

    subnets = {r["subnet"] for ranges in conflist["plugins"][0]["ipam"]["ranges"] for r in ranges}
    assert subnets == {"10.201.0.0/24", "fd01::/64"}


def test_node_that_comes_back_with_another_podcidr_rewrites_its_conflist(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    cluster.remove("self")
    cluster.add("self", ["10.201.5.0/24"], ["10.99.0.2"])

    until(lambda: "10.201.5.0/24" in (agent.conf_dir / "05-pynet.conflist").read_text(), "a conflist with the new podCIDR")
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})
    shown = agent.namespace.ip("route", "show", "type", "unreachable", "proto", "110")
    assert [route["dst"] for route in shown] == ["10.201.5.0/24"]
