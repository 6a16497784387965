"""Measure every line of the table on this machine: `make bench`, or `python -m benchmarks --help`.

A real kube-apiserver and etcd, Nodes of 12 kB, the agent in a network namespace of its own. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import batch, changing, repairing, starting, surviving
from benchmarks.contestants import Contestant, contestants
from benchmarks.figures import KEYS, LINES, machine, table
from benchmarks.process import lateness
from benchmarks.rig import Rig, Settings, Trial
from tests.support.cluster import cluster
from tests.support.netns import why_not

SMALL = 3
IDLE = 0.5


class Topic(NamedTuple):
    """What gives these lines; ``full``, ``repairs``: only for contestants that do such things."""

    keys: tuple[str, ...]
    run: Callable[..., Iterator[tuple[str, str]]]
    full: bool = False
    repairs: bool = False


STARTS = (Topic(("start", "bytes", "early"), starting.large), Topic(("snapshot",), starting.snapshot, full=True))
TRIALS = (
    Topic(("rss", "heartbeats"), starting.memory),
    Topic(("created", "moved", "status", "deleted"), changing.changes),
    Topic(("wave",), changing.wave),
    Topic(("drift", "hop"), repairing.drift, repairs=True),
    Topic(("thousand",), repairing.thousand, repairs=True),
    Topic(("nft",), repairing.rules, full=True),
    Topic(("pings", "flows"), surviving.restarts, full=True),
    Topic(("linkdown", "address", "interface"), repairing.link, repairs=True),
)


def main() -> int:
    """Run it; returns the exit status."""
    arguments = _parser().parse_args()
    if reason := why_not():
        print(f"benchmarks: {reason}", file=sys.stderr)
        return 1
    known = contestants()
    chosen = [c for c in known if not arguments.contestant or c.name in arguments.contestant]
    settings = _settings(arguments)
    keys = [key for key in KEYS if not arguments.only or key in arguments.only]
    results: dict[str, dict[str, str]] = {c.name: {} for c in chosen}
    sys.setswitchinterval(0.0002)  # the thread that stamps the kernel's announcements must not wait for us: it would be 5 ms
    began, load = time.monotonic(), os.getloadavg()[0]
    _say(f"{machine()}\nstarting etcd and kube-apiserver (the first time they are built, which takes about 5 minutes)")
    footnote = ""
    with tempfile.TemporaryDirectory(prefix="pynet-bench-") as folder, cluster(Path(folder)) as made:
        rig = Rig(made, settings)
        if {"start3", "rss3"} & set(keys):
            rig.populate(SMALL)
            for contestant in chosen:
                _measure(Topic(("start3", "rss3"), starting.small), contestant, results, rig, contestant)
        if set(keys) - {"start3", "rss3"}:
            _say(f"creating {settings.nodes} Nodes")
            _say(f"  took {rig.populate(settings.nodes):.0f} s")
            for contestant in chosen:
                _large(rig, contestant, keys, results)
            footnote = f"{lateness()}\n- {batch.lines(rig)}" if not arguments.only else ""
    seconds = time.monotonic() - began
    busy = f"load {load:.1f} before it began" + (": too busy for figures that mean something" if load > IDLE else "")
    print(f"\n{machine()}, {busy}; {settings.nodes} Nodes, {settings.runs} runs each, median (range); {seconds:.0f} s in all\n")
    print(table(results, [c.name for c in chosen], keys, n=settings.nodes, soak=settings.soak))
    print("\n" + "\n".join(f"- {c.name}: {c.note}" for c in chosen) + (f"\n- {footnote}" if footnote else ""))
    return 0


def _large(rig: Rig, contestant: Contestant, keys: list[str], results: dict[str, dict[str, str]]) -> None:
    """Everything with all nodes: starts of their own, then one agent for all that happens to it later."""
    for topic in _wanted(STARTS, contestant, keys):
        _measure(topic, contestant, results, rig, contestant)
    trials = _wanted(TRIALS, contestant, keys)
    if not trials:
        return
    with rig.running(contestant) as trial:
        for topic in trials:
            _measure(topic, contestant, results, trial, *((contestant,) if topic.run is surviving.restarts else ()))


def _wanted(topics: tuple[Topic, ...], contestant: Contestant, keys: list[str]) -> list[Topic]:
    able = (t for t in topics if (contestant.full or not t.full) and (contestant.repairs or not t.repairs))
    return [topic for topic in able if set(topic.keys) & set(keys)]


def _measure(
    topic: Topic, contestant: Contestant, results: dict[str, dict[str, str]], *given: Rig | Trial | Contestant
) -> None:
    """Run a topic and keep its figures; one that fails says so in the table and does not end the others."""
    try:
        for key, text in topic.run(*given):
            results[contestant.name][key] = text
            _say(f"  {contestant.name:9} {key:10} {text}")
    except (RuntimeError, AssertionError, OSError) as error:
        _say(f"  {contestant.name:9} {'/'.join(topic.keys)} failed: {error}")
        for key in topic.keys:
            results[contestant.name].setdefault(key, "failed")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _settings(arguments: argparse.Namespace) -> Settings:
    quick = arguments.quick
    return Settings(
        nodes=arguments.nodes,
        runs=arguments.runs or (1 if quick else 3),
        samples=arguments.samples or (20 if quick else 100),
        soak=arguments.soak or (10 if quick else 60),
    )


def _parser() -> argparse.ArgumentParser:
    described = "\n".join(f"  {line.key:11} {line.title.format(n='N', soak=60)}" for line in LINES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"lines:\n{described}\n\nFLANNELD and PROTOTYPE name other programs to measure beside pynet.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one run of each, few samples: about three minutes")
    parser.add_argument("--only", action="append", choices=KEYS, metavar="LINE", help="only this line (repeatable)")
    parser.add_argument("--contestant", action="append", help="only this one: pynet, stock, prototype, flanneld (repeatable)")
    parser.add_argument("--nodes", type=int, default=5000, help="size of the large cluster (default 5000)")
    parser.add_argument("--runs", type=int, help="starts and repairs of each kind (default 3)")
    parser.add_argument("--samples", type=int, help="single changes of each kind (default 100)")
    parser.add_argument("--soak", type=float, help="seconds without, then with heartbeats (default 60; the line says 600)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
