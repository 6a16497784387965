"""Section 2: pods and hosts reach each other, everywhere, with the address that they have."""

from __future__ import annotations

import ipaddress

import pytest

from tests.e2e.cluster import in_url
from tests.e2e.workload import pod_name

TCP = "curl -s -S -m 5 http://{url}:{port}/"
UDP = "timeout 5 bash -c 'exec 3<>/dev/udp/{address}/{port}; echo >&3; head -1 <&3'"


def conversations(cluster, source, targets, what):
    """From pod ``source`` ask each of ``targets``, {(pod, family): (address, port)}; returns what each said."""
    script = [
        f"{what.format(url=in_url(address), address=address, port=port)} || echo failed" for address, port in targets.values()
    ]
    return dict(zip(targets, cluster.exec(source, "\n".join(script), timeout=120).splitlines(), strict=True))


def targets_of(addresses, names, port):
    """Each of these pods in each family."""
    return {(name, family): (address, port) for name in names for family, address in addresses[name].items()}


def everybody_reaches(cluster, kind, port, what):
    """Pod a of every node reaches the pods of this kind on all nodes, which see its own address."""
    addresses = cluster.all_pod_addresses()
    for source in (pod_name("a", node) for node in cluster.nodes):
        targets = targets_of(addresses, [pod_name(kind, node) for node in cluster.nodes], port)
        for (target, family), answer in conversations(cluster, source, targets, what).items():
            words = f"{source} -> {target} over IPv{family}: {answer}"
            assert answer.startswith(target.removeprefix("host-")), words
            assert ipaddress.ip_address(answer.split()[1].strip("[]")) == ipaddress.ip_address(addresses[source][family]), words


@pytest.mark.parametrize("what", [TCP, UDP], ids=["tcp", "udp"])
def test_pods_reach_pods_on_every_node_with_their_own_address(cluster, pods, what):
    everybody_reaches(cluster, "b", 8080, what)


def test_pods_reach_every_node_with_their_own_address(cluster, pods):
    everybody_reaches(cluster, "host", 18080, TCP)


def test_hosts_reach_pods_on_their_own_and_other_nodes(cluster, pods):
    addresses = cluster.all_pod_addresses()
    targets = targets_of(addresses, [pod_name("a", node) for node in cluster.nodes], 8080)
    for node in cluster.nodes:
        cidrs, own = cluster.pod_cidrs(node), cluster.node_addresses(node)
        for (target, family), answer in conversations(cluster, pod_name("host", node), targets, TCP).items():
            assert answer.startswith(target), f"host {node} -> {target} over IPv{family}: {answer}"
            # No NAT either: an address of the node itself, towards its own pods that of the bridge.
            seen = ipaddress.ip_address(answer.split()[1])
            assert seen == ipaddress.ip_address(own[family]) or seen in ipaddress.ip_network(cidrs[family]), answer
