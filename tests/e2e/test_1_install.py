"""Section 1: a cluster without a network gets one with the chart, and says so."""

from __future__ import annotations

import json
import time

import pytest

from tests.e2e.cluster import until


@pytest.fixture(scope="session")
def bare(cluster, request):
    """The cluster before pynet; every Node says NetworkUnavailable=True, as a cloud provider leaves it."""
    if request.config.getoption("reuse"):
        pytest.skip("--reuse: pynet may be there already")
    condition = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "set by the test"}
    patch = json.dumps({"status": {"conditions": [condition]}})
    for node in cluster.nodes:
        cluster.kubectl("patch", "node", node, "--subresource=status", "--type=strategic", "-p", patch)
    return cluster


def test_nodes_are_not_ready_without_a_network(bare):
    for node in bare.nodes:
        ready = until(f"{node} says whether it is ready", lambda node=node: bare.condition(node, "Ready"))
        assert ready["status"] == "False"
        assert "cni plugin not initialized" in ready["message"]


def test_nodes_become_ready_with_the_chart(cluster, request, note):
    began = time.monotonic()
    request.getfixturevalue("pynet")
    until("every node is Ready", lambda: all(map(cluster.is_ready, cluster.nodes)), 90)
    note(f"helm install to all nodes Ready: {time.monotonic() - began:.1f} s")


def test_network_unavailable_is_taken_back(cluster, pynet):
    for node in cluster.nodes:
        condition = until(f"{node} has the condition", lambda node=node: cluster.condition(node, "NetworkUnavailable"), 30)
        assert condition["status"] == "False", condition


def test_coredns_runs(cluster, pynet):
    cluster.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s", timeout=100)


def test_every_node_has_a_route_of_ours_to_every_peer(cluster, pynet):
    cidrs = {node: cluster.pod_cidrs(node) for node in cluster.nodes}
    addresses = {node: cluster.node_addresses(node) for node in cluster.nodes}
    for node in cluster.nodes:
        for family in cluster.flavour.families:
            routes = json.loads(cluster.on_node(node, "ip", "-json", f"-{family}", "route", "show", "protocol", "110"))
            found = {(route["dst"], route.get("gateway")) for route in routes if route.get("type", "unicast") == "unicast"}
            assert found == {(cidrs[peer][family], addresses[peer][family]) for peer in cluster.nodes if peer != node}
