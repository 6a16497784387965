"""docs/reference/logs.md names every event that the agent logs, at its level, with its fields, and every Kubernetes Event."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pynet
from pynet.apply.condition import REASON
from pynet.apply.events import REASONS

CODE = Path(pynet.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/reference/logs.md"
LEVELS = {"exception": "error"} | {level: level for level in ("debug", "info", "warning", "error", "critical")}
VARIABLE = {
    "route_{}": ("route_added", "route_replaced", "route_deleted"),
    "{}_watch_failed": ("masquerade_watch_failed", "forward_watch_failed"),
    "{}_events_lost": ("masquerade_events_lost", "forward_events_lost"),
}
GUARD = {  # what core.guard.Ruling names
    "warning": ("removal_held",),
    "info": ("removal_confirmed", "removal_no_longer_large", "held_routes_wanted_again"),
}
BY_HAND = {"library_logged", "log_lines_lost", "routes_changed"}  # a level or fields that only the running code knows


class Event(NamedTuple):
    name: str
    level: str
    fields: frozenset[str]


def names(first: ast.expr, level: str) -> tuple[str, ...]:
    if isinstance(first, ast.Constant):
        return (first.value,)
    if isinstance(first, ast.JoinedStr):
        text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in first.values)
        return VARIABLE[text]
    assert ast.unparse(first) == "ruling.event"
    return GUARD[level]


def logged() -> Iterator[Event]:
    for path in CODE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if ast.unparse(node.func.value).rpartition(".")[2] in {"log", "_log"}:
                level = LEVELS[node.func.attr]
                fields = frozenset(word.arg for word in node.keywords if word.arg and word.arg != "exc_info")
                for name in names(node.args[0], level):
                    yield Event(name, level, fields)


def rows_of(part: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:4]] for line in part.splitlines() if line.startswith("| `")]


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Level and fields by name."""
    rows = rows_of(PAGE.read_text().partition("\n## Kubernetes Events\n")[0])
    found = {name.strip("`"): (level, frozenset(re.findall(r"`(\w+)`", fields))) for name, level, fields in rows}
    assert len(found) == len(rows), "none twice"
    return found


def test_every_event_is_on_the_page_and_no_other():
    assert {event.name for event in logged()} | BY_HAND == documented().keys()


def test_the_page_gives_each_its_level_and_fields():
    page = documented()
    usual = Event("watch_restarted", "debug", frozenset({"reason"}))  # the page says when
    wrong = {event for event in logged() if (event.level, event.fields) != page[event.name]}
    assert {event for event in wrong if event.name not in BY_HAND} == {usual}


def test_every_kubernetes_event_is_on_the_page_and_no_other():
    own = {reason for path in CODE.rglob("*.py") for reason in re.findall(r'"(Pynet[A-Z]\w+)"', path.read_text())} - {REASON}
    rows = rows_of(PAGE.read_text().partition("\n## Kubernetes Events\n")[2])
    assert {name.strip("`") for name, *_ in rows} == own | set(REASONS.values())
