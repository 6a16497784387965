"""Section 7: workloads deleted, then ``helm uninstall``: nothing of pynet is left, on no node and not in the API."""

from __future__ import annotations

from tests.e2e import release
from tests.e2e.cluster import NAMESPACE, node_state

FLAVOURS = ("ipv4", "dual")


def test_uninstall_leaves_nothing(cluster, pynet):
    cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s", timeout=130)
    # CoreDNS' pods are pods of ours too.
    cluster.kubectl("-n", "kube-system", "scale", "deployment/coredns", "--replicas=0")
    cluster.wait_gone("-n", "kube-system", "pods", "-l", "k8s-app=kube-dns")
    pynet.uninstall()
    assert_nodes_as_before(cluster)
    cluster.tool("kubectl", "delete", "namespace", release.NAMESPACE)
    assert objects_of_ours(cluster) == []


def assert_nodes_as_before(cluster):
    """Nothing is on a node that was not there before pynet, and all of that still is."""
    left = {node: sorted(node_state(cluster, node) - cluster.before[node]) for node in cluster.nodes}
    assert left == {node: [] for node in cluster.nodes}
    assert {node: sorted(cluster.before[node] - node_state(cluster, node)) for node in cluster.nodes} == left


def objects_of_ours(cluster):
    """Objects of any kind whose name has pynet in it."""
    kinds = cluster.tool("kubectl", "api-resources", "--verbs=list", "-o", "name").split()
    listed = [kind for kind in kinds if not kind.startswith("events")]
    names = cluster.tool("kubectl", "get", ",".join(listed), "-A", "-o", "name", timeout=120).split()
    return [name for name in names if "pynet" in name.split("/")[1]]
