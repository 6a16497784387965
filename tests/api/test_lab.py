"""The lab with a real cluster's Node API: agents in the lab's network reach it through the relay, and nothing stays there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.cluster import Cluster

NODES = "/api/v1/nodes"


@pytest.fixture
def kubeconfig(cluster: Cluster, tmp_path: Path) -> Path:
    """A kubeconfig of an administrator, as seen from the control plane's own host."""
    path, plane = tmp_path / "kubeconfig", cluster.plane
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "it",
                "clusters": [{"name": "it", "cluster": {"server": plane.url, "certificate-authority": str(plane.ca_file)}}],
                "users": [{"name": "it", "user": {"token": cluster.client.token}}],
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            }
        )
    )
    return path


def lab(cluster: Cluster, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run ``pynet lab`` on the control plane's host."""
    enter = ["nsenter", f"--net={cluster.plane.namespace.path}", "--"]
    command = [*enter, sys.executable, "-m", "pynet", "lab", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_lab_of_a_real_cluster_stands_and_leaves_no_node_there(cluster: Cluster, kubeconfig: Path) -> None:
    cluster.add("somebody-elses", ["10.244.9.0/24"], ["10.99.0.9"])
    done = lab(cluster, "--nodes", "2", "--pods", "1", "--kubeconfig", str(kubeconfig), "--output", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert [node["name"] for node in result["nodes"]] == [f"lab-{result['lab']}-node-{index}" for index in (1, 2)]
    assert [node["metadata"]["name"] for node in cluster.client.get(NODES)["items"]] == ["somebody-elses"]


def test_a_kept_lab_of_a_real_cluster_is_removed_with_its_nodes(cluster: Cluster, kubeconfig: Path) -> None:
    done = lab(cluster, "--nodes", "1", "--pods", "2", "--kubeconfig", str(kubeconfig), "--keep", "--output", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    number = str(json.loads(done.stdout)["lab"])
    assert [node["metadata"]["name"] for node in cluster.client.get(NODES)["items"]] == [f"lab-{number}-node-1"]
    assert lab(cluster, "--clean", "--lab", number).returncode == 0
    assert cluster.client.get(NODES)["items"] == []


def test_a_node_of_the_same_name_is_not_taken_over(cluster: Cluster, kubeconfig: Path) -> None:
    for number in range(1, 20):
        cluster.add(f"lab-{number}-node-1", [f"10.244.{number}.0/24"], ["10.99.0.9"])
    done = lab(cluster, "--nodes", "1", "--kubeconfig", str(kubeconfig))
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert len(cluster.client.get(NODES)["items"]) == 19


def test_a_kubeconfig_of_no_use_is_told_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    done = lab(cluster, "--nodes", "1", "--kubeconfig", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pynet lab: the kubeconfig {tmp_path / 'none'} is of no use: ")
    assert done.stderr.count("\n") == 1
