"""Who is measured: pynet, and others doing the same work on the same cluster.

A contestant is a command line for one node. Its routes are told from others by their prefixes, not by their protocol.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.support.cluster import Agent

HERE = Path(__file__).parent
CLUSTER_CIDR = "10.128.0.0/10"


class Contestant(NamedTuple):
    """``command`` writes what the process needs into the agent's folder and returns its command line.

    ``repairs``: it puts back what others change, so that lines about repair make sense. ``full``: it does all that a node needs
    (rules, conflist, condition, snapshot). ``note`` says what it is.
    """

    name: str
    note: str
    command: Callable[[Agent], tuple[str, ...]]
    repairs: bool = False
    full: bool = False


def contestants() -> list[Contestant]:
    """Those that can be had here: pynet, the stock baseline, the prototype if PROTOTYPE names it, flanneld if FLANNELD does."""
    found = [
        Contestant("pynet", "`pynet agent`", _pynet, repairs=True, full=True),
        Contestant("stock", "kubernetes' Watch and pyroute2's IPRoute (benchmarks/stock.py): routes only", _stock),
    ]
    if path := os.environ.get("PROTOTYPE"):
        found.append(Contestant("prototype", f"the prototype, {path}", partial(_prototype, path=path), repairs=True))
    if path := os.environ.get("FLANNELD"):
        found.append(Contestant("flanneld", f"flanneld, host-gw, {path}", partial(_flanneld, path=path), repairs=True))
    return found


def _pynet(agent: Agent) -> tuple[str, ...]:
    agent.config["clusterCIDRs"] = [CLUSTER_CIDR]
    return agent.command()


def _stock(agent: Agent) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "stock.py"), "--kubeconfig", _kubeconfig(agent), "--node-name", agent.name)


def _prototype(agent: Agent, path: str) -> tuple[str, ...]:
    config = agent.folder / "prototype.json"
    config.write_text(json.dumps({"clusterCIDRs": [CLUSTER_CIDR], "cni": {"confDir": str(agent.conf_dir)}}))
    return (
        sys.executable,
        path,
        "agent",
        "--kubeconfig",
        _kubeconfig(agent),
        "--node-name",
        agent.name,
        "--config",
        str(config),
    )


def _flanneld(agent: Agent, path: str) -> tuple[str, ...]:
    network = agent.folder / "net-conf.json"
    network.write_text(json.dumps({"Network": CLUSTER_CIDR, "Backend": {"Type": "host-gw"}}))
    return (
        "env", f"NODE_NAME={agent.name}", path, "--kube-subnet-mgr", "--kubeconfig-file", _kubeconfig(agent),
        "--iface", "eth0", "--net-config-path", str(network), "--subnet-file", str(agent.folder / "subnet.env"), "--ip-masq",
    )  # fmt: skip


def flannel_annotations(address: str) -> dict[str, str]:
    """What flanneld wants to find on each Node."""
    prefix = "flannel.alpha.coreos.com/"
    return {
        f"{prefix}backend-type": "host-gw",
        f"{prefix}public-ip": address,
        f"{prefix}kube-subnet-manager": "true",
        f"{prefix}backend-data": "null",
    }


def _kubeconfig(agent: Agent) -> str:
    """A kubeconfig (in JSON, which is YAML) with the agent's token."""
    path = agent.folder / "kubeconfig"
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": agent.url, "certificate-authority": str(agent.ca_file)}}],
        "users": [{"name": "u", "user": {"token": agent.token_file.read_text()}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path.write_text(json.dumps(content))
    return str(path)
