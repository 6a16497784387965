"""What a lab consists of: names, addresses and folders, all following from its number and size.

A lab is a hub (a bridge, and the Node API) and nodes with pods, each in its own network namespace:
``pynet-lab-1-hub``, ``pynet-lab-1-node-2``, ``pynet-lab-1-pod-2-1``. Its files are in ``/run/pynet-lab-1``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pynet.core.model import Family

PREFIX: Final = "pynet-lab-"
"""Every namespace and folder of a lab begins with this: that is how ``--clean`` finds them."""

RUN: Final = Path("/run")
NAMESPACES: Final = Path("/run/netns")
BRIDGE: Final = "br0"
UPLINK: Final = "eth0"
LAB_LABEL: Final = "pynet.io/lab"
"""The label by which a lab's Nodes are told from all others in a real cluster; its value is the lab's own random token."""

API_PORT: Final = 6443
MAX_NODES: Final = 64
MAX_PODS: Final = 8

NODE_NETWORK: Final[dict[Family, tuple[str, int]]] = {4: ("192.168.77.{}", 24), 6: ("fd77::{:x}", 64)}
POD_NETWORK: Final[dict[Family, str]] = {4: "10.77.{}.0/24", 6: "fd77:0:1:{:x}::/64"}
CLUSTER_CIDR: Final[dict[Family, str]] = {4: "10.77.0.0/16", 6: "fd77:0:1::/48"}
HUB: Final = 254
"""The last part of the hub's address; a node's is its index."""


class LabError(Exception):
    """What keeps a lab from standing, in one line."""


class PodPlan(msgspec.Struct, frozen=True):
    """A pod: its name ("pod-2-1" is the first of node 2) and its namespace. Its addresses are the CNI plugin's choice."""

    name: str
    namespace: str


class NodePlan(msgspec.Struct, frozen=True):
    """A node: ``name`` in the Node API, ``addresses`` and ``pod_cidrs`` one per family of the lab, ``folder`` for its agent."""

    index: int
    name: str
    namespace: str
    port: str
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    pods: tuple[PodPlan, ...]
    folder: Path

    @property
    def conf_dir(self) -> Path:
        """Where the node's agent writes its conflist (on a real node: /etc/cni/net.d)."""
        return self.folder / "cni" / "net.d"

    @property
    def config_file(self) -> Path:
        """The agent's configuration file."""
        return self.folder / "config.yaml"

    @property
    def log_file(self) -> Path:
        """What the agent logs."""
        return self.folder / "agent.log"


class Plan(msgspec.Struct, frozen=True):
    """A whole lab. ``families`` is (4,), (6,) or (4, 6); ``hub_addresses`` has one per family."""

    number: int
    families: tuple[Family, ...]
    hub: str
    hub_addresses: tuple[str, ...]
    nodes: tuple[NodePlan, ...]
    folder: Path

    @property
    def api_url(self) -> str:
        """The Node API, as the nodes reach it."""
        address = self.hub_addresses[0]
        return f"http://[{address}]:{API_PORT}" if ":" in address else f"http://{address}:{API_PORT}"

    @property
    def pods(self) -> tuple[tuple[NodePlan, PodPlan], ...]:
        """Every pod with its node, in order."""
        return tuple((node, pod) for node in self.nodes for pod in node.pods)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Every namespace, the hub's first."""
        return (self.hub, *(node.namespace for node in self.nodes), *(pod.namespace for _, pod in self.pods))


def folder_of(number: int) -> Path:
    """Where the files of lab ``number`` are."""
    return RUN / f"{PREFIX}{number}"


def make_plan(number: int, nodes: int, pods: int, families: tuple[Family, ...], node_prefix: str = "") -> Plan:
    """Lay out a lab: ``nodes`` nodes with ``pods`` pods each. ``node_prefix`` comes before "node-1" in the Node API."""
    base = f"{PREFIX}{number}"
    return Plan(
        number=number,
        families=families,
        hub=f"{base}-hub",
        hub_addresses=tuple(NODE_NETWORK[family][0].format(HUB) for family in families),
        nodes=tuple(
            NodePlan(
                index=index,
                name=f"{node_prefix}node-{index}",
                namespace=f"{base}-node-{index}",
                port=f"node-{index}",
                addresses=tuple(NODE_NETWORK[family][0].format(index) for family in families),
                pod_cidrs=tuple(POD_NETWORK[family].format(index) for family in families),
                pods=tuple(PodPlan(f"pod-{index}-{pod}", f"{base}-pod-{index}-{pod}") for pod in range(1, pods + 1)),
                folder=folder_of(number) / f"node-{index}",
            )
            for index in range(1, nodes + 1)
        ),
        folder=folder_of(number),
    )
