"""What a Node, an operator or the order of things might do to the core's decisions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.claims import Claim
from pynet.core.desired import Desired, Settings
from pynet.core.diff import Differ
from pynet.core.guard import GuardSettings, RemovalGuard, too_many
from pynet.core.host import FibEntry, Host, usable_families
from pynet.core.model import RTN_UNREACHABLE, UNREACHABLE_METRIC, HostAddress, Link, NodeFacts, Operation, Prefix, Route
from pynet.core.overlap import Aged, Overlaps
from pynet.core.pace import Pace
from pynet.core.retry import Retry

from tests.unit.strategies import OWN, OWN_FACTS, events, host
from tests.unit.test_desired import SETTINGS, peer, picture, world

# Overlaps: whoever is affected is found, at a price that one Node cannot drive up


def aged(cidr: str, hop: str, created: int) -> Aged:
    return Aged(Claim(parse_prefix(cidr), parse_address(hop)), created, f"u{created}")


def test_a_wide_podcidr_does_not_make_every_other_claim_cost_a_look_at_all():
    """One Node that claims half of the cluster's range is refused; it must not cost each agent a minute at the start."""
    nodes = {
        f"n{i}": NodeFacts(f"n{i}", f"u{i}", 10, (f"10.{128 + i // 256}.{i % 256}.0/24",), ("10.99.0.2",), os="linux")
        for i in range(3000)
    }
    nodes["wide"] = NodeFacts("wide", "w", 20, ("10.128.0.0/9",), ("10.99.0.3",), os="linux")
    desired = Desired(SETTINGS)
    desired.update({OWN: NodeFacts(OWN, "u-self", 5, ("10.1.0.0/24",), ("10.99.0.1",), os="linux")})
    desired.set_host(host())
    looks = 0
    overlaps = desired._overlaps[4]
    look = overlaps._clashing

    def counting(name: str) -> set[str]:
        nonlocal looks
        looks += 1
        return look(name)

    overlaps._clashing = counting
    desired.update(nodes)
    assert looks < 10 * len(nodes)
    assert desired.verdicts["wide", 4].state == "rejected"
    assert sum(v.state == "accepted" for v in desired.verdicts.values()) == 3000


def test_granting_looks_at_everybody_whom_a_change_reaches():
    overlaps = Overlaps(32)
    overlaps.put("wide", aged("10.1.0.0/16", "10.99.0.2", 2))
    overlaps.put("late", aged("10.1.9.0/24", "10.99.0.3", 3))
    assert overlaps.grant({"wide", "late"}) == {"wide": "", "late": "wide"}
    # The oldest comes and takes a corner of the wide one; the late one, elsewhere in it, is free again.
    assert overlaps.grant(overlaps.put("old", aged("10.1.1.0/24", "10.99.0.4", 1))) == {"old": "", "wide": "old", "late": ""}
    assert overlaps.grant(overlaps.remove("old")) == {"wide": "", "late": "wide"}


def test_our_own_node_in_one_batch_with_its_rivals_decides_first():
    """It moves away: an older claim on its old podCIDR, refused until now, beats a younger one that comes in the same batch."""
    old = peer("old", "10.244.0.0/24", "10.99.0.2", created=10)
    young = peer("young", "10.244.0.0/24", "10.99.0.3", created=20)
    moved = NodeFacts(OWN, "u-self", 5, ("10.244.9.0/24",), OWN_FACTS.internal_ips, os="linux")
    for batch in ({"young": young, OWN: moved}, {OWN: moved, "young": young}):
        desired = world(old)
        desired.update(batch)
        assert picture(desired) == picture(world(old, young, own=moved))


@given(st.lists(events(), min_size=2, max_size=12))
@settings(max_examples=100, deadline=None)
def test_any_split_into_batches_gives_the_same(history):
    """Batches with our own Node anywhere in them."""
    half = len(history) // 2
    one, two = Desired(SETTINGS), Desired(SETTINGS)
    for desired in (one, two):
        desired.set_host(host())
    one.update(dict(history[:half]))
    one.update(dict(history[half:]))
    for name, facts in history:
        two.update({name: facts})
    assert picture(one) == picture(two)


# What a peer may claim


def test_a_broadcast_address_is_no_node_address():
    """The kernel refuses it as a gateway: one Node would make every other node not ready."""
    verdict = world(peer("bad", ip="10.99.0.255")).verdicts["bad", 4]
    assert verdict.state == "rejected"
    assert "broadcast" in verdict.reason


def test_a_network_known_by_its_link_route_alone_is_protected():
    """A /32 address and a link route, as clouds give it: no part of that network is anybody's podCIDR."""
    at = msgspec.structs.replace(host(), fib=host().fib | {FibEntry(parse_prefix("10.98.7.0/24"), 2, True)})
    bad = peer("bad", "10.98.7.128/25")
    verdict = world(bad, at=at).verdicts["bad", 4]
    assert verdict.state == "rejected"
    assert "10.98.7.0/24" in verdict.reason
    desired = world(bad)
    assert desired.verdicts["bad", 4].state == "accepted"
    assert desired.set_host(at) == {parse_prefix("10.98.7.128/25")}
    assert parse_prefix("10.98.7.128/25") not in desired.routes


def test_a_reason_does_not_repeat_a_long_claim_whole():
    desired = world(peer("bad", ip="x" * 100_000), peer("cidr", "y" * 100_000))
    assert all(len(v.reason) < 300 for v in desired.verdicts.values())


@pytest.mark.parametrize("cidr", ["10.244.1.0/٢٤", "10.244.1.0/²4", "10.244.1.0/+24", "10.244.1.0/ 24"])
def test_a_prefix_length_is_made_of_ascii_digits(cidr):
    assert world(peer("bad", cidr)).verdicts["bad", 4].state == "rejected"


def test_with_cluster_cidrs_no_node_can_claim_an_address_in_anothers_podcidr():
    """A kubelet may write any InternalIP: an old Node must not keep a younger peer out by one in that peer's podCIDR."""
    victim, evil = peer("victim", "10.244.7.0/24", created=20), peer("evil", "10.244.8.0/24", "10.244.7.5", created=1)
    bounded = Settings(OWN, cluster_cidrs=(parse_prefix("10.0.0.0/8"),))
    desired = world(victim, evil, settings_=bounded)  # the nodes' own network lies in that range, and is none the worse
    assert desired.verdicts["victim", 4].state == "accepted"
    assert "clusterCIDRs" in desired.verdicts["evil", 4].reason
    assert world(victim, evil).verdicts["victim", 4].state == "rejected", "without, nothing tells who is right: the older"


# The removal guard counts peers


def route(n: int) -> Route:
    return Route(Prefix(bytes((10, 244, n, 0)), 24), 100, b"\x0a\x63\x00\x02", 2, 110)


OWN_ROUTE = Route(Prefix(bytes((10, 244, 0, 0)), 24), UNREACHABLE_METRIC, protocol=110, type=RTN_UNREACHABLE)


def test_our_own_unreachable_route_is_no_peer():
    going = [Operation("delete", route(n)) for n in range(1, 6)]
    assert too_many(going, {4: 5, 6: 0}, GuardSettings(0.5, 10)), "none would be left"
    old_own = Operation("delete", OWN_ROUTE)
    assert not too_many([old_own, old_own], {4: 2, 6: 0}, GuardSettings(0.1, 0)), "nor does the old own route count as leaving"


def test_two_routes_at_one_prefix_are_one_peer():
    stale = route(1)._replace(metric=7)
    going = [Operation("delete", stale), Operation("delete", route(1))]
    assert not too_many(going, {4: 2, 6: 0}, GuardSettings(0.5, 10))


def test_a_hold_waits_for_a_list_that_was_asked_for_after_it_began():
    guard = RemovalGuard(GuardSettings(0.5, 2), lambda most: most)
    going, present = [Operation("delete", route(n)) for n in range(1, 6)], {4: 6, 6: 0}
    assert guard.judge(going, present, listed_at=9.0, now=10.0) == (False, "removal_held")
    assert guard.judge(going, present, listed_at=10.0, now=11.0) == (False, ""), "asked for before"
    assert guard.held.since == 10.0, "a hold does not begin again with each pass"
    assert guard.judge(going, present, listed_at=10.5, now=11.0) == (True, "removal_confirmed")
    assert (guard.held, guard.kept, guard.prefixes) == (None, frozenset(), frozenset())


def test_a_hold_tells_how_large_it_has_become_and_ends_when_it_is_no_longer_large():
    guard = RemovalGuard(GuardSettings(0.5, 2), lambda most: most)
    going, present = [Operation("delete", route(n)) for n in range(1, 7)], {4: 8, 6: 0}
    guard.judge(going[:5], present, listed_at=0, now=10.0)
    guard.judge([*going, Operation("delete", OWN_ROUTE)], present, listed_at=0, now=11.0)
    assert (guard.held.routes, "6 of 8" in guard.held.reason) == (7, True)
    assert {claim.prefix for claim in guard.kept} == {o.route.prefix for o in going}
    assert guard.prefixes == {o.route.prefix for o in going} | {OWN_ROUTE.prefix}
    assert guard.judge(going[:2], present, listed_at=0, now=12.0) == (True, "removal_no_longer_large")
    guard.judge(going, present, listed_at=0, now=13.0)
    assert guard.judge([], present, listed_at=0, now=14.0) == (True, "held_routes_wanted_again")
    assert guard.judge([], present, listed_at=0, now=15.0) == (True, "")


def test_agents_ask_for_the_second_list_at_times_of_their_own_by_the_number_of_peers_there_were():
    going = [Operation("delete", Route(Prefix((n << 8).to_bytes(4), 24), 100)) for n in range(1, 3001)]
    drawn = []

    def spread(most: float) -> float:
        drawn.append(most)
        return most

    for count in (1000, 3000):
        guard = RemovalGuard(GuardSettings(), spread)
        guard.judge(going[:count], {4: count, 6: count}, listed_at=0, now=100.0)
        guard.judge(going[:count], {4: count, 6: count}, listed_at=0, now=101.0)
        assert guard.relist_at == 100.0 + drawn[-1]
        assert not guard.relist(100.0)
        assert guard.relist(110.0)
        assert not guard.relist(111.0), "once"
    assert drawn == [4.0, 10.0]


# Pauses


def test_a_retry_comes_later_each_time_and_begins_anew_when_all_was_well():
    retry = Retry()
    pauses = []
    assert not retry.planned
    for _ in range(7):
        retry.later(100.0, first=1.0)
        pauses.append(retry.at - 100.0)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert not retry.take(129.9)
    assert retry.take(130.0)
    assert not retry.planned
    assert not retry.take(131.0)
    retry.done()
    retry.later(0.0, first=0.2)
    assert retry.at == 0.2


def test_work_beyond_a_burst_is_paid_for_with_rest():
    pace = Pace()
    assert pace.rest(worked=1.9, idle=0) == 0
    assert pace.rest(worked=0.3, idle=0) == pytest.approx(0.2)
    assert pace.rest(worked=0.3, idle=0) == pytest.approx(0.3)
    assert pace.rest(worked=0.3, idle=1.0) == 0
    assert pace.rest(worked=9.0, idle=100.0) == 1.0, "a second at most, so that livez sees the loop tick"
    assert pace.rest(worked=0.5, idle=0) == 0.5


# Plans: whose route it is, at its key to the last bit


def difference(want_, *have, policy="respect", programmed=False):
    known = {want_.prefix: want_} if programmed else {}
    return Differ(110, policy, known).compare(want_, have)


WANT = route(1)
FOREIGN = WANT._replace(protocol=4, gateway=b"\x0a\x63\x00\x09")


def test_a_route_of_another_tos_is_not_at_our_key():
    other = FOREIGN._replace(tos=4)
    for programmed in (True, False):
        assert difference(WANT, other, programmed=programmed) == ((Operation("add", WANT),), (), None, False)
        assert difference(WANT, other, WANT, programmed=programmed) == ((), (), None, False)
    leaving = Differ(110, "respect", {WANT.prefix: WANT}).plan([WANT.prefix], {}, {WANT.prefix: (other, WANT)})
    assert leaving.departures == [Operation("delete", WANT)]


def test_a_foreign_route_first_at_our_key_is_not_replaced_because_a_stale_one_of_ours_is_behind_it():
    stale = WANT._replace(gateway=b"\x0a\x63\x00\x08")
    assert difference(WANT, FOREIGN, stale) == ((), (Operation("delete", stale),), FOREIGN, True)


def test_with_foreign_replace_static_routes_stay_where_ours_is_withheld():
    daemon, static = FOREIGN._replace(protocol=186), FOREIGN._replace(metric=50)
    assert difference(WANT, static, daemon, policy="replace") == ((), (), static, True)


def test_at_a_prefix_that_leaves_only_our_key_is_ours():
    elsewhere, kernels = FOREIGN._replace(metric=7), FOREIGN._replace(protocol=2)
    for have, going in (((FOREIGN,), [FOREIGN]), ((elsewhere,), []), ((kernels,), [])):
        plan = Differ(110, "respect", {WANT.prefix: WANT}).plan([WANT.prefix], {}, {WANT.prefix: have})
        assert [operation.route for operation in plan.departures] == going
        assert not Differ(110, "respect", {}).plan([WANT.prefix], {}, {WANT.prefix: have}).operations


def test_the_best_of_several_rivals_is_named():
    best, worse = FOREIGN._replace(metric=1), FOREIGN._replace(metric=9)
    for have in ((best, worse, WANT), (worse, best, WANT)):
        assert difference(WANT, *have).rival == best


def test_with_foreign_replace_a_static_route_that_is_no_unicast_stays():
    hole = FOREIGN._replace(type=6, gateway=b"", oif=0, metric=3)
    assert difference(WANT, hole, WANT, policy="replace") == ((), (), hole, False)


def test_with_foreign_replace_a_worse_ipv6_route_gives_way():
    want6 = Route(parse_prefix("fd00::/64"), 100, parse_address("fd99::2"), 2, 110)
    static = want6._replace(protocol=4, metric=1024)
    assert difference(want6, static, policy="replace") == (
        (Operation("add", want6),),
        (Operation("delete", static),),
        None,
        False,
    )


# Who wins, to the last tie


def test_whoever_a_change_frees_or_refuses_is_found_when_only_one_side_moves():
    overlaps = Overlaps(32)
    overlaps.put("old", aged("10.1.0.0/24", "10.99.0.2", 1))
    assert overlaps.grant(overlaps.put("young", aged("10.1.0.0/24", "10.99.0.3", 2))) == {"old": "", "young": "old"}
    # The older moves away: the younger is free. It moves back: refused again.
    assert overlaps.grant(overlaps.put("old", aged("10.2.0.0/24", "10.99.0.2", 1))) == {"old": "", "young": ""}
    assert overlaps.grant(overlaps.put("old", aged("10.1.0.0/24", "10.99.0.2", 1))) == {"old": "", "young": "old"}


def test_ties_are_decided_by_age_then_uid_then_name_and_no_age_is_the_youngest():
    def winners(*claims: tuple[str, int, str]) -> list[str]:
        overlaps = Overlaps(32)
        for name, created, uid in claims:
            overlaps.put(name, Aged(Claim(parse_prefix("10.1.0.0/24"), parse_address("10.99.0.2")), created, uid))
        return [name for name, other in overlaps.grant({name for name, _, _ in claims}).items() if not other]

    assert winners(("a", 0, "1"), ("b", 5, "2")) == ["b"]
    assert winners(("a", 5, "2"), ("b", 5, "1")) == ["b"]
    assert winners(("b", 5, "1"), ("a", 5, "1")) == ["a"]


def test_the_oldest_of_several_in_the_way_is_named():
    overlaps = Overlaps(32)
    for name, cidr, age in (("second", "10.1.2.0/24", 2), ("first", "10.1.1.0/24", 1), ("third", "10.1.3.0/24", 3)):
        overlaps.put(name, aged(cidr, "10.99.0.2", age))
    assert overlaps.grant(overlaps.put("wide", aged("10.1.0.0/16", "10.99.0.9", 9)))["wide"] == "first"


@pytest.mark.parametrize(
    ("prefix", "hop"), [("10.1.0.0/24", "10.1.0.0"), ("10.1.0.0/24", "10.1.0.255"), ("10.1.0.7/32", "10.1.0.7")]
)
def test_a_node_address_clashes_with_a_podcidr_that_holds_it_whoever_came_first(prefix, hop):
    for first, second in (("holder", "claimant"), ("claimant", "holder")):
        claims = {"holder": aged(prefix, "10.99.0.2", 2), "claimant": aged("10.2.0.0/24", hop, 1)}
        overlaps = Overlaps(32)
        overlaps.put(first, claims[first])
        assert overlaps.grant(overlaps.put(second, claims[second])) == {"claimant": "", "holder": "claimant"}
        assert overlaps.grant(overlaps.remove("claimant")) == {"holder": ""}


def test_a_claim_that_becomes_refused_frees_those_that_it_kept_out():
    at = host()
    old, young = peer("old", "10.97.0.0/16", created=1), peer("young", "10.97.5.0/24", "10.99.0.3", created=2)
    desired = world(old, young, at=at)
    assert desired.verdicts["young", 4].state == "rejected"
    services = frozenset({parse_prefix("10.97.200.0/24")})
    assert parse_prefix("10.97.5.0/24") in desired.set_host(msgspec.structs.replace(at, service_cidrs=services))
    assert (desired.verdicts["old", 4].state, desired.verdicts["young", 4].state) == ("rejected", "accepted")
    desired.set_host(msgspec.structs.replace(at, service_cidrs=services, api_servers=frozenset({parse_address("10.97.5.9")})))
    assert "API server" in desired.verdicts["young", 4].reason
    desired.set_host(at)
    assert (desired.verdicts["old", 4].state, desired.verdicts["young", 4].state) == ("accepted", "rejected")


def test_the_interface_of_a_route_follows_the_link_that_carries_it():
    """The same verdict, another interface: the index after it was deleted and created again."""
    at = host()
    desired = world(peer("a"), at=at)
    moved = frozenset(entry._replace(oif=3) if entry.oif == 2 else entry for entry in at.fib)
    assert parse_prefix("10.244.1.0/24") in desired.set_host(
        msgspec.structs.replace(at, fib=moved, interfaces={4: frozenset({3}), 6: frozenset({3})})
    )
    assert desired.routes[parse_prefix("10.244.1.0/24")].oif == 3


def test_everything_that_the_rules_depend_on_is_counted_as_a_change():
    desired = world(peer("a"))
    for change in (
        {"a": peer("a", ip="10.99.0.5")},
        {"a": peer("a", "10.244.7.0/24", ip="10.99.0.5")},
        {"a": None},
        {OWN: NodeFacts(OWN, "u-self", 5, OWN_FACTS.pod_cidrs, ("10.99.0.1",), os="linux")},
    ):
        before = desired.revision
        desired.changed = set()
        desired.update(change)
        assert desired.revision > before
        assert desired.changed >= ({("a", 4)} if "a" in change else set())
    before = desired.revision
    desired.update({"a": None})
    assert desired.revision == before


def test_our_own_podcidr_may_hold_an_address_of_a_pods_interface_but_not_of_an_uplink():
    pods = HostAddress(7, parse_address("10.244.0.1"), 24)
    assert world(at=msgspec.structs.replace(host(), addresses=(*host().addresses, pods))).own.cidrs == world().own.cidrs
    uplink = pods._replace(ifindex=2)
    refused = world(at=msgspec.structs.replace(host(), addresses=(*host().addresses, uplink))).own
    assert [str(prefix) for prefix in refused.cidrs] == ["fd00:0:0:1::/64"]


def test_a_peer_in_our_own_podcidr_is_told_so_and_not_of_the_bridges_address_there():
    at = msgspec.structs.replace(host(), addresses=(*host().addresses, HostAddress(7, parse_address("10.244.0.1"), 24)))
    assert world(peer("a", "10.244.0.0/24"), at=at).verdicts["a", 4].reason.endswith("our own podCIDR 10.244.0.0/24")


@pytest.mark.parametrize("ip", ["127.255.255.255", "224.0.0.0", "239.255.255.255", "240.0.0.0", "0.0.0.0"])
def test_the_ends_of_special_ranges_belong_to_them(ip):
    assert world(peer("bad", ip=ip)).verdicts["bad", 4].state == "rejected"


def test_of_several_podcidrs_of_a_family_the_first_counts_and_no_operating_system_means_linux():
    facts = NodeFacts("a", "u", 1, ("10.244.1.0/24", "10.244.2.0/24"), ("10.99.0.2",))
    assert parse_prefix("10.244.1.0/24") in world(facts).routes
    assert parse_prefix("10.244.2.0/24") not in world(facts).routes


def test_a_podcidr_wider_than_cluster_cidrs_lies_outside():
    bounded = Settings(OWN, cluster_cidrs=(parse_prefix("10.128.0.0/16"),))
    assert "outside" in world(peer("a", "10.128.0.0/15"), settings_=bounded).verdicts["a", 4].reason
    assert world(peer("a", "10.128.0.0/16"), settings_=bounded).verdicts["a", 4].state == "accepted"


def test_exactly_the_fraction_is_not_too_much():
    going = [Operation("delete", route(n)) for n in range(1, 13)]
    assert not too_many(going, {4: 24, 6: 0}, GuardSettings(0.5, 10))
    assert too_many(going, {4: 23, 6: 0}, GuardSettings(0.5, 10))


def test_a_change_of_protocol_at_our_key_is_mended_before_stale_routes_go():
    stale = WANT._replace(metric=7)
    plan = Differ(110, "respect", {}).plan([WANT.prefix], {WANT.prefix: WANT}, {WANT.prefix: (stale,)})
    assert [operation.kind for operation in plan.operations] == ["add", "delete"]


def test_a_stale_route_behind_ours_goes():
    stale = WANT._replace(metric=200)
    plan = Differ(110, "respect", {}).plan([WANT.prefix], {WANT.prefix: WANT}, {WANT.prefix: (WANT, stale)})
    assert plan.operations == [Operation("delete", stale)]


def test_a_peer_that_moves_gives_up_its_old_prefix_and_a_refused_one_takes_nothing_from_its_owner():
    desired = world(peer("a"), peer("b", ip="127.0.0.1"))
    prefix = parse_prefix("10.244.1.0/24")
    desired.update({"b": peer("b", ip="127.0.0.2")})
    assert desired.owners == {prefix: ("a", 4)}
    assert prefix in desired.routes
    desired.update({"a": peer("a", "10.244.5.0/24")})
    assert desired.owners == {parse_prefix("10.244.5.0/24"): ("a", 4)}
    assert prefix not in desired.routes


def test_a_hold_that_ends_asks_for_no_list():
    guard = RemovalGuard(GuardSettings(0.5, 2), lambda most: most)
    guard.judge([Operation("delete", route(n)) for n in range(1, 6)], {4: 6, 6: 0}, listed_at=0, now=10.0)
    guard.judge([], {4: 6, 6: 0}, listed_at=0, now=10.0)
    assert not guard.relist(1e9)


def test_link_local_is_called_so_though_each_interface_has_a_route_for_it():
    at = msgspec.structs.replace(host(), fib=host().fib | {FibEntry(parse_prefix("fe80::/64"), 2, True)})
    assert "link-local" in world(peer("bad", "fe80::/64", "fd99::2"), at=at).verdicts["bad", 6].reason


def test_loopback_is_called_loopback_though_lo_has_its_address():
    at = host()
    at = msgspec.structs.replace(at, addresses=(*at.addresses, HostAddress(1, parse_address("127.0.0.1"), 8)))
    assert "loopback" in world(peer("a", "127.0.0.0/8"), at=at).verdicts["a", 4].reason


# The host


def test_a_family_is_usable_by_an_interface_for_peers_that_is_up_and_has_an_address_of_it():
    four, six = HostAddress(2, parse_address("10.99.0.1"), 24), HostAddress(2, parse_address("fd99::1"), 64)
    both = dict.fromkeys((4, 6), frozenset({2}))

    def usable(*addresses: HostAddress, up: bool = True, interfaces=both):
        return usable_families(Host({2: Link(2, "eth0", up, 1500)}, addresses, interfaces=interfaces))

    assert usable(four, six) == {4, 6}
    assert usable(four) == {4}
    assert usable(four, six, up=False) == set()
    assert usable(four, six, interfaces={4: frozenset({3}), 6: frozenset({2})}) == {6}
    assert usable_families(Host({}, (four, six), interfaces=both)) == set(), "the link is gone"
