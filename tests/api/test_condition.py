"""The Node condition NetworkUnavailable: False once the routes are there, and kept so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.cluster import Agent, Cluster


def _condition(cluster: Cluster, name: str = "self") -> dict[str, Any]:
    conditions = cluster.client.get(f"/api/v1/nodes/{name}")["status"].get("conditions", [])
    return next((c for c in conditions if c["type"] == "NetworkUnavailable"), {})


def _await_false(cluster: Cluster, seconds: float = 10) -> None:
    def false() -> bool:
        condition = _condition(cluster)
        return condition.get("status") == "False" and condition.get("reason") == "PynetRoutesReady"

    until(false, "NetworkUnavailable=False, reason PynetRoutesReady", seconds=seconds)


def _set(cluster: Cluster, status: str, reason: str) -> None:
    body = {
        "status": {"conditions": [{"type": "NetworkUnavailable", "status": status, "reason": reason, "message": "by a test"}]}
    }
    cluster.client.patch("/api/v1/nodes/self/status", body)


def _others(cluster: Cluster) -> list[Any]:
    return [c for c in cluster.client.get("/api/v1/nodes/self")["status"]["conditions"] if c["type"] != "NetworkUnavailable"]


def _start(cluster: Cluster) -> Agent:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    return cluster.node("self", ["10.201.0.0/24"])


def test_network_is_available_after_the_routes_and_other_conditions_stay(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    _set(cluster, "True", "NoRouteCreated")
    before = _others(cluster)

    agent.start()

    _await_false(cluster)
    assert _others(cluster) == before


def test_condition_comes_after_the_routes_never_before(cluster: Cluster) -> None:
    cluster.client.each(lambda i: cluster.add(f"p{i}", [f"10.202.{i}.0/24"], [f"10.99.0.{100 + i}"]), range(100))
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    agent.start(wait=False)

    until(lambda: _condition(cluster), "a condition")

    assert len(agent.routes()) == 100


def test_condition_set_true_by_somebody_else_is_put_right(cluster: Cluster) -> None:
    _start(cluster)
    _await_false(cluster)

    _set(cluster, "True", "NodeInitialization")

    _await_false(cluster, seconds=30)


def test_restarted_agent_does_not_write_what_is_right_already(cluster: Cluster) -> None:
    agent = _start(cluster)
    _await_false(cluster)
    agent.stop()
    version = cluster.client.get("/api/v1/nodes/self")["metadata"]["resourceVersion"]

    agent.start()
    cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101", "10.201.2.0/24": "10.99.0.102"})

    assert cluster.client.get("/api/v1/nodes/self")["metadata"]["resourceVersion"] == version


def test_condition_is_not_touched_where_the_configuration_says_so(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    agent.config["networkUnavailable"] = False

    agent.start()
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent.await_routes({"10.201.1.0/24": "10.99.0.101"})

    assert _condition(cluster) == {}


def test_routes_come_even_if_the_condition_may_not_be_written(cluster: Cluster) -> None:
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    cluster.plane.service_account(rules=rules)
    agent = _start(cluster)
    assert agent.routes() == {"10.201.1.0/24": "10.99.0.101"}
    until(lambda: agent.status()["condition"]["state"] == "failed", "status says that the condition is not set")

    cluster.plane.service_account()

    _await_false(cluster, seconds=60)
