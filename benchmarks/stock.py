"""The stock way, as a baseline: the kubernetes package's list and Watch, one pyroute2 call for each route.

It makes the same routes and does nothing else: no repair, no rules, no report.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from typing import Any

from kubernetes import client, config, watch
from pyroute2 import IPRoute

PROTOCOL = 111


def _route(node: Any) -> tuple[str, str] | None:
    addresses = [a.address for a in node.status.addresses or () if a.type == "InternalIP"]
    return (node.spec.pod_cidr, addresses[0]) if node.spec.pod_cidr and addresses else None


class Routes:
    """One route for each node of a name, put into the kernel one by one."""

    def __init__(self) -> None:
        self._ip = IPRoute()
        self._held: dict[str, tuple[str, str]] = {}

    def put(self, name: str, route: tuple[str, str] | None) -> None:
        """Make ``route`` the node's; None if it is gone."""
        old = self._held.get(name)
        if old == route:
            return
        if old and (route is None or old[0] != route[0]):
            self._ip.route("del", dst=old[0], proto=PROTOCOL)
            del self._held[name]
        if route:
            ipaddress.ip_network(route[0])
            self._ip.route("replace", dst=route[0], gateway=route[1], proto=PROTOCOL, family=socket.AF_INET)
            self._held[name] = route


def main() -> None:
    """List, then watch for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--node-name", required=True)
    arguments = parser.parse_args()
    config.load_kube_config(arguments.kubeconfig)
    api, routes = client.CoreV1Api(), Routes()
    listed = api.list_node()
    for node in listed.items:
        if node.metadata.name != arguments.node_name:
            routes.put(node.metadata.name, _route(node))
    version = listed.metadata.resource_version
    del listed
    for event in watch.Watch().stream(api.list_node, resource_version=version):
        node = event["object"]
        if node.metadata.name != arguments.node_name:
            routes.put(node.metadata.name, None if event["type"] == "DELETED" else _route(node))


if __name__ == "__main__":
    main()
