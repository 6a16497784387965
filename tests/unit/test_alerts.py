"""The chart's alerts and dashboard ask for metrics, labels and label values that there are."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client import Histogram
from pynet.core.model import FAMILIES
from pynet.report import metrics
from pynet.report.metrics import Metrics

from tests.support.chart import CHART

ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
EXPRESSIONS = {name: rule["expr"] for name, rule in RULES.items()} | {
    f"{title}, {target['refId']}": target["expr"] for title, panel in PANELS.items() for target in panel["targets"]
}
TARGET_LABELS = {"instance", "job", "namespace", "pod", "container", "endpoint", "node"}  # node: by the PodMonitor's relabeling
KNOWN_VALUES = {"state": metrics.PEER_STATES, "family": tuple(map(str, FAMILIES)), "kind": metrics.KINDS}


def _series() -> dict[str, set[str]]:
    """Every name that a query may hold, with its labels."""
    found: dict[str, set[str]] = {"process_resident_memory_bytes": set()}
    made = Metrics()
    for metric in vars(made).values():
        if not hasattr(metric, "describe"):
            continue
        labels = set(metric._labelnames)
        for family in metric.describe():
            if isinstance(metric, Histogram):
                found |= {family.name + suffix: labels for suffix in ("_count", "_sum")}
                found[family.name + "_bucket"] = labels | {"le"}
            else:
                found[family.name + ("_total" if family.type == "counter" else "")] = labels
    return found


SERIES = _series()


def _names(expression: str) -> list[str]:
    return re.findall(r"\b(?:pynet|process)_\w+", expression)


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_metric_is_one_that_agents_serve(expression: str) -> None:
    names = _names(expression)

    assert names, "a query without a metric"
    assert [name for name in names if name not in SERIES] == []


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_every_label_is_there_and_has_such_values(expression: str) -> None:
    there = TARGET_LABELS.union(*(SERIES[name] for name in _names(expression)))
    grouped = [label for group in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expression) for label in group.split(", ")]
    matched = re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', expression)

    assert set(grouped) <= there
    assert {label for label, _how, _value in matched} <= there
    for label, _how, value in matched:
        assert set(value.split("|")) <= set(KNOWN_VALUES[label]), label


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_words_of_an_alert_use_labels_that_its_query_leaves(rule: dict[str, Any]) -> None:
    grouping = re.match(r"(?:sum|max|min|count|absent) ?(?:by \(([^)]*)\))? ?\(", rule["expr"])
    if grouping:
        left = set((grouping[1] or "").split(", "))
    else:
        left = TARGET_LABELS.union(*(SERIES[name] for name in _names(rule["expr"])))
    words = " ".join(rule["annotations"].values())

    assert set(re.findall(r"\$labels\.(\w+)", words)) <= left
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert "summary" in rule["annotations"]


def test_every_state_but_the_good_ones_has_an_alert() -> None:
    named = {
        state
        for rule in RULES.values()
        for group in re.findall(r'state=~?"([^"]*)"', rule["expr"])
        for state in group.split("|")
    }

    assert set(metrics.PEER_STATES) - {"programmed"} <= named


@pytest.mark.parametrize("metric", ["ready", "masquerade_ok", "conflist_ok", "sysctl_ok", "api_last_contact_timestamp_seconds"])
def test_what_must_not_be_missed_has_an_alert(metric: str) -> None:
    assert any(f"pynet_{metric}" in rule["expr"] for rule in RULES.values())


def test_panels_do_not_lie_on_each_other() -> None:
    cells = [
        (x, y)
        for panel in PANELS.values()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in PANELS.values()}) == len(PANELS) == len(DASHBOARD["panels"])
