"""A new user's path: the kind quick start of docs/guides/install.md, run literally, in a shell.

Where no registry can be reached, kind is told the node image, and the build where its base, plugins and wheels are.
"""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.cluster import FLAVOURS, REPOSITORY, Cluster, asset, run, until
from tests.e2e.guide import commands


@pytest.fixture
def user(tmp_path):
    """A shell of a user in a clone: shell(script) -> what it printed; the cluster is deleted in the end."""
    kind = tmp_path / "kind"
    image = asset("E2E_NODE_IMAGE")
    kind.write_text(
        f'#!/bin/sh\n[ "$1 $2" != "create cluster" ] || set -- "$@" --image {image}\nexec {shutil.which("kind")} "$@"\n'
    )
    kind.chmod(0o755)
    there = run("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    names = {"PYTHON_BASE": "base", "PLUGINS": "plugins", "WHEELS": "wheels"}
    found = {name: next((tag for tag in there if tag.startswith(f"pynet-e2e/{part}:")), "") for name, part in names.items()}
    settings = " ".join(f"export {name}={value};" for name, value in found.items() if value)
    kubeconfig = tmp_path / "kubeconfig"
    cluster = Cluster(FLAVOURS["ipv4"], "kind", kubeconfig)

    def shell(script, timeout=280):
        return run(
            "bash", "-ec", f"export PATH={tmp_path}:$PATH KUBECONFIG={kubeconfig}; {settings}\n{script}", timeout=timeout
        )

    cluster.delete()
    yield shell
    cluster.delete()


def test_the_quick_start_gives_a_working_network(user):
    lines = commands("kind")
    assert any(line.startswith("kind create cluster") for line in lines), lines
    user(f"cd {REPOSITORY}\n" + "\n".join(lines))
    user("kubectl -n pynet-system rollout status daemonset/pynet --timeout=90s")
    user("kubectl wait --for=condition=Ready node --all --timeout=60s")
    assert user("kubectl -n pynet-system exec ds/pynet -- pynet status").startswith("READY")
    until("helm test passes", lambda: user("helm -n pynet-system test pynet"), 60)
