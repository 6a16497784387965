"""Table ``inet pynet`` as a value: what it should hold, what nft lists, and the transaction from one to the other. Pure.

Elements of interval sets are merged here (nft's auto-merge does the same, but its JSON does not offer it), so that nothing
overlaps: overlapping elements make nft refuse a transaction. Node addresses go to sets without intervals: for those nft does
not read the whole set back at each change (docs/adr/0006-rules.md has the figures).
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from pynet.core.model import FAMILIES, Family, Prefix, format_address

FAMILY: Final = "inet"
NAME: Final = "pynet"
_HERE: Final = {"family": FAMILY, "table": NAME}

Element = bytes | tuple[bytes, bytes]
"""An address, or the first and last address of an interval; packed."""
Json = dict[str, Any]


class Ruleset(msgspec.Struct, frozen=True):
    """What decides about masquerading. ``own`` are this node's podCIDRs, ``pods`` the clusterCIDRs (or the accepted podCIDRs),
    ``nodes`` the accepted InternalIPs, ``except_`` the configured exceptCIDRs; overlaps are allowed. ``ipv4`` and ``ipv6`` say
    for which families, ``random_fully`` whether source ports are chosen at random. Order does not matter, but two values are
    the same only if they are of one kind: frozensets, but for tests.
    """

    own: Collection[Prefix] = ()
    pods: Collection[Prefix] = ()
    nodes: Collection[bytes] = ()
    except_: Collection[Prefix] = ()
    ipv4: bool = True
    ipv6: bool = True
    random_fully: bool = True


class Table(NamedTuple):
    """A table's content. ``objects`` are the definitions of sets and chains, and each chain's rules in order, by what they are
    ("set own-4", "chain egress-4", "rules egress-4"), in the order in which they can be made; ``elements`` those of each set.
    """

    objects: Mapping[str, Any]
    elements: Mapping[str, frozenset[Element]]


def render(ruleset: Ruleset) -> Table | None:
    """What table ``inet pynet`` should hold; None if there should be none."""
    families = [family for family, wanted in zip(FAMILIES, (ruleset.ipv4, ruleset.ipv6), strict=True) if wanted]
    if not families:
        return None
    objects: dict[str, Any] = {"table": {}}
    elements: dict[str, frozenset[Element]] = {}
    for family in families:
        contents = _contents(ruleset, family)
        elements |= contents
        for name in contents:
            kind = {"type": "ipv4_addr" if family == 4 else "ipv6_addr"}
            objects[f"set {name}"] = kind if name.startswith("nodes") else kind | {"flags": "interval"}
        objects[f"chain egress-{family}"] = {}
    objects["chain postrouting"] = {"type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"}
    for family in families:
        objects[f"rules egress-{family}"] = _egress(family, random_fully=ruleset.random_fully)
    objects["rules postrouting"] = [
        _rule("saddr", family, f"@own-{family}", {"jump": {"target": f"egress-{family}"}}, "from a pod of this node")
        for family in families
    ]
    return Table(objects, elements)


def _contents(ruleset: Ruleset, family: Family) -> dict[str, frozenset[Element]]:
    """The elements of a family's sets."""
    # Traffic between two pods of this node stays as it is even if somebody gave clusterCIDRs that lack its podCIDR.
    return {
        f"own-{family}": _merged(ruleset.own, family),
        f"pods-{family}": _merged((*ruleset.own, *ruleset.pods), family),
        f"nodes-{family}": _of_family(ruleset.nodes, family),
        f"except-{family}": _merged(ruleset.except_, family),
    }


def _of_family(addresses: Collection[bytes], family: Family) -> frozenset[Element]:
    found = frozenset(address for address in addresses if len(address) == (4 if family == 4 else 16))
    # The very same set where it is all of them: one of 5,000 less to keep.
    return addresses if isinstance(addresses, frozenset) and len(found) == len(addresses) else found


def _egress(family: Family, *, random_fully: bool) -> list[Json]:
    """The rules for what comes from our own pods, each with the reason that a person reads in ``nft list table inet pynet``."""
    multicast = {"prefix": {"addr": "224.0.0.0", "len": 4} if family == 4 else {"addr": "ff00::", "len": 8}}
    leave = {"return": None}
    masquerade = {"masquerade": {"flags": "fully-random"} if random_fully else None}
    return [
        _rule("daddr", family, f"@pods-{family}", leave, "to a pod: keeps the pod's address"),
        _rule("daddr", family, f"@nodes-{family}", leave, "to a node of the cluster: keeps the pod's address"),
        _rule("daddr", family, f"@except-{family}", leave, "masquerade.exceptCIDRs: keeps the pod's address"),
        _rule("daddr", family, multicast, leave, "multicast: keeps the pod's address"),
        {"comment": "to outside the cluster: leaves with the node's address", "expr": [masquerade]},
    ]


def _rule(field: str, family: Family, right: object, verdict: Json, comment: str) -> Json:
    left = {"payload": {"protocol": "ip" if family == 4 else "ip6", "field": field}}
    return {"comment": comment, "expr": [{"match": {"op": "==", "left": left, "right": right}}, verdict]}


def _merged(prefixes: Iterable[Prefix], family: Family) -> frozenset[Element]:
    """The intervals of a family's prefixes: none overlaps or adjoins another."""
    size = 4 if family == 4 else 16
    merged: list[tuple[int, int]] = []
    # As plain numbers: to sort thousands of tuples keeps the interpreter from all other threads for milliseconds.
    numbers = [int.from_bytes(prefix.address) << 8 | prefix.length for prefix in prefixes if len(prefix.address) == size]
    numbers.sort()
    for number in numbers:
        first = number >> 8
        last = first | ((1 << (8 * size - (number & 0xFF))) - 1)
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return frozenset((first.to_bytes(size, "big"), last.to_bytes(size, "big")) for first, last in merged)


def plan(held: Table | None, wanted: Table | None) -> list[Json]:
    """The commands that turn the table ``held`` into the ``wanted`` one; [] if they are the same.

    Where only elements differ, only elements change. An interval that goes takes its whole set along (flush, then add): nft
    must read the set back either way, and so no command refers to what another command of the transaction removes.
    """
    if held is None or wanted is None or held.objects != wanted.objects or held.elements.keys() != wanted.elements.keys():
        return [] if held == wanted else replacement(wanted)
    commands: list[Json] = []
    for name, elements in wanted.elements.items():
        gone, new = held.elements[name] - elements, elements - held.elements[name]
        if gone and "flags" in wanted.objects[f"set {name}"]:
            commands.append({"flush": {"set": _HERE | {"name": name}}})
            gone, new = frozenset(), elements
        commands += [_change(verb, name, some) for verb, some in (("delete", gone), ("add", new)) if some]
    return commands


def difference(held: Table | None, wanted: Table | None) -> str:
    """What tells the two apart, for a person; "" if nothing does."""
    if held is None or wanted is None:
        return "" if held == wanted else "table missing" if held is None else "table there"
    found = [f"{title} missing" for title in wanted.objects if title not in held.objects]
    found += [f"{title} not ours" for title in held.objects if title not in wanted.objects]
    found += [f"{title} changed" for title, what in wanted.objects.items() if held.objects.get(title, what) != what]
    for name, elements in wanted.elements.items():
        there = held.elements.get(name, elements)
        counts = (("missing", len(elements - there)), ("not ours", len(there - elements)))
        found += [f"set {name}: {count} {word}" for word, count in counts if count]
    return ", ".join(found)


def _change(verb: str, name: str, elements: frozenset[Element]) -> Json:
    return {verb: {"element": _HERE | {"name": name, "elem": [_to_json(element) for element in elements]}}}


def replacement(wanted: Table | None) -> list[Json]:
    """The commands that make the table hold exactly ``wanted`` (None: be gone), whatever it holds, and if there is none."""
    table = {"table": {"family": FAMILY, "name": NAME}}
    commands: list[Json] = [{"add": table}, {"delete": table}]
    if wanted is None:
        return commands
    commands.append({"add": table})
    for title, attributes in wanted.objects.items():
        what, _, name = title.partition(" ")
        if what == "set":
            filled: Json = {"elem": elements} if (elements := [_to_json(element) for element in wanted.elements[name]]) else {}
            if "flags" in attributes:
                filled["flags"] = [attributes["flags"]]  # nft 1.0 overlooks one that is not in a list
            commands.append({"add": {"set": _HERE | {"name": name} | attributes | filled}})
        elif what == "chain":
            commands.append({"add": {"chain": _HERE | {"name": name} | attributes}})
        elif what == "rules":
            commands += [{"add": {"rule": _HERE | {"chain": name} | rule}} for rule in attributes]
    return commands


def is_whole(commands: list[Json]) -> bool:
    """Whether these commands are a `replacement`, not just changes of elements."""
    return "table" in commands[0].get("add", ())


def parse(listing: Iterable[Json]) -> Table:
    """The table that nft lists (``nft -j list table inet pynet``, without metainfo).

    What we never make (a map, a counter, an element with a time-out) becomes an object too, so that the table differs from any
    wanted one.
    """
    objects: dict[str, Any] = {}
    elements: dict[str, frozenset[Element]] = {}
    for thing in listing:
        for what, attributes in thing.items():
            name = attributes.get("name", "")
            plain = {key: value if key == "elem" else _canonical(value, key) for key, value in attributes.items()}
            plain = {key: value for key, value in plain.items() if key not in _WHERE}
            if what == "rule":
                objects.setdefault(f"rules {attributes['chain']}", []).append(plain)
            elif what == "set":
                listed: Any = plain.pop("elem", ())
                try:
                    elements[name] = frozenset(_from_json(element, interval="flags" in plain) for element in listed)
                except (TypeError, ValueError, KeyError, OSError):
                    objects[f"elements {name}"] = "not ours"
                objects[f"set {name}"] = plain
            elif what == "chain":
                objects[f"chain {name}"] = plain
                objects.setdefault(f"rules {name}", [])
            else:
                objects[what if what == "table" else f"{what} {name}"] = plain
    return Table(objects, elements)


_WHERE: Final = frozenset(("family", "table", "name", "handle", "chain"))


def _canonical(value: Any, key: str = "") -> Any:
    """One flag is listed as a list of one, or as itself, depending on nft's version: here as itself."""
    if isinstance(value, dict):
        return {inner: _canonical(what, inner) for inner, what in value.items()}
    if isinstance(value, list):
        return value[0] if key == "flags" and len(value) == 1 else [_canonical(what) for what in value]
    return value


def _to_json(element: Element) -> object:
    if isinstance(element, bytes):
        return format_address(element)
    first, last = (int.from_bytes(end, "big") for end in element)
    size = last - first + 1
    width = 8 * len(element[0])
    if size == 1:
        return format_address(element[0])
    if size & (size - 1) == 0 and first % size == 0:
        return {"prefix": {"addr": format_address(element[0]), "len": width + 1 - size.bit_length()}}
    return {"range": [format_address(end) for end in element]}


def _from_json(element: Any, *, interval: bool) -> Element:
    """The element of a listed set. Raises TypeError, ValueError, KeyError or OSError if it is none of ours."""
    if isinstance(element, str):
        address = _packed(element)
        return (address, address) if interval else address
    if "prefix" in element:
        first, length = _packed(element["prefix"]["addr"]), element["prefix"]["len"]
        last = int.from_bytes(first, "big") | ((1 << (8 * len(first) - length)) - 1)
        return first, last.to_bytes(len(first), "big")
    return _packed(element["range"][0]), _packed(element["range"][1])


def _packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
