"""Table ``inet pynet`` on the real kernel: what it does to packets, that it is put back, that nothing else is touched."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynet.apply import masquerade, tablewatch
from pynet.apply.masquerade import Masquerade
from pynet.apply.ruleset import Ruleset, parse, plan, render, replacement
from pynet.core.addresses import parse_address, parse_prefix
from pynet.drivers import command, nfnetlink, nftables

from tests.kernel.keeper import Keeper
from tests.support.netns import Namespace
from tests.support.transactions import Transactions
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = sys.executable
RULES = Ruleset(
    own=(parse_prefix("10.1.0.0/24"), parse_prefix("fd00:1::/64")),
    pods=(parse_prefix("10.1.0.0/24"), parse_prefix("10.2.0.0/24"), parse_prefix("fd00:1::/64"), parse_prefix("fd00:2::/64")),
    nodes=tuple(map(parse_address, ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"))),
    except_=(parse_prefix("192.0.2.9/32"), parse_prefix("2001:db8::9/128")),
)


class TableKeeper(Keeper):
    """A Masquerade in a namespace."""

    def in_kernel(self) -> Any:
        with self.netns.entered():
            listing = nftables.list_table("inet", "pynet")
        return None if listing is None else parse(listing)

    def repaired(self, ruleset: Ruleset = RULES, *, within: float = 5.0) -> float:
        """Wait for one repair; returns its seconds as told."""
        kind, seconds = self.drifts.get(timeout=within)
        assert kind == "masquerade"
        until(lambda: self.is_settled(ruleset), "settled after the repair")
        assert self.in_kernel() == render(ruleset)
        return seconds


def keeper_in(netns: Namespace) -> TableKeeper:
    return TableKeeper(Masquerade, netns, RULES)


@pytest.fixture
def keeper(netns) -> Iterator[TableKeeper]:
    with keeper_in(netns) as made:
        yield made


# ---- what it does to packets


class Wire:
    """A pod (10.1.0.2) behind a node (192.0.2.1); beside the node, on one Ethernet, an outside with many addresses."""

    OUTSIDE = ("192.0.2.2", "192.0.2.3", "192.0.2.9", "10.2.0.5", "2001:db8::2", "2001:db8::3", "2001:db8::9", "fd00:2::5")

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.pod, self.node, self.outside = (stack.enter_context(Namespace()) for _ in range(3))
        node = self.node
        node.run("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", self.pod.name)
        node.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.outside.name)
        for there, link, addresses in (
            (node, "pod0", ("10.1.0.1/24", "fd00:1::1/64")),
            (node, "eth0", ("192.0.2.1/24", "2001:db8::1/64")),
            (self.pod, "eth0", ("10.1.0.2/24", "fd00:1::2/64")),
            (self.outside, "eth0", tuple(a + ("/64" if ":" in a else "/24") for a in self.OUTSIDE)),
        ):
            there.run("ip", "link", "set", link, "up")
            for address in addresses:
                there.run("ip", "addr", "add", address, "dev", link, *(("nodad",) if ":" in address else ()))
        for there, gateways in ((self.pod, ("10.1.0.1", "fd00:1::1")), (self.outside, ("192.0.2.1", "2001:db8::1"))):
            for gateway in gateways:
                there.run("ip", "route", "add", "default", "via", gateway)
        for gateway in ("192.0.2.2", "2001:db8::2"):
            node.run("ip", "route", "add", "10.2.0.0/24" if "." in gateway else "fd00:2::/64", "via", gateway)
        node.sysctl("net/ipv4/ip_forward", 1)
        node.sysctl("net/ipv6/conf/all/forwarding", 1)

    def source_seen(self, client: Namespace, server: Namespace, address: str) -> str:
        """The source address and with it the port that a TCP server at ``address`` sees, when ``client`` connects."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with server.entered():
            listening = socket.socket(family, socket.SOCK_STREAM)
        with listening:
            listening.bind((address, 0))
            listening.listen()
            listening.settimeout(5)
            with client.entered():
                calling = socket.socket(family, socket.SOCK_STREAM)
            with calling:
                calling.settimeout(5)
                calling.connect((address, listening.getsockname()[1]))
                accepted, source = listening.accept()
                accepted.close()
        return source[0]


@pytest.fixture
def wire() -> Iterator[Wire]:
    with contextlib.ExitStack() as stack:
        made = Wire(stack)
        with keeper_in(made.node) as keeper:
            keeper.settle()
            made.keeper = keeper
            yield made


def test_pod_leaves_with_the_nodes_address_only_to_outside_the_cluster(wire) -> None:
    seen = {address: wire.source_seen(wire.pod, wire.outside, address) for address in wire.OUTSIDE}
    assert seen == {
        "192.0.2.3": "192.0.2.1",  # outside
        "2001:db8::3": "2001:db8::1",
        "192.0.2.2": "10.1.0.2",  # a node
        "2001:db8::2": "fd00:1::2",
        "192.0.2.9": "10.1.0.2",  # exceptCIDRs
        "2001:db8::9": "fd00:1::2",
        "10.2.0.5": "10.1.0.2",  # a pod
        "fd00:2::5": "fd00:1::2",
    }


def test_what_comes_from_outside_keeps_its_source(wire) -> None:
    assert wire.source_seen(wire.outside, wire.pod, "10.1.0.2") == "192.0.2.2"
    assert wire.source_seen(wire.outside, wire.pod, "fd00:1::2") in wire.OUTSIDE
    assert wire.source_seen(wire.node, wire.outside, "192.0.2.3") == "192.0.2.1"


def test_a_node_that_goes_and_comes_changes_what_is_masqueraded(wire) -> None:
    without = Ruleset(RULES.own, RULES.pods, RULES.nodes[:1], RULES.except_)
    wire.keeper.settle(without)
    assert wire.source_seen(wire.pod, wire.outside, "192.0.2.2") == "192.0.2.1"
    wire.keeper.settle(RULES)
    assert wire.source_seen(wire.pod, wire.outside, "192.0.2.2") == "10.1.0.2"


def test_families_are_switched_separately(wire) -> None:
    only6 = Ruleset(RULES.own, RULES.pods, RULES.nodes, RULES.except_, ipv4=False)
    wire.keeper.settle(only6)
    assert wire.source_seen(wire.pod, wire.outside, "192.0.2.3") == "10.1.0.2"
    assert wire.source_seen(wire.pod, wire.outside, "2001:db8::3") == "2001:db8::1"


def test_without_random_source_ports_the_pods_own_port_is_kept(wire) -> None:
    wire.keeper.settle(Ruleset(RULES.own, RULES.pods, RULES.nodes, RULES.except_, random_fully=False))
    with wire.outside.entered():
        listening = socket.create_server(("192.0.2.3", 0))
    with listening:
        listening.settimeout(5)
        with wire.pod.entered():
            calling = socket.create_connection(listening.getsockname(), timeout=5, source_address=("10.1.0.2", 44321))
        accepted, source = listening.accept()
        calling.close()
        accepted.close()
    assert source == ("192.0.2.1", 44321)


@pytest.mark.parametrize(("group", "source"), [("239.1.2.3", "10.1.0.2"), ("ff0e::123", "fd00:1::2")])
def test_multicast_is_left_alone(wire, group, source) -> None:
    """No multicast router is needed: the node sends with the pod's address itself, which passes the same chain."""
    family = socket.AF_INET6 if ":" in group else socket.AF_INET
    wire.node.run(
        "ip",
        "addr",
        "add",
        source + ("/128" if ":" in source else "/32"),
        "dev",
        "eth0",
        *(("nodad",) if ":" in source else ()),
    )
    with wire.outside.entered():
        receiving = socket.socket(family, socket.SOCK_DGRAM)
        index = socket.if_nametoindex("eth0")
    with wire.node.entered():
        sending = socket.socket(family, socket.SOCK_DGRAM)
        there = socket.if_nametoindex("eth0")
    with receiving, sending:
        receiving.settimeout(5)
        receiving.bind((group, 0))
        packed = socket.inet_pton(family, group)
        if family == socket.AF_INET6:
            receiving.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + index.to_bytes(4, "little"))
            sending.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, there)
        else:
            receiving.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, packed + bytes(4) + index.to_bytes(4, "little"))
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, bytes(8) + there.to_bytes(4, "little"))
        sending.bind((source, 0))
        sending.sendto(b"x", (group, receiving.getsockname()[1]))
        assert receiving.recvfrom(10)[1][0] == source


# ---- the table itself


def test_table_holds_what_was_rendered_and_reads_like_text(keeper, netns) -> None:
    keeper.settle()
    assert keeper.in_kernel() == render(RULES)
    text = netns.run("nft", "list", "table", "inet", "pynet")
    assert 'ip saddr @own-4 jump egress-4 comment "from a pod of this node"' in text
    assert 'masquerade fully-random comment "to outside the cluster: leaves with the node\'s address"' in text
    assert "type nat hook postrouting priority srcnat; policy accept;" in text


def test_other_tables_are_untouched(keeper, netns) -> None:
    netns.run(
        "nft",
        "-f",
        "-",
        input="table inet theirs { set s { type ipv4_addr; elements = { 1.1.1.1 } }\nchain c { accept; }; }",
    )
    netns.run("nft", "add", "table", "ip", "pynet")
    netns.run("iptables-nft", "-A", "FORWARD", "-s", "1.2.3.4", "-j", "DROP")
    before = netns.run("nft", "list", "ruleset")
    keeper.settle()
    keeper.settle(Ruleset())
    assert keeper.it.stop(5)
    with netns.entered():
        masquerade.remove()
    assert netns.run("nft", "list", "ruleset") == before


def test_overlapping_ranges_are_accepted(keeper) -> None:
    everything = tuple(
        map(parse_prefix, ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "::/0", "fd00::/8", "255.255.255.255/32"))
    )
    ruleset = Ruleset(own=everything, pods=everything, except_=everything, nodes=RULES.nodes * 2)
    keeper.settle(ruleset)
    assert keeper.in_kernel() == render(ruleset)


def test_both_families_off_means_no_table_and_takes_ours_away(netns) -> None:
    with keeper_in(netns) as first:
        first.settle()
    off = Ruleset(RULES.own, ipv4=False, ipv6=False)
    with keeper_in(netns) as second:
        second.settle(off)
        assert second.in_kernel() is None


def test_restart_makes_no_transaction(netns) -> None:
    many = Ruleset(RULES.own, RULES.pods, tuple((3 << 24 | n).to_bytes(4, "big") for n in range(0, 600, 2)), RULES.except_)
    with keeper_in(netns) as first:
        first.settle(many)
    announced = Transactions(netns)
    with keeper_in(netns) as second:
        second.settle(many)
        second.it.resync()
        until(lambda: second.is_settled(many), "resync")
    assert announced.since_last_look() == []


def test_restart_with_another_node_changes_only_that_element(netns) -> None:
    with keeper_in(netns) as first:
        first.settle()
    announced = Transactions(netns)
    with keeper_in(netns) as second:
        second.settle(Ruleset(RULES.own, RULES.pods, (*RULES.nodes, parse_address("192.0.2.77")), RULES.except_))
    assert announced.since_last_look() == ["add element inet pynet nodes-4 { 192.0.2.77 }\n"]


def test_changes_of_elements_do_not_replace_the_table_and_are_gathered(keeper, netns) -> None:
    keeper.settle()
    handle = next(
        t["table"]["handle"] for t in json.loads(netns.run("nft", "-j", "list", "tables"))["nftables"] if "table" in t
    )
    announced = Transactions(netns)
    nodes = list(RULES.nodes)
    with netns.entered():
        before = nfnetlink.generation()
    for n in range(100, 150):
        nodes.append(parse_address(f"192.0.2.{n}"))
        last = Ruleset(RULES.own, RULES.pods, tuple(nodes), RULES.except_)
        keeper.submit(last)
    until(lambda: keeper.is_settled(last), "all of them")
    with netns.entered():
        assert 1 <= nfnetlink.generation() - before < 10, "transactions"
    assert keeper.in_kernel() == render(last)
    changes = announced.since_last_look()
    assert sum(line.startswith("add element") for line in changes) == len(changes) == 50
    assert f'"handle": {handle}' in netns.run("nft", "-j", "list", "tables")
    assert keeper.drifts.empty()


networks4 = st.builds(
    lambda n, length: f"{n >> 4}.{(n & 15) << 4}.0.0/{length}", st.integers(0, 4095), st.just(12) | st.integers(12, 24)
)
networks6 = st.builds(lambda n, length: f"{n << 8:x}::/{length}", st.integers(0, 255), st.integers(8, 20))
networks = st.lists(networks4 | networks6, max_size=6).map(lambda some: tuple(map(parse_prefix, some)))
rulesets = st.builds(
    Ruleset, own=networks, pods=networks, except_=networks, nodes=st.lists(st.sampled_from(RULES.nodes)).map(tuple)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rulesets, rulesets)
def test_any_update_of_elements_is_what_the_kernel_then_holds(netns, before, after) -> None:
    with netns.entered():
        nftables.transact(replacement(render(before)))
        held = parse(nftables.list_table("inet", "pynet"))
        assert held == render(before)
        if commands := plan(held, render(after)):
            nftables.transact(commands)
        assert parse(nftables.list_table("inet", "pynet")) == render(after)


# ---- repaired


@pytest.mark.parametrize(
    "harm",
    [
        "flush ruleset",
        "delete table inet pynet",
        "flush table inet pynet",
        "flush chain inet pynet egress-4",
        "flush chain inet pynet postrouting; delete chain inet pynet postrouting",
        "insert rule inet pynet postrouting accept",
        "add rule inet pynet egress-6 accept",
        "delete element inet pynet nodes-4 { 192.0.2.2 }",
        "add element inet pynet nodes-6 { ::5 }",
        "add element inet pynet pods-4 { 8.0.0.0/8 }",
        "delete element inet pynet pods-4 { 10.1.0.0-10.2.0.255 }",
        "flush set inet pynet own-4",
        "add set inet pynet theirs { type ipv4_addr; }",
        "add map inet pynet theirs { type ipv4_addr : verdict; }",
        "add chain inet pynet theirs",
        "add counter inet pynet theirs",
        "add chain inet pynet postrouting { policy drop; }",
        "add table inet pynet { flags dormant; }",
    ],
)
def test_drift_is_repaired(keeper, netns, harm) -> None:
    rules = Ruleset(
        RULES.own, (parse_prefix("10.1.0.0/24"), parse_prefix("10.2.0.0/24"), *RULES.pods[2:]), RULES.nodes, RULES.except_
    )
    if "10.1.0.0-10.2.0.255" in harm:  # an interval that is one element
        rules = Ruleset(RULES.own, (parse_prefix("10.1.0.0/24"),), RULES.nodes, RULES.except_)
        harm = "delete element inet pynet pods-4 { 10.1.0.0/24 }"
    keeper.settle(rules)
    netns.run("nft", harm)
    seconds = keeper.repaired(rules)
    print(f"\n{harm}: repaired {1000 * seconds:.1f} ms after the kernel's event")
    assert keeper.drifts.empty()


def test_tables_of_the_same_name_or_with_our_name_inside_are_not_ours(keeper, netns) -> None:
    keeper.settle()
    for theirs in (
        "add table ip pynet; add chain ip pynet egress-4",
        "add table inet x; add set inet x pynet { type ipv4_addr; }",
    ):
        netns.run("nft", theirs)
    netns.run("nft", "flush", "chain", "inet", "pynet", "egress-4")  # announced after those
    keeper.repaired()
    assert keeper.drifts.empty()


def test_every_flush_of_many_is_repaired(keeper, netns) -> None:
    keeper.settle()
    for _ in range(10):
        netns.run("nft", "flush", "ruleset")
        keeper.repaired()


def test_our_own_transactions_are_not_drift(keeper) -> None:
    for n in range(20):
        keeper.settle(Ruleset(RULES.own, RULES.pods, RULES.nodes[: n % 3], RULES.except_, random_fully=n % 5 != 0))
    assert keeper.drifts.empty()
    assert len(keeper.it._watch.own._portids) <= 1  # the last one's end may be on its way


def test_what_the_monitor_missed_is_found_by_a_resync(keeper, netns) -> None:
    keeper.settle()
    keeper.it._watch.stop(5)
    netns.run("nft", "flush", "chain", "inet", "pynet", "egress-4")
    keeper.it.resync()
    print(f"\nfound by resync and repaired in {1000 * keeper.repaired():.1f} ms")


def test_resync_without_any_transaction_since_the_last_starts_no_nft(keeper, monkeypatch) -> None:
    keeper.settle()
    calls = []
    run = command.run
    monkeypatch.setattr(
        command, "run", lambda arguments, *rest, **more: calls.append(arguments) or run(arguments, *rest, **more)
    )
    for _ in range(3):
        keeper.resync()
    assert calls == []
    keeper.netns.run("nft", "add", "table", "ip", "theirs")
    keeper.resync()
    assert len(calls) == 1
    assert calls[0][2:] == ["list", "table", "inet", "pynet"]


def test_lost_events_lead_to_a_look(keeper, netns, monkeypatch) -> None:
    """The kernel drops events when the buffer is full; a small one here, filled while the watch is held up."""
    monkeypatch.setattr(nfnetlink, "_RECEIVE_BUFFER", 2304)
    read, hold, held = nfnetlink.Monitor.read, threading.Event(), threading.Event()

    def slow(self, *args):
        held.set()
        hold.wait(10)
        return read(self, *args)

    keeper.settle()
    monkeypatch.setattr(nfnetlink.Monitor, "read", slow)
    netns.run("nft", "add", "table", "ip", "theirs")
    assert held.wait(5)
    for _ in range(20):
        netns.run("nft", "flush", "table", "inet", "pynet")
        netns.run(
            "nft",
            "-f",
            "-",
            input="add table ip more; " + "".join(f"add chain ip more c{n}; " for n in range(40)) + "delete table ip more",
        )
    hold.set()
    keeper.repaired()


def test_a_monitor_that_breaks_is_opened_again_and_told(keeper, netns, monkeypatch) -> None:
    monkeypatch.setattr(tablewatch, "_REOPEN_AFTER", 0.01)
    keeper.settle()
    monkeypatch.setattr(nfnetlink.Monitor, "read", failing_once(nfnetlink.Monitor.read))
    netns.run("nft", "flush", "ruleset")
    keeper.repaired()
    until(keeper.it._watch._thread.is_alive, "watching")
    netns.run("nft", "flush", "ruleset")
    keeper.repaired()


def test_what_happens_while_the_monitor_is_closed_is_found_when_it_is_opened_again(keeper, netns, monkeypatch) -> None:
    opening, opened = threading.Event(), threading.Event()
    monitor = nfnetlink.Monitor

    def late() -> nfnetlink.Monitor:
        opening.set()
        assert opened.wait(10)
        return monitor()

    keeper.settle()
    monkeypatch.setattr(tablewatch, "_REOPEN_AFTER", 0.01)
    monkeypatch.setattr(tablewatch, "Monitor", late)
    monkeypatch.setattr(monitor, "read", failing_once(monitor.read))
    netns.run("nft", "add", "table", "ip", "theirs")
    assert opening.wait(5)
    until(keeper.it._applier.idle, "the look that follows the failure")
    netns.run("nft", "flush", "ruleset")
    opened.set()
    keeper.repaired()


def failing_once(function):
    calls = iter([OSError(5, "Input/output error")])

    def one(*args):
        if error := next(calls, None):
            raise error
        return function(*args)

    return one


def test_a_fight_is_not_fought_at_full_speed_and_is_told(keeper, netns) -> None:
    keeper.settle()
    deadline = time.monotonic() + 20
    while not keeper.it.error:
        assert time.monotonic() < deadline
        netns.run("nft", "flush", "ruleset")
        time.sleep(0.01)
    assert "somebody keeps changing table inet pynet" in keeper.it.error
    assert not keeper.it.ok
    repairs = keeper.drifts.qsize()
    for _ in range(20):
        netns.run("nft", "flush", "ruleset")
    assert keeper.drifts.qsize() <= repairs + 2
    until(keeper.is_settled, "peace", seconds=10)
    assert keeper.in_kernel() == render(RULES)


# ---- what can go wrong


def test_without_nft_the_reason_is_one_line_and_it_is_tried_again(keeper, monkeypatch) -> None:
    monkeypatch.setattr(command, "find", lambda _name: None)
    keeper.submit(RULES)
    assert keeper.results.get(timeout=5) == ("masquerade", "nft: not installed: install the package nftables")
    assert not keeper.it.ok
    monkeypatch.undo()
    until(keeper.is_settled, "nft found")


def test_a_resync_that_fails_is_made_up_for(keeper, netns, monkeypatch) -> None:
    keeper.settle()
    assert keeper.it._watch.stop(5)
    netns.run("nft", "flush", "ruleset")
    monkeypatch.setattr(command, "find", lambda _name: None)
    keeper.it.resync()
    until(lambda: not keeper.it.ok, "no nft")
    monkeypatch.undo()
    keeper.repaired()


def test_without_nft_and_with_masquerading_off_nothing_is_wrong(keeper, monkeypatch) -> None:
    monkeypatch.setattr(command, "find", lambda _name: None)
    keeper.settle(Ruleset(ipv4=False, ipv6=False))


def test_a_stuck_nft_is_killed_and_submit_and_stop_do_not_wait(keeper, monkeypatch, tmp_path) -> None:
    stuck = tmp_path / "nft"
    stuck.write_text("#!/bin/sh\nexec sleep 600\n")
    stuck.chmod(0o755)
    monkeypatch.setattr(command, "find", lambda _name: str(stuck))
    monkeypatch.setattr(command.run, "__kwdefaults__", {"started": None, "deadline": 0.3})
    keeper.submit(RULES)
    assert keeper.results.get(timeout=5) == ("masquerade", "nft: killed after 0.3 s")
    began = time.monotonic()
    keeper.submit(Ruleset())
    keeper.it.resync()
    assert time.monotonic() - began < 0.2


def test_an_update_that_is_refused_is_followed_by_the_whole_table(keeper, netns, monkeypatch) -> None:
    keeper.settle()
    monkeypatch.setattr(TRANSACT_AT, "transact", refusing_parts(nftables.transact))
    more = Ruleset(RULES.own, RULES.pods, (*RULES.nodes, parse_address("192.0.2.99")), RULES.except_)
    keeper.settle(more)
    assert keeper.in_kernel() == render(more)


TRANSACT_AT = masquerade


def refusing_parts(transact):
    def one(commands, own):
        if "table" not in commands[0].get("add", ()):
            raise command.CommandError("nft", "Could not process rule: File exists", 1)
        transact(commands, own)

    return one


def test_a_transaction_whose_end_was_not_seen_is_not_trusted(keeper, monkeypatch) -> None:
    """nft is killed after its deadline, but the kernel had accepted; then the value before comes back."""
    keeper.settle()
    transact = nftables.transact

    def silent(*args):
        transact(*args)
        raise command.CommandError("nft", "killed after 10 s")

    monkeypatch.setattr(masquerade, "transact", silent)
    keeper.submit(Ruleset())
    until(lambda: not keeper.it.ok, "killed")
    monkeypatch.setattr(masquerade, "transact", transact)
    keeper.settle()
    assert keeper.in_kernel() == render(RULES)


def test_a_listing_in_other_words_is_learned_not_fought(keeper, netns, monkeypatch) -> None:
    listed = nftables.list_table

    def otherwise(*args):
        listing = listed(*args)
        for thing in listing or ():
            if "rule" in thing:
                thing["rule"]["index"] = 3
        return listing

    monkeypatch.setattr(masquerade, "list_table", otherwise)
    keeper.settle()
    netns.run("nft", "add", "table", "ip", "theirs")
    announced = Transactions(netns)
    keeper.it.resync()
    until(keeper.is_settled, "resync")
    assert announced.since_last_look() == []
    netns.run("nft", "flush", "chain", "inet", "pynet", "egress-4")
    monkeypatch.undo()
    keeper.repaired()


def test_without_net_admin_the_reason_is_told(netns) -> None:
    program = (
        "import os, structlog, threading\n"
        "from pynet.apply.masquerade import Masquerade\nfrom pynet.apply.ruleset import Ruleset\n"
        "done = threading.Event()\n"
        "it = Masquerade(lambda *result: (print(*result), done.set()), print, structlog.get_logger())\n"
        "it.submit(Ruleset())\ndone.wait(10)\n"
    )
    said = netns.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", PYTHON, "-c", program)
    print(said)
    assert "Operation not permitted" in said


def test_children_are_reaped_and_files_closed(keeper) -> None:
    import os

    keeper.settle()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for n in range(10):
        keeper.settle(Ruleset(RULES.own, nodes=RULES.nodes[: n % 4]))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert (
        subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "stat=,comm="], capture_output=True, text=True, check=False
        ).stdout.count("defunct")
        == 0
    )


def test_stop_leaves_the_table(netns) -> None:
    with keeper_in(netns) as keeper:
        keeper.settle()
    assert keeper.in_kernel() == render(RULES)


# ---- cleanup


def test_remove_takes_exactly_ours_and_says_what(keeper, netns) -> None:
    netns.run("nft", "add table inet theirs; add table ip pynet")
    keeper.settle()
    assert keeper.it.stop(5)
    with netns.entered():
        assert masquerade.remove(dry_run=True) == ["nft table inet pynet"]
        assert keeper.in_kernel() is not None
        assert masquerade.remove() == ["nft table inet pynet"]
        assert masquerade.remove() == []
    assert netns.run("nft", "list", "tables").splitlines() == ["table inet theirs", "table ip pynet"]


def test_remove_without_nft_complains_only_if_there_is_a_table(keeper, netns, monkeypatch) -> None:
    with netns.entered():
        with monkeypatch.context() as missing:
            missing.setattr(command, "find", lambda _name: None)
            assert masquerade.remove() == []
        keeper.settle()
        assert keeper.it.stop(5)
        monkeypatch.setattr(command, "find", lambda _name: None)
        with pytest.raises(RuntimeError, match="nft: not installed"):
            masquerade.remove()


# ---- many nodes


def scattered(n: int, step: int = 2) -> Ruleset:
    """``n`` nodes, both families, no two neighbours: the worst case for interval sets."""
    pods = [f"{10 + (i * step >> 16)}.{i * step >> 8 & 255}.{i * step & 255}.0/24" for i in range(n)]
    pods += [f"fd00:0:0:{i * step:x}::/64" for i in range(n)]
    nodes = [f"172.{16 + (i * step >> 16)}.{i * step >> 8 & 255}.{i * step & 255}" for i in range(n)]
    nodes += [f"fd01::{i * step >> 16:x}:{i * step & 65535:x}" for i in range(n)]
    return Ruleset(RULES.own, tuple(map(parse_prefix, pods)), tuple(map(parse_address, nodes)))


@pytest.mark.parametrize("step", [1, 2], ids=["consecutive podCIDRs", "scattered podCIDRs"])
def test_five_thousand_nodes(keeper, netns, step) -> None:
    ruleset = scattered(5000, step)
    began = time.monotonic()
    keeper.settle(ruleset)
    print(f"\n5,000 nodes, both families, from nothing: {1000 * (time.monotonic() - began):.0f} ms (with reading it back)")
    assert keeper.in_kernel() == render(ruleset)
    more = Ruleset(ruleset.own, ruleset.pods, (*ruleset.nodes, parse_address("1.2.3.4")))
    for label, rules in (("one node more", more), ("one node less", ruleset)):
        began = time.monotonic()
        keeper.settle(rules)
        print(f"{label}: {1000 * (time.monotonic() - began):.0f} ms")
        assert keeper.in_kernel() == render(rules)
    netns.run("nft", "flush", "ruleset")
    print(f"nft flush ruleset: repaired in {1000 * keeper.repaired(ruleset):.0f} ms")
