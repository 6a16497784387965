"""What the loop promises, on the real kernel: each test is a guarantee of docs/architecture.md. The oracle is `ip -json`."""

from __future__ import annotations

import errno
import itertools
import re
import select
import subprocess
import threading
import time

import pytest
from pynet.core.guard import GuardSettings
from pynet.drivers.netlink import NetlinkError, Overrun

from tests.kernel.rig import OWN_FACTS, Rig, eventually, peer, running

V4, V6 = "10.244.1.0/24", "fd00:244:0:1::/64"
HOP4, HOP6 = "10.99.0.2", "fd99::2"
PAIRS = [(V4, HOP4, "10.99.0.3"), (V6, HOP6, "fd99::3")]


def flush(namespace, family="-4"):
    namespace.run("ip", family, "route", "flush", "proto", "110")


@pytest.fixture
def node(lan3):
    return lan3[0]


def test_peers_are_routed_via_their_internal_ip_in_both_families(node):
    with running(node, peer(1), peer(2)) as rig:
        for dst, hop, _ in PAIRS:
            assert rig.has(dst, hop)
        assert rig.loop.verified


def test_the_own_podcidr_has_an_unreachable_route_of_the_worst_metric(node):
    with running(node) as rig:
        rows = rig.routes(4, type="unreachable") + rig.routes(6, type="unreachable")
        assert {(r["dst"], r["metric"]) for r in rows} == {("10.244.0.0/24", 4294967294), ("fd00:244::/64", 4294967294)}


def test_a_new_peer_a_moved_peer_and_a_deleted_peer(node):
    with running(node) as rig:
        rig.feed(peer(1))
        eventually(lambda: rig.has(V4, HOP4) and rig.has(V6, HOP6))
        rig.feed(peer(1, ip=("10.99.0.3", "fd99::3")))
        eventually(lambda: rig.has(V4, "10.99.0.3") and rig.has(V6, "fd99::3"))
        assert len(rig.routes(4, dst=V4)) == len(rig.routes(6, dst=V6)) == 1
        rig.drop(peer(1))
        eventually(lambda: not rig.has(V4) and not rig.has(V6))


def test_a_late_delete_of_an_older_node_of_the_same_name_does_nothing(node):
    with running(node, peer(1, uid="old")) as rig:
        rig.feed(peer(1, cidr=("10.244.7.0/24",), uid="new"))
        rig.drop(peer(1, uid="old"))
        eventually(lambda: rig.has("10.244.7.0/24") and not rig.has(V4))
        rig.drop(peer(1, uid="new"))
        eventually(lambda: not rig.has("10.244.7.0/24"))


@pytest.mark.parametrize(("dst", "hop", "other"), PAIRS)
def test_a_deleted_route_comes_back(node, dst, hop, other):
    with running(node, peer(1)) as rig:
        node.run("ip", "route", "del", dst, "proto", "110")
        eventually(lambda: rig.has(dst, hop))


@pytest.mark.parametrize(("dst", "hop", "other"), PAIRS)
def test_a_changed_next_hop_is_put_back_in_place(node, dst, hop, other):
    with running(node, peer(1)) as rig:
        metric = str(rig.routes(6 if ":" in dst else 4, dst=dst)[0]["metric"])
        node.run("ip", "route", "replace", dst, "via", other, "metric", metric, "proto", "110")
        eventually(lambda: rig.has(dst, hop) and not rig.has(dst, other))


@pytest.mark.parametrize(("dst", "hop", "other"), PAIRS)
def test_another_protocol_at_a_key_that_we_programmed_is_drift(node, dst, hop, other):
    with running(node, peer(1)) as rig:
        metric = str(rig.routes(6 if ":" in dst else 4, dst=dst)[0]["metric"])
        node.run("ip", "route", "replace", dst, "via", other, "metric", metric, "proto", "static")
        eventually(lambda: rig.has(dst, hop))
        assert len(node.ip("-6" if ":" in dst else "-4", "route", "show", dst)) == 1


@pytest.mark.parametrize(("dst", "hop", "other"), PAIRS)
def test_another_protocol_at_our_key_before_we_start_is_foreign(node, dst, hop, other):
    with running(node, peer(1)) as rig:
        metric = str(rig.routes(6 if ":" in dst else 4, dst=dst)[0]["metric"])
    node.run("ip", "route", "replace", dst, "via", other, "metric", metric, "proto", "static")
    before = node.ip("-6" if ":" in dst else "-4", "route", "show", dst)
    with running(node, peer(1)) as rig:
        assert node.ip("-6" if ":" in dst else "-4", "route", "show", dst) == before
        assert [withheld for _, withheld in rig.loop.rivals.values()] == [True]


@pytest.mark.parametrize(("dst", "hop", "other"), PAIRS)
def test_a_foreign_route_at_the_same_prefix_is_left_alone_and_named(node, dst, hop, other):
    node.run("ip", "route", "add", dst, "via", other, "metric", "50", "proto", "static")
    with running(node, peer(1)) as rig:
        assert rig.has(dst, hop), "a better foreign route does not keep ours out"
        ((rival, withheld),) = rig.loop.rivals.values()
        assert (rival.metric, withheld) == (50, False)
        rig.drop(peer(1))
        eventually(lambda: not rig.has(dst))
        rows = node.ip("-6" if ":" in dst else "-4", "route", "show", dst)
        assert [(r["gateway"], r["metric"]) for r in rows] == [(other, 50)]


def test_a_static_ipv6_route_without_metric_keeps_ours_out_and_is_named(node):
    node.run("ip", "-6", "route", "add", V6, "via", "fd99::3")
    with running(node, peer(1)) as rig:
        assert not rig.has(V6)
        assert rig.has(V4)
        assert [withheld for _, withheld in rig.loop.rivals.values()] == [True]
        node.run("ip", "-6", "route", "del", V6, "via", "fd99::3")
        eventually(lambda: rig.has(V6, HOP6))
        assert not rig.loop.rivals


def test_with_foreign_replace_static_routes_go_and_a_daemons_stay(node):
    node.run("ip", "route", "add", V4, "via", "10.99.0.3", "metric", "50", "proto", "static")
    node.run("ip", "-6", "route", "add", V6, "via", "fd99::3")
    node.run("ip", "route", "add", "10.244.2.0/24", "via", "10.99.0.2", "metric", "50", "proto", "bgp")
    with running(node, peer(1), peer(2), foreign="replace") as rig:
        assert [r["gateway"] for r in node.ip("-4", "route", "show", V4)] == [HOP4]
        assert [r["gateway"] for r in node.ip("-6", "route", "show", V6)] == [HOP6]
        assert len(node.ip("-4", "route", "show", "10.244.2.0/24")) == 2
        assert len(rig.loop.rivals) == 1


def test_a_route_prepended_at_our_key_is_taken_away_again(node):
    with running(node, peer(1)) as rig:
        metric = str(rig.routes(4, dst=V4)[0]["metric"])
        node.run("ip", "route", "prepend", V4, "via", "10.99.0.3", "metric", metric, "proto", "static")
        eventually(lambda: [r["gateway"] for r in node.ip("-4", "route", "show", V4)] == [HOP4])
        assert rig.loop.verified


def test_a_next_hop_appended_to_our_ipv6_route_is_taken_away_again(node):
    with running(node, peer(1)) as rig:
        metric = str(rig.routes(6, dst=V6)[0]["metric"])
        node.run("ip", "-6", "route", "append", V6, "via", "fd99::3", "metric", metric, "proto", "static")
        eventually(lambda: [r.get("gateway") for r in node.ip("-6", "route", "show", V6)] == [HOP6])


def test_routes_of_departed_nodes_go_at_the_start_but_only_with_a_complete_list(node):
    with running(node, peer(1), peer(2)):
        pass
    rig = Rig(node)
    try:
        rig.list(peer(1), complete=False)
        rig.list(peer(1), own=None)
        rig.feed(OWN_FACTS)
        rig.thread.start()
        time.sleep(0.3)
        assert rig.has("10.244.2.0/24")
        rig.list(peer(1))
        eventually(lambda: not rig.has("10.244.2.0/24"))
        assert rig.has(V4, HOP4)
    finally:
        rig.close()


def test_a_removal_of_most_routes_waits_for_a_second_list(node):
    peers = [peer(n) for n in range(1, 21)]
    with running(node, *peers, guard=GuardSettings(0.5, 10)) as rig:
        rig.list(peers[0])
        eventually(lambda: rig.loop.held)
        eventually(lambda: rig.relists, "a second list is asked for")
        assert len(rig.routes(4, type="unicast")) == 20
        rig.feed(peer(21))
        eventually(lambda: rig.has("10.244.21.0/24"), "other work goes on meanwhile")
        rig.list(peers[0], peer(21))
        eventually(lambda: len(rig.routes(4, type="unicast")) == 2)
        assert rig.loop.held is None


def test_watch_deletes_count_for_the_guard_and_a_list_that_disagrees_keeps_the_routes(node):
    peers = [peer(n) for n in range(1, 21)]
    with running(node, *peers, guard=GuardSettings(0.5, 10)) as rig:
        for each in peers[:15]:
            rig.inbox.put_change(each.name, _gone(each))
        eventually(lambda: rig.loop.held or len(rig.routes(4, type="unicast")) <= 9)
        if rig.loop.held:
            rig.list(*peers)
            eventually(lambda: rig.loop.held is None)
            assert len(rig.routes(4, type="unicast")) == 20


def _gone(facts):
    from pynet.observe.inbox import NodeChange

    return NodeChange(None, facts.uid, time.monotonic())


def test_an_older_list_may_add_but_not_remove(node):
    with running(node, peer(1)) as rig:
        rig.list(peer(2), consistent=False)
        eventually(lambda: rig.has("10.244.2.0/24"))
        assert rig.has(V4)


def test_all_routes_come_back_after_link_down_and_up(node):
    peers = [peer(n) for n in range(1, 41)]
    with running(node, *peers) as rig:
        node.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", 1)
        node.run("ip", "link", "set", "eth0", "down")
        eventually(lambda: rig.state("node-1") == "unreachable")
        node.run("ip", "link", "set", "eth0", "up")
        eventually(lambda: len(rig.routes(4, type="unicast")) == len(rig.routes(6, type="unicast")) == 40)


def test_all_routes_come_back_after_the_address_was_removed_and_added(node):
    peers = [peer(n) for n in range(1, 41)]
    with running(node, *peers) as rig:
        for address in ("10.99.0.1/24", "fd99::1/64"):
            node.run("ip", "address", "del", address, "dev", "eth0")
        eventually(lambda: rig.state("node-1") == rig.state("node-1", 6) == "unreachable")
        for address in ("10.99.0.1/24", "fd99::1/64"):
            node.run(
                "ip",
                "address",
                "add",
                address,
                "dev",
                "eth0",
                "nodad" if ":" in address else "brd",
                *([] if ":" in address else ["+"]),
            )
        eventually(lambda: len(rig.routes(4, type="unicast")) == len(rig.routes(6, type="unicast")) == 40)


def test_a_lost_address_gets_a_moment_to_come_back_before_thousands_of_peers_are_called_unreachable(node):
    rig = Rig(node)
    try:
        rig.list(peer(1), peer(2))
        facts = rig.loop.facts

        def cut_off(now):
            facts.listen()
            return facts.cut_off(now)

        facts.observe(everything=True)
        changes = rig.desired.revision
        lose = ("ip", "address", "del", "10.99.0.1/24", "dev", "eth0")

        assert not cut_off(100.0)
        node.run(*lose)
        assert cut_off(100.0)
        assert cut_off(100.09)
        assert facts.look_at(100.09) == pytest.approx(100.1)
        node.run("ip", "address", "add", "10.99.0.1/24", "dev", "eth0")
        assert not cut_off(100.091)
        observed = facts.observe(everything=False)
        assert observed.kernel.dump
        assert rig.desired.revision == changes

        node.run(*lose)
        assert cut_off(101.0)
        assert not cut_off(101.101)
        facts.observe(everything=False)
        assert (rig.state("node-1"), rig.state("node-1", 6)) == ("unreachable", "accepted")
        assert not cut_off(101.11)
        assert facts.look_at(101.11) == float("inf")
    finally:
        rig.close()


def test_an_address_lost_in_the_middle_of_a_pass_gets_its_moment_too(node):
    """And what the kernel told in that pass does not keep the loop turning meanwhile."""
    rig = Rig(node)
    try:
        rig.list(peer(1))
        facts = rig.loop.facts
        facts.observe(everything=True)
        node.run("ip", "address", "del", "10.99.0.1/24", "dev", "eth0")
        facts.postpone(facts.fib.read(facts.interest()))
        assert facts.waiting
        facts.listen()
        assert facts.cut_off(100.0)
        assert not facts.waiting
        assert not facts.cut_off(100.101)
        assert facts.observe(everything=False).kernel.dump
        assert rig.state("node-1") == "unreachable"
    finally:
        rig.close()


def test_an_address_that_never_rests_holds_up_neither_nodes_nor_repairs(node):
    """Away for 60 ms, there for 20: shorter and longer than the moment that a pass waits for it."""
    address = ("10.99.0.1/24", "dev", "eth0")
    with running(node, peer(1)) as rig:
        over = threading.Event()

        def flap():
            while not over.is_set():
                node.run("ip", "address", "del", *address)
                over.wait(0.06)
                node.run("ip", "address", "add", *address)
                over.wait(0.02)

        flapping = threading.Thread(target=flap)
        flapping.start()
        try:
            for n in range(2, 12):
                rig.feed(peer(n))
                assert eventually(lambda n=n: (f"node-{n}", 4) in rig.desired.verdicts, "the Node is taken in") < 0.5
                assert eventually(lambda n=n: rig.has(f"fd00:244:0:{n:x}::/64"), "its route") < 1
        finally:
            over.set()
            flapping.join()
        eventually(lambda: len(rig.routes(4, type="unicast")) == len(rig.routes(6, type="unicast")) == 11)


def test_a_retry_that_is_due_does_not_wait_for_a_lost_link(node, monkeypatch):
    """It would be lost: it is due once."""
    rig = Rig(node)
    try:
        rig.list(peer(1))
        loop = rig.loop
        loop._pass(time.monotonic())
        monkeypatch.setattr(loop.facts, "cut_off", lambda _now: True)
        before = len(rig.passes)
        loop._pass(time.monotonic())
        assert len(rig.passes) == before
        loop._retry.later(time.monotonic() - 10, first=1.0)
        loop._pass(time.monotonic())
        assert len(rig.passes) == before + 1
    finally:
        rig.close()


def test_lost_notifications_may_have_told_of_a_pod_that_left(node, monkeypatch):
    rig = Rig(node)
    told = []
    monkeypatch.setattr(rig.effects, "ports_left", lambda _bridges, *, unsure: told.append(unsure))
    try:
        rig.list(peer(1))
        rig.loop._pass(time.monotonic())

        def overrun(**_):
            raise Overrun("No buffer space available")

        with monkeypatch.context() as broken:
            broken.setattr(rig.monitor, "read", overrun)
            rig.loop.facts.listen()
        rig.loop._pass(time.monotonic())
        assert told == [False, True]
    finally:
        rig.close()


def test_what_the_kernel_told_is_not_forgotten_when_it_cannot_be_read_then(node, monkeypatch):
    rig = Rig(node)
    try:
        rig.list(peer(1))
        facts = rig.loop.facts
        facts.observe(everything=True)
        node.sysctl("net/ipv4/conf/eth0/forwarding", 0)
        node.sysctl("net/ipv4/conf/eth0/forwarding", 1)
        facts.listen()

        def refuse(_wanted):
            raise NetlinkError(errno.ENOBUFS, "", "dump routes")

        with monkeypatch.context() as broken:
            broken.setattr(facts.fib, "dump", refuse)
            with pytest.raises(NetlinkError, match="dump routes"):
                facts.observe(everything=True)
        assert facts.observe(everything=True).kernel.sysctls
        assert not facts.observe(everything=True).kernel.sysctls
    finally:
        rig.close()


def test_all_routes_come_back_after_the_interface_was_deleted_and_created_under_the_same_name(netns):
    netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
    up(netns)
    with running(netns, *[peer(n) for n in range(1, 41)]) as rig:
        netns.run("ip", "link", "del", "eth0")
        eventually(lambda: not rig.routes(4, type="unicast"))
        netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
        up(netns)
        eventually(lambda: len(rig.routes(4, type="unicast")) == len(rig.routes(6, type="unicast")) == 40)


def up(netns):
    for command in (
        "link set eth0 up",
        "link set far up",
        "address add 10.99.0.1/24 dev eth0",
        "address add fd99::1/64 dev eth0 nodad",
    ):
        netns.run("ip", *command.split())


def test_a_thousand_flushed_routes_come_back(node):
    peers = [peer(n, cidr=(f"10.{100 + n // 256}.{n % 256}.0/24",), ip=("10.99.0.2",)) for n in range(1, 1001)]
    with running(node, *peers) as rig:
        flush(node)
        eventually(lambda: len(rig.routes(4, type="unicast")) == 1000)
        eventually(lambda: rig.routes(4, type="unreachable"))


def test_an_overrun_of_the_monitor_is_made_good_by_a_dump(node):
    peers = [peer(n, cidr=(f"10.{100 + n // 256}.{n % 256}.0/24",), ip=("10.99.0.2",)) for n in range(1, 1501)]
    with running(node, *peers, rcvbuf=4096) as rig:
        flush(node)
        eventually(lambda: len(rig.routes(4, type="unicast")) == 1500)
        assert sum(observed.kernel.overruns for observed, _, _ in rig.passes) > 0


def test_a_restart_sends_no_route_message_but_reads(node):
    with running(node, peer(1), peer(2)):
        pass
    monitor = node.popen("ip", "monitor", "route", stdout=subprocess.PIPE, text=True)

    metrics = itertools.count(1)  # one more route each time: what is there already is no news

    def listens():
        node.run("ip", "route", "add", "198.51.100.0/24", "via", HOP4, "metric", str(next(metrics)))
        return select.select([monitor.stdout], [], [], 0.1)[0]

    eventually(listens, "the monitor listens")
    with running(node, peer(1), peer(2)) as rig:
        assert rig.operations == []
        node.run("ip", "route", "add", "192.0.2.0/24", "via", HOP4)
        seen = iter(monitor.stdout.readline, "")
        assert next(line for line in seen if "198.51.100.0/24" not in line).startswith("192.0.2.0/24"), "only our own marks"


def test_a_peer_not_on_link_is_unreachable_until_its_network_is_there(node):
    with running(node, peer(1, cidr=V4, ip="192.0.2.9")) as rig:
        assert rig.state("node-1") == "unreachable"
        node.run("ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "scope", "link")
        eventually(lambda: rig.has(V4, "192.0.2.9"))
        node.run("ip", "route", "add", "192.0.2.9/32", "via", "10.99.0.3")
        eventually(lambda: rig.state("node-1") == "unreachable" and not rig.has(V4))


def test_noprefixroute_with_a_link_route_is_on_link(netns):
    netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far")
    for command in ("link set eth0 up", "link set far up", "address add 10.99.0.1/24 dev eth0 noprefixroute"):
        netns.run("ip", *command.split())
    with running(netns, peer(1)) as rig:
        assert rig.state("node-1") == "unreachable", "an address alone makes nothing on-link"
        netns.run("ip", "route", "add", "10.99.0.0/24", "dev", "eth0", "scope", "link")
        eventually(lambda: rig.has(V4, HOP4))


def test_one_bad_peer_does_not_stop_the_others(node):
    bad = [
        peer(5, cidr="0.0.0.0/0"),
        peer(6, cidr="10.99.0.0/24"),
        peer(7, cidr="x/y"),
        peer(8, ip="10.99.0.77", cidr="10.244.8.0/24"),
        peer(9, ip="10.99.0.255", cidr="10.244.9.0/24"),
    ]
    node.run("ip", "route", "add", "broadcast", "10.99.0.77", "dev", "eth0", "table", "local")  # no gateway, says the kernel
    with running(node, *bad, peer(1)) as rig:
        assert rig.has(V4, HOP4)
        (words,) = rig.writer.failures.values()
        assert "kernel refused" in words
        default = node.ip("route", "show", "default")
        assert default == []


def test_a_route_that_the_kernel_refused_is_tried_again(node):
    node.run("ip", "route", "add", "broadcast", "10.99.0.77", "dev", "eth0", "table", "local")
    with running(node, peer(8, ip="10.99.0.77", cidr="10.244.8.0/24")) as rig:
        assert rig.writer.failures
        node.run("ip", "route", "del", "broadcast", "10.99.0.77", "dev", "eth0", "table", "local")
        eventually(lambda: rig.has("10.244.8.0/24", "10.99.0.77"))
        assert not rig.writer.failures


def test_somebody_who_keeps_undoing_is_left_alone_for_a_while(node):
    with running(node, peer(1), peer(2)) as rig:
        for _ in range(25):
            node.run("ip", "route", "del", V4, check=False)
            if rig.fighting():
                break
            eventually(lambda: rig.has(V4) or rig.fighting())
        assert rig.fighting()
        node.run("ip", "route", "del", "10.244.2.0/24")
        eventually(lambda: rig.has("10.244.2.0/24"), "others are repaired at once", 0.5)
        eventually(lambda: rig.has(V4, HOP4), "and after the pause that one too")


def test_somebody_who_never_rests_does_not_keep_us_from_repairing_after_each_pause(node):
    with running(node, peer(1)) as rig:
        metric = str(rig.routes(4, dst=V4)[0]["metric"])
        others = itertools.cycle(("10.99.0.3", "10.99.0.4"))  # the kernel tells nobody of a route replaced by its like

        def undo():
            node.run("ip", "route", "replace", V4, "via", next(others), "metric", metric, "proto", "static")

        for _ in range(25):
            undo()
            eventually(lambda: rig.has(V4, HOP4) or rig.fighting())
        assert rig.fighting()
        done, end = len(rig.operations), time.monotonic() + 8
        while len(rig.operations) == done and time.monotonic() < end:
            undo()
            time.sleep(0.05)
        assert len(rig.operations) > done


def test_a_routing_table_of_its_own(node):
    with running(node, peer(1), table=1000) as rig:
        assert [r["table"] for r in rig.routes(4, dst=V4)] == ["1000"]
        node.run("ip", "route", "flush", "table", "1000")
        eventually(lambda: rig.has(V4, HOP4))


@pytest.mark.parametrize("setting", ["eth0", "/^eth/", "can-reach=10.99.0.3"])
def test_the_interface_can_be_named(node, setting):
    with running(node, peer(1), interface=setting) as rig:
        assert rig.has(V4, HOP4)


def test_an_interface_that_does_not_carry_the_peers_makes_them_unreachable(node):
    with running(node, peer(1), interface="lo") as rig:
        assert rig.state("node-1") == "unreachable"
        assert re.search("on-link at eth0", rig.desired.verdicts["node-1", 4].reason)


def test_pods_coming_and_going_cost_no_full_pass(node):
    node.run("ip", "link", "add", "pynet0", "type", "bridge")
    for command in (
        "link set pynet0 up",
        "address add 10.244.0.1/24 dev pynet0",
        "address add fd00:244::1/64 dev pynet0 nodad",
    ):
        node.run("ip", *command.split())
    with running(node, peer(1)) as rig:
        count = len(rig.passes)
        for n in range(5):
            node.run("ip", "link", "add", f"v{n}", "type", "veth", "peer", "name", f"w{n}")
            node.run("ip", "link", "set", f"v{n}", "master", "pynet0", "up")
            node.run("ip", "link", "set", f"w{n}", "up")
            node.run("ip", "link", "del", f"v{n}")
        rig.feed(peer(2))
        eventually(lambda: rig.has("10.244.2.0/24"))
        assert not [observed.kernel for observed, _, _ in rig.passes[count:] if observed.full]


def test_the_guard_counts_peers_and_not_our_own_unreachable_route(node):
    for command in ("link add pynet0 type bridge", "link set pynet0 up", "address add 10.244.0.1/24 dev pynet0"):
        node.run("ip", *command.split())
    with running(node, *[peer(n) for n in range(1, 6)]) as rig:
        count = rig.loop.facts.fib.count_peers
        assert count() == {4: 5, 6: 5}, "by the dump"
        rig.drop(peer(3))
        rig.feed(peer(7))
        rig.feed(peer(8))
        eventually(lambda: count() == {4: 6, 6: 6}, "by the notifications")
        rig.loop.facts.fib.dump(rig.desired.routes)
        assert count() == {4: 6, 6: 6}
        mirrored = rig.loop.facts.fib.routes
        assert all(any(have is want for have in mirrored[prefix]) for prefix, want in rig.desired.routes.items()), "held once"


def test_a_link_that_goes_down_is_no_matter_for_the_removal_guard(node):
    node.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", 1)
    with running(node, *[peer(n) for n in range(1, 31)], guard=GuardSettings(0.5, 10)) as rig:
        # Not on-link any more, and yet the kernel keeps the routes: what a dump in the middle of its own flush shows too.
        node.run("ip", "route", "add", "10.99.0.0/25", "via", "10.99.0.130", "metric", "5")
        eventually(lambda: rig.state("node-1") == "unreachable")
        eventually(lambda: not rig.routes(4, type="unicast"))
        assert rig.loop.held is None
        assert rig.relists == 0
        node.run("ip", "route", "del", "10.99.0.0/25")
        eventually(lambda: len(rig.routes(4, type="unicast")) == 30)


def test_what_the_kernel_refused_while_a_link_was_down_is_tried_as_soon_as_it_is_back(node):
    node.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", 1)
    with running(node, peer(1)) as rig:
        rig.loop._retry.later(time.monotonic(), first=3600.0)
        rig.writer.failures[next(iter(rig.desired.owners))] = "the link was down"
        node.run("ip", "link", "set", "eth0", "down")
        eventually(lambda: rig.state("node-1") == "unreachable")
        node.run("ip", "link", "set", "eth0", "up")
        eventually(lambda: rig.has(V4, HOP4) and rig.has(V6, HOP6))
        eventually(lambda: not rig.writer.failures)
