"""The chart's own RBAC, admission policy and hook objects in the tests' control plane, and tokens as its pods have them."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from tests.support import chart
from tests.support.controlplane import binaries

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.apiclient import ApiClient
    from tests.support.cluster import Cluster
    from tests.support.controlplane import ControlPlane

RELEASE = "charted"  # not pynet: the session's control plane has a ClusterRole of that name
NAMESPACE = "charted-system"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"
_numbers = itertools.count()


class Charted:
    """What the chart makes, applied by kubectl. ``objects`` and ``hooks`` are its manifests."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client = cluster.client
        rendered = chart.render(release=RELEASE, namespace=NAMESPACE)
        self.objects = [each for each in rendered if not chart.is_hook(each)]
        self.hooks = [each for each in rendered if chart.is_hook(each)]
        self._clients: list[ApiClient] = []
        self._kubectl = str(binaries("kubectl")["kubectl"])

    def kubectl(self, *arguments: str, token: str = "", stdin: str | None = None) -> str:
        """Run kubectl as an administrator, or as whom ``token`` says."""
        plane = self.cluster.plane
        flags = ("--server", plane.url, "--certificate-authority", str(plane.ca_file), "--token", token or self.client.token)
        return plane.namespace.run(self._kubectl, *flags, *arguments, input=stdin)

    def apply(self, objects: list[chart.Json]) -> None:
        """Apply manifests, their namespace made first."""
        self.client.ensure("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        # In a whole cluster a controller makes it.
        self.client.ensure(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
        self.kubectl("apply", "-f", "-", stdin=_documents(objects))

    def delete(self, objects: list[chart.Json]) -> None:
        """Delete what `apply` has made."""
        self.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=_documents(objects))

    def pod(self, node: str, account: str = RELEASE, **extra: Any) -> str:
        """A pod on ``node`` (which nothing runs), with ``extra`` metadata; returns its name."""
        name = f"pod-{next(_numbers)}"
        spec = {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c", "image": "none"}]}
        spec["initContainers"] = [{"name": "cleanup", "image": "none"}]
        self.client.create(PODS, {"metadata": {"name": name, **extra}, "spec": spec})
        return name

    def token(self, node: str, account: str = RELEASE) -> str:
        """A token as a pod of ``account`` has it on ``node``: it names the node."""
        return self._token(account, {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": self.pod(node, account)}})

    def unbound_token(self, account: str = RELEASE) -> str:
        """A token that was asked for outside of any pod: it names no node."""
        return self._token(account, {})

    def agent(self, node: str) -> ApiClient:
        """The API as the agent of ``node`` has it."""
        return self.as_token(self.token(node))

    def as_token(self, token: str) -> ApiClient:
        """The API as the holder of ``token`` has it, until `hang_up`."""
        self._clients.append(self.client.as_token(token))
        return self._clients[-1]

    def hang_up(self) -> None:
        """Close the connections of every `agent` and `as_token`."""
        while self._clients:
            self._clients.pop().close()

    def _token(self, account: str, spec: dict[str, Any]) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self.client.create(path, request)["status"]["token"])


def kubeconfig(plane: ControlPlane, folder: Path) -> str:
    """Path of a kubeconfig of an administrator, written into ``folder``."""
    cluster = {"server": plane.url, "certificate-authority": str(plane.ca_file)}
    content = {"apiVersion": "v1", "kind": "Config", "current-context": "x", "clusters": [{"name": "c", "cluster": cluster}]}
    content["users"] = [{"name": "u", "user": {"token": plane.client.token}}]
    content["contexts"] = [{"name": "x", "context": {"cluster": "c", "user": "u"}}]
    path = folder / "kubeconfig"
    path.write_text(json.dumps(content))
    path.chmod(0o600)  # helm warns of any other
    return str(path)


def _documents(objects: list[chart.Json]) -> str:
    return "\n---\n".join(map(json.dumps, objects))  # JSON is YAML
