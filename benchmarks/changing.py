"""Lines about Nodes that come, change and go: from the API server's answer to the kernel's announcement of the route."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from benchmarks.figures import milliseconds
from benchmarks.kernelwatch import Seen, all_present, first
from benchmarks.rig import NODES
from tests.support.nodes import peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.rig import Trial

NEVER_SECONDS = 5.0
WAVE = 500


def changes(trial: Trial) -> Iterator[tuple[str, str]]:
    """Single Nodes, one after the other."""
    rig, base = trial.rig, trial.rig.count
    numbers = range(base, base + rig.settings.samples)
    yield "created", _latency(trial, numbers, rig.create, lambda i: lambda e: e.kind == "route+" and e.prefix == peer(i)[1])
    yield "moved", _latency(trial, numbers, lambda i: _move(trial, i, 1, beat=True), lambda i: _arrived(i, 1))
    yield "status", _latency(trial, numbers, lambda i: _move(trial, i, 2, beat=False), lambda i: _arrived(i, 2))
    yield "deleted", _latency(trial, numbers, rig.delete, lambda i: lambda e: e.kind == "route-" and e.prefix == peer(i)[1])


def wave(trial: Trial) -> Iterator[tuple[str, str]]:
    """Many Nodes at once, on top of all."""
    rig, base = trial.rig, trial.rig.count
    mark = trial.watch.mark()
    began = time.monotonic()
    rig.populate(base + WAVE)
    returned = time.monotonic()
    done = trial.watch.await_(all_present(peer(base + i)[1] for i in range(WAVE)), since=mark)
    text = "never" if done is None else f"{1000 * max(0.0, done - returned):.1f} ms"
    rig.populate(base)
    trial.settle()
    yield "wave", f"{text} (the calls took {returned - began:.1f} s)"


def _latency(trial: Trial, numbers: range, call: Callable[[int], None], match: Callable[[int], Callable[[Seen], bool]]) -> str:
    after, whole = [], []
    for i in numbers:
        mark = trial.watch.mark()
        sent = time.monotonic()
        call(i)
        returned = time.monotonic()
        seen = trial.watch.await_(first(match(i)), since=mark, seconds=NEVER_SECONDS)
        after.append(None if seen is None else seen - returned)
        whole.append(None if seen is None else seen - sent)
        if len(after) == 3 and not any(after):
            break  # one that never notices need not be asked a hundred times
    known = [value for value in whole if value is not None]
    call_text = f"; from sending the call p50 {1000 * statistics.median(known):.1f} ms" if known else ""
    return milliseconds(after) + call_text


def _address(i: int, step: int) -> str:
    return f"10.99.{200 + step}.{1 + i % 250}"


def _arrived(i: int, step: int) -> Callable[[Seen], bool]:
    return lambda event: event.kind == "route+" and event.prefix == peer(i)[1] and event.gateway == _address(i, step)


def _move(trial: Trial, i: int, step: int, *, beat: bool) -> None:
    """Change a Node's InternalIP as its kubelet does; with ``beat`` in the same patch as a heartbeat."""
    name = peer(i)[0]
    value = [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": _address(i, step)}]
    patch = [{"op": "replace", "path": "/status/addresses", "value": value}]
    if beat:
        patch.append({"op": "replace", "path": "/status/conditions/0/lastHeartbeatTime", "value": "2026-02-02T00:00:00Z"})
    trial.rig.client.patch(f"{NODES}/{name}/status", patch, "application/json-patch+json")
