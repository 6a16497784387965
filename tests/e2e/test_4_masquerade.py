"""Section 4: towards the outside a pod looks like its node; inside nothing is masqueraded (section 2 shows that for pods)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.e2e.cluster import in_url
from tests.e2e.test_2_reach import TCP, UDP
from tests.e2e.workload import pod_name


@pytest.mark.parametrize("what", [TCP, UDP], ids=["tcp", "udp"])
def test_outside_sees_the_nodes_address(cluster, outside, what):
    for node in cluster.nodes:
        for family, address in outside.addresses.items():
            if family in cluster.flavour.families:
                said = cluster.exec(pod_name("a", node), what.format(url=in_url(address), address=address, port=8080)).split()
                assert _same(said[1], cluster.node_addresses(node)[family]), f"{node} over IPv{family}: {said}"


def test_a_host_is_not_masqueraded_towards_the_outside(cluster, outside):
    for node in cluster.nodes:
        for family, address in outside.addresses.items():
            if family in cluster.flavour.families:
                said = cluster.exec(pod_name("host", node), TCP.format(url=in_url(address), port=8080)).split()
                assert _same(said[1], cluster.node_addresses(node)[family])


def _same(one, other):
    return ip_address(one.strip("[]")) == ip_address(other)
