"""What becomes of the kernel's routes when Node objects change; every agent a real process, every change by the real API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.cluster import Agent, Cluster


def _states(agent: Agent) -> dict[tuple[str, int], str]:
    return {key: peer["state"] for key, peer in agent.peers().items()}


def test_every_peer_has_one_route_per_family_once_the_agent_is_ready(cluster: Cluster) -> None:
    cluster.add("old", ["10.201.1.0/24", "fd01:1::/64"], ["10.99.0.101", "fd99::101"])
    cluster.add("new", ["fd01:2::/64", "10.201.2.0/24"], ["fd99::102", "10.99.0.102"])

    agent = cluster.node("self", ["10.201.0.0/24", "fd01::/64"])

    assert agent.routes(4) == {"10.201.1.0/24": "10.99.0.101", "10.201.2.0/24": "10.99.0.102"}
    assert agent.routes(6) == {"fd01:1::/64": "fd99::101", "fd01:2::/64": "fd99::102"}
    assert set(_states(agent).values()) == {"programmed"}


def test_agents_of_three_nodes_route_to_each_other(cluster: Cluster) -> None:
    agents = [cluster.node(f"n{i}", [f"10.201.{i}.0/24"]) for i in range(3)]
    address = {f"10.201.{i}.0/24": f"10.99.0.{i + 2}" for i in range(3)}

    for i, agent in enumerate(agents):
        agent.await_routes({cidr: via for cidr, via in address.items() if cidr != f"10.201.{i}.0/24"})


def test_node_added_and_removed(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    assert agent.routes() == {}

    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    cluster.remove("peer")
    agent.await_routes({})
    until(lambda: ("peer", 4) not in agent.peers(), "peer gone from /status")


def test_node_recreated_with_another_podcidr_moves_its_route(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    first = cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    cluster.remove("peer")
    second = cluster.add("peer", ["10.201.7.0/24"], ["10.99.0.101"])

    agent.await_routes({"10.201.7.0/24": "10.99.0.101"})
    assert first["metadata"]["uid"] != second["metadata"]["uid"] == agent.peers()["peer", 4]["uid"]


def test_node_recreated_while_nobody_looked_moves_its_route(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})
    agent.stop()

    cluster.remove("peer")
    cluster.add("peer", ["10.201.7.0/24"], ["10.99.0.101"])
    agent.start()

    assert agent.routes() == {"10.201.7.0/24": "10.99.0.101"}


def test_node_that_left_while_nobody_looked_loses_its_route(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})
    agent.stop()

    cluster.remove("peer")
    agent.start()

    agent.await_routes({})


def test_change_of_status_addresses_alone_moves_the_next_hop(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24", "fd01::/64"])
    cluster.add("peer", ["10.201.1.0/24", "fd01:1::/64"], ["10.99.0.101", "fd99::101"])
    agent.await_routes({"fd01:1::/64": "fd99::101"}, 6)

    cluster.readdress("peer", ["10.99.0.102", "fd99::102"])

    agent.await_routes({"10.201.1.0/24": "10.99.0.102"})
    agent.await_routes({"fd01:1::/64": "fd99::102"}, 6)


def test_annotation_overrides_the_internal_ip(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    cluster.client.patch("/api/v1/nodes/peer", {"metadata": {"annotations": {"pynet.io/node-ip": "10.99.0.150"}}})
    agent.await_routes({"10.201.1.0/24": "10.99.0.150"})

    cluster.client.patch("/api/v1/nodes/peer", {"metadata": {"annotations": {"pynet.io/node-ip": None}}})
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})


def test_peer_that_lacks_a_family_keeps_the_other(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24", "fd01::/64"])
    cluster.add("four", ["10.201.1.0/24"], ["10.99.0.101", "fd99::101"])
    cluster.add("six", ["fd01:2::/64"], ["fd99::102"])
    cluster.add("half", ["10.201.3.0/24", "fd01:3::/64"], ["fd99::103"])

    agent.await_routes({"10.201.1.0/24": "10.99.0.101"}, 4)
    agent.await_routes({"fd01:2::/64": "fd99::102", "fd01:3::/64": "fd99::103"}, 6)
    half = agent.peers()["half", 4]
    assert half["state"] == "rejected"
    assert "InternalIP" in half["reason"]


def test_of_two_nodes_with_one_podcidr_the_older_wins_and_the_other_inherits(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    older = cluster.add("b-older", ["10.201.1.0/24"], ["10.99.0.101"])
    created = older["metadata"]["creationTimestamp"]
    names = iter(range(10**6))

    def younger_in_a_later_second() -> bool:
        # creationTimestamps have seconds; the UID decides within one, and it is random.
        made = cluster.add(f"a-younger-{next(names)}", ["10.201.1.0/24"], ["10.99.0.102"])
        if made["metadata"]["creationTimestamp"] > created:
            return True
        cluster.remove(made["metadata"]["name"])
        return False

    until(younger_in_a_later_second, "a Node created in a later second")

    def younger() -> str:
        found = (p["state"] + " " + p["reason"] for (name, _), p in agent.peers().items() if name.startswith("a-younger"))
        return next(found, "")

    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})
    assert "rejected" in until(lambda: "b-older" in younger() and younger(), "the younger one's reason names the older")

    cluster.remove("b-older")
    agent.await_routes({"10.201.1.0/24": "10.99.0.102"})
    assert younger().startswith("programmed")


def test_nodes_without_podcidr_or_of_another_system_are_ignored(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("bare", [], ["10.99.0.101"])
    cluster.add("windows", ["10.201.2.0/24"], ["10.99.0.102"], os="windows")

    until(lambda: set(_states(agent).values()) == {"ignored"} and len(agent.peers()) == 2, "both ignored")
    assert agent.readyz()[0] == 200
    assert agent.routes() == {}


def test_podcidr_given_later_is_routed(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("peer", [], ["10.99.0.101"])
    until(lambda: _states(agent) == {("peer", 4): "ignored"}, "peer ignored")

    cluster.client.patch("/api/v1/nodes/peer", {"spec": {"podCIDR": "10.201.1.0/24", "podCIDRs": ["10.201.1.0/24"]}})

    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})


def test_own_podcidr_given_after_the_start_makes_the_node_ready(cluster: Cluster) -> None:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent = cluster.node("self", [], start=False)
    agent.start(wait=False)
    until(lambda: "podCIDR" in agent.readyz()[1], "readyz names the missing podCIDR")
    assert not list(agent.conf_dir.glob("*.conflist"))

    cluster.client.patch("/api/v1/nodes/self", {"spec": {"podCIDR": "10.201.0.0/24", "podCIDRs": ["10.201.0.0/24"]}})

    agent.await_ready()
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})
    assert (agent.conf_dir / "05-pynet.conflist").exists()


def test_own_node_deleted_leaves_everything(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    cluster.remove("self")
    cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])

    agent.await_routes({"10.201.1.0/24": "10.99.0.101", "10.201.2.0/24": "10.99.0.102"})


def test_five_hundred_nodes_at_once_all_get_routes(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"], length=16)
    want = {f"10.{202 + i // 256}.{i % 256}.0/24": f"10.99.{1 + i // 250}.{1 + i % 250}" for i in range(500)}

    cluster.client.each(lambda pair: cluster.add("p-" + pair[1].replace(".", "-"), [pair[0]], [pair[1]]), want.items())

    agent.await_routes(want)
    counts = agent.status()["counts"]
    assert counts == {"4": {"programmed": 500}}
