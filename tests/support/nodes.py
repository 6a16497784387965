"""Node objects as real clusters have them: 12 kB each, most of it what a network agent does not need.

Images with tags and digests, conditions, labels of a cloud; the API server adds managedFields. The small form (about 2 kB) is
for tests that are about something else.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONDITIONS = (
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
)
_TIME = "2026-01-01T00:00:00Z"
_IMAGES = 46


def node(
    name: str, pod_cidrs: Sequence[str] = (), addresses: Sequence[str] = (), *, full: bool = False, **extra: Any
) -> dict[str, Any]:
    """A Node object with these podCIDRs and InternalIPs. ``full``: with all that makes a real one 12 kB.

    ``extra``: ``annotations``, ``labels``, ``os`` (operating system, "linux" if not given).
    """
    os_name = extra.get("os", "linux")
    metadata: dict[str, Any] = {
        "name": name,
        "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": os_name,
            "kubernetes.io/arch": "amd64",
            **extra.get("labels", {}),
        },
        "annotations": {"node.alpha.kubernetes.io/ttl": "0", **extra.get("annotations", {})},
    }
    status: dict[str, Any] = {
        "addresses": [{"type": "Hostname", "address": name}, *({"type": "InternalIP", "address": a} for a in addresses)],
        "nodeInfo": {
            "architecture": "amd64",
            "bootID": "9a3a9e9e-6d5c-4c77-8a3c-0e5e0a6f2b10",
            "containerRuntimeVersion": "containerd://2.1.4",
            "kernelVersion": "6.12.41+deb13-amd64",
            "kubeProxyVersion": "",
            "kubeletVersion": "v1.34.4",
            "machineID": hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(),
            "operatingSystem": os_name,
            "osImage": "Debian GNU/Linux 13 (trixie)",
            "systemUUID": "4c4c4544-0034-4a10-8056-b7c04f4d3533",
        },
        "conditions": [
            {"type": t, "status": s, "reason": r, "message": m, "lastHeartbeatTime": _TIME, "lastTransitionTime": _TIME}
            for t, s, r, m in _CONDITIONS
        ],
    }
    body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": _spec(pod_cidrs), "status": status}
    if full:
        _fill(body)
    return body


def peer(i: int) -> tuple[str, str, str]:
    """Name, podCIDR and InternalIP of node ``i`` of a large cluster: a /24 in 10.128.0.0/10, 10.99.128.1 and on."""
    return f"node-{i:05d}", f"10.{128 + (i >> 8)}.{i & 255}.0/24", f"10.99.{128 + (i // 250)}.{1 + i % 250}"


def full_node(i: int, address: str = "") -> bytes:
    """Node ``i`` of a large cluster as JSON of 12 kB, ready to be sent."""
    name, cidr, usual = peer(i)
    return json.dumps(node(name, [cidr], [address or usual], full=True)).encode()


def _spec(pod_cidrs: Sequence[str]) -> dict[str, Any]:
    return {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)} if pod_cidrs else {}


def _digest(node: str, image: int) -> str:
    where = node if image % 8 < 5 else "everywhere"
    return hashlib.sha256(f"{where}/{image}".encode()).hexdigest()


def _fill(body: dict[str, Any]) -> None:
    """Add what makes a real Node large."""
    name = body["metadata"]["name"]
    body["spec"]["providerID"] = f"cloud:///zone-a/{name}"
    body["metadata"]["labels"] |= {
        "topology.kubernetes.io/region": "region-1",
        "topology.kubernetes.io/zone": "region-1a",
        "node.kubernetes.io/instance-type": "m6.2xlarge",
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": "amd64",
    }
    quantities = {
        "cpu": "8",
        "memory": "32599468Ki",
        "ephemeral-storage": "101430960Ki",
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
        "pods": "110",
    }
    body["status"]["capacity"] = quantities
    body["status"]["allocatable"] = quantities | {"cpu": "7910m", "memory": "31549868Ki", "ephemeral-storage": "93478772582"}
    body["status"]["daemonEndpoints"] = {"kubeletEndpoint": {"Port": 10250}}
    # Three images of eight are the same on all nodes, as those of DaemonSets are: a list of 5,000 then has the 8.5 MB (gzipped
    # protobuf) of the cluster for which the benchmark's goals were set.
    body["status"]["images"] = [
        {
            "names": [
                f"registry.example.com/team-{i % 7}/service-{i}@sha256:{_digest(name, i)}",
                f"registry.example.com/team-{i % 7}/service-{i}:v1.{i}.0",
            ],
            "sizeBytes": 12345678 + 4321 * i,
        }
        for i in range(_IMAGES)
    ]
