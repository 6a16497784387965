"""Which news about peers become Events."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import structlog
from pynet.commands.agent.reporter import Reporter
from pynet.core.desired import Fault
from pynet.observe.inbox import NodeInbox
from pynet.report.metrics import Metrics


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
