"""What a user can get wrong: refused with the key's name, or shown as not ready with its reason where a user looks."""

from __future__ import annotations

import json

import pytest

from tests.e2e.cluster import CommandError, run, until
from tests.e2e.release import CHART, RELEASE

FLAVOURS = ("ipv4",)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("updateStrategy.type=Slowly", "updateStrategy"),
        ("config.cni.plugin=macvlan", "plugin"),
        ("config.routes.metric=many", "metric"),
        ("config.resyncSecond=3", "resyncSecond"),
        ("nodeSelectors.a=b", "nodeSelectors"),
    ],
)
def test_wrong_values_are_refused_with_the_keys_name(setting, key):
    with pytest.raises(CommandError) as refused:
        run("helm", "template", RELEASE, str(CHART), "--set", setting)
    assert key in str(refused.value).removeprefix(f"helm template {RELEASE} {CHART} --set {setting}")


def not_ready(pynet, node, *words):
    """Until the agent of a node is not ready and says all of ``words`` among its reasons; returns the reasons."""

    def says():
        status = pynet.status(node)
        reasons = json.dumps(status.get("reasons"))
        return reasons if not status["ready"] and all(word in reasons for word in words) else ""

    return until(f"pynet status of {node} says {words}", says, 120)


def test_a_taken_metrics_port_shows_as_not_ready_with_its_reason(cluster, pods, pynet):
    """The tests' pods in the hosts' network listen on 18080."""
    before = pynet.agents()
    pynet.upgrade("--set", "config.metrics.port=18080")
    try:
        node = until("one agent is a new one", lambda: _replaced(pynet, before), 60)
        not_ready(pynet, node, "18080")
        assert "18080" in pynet.log(node)
        assert not pynet.ready()
    finally:
        pynet.upgrade("--set", "config.metrics.port=9793")
    pynet.wait_ready()


def _replaced(pynet, before):
    """A node whose agent is another pod than before, and runs."""
    for node, agent in pynet.agents().items():
        statuses = agent["status"].get("containerStatuses", [])
        if agent["metadata"]["uid"] != before[node]["metadata"]["uid"] and statuses and "running" in statuses[0]["state"]:
            return node
    return None


def test_missing_permissions_show_as_not_ready_with_their_reason(cluster, pods, pynet):
    node = cluster.workers[0]
    cluster.kubectl("delete", "clusterrolebinding", RELEASE)
    try:
        # A watch that is open stays open: only a new agent notices.
        pynet.kubectl("delete", "pod", pynet.agents()[node]["metadata"]["name"])
        until("a new agent runs", lambda: pynet.in_agent(node, "pynet", "version"))
        not_ready(pynet, node, "forbidden")
        assert "forbidden" in pynet.log(node)
    finally:
        pynet.upgrade()
    pynet.wait_ready()


def test_an_image_without_plugins_says_so_where_the_node_lacks_one(cluster, pods, pynet, tmp_path):
    node = cluster.workers[1]
    run("docker", "build", "--tag", "pynet:no-plugins", "-", stdin="FROM pynet:e2e\nRUN rm -f /opt/cni/bin/*\n", timeout=120)
    run("docker", "save", "--output", str(tmp_path / "image.tar"), "pynet:no-plugins", timeout=120)
    cluster.load(str(tmp_path / "image.tar"))
    cluster.on_node(node, "rm", "/opt/cni/bin/bridge")
    not_ready(pynet, node, "bridge")
    try:
        pynet.upgrade("--set", "image.tag=no-plugins", "--set", "updateStrategy.rollingUpdate.maxUnavailable=100%")
        message = until("the init container says why", lambda: _termination_message(pynet, node), 90)
        assert "plugin bridge is neither in" in message
    finally:
        pynet.upgrade("--set", "image.tag=e2e")
    pynet.wait_ready()
    assert cluster.on_node(node, "test", "-x", "/opt/cni/bin/bridge") == ""


def _termination_message(pynet, node):
    agent = pynet.agents().get(node)
    statuses = agent["status"].get("initContainerStatuses", []) if agent else []
    ended = [status[key].get("terminated") for status in statuses for key in ("state", "lastState")]
    return "".join(end.get("message", "") for end in ended if end)
