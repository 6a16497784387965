"""Whoever reads the log or the Events learns when and why a node is not ready."""

from __future__ import annotations

import pytest
import structlog
from pynet.commands.agent.herald import Herald
from pynet.report.readiness import Readiness

READY = Readiness(True, (), ())


def unready(*reasons: str) -> Readiness:
    return Readiness(False, reasons, ())


class Notes:
    def __init__(self) -> None:
        self.events: list[tuple[str, str, bool]] = []

    def own(self, uid: str, reason: str, message: str, *, normal: bool = False) -> None:
        self.events.append((reason, message, normal))


class Stage:
    def __init__(self, event_after: float, uid: str = "u") -> None:
        self.verdict = READY
        self.notes = Notes()
        self.lines: list[dict] = []
        log = structlog.wrap_logger(structlog.ReturnLogger(), processors=[self._record])
        self.herald = Herald(lambda: self.verdict, lambda: uid, self.notes, log, event_after=event_after)

    def _record(self, _logger, method, line):
        self.lines.append({"level": method, **line})
        raise structlog.DropEvent

    def look(self, verdict: Readiness) -> None:
        self.verdict = verdict
        self.herald.look()


def test_each_change_is_logged_once_with_its_reasons():
    stage = Stage(event_after=60)
    for verdict in (unready("no list"), unready("no list"), unready("no rules"), READY, READY, unready("no rules")):
        stage.look(verdict)
    told = [(line["event"], line.get("reasons")) for line in stage.lines]
    assert told == [
        ("not_ready", ["no list"]),
        ("not_ready", ["no rules"]),
        ("became_ready", None),
        ("not_ready", ["no rules"]),
    ]


def test_a_short_trouble_is_no_event():
    stage = Stage(event_after=60)
    stage.look(unready("no list"))
    stage.look(READY)
    assert stage.notes.events == []


def test_lasting_trouble_is_told_as_an_event_and_so_is_its_end():
    stage = Stage(event_after=0)
    stage.look(unready("nft: not found", "conflist: no"))
    stage.look(READY)
    assert stage.notes.events[0] == ("PynetNotReady", "nft: not found; conflist: no", False)
    assert [(reason, normal) for reason, _, normal in stage.notes.events][1:] == [("PynetReady", True)]


def test_without_our_nodes_uid_nothing_can_be_told():
    stage = Stage(event_after=0, uid="")
    stage.look(unready("no list"))
    assert stage.notes.events == []


def test_a_defect_does_not_end_the_thread():
    stage = Stage(event_after=60)
    looks = iter([RuntimeError("defect"), READY])

    def readiness():
        step = next(looks, READY)
        if isinstance(step, Exception):
            raise step
        stage.herald.stop()
        return step

    stage.herald._readiness = readiness
    stage.herald.start()
    stage.herald.join(10)
    assert not stage.herald.is_alive()
    assert [line["event"] for line in stage.lines] == ["herald_crashed", "became_ready"]


@pytest.mark.parametrize("length", [5000])
def test_the_event_is_kept_short(length):
    stage = Stage(event_after=0)
    stage.look(unready("x" * length))
    assert len(stage.notes.events[0][1]) <= 900
