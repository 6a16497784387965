"""Lines about the kernel changed behind the agent's back: from its announcement of the damage to that of the repair."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.figures import median, milliseconds
from benchmarks.kernelwatch import KernelWatch, Seen, all_present, first
from benchmarks.rig import OWN_NUMBER
from tests.support.nodes import peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.rig import Trial

NEVER_SECONDS = 20.0
MANY = 1000
_STRANGER = "10.99.250.250"


def drift(trial: Trial) -> Iterator[tuple[str, str]]:
    """One route deleted, or its next hop changed."""
    chosen = random.Random(1).sample(range(trial.rig.count), min(trial.rig.settings.samples, trial.rig.count))
    metrics = _metrics(trial)
    deleted, changed = [], []
    for i in chosen:
        prefix, route = peer(i)[1], (peer(i)[1], *metrics.get(peer(i)[1], ()))
        deleted.append(_repair(trial, ("del", *route), lambda e, p=prefix: e.kind == "route-" and e.prefix == p, i))
        wrong = ("change", prefix, "via", _STRANGER, "dev", "eth0", "proto", "110", *metrics.get(prefix, ()))
        changed.append(
            _repair(trial, wrong, lambda e, p=prefix: e.kind == "route+" and (e.prefix, e.gateway) == (p, _STRANGER), i)
        )
        if len(deleted) == 2 and None in deleted and None in changed:
            break
    yield "drift", milliseconds(deleted)
    yield "hop", milliseconds(changed)


def thousand(trial: Trial) -> Iterator[tuple[str, str]]:
    """A fifth of the routes deleted by one batch."""
    metrics = _metrics(trial)
    seconds = []
    for run in range(trial.rig.settings.runs):
        count = min(MANY, trial.rig.count // 2)
        victims = {peer(i)[1] for i in random.Random(run).sample(range(trial.rig.count), count)}
        batch = "\n".join(" ".join(("route", "del", prefix, *metrics.get(prefix, ()))) for prefix in victims)
        mark = trial.watch.mark()
        trial.agent.namespace.run("ip", "-batch", "-", input=batch)
        last = trial.watch.await_(_count("route-", len(victims)), since=mark)
        done = trial.watch.await_(all_present(victims), since=mark, seconds=NEVER_SECONDS)
        seconds.append(None if done is None or last is None else done - last)
        trial.settle()
    yield "thousand", milliseconds(seconds)


def link(trial: Trial) -> Iterator[tuple[str, str]]:
    """The interface goes away in three ways, and takes every route along."""
    run = trial.agent.namespace.run
    address = f"10.99.0.{OWN_NUMBER}/16"

    def updown() -> None:
        run("ip", "link", "set", "eth0", "down")
        run("ip", "link", "set", "eth0", "up")

    def readdress() -> None:
        run("ip", "addr", "del", address, "dev", "eth0")
        run("ip", "addr", "add", address, "dev", "eth0")

    def recreate() -> None:
        run("ip", "link", "del", "eth0")
        trial.rig.cluster.wire(trial.agent, OWN_NUMBER, length=16, families=(4,))

    yield "linkdown", _all_back(trial, updown, lambda e: e.kind == "link+" and e.up)
    yield "address", _all_back(trial, readdress, lambda e: e.kind == "addr+")
    yield "interface", _all_back(trial, recreate, lambda e: e.kind == "addr+")


def rules(trial: Trial) -> Iterator[tuple[str, str]]:
    """nft flush ruleset: from the end of its transaction to the end of the one that has our table again."""
    seconds = []
    with KernelWatch(trial.agent.namespace, nft=True) as watch:
        for _ in range(trial.rig.settings.runs):
            mark = watch.mark()
            trial.agent.namespace.run("nft", "flush", "ruleset")
            gone = watch.await_(_generation_with("table-"), since=mark)
            back = watch.await_(_generation_with("table+"), since=mark, seconds=NEVER_SECONDS)
            seconds.append(None if gone is None or back is None else back - gone)
            trial.settle()
    yield "nft", milliseconds(seconds)


def _repair(trial: Trial, command: tuple[str, ...], damage: Callable[[Seen], bool], i: int) -> float | None:
    """Do it, and return the seconds from the damage to the route as it should be."""
    _, prefix, gateway = peer(i)
    mark = trial.watch.mark()
    trial.agent.namespace.run("ip", "route", *command)

    def repaired(events: list[Seen]) -> float | None:
        since = next((event.time for event in events if damage(event)), None)
        good = [e.time for e in events if e.kind == "route+" and (e.prefix, e.gateway) == (prefix, gateway)]
        return good[-1] - since if since is not None and good else None

    return trial.watch.await_(repaired, since=mark, seconds=NEVER_SECONDS)


def _all_back(trial: Trial, damage: Callable[[], None], mended: Callable[[Seen], bool]) -> str:
    """From the announcement that the host is whole again (its link up, its address there) to the last route."""
    seconds = []
    for _ in range(trial.rig.settings.runs):
        mark = trial.watch.mark()
        damage()
        host = trial.watch.await_(first(mended), since=mark)
        done = trial.watch.await_(all_present(trial.rig.wanted), since=mark, seconds=NEVER_SECONDS)
        if done is None or host is None:
            return f"not within {NEVER_SECONDS:.0f} s"
        seconds.append(done - host)
        trial.settle()
    return median(seconds, "s", 3)


def _metrics(trial: Trial) -> dict[str, tuple[str, str]]:
    """``metric N`` for each route that has one: without it, ip takes away the best of a prefix."""
    shown = trial.agent.namespace.ip("-4", "route", "show")
    return {route["dst"]: ("metric", str(route["metric"])) for route in shown if "metric" in route}


def _count(kind: str, wanted: int) -> Callable[[list[Seen]], float | None]:
    def done(events: list[Seen]) -> float | None:
        times = [event.time for event in events if event.kind == kind]
        return times[wanted - 1] if len(times) >= wanted else None

    return done


def _generation_with(kind: str) -> Callable[[list[Seen]], float | None]:
    """The time at which the first transaction was over that had this kind of message about our table."""

    def done(events: list[Seen]) -> float | None:
        seen = False
        gone = kind == "table-"
        for event in events:
            gone = gone or event.kind == "table-"
            if event.kind == kind and event.name == "pynet" and gone:
                seen = True
            elif event.kind == "generation" and seen:
                return event.time
        return None

    return done
