"""A lab from beginning to end: built step by step, looked at, pinged."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import msgspec

from pynet.commands.lab import agents, namespaces, state
from pynet.commands.lab import cni as attachment
from pynet.commands.lab.ping import Ping, Pod, ping_all
from pynet.commands.lab.plan import LabError, NodePlan, Plan, PodPlan

Say = Callable[[str], None]
AT_ONCE: Final = 4
"""Nodes whose pods are attached at the same time."""


class InterruptedLabError(LabError):
    """Ctrl-C, SIGTERM or a closed terminal."""


class Interrupts:
    """Take note of signals instead of raising at once: a step that has begun is finished, so that it can be undone whole."""

    SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._seen: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raise InterruptedLabError if a signal has come."""
        if self._seen:
            raise InterruptedLabError(f"ended by {signal.Signals(self._seen[0]).name}")

    def _note(self, number: int, _: FrameType | None) -> None:
        self._seen.append(number)


class Lab:
    """One lab. ``say`` gets a line per step; ``check`` raises when the lab is to end; ``times`` are seconds by step."""

    def __init__(self, made: state.State, say: Say, check: Callable[[], None]) -> None:
        self.state = made
        self.plan: Plan = made.plan
        self.plugins: Path | None = attachment.find_plugins()
        self.times: dict[str, float] = {}
        self.say, self._check = say, check

    def build(self) -> None:
        """Make the namespaces, start the Node API and the agents, attach the pods. Raises LabError."""
        plan = self.plan
        state.write(self.state)
        self._step("namespaces", f"{len(plan.namespaces)} network namespaces, joined by a bridge", self._network)
        source = f"relay to the cluster of {self.state.kubeconfig}" if self.state.kubeconfig else "embedded"
        self._step("api", f"Node API ({source}), {len(plan.nodes)} Nodes", self._api)
        self._step("agents", f"{len(plan.nodes)} agents: routes, sysctls, rules and conflist are there", self._agents)
        by = f"CNI ADD, plugins of {self.plugins}" if self.plugins else "veth and bridge: no CNI plugins are installed here"
        self._step("pods", f"{len(plan.pods)} pods attached ({by})", self._pods)
        state.write(self.state)

    def ping(self) -> list[Ping]:
        """Ping every pod from every pod."""
        pods = [Pod(pod.name, pod.namespace, self._by_family(pod)) for _, pod in self.plan.pods]
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a socket for each pod and family: 1,024 in the largest lab
        results: list[Ping] = []
        self._step("pings", f"{len(pods)} pods, each pinged from each", lambda: results.extend(ping_all(pods, self._check)))
        return results

    def routes(self) -> dict[str, list[str]]:
        """Read each node's routes, as `ip route` prints them; the link-local ones of IPv6 left out."""
        return {node.name: _routes(node, self.plan) for node in self.plan.nodes}

    def conflist(self, node: NodePlan) -> dict[str, Any]:
        """Read the conflist that a node's agent wrote. Raises LabError."""
        files = sorted(node.conf_dir.glob("*.conflist"))
        if not files:
            raise LabError(f"{node.name}: its agent is ready, but there is no conflist in {node.conf_dir}")
        content: dict[str, Any] = json.loads(files[0].read_bytes())
        return content

    def _network(self) -> None:
        namespaces.create(self.plan.namespaces, self._check)
        namespaces.join(self.plan)

    def _api(self) -> None:
        agents.start_api(self.plan, self.state.kubeconfig, self._check)
        agents.register(self.plan, self.plan.nodes, self.state.token)

    def _agents(self) -> None:
        started = agents.start_agents(self.plan, self.plugins or attachment.stand_in(self.plan.folder / "bin"))
        agents.await_ready(self.plan, started, self._check)

    def _pods(self) -> None:
        conflists = {node.name: self.conflist(node) for node in self.plan.nodes}

        def attach(node: NodePlan) -> dict[str, tuple[str, ...]]:
            addresses = {}
            for pod in node.pods:
                self._check()
                addresses[pod.name] = attachment.attach(conflists[node.name], self.plugins, node, pod)
            return addresses

        with ThreadPoolExecutor(AT_ONCE) as pool:
            by_node = list(pool.map(attach, self.plan.nodes))
        addresses = {name: given for node in by_node for name, given in node.items()}
        self.state = msgspec.structs.replace(self.state, addresses=addresses)

    def _by_family(self, pod: PodPlan) -> dict[Any, str]:
        return {6 if ":" in address else 4: address for address in self.state.addresses.get(pod.name, ())}

    def _step(self, name: str, words: str, do: Callable[[], None]) -> None:
        self._check()
        began = time.monotonic()
        do()
        self.times[name] = round(time.monotonic() - began, 3)
        self.say(f"{words:<90} {self.times[name]:6.2f} s")


def _routes(node: NodePlan, plan: Plan) -> list[str]:
    lines: list[str] = []
    for family in plan.families:
        command = ["ip", "-n", node.namespace, f"-{family}", "route", "show"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
        lines.extend(" ".join(line.split()) for line in done.stdout.splitlines() if not line.startswith("fe80::"))
    return lines
