"""What the lab prints: the topology, the routes, the matrix of pings and their times. Values in, text out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pynet.commands.lab.ping import Ping
from pynet.commands.lab.plan import BRIDGE, UPLINK, NodePlan, Plan
from pynet.core.model import Family

GAP: Final = "  "
ROUTES_IN_FULL: Final = 6
"""Up to so many nodes, each one's routes are shown; of a larger lab, the first two nodes' and the others' number."""

LEGEND: Final = (
    "proto 110 is pynet's; the others are the kernel's, for what is connected here.",
    "metric 100 to 163: by destination, so that thousands of routes stay quick. IPv4 and IPv6 alike.",
    "unreachable, the last choice: a packet to a pod that is gone ends here, and does not leave the node.",
)
"""What a reader of the routes would ask."""


def topology(plan: Plan, pods: Mapping[str, Sequence[str]], pod_bridge: str, width: int) -> str:
    """Draw the hub's bridge with the nodes below it, as many in a row as ``width`` columns hold.

    ``pods`` are the addresses of each pod by name; ``pod_bridge`` the name of the bridge on each node.
    """
    boxes = [_box(_node_lines(node, pods, pod_bridge)) for node in plan.nodes]
    box_width = max(len(box[0]) for box in boxes)
    height = max(len(box) for box in boxes)
    per_row = max(1, (width + len(GAP)) // (box_width + len(GAP)))
    lines = [f"Node API  {plan.api_url}   (the hub: {'  '.join(plan.hub_addresses)})", f"{' ' * len(BRIDGE)} │"]
    for start in range(0, len(boxes), per_row):
        row = [_pad(box, box_width, height) for box in boxes[start : start + per_row]]
        lines.append(_bus(len(row), box_width, more=start + per_row < len(boxes)))
        lines.extend(GAP.join(parts) for parts in zip(*row, strict=True))
    return "\n".join(lines)


def routes(nodes: Sequence[NodePlan], shown: Mapping[str, Sequence[str]]) -> str:
    """List each node's routes: ``shown`` are its lines of ``ip route`` by the node's name."""
    lines = []
    for node in nodes[: ROUTES_IN_FULL if len(nodes) <= ROUTES_IN_FULL else 2]:
        lines.append(f"{node.name}:")
        lines.extend(f"    {line}" for line in shown[node.name])
    rest = nodes[ROUTES_IN_FULL if len(nodes) <= ROUTES_IN_FULL else 2 :]
    if rest:
        counts = ", ".join(f"{node.name} {len(shown[node.name])}" for node in rest)
        lines.append(f"and, in lines: {counts}")
    return "\n".join([*lines, *LEGEND])


def matrix(pings: Sequence[Ping], family: Family, width: int, node_of: Mapping[str, str]) -> str:
    """Draw the pings of one family, sources down and targets across; by node where the pods do not fit into ``width``."""
    chosen = [ping for ping in pings if ping.family == family]
    names = list(dict.fromkeys(name for ping in chosen for name in (ping.source, ping.target)))
    cells = {(ping.source, ping.target): _milliseconds(ping) for ping in chosen}
    if (len(names) + 1) * (_widest([*names, *cells.values()]) + 2) > width:
        names, cells = _by_node(chosen, node_of)
    column = _widest([*names, *cells.values()]) + 2
    lines = [f"IPv{family}, ms".ljust(column) + "".join(name.rjust(column) for name in names)]
    for source in names:
        row = "".join(cells.get((source, target), "·").rjust(column) for target in names)
        lines.append(source.ljust(column) + row)
    return "\n".join(lines)


def summary(pings: Sequence[Ping], families: Iterable[Family]) -> str:
    """Say in one line for each family how many pings passed, how long they took, and which failed."""
    lines = []
    for family in families:
        chosen = [ping for ping in pings if ping.family == family]
        times = sorted(ping.seconds * 1000 for ping in chosen if ping.seconds is not None)
        line = f"IPv{family}: {len(times)} of {len(chosen)} pings passed"
        if times:
            line += f", {times[0]:.2f} ms at best, {statistics.median(times):.2f} in the middle, {times[-1]:.2f} at worst"
        lines.append(line)
        failed = [ping for ping in chosen if ping.seconds is None]
        lines.extend(f"    {ping.source} -> {ping.target}: {ping.error}" for ping in failed[:10])
        if len(failed) > 10:
            lines.append(f"    and {len(failed) - 10} more")
    return "\n".join(lines)


def _node_lines(node: NodePlan, pods: Mapping[str, Sequence[str]], pod_bridge: str) -> list[str]:
    lines = [node.name, *_labelled(UPLINK, node.addresses), *_labelled(pod_bridge, node.pod_cidrs)]
    for number, pod in enumerate(node.pods, 1):
        last = number == len(node.pods)
        first, *others = _labelled(pod.name, pods.get(pod.name, ()) or ("no address",))
        lines.append(f"{'└' if last else '├'}─ {first}")
        lines.extend(f"{' ' if last else '│'}  {other}" for other in others)
    return lines


def _labelled(label: str, values: Sequence[str]) -> list[str]:
    return [f"{label if not index else '':<8} {value}" for index, value in enumerate(values)]


def _box(lines: Sequence[str]) -> list[str]:
    inside = max(map(len, lines))
    edge = "─" * (inside + 2)
    return [f"┌{edge}┐", *(f"│ {line:<{inside}} │" for line in lines), f"└{edge}┘"]


def _pad(box: Sequence[str], width: int, height: int) -> list[str]:
    """Make a box as wide and high as the others, with the port to the bus in the middle of its top."""
    inside = width - 2
    top = f"┌{'─' * (inside // 2)}┴{'─' * (inside - inside // 2 - 1)}┐"
    body = [f"{line[:-1]:<{width - 1}}│" for line in box[1:-1]]
    return [top, *body, *([f"│{' ' * inside}│"] * (height - len(box))), f"└{'─' * inside}┘"]


def _bus(boxes: int, width: int, *, more: bool) -> str:
    """Draw the hub's bridge above a row of boxes: a line with a port down to each."""
    line = list("─" * (boxes * width + (boxes - 1) * len(GAP)))
    for index in range(boxes):
        line[index * (width + len(GAP)) + 1 + (width - 2) // 2] = "┬"
    label = f"{BRIDGE} ┴"
    return label + "".join(line)[len(label) :] + ("─ …" if more else "")


def _milliseconds(ping: Ping) -> str:
    return "✗" if ping.seconds is None else f"{ping.seconds * 1000:.2f}"


def _by_node(pings: Iterable[Ping], node_of: Mapping[str, str]) -> tuple[list[str], dict[tuple[str, str], str]]:
    """Merge pods into their nodes: each cell is the slowest of its pings, or how many failed."""
    groups: dict[tuple[str, str], list[Ping]] = {}
    for ping in pings:
        groups.setdefault((node_of[ping.source], node_of[ping.target]), []).append(ping)
    cells = {}
    for key, group in groups.items():
        failed = sum(ping.seconds is None for ping in group)
        cells[key] = f"✗{failed}" if failed else f"{max(ping.seconds or 0 for ping in group) * 1000:.2f}"
    return list(dict.fromkeys(name for key in groups for name in key)), cells


def _widest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=1)
