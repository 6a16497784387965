"""What the uninstall hook runs on a node: `pynet cleanup`, and a result that the hook's Job can read."""

from __future__ import annotations

import fcntl
import json
import sys
from pathlib import Path

import pytest

from tests.support.netns import Namespace


class Node:
    """A node with a route and a conflist of ours, and the program that cleans it."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self.namespace = namespace
        self.run_dir = folder / "run"
        self.conflist = folder / "net.d/05-pynet.conflist"
        self.result = folder / "result"
        self.config = folder / "config.yaml"
        for path in (self.run_dir, self.conflist.parent):
            path.mkdir()
        self.conflist.write_text("{}")
        cni = {"confDir": str(self.conflist.parent), "binDir": str(folder / "bin"), "ipamDir": str(self.run_dir / "ipam")}
        self.config.write_text(json.dumps({"runDir": str(self.run_dir), "stateDir": str(folder / "state"), "cni": cni}))
        namespace.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
        namespace.run("ip", "link", "set", "far0", "up")
        namespace.run("ip", "link", "set", "eth0", "up")
        namespace.run("ip", "addr", "add", "10.99.0.1/24", "dev", "eth0")
        namespace.run("ip", "route", "add", "10.201.1.0/24", "via", "10.99.0.2", "proto", "110", "metric", "100")

    def clean(self) -> list[str]:
        """Run the program as the hook's DaemonSet does; returns what stays."""
        command = (sys.executable, "-m", "pynet.uninstall", "--node", "--config", str(self.config))
        self.namespace.run(*command, "--result", str(self.result))
        stays: list[str] = json.loads(self.result.read_text())["stays"]
        return stays

    def routes(self) -> str:
        return self.namespace.run("ip", "route", "show", "proto", "110")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    with Namespace() as namespace:
        yield Node(namespace, tmp_path)


def test_node_without_pods_is_clean_afterwards(node: Node) -> None:
    assert node.routes()

    assert node.clean() == []
    assert node.routes() == ""
    assert not node.conflist.exists()
    assert node.clean() == []  # again: nothing to do


def test_bridge_with_a_pod_stays_and_is_named(node: Node) -> None:
    node.namespace.run("ip", "link", "add", "pynet0", "type", "bridge")
    node.namespace.run("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "eth1")
    node.namespace.run("ip", "link", "set", "veth1", "master", "pynet0")

    assert node.clean() == ["bridge pynet0: pods still use it (veth1)"]
    assert node.routes() == ""


def test_agent_that_still_runs_is_told(node: Node) -> None:
    with (node.run_dir / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (said,) = node.clean()

    assert "stop the agent first" in said
    assert node.routes()


def test_configuration_that_cannot_be_read_is_told(node: Node) -> None:
    node.config.write_text("routes: {metric: 300}")

    (said,) = node.clean()

    assert "routes.metric is 300" in said
