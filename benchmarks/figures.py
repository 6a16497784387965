"""The lines of the table, what others reached on them, and how a measured figure is written."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Line(NamedTuple):
    """One line: its key, what it says, flanneld 0.28.4 and the prototype as quoted in the issue, and the goal."""

    key: str
    title: str
    flanneld: str
    prototype: str
    goal: str


LINES: Final = (
    Line("start3", "process start to all routes, 3 nodes", "1.2 s", "0.48 s", "<=0.6 s"),
    Line("start", "process start to all routes, {n} nodes (CPU)", "35 s (41 s)", "1.06 s (0.76 s)", "<=1.3 s (<=1 s)"),
    Line("bytes", "bytes from the API at start, {n} nodes", "10.4 MB", "8.7 MB", "<=9 MB"),
    Line("rss3", "RSS after start, 3 nodes", "43 MB", "40 MB", "<=43 MB"),
    Line("rss", "RSS at {n} nodes; peak over start and {soak:.0f} s", "258; 290 MB", "45; 48 MB", "<=52; <=58 MB"),
    Line("created", "Node created: to the kernel, {n} nodes", "p50 3-16 ms", "p50 <=1 ms", "p50 <=1.5 ms, max 5 ms"),
    Line("moved", "Node address changed: to the kernel, {n} nodes", "p50 3-16 ms", "p50 <=1 ms", "p50 <=1.5 ms, max 5 ms"),
    Line("deleted", "Node deleted: to the kernel, {n} nodes", "p50 3-16 ms", "p50 <=1 ms", "p50 <=1.5 ms, max 5 ms"),
    Line("status", "only status.addresses changed", "never noticed", "1 ms", "the same"),
    Line("wave", "500 nodes created on top of {n}: done after the last call returned", "5.4 s", "<5 ms", "<=50 ms"),
    Line("heartbeats", "17 heartbeats a second, {n} nodes", "5.0 % of a core", "under 1.2 %", "<=0.8 %"),
    Line("drift", "one route deleted by hand: until it is back", "8 s", "<1 ms", "p50 <=1 ms, p99 <=3 ms"),
    Line("hop", "its next hop changed by hand: until it is right", "never", "<1 ms", "p50 <=1 ms, p99 <=3 ms"),
    Line("thousand", "1,000 of {n} routes deleted at once: after the last", "up to 10 s", "<5 ms", "<=60 ms"),
    Line("linkdown", "{n} routes back after link down/up", "9.6 s", "0.08 s", "<=0.15 s"),
    Line("address", "{n} routes back after address removed and added", "9.7 s", "0.09 s", "<=0.15 s"),
    Line("interface", "{n} routes back after interface recreated", "never", "0.10 s", "<=0.15 s"),
    Line("nft", "nft flush ruleset: until the rules are back", "never (iptables: 2.6 s)", "", "<=0.1 s"),
    Line("early", "NetworkUnavailable=False and conflist before all routes are there", "by 34 s", "", "never"),
    Line("snapshot", "start to all routes with the API away, snapshot of {n} there", "never", "", "<=0.6 s"),
    Line("pings", "agent killed or restarted: pings lost", "0 of 900", "", "0"),
    Line("flows", "agent killed or restarted: new flows outside with the pod's address", "6-10 of 1,563", "", "0"),
)
KEYS: Final = tuple(line.key for line in LINES)


def median(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """The median, and the range where there is more than one value."""
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f}-{max(values):.{digits}f})"
    return f"{text} {unit}"


def milliseconds(seconds: Sequence[float | None]) -> str:
    """p50, p99 and the largest, in ms; None counts as never."""
    values = sorted(1000 * max(0.0, value) for value in seconds if value is not None)
    never = f", {len(seconds) - len(values)} of {len(seconds)} never" if len(values) < len(seconds) else ""
    if not values:
        return "never"
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    return f"p50 {statistics.median(values):.2f}, p99 {p99:.2f}, max {values[-1]:.2f} ms (n={len(values)}){never}"


def machine() -> str:
    """One line about the machine."""
    info = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel = platform.release()
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, Linux {kernel}, Python {platform.python_version()}"
    )


def table(results: Mapping[str, Mapping[str, str]], names: Sequence[str], keys: Iterable[str], **facts: object) -> str:
    """The markdown table: ``results`` by contestant and key; ``names`` are the contestants' columns."""
    head = ["line", "flanneld 0.28.4 (quoted)", "prototype (quoted)", "goal", *(f"{name}, here" for name in names)]
    rows = [head, ["---"] * len(head)]
    wanted = set(keys)
    for line in LINES:
        if line.key in wanted:
            here = [results.get(name, {}).get(line.key, "") for name in names]
            rows.append([line.title.format(**facts), line.flanneld, line.prototype, line.goal, *here])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
