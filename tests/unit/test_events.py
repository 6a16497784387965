"""Events about bad peers: one for all agents, late rather than many, and never in the way."""

from __future__ import annotations

import json
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from pynet.apply import events as module
from pynet.apply.events import Events
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api

from tests.support.fake_api import Exchange, FakeApi
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PATH = "/api/v1/namespaces/default/events"


class Bench:
    """A server that takes Events, and an agent that posts them without patience."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.failures: list[str] = []
        self.made: list[Events] = []
        fake.others[PATH] = {}
        self.api = Api(from_token_files(fake.url))
        self.events = self.agent("n0")

    def agent(self, node: str, **options: Any) -> Events:
        made = Events(self.api, node, self.failures.append, **{"settle": 0.0, "pace": 0.01, **options})
        self.made.append(made)
        return made

    @property
    def posted(self) -> list[dict[str, Any]]:
        return [json.loads(request.body) for request in self.fake.asked("post")]

    def await_posts(self, count: int) -> list[dict[str, Any]]:
        until(lambda: len(self.posted) == count, f"{count} posts, not {len(self.posted)}")
        return self.posted


@pytest.fixture
def bench() -> Iterator[Bench]:
    with FakeApi() as fake:
        made = Bench(fake)
        yield made
        for events in made.made:
            assert events.stop(5)
        made.api.close()


def refuse(code: int, reason: str, message: str, exchange: Exchange) -> None:
    exchange.refuse(code, reason, message)


def tell(events: Events, state: str = "rejected", reason: str = "podCIDR 10.0.0.0/8 is too large", **more: Any) -> None:
    values: dict[str, Any] = {"name": "p1", "uid": "u1", "family": 4, "agents": 0, **more}
    events.peer(values.pop("name"), values.pop("uid"), values.pop("family"), state=state, reason=reason, **values)


def test_the_event_is_about_the_peer_and_says_who_saw_it(bench: Bench) -> None:
    tell(bench.events)
    [event] = bench.await_posts(1)
    assert event["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "p1", "uid": "u1"}
    assert (event["type"], event["reason"]) == ("Warning", "PeerRejected")
    assert event["message"] == "IPv4: podCIDR 10.0.0.0/8 is too large (seen by the agent of node n0)"
    assert event["metadata"]["namespace"] == "default"
    assert event["metadata"]["name"].startswith("p1.")
    assert event["source"] == {"component": "pynet", "host": "n0"}
    assert event["count"] == 1


def test_newer_words_replace_what_has_not_been_posted_yet(bench: Bench) -> None:
    events = bench.agent("n0", settle=0.3)
    tell(events, reason="no IPv4 InternalIP")
    tell(events, reason="podCIDR overlaps")
    [event] = bench.await_posts(1)
    assert event["message"] == "IPv4: podCIDR overlaps (seen by the agent of node n0)"
    tell(events, reason="podCIDR overlaps another")
    time.sleep(0.4)
    assert len(bench.posted) == 1


def test_all_agents_make_the_same_event_whatever_their_words(bench: Bench) -> None:
    for number in range(5):
        tell(bench.agent(f"n{number}"), reason=f"overlaps the network of eth{number}")
    assert len({event["metadata"]["name"] for event in bench.await_posts(5)}) == 1


@pytest.mark.parametrize("other", [{"uid": "u2"}, {"family": 6}, {"state": "unreachable"}])
def test_another_node_family_or_state_is_another_event(bench: Bench, other: dict[str, Any]) -> None:
    tell(bench.events)
    tell(bench.agent("n1"), **other)
    assert len({event["metadata"]["name"] for event in bench.await_posts(2)}) == 2


def test_the_event_that_another_agent_made_first_is_fine(bench: Bench) -> None:
    bench.fake.script("post", partial(refuse, 409, "AlreadyExists", "there is one"))
    tell(bench.events)
    until(lambda: bench.events.counts == (1, 0), "accepted")
    assert bench.failures == []


def test_a_verdict_is_told_once_however_often_it_is_repeated(bench: Bench) -> None:
    for number in range(50):
        tell(bench.events, reason=f"words {number}")
    tell(bench.events, uid="u2")
    assert [event["involvedObject"]["uid"] for event in bench.await_posts(2)] == ["u1", "u2"]


def test_states_that_are_no_trouble_are_not_told(bench: Bench) -> None:
    for state in ("programmed", "pending", "ignored", "accepted"):
        tell(bench.events, state)
    assert "events" not in [thread.name for thread in threading.enumerate()]
    assert bench.posted == []


def test_a_verdict_taken_back_before_it_is_due_is_not_told(bench: Bench) -> None:
    patient = bench.agent("n1", settle=0.3)
    tell(patient)
    tell(patient, "programmed")
    tell(patient, uid="u2")
    assert [event["involvedObject"]["uid"] for event in bench.await_posts(1)] == ["u2"]
    tell(patient)  # bad again: told
    bench.await_posts(2)


def test_another_bad_state_replaces_the_one_that_waits(bench: Bench) -> None:
    patient = bench.agent("n1", settle=0.3)
    tell(patient, "unreachable")
    tell(patient, "conflict")
    assert [event["reason"] for event in bench.await_posts(1)] == ["PeerRouteConflict"]
    assert patient.counts.dropped == 0


def test_jitter_grows_with_the_cluster(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def last(_low: float, high: float) -> float:
        asked.append(high)
        return high

    monkeypatch.setattr(module.random, "uniform", last)
    for number, agents in enumerate((1, 3, 5000, 100_000)):
        tell(bench.events, uid=f"u{number}", agents=agents)
    assert asked == [0.02, 0.06, 100.0, 300.0]
    assert [event["involvedObject"]["uid"] for event in bench.await_posts(2)] == ["u0", "u1"]


def test_the_queue_is_bounded_and_the_oldest_goes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUEUE", 10)
    slow = bench.agent("n1", settle=0.5, pace=0.0)
    for number in range(15):
        tell(slow, uid=f"u{number}")
    assert slow.counts.dropped == 5
    uids = {event["involvedObject"]["uid"] for event in bench.await_posts(10)}
    assert uids == {f"u{number}" for number in range(5, 15)}


def test_requests_keep_their_distance(bench: Bench) -> None:
    paced = bench.agent("n1", pace=0.1)
    began = time.monotonic()
    for number in range(5):
        tell(paced, uid=f"u{number}")
    bench.await_posts(5)
    assert time.monotonic() - began >= 0.4


def test_a_refusal_is_said_once_and_ends_the_trying(bench: Bench) -> None:
    bench.fake.script("post", *[partial(refuse, 403, "Forbidden", "events is forbidden")] * 3)
    slow = bench.agent("n1", settle=0.2)
    for number in range(5):
        tell(slow, uid=f"u{number}")
    until(lambda: slow.counts.dropped == 5, "dropped")
    tell(slow, uid="later")
    assert slow.counts.dropped == 6
    assert bench.failures == ["we may not create events in namespace default (RBAC): events is forbidden"]
    assert len(bench.posted) == 1
    assert not slow._queue


def test_an_api_server_in_trouble_is_asked_again_and_not_for_ever(bench: Bench) -> None:
    trouble = partial(refuse, 500, "InternalError", "etcd is away")
    bench.fake.script("post", trouble, Exchange.reset, partial(refuse, 429, "TooManyRequests", "later"))
    tell(bench.events)
    until(lambda: bench.events.counts == (1, 0), "accepted at last")
    assert len(bench.posted) == 4
    assert bench.failures == []
    bench.fake.script("post", *[trouble] * 5)
    tell(bench.events, uid="u2")
    until(lambda: bench.events.counts == (1, 1), "given up")
    assert len(bench.posted) == 9
    assert bench.failures == ["500: etcd is away"]


def test_what_the_server_does_not_take_is_dropped_and_the_next_one_goes(bench: Bench) -> None:
    bench.fake.script("post", *[partial(refuse, 422, "Invalid", "no such field")] * 2)
    for number in range(3):
        tell(bench.events, uid=f"u{number}")
    until(lambda: bench.events.counts == (1, 2), "the third")
    assert bench.failures == ["422: no such field"]


def test_own_events_are_told_once_in_a_while(bench: Bench) -> None:
    for _ in range(3):
        bench.events.own("own-uid", "PynetNotReady", "masquerade: nft is missing")
    bench.events.own("own-uid", "PynetReady", "ready", normal=True)
    first, second = sorted(bench.await_posts(2), key=lambda event: event["type"], reverse=True)
    assert first["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "n0", "uid": "own-uid"}
    assert (first["type"], first["reason"], second["type"]) == ("Warning", "PynetNotReady", "Normal")


def test_names_and_messages_fit_what_the_server_takes(bench: Bench) -> None:
    tell(bench.events, name="a" * 199 + "." + "b" * 53, reason="ü" * 3000)
    [event] = bench.await_posts(1)
    name = event["metadata"]["name"]
    assert len(name) <= 253
    assert ".." not in name
    assert name.startswith("a" * 199 + ".")
    assert len(event["message"].encode()) <= 1024


def test_what_is_due_is_not_held_up_by_what_is_due_later(bench: Bench) -> None:
    patient = bench.agent("n1", settle=60.0)
    tell(patient)
    patient.own("own-uid", "PynetNotReady", "why")
    assert [event["reason"] for event in bench.await_posts(1)] == ["PynetNotReady"]


def test_stopping_does_not_wait_for_what_is_due_later(bench: Bench) -> None:
    patient = bench.agent("n1", settle=60.0)
    tell(patient)
    began = time.monotonic()
    assert patient.stop(5)
    assert time.monotonic() - began < 1
    assert bench.posted == []
    tell(patient, uid="u9")
    assert patient.counts.dropped == 1
