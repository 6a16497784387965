"""The ValidatingAdmissionPolicy: an agent's own token changes one condition of one Node, and nothing else of any."""

from __future__ import annotations

import base64
import functools
import json

import pytest
import urllib3
import yaml

from tests.e2e.cluster import CommandError

FLAVOURS = ("ipv4",)
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def server(cluster, tmp_path_factory):
    """A function that sends a PATCH of a Node's status with a token, as an agent does (kubectl would read first)."""
    entry = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    ca = tmp_path_factory.mktemp("ca") / "ca.crt"
    ca.write_bytes(base64.b64decode(entry["certificate-authority-data"]))
    pool = urllib3.PoolManager(ca_certs=str(ca))

    def send(token, node, what, kind="strategic-merge"):
        headers = {"Authorization": f"Bearer {token}", "Content-Type": f"application/{kind}-patch+json"}
        url = f"{entry['server']}/api/v1/nodes/{node}/status"
        answer = pool.request("PATCH", url, body=json.dumps(what), headers=headers, timeout=10)
        if answer.status != 200:
            raise CommandError(answer.json()["message"])

    return send


@pytest.fixture(scope="module")
def patch(cluster, pynet, tmp_path_factory):
    """patch(node, what): change a Node's status as the agent of the first worker; raises CommandError if it may not."""
    token = pynet.in_agent(cluster.workers[0], "python3", "-c", f"print(open('{TOKEN}').read())").strip()
    return functools.partial(server(cluster, tmp_path_factory), token)


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


def test_a_token_without_a_node_is_refused(cluster, pynet, tmp_path_factory):
    token = pynet.kubectl("create", "token", "pynet").strip()
    with pytest.raises(CommandError, match="its own Node only"):
        server(cluster, tmp_path_factory)(token, cluster.workers[0], condition("NetworkUnavailable"))
