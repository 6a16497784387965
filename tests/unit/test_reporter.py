"""What is noted of peers after a pass, and which news about them become Events."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import structlog
from pynet.commands.agent.reporter import Reporter
from pynet.core.desired import Fault, Verdict
from pynet.core.fights import Fights
from pynet.core.model import Prefix, Route
from pynet.loop import PassReport
from pynet.observe.facts import Observed
from pynet.observe.inbox import NodeInbox
from pynet.report.metrics import Metrics

PEER = ("a", 4)


class Notes:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def peer(self, name, _uid, _family, *, state, reason, agents) -> None:
        assert reason or state == "programmed"
        assert agents == 50
        self.told.append((name, state))


def told(*states: str) -> list[tuple[str, str]]:
    reporter = Reporter(Metrics(), NodeInbox(lambda: None), lambda: "", structlog.get_logger())
    reporter.events = notes = Notes()
    reporter._tell([((f"n{i}", 4), f"u{i}", state, "why") for i, state in enumerate(states)], agents=50)
    return notes.told


def test_each_bad_peer_is_told_and_so_is_each_that_is_well_again():
    assert told("unreachable", "rejected", "programmed") == [("n0", "unreachable"), ("n1", "rejected"), ("n2", "programmed")]


def test_many_unreachable_at_once_are_not_told_but_what_else_is_bad_is():
    assert told(*["unreachable"] * 30, "rejected", "programmed") == [("n30", "rejected"), ("n31", "programmed")]


def test_many_rejected_at_once_are_all_told():
    assert len(told(*["rejected"] * 30)) == 30


@pytest.mark.parametrize(
    ("state", "problems"), [("unreachable", ["IPv4 peers are unreachable, by no fault of theirs: no link"]), ("rejected", [])]
)
def test_a_fault_of_our_own_is_a_problem_once_it_costs_peers(state, problems):
    reporter = Reporter(Metrics(), NodeInbox(lambda: None), lambda: "", structlog.get_logger())
    reporter.board.put(("a", 4), state, "why")
    desired = SimpleNamespace(own_faults=lambda: {4: Fault("unreachable", "no link")})
    assert list(reporter._problems(SimpleNamespace(facts=SimpleNamespace(desired=desired)))) == problems


class Passes:
    """A loop that has just looked at everything: one accepted peer, in the kernel or not."""

    def __init__(self) -> None:
        prefix = Prefix(bytes((10, 244, 1, 0)), 24)
        self.route = Route(prefix, 100, bytes((192, 0, 2, 1)), 3)
        verdict = Verdict("accepted", "", prefix, self.route.gateway, "uid")
        desired = SimpleNamespace(
            changed=set(), verdicts={PEER: verdict}, owners={prefix: PEER}, routes={prefix: self.route},
            own=SimpleNamespace(addresses=()), nodes={"a": None}
        )  # fmt: skip
        self.fib = SimpleNamespace(routes={prefix: (self.route,)})
        self.loop = SimpleNamespace(
            facts=SimpleNamespace(desired=desired, fib=self.fib), examined=None, rivals={}, fights=Fights(),
            writer=SimpleNamespace(failures={}),
        )  # fmt: skip
        self.reporter = Reporter(Metrics(), NodeInbox(lambda: None), lambda: "", structlog.get_logger())
        self.reporter.attach(self.loop, None)

    def passed(self, *, verified: bool = True, operations: int = 0) -> str:
        """End a pass; returns the peer's state on the board."""
        report = PassReport(time.time(), 0.01, "resync", operations, verified)
        self.reporter.passed(Observed(), report, set())
        return next((state for (_, state), count in self.reporter.board.counts.items() if count), "")


def test_a_resync_that_finds_all_as_before_looks_at_no_peer():
    passes = Passes()
    passes.loop.facts.desired.changed = {PEER}
    assert passes.passed() == "programmed"
    passes.reporter._outcome = None  # to be called is to fail
    assert passes.passed() == "programmed"


def test_a_decision_that_changed_is_noted_by_a_resync_that_finds_all_well():
    passes = Passes()
    passes.passed(operations=1)
    passes.loop.facts.desired.changed = {PEER}
    passes.loop.facts.desired.verdicts[PEER] = Verdict("rejected", "why")
    assert passes.passed() == "rejected"


@pytest.mark.parametrize("trouble", ["unverified", "operations", "rival", "failure", "fight"])
def test_each_kind_of_trouble_has_all_peers_noted(trouble):
    passes = Passes()
    passes.passed(operations=1)
    prefix, route, loop = passes.route.prefix, passes.route, passes.loop
    passes.fib.routes[prefix] = ()
    want = "pending"
    if trouble == "rival":
        loop.rivals = {prefix: (route._replace(protocol=4), True)}
        loop.facts.desired.host = SimpleNamespace(link_name=lambda _index: "eth0")
        want = "conflict"
    elif trouble == "failure":
        loop.writer.failures = {prefix: "refused"}
        want = "failed"
    elif trouble == "fight":
        for _ in range(50):
            loop.fights.repaired(prefix, time.monotonic())
        want = "failed"
    assert passes.passed(verified=trouble != "unverified", operations=int(trouble == "operations")) == want


@pytest.mark.parametrize("state", ["pending", "failed", "conflict"])
def test_a_peer_that_was_in_trouble_is_seen_to_be_well_again(state):
    passes = Passes()
    passes.reporter.board.put(PEER, state, "why", uid="uid")
    assert passes.passed() == "programmed"
