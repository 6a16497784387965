"""The JSON decoder: equal to the protobuf walk on the same Nodes, and tolerant of single bad ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.model import NodeFacts
from pynet.drivers import nodejson, nodeproto
from pynet.drivers.apiwire import NO_NAME, NODE_LIMIT, MalformedError, NodeEvent, Refused, Status, TruncatedError

from tests.support import kubeproto
from tests.support.nodes import node

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def body(name: str = "a", **changes):
    made = node(name, ["10.1.0.0/24", "fd00:1::/64"], ["192.0.2.1", "2001:db8::1"], **changes)
    made["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": "7", "creationTimestamp": "2026-01-02T03:04:05Z"}
    return made


def page(*items, **metadata) -> nodejson.NodePage:
    return nodejson.decode_page(json.dumps({"metadata": {"resourceVersion": "42", **metadata}, "items": items}).encode(), "own")


def line(kind: str, made) -> bytes:
    return json.dumps({"type": kind, "object": made}).encode() + b"\n"


def events(*chunks: bytes) -> list[NodeEvent]:
    return list(nodejson.walk_events(chunks, "own"))


def test_facts_of_a_node():
    assert page(body(full=True)).nodes == [
        NodeFacts("a", "uid-a", 1767323045, ("10.1.0.0/24", "fd00:1::/64"), ("192.0.2.1", "2001:db8::1"), "", "linux")
    ]


NODES = st.builds(
    lambda meta, system, conditions: _with(node(*meta[:3], annotations=meta[3], os=system), meta[4], conditions),
    st.tuples(
        st.sampled_from(["own", "other"]),
        st.lists(TEXT.filter(bool), max_size=3),
        st.lists(TEXT, max_size=3),
        st.dictionaries(st.sampled_from(["pynet.io/node-ip", "x", "pynet.io/node-ip2"]), TEXT),
        st.datetimes().map(lambda when: when.replace(microsecond=0).isoformat() + "Z"),
    ),
    TEXT,
    st.lists(st.tuples(st.sampled_from(["NetworkUnavailable", "Ready"]), TEXT, TEXT), max_size=3),
)


def _with(made, created, conditions):
    made["metadata"] |= {"uid": "u", "resourceVersion": "9", "creationTimestamp": created}
    made["status"]["conditions"] = [{"type": t, "status": s, "reason": r} for t, s, r in conditions]
    return made


@settings(deadline=None)
@given(NODES)
def test_protobuf_and_json_give_the_same_facts(made):
    event = nodejson.decode_event(line("ADDED", made), "own")
    assert event == next(nodeproto.walk_events([kubeproto.frame("ADDED", made)], "own"))


def test_page_says_where_the_next_one_begins():
    first = page(body("a"), body("b"), **{"continue": "token"})
    assert ([facts.name for facts in first.nodes], first.resource_version, first.continue_) == (["a", "b"], "42", "token")
    assert page().continue_ == ""


@pytest.mark.parametrize("items", [None, []])
def test_list_without_items(items):
    data = json.dumps({"metadata": {"resourceVersion": "42"}, "items": items}).encode()
    assert nodejson.decode_page(data, "own").nodes == []


@pytest.mark.parametrize(
    "change",
    [
        {"spec": None, "status": None},
        {"spec": {"podCIDRs": None}, "status": {"addresses": None, "conditions": None, "nodeInfo": None}},
        {"metadata": {"name": "a", "uid": "u", "creationTimestamp": None, "annotations": None}},
        {"metadata": {"name": "a", "creationTimestamp": "yesterday"}},
    ],
)
def test_what_may_be_absent_or_null_is(change):
    (facts,) = page(body() | change).nodes
    assert facts.name == "a"


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (body("b") | {"spec": {"podCIDRs": "10.1.0.0/24"}}, "b"),
        (body("b") | {"status": {"addresses": [1]}}, "b"),
        (body("b") | {"metadata": {"name": 5}}, ""),
        ({"spec": {}}, ""),
        ("a string", ""),
    ],
)
def test_node_of_wrong_types_is_refused_alone(bad, name):
    read = page(body("a"), bad, body("c"))
    assert [facts.name for facts in read.nodes] == ["a", "c"]
    assert [each.name for each in read.refused] == [name]
    assert read.refused[0].why


def test_node_without_name_is_refused_alone():
    assert page(body(""), body("b")).refused == [Refused("", NO_NAME)]


@pytest.mark.parametrize("data", [b"", b"{", b"<html>", b"[]", b'{"items": []}', b'{"metadata": {}, "items": 3}'])
def test_what_is_no_list_is_malformed(data):
    with pytest.raises(MalformedError):
        nodejson.decode_page(data, "own")


def test_page_too_large_tells_the_next_token_by_its_head():
    head = b'{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"42","continue":"token"},"items":[{"metadata":{'
    read = nodejson.decode_oversized(head)
    assert (read.resource_version, read.continue_, read.nodes, len(read.refused)) == ("42", "token", [], 1)
    with pytest.raises(MalformedError):
        nodejson.decode_oversized(b'{"items":[')


def test_status_is_read():
    data = {"kind": "Status", "code": 429, "reason": "TooManyRequests", "message": "m", "details": {"retryAfterSeconds": 4}}
    assert nodejson.decode_status(json.dumps(data).encode()) == Status(429, "TooManyRequests", "m", 4)
    with pytest.raises(MalformedError):
        nodejson.decode_status(b"nope")


def test_bookmark_error_and_refused_events():
    bookmark = {"kind": "Node", "metadata": {"resourceVersion": "77", "creationTimestamp": None}, "spec": {}, "status": {}}
    error = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    read = events(line("BOOKMARK", bookmark) + line("ERROR", error) + line("MODIFIED", body("b") | {"spec": []}))
    assert read[:2] == [NodeEvent("BOOKMARK", "77"), NodeEvent("ERROR", status=Status(410, "Expired", "too old"))]
    assert read[2].kind == "REFUSED"
    assert read[2].status.message.startswith("b ")


@pytest.mark.parametrize("data", [b"nope\n", b'{"type":"ADDED"}\n', b'{"type":"ADDED","object":{\n', b"3\n"])
def test_line_that_is_no_event_is_malformed(data):
    with pytest.raises(MalformedError):
        events(data)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), max_size=5), st.data())
def test_any_split_of_a_watch_gives_the_same_events(kinds, data):
    encoded = b"".join(line(kind, body(f"n{i}", full=i % 2 == 0)) for i, kind in enumerate(kinds))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=20)))
    read = events(*(encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)))
    assert [(event.kind, event.facts.name) for event in read] == [(kind, f"n{i}") for i, kind in enumerate(kinds)]


def test_empty_lines_are_nothing():
    assert [event.kind for event in events(b"\n\r\n", line("ADDED", body()))] == ["ADDED"]


def test_watch_that_ends_inside_a_line_is_truncated():
    with pytest.raises(TruncatedError):
        events(line("ADDED", body())[:-1])


def test_event_too_large_is_skipped_as_it_arrives_and_the_next_is_read():
    data = line("ADDED", body("b", annotations={"large": "x" * NODE_LIMIT}))
    large = [data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]
    assert [event.kind for event in events(*large, line("ADDED", body("c")))] == ["REFUSED", "ADDED"]
    with pytest.raises(TruncatedError):
        events(*large[:-1])


def test_event_of_a_node_without_name_is_refused():
    (refused,) = nodejson.walk_events([line("ADDED", body(""))], "own")
    assert (refused.kind, refused.status.message) == ("REFUSED", NO_NAME)


@pytest.mark.parametrize("kind", ["", "RENAMED"])
def test_event_of_unknown_kind_is_malformed(kind):
    with pytest.raises(MalformedError, match="of type"):
        list(nodejson.walk_events([line(kind, body("a"))], "own"))
