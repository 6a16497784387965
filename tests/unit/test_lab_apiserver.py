"""The lab's Node API over HTTP: what kube-apiserver answers, and the agent's own watcher against it."""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest
import structlog
from pynet.commands.lab.apiserver import NODES, NodeServer
from pynet.commands.lab.store import Store
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api
from pynet.observe.inbox import NodeInbox
from pynet.observe.nodes import NodeWatch, Timing

from tests.support.waiting import until

STRATEGIC = "application/strategic-merge-patch+json"


@pytest.fixture
def store():
    made = Store(history=20)
    for index in range(1, 4):
        made.create(node(f"node-{index}", index))
    return made


@pytest.fixture
def server(store):
    with NodeServer(("127.0.0.1", 0), store, bookmark_seconds=0.1) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def connect(server):
    opened = []

    def one():
        opened.append(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5))
        return opened[-1]

    yield one
    for connection in opened:
        connection.close()


@pytest.fixture
def ask(connect):
    connection = connect()

    def request(method, path, body=None, kind="application/json", accept="application/json"):
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"Content-Type": kind, "Accept": accept})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    return request


@pytest.fixture
def watch(connect):
    def events(query):
        connection = connect()
        connection.request("GET", f"{NODES}?watch=1&{query}", headers={"Accept": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return (json.loads(line) for line in iter(response.readline, b""))

    return events


def node(name, index=9):
    return {
        "metadata": {"name": name},
        "spec": {"podCIDRs": [f"10.77.{index}.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": f"192.168.77.{index}"}],
            "nodeInfo": {"operatingSystem": "linux"},
        },
    }


def short(event):
    return event["type"], event["object"]["metadata"].get("name")


def test_a_list_has_what_a_client_needs(ask, store):
    code, listed = ask("GET", NODES)
    assert (code, listed["kind"], listed["metadata"]["resourceVersion"]) == (200, "NodeList", str(store.version))
    assert [each["metadata"]["name"] for each in listed["items"]] == ["node-1", "node-2", "node-3"]
    assert all({"uid", "resourceVersion", "creationTimestamp"} < each["metadata"].keys() for each in listed["items"])


def test_protobuf_alone_is_406_and_with_json_beside_it_json(ask):
    protobuf = "application/vnd.kubernetes.protobuf"
    code, status = ask("GET", NODES, accept=protobuf)
    assert (code, status["kind"], status["reason"]) == (406, "Status", "NotAcceptable")
    assert ask("GET", NODES, accept=f"{protobuf}, application/json")[0] == 200


def test_a_refused_request_with_a_body_does_not_spoil_the_connection(ask):
    assert ask("POST", NODES, node("x"), accept="application/vnd.kubernetes.protobuf")[0] == 406
    assert ask("GET", NODES)[0] == 200


def test_pages_end_without_a_token_and_have_every_node(ask, store):
    code, first = ask("GET", f"{NODES}?limit=2")
    store.delete("node-3")
    assert (code, first["metadata"]["remainingItemCount"]) == (200, 1)
    code, second = ask("GET", f"{NODES}?limit=2&continue={first['metadata']['continue']}")
    assert code == 200
    assert "continue" not in second["metadata"]
    assert second["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert [each["metadata"]["name"] for each in first["items"] + second["items"]] == ["node-1", "node-2", "node-3"]


def test_limit_is_ignored_with_version_0_as_kube_apiserver_does(ask):
    assert len(ask("GET", f"{NODES}?limit=1&resourceVersion=0")[1]["items"]) == 3


def test_a_token_of_a_compacted_list_is_410(ask, store):
    token = ask("GET", f"{NODES}?limit=1")[1]["metadata"]["continue"]
    store.compact()
    code, status = ask("GET", f"{NODES}?limit=1&continue={token}")
    assert (code, status["reason"]) == (410, "Expired")


def test_a_version_from_the_future_is_504(ask, store):
    path = f"{NODES}?resourceVersion={store.version + 100}&resourceVersionMatch=NotOlderThan"
    assert ask("GET", path)[0] == 504
    assert ask("GET", path.replace(str(store.version + 100), str(store.version)))[0] == 200


@pytest.mark.parametrize("query", ["labelSelector=a", "fieldSelector=spec.podCIDR=x", "limit=x", "continue=x"])
def test_what_is_not_understood_is_400_and_never_ignored(ask, query):
    assert ask("GET", f"{NODES}?{query}")[0] == 400


def test_unknown_paths_are_404_and_bad_bodies_400(ask):
    assert ask("GET", "/apis/networking.k8s.io/v1/servicecidrs")[0] == 404
    assert ask("POST", NODES, ["not", "an", "object"])[0] == 400
    assert ask("PATCH", f"{NODES}/node-1/status", {}, kind="text/plain")[0] == 415


def test_the_status_takes_a_strategic_merge_patch(ask):
    patch = {"status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "reason": "PynetRoutesReady"}]}}
    code, after = ask("PATCH", f"{NODES}/node-1/status", patch, kind=STRATEGIC)
    assert (code, after["status"]["conditions"][0]["reason"]) == (200, "PynetRoutesReady")
    assert ask("GET", f"{NODES}/node-1")[1] == after


def test_a_watch_from_a_version_gets_what_came_after_it(ask, watch, store):
    version = store.version
    store.delete("node-1")
    events = watch(f"resourceVersion={version}")
    assert short(next(events)) == ("DELETED", "node-1")
    ask("POST", NODES, node("node-4", 4))
    assert short(next(events)) == ("ADDED", "node-4")


def test_a_watch_without_a_version_begins_with_what_is_there(watch):
    events = watch("")
    assert [short(next(events)) for _ in range(3)] == [("ADDED", "node-1"), ("ADDED", "node-2"), ("ADDED", "node-3")]


def test_a_streaming_list_ends_with_the_bookmark_that_says_so(watch, store):
    events = watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
    assert [short(next(events))[0] for _ in range(3)] == ["ADDED"] * 3
    bookmark = next(events)
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert bookmark["object"]["metadata"]["resourceVersion"] == str(store.version)


def test_a_quiet_watch_gets_bookmarks_if_it_asked_for_them(watch, store):
    events = watch(f"resourceVersion={store.version}&allowWatchBookmarks=true")
    assert [next(events)["type"] for _ in range(2)] == ["BOOKMARK"] * 2


def test_a_watch_from_before_the_history_ends_with_an_error_event(watch, store):
    version = store.version
    store.create(node("node-4", 4))
    store.compact()
    events = list(watch(f"resourceVersion={version}"))
    assert [(event["type"], event["object"]["code"], event["object"]["reason"]) for event in events] == [
        ("ERROR", 410, "Expired")
    ]


def test_a_watch_ends_when_its_time_is_up(watch, store):
    began = time.monotonic()
    assert list(watch(f"resourceVersion={store.version}&timeoutSeconds=1")) == []
    assert 0.9 < time.monotonic() - began < 3


def test_a_watch_of_one_node_gets_no_other(watch, store):
    events = watch("fieldSelector=metadata.name%3Dnode-2")
    assert short(next(events)) == ("ADDED", "node-2")
    store.delete("node-1")
    store.delete("node-2")
    assert short(next(events)) == ("DELETED", "node-2")


class TestAgentsWatcher:
    """The agent's own NodeWatch against the lab's Node API: its JSON fall-back, in pages."""

    @pytest.fixture
    def seen(self, server):
        woken = threading.Event()
        inbox = NodeInbox(woken.set)
        api = Api(from_token_files(f"http://127.0.0.1:{server.server_port}", None, None))
        watcher = NodeWatch(api, inbox, "node-1", log=structlog.get_logger(), timing=Timing(backoff=(0.01, 0.05)))
        watcher.start()
        nodes = {}

        def now():
            listed, changed = inbox.drain()
            if listed is not None:
                assert listed.complete
                nodes.clear()
                nodes.update({name: facts.pod_cidrs for name, facts in listed.nodes.items()})
            for name, history in changed.items():
                facts = history[-1].facts
                nodes.pop(name, None) if facts is None else nodes.update({name: facts.pod_cidrs})
            return nodes

        yield now
        watcher.stop()
        api.close()

    def test_it_sees_the_list_and_every_change(self, seen, ask, store):
        want = {f"node-{index}": (f"10.77.{index}.0/24",) for index in (1, 2, 3)}
        until(lambda: seen() == want, "the list")
        ask("POST", NODES, node("node-4", 4))
        until(lambda: seen() == want | {"node-4": ("10.77.4.0/24",)}, "a node added")
        ask("DELETE", f"{NODES}/node-4")
        ask("DELETE", f"{NODES}/node-2")
        until(lambda: seen() == {name: want[name] for name in ("node-1", "node-3")}, "nodes deleted")

    def test_more_than_a_page_is_whole(self, store, seen):
        for index in range(250):
            store.create(node(f"many-{index}", 9))
        until(lambda: len(seen()) == 253, "all nodes")

    def test_it_comes_back_after_a_compaction(self, seen, store, server):
        until(seen, "the list")
        for index in range(30):  # more than the history: a watch that starts again is 410
            store.create(node(f"many-{index}", 9))
        store.compact()
        store.delete("node-3")
        until(lambda: len(seen()) == 32, "the list after the compaction")
