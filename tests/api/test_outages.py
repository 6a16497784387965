"""The API server stops, dies, hangs, forgets, refuses: the kernel keeps its routes, and the agent finds back by itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.cluster import Agent, Cluster

PEER = {"10.201.1.0/24": "10.99.0.101"}
OTHER = {"10.201.2.0/24": "10.99.0.102"}


def _one_peer(cluster: Cluster) -> Agent:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent = cluster.node("self", ["10.201.0.0/24"])
    assert agent.routes() == PEER
    return agent


def _disconnected(agent: Agent) -> None:
    until(lambda: not agent.status()["api"]["connected"], "the agent knows that the API server is gone", seconds=20)


def _repairs(agent: Agent) -> None:
    """The kernel side works: a route taken away by hand comes back."""
    (cidr, via), *_ = agent.routes().items()
    agent.namespace.run("ip", "route", "del", cidr, "proto", "110")
    until(lambda: agent.routes().get(cidr) == via, "the route is back")


def test_api_server_stopped_and_started_again(cluster: Cluster) -> None:
    agent = _one_peer(cluster)

    cluster.plane.stop()
    _disconnected(agent)
    assert agent.routes() == PEER
    assert agent.readyz()[0] == 200, "an API server that is away is no reason to be not ready"
    _repairs(agent)

    cluster.plane.start()
    cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])
    agent.await_routes(PEER | OTHER, seconds=40)


def test_api_server_killed(cluster: Cluster) -> None:
    agent = _one_peer(cluster)

    cluster.plane.kill()
    _disconnected(agent)
    _repairs(agent)

    cluster.plane.start()
    cluster.remove("peer")
    cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])
    agent.await_routes(OTHER, seconds=40)


def test_api_server_away_while_the_agent_starts(cluster: Cluster) -> None:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    cluster.plane.stop()

    agent.start(wait=False)
    until(lambda: agent.get("/livez")[0] == 200, "the agent lives")
    code, text = agent.readyz()
    assert code != 200
    assert "no complete list" in text
    assert agent.routes() == {}
    assert not list(agent.conf_dir.glob("*.conflist"))

    cluster.plane.start()
    agent.await_ready(40)
    assert agent.routes() == PEER


def test_api_server_hangs_with_its_connections_open(cluster: Cluster) -> None:
    agent = _one_peer(cluster)

    cluster.plane.freeze()
    _repairs(agent)
    assert agent.get("/livez")[0] == 200
    assert agent.stop() == 0, "a hanging API server does not delay the end"
    agent.start(wait=False)
    until(lambda: agent.get("/livez")[0] == 200, "the agent lives")
    assert agent.routes() == PEER
    cluster.plane.thaw()

    agent.await_ready(40)
    cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])
    agent.await_routes(PEER | OTHER)


def test_changes_missed_while_etcd_was_compacted_are_found_by_a_new_list(cluster: Cluster) -> None:
    agent = _one_peer(cluster)

    with cluster.cut_off(agent):
        cluster.remove("peer")
        cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])
        # The API server has to forget as well: its watch cache begins anew, and etcd cannot give it what was before.
        cluster.plane.compact()
        cluster.plane.kill()
        cluster.plane.start()
        assert agent.routes() == PEER

    agent.await_routes(OTHER, seconds=120)
    assert agent.readyz()[0] == 200


def test_resource_versions_that_went_back_are_believed_after_a_list(cluster: Cluster) -> None:
    """The agent is older than the API server's whole memory: its watch is answered by 410."""
    agent = _one_peer(cluster)
    agent.namespace.run("true")
    assert agent.process
    agent.process.send_signal(signal.SIGSTOP)
    try:
        cluster.plane.stop()
        cluster.plane.start()
        cluster.remove("peer")
        for i in range(120):  # more events than a new watch cache keeps at first
            cluster.readdress("self", [f"10.99.0.{2 + i % 2}"])
        cluster.readdress("self", ["10.99.0.2"])
        cluster.plane.compact()
    finally:
        agent.process.send_signal(signal.SIGCONT)

    agent.await_routes({}, seconds=40)


def test_mass_delete_waits_for_a_second_list(cluster: Cluster) -> None:
    want = {f"10.201.{i}.0/24": f"10.99.0.{100 + i}" for i in range(1, 16)}
    cluster.client.each(lambda i: cluster.add(f"p{i}", [f"10.201.{i}.0/24"], [f"10.99.0.{100 + i}"]), range(1, 16))
    agent = cluster.node("self", ["10.201.0.0/24"])
    assert agent.routes() == want
    agent.stop()

    cluster.client.each(lambda i: cluster.remove(f"p{i}"), range(1, 15))
    agent.start()

    agent.await_routes({"10.201.15.0/24": "10.99.0.115"}, seconds=20)
    names = [event.get("event") for event in agent.events()]
    assert names.index("removal_held") < names.index("removal_confirmed"), names


def test_held_routes_stay_while_no_second_list_can_be_had(cluster: Cluster) -> None:
    cluster.client.each(lambda i: cluster.add(f"p{i}", [f"10.201.{i}.0/24"], [f"10.99.0.{100 + i}"]), range(1, 16))
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    agent.config["removalGuard"] = {"fraction": 0, "minimum": 0}  # so that it does not matter how the events arrive
    agent.start()
    want = agent.routes()
    assert agent.process
    agent.process.send_signal(signal.SIGSTOP)
    try:
        # All DELETED events wait in the agent's socket, and behind them comes nothing.
        cluster.client.each(lambda i: cluster.remove(f"p{i}"), range(1, 16))
        cluster.plane.stop()
    finally:
        agent.process.send_signal(signal.SIGCONT)
    agent.await_event("removal_held")
    until(lambda: agent.status()["held"] and not agent.peers(), "every peer gone from the facts, and a removal held")
    assert agent.routes() == want

    cluster.plane.start()
    agent.await_routes({}, seconds=60)
    assert agent.status()["held"] is None
