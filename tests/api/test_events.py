"""Events and the Node condition as the appliers write them, against a real API server and its validation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pynet.apply.condition import RIGHT, NodeCondition
from pynet.apply.events import Events
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api

from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynet.core.model import Family

    from tests.support.cluster import Cluster


@pytest.fixture
def api(cluster: Cluster) -> Iterator[Api]:
    """The API as an agent uses it: its own token and rights, from a node's namespace."""
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    made = Api(from_token_files(cluster.plane.url, agent.token_file, agent.ca_file))
    with agent.namespace.entered():
        yield made
    made.close()


def events_about(cluster: Cluster, uid: str) -> list[dict[str, Any]]:
    selector = f"fieldSelector=involvedObject.uid%3D{uid}"
    items: list[dict[str, Any]] = cluster.client.get(f"/api/v1/namespaces/default/events?{selector}")["items"]
    return items


def uid_of(cluster: Cluster, name: str) -> str:
    uid: str = cluster.client.get(f"/api/v1/nodes/{name}")["metadata"]["uid"]
    return uid


def tell(events: Events, name: str, uid: str, state: str = "rejected", family: Family = 4) -> None:
    events.peer(name, uid, family, state=state, reason="podCIDR 0.0.0.0/0 is the default route", agents=1)


def test_many_agents_make_one_event_that_kubectl_finds(cluster: Cluster, api: Api) -> None:
    cluster.add("bad", ["10.201.1.0/24"], ["10.99.0.101"])
    uid = uid_of(cluster, "bad")
    agents = [Events(api, f"n{number}", pytest.fail, settle=0.0, pace=0.01) for number in range(4)]
    for events in agents:
        tell(events, "bad", uid)
    for events in agents:
        until(lambda events=events: events.counts == (1, 0), "accepted")
        assert events.stop(5)
    [event] = events_about(cluster, uid)
    assert (event["type"], event["reason"], event["count"]) == ("Warning", "PeerRejected", 1)
    assert event["involvedObject"]["name"] == "bad"
    assert event["message"].startswith("IPv4: podCIDR 0.0.0.0/0 is the default route")


def test_the_server_takes_the_longest_names_and_messages(cluster: Cluster, api: Api) -> None:
    failures: list[str] = []
    events = Events(api, "self", failures.append, settle=0.0, pace=0.01)
    for name in ("a" * 63, ".".join(["b" * 62] * 4), "c-0.d"):
        events.peer(name, f"uid-of-{name[0]}", 6, state="conflict", reason="ü\n\0" * 700, agents=0)
    events.own(uid_of(cluster, "self"), "PynetNotReady", "masquerade: nft is missing")
    until(lambda: sum(events.counts) == 4, "all answered")
    assert events.stop(5)
    assert failures == []
    assert events.counts == (4, 0)


def test_an_agent_that_may_not_create_events_says_so_once(cluster: Cluster, api: Api) -> None:
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]
    cluster.plane.service_account(rules=rules)
    failures: list[str] = []
    events = Events(api, "self", failures.append, settle=0.0, pace=0.01)
    try:
        # Rights take a moment to go: with each Event a new verdict.
        def refused() -> bool:
            tell(events, "bad", f"uid-{events.counts}")
            return bool(failures)

        until(refused, "refused")
        assert failures[0].startswith("we may not create events in namespace default (RBAC): ")
        assert "cannot create resource" in failures[0]
    finally:
        assert events.stop(5)
        cluster.plane.service_account()
    assert len(failures) == 1


def test_the_condition_is_merged_among_the_others(cluster: Cluster, api: Api) -> None:
    def conditions() -> dict[str, dict[str, Any]]:
        status = cluster.client.get("/api/v1/nodes/self")["status"]
        return {each["type"]: each for each in status.get("conditions", ())}

    before = conditions()
    condition = NodeCondition(api, "self")
    condition.observe(None)
    until(lambda: condition.ok, "accepted")
    after = conditions()
    ours = after.pop("NetworkUnavailable")
    assert (ours["status"], ours["reason"]) == RIGHT
    assert ours["lastTransitionTime"] == ours["lastHeartbeatTime"]
    assert after == before
    # Somebody else's reason, status False all the same: no transition.
    body = {"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "reason": "CalicoIsUp"}]}}
    cluster.client.patch("/api/v1/nodes/self/status", body)
    condition.observe(("False", "CalicoIsUp"))
    until(lambda: conditions()["NetworkUnavailable"]["reason"] == RIGHT[1], "asserted again")
    assert conditions()["NetworkUnavailable"]["lastTransitionTime"] == ours["lastTransitionTime"]
    assert condition.stop(5)
