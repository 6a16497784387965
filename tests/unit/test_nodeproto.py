"""The protobuf walk against an independent writer: what it keeps, how it takes bytes apart, what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.model import NodeFacts
from pynet.drivers import nodeproto
from pynet.drivers.apiwire import NO_NAME, NODE_LIMIT, MalformedError, NodeEvent, Refused, Status, TruncatedError

from tests.support import kubeproto
from tests.support.kubeproto import message
from tests.support.nodes import node

TEXT = st.text(max_size=20)
CREATED = 1767323045  # 2026-01-02T03:04:05Z


def body(name: str, **changes):
    made = node(name, changes.pop("pod_cidrs", ["10.1.0.0/24", "fd00:1::/64"]), ["192.0.2.1", "2001:db8::1"], **changes)
    made["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": "7", "creationTimestamp": "2026-01-02T03:04:05Z"}
    return made


def facts(name: str, **changes) -> NodeFacts:
    kept = {
        "uid": f"uid-{name}",
        "created": CREATED,
        "pod_cidrs": ("10.1.0.0/24", "fd00:1::/64"),
        "internal_ips": ("192.0.2.1", "2001:db8::1"),
        "os": "linux",
    }
    return NodeFacts(name, **(kept | changes))


def walk(data: bytes, own: str = "own", *, step: int = 0) -> tuple[list[NodeFacts], nodeproto.NodeListWalk]:
    chunks = [data[at : at + step] for at in range(0, len(data), step)] if step else [data]
    walked = nodeproto.NodeListWalk(chunks, own)
    return list(walked), walked


@pytest.mark.parametrize("full", [False, True])
def test_facts_of_a_list_are_those_of_its_nodes(full):
    listed, walked = walk(kubeproto.node_list([body("a", full=full), body("b", full=full)], "42"))
    assert listed == [facts("a"), facts("b")]
    assert walked.resource_version == "42"
    assert not walked.refused


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4), st.data())
def test_any_split_into_chunks_gives_the_same_nodes(kinds, data):
    encoded = kubeproto.node_list([body(f"n{i}", full=kind == 3) for i, kind in enumerate(kinds)], "42")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=20)))
    chunks = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    assert list(nodeproto.NodeListWalk(chunks, "own")) == [facts(f"n{i}") for i in range(len(kinds))]


@settings(deadline=None)
@given(st.lists(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), max_size=5), st.data())
def test_any_split_of_a_watch_gives_the_same_events(kinds, data):
    encoded = b"".join(kubeproto.frame(kind, body(f"n{i}")) for i, kind in enumerate(kinds))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=20)))
    chunks = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    events = list(nodeproto.walk_events(chunks, "own"))
    assert events == [NodeEvent(kind, "7", facts(f"n{i}")) for i, kind in enumerate(kinds)]


def test_list_of_no_nodes():
    assert walk(kubeproto.node_list([], "42"))[0] == []


@settings(deadline=None)
@given(name=TEXT.filter(bool), uid=TEXT, cidrs=st.lists(TEXT.filter(bool), max_size=3), ips=st.lists(TEXT, max_size=3))
def test_any_text_is_kept_as_it_is(name, uid, cidrs, ips):
    made = node(name, cidrs, ips)
    made["metadata"]["uid"] = uid
    decoded, _ = nodeproto.decode_node(kubeproto.node(made), "own")
    assert (decoded.name, decoded.uid, decoded.pod_cidrs, decoded.internal_ips) == (name, uid, tuple(cidrs), tuple(ips))


def test_pod_cidr_is_used_where_there_is_no_plural():
    made = body("a")
    del made["spec"]["podCIDRs"]
    assert nodeproto.decode_node(kubeproto.node(made), "own")[0].pod_cidrs == ("10.1.0.0/24",)


def test_pod_cidrs_win_over_pod_cidr():
    made = body("a")
    made["spec"]["podCIDR"] = "10.9.0.0/24"
    assert nodeproto.decode_node(kubeproto.node(made), "own")[0].pod_cidrs == ("10.1.0.0/24", "fd00:1::/64")


@pytest.mark.parametrize("others", [{}, {"a": "b"}, {"zzz/x": "pynet.io/node-ip"}])
def test_annotation_is_found_among_others(others):
    made = body("a", annotations={"pynet.io/node-ip": "192.0.2.9,2001:db8::9", **others})
    assert nodeproto.decode_node(kubeproto.node(made), "own")[0].node_ip == "192.0.2.9,2001:db8::9"


def test_the_annotations_name_elsewhere_is_not_the_annotation():
    made = body("a", annotations={"x": "pynet.io/node-ip"}, labels={"pynet.io/node-ip": "192.0.2.66"})
    assert nodeproto.decode_node(kubeproto.node(made), "own")[0].node_ip == ""


def test_condition_is_kept_for_the_own_node_only():
    made = body("a")
    made["status"]["conditions"].append({"type": "NetworkUnavailable", "status": "True", "reason": "NoRoute"})
    assert nodeproto.decode_node(kubeproto.node(made), "a")[0].condition == ("True", "NoRoute")
    assert nodeproto.decode_node(kubeproto.node(made), "b")[0].condition is None


def test_fields_in_another_order_give_the_same_facts():
    # Nothing promises the order of fields, and what comes first must not hide what comes later.
    made = body("a")
    parts = kubeproto._metadata(made["metadata"]), kubeproto._spec(made["spec"])
    status = message((8, b""), (7, message((9, "linux"))), *((5, message((2, a), (1, "InternalIP"))) for a in ("192.0.2.1",)))
    metadata = message((8, message((1, CREATED))), (6, "7"), (5, "uid-a"), (1, "a"))
    encoded = message((3, status), (2, parts[1]), (1, metadata))
    assert nodeproto.decode_node(encoded, "own") == (facts("a", internal_ips=("192.0.2.1",)), "7")


def test_unknown_fields_of_every_wire_type_are_skipped():
    extra = message((99, 1), (98, "x")) + kubeproto.varint(97 << 3 | 1) + bytes(8) + kubeproto.varint(96 << 3 | 5) + bytes(4)
    encoded = extra + kubeproto.node(body("a")) + extra
    assert nodeproto.decode_node(encoded, "own")[0] == facts("a")


def test_time_before_1970_and_no_time():
    made = body("a")
    made["metadata"]["creationTimestamp"] = "1969-12-31T23:59:00Z"
    assert nodeproto.decode_node(kubeproto.node(made), "own")[0].created == -60
    made["metadata"]["creationTimestamp"] = None
    assert nodeproto.decode_node(kubeproto.node(made), "own")[0].created == 0


def test_bytes_that_are_no_utf_8_do_not_stop_the_walk():
    encoded = message((1, message((1, b"a\xff"), (5, "u"))))
    assert nodeproto.decode_node(encoded, "own")[0].name == "a\N{REPLACEMENT CHARACTER}"


def test_operating_system_is_one_object_for_all():
    listed, _ = walk(kubeproto.node_list([body("a"), body("b")], "42"))
    assert listed[0].os is listed[1].os


def test_node_of_10_mb_is_read_and_its_neighbours_too():
    large = body("b", annotations={"large": "x" * 10_000_000})
    listed, walked = walk(kubeproto.node_list([body("a"), large, body("c")], "42"), step=65536)
    assert listed == [facts("a"), facts("b"), facts("c")]
    assert not walked.refused


def test_node_too_large_is_named_and_refused_without_being_held(monkeypatch):
    monkeypatch.setattr(nodeproto, "NODE_LIMIT", 100_000)
    large = body("b", annotations={"large": "x" * 5_000_000})
    encoded = kubeproto.node_list([body("a"), large, body("c")], "42")
    held = 0

    def chunks():
        nonlocal held
        for at in range(0, len(encoded), 1000):
            held = max(held, len(walked._source._buffer))
            yield encoded[at : at + 1000]

    walked = nodeproto.NodeListWalk(chunks(), "own")
    assert list(walked) == [facts("a"), facts("c")]
    assert [(each.name, "more than" in each.why) for each in walked.refused] == [("b", True)]
    assert held < 10_000


def test_node_too_large_whose_head_has_no_name(monkeypatch):
    monkeypatch.setattr(nodeproto, "NODE_LIMIT", 10_000)
    for head in (b"\x12\x00", b"\x0a", message((1, message((5, "uid"))))):
        raw = message((1, message((2, "42"))), (2, head + message((3, b"x" * 20_000))))
        listed, walked = walk(kubeproto.wrap("NodeList", raw))
        assert listed == []
        assert [each.name for each in walked.refused] == [""]


def test_node_without_name_is_refused_alone():
    nameless = body("")
    listed, walked = walk(kubeproto.node_list([body("a"), nameless, body("c")], "42"))
    assert listed == [facts("a"), facts("c")]
    assert walked.refused == [Refused("", NO_NAME)]


@settings(deadline=None)
@given(st.data())
def test_a_list_cut_short_is_never_taken_for_a_whole_one(data):
    encoded = kubeproto.node_list([body("a"), body("b")], "42")
    cut = data.draw(st.integers(0, len(encoded) - 5))  # the last four bytes are two empty fields of the envelope
    with pytest.raises(MalformedError):
        walk(encoded[:cut])


@settings(deadline=None)
@given(st.data())
def test_bytes_changed_at_random_raise_nothing_but_malformed(data):
    encoded = bytearray(kubeproto.node_list([body("a"), body("b")], "42") + b"")
    for _ in range(data.draw(st.integers(1, 5))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        walk(bytes(encoded))
    except MalformedError:
        return


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_raise_nothing_but_malformed(data):
    for read in (lambda: walk(data), lambda: nodeproto.decode_status(data), lambda: list(nodeproto.walk_events([data], "own"))):
        try:
            read()
        except MalformedError:
            continue


@pytest.mark.parametrize(
    "raw",
    [
        b"\x13\x00",  # a group
        b"\x08\x01",  # a varint where the NodeList should be
        b"\x12\x7f\x00",  # longer than the list says
        b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # a varint without end
        message((2, b"\x0a\x05ab")),  # metadata over the end of its Node
        message((2, b"\x08\x01\x0a")),  # a Node that ends after a key
    ],
)
def test_what_is_no_node_list_is_malformed(raw):
    with pytest.raises(MalformedError):
        walk(kubeproto.wrap("NodeList", message((1, message((2, "42")))) + raw))


def test_field_that_reaches_over_the_end_of_its_message_is_malformed():
    # The bytes behind it are there, but they are another Node's.
    metadata = message((1, "a"), (5, "u")) + b"\x32\x10"
    with pytest.raises(MalformedError):
        nodeproto.decode_node(message((1, metadata), (2, b"x" * 30)), "own")


@pytest.mark.parametrize("number", [b"\x09\0\0\0", b"\x0d\0", b"\x08\x80"])
def test_number_that_reaches_over_the_end_of_its_message_is_malformed(number):
    with pytest.raises(MalformedError):
        nodeproto.decode_node(message((1, message((1, "a")) + number), (2, b"")), "own")


def test_a_number_where_text_belongs_is_not_taken_for_it():
    decoded, _ = nodeproto.decode_node(message((1, message((1, 3), (5, 2)))), "own")
    assert decoded == NodeFacts("")


def test_other_prefix_and_list_without_version_are_malformed():
    with pytest.raises(MalformedError, match="prefix"):
        walk(b"k9s\0" + kubeproto.node_list([], "42")[4:])
    with pytest.raises(MalformedError, match="resourceVersion"):
        walk(kubeproto.wrap("NodeList", message((2, kubeproto.node(body("a"))))))


def test_bookmark_has_a_version_and_no_facts():
    frame = kubeproto.frame("BOOKMARK", {"metadata": {"resourceVersion": "77"}})
    assert list(nodeproto.walk_events([frame], "own")) == [NodeEvent("BOOKMARK", "77")]


def test_error_event_has_its_status():
    status = {"code": 410, "reason": "Expired", "message": "too old", "details": {"retryAfterSeconds": 3}}
    events = list(nodeproto.walk_events([kubeproto.frame("ERROR", status)], "own"))
    assert events == [NodeEvent("ERROR", status=Status(410, "Expired", "too old", 3))]


def test_status_is_read():
    status = {"code": 403, "reason": "Forbidden", "message": "nodes is forbidden"}
    assert nodeproto.decode_status(kubeproto.status(status)) == Status(403, "Forbidden", "nodes is forbidden", 0)


def test_event_too_large_is_skipped_as_it_arrives_and_the_next_is_read():
    size = NODE_LIMIT + 1
    chunks = [size.to_bytes(4, "big"), *([bytes(1 << 20)] * (NODE_LIMIT >> 20)), b"\0" + kubeproto.frame("ADDED", body("a"))]
    large, good = nodeproto.walk_events(chunks, "own")
    assert large.kind == "REFUSED"
    assert str(size) in large.status.message
    assert good == NodeEvent("ADDED", "7", facts("a"))


def test_text_in_place_of_frames_is_malformed_and_not_waited_for():
    with pytest.raises(MalformedError, match="frame"):
        list(nodeproto.walk_events([b"<html>no watch here</html>"], "own"))


def test_watch_that_ends_inside_a_frame_is_truncated():
    frame = kubeproto.frame("ADDED", body("a"))
    for cut in (1, 3, 4, len(frame) - 1):
        with pytest.raises(TruncatedError):
            list(nodeproto.walk_events([frame[:cut]], "own"))
    assert list(nodeproto.walk_events([], "own")) == []


def test_event_of_a_node_without_name_is_refused():
    (refused,) = nodeproto.walk_events([kubeproto.frame("ADDED", body(""))], "own")
    assert (refused.kind, refused.status.message) == ("REFUSED", NO_NAME)


@pytest.mark.parametrize("kind", ["", "RENAMED"])
def test_event_of_unknown_kind_is_malformed(kind):
    with pytest.raises(MalformedError, match="of type"):
        list(nodeproto.walk_events([kubeproto.frame(kind, body("a"))], "own"))
