"""The core's promises about desired routes, as properties over small worlds full of clashes."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.addresses import contains, overlap, parse_address, parse_prefix
from pynet.core.desired import Desired, Settings, spread_metric
from pynet.core.model import RTN_UNREACHABLE, UNREACHABLE_METRIC, NodeFacts, Prefix

from tests.unit.strategies import OWN, OWN_FACTS, events, host, hosts

SETTINGS = Settings(OWN)


def peer(name, cidr="10.244.1.0/24", ip="10.99.0.2", created=10, uid=None, **more) -> NodeFacts:
    cidrs = (cidr,) if isinstance(cidr, str) else tuple(cidr)
    ips = (ip,) if isinstance(ip, str) else tuple(ip)
    return NodeFacts(name, uid or f"u-{name}", created, cidrs, ips, os="linux", **more)


def world(*peers, own=OWN_FACTS, at=None, settings_=SETTINGS) -> Desired:
    desired = Desired(settings_)
    desired.update({OWN: own})
    desired.set_host(at or host())
    desired.update({p.name: p for p in peers})
    return desired


def picture(desired: Desired):
    return desired.routes, desired.verdicts, desired.owners, desired.members.pods


@given(st.lists(st.one_of(events(), hosts), max_size=25))
@settings(max_examples=250, deadline=None)
def test_any_order_of_events_gives_what_a_fresh_computation_gives(history):
    """Incremental work is an optimisation: the state follows from the facts alone."""
    desired = Desired(SETTINGS)
    final, at = {}, None
    for event in history:
        if isinstance(event, tuple):
            name, facts = event
            desired.update({name: facts})
            final[name] = facts
            if facts is None:
                del final[name]
        else:
            desired.set_host(event)
            at = event
    fresh = Desired(SETTINGS)
    if at is not None:
        fresh.set_host(at)
    fresh.update(dict(sorted(final.items(), reverse=True)))
    assert picture(desired) == picture(fresh)


@given(st.lists(st.one_of(events(), hosts), max_size=25))
@settings(max_examples=150, deadline=None)
def test_members_are_the_podcidrs_and_the_reached_addresses_of_peers_that_are_neither_rejected_nor_ignored(history):
    desired = Desired(SETTINGS)
    for event in history:
        if isinstance(event, tuple):
            desired.update(dict([event]))
        else:
            desired.set_host(event)
        inside = [v for v in desired.verdicts.values() if v.state in {"accepted", "unreachable"}]
        assert desired.members.pods == Counter(v.prefix for v in inside)
        on_link = {v.next_hop for v in inside if v.state == "accepted"}
        assert on_link <= desired.members.nodes.keys() <= {v.next_hop for v in inside}


@given(st.lists(events(), max_size=20), hosts)
@settings(max_examples=150, deadline=None)
def test_a_batch_gives_what_single_events_give(history, at):
    one, many = Desired(SETTINGS), Desired(SETTINGS)
    one.set_host(at)
    many.set_host(at)
    for name, facts in history:
        one.update({name: facts})
    many.update(dict(history))
    assert picture(one) == picture(many)


@given(st.lists(st.one_of(events(), hosts), max_size=25))
@settings(max_examples=150, deadline=None)
def test_touched_names_every_prefix_whose_route_changed(history):
    desired = Desired(SETTINGS)
    for event in history:
        before = dict(desired.routes)
        touched = desired.update(dict([event])) if isinstance(event, tuple) else desired.set_host(event)
        after = desired.routes
        changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        assert changed <= touched


@given(st.lists(events(), max_size=25), hosts)
@settings(max_examples=150, deadline=None)
def test_routes_never_overlap_nor_touch_what_is_protected(history, at):
    desired = Desired(SETTINGS)
    desired.set_host(at)
    desired.update(dict(history))
    peers = [route for route in desired.routes.values() if route.type != RTN_UNREACHABLE]
    for i, route in enumerate(peers):
        assert route.prefix.length > 0
        assert route.oif == 2
        assert route.gateway
        assert 100 <= route.metric < 164
        for other in peers[i + 1 :]:
            assert not overlap(route.prefix, other.prefix)
        for own in desired.own.cidrs:
            assert not overlap(route.prefix, own)
        for address in at.addresses:
            assert not contains(route.prefix, address.address)
        for service in at.service_cidrs:
            assert not overlap(route.prefix, service)
        for server in at.api_servers:
            assert not contains(route.prefix, server)
        for other in peers:
            assert not contains(route.prefix, other.gateway)
    assert set(desired.owners) == {route.prefix for route in peers}


def test_a_peer_gets_its_podcidr_via_its_internal_ip():
    desired = world(peer("a"))
    route = desired.routes[parse_prefix("10.244.1.0/24")]
    assert (route.gateway, route.oif, route.protocol) == (parse_address("10.99.0.2"), 2, 110)
    assert desired.verdicts["a", 4].state == "accepted"


def test_the_own_podcidr_is_unreachable_at_the_worst_metric_in_both_families():
    desired = world()
    assert {str(r.prefix): (r.type, r.metric) for r in desired.routes.values()} == {
        "10.244.0.0/24": (RTN_UNREACHABLE, UNREACHABLE_METRIC),
        "fd00:0:0:1::/64": (RTN_UNREACHABLE, UNREACHABLE_METRIC),
    }


def test_a_peer_lacking_one_family_keeps_the_other():
    desired = world(peer("a", ("10.244.1.0/24", "fd00:0:0:2::/64"), "fd99::2"))
    assert desired.verdicts["a", 4].state == "rejected"
    assert "no IPv4 InternalIP" in desired.verdicts["a", 4].reason
    assert desired.verdicts["a", 6].state == "accepted"


def test_the_oldest_of_two_owners_wins_and_the_other_comes_back_in_the_same_update():
    desired = world(peer("young", ip="10.99.0.3", created=20), peer("old", created=10))
    prefix = parse_prefix("10.244.1.0/24")
    assert desired.owners[prefix] == ("old", 4)
    assert "older" in desired.verdicts["young", 4].reason
    assert desired.update({"old": None}) >= {prefix}
    assert desired.routes[prefix].gateway == parse_address("10.99.0.3")


def test_equal_age_is_decided_by_uid():
    desired = world(peer("a", uid="2"), peer("b", ip="10.99.0.3", uid="1"))
    assert desired.owners[parse_prefix("10.244.1.0/24")] == ("b", 4)


def test_who_clashes_only_with_a_loser_wins():
    big = peer("big", "10.244.0.0/17", "10.99.0.4", created=20)
    at = world(own=NodeFacts(OWN, "u", 1, ("10.200.0.0/24",), ("10.99.0.1",)))
    at.update(
        {"big": big, "old": peer("old", "10.244.1.0/24", created=10), "late": peer("late", "10.244.2.0/24", "10.99.0.3", 30)}
    )
    assert [at.verdicts[n, 4].state for n in ("old", "big", "late")] == ["accepted", "rejected", "accepted"]


def test_a_peer_with_our_own_podcidr_is_refused_even_if_it_is_older():
    for cidr in ("10.244.0.0/24", "10.244.0.0/16", "10.244.0.64/26"):
        desired = world(peer("old", cidr, created=1))
        assert "own podCIDR" in desired.verdicts["old", 4].reason
        assert set(desired.routes) == set(OWN_CIDRS)


OWN_CIDRS = [parse_prefix(text) for text in OWN_FACTS.pod_cidrs]


@pytest.mark.parametrize(
    ("cidr", "words"),
    [
        ("0.0.0.0/0", "default route"),
        ("127.0.0.0/8", "loopback"),
        ("10.244.1.1/24", "host bits"),
        ("10.244.1.0", "not a network"),
        ("banana", "not an IP address"),
        ("10.244.1.0/33", "above 32"),
        ("10.244.1.0/024", "not a network"),
        ("10.99.0.0/24", "own network"),
        ("10.0.0.0/8", "own"),
        ("10.99.0.1/32", "own"),
        ("203.0.113.7/32", "API server"),
        ("10.96.3.0/24", "Service range"),
        ("169.254.7.0/24", "link-local"),
        ("224.1.0.0/16", "multicast"),
        ("0.1.0.0/16", "this network"),
        ("255.255.255.0/24", "broadcast"),
    ],
)
def test_a_podcidr_that_must_not_be_routed_is_refused_with_its_reason(cidr, words):
    desired = world(peer("bad", cidr), peer("good", "10.244.9.0/24", "10.99.0.3"), at=host(api=("203.0.113.7",)))
    verdict = desired.verdicts["bad", 4]
    assert verdict.state == "rejected"
    assert words in verdict.reason
    assert desired.verdicts["good", 4].state == "accepted"


@pytest.mark.parametrize(
    ("ip", "state", "words"),
    [
        ("127.0.0.1", "rejected", "loopback"),
        ("224.0.0.9", "rejected", "multicast"),
        ("10.99.0.1", "rejected", "own address"),
        ("10.99.0", "rejected", "not an IP address"),
        ("10.244.1.7", "rejected", "own podCIDR"),
        ((), "rejected", "no IPv4 InternalIP"),
        ("192.0.2.1", "unreachable", "not on-link"),
        ("10.98.0.9", "unreachable", "eth1"),
    ],
)
def test_a_node_address_that_cannot_be_a_next_hop_is_refused_with_its_reason(ip, state, words):
    verdict = world(peer("bad", ip=ip)).verdicts["bad", 4]
    assert (verdict.state, words in verdict.reason) == (state, True), verdict


def test_the_longest_match_decides_whether_a_next_hop_is_on_link():
    assert "gateway" in world(peer("a"), at=host(gatewayed=("10.99.0.2/32",))).verdicts["a", 4].reason


def test_the_first_internal_ip_counts_and_the_annotation_overrides_it():
    desired = world(peer("a", ip=("10.99.0.5", "10.99.0.6")), peer("b", "10.244.2.0/24", node_ip="10.99.0.9"))
    assert desired.routes[parse_prefix("10.244.1.0/24")].gateway == parse_address("10.99.0.5")
    assert desired.routes[parse_prefix("10.244.2.0/24")].gateway == parse_address("10.99.0.9")


def test_nodes_without_podcidr_or_of_another_system_are_ignored():
    desired = world(peer("none", ()), NodeFacts("win", "u", 1, ("10.244.1.0/24",), ("10.99.0.2",), os="windows"))
    assert {desired.verdicts[n, 4].state for n in ("none", "win")} == {"ignored"}


def test_cluster_cidrs_bound_what_peers_may_claim():
    bounded = Settings(OWN, cluster_cidrs=(parse_prefix("10.244.0.0/16"),))
    desired = world(peer("in"), peer("out", "10.245.0.0/24", "10.99.0.3"), settings_=bounded)
    assert desired.verdicts["in", 4].state == "accepted"
    assert "outside clusterCIDRs" in desired.verdicts["out", 4].reason


def test_an_own_podcidr_that_clashes_with_the_uplink_is_not_used():
    own = NodeFacts(OWN, "u", 1, ("10.99.0.0/16", "fd00:0:0:1::/64"), ("10.99.0.1",))
    desired = world(own=own)
    assert [str(prefix) for prefix in desired.own.cidrs] == ["fd00:0:0:1::/64"]
    assert "own podCIDR" in desired.own.refused[0]


@given(st.integers(0, 2**24 - 1))
def test_metrics_stay_below_256_and_depend_on_the_destination_only(n):
    prefix = Prefix((n << 8).to_bytes(4), 24)
    assert 100 <= spread_metric(prefix, SETTINGS) < 164
    assert spread_metric(prefix, SETTINGS) == spread_metric(prefix, Settings("other"))


def test_metrics_of_a_cluster_spread_evenly():
    counts: dict[int, int] = {}
    for n in range(5000):
        metric = spread_metric(Prefix((10 << 24 | n << 8).to_bytes(4), 24), SETTINGS)
        counts[metric] = counts.get(metric, 0) + 1
    assert len(counts) == 64
    assert max(counts.values()) < 2 * 5000 / 64


def test_a_setting_that_keeps_every_peer_out_is_a_fault_of_our_own():
    elsewhere = (parse_prefix("10.245.0.0/16"), parse_prefix("fd00::/48"))
    desired = world(peer("a"), settings_=Settings(OWN, cluster_cidrs=elsewhere))
    fault = desired.own_faults()[4]
    assert fault == (
        "rejected", "our own podCIDR 10.244.0.0/24 lies outside clusterCIDRs (10.245.0.0/16, fd00::/48): mend the setting"
    )  # fmt: skip
    assert desired.verdicts["a", 4].state == fault.state
    assert 6 not in desired.own_faults()


def test_an_interface_that_is_not_there_is_a_fault_of_our_own():
    desired = world(peer("a"), at=msgspec.structs.replace(host(), interfaces={4: frozenset(), 6: host().interfaces[6]}))
    assert desired.own_faults() == {
        4: ("unreachable", "no interface that `interface` means (none) is up and has an IPv4 address"),
    }
    assert desired.verdicts["a", 4].state == "unreachable"


def test_a_peer_that_is_bad_by_itself_is_no_fault_of_our_own():
    assert world(peer("a", cidr="10.244.0.0/25"), peer("b", ip="192.0.2.1")).own_faults() == {}
