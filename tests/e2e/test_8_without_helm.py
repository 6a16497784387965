"""Section 7 for those without Helm: the commands of the guide install pynet from its manifests, and leave nothing of it.

After test_8_uninstall: the nodes are bare, and there are no workloads.
"""

from __future__ import annotations

import shlex
import shutil

from tests.e2e.cluster import REPOSITORY, until
from tests.e2e.guide import commands
from tests.e2e.test_8_uninstall import assert_nodes_as_before, objects_of_ours

FLAVOURS = ("ipv4",)


def test_the_manifests_install_and_the_uninstall_job_leaves_nothing(cluster, tmp_path):
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")  # the guide has them edited
    for node in cluster.nodes:  # the image that the guide names
        names = ("docker.io/library/pynet:e2e", "registry.example.com/pynet:0.1.0")
        cluster.on_node(node, "ctr", "-n", "k8s.io", "images", "tag", "--force", *names)
    lines = commands("Without Helm")
    removal = next(i for i, line in enumerate(lines) if "pynet-uninstall" in line)

    follow(cluster, tmp_path, lines[:removal])
    until("the nodes are Ready", lambda: all(cluster.is_ready(node) for node in cluster.nodes))
    said = follow(cluster, tmp_path, lines[removal:])

    assert f"{len(cluster.nodes)} of {len(cluster.nodes)} nodes have answered" in said
    assert_nodes_as_before(cluster)
    assert objects_of_ours(cluster) == []


def follow(cluster, folder, lines):
    """Run the commands, as if in ``folder``; returns what they printed."""
    return "".join(cluster.tool(*shlex.split(line.replace(" deploy/", f" {folder}/deploy/")), timeout=190) for line in lines)
