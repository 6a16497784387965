"""The core's promises about plans: they reach the desired state, then ask for nothing, and never touch a foreign route."""

from __future__ import annotations

import errno

from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.diff import Differ
from pynet.core.guard import GuardSettings, too_many
from pynet.core.model import RTN_UNREACHABLE, UNREACHABLE_METRIC, Operation, Prefix, Route

OURS, STATIC, BOOT, KERNEL, BGP = 110, 4, 3, 2, 186
P4 = parse_prefix("10.244.1.0/24")
P6 = parse_prefix("fd00:0:0:2::/64")
GATEWAYS = {4: [parse_address(f"10.99.0.{n}") for n in (2, 3, 4)], 6: [parse_address(f"fd99::{n}") for n in (2, 3, 4)]}
METRICS = [0, 90, 120, 200, 256, 1024]


class Table:
    """What the kernel does with our operations at the level of keys (tests/kernel has the real one)."""

    def __init__(self, routes: list[Route]) -> None:
        self.routes = {}
        for route in routes:
            have = self.routes.get(route.prefix, ())
            # Stable: routes of one metric stay in the order in which they were put.
            self.routes[route.prefix] = tuple(sorted((*have, route), key=lambda r: r.metric))

    def apply(self, operations: list[Operation]) -> dict[int, int]:
        errors = {}
        for i, (kind, route) in enumerate(operations):
            have = list(self.routes.get(route.prefix, ()))
            at_key = [r for r in have if r.metric == route.metric]
            if kind == "add":
                if at_key:
                    errors[i] = errno.EEXIST
                    continue
                have.append(route)
            elif kind == "replace":
                if at_key:
                    have[have.index(at_key[0])] = route
                else:
                    have.append(route)
            elif route in have:
                have.remove(route)
            else:
                errors[i] = errno.ESRCH
            self.routes[route.prefix] = tuple(sorted(have, key=lambda r: r.metric))
        return errors


def want(prefix: Prefix, metric=120, gateway=0, oif=2) -> Route:
    return Route(prefix, metric, GATEWAYS[prefix.family][gateway], oif, OURS)


@st.composite
def kernel_routes(draw, prefix: Prefix):
    """Up to four distinct routes at ``prefix``: ours, stale ones of ours, foreign ones, also at our key."""
    return draw(
        st.lists(
            st.builds(
                Route,
                prefix=st.just(prefix),
                metric=st.sampled_from(METRICS),
                gateway=st.sampled_from(GATEWAYS[prefix.family]),
                oif=st.sampled_from([2, 3]),
                protocol=st.sampled_from([OURS, OURS, STATIC, BOOT, KERNEL, BGP]),
                type=st.just(1),
                table=st.just(254),
                scope=st.just(0),
                tos=st.just(0),
                multipath=st.just(False),
            ),
            max_size=4,
            unique_by=(lambda r: (r.metric, r.gateway, r.oif)) if prefix.family == 4 else (lambda r: r.metric),
        )
    )


worlds = st.sampled_from([P4, P6]).flatmap(
    lambda p: st.tuples(st.just(p), kernel_routes(p), st.sampled_from([None, want(p), want(p, gateway=1)]), st.booleans())
)


def run(prefix, rows, goal, programmed, policy):
    table = Table(rows)
    known = {prefix: goal or want(prefix)} if programmed else {}
    differ = Differ(OURS, policy, known)
    desired = {prefix: goal} if goal else {}
    plan = differ.plan([prefix], desired, table.routes)
    errors = table.apply(plan.operations)
    return table, differ, desired, plan, errors


@given(worlds, st.sampled_from(["respect", "replace"]))
@settings(max_examples=300, deadline=None)
def test_the_plan_is_accepted_and_a_second_plan_is_empty(world, policy):
    prefix, rows, goal, programmed = world
    table, differ, desired, _, errors = run(prefix, rows, goal, programmed, policy)
    assert errors == {}
    assert differ.plan([prefix], desired, table.routes).operations == []


@given(worlds, st.sampled_from(["respect", "replace"]))
@settings(max_examples=300, deadline=None)
def test_after_the_plan_ours_is_there_or_a_rival_is_named(world, policy):
    prefix, rows, goal, programmed = world
    table, differ, desired, _, _ = run(prefix, rows, goal, programmed, policy)
    left = table.routes.get(prefix, ())
    mine = [route for route in left if route.protocol == OURS]
    if goal is None:
        assert mine == []
        return
    assert mine in ([goal], [])
    rivals = differ.plan([prefix], desired, table.routes).rivals
    kernel_choice = left[0]
    assert (prefix in rivals) == (kernel_choice != goal)
    if not mine:
        assert rivals[prefix][1], "withheld and not said"


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_foreign_routes_are_never_in_a_plan_but_at_a_key_that_this_process_programmed(world):
    prefix, rows, goal, programmed = world
    _, _, _, plan, _ = run(prefix, rows, goal, programmed, "respect")
    key = (goal or want(prefix)).metric
    for kind, route in plan.operations:
        if kind == "delete":
            assert route.protocol == OURS or (programmed and route.metric == key)
        if kind == "replace":
            replaced = next(r for r in rows if r.metric == route.metric)
            assert replaced.protocol == OURS or programmed or any(r.protocol == OURS and r.metric == route.metric for r in rows)


@given(worlds)
@settings(max_examples=150, deadline=None)
def test_with_foreign_replace_only_boot_and_static_go(world):
    prefix, rows, goal, programmed = world
    _, _, _, plan, _ = run(prefix, rows, goal, programmed, "replace")
    key = (goal or want(prefix)).metric
    for kind, route in plan.operations:
        if kind == "delete" and not (programmed and route.metric == key):
            assert route.protocol in {OURS, STATIC, BOOT}


def test_adds_come_before_removes():
    old, new = parse_prefix("10.244.7.0/24"), P4
    plan = Differ(OURS, "respect", {}).plan([old, new], {new: want(new)}, {old: (want(old),)})
    assert [o.kind for o in plan.operations] == ["add", "delete"]


def test_a_changed_next_hop_is_replaced_in_place():
    plan = Differ(OURS, "respect", {}).plan([P4], {P4: want(P4)}, {P4: (want(P4, gateway=1),)})
    assert plan.operations == [Operation("replace", want(P4))]


def test_a_prepended_route_at_our_key_is_drift_once_we_programmed_it():
    foreign = want(P4, gateway=1)._replace(protocol=STATIC)
    have = {P4: (foreign, want(P4))}
    assert Differ(OURS, "respect", {P4: want(P4)}).plan([P4], {P4: want(P4)}, have).operations == [Operation("delete", foreign)]
    plan = Differ(OURS, "respect", {}).plan([P4], {P4: want(P4)}, have)
    assert plan.operations == []
    assert plan.rivals == {P4: (foreign, False)}


def test_after_a_restart_another_protocol_at_our_key_is_foreign():
    foreign = want(P4, gateway=1)._replace(protocol=STATIC)
    plan = Differ(OURS, "respect", {}).plan([P4], {P4: want(P4)}, {P4: (foreign,)})
    assert plan.operations == []
    assert plan.rivals == {P4: (foreign, True)}


def test_ipv6_beside_a_worse_foreign_route_is_withheld():
    static = Route(P6, 1024, GATEWAYS[6][1], 2, STATIC)
    plan = Differ(OURS, "respect", {}).plan([P6], {P6: want(P6)}, {P6: (static,)})
    assert (plan.operations, plan.rivals) == ([], {P6: (static, True)})


def test_ipv4_beside_a_worse_foreign_route_is_added_without_conflict():
    static = Route(P4, 1024, GATEWAYS[4][1], 2, STATIC)
    plan = Differ(OURS, "respect", {}).plan([P4], {P4: want(P4)}, {P4: (static,)})
    assert (plan.operations, plan.rivals) == ([Operation("add", want(P4))], {})


def test_beside_a_better_foreign_route_ours_is_added_and_the_conflict_named():
    for prefix in (P4, P6):
        static = Route(prefix, 1, GATEWAYS[prefix.family][1], 2, STATIC)
        plan = Differ(OURS, "respect", {}).plan([prefix], {prefix: want(prefix)}, {prefix: (static,)})
        assert plan.operations == [Operation("add", want(prefix))]
        assert plan.rivals == {prefix: (static, False)}


def test_multipath_at_our_key_is_drift_if_we_programmed_it_and_a_conflict_if_not():
    mixed = want(P6)._replace(protocol=STATIC, multipath=True)
    assert Differ(OURS, "respect", {P6: want(P6)}).plan([P6], {P6: want(P6)}, {P6: (mixed,)}).adds == [
        Operation("replace", want(P6))
    ]
    assert Differ(OURS, "respect", {}).plan([P6], {P6: want(P6)}, {P6: (mixed,)}).rivals == {P6: (mixed, True)}


def test_the_bridge_route_beside_our_unreachable_route_is_no_conflict():
    bridge = Route(P4, 0, b"", 5, KERNEL, scope=253)
    ours = Route(P4, UNREACHABLE_METRIC, protocol=OURS, type=RTN_UNREACHABLE)
    plan = Differ(OURS, "respect", {}).plan([P4], {P4: ours}, {P4: (bridge,)})
    assert (plan.operations, plan.rivals) == ([Operation("add", ours)], {})


def departures(n, family=4):
    prefixes = [
        Prefix(bytes([10, 1, i, 0]) if family == 4 else bytes([0xFD, *bytes(6), i]) + bytes(8), 24 if family == 4 else 64)
        for i in range(n)
    ]
    return [Operation("delete", Route(p, 100)) for p in prefixes]


def test_the_guard_holds_most_routes_and_lets_a_few_go():
    guard = GuardSettings(0.5, 10)
    assert too_many(departures(11), {4: 20, 6: 0}, guard)
    assert not too_many(departures(10), {4: 19, 6: 0}, guard), "not more than the minimum"
    assert not too_many(departures(20), {4: 100, 6: 0}, guard), "not more than the fraction"
    assert too_many(departures(5), {4: 5, 6: 0}, guard), "none would be left"
    assert not too_many(departures(1), {4: 1, 6: 0}, guard), "the only peer of two nodes may leave"
    assert too_many(departures(20, 6), {4: 100, 6: 20}, guard), "each family counts by itself"
