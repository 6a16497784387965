"""Section 6: the agent may be replaced or killed at any time; no packet is lost."""

from __future__ import annotations

from tests.e2e.cluster import until
from tests.e2e.test_5_churn import no_packet_lost

FLAVOURS = ("ipv4", "dual")


def test_helm_upgrade_loses_no_packet(cluster, pods, pynet):
    before = {agent["metadata"]["uid"] for agent in pynet.agents().values()}
    with no_packet_lost(cluster):
        pynet.upgrade("--set-string", "podAnnotations.rolled=yes")
        until("every agent is a new one", lambda: pynet.ready() and not before & _uids(pynet), 180)


def test_helm_test_passes(pods, pynet):
    pynet.helm("test", "pynet", "--timeout", "90s")


def _uids(pynet):
    return {agent["metadata"]["uid"] for agent in pynet.agents().values()}


def test_kill_9_of_every_agent_loses_no_packet(cluster, pods, pynet):
    with no_packet_lost(cluster):
        for node in cluster.nodes:
            before = _restarts(pynet, node)
            process = cluster.on_node(node, "pgrep", "-f", "python3 -m pynet agent").split()
            cluster.on_node(node, "kill", "-9", *process)
            until(f"the agent of {node} has started again", lambda n=node, b=before: _restarts(pynet, n) > b, 60)
        until("every agent is ready", pynet.ready, 60)


def _restarts(pynet, node):
    statuses = pynet.agents()[node]["status"]["containerStatuses"]
    return next(status["restartCount"] for status in statuses if status["name"] == "agent")
