"""The chart helm/pynet, rendered by the real helm (built by go-binaries.sh)."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.controlplane import binaries

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "pynet"
Json = dict[str, Any]


@cache
def helm() -> str:
    """Where helm is."""
    return str(binaries("helm")["helm"])


def template(*flags: str, release: str = "pynet", namespace: str = "pynet-system") -> subprocess.CompletedProcess[str]:
    """What ``helm template`` of the chart did; ``flags`` may hold --set, --values, --kube-version."""
    command = [helm(), "template", release, str(CHART), "--namespace", namespace, "--kube-version", "1.34.0", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(*flags: str, release: str = "pynet", namespace: str = "pynet-system") -> list[Json]:
    """The chart's objects, hooks included. Raises AssertionError with helm's words if it does not render."""
    done = template(*flags, release=release, namespace=namespace)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def refusal(*flags: str) -> str:
    """Why helm does not render the chart with ``flags``. Raises AssertionError if it does."""
    done = template(*flags)
    assert done.returncode != 0, done.stdout
    return done.stderr


def is_hook(found: Json) -> bool:
    """Whether the object is one of a hook's."""
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def one(objects: list[Json], kind: str, name: str = "") -> Json:
    """The one object of this kind (and name)."""
    found = [each for each in objects if each["kind"] == kind and (not name or each["metadata"]["name"] == name)]
    assert len(found) == 1, [each["metadata"]["name"] for each in found]
    return found[0]


def values(folder: Path, content: Json) -> str:
    """The flag for a values file in ``folder`` with ``content``."""
    file = folder / f"values-{len(list(folder.iterdir()))}.yaml"
    file.write_text(json.dumps(content))  # JSON is YAML
    return f"--values={file}"


def agent_set(*flags: str) -> Json:
    """The agents' DaemonSet."""
    return one(render(*flags), "DaemonSet")


def agent_config(*flags: str) -> bytes:
    """The agents' configuration file."""
    found = one([each for each in render(*flags) if not is_hook(each)], "ConfigMap")
    return bytes(found["data"]["config.yaml"], "utf-8")


def cleanup_set(*flags: str) -> Json:
    """The DaemonSet that the uninstall hook's Job makes."""
    found: Json = json.loads(one([each for each in render(*flags) if is_hook(each)], "ConfigMap")["data"]["daemonset.json"])
    return found
