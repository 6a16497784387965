"""The Node watcher against a server that fails in every way: what it records, how it comes back, that it never spins."""

from __future__ import annotations

import gzip
import json
import random
import socket
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import pytest
import structlog
from pynet.core.model import NodeFacts
from pynet.drivers import credentials as creds
from pynet.drivers.credentials import Access, Credentials
from pynet.drivers.kube import Api
from pynet.observe.backoff import Backoff
from pynet.observe.inbox import NodeInbox, NodeList
from pynet.observe.nodes import RESTARTS, NodeWatch, Timing
from structlog.testing import CapturingLogger

from tests.support import kubeproto
from tests.support.fake_api import JSON, PROTOBUF, Exchange, FakeApi, encode
from tests.support.nodes import node
from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

QUICK = Timing(silence=5.0, list_silence=5.0, settled=0.3, watch=(300, 600), backoff=(0.01, 0.1))


class Loop:
    """What the loop would know: lists and changes taken from the inbox, applied in order."""

    def __init__(self) -> None:
        self.inbox = NodeInbox(self._drain)
        self.nodes: dict[str, NodeFacts] = {}
        self.lists: list[NodeList] = []
        self.changes: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def _drain(self) -> None:
        with self._lock:
            listed, changed = self.inbox.drain()
            if listed is not None:
                self.lists.append(listed)
                self.nodes = dict(listed.nodes)
            for name, history in changed.items():
                for change in history:
                    self.changes.append((name, change.uid if change.facts is None else "put"))
                    if change.facts is None:
                        self.nodes.pop(name, None)
                    else:
                        self.nodes[name] = change.facts


class Watcher:
    """A NodeWatch, its loop, and what it said and counted."""

    def __init__(self, server: FakeApi | str, *, own: str = "own", timing: Timing = QUICK, source: Credentials | None = None):
        url = server if isinstance(server, str) else server.url
        self.loop = Loop()
        self.inbox = self.loop.inbox
        self.requests: Counter[tuple[str, str]] = Counter()
        self.restarts: list[str] = []
        self.said = CapturingLogger()
        self.api = Api(
            source or Credentials(lambda: Access(url)),
            on_request=lambda verb, code: self.requests.update([(verb, code)]),
        )
        self.watch = NodeWatch(
            self.api,
            self.inbox,
            own,
            log=structlog.wrap_logger(self.said, processors=[]),
            on_restart=self.restarts.append,
            timing=timing,
            rng=random.Random(1),
        )

    def __enter__(self) -> Self:
        self._start()
        return self

    def _start(self) -> None:
        if not self.watch.is_alive():
            self.watch.start()

    def __exit__(self, *_: object) -> None:
        self.watch.stop(5)
        assert not self.watch.is_alive()
        assert set(self.restarts) <= RESTARTS

    @property
    def names(self) -> set[str]:
        return set(self.loop.nodes)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [call.kwargs for call in self.said.calls if call.kwargs["event"] == name]

    def connected(self) -> Self:
        """Start it, and wait until it watches."""
        self._start()
        until(lambda: self.inbox.connected, "a watch is open")
        return self


@pytest.fixture(params=["protobuf", "json"])
def fake(request):
    with FakeApi(protobuf=request.param == "protobuf") as server:
        for name in ("own", "a", "b"):
            server.put(peer(name))
        yield server


@pytest.fixture
def binary():
    with FakeApi() as server:
        for name in ("own", "a", "b"):
            server.put(peer(name))
        yield server


def peer(name: str, address: str = "192.0.2.1", **changes) -> dict[str, Any]:
    return node(name, ["10.1.0.0/24"], [address], **changes)


# ---- lists and watches as they should be


def test_first_list_is_consistent_and_complete(fake):
    with Watcher(fake).connected() as watcher:
        (listed,) = watcher.loop.lists
        assert set(listed.nodes) == {"own", "a", "b"}
        assert (listed.consistent, listed.complete) == (True, True)
        assert listed.started <= listed.received <= time.monotonic()
        assert "resourceVersion" not in fake.asked("list")[0].query
        assert watcher.inbox.error == ""
        assert time.time() - watcher.inbox.last_contact < 60
        (said,) = watcher.events("nodes_listed")
        assert (said["nodes"], said["consistent"], said["own_node"]) == (3, True, True)


def test_cheapest_form_is_one_gzip_protobuf_list_without_limit(binary):
    with Watcher(binary).connected():
        (asked,) = binary.asked("list")
        assert (asked.headers["accept"], asked.headers["accept-encoding"]) == (PROTOBUF, "gzip")
        assert asked.query == {}


def test_list_without_our_own_node_is_not_complete(fake):
    with Watcher(fake, own="elsewhere").connected() as watcher:
        assert not watcher.loop.lists[0].complete


def test_watch_goes_on_from_the_list_with_bookmarks_and_a_random_end(fake):
    with Watcher(fake).connected():
        query = fake.asked("watch")[-1].query
        assert query["resourceVersion"] == str(fake.version)
        assert query["allowWatchBookmarks"] == "true"
        assert 300 <= int(query["timeoutSeconds"]) <= 600


def test_added_changed_and_deleted_nodes_are_told(fake):
    with Watcher(fake).connected() as watcher:
        uid = fake.put(peer("c"))["metadata"]["uid"]
        until(lambda: "c" in watcher.names, "c was added")
        fake.put(peer("c", "192.0.2.9"))
        until(lambda: watcher.loop.nodes["c"].internal_ips == ("192.0.2.9",), "c was moved")
        fake.delete("c")
        until(lambda: "c" not in watcher.names, "c is gone")
        assert watcher.loop.changes == [("c", "put"), ("c", "put"), ("c", uid)]
        assert len(watcher.loop.lists) == 1


def test_heartbeats_stop_in_the_watcher(fake):
    with Watcher(fake).connected() as watcher:
        for i in range(20):
            beat = peer("a")
            beat["status"]["conditions"][0]["lastHeartbeatTime"] = f"2026-01-01T00:00:{i:02}Z"
            fake.put(beat)
        fake.put(peer("a", "192.0.2.7"))
        until(lambda: watcher.loop.changes, "the change came through")
        assert watcher.loop.changes == [("a", "put")]


def test_node_deleted_and_created_again_is_told_with_both_uids(fake):
    with Watcher(fake).connected() as watcher:
        old = fake.nodes["a"]["metadata"]["uid"]
        fake.delete("a")
        new = fake.put(peer("a"))["metadata"]["uid"]
        until(lambda: len(watcher.loop.changes) == 2, "both changes")
        assert watcher.loop.changes == [("a", old), ("a", "put")]
        assert watcher.loop.nodes["a"].uid == new


def test_late_events_of_an_older_node_of_the_same_name_change_nothing(fake):
    with Watcher(fake).connected() as watcher:
        before = json.loads(json.dumps(fake.nodes["a"]))
        fake.delete("a")
        fake.put(peer("a", "192.0.2.8"))
        late = before | {"metadata": before["metadata"] | {"resourceVersion": str(fake.version - 1)}}
        fake.say("MODIFIED", late)
        fake.say("DELETED", late)
        fake.put(peer("last"))
        until(lambda: "last" in watcher.names, "the last event")
        assert watcher.loop.nodes["a"].internal_ips == ("192.0.2.8",)


def test_many_nodes_come_in_pages_where_there_is_no_protobuf():
    with FakeApi(protobuf=False) as server:
        names = {f"n{i}" for i in range(250)} | {"own"}
        for name in names:
            server.put(peer(name))
        with Watcher(server).connected() as watcher:
            assert watcher.names == names
            asked = [request.query for request in server.asked("list")]
            assert [query.get("limit") for query in asked] == [None, "100", "100", "100"]
            assert [query.get("continue") for query in asked[1:]] == [None, "100", "200"]
            assert watcher.requests[("list", "406")] == 1


@pytest.mark.parametrize("full", [False, True])
def test_server_that_answers_json_to_everything(full):
    def answer(exchange: Exchange) -> None:
        exchange.asked.headers["accept"] = JSON
        server.serve(exchange)

    with FakeApi() as server:
        server.put(peer("own", full=full))
        server.script("list", *[answer] * 3)
        server.script("watch", *[answer] * 3)
        with Watcher(server).connected() as watcher:
            server.put(peer("c"))
            until(lambda: watcher.names == {"own", "c"}, "c was added")


def test_node_of_10_mb_hurts_nobody(fake):
    fake.put(peer("large", annotations={"large": "x" * 10_000_000}))
    with Watcher(fake).connected() as watcher:
        assert watcher.names == {"own", "a", "b", "large"}
        fake.put(peer("large", "192.0.2.5", annotations={"large": "y" * 10_000_000}))
        fake.put(peer("c"))
        until(lambda: "c" in watcher.names, "the event behind it")
        assert watcher.loop.nodes["large"].internal_ips == ("192.0.2.5",)
        assert not watcher.events("node_refused")


def test_node_too_large_is_refused_said_and_hurts_nobody(fake):
    fake.put(peer("large", annotations={"large": "x" * (17 << 20)}))
    with Watcher(fake).connected() as watcher:
        assert watcher.names == {"own", "a", "b"}
        assert watcher.events("node_refused")
        assert all("bytes, more than" in why for why in watcher.inbox.unreadable.values())
        fake.put(peer("large", annotations={"large": "x" * (17 << 20)}))
        fake.put(peer("c"))
        until(lambda: "c" in watcher.names, "the event behind it")
        assert watcher.inbox.unreadable
        assert watcher.restarts == []


def test_node_that_can_be_read_again_is_no_longer_called_unreadable(binary):
    binary.put(peer("large", annotations={"large": "x" * (17 << 20)}))
    with Watcher(binary).connected() as watcher:
        assert list(watcher.inbox.unreadable) == ["large"]
        binary.put(peer("large"))
        until(lambda: "large" in watcher.names, "the event")
        assert watcher.inbox.unreadable == {}


def test_known_node_that_grows_too_large_keeps_its_facts(binary):
    with Watcher(binary).connected() as watcher:
        with binary._news:
            binary.nodes["a"]["metadata"]["annotations"]["large"] = "x" * (17 << 20)
        watcher.watch.relist()
        until(lambda: len(watcher.loop.lists) == 2, "the second list")
        assert watcher.loop.lists[1].nodes["a"] == watcher.loop.lists[0].nodes["a"]
        assert watcher.loop.lists[1].consistent


def test_node_without_name_hurts_nobody(fake):
    fake.put(peer(""))
    with Watcher(fake).connected() as watcher:
        assert watcher.names == {"own", "a", "b"}
        assert watcher.loop.lists[0].consistent
        fake.say("ADDED", peer("") | {"metadata": {"name": "", "resourceVersion": "999"}})
        fake.put(peer("c"))
        until(lambda: "c" in watcher.names, "the event behind it")


# ---- relist


def test_relist_breaks_the_watch_off_and_reads_the_latest_state(fake):
    with Watcher(fake).connected() as watcher:
        before = len(fake.asked("list"))
        began = time.monotonic()
        watcher.watch.relist()
        until(lambda: len(watcher.loop.lists) == 2, "the second list")
        assert time.monotonic() - began < 2
        assert watcher.loop.lists[1].started > began
        assert all("resourceVersion" not in request.query for request in fake.asked("list")[before:])
        watcher.connected()
        assert watcher.restarts == ["relist"]
        assert watcher.inbox.error == ""


def test_relist_during_a_list_makes_another_one_after_it(fake):
    inside, go_on = threading.Event(), threading.Event()

    def slow(exchange: Exchange) -> None:
        inside.set()
        go_on.wait(5)
        fake.serve(exchange)

    fake.script("list", slow)
    with Watcher(fake) as watcher:
        assert inside.wait(5)
        watcher.watch.relist()
        asked = time.monotonic()
        go_on.set()
        until(lambda: len(watcher.loop.lists) == 2, "two lists")
        assert watcher.loop.lists[0].started < asked < watcher.loop.lists[1].started


def test_relist_ends_a_wait(fake):
    down(fake)
    with Watcher(fake, timing=QUICK._replace(backoff=(30.0, 30.0))) as watcher:
        until(lambda: watcher.inbox.error, "it waits")
        up(fake)
        until(lambda: relist(watcher) or watcher.loop.lists, "a list, long before the wait is over", seconds=10)


def relist(watcher: Watcher) -> None:
    watcher.watch.relist()


def test_relist_that_fails_is_made_up_for_before_the_next_watch(fake):
    with Watcher(fake).connected() as watcher:
        watches = len(fake.asked("watch"))
        fake.script("list", *[lambda e: e.refuse(500, "InternalError", "etcd is away")] * 2)
        watcher.watch.relist()
        until(lambda: len(watcher.loop.lists) == 2, "the second list")
        watcher.connected()
        assert len(fake.asked("watch")) == watches + 1


# ---- older lists


def test_later_list_is_asked_for_as_at_least_as_new_as_what_was_seen(fake):
    with Watcher(fake).connected() as watcher:
        fake.put(peer("c"))
        until(lambda: "c" in watcher.names, "c was added")
        fake.compacted = fake.version + 1
        fake.end_watches()
        until(lambda: len(watcher.loop.lists) == 2, "the second list")
        query = fake.asked("list")[-1].query
        assert (query["resourceVersion"], query["resourceVersionMatch"]) == (str(fake.version), "NotOlderThan")
        assert watcher.loop.lists[1].consistent
        assert "gone" in watcher.restarts
        fake.compacted = 0


def test_server_that_lags_behind_is_asked_for_its_latest_state(fake):
    # 504 "too large resource version": after etcd was restored from a backup, no version seen before will ever be reached.
    with Watcher(fake).connected() as watcher:
        with fake._news:
            fake.version = 50
            fake._events.clear()
        fake.script("watch", lambda e: e.refuse(410, "Expired", "too old"))
        fake.end_watches()
        until(lambda: len(watcher.loop.lists) >= 3, "more lists")
        second, third = watcher.loop.lists[1:3]
        assert not second.consistent
        assert third.consistent
        watcher.connected()
        assert fake.asked("watch")[-1].query["resourceVersion"] == "50"
        assert "stale" in watcher.restarts


def test_older_list_than_what_was_seen_may_not_remove(fake):
    def stale(exchange: Exchange) -> None:
        with fake._news:
            version, fake.version = fake.version, 7
            exchange.asked.query.pop("resourceVersion", None)
        try:
            fake.serve(exchange)
        finally:
            fake.version = version

    with Watcher(fake).connected() as watcher:
        fake.script("list", stale)
        fake.script("watch", lambda e: e.refuse(410, "Expired", "too old"))
        fake.end_watches()
        until(lambda: len(watcher.loop.lists) >= 3, "more lists")
        assert [listed.consistent for listed in watcher.loop.lists[:3]] == [True, False, True]
        assert "resourceVersion" not in fake.asked("list")[-1].query


# ---- faults of the list


def down(server: FakeApi) -> None:
    server.script("list", *[lambda e: e.reset()] * 1000)


def up(server: FakeApi) -> None:
    server._faults["list"].clear()


def half_a_list(exchange: Exchange) -> None:
    data = gzip.compress(exchange.server.api.encoded_list())
    exchange.begin(PROTOBUF, Content_Encoding="gzip")
    exchange.chunk(data[: len(data) // 2])
    exchange.cut()


def truncated_gzip(exchange: Exchange) -> None:
    exchange.answer(200, gzip.compress(exchange.server.api.encoded_list())[:-20], PROTOBUF, Content_Encoding="gzip")


def truncated_protobuf(exchange: Exchange) -> None:
    exchange.answer(200, exchange.server.api.encoded_list()[:-20], PROTOBUF)


def malformed_protobuf(exchange: Exchange) -> None:
    exchange.answer(200, b"k8s\0\x12\x05\x0b\x0b\x0b\x0b\x0b", PROTOBUF)


def html(exchange: Exchange) -> None:
    exchange.answer(200, b"<html>please log in</html>", "text/html")


def bad_page(exchange: Exchange) -> None:
    exchange.answer(200, b'{"metadata": {"resourceVersion": "5"}, "items": [{"metada', JSON)


def silent_list(exchange: Exchange) -> None:
    exchange.begin(PROTOBUF)
    exchange.chunk(b"k8s\0")
    exchange.hang()


LIST_FAULTS = {
    "reset": (lambda e: e.reset(), "broken"),
    "closed": (lambda e: e.cut(), "broken"),
    "silent": (silent_list, "timeout"),
    "hung": (lambda e: e.hang(), "timeout"),
    "half": (half_a_list, "broken"),
    "gzip": (truncated_gzip, "broken"),
    "cut": (truncated_protobuf, "broken"),
    "html": (html, "malformed"),
    "401": (lambda e: e.refuse(401, "Unauthorized", "Unauthorized"), "unauthorized"),
    "403": (lambda e: e.refuse(403, "Forbidden", "nodes is forbidden"), "unauthorized"),
    "429": (lambda e: e.refuse(429, "TooManyRequests", "slow down"), "throttled"),
    "500": (lambda e: e.refuse(500, "InternalError", "etcd is away"), "error"),
    "503": (lambda e: e.answer(503, b"upstream connect error", "text/plain"), "error"),
    "redirect": (lambda e: e.answer(302, b"", Location="http://198.51.100.1/"), "error"),
}


@pytest.mark.parametrize("fault", LIST_FAULTS)
def test_fault_of_a_list_is_counted_and_got_over(binary, fault):
    make, reason = LIST_FAULTS[fault]
    binary.script("list", make, make)
    with Watcher(binary, timing=QUICK._replace(list_silence=0.3)).connected() as watcher:
        assert watcher.names == {"own", "a", "b"}
        # What is no protobuf is asked for in JSON at once: the second fault meets with that.
        assert watcher.restarts == [reason] * (1 if reason == "malformed" else 2)
        assert watcher.inbox.error == ""
        assert len(watcher.loop.lists) == 1


def test_malformed_protobuf_falls_back_to_json_and_is_tried_again_later(binary):
    binary.script("list", malformed_protobuf)
    with Watcher(binary).connected() as watcher:
        assert watcher.names == {"own", "a", "b"}
        assert [request.headers["accept"] for request in binary.asked("list")] == [PROTOBUF, JSON]
        watcher.watch.relist()
        until(lambda: len(watcher.loop.lists) == 2, "the second list")
        assert binary.asked("list")[-1].headers["accept"] == PROTOBUF


def test_token_of_a_page_that_expires_begins_the_list_anew():
    with FakeApi(protobuf=False) as server:
        for i in range(150):
            server.put(peer(f"n{i}"))

        def expire_second_page(exchange: Exchange) -> None:
            if exchange.asked.query.get("continue"):
                exchange.refuse(410, "Expired", "the provided continue parameter is too old")
            else:
                server.serve(exchange)

        server.script("list", server.serve, server.serve, expire_second_page)
        with Watcher(server).connected() as watcher:
            assert len(watcher.names) == 150
            assert [request.query.get("continue") for request in server.asked("list")][1:] == [None, "100", None, "100"]
            assert watcher.restarts == []


@pytest.mark.parametrize("fault", [bad_page, html, lambda e: e.reset()])
def test_fault_of_a_json_page_is_got_over(fault):
    with FakeApi(protobuf=False) as server:
        server.put(peer("own"))
        server.script("list", server.serve, fault)
        with Watcher(server).connected() as watcher:
            assert watcher.names == {"own"}
            assert len(watcher.restarts) == 1


def test_json_pages_too_large_are_asked_for_in_smaller_ones(monkeypatch):
    monkeypatch.setattr("pynet.drivers.nodeapi._PAGE_LIMIT", 100_000)
    with FakeApi(protobuf=False) as server:
        for i in range(12):
            server.put(peer(f"n{i}", annotations={"large": "x" * 30_000}))
        with Watcher(server).connected() as watcher:
            assert len(watcher.names) == 12
            limits = [request.query.get("limit") for request in server.asked("list")][1:]
            assert limits[:6] == ["100", "10", "1", "10", "1", "10"]


def test_json_node_too_large_for_a_page_of_its_own_is_passed_over(monkeypatch):
    monkeypatch.setattr("pynet.drivers.nodeapi._PAGE_LIMIT", 100_000)
    monkeypatch.setattr("pynet.drivers.nodeapi.NODE_LIMIT", 200_000)
    with FakeApi(protobuf=False) as server:
        for i in range(5):
            server.put(peer(f"n{i}", annotations={"large": "x" * (300_000 if i == 2 else 1000)}))
        with Watcher(server).connected() as watcher:
            assert watcher.names == {"n0", "n1", "n3", "n4"}
            assert len(watcher.events("node_refused")) == 1
            assert not watcher.loop.lists[0].consistent  # whose Node it is, nobody knows


def test_list_that_drips_for_ever_is_given_up(fake, monkeypatch):
    monkeypatch.setattr("pynet.drivers.nodeapi._LIST_DEADLINE", 0.3)

    def drip(exchange: Exchange) -> None:
        exchange.begin(PROTOBUF if exchange.speaks_protobuf else JSON)
        data = exchange.server.api.encoded_list()
        for at in range(len(data)):
            exchange.chunk(data[at : at + 1])
            time.sleep(0.05)

    fake.script("list", *([fake.serve] if not fake.protobuf else []), drip)
    with Watcher(fake).connected() as watcher:
        assert watcher.restarts == ["timeout"]


# ---- faults of the watch


def cut_in_a_frame(exchange: Exchange) -> None:
    exchange.begin(PROTOBUF)
    exchange.chunk(kubeproto.frame("ADDED", peer("x"))[:-7])
    exchange.finish_chunks()


def cut_in_a_chunk(exchange: Exchange) -> None:
    exchange.begin(PROTOBUF)
    exchange.wfile.write(b"ffff\r\nabc")
    exchange.cut()


def bad_chunk(exchange: Exchange) -> None:
    exchange.begin(PROTOBUF)
    exchange.wfile.write(b"zz\r\nabc\r\n")
    exchange.cut()


def bad_frame(exchange: Exchange) -> None:
    exchange.begin(PROTOBUF)
    exchange.chunk(b"\0\0\0\x04\x0b\x0b\x0b\x0b")
    exchange.hang()


def error_event(code: int) -> Any:
    def fault(exchange: Exchange) -> None:
        exchange.begin(PROTOBUF)
        exchange.chunk(encode(exchange, "ERROR", {"code": code, "reason": "R", "message": "words"}))
        exchange.hang()

    return fault


def quiet(exchange: Exchange) -> None:
    exchange.begin(PROTOBUF)
    exchange.hang()


WATCH_FAULTS = {
    "reset": (lambda e: e.reset(), "broken", 1),
    "hung": (lambda e: e.hang(), "timeout", 1),
    "quiet": (quiet, "timeout", 1),
    "frame": (cut_in_a_frame, "broken", 1),
    "chunk": (cut_in_a_chunk, "broken", 1),
    "size": (bad_chunk, "broken", 1),
    "bad": (bad_frame, "malformed", 2),
    "html": (html, "malformed", 2),
    "410": (lambda e: e.refuse(410, "Expired", "too old"), "gone", 2),
    "410 event": (error_event(410), "gone", 2),
    "500 event": (error_event(500), "error", 1),
    "429 event": (error_event(429), "throttled", 1),
    "401": (lambda e: e.refuse(401, "Unauthorized", "Unauthorized"), "unauthorized", 1),
    "403": (lambda e: e.refuse(403, "Forbidden", "may not watch"), "unauthorized", 1),
    "429": (lambda e: e.refuse(429, "TooManyRequests", "slow down"), "throttled", 1),
    "500": (lambda e: e.refuse(500, "InternalError", "etcd is away"), "error", 1),
}


@pytest.mark.parametrize("fault", WATCH_FAULTS)
def test_fault_of_a_watch_is_counted_and_got_over(binary, fault):
    make, reason, lists = WATCH_FAULTS[fault]
    binary.script("watch", make)
    with Watcher(binary, timing=QUICK._replace(silence=0.3)) as watcher:
        until(lambda: watcher.restarts, "the fault")
        binary.bookmark_seconds = 0.05
        watcher.connected()
        binary.put(peer("c"))
        until(lambda: "c" in watcher.names, "events come again")
        assert watcher.restarts == [reason]
        assert len(watcher.loop.lists) == lists


def test_bookmarks_keep_a_quiet_watch_alive_and_move_it_on(fake):
    fake.bookmark_seconds = 0.05
    with Watcher(fake, timing=QUICK._replace(silence=0.5)).connected() as watcher:
        with fake._news:
            fake.version = 5000
        until(lambda: watcher.watch._mirror.version == "5000", "a bookmark")
        time.sleep(0.8)
        assert watcher.restarts == []


def test_watch_that_ends_in_order_goes_on_where_it_was_without_list_or_wait(fake):
    timing = QUICK._replace(backoff=(20.0, 20.0))
    with Watcher(fake, timing=timing).connected() as watcher:
        for turn in range(2):
            seen = fake.put(peer("c", f"192.0.2.{turn + 1}"))["metadata"]["resourceVersion"]
            until(lambda seen=seen: watcher.watch._mirror.version == seen, "c")
            time.sleep(timing.settled)
            fake.end_watches()
            until(lambda seen=seen: fake.asked("watch")[-1].query["resourceVersion"] == seen, "another watch", seconds=5)
        assert len(fake.asked("watch")) == 3
        assert len(watcher.loop.lists) == 1
        assert watcher.restarts == ["closed"] * 2


def test_server_that_ends_every_watch_at_once_is_not_asked_in_a_loop(fake):
    def ends(exchange: Exchange) -> None:
        exchange.begin(PROTOBUF if exchange.speaks_protobuf else JSON)
        exchange.finish_chunks()

    fake.script("watch", *[ends] * 1000)
    with Watcher(fake, timing=QUICK._replace(backoff=(0.05, 5.0), settled=5.0)):
        until(lambda: fake.asked("watch"), "the first")
        time.sleep(1.0)
        assert 2 <= len(fake.asked("watch")) <= 12


def test_server_that_breaks_every_list_is_not_asked_in_a_loop(fake):
    down(fake)
    with Watcher(fake, timing=QUICK._replace(backoff=(0.05, 5.0))):
        until(lambda: fake.asked("list"), "the first")
        time.sleep(1.0)
        assert 2 <= len(fake.asked("list")) <= 15


def test_watch_that_lasted_makes_waits_short_again(binary):
    binary.script("list", *[lambda e: e.refuse(500, "InternalError", "etcd is away")] * 8)
    with Watcher(binary, timing=QUICK._replace(settled=0.1)).connected() as watcher:
        assert watcher.watch._backoff._state.attempt_number == 9
        time.sleep(0.2)
        binary.script("watch", lambda e: e.refuse(500, "InternalError", "etcd is away"))
        binary.end_watches()
        until(lambda: len(watcher.restarts) == 10, "the end, and another failure")
        assert watcher.watch._backoff._state.attempt_number == 2


def test_retry_after_is_obeyed(binary):
    binary.script("list", lambda e: e.refuse(429, "TooManyRequests", "slow down", 1))
    began = time.monotonic()
    with Watcher(binary).connected():
        assert time.monotonic() - began >= 1.0


# ---- the server comes and goes


def test_server_that_is_away_at_the_start_is_found_when_it_comes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Watcher(f"http://127.0.0.1:{port}") as watcher:
        until(lambda: watcher.restarts, "it is not there")
        assert watcher.restarts[0] == "refused"
        assert "Connection refused" in watcher.inbox.error
        assert (watcher.inbox.connected, watcher.inbox.last_contact, watcher.inbox.unauthorized_since) == (False, 0.0, None)
    assert watcher.requests[("list", "refused")] >= 1


def test_same_failure_again_and_again_is_one_line_in_the_log(fake):
    down(fake)
    with Watcher(fake) as watcher:
        until(lambda: len(watcher.restarts) > 5, "several failures")
        assert len(watcher.events("watch_restarted")) == 1


def test_refusals_are_timed_until_the_first_success(fake, tmp_path: Path):
    path = tmp_path / "token"
    path.write_text("bad")
    fake.tokens = {"good"}
    with Watcher(fake, source=creds.from_token_files(fake.url, path)) as watcher:
        since = until(lambda: watcher.inbox.unauthorized_since, "401")
        until(lambda: len(watcher.restarts) > 3, "several")
        assert watcher.inbox.unauthorized_since == since
        assert watcher.inbox.error == "401: Unauthorized: our credentials are not, or no longer, accepted"
        path.write_text("good")
        watcher.connected()
        assert watcher.inbox.unauthorized_since is None
        assert {request.token for request in fake.requests} == {"bad", "good"}


def test_failures_of_the_server_do_not_count_as_refusals(fake):
    fake.script("list", *[lambda e: e.refuse(503, "ServiceUnavailable", "later")] * 3)
    with Watcher(fake).connected() as watcher:
        assert watcher.inbox.unauthorized_since is None
        assert watcher.restarts == ["error"] * 3


def test_nothing_secret_is_said(fake, tmp_path):
    path = tmp_path / "token"
    path.write_text("s3cr3t")
    fake.script("list", *[make for make, _ in LIST_FAULTS.values() if make is not silent_list])
    with Watcher(fake, timing=QUICK._replace(list_silence=0.2), source=creds.from_token_files(fake.url, path)) as watcher:
        watcher.connected()
        assert "s3cr3t" not in repr(watcher.said.calls)


# ---- the thread


@pytest.mark.parametrize("where", ["watching", "listing", "waiting"])
def test_stop_is_prompt_wherever_the_thread_is(fake, where):
    inside = threading.Event()
    if where == "listing":
        fake.script("list", lambda e: (inside.set(), e.hang()))
    if where == "waiting":
        fake.script("list", lambda e: (inside.set(), e.refuse(500, "InternalError", "no")))
    watcher = Watcher(fake, timing=QUICK._replace(backoff=(30.0, 30.0), list_silence=30.0, silence=90.0))
    watcher.watch.start()
    if where == "watching":
        watcher.connected()
    else:
        assert inside.wait(5)
    began = time.monotonic()
    watcher.watch.stop(5)
    assert not watcher.watch.is_alive()
    assert time.monotonic() - began < 1


def test_bug_in_the_thread_is_logged_counted_and_survived(fake, monkeypatch):
    watcher = Watcher(fake)
    take, bugs = watcher.watch._mirror.take, [ZeroDivisionError("a bug")]

    def broken(*arguments):
        if bugs:
            raise bugs.pop()
        return take(*arguments)

    monkeypatch.setattr(watcher.watch._mirror, "take", broken)
    with watcher:
        watcher.connected()
        fake.put(peer("c"))
        until(lambda: "c" in watcher.names, "the watcher lives")
        assert watcher.restarts == ["crash"]
        assert len(watcher.loop.lists) == 2
        assert watcher.events("node_watch_crashed")


def test_a_server_that_is_back_does_not_pay_for_the_time_it_was_away():
    for _ in range(20):
        backoff = Backoff(first=0.2, cap=30.0)
        for _ in range(40):
            assert backoff.next(answered=False) <= 10.0
        assert backoff.next(answered=True) <= 0.2


def test_waits_are_random_grow_and_begin_anew():
    def bounds(answered: bool) -> list[float]:
        waits = []
        for _ in range(40):
            one = Backoff(first=0.2, cap=30.0)
            waits.append([one.next(answered=answered) for _ in range(30)])
        return [max(column) for column in zip(*waits, strict=True)]

    patient, eager = bounds(True), bounds(False)
    assert patient[0] <= 0.2
    assert max(patient) <= 30
    assert patient[10] > 5
    assert eager[0] <= 0.2
    assert eager[8] < 1.5
    assert max(eager) <= 30
    again = Backoff(first=0.2, cap=30.0)
    for _ in range(30):
        again.next(answered=True)
    again.reset()
    assert again.next(answered=True) <= 0.2
    assert len({Backoff(first=0.2, cap=30.0).next(answered=True) for _ in range(10)}) > 1
