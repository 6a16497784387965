"""The masquerade table as a value: what it holds, and that a plan leads from any content to the wanted one."""

from __future__ import annotations

import ipaddress
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.apply.ruleset import Ruleset, Table, difference, is_whole, parse, plan, render, replacement
from pynet.core.addresses import parse_address, parse_prefix

FULL = Ruleset(
    own=(parse_prefix("10.1.0.0/24"), parse_prefix("fd00:1::/64")),
    pods=(parse_prefix("10.0.0.0/14"), parse_prefix("fd00::/16")),
    nodes=tuple(parse_address(a) for a in ("172.16.0.1", "172.16.0.2", "fd01::1")),
    except_=(parse_prefix("192.0.2.0/24"),),
)

EXPECTED = """
set own-4 {"type":"ipv4_addr","flags":"interval"} 10.1.0.0-10.1.0.255
set pods-4 {"type":"ipv4_addr","flags":"interval"} 10.0.0.0-10.3.255.255
set nodes-4 {"type":"ipv4_addr"} 172.16.0.1 172.16.0.2
set except-4 {"type":"ipv4_addr","flags":"interval"} 192.0.2.0-192.0.2.255
chain egress-4 {}
chain postrouting {"type":"nat","hook":"postrouting","prio":100,"policy":"accept"}
rule egress-4: ip daddr @pods-4 return # to a pod: keeps the pod's address
rule egress-4: ip daddr @nodes-4 return # to a node of the cluster: keeps the pod's address
rule egress-4: ip daddr @except-4 return # masquerade.exceptCIDRs: keeps the pod's address
rule egress-4: ip daddr 224.0.0.0/4 return # multicast: keeps the pod's address
rule egress-4: masquerade fully-random # to outside the cluster: leaves with the node's address
rule postrouting: ip saddr @own-4 jump egress-4 # from a pod of this node
"""


def spell(element) -> str:
    if isinstance(element, bytes):
        return str(ipaddress.ip_address(element))
    return f"{ipaddress.ip_address(element[0])}-{ipaddress.ip_address(element[1])}"


def say(statement: dict) -> str:
    ((verb, what),) = statement.items()
    if verb == "match":
        payload, right = what["left"]["payload"], what["right"]
        right = f"{right['prefix']['addr']}/{right['prefix']['len']}" if isinstance(right, dict) else right
        return f"{payload['protocol']} {payload['field']} {right}"
    return " ".join([verb, *(what or {}).values()])


def as_text(table: Table) -> str:
    lines = []
    for title, what in table.objects.items():
        if title.startswith("set"):
            elements = " ".join(sorted(map(spell, table.elements[title[4:]])))
            lines.append(f"{title} {json.dumps(what, separators=(',', ':'))} {elements}".rstrip())
        elif title.startswith("chain"):
            lines.append(f"{title} {json.dumps(what, separators=(',', ':'))}")
        elif title.startswith("rules"):
            lines += [f"rule {title[6:]}: {' '.join(map(say, rule['expr']))} # {rule['comment']}" for rule in what]
    return "\n" + "\n".join(lines) + "\n"


def apply(held: Table | None, commands: list[dict]) -> Table | None:
    """What nft makes of ``commands``, as far as we use it: a model of its own, that refuses what nft refuses."""
    listing = None if held is None else [{"table": {}}, *_listed(held)]
    for command in commands:
        ((verb, thing),) = command.items()
        ((kind, what),) = thing.items()
        if kind == "table":
            listing = listing or [{"table": {}}] if verb == "add" else None
            continue
        assert listing is not None
        if kind in ("set", "chain", "rule") and verb == "add":
            listing.append({kind: json.loads(json.dumps(what))})
            continue
        found = next(entry["set"] for entry in listing if entry.get("set", {}).get("name") == what["name"])
        elements = found.setdefault("elem", [])
        if verb == "flush":
            elements.clear()
        for element in what.get("elem", ()):
            if verb == "add":
                assert element not in elements
                elements.append(element)
            else:
                elements.remove(element)
    return None if listing is None else parse(listing)


def _listed(table: Table) -> list[dict]:
    return [thing for command in replacement(table)[3:] for thing in command.values()]


networks4 = st.builds(
    lambda number, length: ipaddress.ip_network((number << 20, length), strict=False), st.integers(0, 4095), st.integers(0, 32)
)
networks6 = st.builds(
    lambda number, length: ipaddress.ip_network((number << 112, length), strict=False),
    st.integers(0, 65535),
    st.integers(0, 128),
)
prefixes = st.lists(st.one_of(networks4, networks6), max_size=8).map(lambda some: tuple(parse_prefix(str(n)) for n in some))
addresses = st.lists(
    st.one_of(st.integers(0, 20).map(lambda n: n.to_bytes(4, "big")), st.integers(0, 9).map(lambda n: n.to_bytes(16, "big")))
)
rulesets = st.builds(
    Ruleset,
    own=prefixes,
    pods=prefixes,
    nodes=addresses.map(tuple),
    except_=prefixes,
    ipv4=st.booleans(),
    ipv6=st.booleans(),
    random_fully=st.booleans(),
)


def test_table_as_text() -> None:
    table = render(Ruleset(own=FULL.own, pods=FULL.pods, nodes=FULL.nodes, except_=FULL.except_, ipv6=False))
    assert table is not None
    assert as_text(table) == EXPECTED


def test_both_families_have_the_same_rules() -> None:
    table = render(FULL)
    assert table is not None
    text = as_text(table)
    only4, only6 = (as_text(render(Ruleset(ipv4=v4, ipv6=not v4)) or Table({}, {})) for v4 in (True, False))
    assert only4.replace("4", "6").replace("ip ", "ip6 ").replace("226.0.0.0/6", "ff00::/8") == only6
    assert sorted(line for line in text.splitlines() if line.startswith("rule")) == sorted(
        line for part in (only4, only6) for line in part.splitlines() if line.startswith("rule")
    )


def test_no_family_means_no_table() -> None:
    assert render(Ruleset(ipv4=False, ipv6=False)) is None
    assert [list(command) for command in plan(render(FULL), None)] == [["add"], ["delete"]]
    assert plan(None, None) == []


def test_random_source_ports_can_be_switched_off() -> None:
    table = render(Ruleset(random_fully=False))
    assert table is not None
    assert "masquerade # " in as_text(table)
    assert "fully-random" not in as_text(table)


def test_own_pods_are_among_the_pods_whatever_the_cluster_cidrs() -> None:
    table = render(Ruleset(own=(parse_prefix("10.9.0.0/24"),), pods=(parse_prefix("10.244.0.0/16"),)))
    assert table is not None
    assert sorted(map(spell, table.elements["pods-4"])) == ["10.244.0.0-10.244.255.255", "10.9.0.0-10.9.0.255"]


@pytest.mark.parametrize(
    ("given_", "merged"),
    [
        (("10.0.0.0/24", "10.0.1.0/24"), ["10.0.0.0-10.0.1.255"]),
        (("10.0.0.0/24", "10.0.2.0/24"), ["10.0.0.0-10.0.0.255", "10.0.2.0-10.0.2.255"]),
        (("10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"), ["10.0.0.0-10.255.255.255"]),
        (("10.0.0.0/24", "10.0.0.0/24"), ["10.0.0.0-10.0.0.255"]),
        (("0.0.0.0/1", "128.0.0.0/1"), ["0.0.0.0-255.255.255.255"]),
        (
            ("fd00::/64", "fd00:0:0:1::/64", "fd00:0:0:3::/64"),
            ["fd00:0:0:3::-fd00::3:ffff:ffff:ffff:ffff", "fd00::-fd00::1:ffff:ffff:ffff:ffff"],
        ),
    ],
)
def test_overlaps_and_neighbours_are_merged(given_, merged) -> None:
    table = render(Ruleset(except_=tuple(map(parse_prefix, given_))))
    assert table is not None
    assert sorted(map(spell, table.elements["except-6" if ":" in given_[0] else "except-4"])) == merged


@settings(deadline=None)
@given(prefixes)
def test_merging_keeps_exactly_the_addresses(some) -> None:
    table = render(Ruleset(except_=some))
    assert table is not None
    for family in (4, 6):
        intervals = sorted(table.elements[f"except-{family}"])
        theirs = [ipaddress.ip_network(str(p)) for p in some if p.family == family]
        collapsed = list(ipaddress.collapse_addresses(theirs))
        assert sum(int.from_bytes(b) - int.from_bytes(a) + 1 for a, b in intervals) == sum(n.num_addresses for n in collapsed)
        assert all(any(a <= n[0].packed and n[-1].packed <= b for a, b in intervals) for n in collapsed)
        assert all(int.from_bytes(left[1]) + 1 < int.from_bytes(right[0]) for left, right in pairwise(intervals))


@settings(deadline=None)
@given(rulesets, rulesets)
def test_plan_leads_from_any_table_to_the_wanted_one_and_then_is_empty(before, after) -> None:
    held, wanted = render(before), render(after)
    commands = plan(held, wanted)
    assert apply(held, commands) == wanted
    assert plan(wanted, wanted) == []
    assert (commands == []) == (held == wanted)
    assert (difference(held, wanted) == "") == (held == wanted)
    assert difference(wanted, wanted) == ""


@settings(deadline=None)
@given(rulesets, prefixes, prefixes, addresses)
def test_where_only_elements_differ_only_elements_change(before, own, except_, nodes) -> None:
    after = Ruleset(own, before.pods, tuple(nodes), except_, before.ipv4, before.ipv6, before.random_fully)
    commands = plan(render(before), render(after))
    assert not commands or not is_whole(commands)


@settings(deadline=None)
@given(rulesets)
def test_replacement_works_over_anything(ruleset) -> None:
    wanted = render(ruleset)
    assert apply(None, replacement(wanted)) == wanted
    assert apply(render(FULL), replacement(wanted)) == wanted
    assert is_whole(replacement(wanted))


def test_a_new_node_is_one_element() -> None:
    after = Ruleset(FULL.own, FULL.pods, (*FULL.nodes, parse_address("172.16.0.3")), FULL.except_)
    assert plan(render(FULL), render(after)) == [
        {"add": {"element": {"family": "inet", "table": "pynet", "name": "nodes-4", "elem": ["172.16.0.3"]}}}
    ]


def test_an_interval_that_is_no_prefix_is_given_as_a_range() -> None:
    commands = replacement(render(Ruleset(except_=(parse_prefix("10.0.1.0/24"), parse_prefix("10.0.2.0/24")))))
    elements = [c["add"]["set"]["elem"] for c in commands[2:] if c["add"].get("set", {}).get("name") == "except-4"]
    assert elements == [[{"range": ["10.0.1.0", "10.0.2.255"]}]]


def test_interval_sets_are_flushed_and_filled_when_something_goes() -> None:
    before, after = (Ruleset(except_=(parse_prefix("192.0.2.0/24"), parse_prefix(p))) for p in ("10.0.0.0/8", "10.0.0.0/9"))
    assert [list(command) for command in plan(render(before), render(after))] == [["flush"], ["add"]]


def listing_of(ruleset: Ruleset) -> list[dict]:
    return [{"table": {"family": "inet", "name": "pynet", "handle": 7}}, *_listed(render(ruleset))]


def test_handles_are_not_compared() -> None:
    listing = listing_of(FULL)
    for number, thing in enumerate(listing):
        next(iter(thing.values()))["handle"] = number
    assert parse(listing) == render(FULL)


@pytest.mark.parametrize("flags", ["interval", ["interval"]])
def test_one_flag_is_the_same_in_a_list_and_alone(flags) -> None:
    listing = listing_of(FULL)
    for thing in listing:
        if "flags" in thing.get("set", {}):
            thing["set"]["flags"] = flags
    assert parse(listing) == render(FULL)


@pytest.mark.parametrize(
    "thing",
    [
        {"map": {"family": "inet", "table": "pynet", "name": "m", "type": "ipv4_addr", "map": "verdict"}},
        {"counter": {"family": "inet", "table": "pynet", "name": "c", "packets": 1}},
        {"chain": {"family": "inet", "table": "pynet", "name": "theirs"}},
        {"set": {"family": "inet", "table": "pynet", "name": "theirs", "type": "ipv4_addr"}},
        {"rule": {"family": "inet", "table": "pynet", "chain": "postrouting", "expr": [{"accept": None}]}},
    ],
)
def test_what_we_never_make_is_a_difference_and_brings_the_whole_table(thing) -> None:
    held = parse([*listing_of(FULL), thing])
    assert difference(held, render(FULL))
    assert is_whole(plan(held, render(FULL)))


def test_an_element_that_we_cannot_read_brings_the_whole_table() -> None:
    listing = listing_of(FULL)
    next(t["set"] for t in listing if t.get("set", {}).get("name") == "nodes-4")["elem"] = [
        {"elem": {"val": "1.1.1.1", "timeout": 5}}
    ]
    assert is_whole(plan(parse(listing), render(FULL)))


def test_difference_is_told_for_a_person() -> None:
    wanted = render(FULL)
    assert wanted is not None
    listing = listing_of(FULL)
    next(t["set"] for t in listing if t.get("set", {}).get("name") == "nodes-4")["elem"] = ["172.16.0.1", "1.1.1.1", "2.2.2.2"]
    assert difference(parse(listing), wanted) == "set nodes-4: 1 missing, set nodes-4: 2 not ours"
    assert difference(None, wanted) == "table missing"
    assert difference(wanted, None) == "table there"
    assert difference(render(Ruleset(ipv4=False)), render(Ruleset())).startswith("set own-4 missing")
    assert "rules egress-4 changed" in difference(render(Ruleset(random_fully=False)), render(Ruleset()))
