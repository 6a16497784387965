"""What runs in a lab: the Node API in the hub, one real agent on each node; started, registered, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pynet.commands.lab import processes, reach
from pynet.commands.lab.plan import API_PORT, CLUSTER_CIDR, LAB_LABEL, LabError, NodePlan, Plan

Json = dict[str, Any]

API_SECONDS: Final = 15.0
READY_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.03
"""How often a process that is starting is asked whether it is there: it has nobody to tell."""

LOG_LINES: Final = 5

_UNTOLD: Final = (
    "architecture", "bootID", "containerRuntimeVersion", "kernelVersion", "kubeProxyVersion", "kubeletVersion", "machineID",
    "systemUUID",
)  # fmt: skip
"""What a Node must tell of its machine (core/v1 NodeSystemInfo), and a lab's has not."""


def start_api(plan: Plan, kubeconfig: str, check: Callable[[], None]) -> None:
    """Start the Node API of the hub, embedded or a relay to a real cluster's, and wait until it answers. Raises LabError."""
    where = [plan.hub_addresses[0], str(API_PORT)]
    if kubeconfig:  # the relay stays in the host's namespace, and listens in the hub's
        command = processes.python("-m", "pynet.commands.lab.cluster", kubeconfig, plan.hub, *where)
        process = processes.start(plan.folder, "api", command, plan.folder / "api.log")
    else:
        command = processes.python("-m", "pynet.commands.lab.apiserver", *where)
        process = processes.start(plan.folder, "api", command, plan.folder / "api.log", plan.hub)
    _until(lambda: _answers(plan), [process], API_SECONDS, check, lambda: _last_lines(plan.folder / "api.log"))


def register(plan: Plan, nodes: Sequence[NodePlan], token: str) -> None:
    """Create the Node objects, as kubelets would. Raises LabError with the API's words."""
    with reach.node_api(plan) as api:
        for node in nodes:
            reach.ask(api, "POST", "/api/v1/nodes", node_object(node, token))


def unregister(plan: Plan, name: str) -> None:
    """Delete a Node object. Raises LabError with the API's words."""
    with reach.node_api(plan) as api:
        reach.ask(api, "DELETE", f"/api/v1/nodes/{name}")


def start_agents(plan: Plan, plugins: Path) -> list[processes.Process]:
    """Start `pynet agent` on each node. Raises LabError."""
    started = []
    for node in plan.nodes:
        node.conf_dir.mkdir(parents=True)
        node.config_file.write_bytes(configuration(plan, node, plugins))
        command = processes.python(
            "-m", "pynet", "agent", "--config", str(node.config_file), "--node-name", node.name,
            "--api-server", plan.api_url, "--log-format", "json",
        )  # fmt: skip
        started.append(processes.start(plan.folder, f"agent-{node.index}", command, node.log_file, node.namespace))
    return started


def await_ready(plan: Plan, agents: Sequence[processes.Process], check: Callable[[], None]) -> None:
    """Wait until each agent says that it is ready. Raises LabError with the agent's own reason."""
    for node, agent in zip(plan.nodes, agents, strict=True):
        _until(partial(_ready, node), [agent], READY_SECONDS, check, partial(_why_not, node))


def node_object(node: NodePlan, token: str) -> Json:
    """Make the Node object that a kubelet and kube-controller-manager would make, as far as it matters here."""
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/os": "linux", LAB_LABEL: token}},
        # Unschedulable: in a real cluster no pod of other people may land here.
        "spec": {"podCIDR": node.pod_cidrs[0], "podCIDRs": list(node.pod_cidrs), "unschedulable": True},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address} for address in node.addresses],
            "conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}],
            "nodeInfo": {"operatingSystem": "linux", "osImage": "pynet lab", **dict.fromkeys(_UNTOLD, "")},
        },
    }


def configuration(plan: Plan, node: NodePlan, plugins: Path) -> bytes:
    """Write a node's configuration file: the defaults, but for the folders and what a lab cannot know."""
    import yaml

    settings: Json = {
        "clusterCIDRs": [CLUSTER_CIDR[family] for family in plan.families],
        "cni": {
            "confDir": str(node.conf_dir),
            "ipamDir": str(node.folder / "ipam"),
            "binDir": str(plugins),
        },
        "stateDir": str(node.folder / "state"),
        "runDir": str(node.folder / "run"),
    }
    text: str = yaml.safe_dump(settings, sort_keys=False)
    return text.encode()


def _until(
    done: Callable[[], bool],
    needed: Sequence[processes.Process],
    seconds: float,
    check: Callable[[], None],
    why: Callable[[], str],
) -> None:
    """Wait until ``done``. Raises LabError, with the words of ``why``, once time is up or a process that it needs has ended."""
    deadline = time.monotonic() + seconds
    while not done():
        check()
        for process in needed:
            if not processes.alive(process):
                raise LabError(f"{process.name} has ended: {why()}")
        if time.monotonic() > deadline:
            raise LabError(f"{needed[0].name} was not ready within {seconds:g} s: {why()}")
        time.sleep(LOOK_SECONDS)


def _answers(plan: Plan) -> bool:
    try:
        with reach.connected(plan.hub, plan.hub_addresses[0], API_PORT) as api:
            reach.ask(api, "GET", "/api/v1/nodes?limit=1")
    except (OSError, reach.Answer):
        return False
    return True


def _ready(node: NodePlan) -> bool:
    try:
        reach.health(node, "/readyz")
    except (OSError, reach.Answer):
        return False
    return True


def _why_not(node: NodePlan) -> str:
    """Return the agent's own reason, else the end of its log."""
    try:
        reach.health(node, "/readyz")
    except reach.Answer as answer:
        return str(answer).strip()
    except OSError:
        return _last_lines(node.log_file)
    return "it is ready now"


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    return "\n".join(["the end of its log:", *lines]) if lines else f"it logged nothing ({log})"
