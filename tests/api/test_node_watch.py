"""The Node watcher alone, on a real API server: what it keeps of the Nodes is what the API server has, whatever happens."""

from __future__ import annotations

import calendar
import time
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from pynet.core.model import NodeFacts
from pynet.drivers import nodeapi
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api
from pynet.observe.inbox import NodeInbox, NodeList
from pynet.observe.nodes import NodeWatch, Timing

from tests.support.nodes import full_node, peer
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster

QUICK = Timing(silence=5.0, settled=0.5, backoff=(0.05, 1.0))


class _Watched:
    """A NodeWatch in a node's namespace, and the Nodes as its inbox told them."""

    def __init__(self, cluster: Cluster) -> None:
        node = cluster.join("self")
        self.inbox = NodeInbox(lambda: None)
        self.api = Api(from_token_files(cluster.plane.url, node.token_file, node.ca_file))
        self.watch = NodeWatch(self.api, self.inbox, "self", log=structlog.get_logger(), timing=QUICK)
        self.nodes: dict[str, NodeFacts] = {}
        self.lists: list[NodeList] = []
        self.changes = 0
        with node.namespace.entered():  # a thread begins in the namespace of the one that starts it
            self.watch.start()

    def seen(self) -> dict[str, NodeFacts]:
        drained = self.inbox.drain()
        if drained.listed:
            self.lists.append(drained.listed)
            self.nodes = dict(drained.listed.nodes)
        for name, history in drained.changed.items():
            self.changes += len(history)
            for change in history:
                if change.facts is not None:
                    self.nodes[name] = change.facts
                else:
                    self.nodes.pop(name, None)
        return self.nodes


@pytest.fixture
def watched(cluster: Cluster) -> Iterator[_Watched]:
    cluster.add("self", ["10.201.0.0/24"], ["10.99.0.2"])
    cluster.client.each(lambda i: cluster.client.create("/api/v1/nodes", full_node(i)), range(250))
    made = _Watched(cluster)
    yield made
    made.watch.stop()
    made.api.close()


def _expected(cluster: Cluster) -> dict[str, NodeFacts]:
    """What the watcher ought to keep, read as JSON by the tests' own client."""
    return {n["metadata"]["name"]: _facts(n) for n in cluster.client.get("/api/v1/nodes")["items"]}


def _facts(node: dict[str, Any]) -> NodeFacts:
    meta, status = node["metadata"], node["status"]
    conditions = {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}
    return NodeFacts(
        name=meta["name"],
        uid=meta["uid"],
        created=calendar.timegm(time.strptime(meta["creationTimestamp"], "%Y-%m-%dT%H:%M:%SZ")),
        pod_cidrs=tuple(node["spec"].get("podCIDRs", ())),
        internal_ips=tuple(a["address"] for a in status["addresses"] if a["type"] == "InternalIP"),
        node_ip=meta["annotations"].get("pynet.io/node-ip", ""),
        os=status["nodeInfo"]["operatingSystem"],
        condition=conditions.get("NetworkUnavailable") if meta["name"] == "self" else None,
    )


def _agrees(cluster: Cluster, watched: _Watched, seconds: float = 20) -> None:
    until(lambda: watched.seen() == _expected(cluster), "the same Nodes as the API server has", seconds=seconds)


def test_list_and_changes_agree_with_the_api_server(cluster: Cluster, watched: _Watched) -> None:
    _agrees(cluster, watched)
    assert (watched.lists[0].consistent, watched.lists[0].complete) == (True, True)

    cluster.client.each(lambda i: cluster.remove(peer(i)[0]), range(50))
    cluster.client.each(lambda i: cluster.client.create("/api/v1/nodes", full_node(i)), range(20, 30))
    cluster.client.each(lambda i: cluster.readdress(peer(i)[0], ["10.99.7.7", "fd99::77"]), range(100, 150))
    cluster.client.patch(f"/api/v1/nodes/{peer(200)[0]}", {"metadata": {"annotations": {"pynet.io/node-ip": "10.99.9.9"}}})
    condition = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    cluster.client.patch("/api/v1/nodes/self/status", {"status": {"conditions": [condition]}})

    _agrees(cluster, watched)
    assert len(watched.lists) == 1


def test_json_says_the_same_as_protobuf(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodeapi.NodeApi, "protobuf", False)
    cluster.add("self", ["10.201.0.0/24"], ["10.99.0.2"])
    cluster.client.each(lambda i: cluster.client.create("/api/v1/nodes", full_node(i)), range(250))
    watched = _Watched(cluster)
    try:
        _agrees(cluster, watched)
        cluster.client.each(lambda i: cluster.remove(peer(i)[0]), range(50))
        _agrees(cluster, watched)
    finally:
        watched.watch.stop()
        watched.api.close()


def test_heartbeats_are_no_changes(cluster: Cluster, watched: _Watched) -> None:
    _agrees(cluster, watched)
    changes = watched.changes

    for second in range(30):
        beat = {"type": "Ready", "lastHeartbeatTime": f"2026-02-01T00:00:{second:02d}Z"}
        cluster.client.patch(f"/api/v1/nodes/{peer(second)[0]}/status", {"status": {"conditions": [beat]}})
    cluster.remove(peer(99)[0])

    _agrees(cluster, watched)
    assert watched.changes == changes + 1


def test_restarted_and_compacted_api_server_is_listed_again(cluster: Cluster, watched: _Watched) -> None:
    _agrees(cluster, watched)

    cluster.plane.kill()
    cluster.plane.compact()
    cluster.plane.start()
    cluster.remove(peer(1)[0])
    cluster.client.create("/api/v1/nodes", full_node(300))

    _agrees(cluster, watched)
    assert watched.inbox.connected
    assert watched.inbox.error == ""


def test_relist_makes_a_consistent_list_at_once(cluster: Cluster, watched: _Watched) -> None:
    _agrees(cluster, watched)
    asked = time.monotonic()

    watched.watch.relist()

    until(lambda: watched.seen() and len(watched.lists) == 2, "a second list", seconds=3)
    assert watched.lists[1].may_remove
    assert watched.lists[1].started >= asked
    cluster.remove(peer(1)[0])
    _agrees(cluster, watched)
