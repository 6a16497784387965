"""The lab's Nodes: versions, history and patches, as a Kubernetes API server has them."""

from __future__ import annotations

import contextlib
import threading

import pytest
from pynet.commands.lab.store import StatusError, Store, merge


def node(name):
    return {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.77.1"}]}}


@pytest.fixture
def store():
    made = Store()
    for name in ("a", "b", "c"):
        made.create(node(name))
    return made


def names(page):
    return [each["metadata"]["name"] for each in page.nodes]


@contextlib.contextmanager
def refused(code):
    with pytest.raises(StatusError) as caught:
        yield
    assert caught.value.code == code


def test_pages_are_of_one_version_whatever_changes_in_between(store):
    first = store.page(limit=2)
    store.delete("c")
    store.create(node("bb"))
    second = store.page(limit=2, after="b", version=first.version)
    assert names(first) + names(second) == ["a", "b", "c"]
    assert second.version == first.version
    assert (first.remaining, second.remaining) == (1, 0)


def test_a_page_of_a_version_that_was_compacted_is_410(store):
    first = store.page(limit=1)
    store.create(node("d"))
    store.compact()
    with refused(410):
        store.page(limit=1, after="a", version=first.version)


def test_a_watch_gets_every_change_once_and_in_order(store):
    version = store.version
    store.patch("a", {"spec": {"unschedulable": True}}, status=False, strategic=False)
    store.delete("b")
    store.create(node("b"))
    changes = store.since(version, 0)
    assert [(change.kind, change.node["metadata"]["name"]) for change in changes] == [
        ("MODIFIED", "a"),
        ("DELETED", "b"),
        ("ADDED", "b"),
    ]
    assert [change.version for change in changes] == [version + 1, version + 2, version + 3]
    assert [int(change.node["metadata"]["resourceVersion"]) for change in changes] == [version + 1, version + 2, version + 3]


def test_a_watch_waits_for_the_next_change(store):
    version = store.version
    timer = threading.Timer(0.05, store.delete, ["a"])
    timer.start()
    assert [change.kind for change in store.since(version, 5)] == ["DELETED"]
    timer.join()


def test_a_watch_from_before_the_history_is_410():
    store = Store(history=2)
    version = store.version
    for name in ("a", "b", "c"):
        store.create(node(name))
    with refused(410):
        store.since(version, 0)
    assert [change.node["metadata"]["name"] for change in store.since(version + 1, 0)] == ["b", "c"]


def test_a_node_made_again_has_another_uid(store):
    before = store.get("a")["metadata"]["uid"]
    store.delete("a")
    assert store.create(node("a"))["metadata"]["uid"] != before


def test_names_that_exist_or_do_not_or_are_missing_are_refused(store):
    with refused(409):
        store.create(node("a"))
    with refused(422):
        store.create({"metadata": {}})
    for call in (store.get, store.delete):
        with refused(404):
            call("x")


def test_a_strategic_patch_of_the_status_merges_conditions_by_type_and_leaves_the_rest(store):
    store.patch("a", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, status=True, strategic=True)
    patch = {"metadata": {"labels": {"x": "y"}}, "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False"}]}}
    after = store.patch("a", patch, status=True, strategic=True)
    assert {each["type"]: each["status"] for each in after["status"]["conditions"]} == {
        "Ready": "True",
        "NetworkUnavailable": "False",
    }
    assert after["status"]["addresses"] == node("a")["status"]["addresses"]
    assert "labels" not in after["metadata"]


def test_a_patch_that_changes_nothing_makes_no_version(store):
    version = store.version
    store.patch("a", node("a"), status=True, strategic=True)
    assert store.version == version


def test_a_patch_for_another_version_is_409(store):
    with refused(409):
        store.patch("a", {"metadata": {"resourceVersion": "1"}}, status=True, strategic=True)


@pytest.mark.parametrize(
    ("value", "patch", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": None}, {"a": 1}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {"a": {"x": 1, "y": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        (
            {"conditions": [{"type": "A"}, {"type": "B"}]},
            {"conditions": [{"type": "A", "$patch": "delete"}]},
            {"conditions": [{"type": "B"}]},
        ),
    ],
)
def test_merge_follows_rfc_7396_and_the_merge_keys(value, patch, merged):
    assert merge(value, patch, {"conditions": "type"}) == merged
