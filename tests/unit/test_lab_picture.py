"""What the lab draws: whole lines, everything in it, within the terminal's width."""

from __future__ import annotations

import pytest
from pynet.commands.lab import picture
from pynet.commands.lab.ping import Ping
from pynet.commands.lab.plan import make_plan


def addresses(plan):
    return {pod.name: (f"10.77.{node.index}.2", f"fd77:0:1:{node.index:x}::2") for node, pod in plan.pods}


def pings(plan, seconds=0.001):
    names = [pod.name for _, pod in plan.pods]
    return [Ping(a, b, family, seconds) for a in names for b in names if a != b for family in plan.families]


@pytest.mark.parametrize("nodes", [1, 3, 10, 64])
@pytest.mark.parametrize("width", [40, 80, 120, 250])
def test_topology_shows_every_node_and_pod_within_the_width(nodes, width):
    plan = make_plan(1, nodes, 2, (4, 6))
    drawn = picture.topology(plan, addresses(plan), "pynet0", width)
    for node, pod in plan.pods:
        assert f" {node.name} " in drawn
        assert f" {pod.name} " in drawn
    boxes = [line for line in drawn.splitlines()[2:] if not line.endswith("…")]
    assert max(map(len, boxes)) <= width


def test_the_boxes_of_a_row_are_one_rectangle_each_below_the_port_of_the_bus():
    plan = make_plan(1, 3, 1, (4,))
    _, _, bus, top, *body = picture.topology(plan, {}, "pynet0", 200).splitlines()
    assert [index for index, mark in enumerate(bus) if mark == "┬"] == [index for index, mark in enumerate(top) if mark == "┴"]
    assert {len(line) for line in [top, *body]} == {len(top)}


def test_a_failed_ping_is_marked_and_named():
    plan = make_plan(1, 2, 1, (4,))
    results = [pings(plan)[0], Ping("pod-2-1", "pod-1-1", 4, None, "no reply")]
    assert "✗" in picture.matrix(results, 4, 120, {})
    assert "pod-2-1 -> pod-1-1: no reply" in picture.summary(results, (4,))
    assert "1 of 2 pings passed" in picture.summary(results, (4,))


def test_a_matrix_that_is_too_wide_is_by_node_and_a_failure_stays_in_it():
    plan = make_plan(1, 6, 4, (4,))
    node_of = {pod.name: node.name for node, pod in plan.pods}
    results = pings(plan)
    results[-1] = results[-1]._replace(seconds=None, error="no reply")
    drawn = picture.matrix(results, 4, 120, node_of)
    assert "pod-" not in drawn
    assert all(node.name in drawn for node in plan.nodes)
    assert "✗1" in drawn.splitlines()[-1]


def test_of_many_nodes_the_routes_of_two_are_shown_and_the_others_counted():
    plan = make_plan(1, 10, 1, (4,))
    shown = {node.name: [f"line {node.index}"] * 3 for node in plan.nodes}
    text = picture.routes(plan.nodes, shown)
    assert "line 1" in text
    assert "line 3" not in text
    assert "node-3 3" in text
