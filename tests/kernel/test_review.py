"""What goes wrong in the middle of things: the kernel that does not answer, settings that change, somebody who is clumsy."""

from __future__ import annotations

import errno
import time

import pytest
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.guard import GuardSettings
from pynet.core.model import NodeFacts
from pynet.drivers.netlink import NetlinkError
from pynet.observe.facts import ClusterFacts
from pynet.observe.inbox import NodeChange

from tests.kernel.rig import OWN, OWN_FACTS, Rig, eventually, peer, running

V4, HOP4 = "10.244.1.0/24", "10.99.0.2"
GUARD = GuardSettings(0.5, 10)


@pytest.fixture
def node(lan3):
    return lan3[0]


def unicast(rig: Rig, family: int = 4) -> set[str]:
    return {row["dst"] for row in rig.routes(family, type="unicast")}


def gone(facts: NodeFacts) -> NodeChange:
    return NodeChange(None, facts.uid, time.monotonic())


class Faults:
    """Makes the next dumps of routes fail, as under a table that never rests."""

    def __init__(self, rig: Rig, monkeypatch, count: int) -> None:
        self.left = count
        real = rig.socket.dump_routes

        def dump(family, table):
            if self.left:
                self.left -= 1
                raise NetlinkError(errno.EAGAIN, "changed under each of 8 attempts", "dump routes")
            return real(family, table)

        monkeypatch.setattr(rig.socket, "dump_routes", dump)


# What the kernel does not answer


def test_a_list_that_came_while_the_kernel_did_not_answer_is_not_forgotten(node, monkeypatch):
    with running(node, peer(1)) as rig:
        faults = Faults(rig, monkeypatch, 2)
        rig.list(peer(1), peer(2))  # told once: the watcher does not tell it again
        rig.feed(peer(3))
        eventually(lambda: rig.has("10.244.2.0/24") and rig.has("10.244.3.0/24"))
        assert rig.has(V4)
        assert not faults.left
        eventually(lambda: rig.loop.verified)


def test_a_first_list_that_came_while_the_kernel_did_not_answer_removes_nothing(node, monkeypatch):
    with running(node, peer(1), peer(2)):
        pass
    rig = Rig(node)
    Faults(rig, monkeypatch, 1)
    try:
        rig.list(peer(1), peer(2))
        rig.thread.start()
        eventually(lambda: rig.loop.settled)
        assert ("delete", "ok") not in rig.operations
        assert unicast(rig) == {V4, "10.244.2.0/24"}
    finally:
        rig.close()


def test_what_a_failed_pass_left_undone_is_not_forgotten_over_a_pass_elsewhere(node, monkeypatch):
    with running(node, peer(1)) as rig:
        faults = Faults(rig, monkeypatch, 1)
        real = rig.loop.facts.observe

        def and_then(*, everything):
            try:
                return real(everything=everything)
            except NetlinkError:
                rig.feed(peer(3))  # another wake, before the retry is due
                raise

        monkeypatch.setattr(rig.loop.facts, "observe", and_then)
        rig.list(peer(1), peer(2))
        eventually(lambda: rig.has("10.244.3.0/24"))
        eventually(lambda: rig.has("10.244.2.0/24"), "not only at the next resync", 3)
        assert not faults.left


def test_a_failed_pass_is_reported(node, monkeypatch):
    with running(node, peer(1)) as rig:
        Faults(rig, monkeypatch, 1)
        rig.list(peer(1))
        eventually(lambda: any("8 attempts" in report.error for _, report, _ in rig.passes))
        eventually(lambda: rig.loop.verified and not rig.loop.last_pass.error)


def test_what_somebody_does_in_the_middle_of_a_pass_is_put_right_at_once(node, monkeypatch):
    """Its notification is read along with those of our own doing."""
    with running(node, peer(1)) as rig:
        real = rig.writer.apply

        def apply(operations):
            monkeypatch.setattr(rig.writer, "apply", real)
            real(operations)
            node.run("ip", "route", "del", V4)

        monkeypatch.setattr(rig.writer, "apply", apply)
        rig.feed(peer(2))
        eventually(lambda: rig.has("10.244.2.0/24") and rig.has(V4, HOP4), "not after the 10 s of a tick", 3)


def test_conflicts_are_forgotten_with_the_node_whose_they_were(node):
    node.run("ip", "route", "add", "10.244.7.0/24", "via", "10.99.0.3", "metric", "1", "proto", "static")
    with running(node, peer(1), peer(7)) as rig:
        assert rig.loop.rivals
        rig.list(peer(1))
        eventually(lambda: not rig.loop.rivals)


def test_failures_are_forgotten_with_the_node_whose_they_were(node):
    node.run("ip", "route", "add", "broadcast", "10.99.0.77", "dev", "eth0", "table", "local")
    with running(node, peer(1), peer(8, ip="10.99.0.77", cidr="10.244.8.0/24")) as rig:
        assert rig.writer.failures
        rig.list(peer(1))
        eventually(lambda: not rig.writer.failures)


# The removal guard


def test_a_list_that_leaves_none_of_a_few_peers_waits_for_a_second(node):
    with running(node, *[peer(n) for n in range(1, 6)], guard=GUARD) as rig:
        rig.list()
        eventually(lambda: rig.loop.held and rig.relists)
        assert len(unicast(rig)) == 5
        assert rig.loop.held.routes == 10, "both families"
        rig.list()
        eventually(lambda: not unicast(rig) and rig.loop.held is None)
        assert rig.routes(4, type="unreachable"), "our own stays"


def test_held_peers_are_handed_over_so_that_rules_and_snapshot_keep_them(node):
    with running(node, *[peer(n) for n in range(1, 6)], guard=GUARD) as rig:
        rig.list()
        eventually(lambda: rig.loop.held and rig.effects.handed[-1].kept)
        kept = {(str(claim.prefix), claim.next_hop) for claim in rig.effects.handed[-1].kept}
        assert (V4, parse_address(HOP4)) in kept
        assert len(kept) == 10
        rig.list(*[peer(n) for n in range(1, 6)])
        eventually(lambda: not rig.effects.handed[-1].kept)
        assert len(unicast(rig)) == 5


def test_passes_one_by_one_while_a_removal_is_held_release_nothing(node):
    peers = [peer(n) for n in range(1, 21)]
    with running(node, *peers, guard=GUARD) as rig:
        rig.list(*peers[15:])
        eventually(lambda: rig.loop.held)
        since = rig.loop.held.since
        for each in peers[15:18]:  # a dribble of deletes and of drift
            rig.inbox.put_change(each.name, gone(each))
            node.run("ip", "route", "del", "10.244.20.0/24", "proto", "110")
            eventually(lambda: rig.has("10.244.20.0/24"))
        assert len(unicast(rig)) == 20
        assert rig.loop.held.since == since
        eventually(lambda: rig.loop.held.routes == 36)
        rig.list(*peers[15:], started=since - 1)
        eventually(lambda: rig.inbox._listed is None and rig.has("10.244.16.0/24"))
        assert len(unicast(rig)) == 20, "a list asked for before the hold decides nothing"


def test_an_interface_that_goes_down_under_a_hold_comes_back_with_what_is_wanted(node):
    peers = [peer(n) for n in range(1, 21)]
    with running(node, *peers, guard=GUARD) as rig:
        node.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", 1)
        rig.list(*peers[15:])
        eventually(lambda: rig.loop.held)
        node.run("ip", "link", "set", "eth0", "down")
        eventually(lambda: not unicast(rig))
        node.run("ip", "link", "set", "eth0", "up")
        eventually(lambda: unicast(rig) == {f"10.244.{n}.0/24" for n in range(16, 21)})
        eventually(lambda: rig.loop.held is None, "nothing waits any more")


def test_peers_that_become_rejected_lose_their_route_and_the_guard_counts_them(node):
    peers = [peer(n) for n in range(1, 21)]
    with running(node, *peers, guard=GUARD) as rig:
        rig.cluster = ClusterFacts(api_servers=frozenset({parse_address("10.244.1.9")}))
        rig.waker()
        eventually(lambda: not rig.has(V4))
        assert len(unicast(rig)) == 19
        rig.cluster = ClusterFacts(service_cidrs=frozenset({parse_prefix("10.244.0.0/19")}))
        rig.waker()
        eventually(lambda: rig.loop.held)
        assert len(unicast(rig)) == 19


# Our own Node


def test_sysctls_are_looked_at_when_our_own_podcidr_arrives(node):
    bare = NodeFacts(OWN, "u-0", 1, (), OWN_FACTS.internal_ips, os="linux")
    rig = Rig(node)
    try:
        rig.list(peer(1), own=bare)
        rig.thread.start()
        eventually(lambda: rig.loop.settled)
        before = rig.effects.sysctls
        rig.feed(OWN_FACTS)
        eventually(lambda: rig.routes(4, type="unreachable"))
        eventually(lambda: rig.effects.sysctls > before, "not only at the next resync", 3)
    finally:
        rig.close()


def test_our_own_node_created_again_with_another_podcidr(node):
    """The old unreachable route goes; a peer that claims the old one gets it, one that claims the new one loses it."""
    heir = peer(7, cidr="10.244.0.0/24", ip="10.99.0.3")
    with running(node, peer(1), heir) as rig:
        assert rig.state("node-7") == "rejected"
        rig.drop(OWN_FACTS)
        rig.feed(NodeFacts(OWN, "u-new", 900, (V4,), OWN_FACTS.internal_ips, os="linux"))
        eventually(lambda: rig.has("10.244.0.0/24", "10.99.0.3"))
        assert {(r["dst"], r["type"]) for r in rig.routes(4)} == {("10.244.0.0/24", "unicast"), (V4, "unreachable")}
        assert rig.state("node-1") == "rejected"
        assert "own podCIDR" in rig.desired.verdicts["node-1", 4].reason
        eventually(lambda: not rig.routes(6, type="unreachable"), "and the family that it lost")


def test_our_own_internal_ip_changes_the_interface(node):
    node.run("ip", "link", "add", "eth9", "type", "veth", "peer", "name", "far9")
    for command in ("link set eth9 up", "link set far9 up", "address add 10.98.0.1/24 dev eth9"):
        node.run("ip", *command.split())
    other = peer(2, cidr="10.244.2.0/24", ip="10.98.0.2")
    with running(node, peer(1), other) as rig:
        assert (rig.state("node-1"), rig.state("node-2")) == ("accepted", "unreachable")
        rig.feed(NodeFacts(OWN, "u-0", 1, OWN_FACTS.pod_cidrs, ("10.98.0.1", "fd99::1"), os="linux"))
        eventually(lambda: rig.has("10.244.2.0/24", "10.98.0.2") and not rig.has(V4))


def test_an_interface_that_is_renamed_keeps_its_routes(node):
    with running(node, peer(1)) as rig:
        node.run("ip", "link", "set", "eth0", "down")
        node.run("ip", "link", "set", "eth0", "name", "lan0")
        node.run("ip", "link", "set", "lan0", "up")
        eventually(lambda: rig.has(V4, HOP4))
        eventually(lambda: {link.name for link in rig.desired.host.links.values()} >= {"lan0"})


# Settings that changed between two starts


@pytest.mark.parametrize("settings", [{"metric": 120}, {"metric_buckets": 1}, {"unreachable_local": False}])
def test_other_settings_leave_nothing_of_the_old_ones(node, settings):
    with running(node, peer(1), peer(2)):
        pass
    with running(node, peer(1), peer(2), settings=settings) as rig:
        rows = rig.routes(4)
        assert sorted(r["dst"] for r in rows if r["type"] == "unicast") == [V4, "10.244.2.0/24"]
        assert len(rows) == 2 + settings.get("unreachable_local", True)
        assert rig.loop.verified


def test_another_protocol_takes_the_routes_of_the_old_one_for_foreign(node):
    with running(node, peer(1)):
        pass
    with running(node, peer(1), settings={"protocol": 111}) as rig:
        assert [withheld for _, withheld in rig.loop.rivals.values()] == [True, True]
        assert [r["protocol"] for r in node.ip("-4", "route", "show", V4)] == ["110"]


# Somebody else


def test_somebody_who_keeps_adding_routes_in_our_name_is_left_alone_for_a_while(node):
    """Another agent with other settings, say: not for ever at full speed."""
    with running(node, peer(1)) as rig:
        for _ in range(25):
            node.run("ip", "route", "add", "10.77.0.0/16", "via", HOP4, "proto", "110", check=False)
            if rig.fighting():
                break
            eventually(lambda: not rig.has("10.77.0.0/16") or rig.fighting())
        assert rig.fighting()
        node.run("ip", "route", "del", V4)
        eventually(lambda: rig.has(V4), "others are repaired at once", 1)
        node.run("ip", "route", "replace", "10.77.0.0/16", "via", HOP4, "proto", "110")
        eventually(lambda: not rig.has("10.77.0.0/16"), "and after the pause that one goes")


def test_two_agents_of_one_node_agree(node):
    with running(node, peer(1), peer(2)) as one, running(node, peer(1), peer(2)) as two:
        assert two.operations == []
        one.feed(peer(1, ip="10.99.0.3", cidr=V4))
        two.feed(peer(1, ip="10.99.0.3", cidr=V4))
        eventually(lambda: one.has(V4, "10.99.0.3"))
        node.run("ip", "route", "del", V4)
        eventually(lambda: one.has(V4, "10.99.0.3"))
        eventually(lambda: one.loop.verified and two.loop.verified)
        assert len(one.routes(4, dst=V4)) == 1


def test_with_more_foreign_routes_than_are_kept_nothing_is_overlooked(node, monkeypatch):
    """A node with a full Internet table: the mirror holds what is at our prefixes only."""
    monkeypatch.setattr("pynet.observe.fib._FOREIGN_LIMIT", 5)
    batch = "".join(f"route add 10.66.{n}.0/24 via {HOP4} proto bgp\n" for n in range(50))
    batch += "route add 10.244.2.0/24 via 10.99.0.3 metric 5 proto bgp\n"
    node.run("ip", "-batch", "-", input=batch)
    with running(node, peer(1)) as rig:
        assert rig.loop.facts.fib.partial
        assert len(rig.loop.facts.fib.routes) < 20
        rig.feed(peer(2))
        eventually(lambda: rig.has("10.244.2.0/24"))
        eventually(lambda: rig.loop.rivals)
        assert [rival.metric for rival, _ in rig.loop.rivals.values()] == [5]
        node.run("ip", "route", "del", V4)
        eventually(lambda: rig.has(V4, HOP4))
        node.run("ip", "route", "del", "10.244.2.0/24", "proto", "bgp")
        eventually(lambda: not rig.loop.rivals)
        rig.drop(peer(2))
        eventually(lambda: not rig.has("10.244.2.0/24"))
        assert len(node.ip("route", "show", "proto", "bgp")) == 50


def test_a_snapshot_adds_routes_and_removes_none_and_another_clusters_nodes_go_only_by_a_second_list(node):
    """The disk's word: own UID and peers of a cluster that is no more."""
    with running(node, peer(9)):
        pass
    old_self = NodeFacts(OWN, "u-other-cluster", 1, OWN_FACTS.pod_cidrs, OWN_FACTS.internal_ips, os="linux")
    rig = Rig(node, guard=GuardSettings(0.5, 3))
    rig.loop.facts._load_snapshot = lambda: {facts.name: facts for facts in (old_self, *[peer(n) for n in range(1, 6)])}
    rig.loop.facts._snapshot_at = 0.0
    try:
        rig.thread.start()
        eventually(lambda: rig.loop.settled)
        assert (rig.loop.facts.source, rig.loop.facts.complete) == ("snapshot", False)
        assert unicast(rig) == {f"10.244.{n}.0/24" for n in (1, 2, 3, 4, 5, 9)}, "nothing is deleted on the disk's word"
        rig.list(peer(1))
        eventually(lambda: rig.loop.held and rig.desired.own.uid == "u-0")
        assert len(unicast(rig)) == 6
        rig.list(peer(1))
        eventually(lambda: unicast(rig) == {V4})
    finally:
        rig.close()


def test_routes_wait_for_what_the_guard_is_to_protect_and_are_then_all_compared(node):
    """The first list is taken in by a look that may write nothing yet."""
    with running(node, peer(9)):
        pass
    rig = Rig(node)
    rig.cluster = ClusterFacts(asked=False)
    try:
        rig.list(peer(1), peer(2))
        rig.thread.start()
        eventually(lambda: rig.desired.routes)
        assert not rig.operations
        rig.cluster = ClusterFacts(service_cidrs=frozenset({parse_prefix("10.244.2.0/24")}))
        rig.waker()
        eventually(lambda: unicast(rig) == {V4}, "within the 2 s that it would wait at most", 1.5)
    finally:
        rig.close()
