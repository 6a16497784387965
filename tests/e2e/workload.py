"""What the tests run in the cluster: pods that answer, on every node, and a host outside the cluster."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from tests.e2e.cluster import NAMESPACE, Cluster, by_family, run, until

if TYPE_CHECKING:
    from collections.abc import Iterator

TOOLS = "pynet-e2e/tools:1"
NETWORK = os.environ.get("KIND_EXPERIMENTAL_DOCKER_NETWORK", "kind")
"""The docker network that kind puts the nodes on."""

# nginx says who it is and whom it sees, over TCP and UDP; /big is for packets at the MTU.
SERVE = r"""
mkdir -p /tmp/www
head -c 4000000 /dev/zero | tr '\0' x >/tmp/www/big
cat >/tmp/nginx.conf <<CONF
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; error_log stderr; pid /tmp/nginx.pid; worker_processes 1;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;
  fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
  server {
    listen PORT; listen [::]:PORT;
    location / { return 200 "$(hostname) \$remote_addr\n"; }
    location /big { root /tmp/www; }
    EXTRA
  }
}
stream {
  server {
    listen PORT udp; listen [::]:PORT udp;
    return "$(hostname) \$remote_addr\n";
  }
}
CONF
exec nginx -c /tmp/nginx.conf
"""


def serving(port: int, extra: str = "") -> list[str]:
    """The command of a container that serves on ``port``; ``extra`` goes into nginx' server block."""
    return ["sh", "-c", SERVE.replace("PORT", str(port)).replace("EXTRA", extra)]


def container(command: list[str], port: int, **more: Any) -> dict[str, Any]:
    """A container of the tools image that is ready when it serves.

    It declares no port: in a host's network that would reserve it, and a critical pod that wants the same would evict ours.
    """
    return {
        "name": "c",
        "image": TOOLS,
        "imagePullPolicy": "Never",
        "command": command,
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
        **more,
    }


def pod_spec(command: list[str], port: int, **more: Any) -> dict[str, Any]:
    """The spec of a pod with one such container."""
    return {
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "containers": [container(command, port)],
        **more,
    }


def pod(name: str, labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    """A bare pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": spec,
    }


def service(name: str, selector: dict[str, str], ports: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    """A Service with an address of every family that the cluster has."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": selector, "ports": ports, "ipFamilyPolicy": "PreferDualStack", **spec},
    }


def pod_name(kind: str, node: str) -> str:
    """``a-worker`` is the pod ``a`` on the cluster's first worker; `kind` is a, b or host (in the node's own network)."""
    return f"{kind}-{node}"


def deploy(cluster: Cluster) -> None:
    """Pods a and b and one in the host's network on every node; waits until all of them serve."""
    objects = []
    for node in cluster.nodes:
        for kind in ("a", "b"):
            spec = pod_spec(serving(8080), 8080, nodeName=node)
            objects.append(pod(pod_name(kind, node), {"app": kind, "on": node}, spec))
        spec = pod_spec(serving(18080), 18080, nodeName=node, hostNetwork=True)
        objects.append(pod(pod_name("host", node), {"app": "host", "on": node}, spec))
    cluster.apply(*objects)
    cluster.wait_ready("pods", "app in (a,b,host)", len(objects))


class Outside:
    """A host on the nodes' network that is no node: it serves like the pods do, on port 8080."""

    def __init__(self, name: str) -> None:
        self.name = name

    def exec(self, script: str, timeout: float = 60) -> str:
        """Run a shell script there."""
        return run("docker", "exec", self.name, "sh", "-c", script, timeout=timeout)

    @property
    def addresses(self) -> dict[int, str]:
        """Its addresses by family."""
        network = json.loads(run("docker", "inspect", self.name))[0]["NetworkSettings"]["Networks"][NETWORK]
        return by_family(value for value in (network["IPAddress"], network["GlobalIPv6Address"]) if value)


@contextlib.contextmanager
def outside(name: str) -> Iterator[Outside]:
    """Run a host outside the cluster while the block runs."""
    run("docker", "rm", "--force", "--volumes", name, check=False)  # one that a killed run left
    run("docker", "run", "--detach", "--name", name, "--network", NETWORK, TOOLS, *serving(8080))
    try:
        host = Outside(name)
        until("the outside host serves", lambda: host.exec("curl -s -m 1 http://127.0.0.1:8080/"))
        yield host
    finally:
        run("docker", "rm", "--force", "--volumes", name)
