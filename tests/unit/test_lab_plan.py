"""Names and addresses of a lab, and what of them must hold on any machine."""

from __future__ import annotations

import ipaddress

import pytest
from pynet.commands.lab.plan import API_PORT, BRIDGE, MAX_NODES, MAX_PODS, PREFIX, make_plan

FAMILIES = [(4,), (6,), (4, 6)]


@pytest.mark.parametrize("families", FAMILIES)
def test_every_address_and_prefix_of_the_largest_lab_is_its_own(families):
    plan = make_plan(1, MAX_NODES, MAX_PODS, families)
    addresses = [*plan.hub_addresses, *(address for node in plan.nodes for address in node.addresses)]
    assert len(set(map(ipaddress.ip_address, addresses))) == (MAX_NODES + 1) * len(families)
    networks = [ipaddress.ip_network(cidr) for node in plan.nodes for cidr in node.pod_cidrs]
    assert not any(a.overlaps(b) for a in networks for b in networks if a is not b and a.version == b.version)
    assert not any(ipaddress.ip_address(address) in network for address in addresses for network in networks)


def test_every_name_fits_the_kernel_and_begins_with_the_labs_own_prefix():
    plan = make_plan(99, MAX_NODES, MAX_PODS, (4, 6))
    assert len(set(plan.namespaces)) == 1 + MAX_NODES + MAX_NODES * MAX_PODS
    assert all(name.startswith(f"{PREFIX}99-") and len(name) < 64 for name in plan.namespaces)
    assert all(len(node.port) < 16 and node.port != BRIDGE for node in plan.nodes)


def test_no_lab_has_a_name_that_another_labs_removal_would_find():
    names = make_plan(1, 3, 2, (4,)).namespaces
    assert not any(name.startswith(f"{PREFIX}11-") for name in names)
    assert not any(name.startswith(f"{PREFIX}1-") for name in make_plan(11, 3, 2, (4,)).namespaces)


def test_nodes_in_a_cluster_of_other_people_say_that_they_are_a_labs():
    assert [node.name for node in make_plan(2, 2, 1, (4,), "lab-2-").nodes] == ["lab-2-node-1", "lab-2-node-2"]


def test_the_api_url_of_an_ipv6_lab_has_brackets():
    assert make_plan(1, 1, 1, (6,)).api_url == f"http://[fd77::fe]:{API_PORT}"
