"""Lines about the start: time, CPU, bytes, memory, and what the node says of itself too early."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Self

from benchmarks.figures import median
from benchmarks.kernelwatch import KernelWatch
from benchmarks.load import Heartbeats
from benchmarks.process import cpu_seconds
from benchmarks.rig import NODES, SELF, Trial
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.contestants import Contestant
    from benchmarks.rig import Rig


def small(rig: Rig, contestant: Contestant) -> Iterator[tuple[str, str]]:
    """3 nodes."""
    seconds, memory = [], []
    for _ in range(rig.settings.runs):
        with rig.running(contestant) as trial:
            seconds.append(trial.seconds)
            memory.append(trial.memory()[0])
    yield "start3", median(seconds, "s")
    yield "rss3", median(memory, "MB", 1)


def large(rig: Rig, contestant: Contestant) -> Iterator[tuple[str, str]]:
    """All nodes."""
    seconds, cpu, received, early = [], [], [], []
    for _ in range(rig.settings.runs):
        rig.forget_condition()
        with rig.host() as agent, KernelWatch(agent.namespace) as watch, _ConditionWatch(rig) as condition:
            trial = Trial(rig, agent, watch)
            trial.start(contestant)
            seconds.append(trial.seconds)
            cpu.append(trial.cpu)
            received.append(trial.received_mb)
            if contestant.full:
                early.append(_early(trial, condition))
    yield "start", f"{median(seconds, 's')}; CPU {median(cpu, 's')}"
    yield "bytes", median(received, "MB", 1)
    if early:
        words = sorted({word for word in early if word})
        yield "early", f"{', '.join(words)}" if words else f"never in {len(early)} starts"


def memory(trial: Trial) -> Iterator[tuple[str, str]]:
    """All nodes, after a start, while nothing comes in, and while heartbeats do."""
    now, _ = trial.memory()
    soak = trial.rig.settings.soak
    trial.settle(6.0)  # the snapshot is written some seconds after the start
    idle = _share(trial, lambda: time.sleep(soak))
    with Heartbeats(trial.rig) as beats:
        beats.await_pace()
        busy = _share(trial, lambda: beats.go_on(soak))
        rate = beats.rate
    yield "rss", f"{now:.1f} MB; {trial.memory()[1]:.1f} MB"
    yield "heartbeats", f"{busy:.2f} % of a core ({rate:.1f}/s), {idle:.2f} % without them"


def _share(trial: Trial, wait: Callable[[], None]) -> float:
    """Percent of a core that the contestant takes while ``wait`` does."""
    before, began = cpu_seconds(trial.pid), time.monotonic()
    wait()
    return 100 * (cpu_seconds(trial.pid) - before) / (time.monotonic() - began)


def snapshot(rig: Rig, contestant: Contestant) -> Iterator[tuple[str, str]]:
    """The API away: the routes come from the last good state."""
    if not contestant.full:
        return
    seconds = []
    with rig.running(contestant) as trial:
        until((trial.agent.folder / "state" / "last-good.json").exists, "a snapshot", seconds=120)
        trial.settle(2.0)
        trial.agent.stop()
        rig.cluster.plane.stop()
        try:
            for _ in range(rig.settings.runs):
                trial.agent.namespace.run("ip", "route", "flush", "proto", "110")
                trial.start(contestant)
                seconds.append(trial.seconds)
                trial.agent.stop()
        finally:
            rig.cluster.plane.start()
    yield "snapshot", median(seconds, "s")


def _early(trial: Trial, condition: _ConditionWatch) -> str:
    """What was said before all routes were there; "" if nothing."""
    complete = trial.began + trial.seconds
    offset = time.time() - time.monotonic()
    conflist = trial.agent.conf_dir / "05-pynet.conflist"
    until(conflist.exists, "a conflist", seconds=30)
    condition.await_false()
    found = []
    if conflist.stat().st_ctime - offset < complete:
        found.append("conflist")
    if condition.time < complete:
        found.append("condition")
    return " and ".join(found)


class _ConditionWatch:
    """The moment at which our own Node says NetworkUnavailable=False, as a watcher of the API sees it."""

    def __init__(self, rig: Rig) -> None:
        self.time = float("inf")
        self._rig = rig
        self._seen = threading.Event()
        self._stream = rig.client.stream(f"{NODES}?watch=1&fieldSelector=metadata.name={SELF}&timeoutSeconds=300")
        self._thread = threading.Thread(target=self._read, daemon=True, name="condition")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def await_false(self, seconds: float = 30) -> None:
        if not self._seen.wait(seconds):
            raise TimeoutError("no NetworkUnavailable=False")

    def _read(self) -> None:
        for line in self._stream:
            now = time.monotonic()
            conditions = json.loads(line)["object"].get("status", {}).get("conditions", [])
            if any(c["type"] == "NetworkUnavailable" and c["status"] == "False" for c in conditions):
                self.time = now
                self._seen.set()
                return
