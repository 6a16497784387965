"""The ValidatingAdmissionPolicy: an agent's own token changes one condition of one Node, and nothing else of any."""

from __future__ import annotations

import json

import pytest

from tests.e2e.cluster import CommandError
from tests.e2e.release import NAMESPACE

FLAVOURS = ("ipv4",)
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


@pytest.fixture(scope="module")
def patch(cluster, pynet, tmp_path_factory):
    """patch(node, what): change a Node's status as the agent of the first worker; raises CommandError if it may not."""
    token = pynet.in_agent(cluster.workers[0], "python3", "-c", f"print(open('{TOKEN}').read())").strip()
    # A kubeconfig without the administrator's certificate, which would win over the token.
    config = json.loads(cluster.tool("kubectl", "config", "view", "--raw", "--minify", "-o", "json"))
    config["users"][0]["user"] = {"token": token}
    path = tmp_path_factory.mktemp("agent") / "kubeconfig"
    path.write_text(json.dumps(config))

    def do(node, what, kind="strategic"):
        arguments = ("patch", "node", node, "--subresource=status", f"--type={kind}", "-p", json.dumps(what))
        return cluster.tool("kubectl", "--kubeconfig", str(path), *arguments)

    return do


def condition(kind, reason="Test"):
    return {"status": {"conditions": [{"type": kind, "status": "False", "reason": reason, "message": "by the test"}]}}


def test_an_agent_may_set_network_unavailable_of_its_own_node(cluster, patch):
    patch(cluster.workers[0], condition("NetworkUnavailable"))
    assert cluster.condition(cluster.workers[0], "NetworkUnavailable")["status"] == "False"


@pytest.mark.parametrize(
    "what",
    [
        condition("Ready"),
        condition("SomethingNew"),
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
        {"metadata": {"annotations": {"pynet.io/node-ip": "192.0.2.1"}}},
        {"metadata": {"finalizers": ["example.org/hold"]}},
        {"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}},
        {"status": {"capacity": {"example.org/gold": "1"}}},
        {"status": {"nodeInfo": {"kernelVersion": "1"}}},
    ],
    ids=["ready", "new-condition", "labels", "annotations", "finalizers", "addresses", "capacity", "node-info"],
)
def test_an_agent_may_change_nothing_else_of_its_own_node(cluster, patch, what):
    with pytest.raises(CommandError, match="an agent of pynet may"):
        patch(cluster.workers[0], what)


def test_an_agent_may_not_change_another_node(cluster, patch):
    with pytest.raises(CommandError, match="its own Node only"):
        patch(cluster.workers[1], condition("NetworkUnavailable"))


def test_an_agent_may_not_take_conditions_away(cluster, patch):
    with pytest.raises(CommandError, match="no condition but NetworkUnavailable"):
        patch(cluster.workers[0], {"status": {"conditions": []}}, kind="merge")


def test_a_token_without_a_node_is_refused(cluster, pynet):
    arguments = ("patch", "node", cluster.workers[0], "--subresource=status", "-p", json.dumps(condition("NetworkUnavailable")))
    with pytest.raises(CommandError, match="its own Node only"):
        cluster.tool("kubectl", *arguments, "--as", f"system:serviceaccount:{NAMESPACE}:pynet")
