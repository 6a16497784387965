"""The mailbox and the watcher's mirror: nothing that holds is lost, nothing that is news is missed."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.model import NodeFacts
from pynet.drivers.apiwire import NodeEvent, Refused
from pynet.observe.inbox import NodeChange, NodeInbox, NodeList
from pynet.observe.mirror import Mirror


def listing(*names: str, consistent: bool = True, complete: bool = True) -> NodeList:
    return NodeList({name: NodeFacts(name) for name in names}, consistent, complete, 1.0, 2.0)


def changed(name: str, uid: str = "u", received: float = 0.0, **facts) -> NodeChange:
    return NodeChange(NodeFacts(name, uid, **facts), uid, received)


def event(kind: str, name: str, version: int | str, uid: str = "u", **facts) -> NodeEvent:
    return NodeEvent(kind, str(version), NodeFacts(name, uid, **facts))


@pytest.fixture
def wakes() -> list[None]:
    return []


@pytest.fixture
def inbox(wakes) -> NodeInbox:
    return NodeInbox(lambda: wakes.append(None))


def test_everything_put_in_wakes_and_is_drained_once(inbox, wakes):
    inbox.put_list(listing("a"))
    inbox.put_change("b", changed("b"))
    assert len(wakes) == 2
    drained = inbox.drain()
    assert (list(drained.listed.nodes), list(drained.changed)) == (["a"], ["b"])
    assert inbox.drain() == (None, {})


def test_wake_may_drain(wakes):
    inbox = NodeInbox(lambda: wakes.append(inbox.drain()))
    inbox.put_list(listing("a"))
    inbox.put_change("a", changed("a"))
    assert len(wakes) == 2


def test_list_takes_the_place_of_what_came_before(inbox):
    inbox.put_change("b", changed("b"))
    inbox.put_list(listing("a"))
    assert inbox.drain().changed == {}


def test_changes_stay_on_top_of_an_older_list(inbox):
    inbox.put_change("b", changed("b"))
    inbox.put_list(listing("a", consistent=False))
    assert list(inbox.drain().changed) == ["b"]


def test_list_that_may_remove_is_not_replaced_by_one_that_may_not(inbox):
    inbox.put_list(listing("a"))
    inbox.put_list(listing("b", consistent=False, complete=False))
    assert list(inbox.drain().listed.nodes) == ["a"]
    inbox.put_list(listing("b", complete=False))
    inbox.put_list(listing("c"))
    assert list(inbox.drain().listed.nodes) == ["c"]


def test_changes_of_one_node_are_one_change_with_the_first_ones_time(inbox):
    inbox.put_change("a", changed("a", received=1.0))
    inbox.put_change("a", changed("a", received=2.0, os="x"))
    assert inbox.drain().changed == {"a": [changed("a", received=1.0, os="x")]}


def test_deletion_and_a_new_node_of_the_same_name_stay_apart(inbox):
    history = [changed("a", "1"), NodeChange(None, "1", 0.0), changed("a", "2")]
    for change in history:
        inbox.put_change("a", change)
    assert inbox.drain().changed == {"a": history}


def test_history_of_a_node_that_comes_and_goes_is_bounded_and_its_end_is_kept(inbox):
    for i in range(100):
        inbox.put_change("a", changed("a", str(i)))
        inbox.put_change("a", NodeChange(None, str(i), 0.0))
    history = inbox.drain().changed["a"]
    assert len(history) <= 8
    assert history[-1] == NodeChange(None, "99", 0.0)


def test_no_change_is_lost_between_threads(inbox):
    seen: dict[str, int] = {}
    done = threading.Event()

    def write():
        for i in range(5000):
            inbox.put_change(f"n{i % 50}", changed(f"n{i % 50}", created=i))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while True:
        last = done.is_set()
        for name, history in inbox.drain().changed.items():
            assert history[-1].facts.created > seen.get(name, -1)
            seen[name] = history[-1].facts.created
        if last:
            break
    writer.join()
    assert seen == {f"n{i % 50}": i for i in range(4950, 5000)}


# ---- Mirror


def mirror(*facts: NodeFacts, version: str = "10") -> Mirror:
    made = Mirror()
    assert made.replace(facts, [], version, quorum=True)
    return made


def test_event_that_changes_nothing_that_is_kept_is_no_news():
    seen = mirror(NodeFacts("a", "u", os="linux"))
    assert seen.take(event("MODIFIED", "a", 11, os="linux"), 0.0) is None
    assert seen.take(event("MODIFIED", "a", 12, os="plan9"), 5.0) == NodeChange(NodeFacts("a", "u", os="plan9"), "u", 5.0)


def test_deletion_carries_the_uid():
    seen = mirror(NodeFacts("a", "u"))
    assert seen.take(event("DELETED", "a", 11), 3.0) == NodeChange(None, "u", 3.0)
    assert seen.nodes == {}


def test_late_deletion_of_an_older_node_of_the_same_name_is_no_news():
    seen = mirror(NodeFacts("a", "old"))
    assert seen.take(event("ADDED", "a", 13, "new"), 0.0)
    assert seen.take(event("DELETED", "a", 12, "old"), 0.0) is None
    assert seen.take(event("MODIFIED", "a", 11, "old", os="x"), 0.0) is None
    assert seen.nodes["a"].uid == "new"


def test_deletion_of_another_uid_is_no_news_where_versions_have_no_order():
    seen = mirror(NodeFacts("a", "new"), version="abc")
    assert seen.take(event("DELETED", "a", "xyz", "old"), 0.0) is None
    assert seen.take(event("DELETED", "a", "xyz", "new"), 0.0) == NodeChange(None, "new", 0.0)


def test_deletion_of_an_unknown_node_is_told():
    assert mirror().take(event("DELETED", "a", 11), 0.0) == NodeChange(None, "u", 0.0)


def test_event_at_or_below_the_lists_version_is_no_news():
    seen = mirror(NodeFacts("a", "u"))
    assert seen.take(event("MODIFIED", "a", 10, os="x"), 0.0) is None
    assert seen.take(event("DELETED", "a", 9), 0.0) is None


@settings(deadline=None)
@given(st.permutations(range(8)), st.lists(st.integers(0, 7), max_size=8))
def test_any_order_and_doubling_of_events_ends_in_the_last_state(order, again):
    history = [
        event("ADDED", "a", 11, "1"),
        event("DELETED", "a", 12, "1"),
        event("ADDED", "a", 13, "2"),
        event("MODIFIED", "a", 14, "2", os="linux"),
        event("ADDED", "b", 15, "3"),
        event("MODIFIED", "b", 16, "3", os="x"),
        event("DELETED", "b", 17, "3"),
        event("ADDED", "c", 18, "4"),
    ]
    seen = mirror(NodeFacts("z", "9"))
    told: dict[str, NodeFacts] = dict(seen.nodes)
    for index in [*order, *again]:
        change = seen.take(history[index], 0.0)
        if change is None:
            continue
        name = history[index].facts.name
        if change.facts is None:
            told.pop(name, None)
        else:
            told[name] = change.facts
    expected = {"a": NodeFacts("a", "2", os="linux"), "c": NodeFacts("c", "4"), "z": NodeFacts("z", "9")}
    assert seen.nodes == expected
    assert told == expected


def test_versions_are_compared_as_numbers():
    seen = mirror(version="9")
    assert seen.replace([], [], "10", quorum=False)
    assert not seen.replace([], [], "9", quorum=False)
    assert (seen.version, seen.high) == ("9", "10")


def test_older_quorum_list_becomes_the_measure():
    seen = mirror(version="1000")
    assert not seen.replace([NodeFacts("a")], [], "5", quorum=True)
    assert (seen.version, seen.high) == ("5", "5")
    assert seen.replace([], [], "6", quorum=True)


def test_events_after_a_list_that_went_back_in_time_are_news():
    seen = mirror(version="10")
    assert seen.take(event("ADDED", "a", 1000), 0.0)
    seen.replace([], [], "5", quorum=True)
    assert seen.take(event("ADDED", "a", 6), 0.0)


def test_events_and_bookmarks_move_the_version_forward_only():
    seen = mirror(version="10")
    for version, expected in (("12", "12"), ("11", "12"), ("", "12"), ("100", "100")):
        seen.take(NodeEvent("BOOKMARK", version), 0.0)
        assert (seen.version, seen.high) == (expected, expected)
    seen.take(event("MODIFIED", "a", 101), 0.0)
    assert (seen.version, seen.high) == ("101", "101")


def test_a_list_of_old_is_where_the_watch_goes_on_and_no_event_below_the_highest_raises_that():
    seen = mirror(version="100")
    seen.replace([], [], "50", quorum=False)
    seen.take(event("ADDED", "a", 60), 0.0)
    assert (seen.version, seen.high) == ("60", "100")


def test_opaque_versions_are_never_older():
    seen = mirror(version="abc")
    assert seen.replace([], [], "abb", quorum=False)
    seen.take(NodeEvent("BOOKMARK", "x"), 0.0)
    assert seen.version == "x"


def test_unchanged_nodes_stay_the_same_objects_over_a_list():
    facts = NodeFacts("a", "u", internal_ips=("192.0.2.1",))
    seen = mirror(facts)
    seen.replace([NodeFacts("a", "u", internal_ips=("192.0.2.1",)), NodeFacts("b")], [], "11", quorum=False)
    assert seen.nodes["a"] is facts


def test_refused_node_keeps_its_last_facts():
    facts = NodeFacts("a", "u")
    seen = mirror(facts)
    seen.replace([], [Refused("a", "too large"), Refused("b", "too large"), Refused("", "no name")], "11", quorum=False)
    assert seen.nodes == {"a": facts}


def test_deleted_nodes_do_not_pile_up():
    seen = mirror()
    for i in range(5000):
        seen.take(event("ADDED", f"n{i}", 2 * i + 11), 0.0)
        seen.take(event("DELETED", f"n{i}", 2 * i + 12), 0.0)
    assert len(seen._versions) <= 1100
