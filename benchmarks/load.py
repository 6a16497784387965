"""Load: the heartbeats of a large cluster, at their real pace, each a patch of one Node's status."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from tests.support.nodes import peer
from tests.support.waiting import until

if TYPE_CHECKING:
    from benchmarks.rig import Rig

PER_SECOND = 17.0


class Heartbeats:
    """``PER_SECOND`` status patches a second, spread over all peers, for the length of a with block."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._sent = 0
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeats")

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    @property
    def rate(self) -> float:
        """Heartbeats a second so far."""
        return self._sent / (time.monotonic() - self._began)

    def await_pace(self) -> None:
        """Wait until two seconds' worth has been sent."""
        until(lambda: self._sent > 2 * PER_SECOND, "heartbeats", seconds=30)

    def go_on(self, seconds: float) -> None:
        """Let them come for so long."""
        self._stop.wait(seconds)
        if not self._thread.is_alive():
            raise RuntimeError("the heartbeats have stopped: the API server refused one")

    def _run(self) -> None:
        while True:
            pause = self._began + self._sent / PER_SECOND - time.monotonic()
            if self._stop.wait(max(0.0, pause)):
                return
            # Never the same twice, also for the next contestant: a patch that changes nothing is no event.
            number = next(self._rig.beats)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1767225600 + number))
            beat = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": stamp}
            name = peer(number * 7 % self._rig.count)[0]
            self._rig.client.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [beat]}})
            self._sent += 1
