"""Lines about the agent killed and restarted: do pings pass, do new flows to outside leave with the node's address?"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks.rig import NODES, OWN_CIDR
from tests.support.pods import attach
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.contestants import Contestant
    from benchmarks.rig import Trial
    from tests.support.netns import Namespace
    from tests.support.pods import Pod

_PORT = 9999
_PEER_CIDR = "10.191.254.0/24"


def restarts(trial: Trial, contestant: Contestant) -> Iterator[tuple[str, str]]:
    """A pod here pings a pod of another node, and opens flows to a host outside, while the agent dies and comes back."""
    cluster = trial.rig.cluster
    far = cluster.join("far", number=3, length=16, families=(4,))
    outside = cluster.join("outside", number=4, length=16, families=(4,))
    try:
        for host in (far, outside):
            host.namespace.run("ip", "route", "add", OWN_CIDR, "via", "10.99.0.2")
        far.namespace.sysctl("net/ipv4/ip_forward", 1)
        cluster.add("far", [_PEER_CIDR], ["10.99.0.3"])
        until(lambda: _PEER_CIDR in trial.agent.routes(), "the route to the other node")
        with (
            attach(trial.agent.namespace, [OWN_CIDR]) as here,
            attach(far.namespace, [_PEER_CIDR]) as there,
            _Outside(outside.namespace) as listener,
            _Flows(here) as flows,
        ):
            lost = _ping_through(trial, contestant, here, there.addresses[0])
            flows.stop()
            yield "pings", lost
            yield "flows", f"{listener.count(here.addresses[0])} of {listener.total} ({flows.sent} sent)"
    finally:
        cluster.leave("far")
        cluster.leave("outside")
        trial.rig.client.delete(f"{NODES}/far", absent_is_fine=True)


def _ping_through(trial: Trial, contestant: Contestant, pod: Pod, address: str) -> str:
    """Ping each 10 ms while the agent is restarted and killed, ``runs`` times each; returns "lost of sent"."""
    log = Path(trial.agent.folder, "ping")
    with log.open("wb") as file:
        ping = pod.namespace.popen("ping", "-n", "-i", "0.01", "-W", "2", address, stdout=file, stderr=file)
        until(lambda: b"bytes from" in log.read_bytes(), "the first ping")
        for _ in range(trial.rig.settings.runs):
            for how in (signal.SIGTERM, signal.SIGKILL):
                trial.agent.stop(how, seconds=30)
                trial.agent.spawn(*contestant.command(trial.agent))
                trial.agent.await_ready(60)
        ping.send_signal(signal.SIGINT)
        ping.wait(10)
    found = re.search(r"(\d+) packets transmitted, (\d+) received", log.read_text())
    if not found:
        raise RuntimeError(f"ping said: {log.read_text()[-300:]}")
    sent, received = int(found[1]), int(found[2])
    return f"{sent - received} of {sent}"


class _Outside:
    """A host outside the cluster that notes where datagrams come from."""

    def __init__(self, namespace: Namespace) -> None:
        self._sources: dict[str, int] = {}
        with namespace.entered():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind(("10.99.0.4", _PORT))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="outside")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2)
        self._socket.close()

    @property
    def total(self) -> int:
        """Datagrams that arrived."""
        return sum(self._sources.values())

    def count(self, source: str) -> int:
        """Datagrams that arrived from this address."""
        return self._sources.get(source, 0)

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                _, (source, _port) = self._socket.recvfrom(64)
                self._sources[source] = self._sources.get(source, 0) + 1


class _Flows:
    """New UDP flows from a pod to the outside, 250 a second, each from a port of its own."""

    def __init__(self, pod: Pod) -> None:
        self.sent = 0
        self._pod = pod
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="flows")

    def __enter__(self) -> Self:
        with self._pod.namespace.entered():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No more."""
        self._stop.set()
        self._thread.join(2)

    def _run(self) -> None:
        while not self._stop.wait(0.004):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flow:
                flow.sendto(b"flow", ("10.99.0.4", _PORT))
                self.sent += 1
