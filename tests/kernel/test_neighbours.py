"""The node's neighbour entries on the bridge: an address used again at once is reached, and nobody else's entries go.

The loop runs on the real kernel; pods are attached by hand. The oracle is ping and `ip -json`.
"""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from tests.kernel.rig import eventually, peer, running
from tests.support.pods import BRIDGE, attach

CIDRS = ("10.244.0.0/24", "fd00:244::/64")
POD = {4: "10.244.0.2", 6: "fd00:244::2"}
SET, LEARNT = {4: "10.244.0.9", 6: "fd00:244::9"}, {4: "10.244.0.8", 6: "fd00:244::8"}
MAC = "02:00:00:00:00:99"
both = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def node(lan3):
    """A node with our bridge and a pod that stays. By itself the kernel forgets all neighbours of a bridge that loses its last
    port, or changes its MAC address (the least of its ports', unless it is set): this one does neither.
    """
    with attach(lan3[0], CIDRS, 3) as stays:
        lan3[0].run("ip", "link", "set", BRIDGE, "address", "02:00:00:00:00:01")
        lan3[0].stays = stays
        yield lan3[0]


@contextlib.contextmanager
def a_pod(node, *families):
    """A pod at the addresses of POD that has been pinged in ``families``; it goes at the end as by CNI DEL."""
    with attach(node, CIDRS):
        for family in families:
            eventually(lambda f=family: reaches(node, POD[f]), "the pod answers")
        yield
        node.run("ip", "link", "del", "veth2")


def reaches(node, address):
    return "1 received" in node.run("ping", "-n", "-c", "1", "-W", "1", address, check=False)


def entries(node, dev=BRIDGE):
    """Address -> (MAC address, states) of what is not multicast."""
    shown = node.ip("neigh", "show", "dev", dev, "nud", "all")
    return {e["dst"]: (e.get("lladdr", ""), e["state"]) for e in shown if e["state"] != ["NOARP"]}


def forgotten(node, family):
    eventually(lambda: POD[family] not in entries(node), "the pod's entry is forgotten")


def set_entry(node, address, dev, state, *more):
    node.run("ip", "neigh", "replace", address, "lladdr", MAC, "dev", dev, "nud", state, *more)


@both
def test_an_address_used_again_at_once_is_reached_at_once(node, family):
    """Without the agent it takes 20 to 50 s."""
    with running(node, peer(1)):
        with a_pod(node, family):
            mac, states = entries(node)[POD[family]]
            assert states == ["REACHABLE"]
        with attach(node, CIDRS):
            assert eventually(lambda: reaches(node, POD[family]), "the next pod of this address answers", 60) < 1
            assert entries(node)[POD[family]][0] != mac, "both pods have the same MAC address: this shows nothing"


@both
def test_a_pod_that_was_looked_for_while_it_was_away_is_reached_when_it_is_back(node, family):
    """By then the kernel has asked in vain, and waits for up to a second between two questions."""
    with running(node, peer(1)):
        with a_pod(node, family):
            pass
        assert not reaches(node, POD[family])
        with attach(node, CIDRS):
            assert eventually(lambda: reaches(node, POD[family]), "the next pod of this address answers", 60) < 3


@both
def test_a_pod_that_stays_loses_no_packet_while_others_go(node, family):
    (address,) = (a for a in node.stays.addresses if (":" in a) == (family == 6))
    with running(node, peer(1)):
        ping = node.popen("ping", "-n", "-i", "0.01", "-c", "100", "-W", "1", address, stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            with a_pod(node, family):
                pass
            forgotten(node, family)
        said, _ = ping.communicate(timeout=30)
        assert "100 received" in said


@both
def test_entries_that_somebody_has_set_and_those_elsewhere_stay(node, family):
    node.run("ip", "link", "add", "br9", "type", "bridge")
    node.run("ip", "link", "set", "br9", "up")
    with running(node, peer(1)) as rig:
        with a_pod(node, family):
            set_entry(node, SET[family], BRIDGE, "permanent")
            set_entry(node, LEARNT[family], BRIDGE, "reachable", "extern_learn")
            set_entry(node, SET[family], "br9", "stale")
            set_entry(node, SET[family], "eth0", "stale")
        forgotten(node, family)
        assert entries(node) == {SET[family]: (MAC, ["PERMANENT"]), LEARNT[family]: (MAC, ["REACHABLE"])}
        assert entries(node, "br9") == {SET[family]: (MAC, ["STALE"])}
        assert entries(node, "eth0")[SET[family]] == (MAC, ["STALE"])
        assert rig.loop.verified


def test_a_port_that_is_taken_out_of_our_bridge_counts_as_one_that_has_gone(node):
    with running(node, peer(1)), a_pod(node, 4):
        node.run("ip", "link", "set", "veth2", "nomaster")
        forgotten(node, 4)


@both
def test_a_port_that_leaves_another_bridge_is_no_matter(node, family):
    node.run("ip", "link", "add", "br9", "type", "bridge")
    with running(node, peer(1)) as rig, a_pod(node, family):
        node.run("ip", "link", "add", "v9", "type", "veth", "peer", "w9")
        node.run("ip", "link", "set", "v9", "master", "br9", "up")
        node.run("ip", "link", "del", "v9")
        rig.feed(peer(2))
        eventually(lambda: rig.has("10.244.2.0/24"), "a pass after that")
        assert POD[family] in entries(node)


def test_what_the_kernel_learnt_before_the_agent_began_is_forgotten(node):
    with a_pod(node, 4):
        pass
    assert POD[4] in entries(node)
    with running(node, peer(1)):
        forgotten(node, 4)


def test_pods_that_go_are_neither_drift_nor_a_pass_over_everything(node):
    with running(node, peer(1)) as rig:
        count = len(rig.passes)
        with a_pod(node, 4):
            pass
        forgotten(node, 4)
        seen = rig.passes[count:]
        assert not [observed for observed, _, _ in seen if observed.full or observed.kernel.drift]
        assert all(report.verified and not report.operations for _, report, _ in seen)
