"""pynet in a cluster, as a user has it: the chart, installed, upgraded and removed with Helm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.e2e.cluster import REPOSITORY, CommandError, until

if TYPE_CHECKING:
    from tests.e2e.cluster import Cluster

CHART = REPOSITORY / "helm" / "pynet"
RELEASE = "pynet"
NAMESPACE = "pynet-system"
SELECTOR = "app.kubernetes.io/name=pynet,app.kubernetes.io/component=agent"
IMAGE = {"image.repository": "pynet", "image.tag": "e2e", "image.pullPolicy": "Never"}


class Release:
    """The Helm release of pynet in one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def helm(self, *arguments: str, timeout: float = 180, check: bool = True) -> str:
        """Run helm in the release's namespace."""
        return self.cluster.tool("helm", "--namespace", NAMESPACE, *arguments, timeout=timeout, check=check)

    def kubectl(self, *arguments: str, timeout: float = 60, check: bool = True) -> str:
        """Run kubectl in the release's namespace."""
        return self.cluster.tool("kubectl", "-n", NAMESPACE, *arguments, timeout=timeout, check=check)

    def installed(self) -> bool:
        """Whether the release is there."""
        return RELEASE in self.helm("list", "--short").split()

    def install(self, *arguments: str) -> None:
        """``helm install`` with the tests' image."""
        self.helm("install", RELEASE, str(CHART), "--create-namespace", *_settings(IMAGE), *arguments)

    def upgrade(self, *arguments: str) -> None:
        """``helm upgrade`` with the values that are set, and these."""
        self.helm("upgrade", RELEASE, str(CHART), "--reuse-values", *arguments)

    def uninstall(self) -> None:
        """``helm uninstall``, which waits for the nodes to be cleaned."""
        self.helm("uninstall", RELEASE, "--wait", "--timeout", "3m", timeout=200)

    def agents(self) -> dict[str, dict[str, Any]]:
        """The agents' pods by node, without those that are going or have no node yet."""
        items = json.loads(self.kubectl("get", "pods", "-l", SELECTOR, "-o", "json"))["items"]
        there = [item for item in items if "deletionTimestamp" not in item["metadata"] and "nodeName" in item["spec"]]
        return {item["spec"]["nodeName"]: item for item in there}

    def ready(self) -> bool:
        """Whether every node has a ready agent of the DaemonSet's present revision."""
        sets = json.loads(self.kubectl("get", "daemonset", "-l", SELECTOR, "-o", "json"))["items"]
        if len(sets) != 1:
            return False
        status, wanted = sets[0]["status"], len(self.cluster.nodes)
        return (
            status.get("observedGeneration") == sets[0]["metadata"]["generation"]
            and status.get("updatedNumberScheduled") == status.get("numberReady") == wanted
        )

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait for that."""
        until("an agent ready on every node", self.ready, timeout)

    def in_agent(self, node: str, *command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a command in the agent's container of a node."""
        agent = self.agents().get(node)
        if agent is None:
            raise CommandError(f"there is no agent on {node}")
        return self.kubectl("exec", agent["metadata"]["name"], "-c", "agent", "--", *command, timeout=timeout, check=check)

    def log(self, node: str) -> str:
        """What the agent of a node has logged."""
        return self.kubectl("logs", self.agents()[node]["metadata"]["name"], "-c", "agent")

    def status(self, node: str) -> Any:
        """What ``pynet status`` says on a node. Raises CommandError if there is no agent that could be asked."""
        said = self.in_agent(node, "pynet", "status", "--output", "json", check=False)
        if not said.startswith("{"):
            raise CommandError(f"pynet status on {node}: {said}")
        return json.loads(said)


def _settings(values: dict[str, str]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
