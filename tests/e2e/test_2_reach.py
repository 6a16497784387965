"""Section 2: pods and hosts reach each other, everywhere, with the address that they have."""

from __future__ import annotations

import ipaddress

import pytest

from tests.e2e.cluster import in_url
from tests.e2e.workload import pod_name

TCP = "curl -s -S -m 3 http://{url}:{port}/"
UDP = "echo | socat -t 2 - UDP{family}:{url}:{port}"


def conversations(cluster, source, targets, what):
    """From pod ``source`` ask each target ((pod, port), ...) in each family; returns {(pod, family): "name address"}."""
    asked, script = [], []
    for target, port in targets:
        for family, address in cluster.pod_addresses(target).items():
            asked.append((target, family))
            script.append(what.format(url=in_url(address), port=port, family=family) + " || echo failed")
    answers = cluster.exec(source, "\n".join(script), timeout=120).splitlines()
    return dict(zip(asked, answers, strict=True))


def expect(cluster, source, targets, what):
    """Every target answers, and saw the source's own address."""
    own = cluster.pod_addresses(source)
    for (target, family), answer in conversations(cluster, source, targets, what).items():
        words = f"{source} -> {target} over IPv{family}: {answer}"
        assert answer.startswith(target if not target.startswith("host-") else target.removeprefix("host-")), words
        assert ipaddress.ip_address(answer.split()[1].strip("[]")) == ipaddress.ip_address(own[family]), words


@pytest.mark.parametrize("what", [TCP, UDP], ids=["tcp", "udp"])
def test_pods_reach_pods_on_every_node_with_their_own_address(cluster, pods, what):
    for source in cluster.nodes:
        expect(cluster, pod_name("a", source), [(pod_name("b", target), 8080) for target in cluster.nodes], what)


def test_pods_reach_every_node_with_their_own_address(cluster, pods):
    for source in cluster.nodes:
        expect(cluster, pod_name("a", source), [(pod_name("host", target), 18080) for target in cluster.nodes], TCP)


def test_hosts_reach_pods_on_their_own_and_other_nodes(cluster, pods):
    for source in cluster.nodes:
        targets = [(pod_name("a", target), 8080) for target in cluster.nodes]
        for (target, family), answer in conversations(cluster, pod_name("host", source), targets, TCP).items():
            assert answer.startswith(target), f"host {source} -> {target} over IPv{family}: {answer}"
            # No NAT either: an address of the node itself, towards its own pods that of the bridge.
            seen = ipaddress.ip_address(answer.split()[1])
            own_bridge = ipaddress.ip_network(cluster.pod_cidrs(source)[family])
            assert seen == ipaddress.ip_address(cluster.node_addresses(source)[family]) or seen in own_bridge, answer
