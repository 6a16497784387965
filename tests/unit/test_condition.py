"""NetworkUnavailable=False is written when it is not there, retried until accepted, kept, and fought for with patience."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from pynet.apply.condition import CONTENT_TYPE, RIGHT, NodeCondition, body_for
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api

from tests.support.fake_api import Exchange, FakeApi
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

NODE = "/api/v1/nodes/n0"
OTHER = ("True", "NodeInitialization")


class Bench:
    """A server that takes patches, and the condition of its Node n0."""

    def __init__(self, fake: FakeApi) -> None:
        self.fake = fake
        self.results: list[str] = []
        self.show(None)
        fake.others[f"{NODE}/status"] = {}
        self.api = Api(from_token_files(fake.url))
        self.now = 1000.0
        self.repairs: list[tuple[str, float]] = []
        self.condition = NodeCondition(
            self.api,
            "n0",
            lambda _, error: self.results.append(error),
            lambda *repair: self.repairs.append(repair),
            clock=lambda: self.now,
        )

    def show(self, seen: tuple[str, str] | None) -> None:
        """What a GET of the Node says."""
        conditions = [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]
        if seen:
            conditions.append({"type": "NetworkUnavailable", "status": seen[0], "reason": seen[1]})
        self.fake.others[NODE] = {"status": {"conditions": conditions}}

    @property
    def patches(self) -> list[dict[str, Any]]:
        return [json.loads(request.body)["status"]["conditions"][0] for request in self.fake.asked("patch")]

    def settle(self) -> None:
        until(self.condition._applier.idle, "idle")


@pytest.fixture
def bench() -> Iterator[Bench]:
    with FakeApi() as fake:
        made = Bench(fake)
        yield made
        assert made.condition.stop(5)
        made.api.close()


def refuse(code: int, reason: str, message: str, exchange: Exchange) -> None:
    exchange.refuse(code, reason, message)


def test_the_patch_says_false_with_our_reason_and_a_transition_only_where_there_is_one() -> None:
    absent = body_for(None, 1_700_000_000.9)
    assert absent == {
        "status": {
            "conditions": [
                {
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": "PynetRoutesReady",
                    "message": "pynet has made and verified the routes to the other nodes' pods",
                    "lastHeartbeatTime": "2023-11-14T22:13:20Z",
                    "lastTransitionTime": "2023-11-14T22:13:20Z",
                }
            ]
        }
    }
    assert body_for(OTHER, 1_700_000_000) == absent
    assert "lastTransitionTime" not in body_for(("False", "CalicoIsUp"), 0)["status"]["conditions"][0]


@pytest.mark.parametrize("seen", [None, OTHER, ("Unknown", "NodeStatusUnknown"), ("False", "CalicoIsUp"), ("True", RIGHT[1])])
def test_it_is_written_once_where_it_is_not_right(bench: Bench, seen: tuple[str, str] | None) -> None:
    for _ in range(3):
        bench.condition.observe(seen)
    bench.settle()
    assert [(patch["status"], patch["reason"]) for patch in bench.patches] == [RIGHT]
    [request] = bench.fake.asked("patch")
    assert request.path == f"{NODE}/status"
    assert request.headers["content-type"] == CONTENT_TYPE
    assert bench.condition.ok
    assert bench.results == [""]


def test_what_is_right_is_not_written(bench: Bench) -> None:
    bench.condition.observe(RIGHT)
    bench.settle()
    bench.condition.resync()
    bench.settle()
    assert bench.fake.requests == []
    assert bench.condition.ok


def test_nothing_is_written_before_it_is_asked_for(bench: Bench) -> None:
    bench.condition.resync()
    assert not bench.condition.ok
    assert bench.fake.requests == []
    assert "applier-condition" not in [thread.name for thread in threading.enumerate()]


def test_it_is_tried_again_until_it_is_accepted(bench: Bench) -> None:
    bench.fake.script(
        "patch",
        partial(refuse, 500, "InternalError", "etcd is away"),
        Exchange.reset,
        partial(refuse, 403, "Forbidden", "nodes n0 is forbidden"),
    )
    bench.condition.observe(None)
    until(lambda: bench.condition.ok, "accepted", seconds=30)
    assert len(bench.patches) == 4
    assert bench.results[0] == "NetworkUnavailable not set: 500: etcd is away"
    assert bench.results[-2:] == [
        "NetworkUnavailable not set: we may not patch nodes/status (RBAC, or an admission policy): nodes n0 is forbidden",
        "",
    ]


def test_a_node_that_is_not_there_is_a_reason(bench: Bench) -> None:
    del bench.fake.others[f"{NODE}/status"]
    bench.condition.observe(None)
    until(lambda: bench.condition.error == "NetworkUnavailable not set: there is no Node 'n0'", "reason")
    bench.fake.others[f"{NODE}/status"] = {}
    until(lambda: bench.condition.ok, "accepted", seconds=30)


def test_a_late_watch_does_not_make_it_write_again(bench: Bench) -> None:
    bench.condition.observe(None)
    bench.settle()
    bench.show(RIGHT)
    bench.condition.observe(None)  # a heartbeat from before our patch
    bench.condition.resync()  # and the watch still has nothing: the server is asked, and has it
    bench.settle()
    assert len(bench.patches) == 1
    assert [request.path for request in bench.fake.asked("get")] == [NODE]
    assert bench.condition.ok


def test_somebody_quicker_than_the_watch_is_found_at_resync(bench: Bench) -> None:
    bench.condition.observe(OTHER)
    bench.settle()
    bench.show(OTHER)  # set again before the watch had shown ours
    bench.condition.resync()
    bench.settle()
    assert len(bench.patches) == 2


def test_it_is_put_back_when_somebody_changes_it(bench: Bench) -> None:
    for seen in (None, RIGHT, OTHER, RIGHT):
        bench.condition.observe(seen)
        bench.settle()
    assert len(bench.patches) == 2
    assert bench.condition.ok
    assert bench.repairs == [("status True, reason NodeInitialization", 0.0)]  # the first time was none


def test_another_controller_that_fights_is_named_and_met_with_patience(bench: Bench) -> None:
    for fights in range(1, 5):
        bench.condition.observe(OTHER)
        until(lambda fights=fights: len(bench.patches) == fights, "asserted at once")
        bench.settle()
        bench.condition.observe(RIGHT)
        bench.settle()
    bench.condition.observe(OTHER)
    until(lambda: not bench.condition.ok, "told")
    assert bench.condition.error == (
        "another controller keeps setting NetworkUnavailable (status True, reason NodeInitialization): "
        "put back 4 times, now only after 1 s"
    )
    assert len(bench.patches) == 4
    bench.now += 1.1
    until(lambda: bench.condition.ok, "asserted again", seconds=30)
    assert len(bench.patches) == 5
