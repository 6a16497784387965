"""The rig that every line is measured on: one real API server, N Nodes of 12 kB, one agent in a namespace of its own."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from benchmarks.contestants import flannel_annotations
from benchmarks.kernelwatch import KernelWatch, all_present
from benchmarks.process import cpu_seconds, memory_mb
from tests.support.nodes import node, peer
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.contestants import Contestant
    from tests.support.cluster import Agent, Cluster

NODES = "/api/v1/nodes"
SELF = "self"
OWN_CIDR = "10.191.255.0/24"
OWN_NUMBER = 2
START_SECONDS = 180.0


class Settings:
    """How much is measured: ``runs`` of each start, ``samples`` of each change, ``soak`` seconds without and with
    heartbeats, ``nodes``.
    """

    def __init__(self, *, nodes: int, runs: int, samples: int, soak: float) -> None:
        self.nodes = nodes
        self.runs = runs
        self.samples = samples
        self.soak = soak


class Rig:
    """The cluster, with ``count`` peers in it."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster = cluster
        self.client = cluster.client
        self.settings = settings
        self.count = 0
        self.beats = itertools.count()
        self._flannel = bool(os.environ.get("FLANNELD"))
        self.client.create(NODES, self._body(SELF, OWN_CIDR, f"10.99.0.{OWN_NUMBER}"))

    @property
    def wanted(self) -> set[str]:
        """The podCIDRs of all peers."""
        return {peer(i)[1] for i in range(self.count)}

    def populate(self, count: int) -> float:
        """Create or delete peers until there are ``count``; returns the seconds."""
        began = time.monotonic()
        self.client.each(self.create, range(self.count, count))
        self.client.each(self.delete, range(count, self.count))
        self.count = count
        gc.collect()
        gc.freeze()  # a pause of ours in the middle of a sample would count as the contestant's
        return time.monotonic() - began

    def create(self, i: int) -> None:
        """Create the Node of peer ``i``."""
        self.client.create(NODES, self._body(*peer(i)))

    def delete(self, i: int) -> None:
        """Delete the Node of peer ``i``."""
        self.client.delete(f"{NODES}/{peer(i)[0]}")

    def forget_condition(self) -> None:
        """Take what the last agent said of the network off our own Node."""
        current = self.client.get(f"{NODES}/{SELF}")
        current["status"]["conditions"] = [c for c in current["status"]["conditions"] if c["type"] != "NetworkUnavailable"]
        self.client.request("PUT", f"{NODES}/{SELF}/status", current)

    def _body(self, name: str, cidr: str, address: str) -> dict[str, Any]:
        annotations = flannel_annotations(address) if self._flannel else {}
        return node(name, [cidr], [address], full=True, annotations=annotations)

    @contextlib.contextmanager
    def host(self) -> Iterator[Agent]:
        """A fresh node for our own Node object, without an agent."""
        agent = self.cluster.join(SELF, number=OWN_NUMBER, length=16, families=(4,))
        try:
            yield agent
        finally:
            self.cluster.leave(SELF)

    @contextlib.contextmanager
    def running(self, contestant: Contestant) -> Iterator[Trial]:
        """A fresh node on which the contestant has made all routes."""
        with self.host() as agent, KernelWatch(agent.namespace) as watch:
            trial = Trial(self, agent, watch)
            trial.start(contestant)
            yield trial


class Trial:
    """One run of a contestant: when it started, when all routes were there, what it cost until then.

    ``seconds`` is from just before the process was made to the kernel's announcement of the last route.
    """

    def __init__(self, rig: Rig, agent: Agent, watch: KernelWatch) -> None:
        self.rig = rig
        self.agent = agent
        self.watch = watch
        self.began = 0.0
        self.seconds = 0.0
        self.cpu = 0.0
        self.received_mb = 0.0

    @property
    def pid(self) -> int:
        """The process."""
        assert self.agent.process
        return int(self.agent.process.pid)

    def start(self, contestant: Contestant) -> None:
        """Start the process and wait for all routes. Raises RuntimeError with its last words if they do not come."""
        command = contestant.command(self.agent)
        before, mark = self.received_bytes(), self.watch.mark()
        self.began = time.monotonic()
        self.agent.spawn(*command)
        done = self.watch.await_(all_present(self.rig.wanted), since=mark, seconds=START_SECONDS)
        if done is None:
            raise RuntimeError(
                f"{contestant.name}: not all routes within {START_SECONDS:.0f} s; its last words:\n{self.agent.log_end()}"
            )
        self.cpu = cpu_seconds(self.pid)
        self.seconds = done - self.began
        self.settle()
        self.received_mb = (self.received_bytes() - before) / 1e6

    def settle(self, quiet: float = 0.5) -> None:
        """Wait until the process has used no CPU time for ``quiet`` seconds."""
        last = [cpu_seconds(self.pid), time.monotonic()]

        def rests() -> bool:
            now = cpu_seconds(self.pid)
            if now != last[0]:
                last[:] = [now, time.monotonic()]
            return time.monotonic() - last[1] >= quiet

        until(rests, "the agent rests", seconds=60)

    def received_bytes(self) -> int:
        """Bytes that arrived on the node's interface so far."""
        shown = self.agent.namespace.ip("-s", "link", "show", "dev", "eth0")
        return int(shown[0]["stats64"]["rx"]["bytes"])

    def memory(self) -> tuple[float, float]:
        """Resident memory and its peak, MB."""
        return memory_mb(self.pid)
