"""Says aloud when the node becomes ready, and when and why it is not: in the log, and as an Event where the API allows.

Kubelet shows that a readiness probe failed, but not the words of its answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from pynet.commands.agent.process import trim_memory
from pynet.report.readiness import Readiness

LOOK_SECONDS: Final = 0.5
READY_LOOK_SECONDS: Final = 2.0
"""Between looks while we are ready, which is nearly always: a look is most of what an idle agent does."""

EVENT_AFTER: Final = 20.0
"""Seconds that we must have been not ready before an Event says so: a start, or a repair, is no news."""

_LONGEST: Final = 900


class OwnEvents(Protocol):
    """Where Events about our own Node go."""

    def own(self, uid: str, reason: str, message: str, *, normal: bool = False) -> None:
        """Tell something about our own Node."""


class Herald(threading.Thread):
    """Looks at ``readiness()`` twice a second, less often while ready; logs each change of the verdict or its reasons, and
    tells ``events`` of lasting trouble. ``own_uid()`` is our Node's UID, "" as long as it is not known.
    """

    def __init__(
        self,
        readiness: Callable[[], Readiness],
        own_uid: Callable[[], str],
        events: OwnEvents | None,
        log: structlog.typing.FilteringBoundLogger,
        *,
        event_after: float = EVENT_AFTER,
    ) -> None:
        super().__init__(name="herald", daemon=True)
        self._readiness = readiness
        self._own_uid = own_uid
        self._events = events
        self._log = log
        self._event_after = event_after
        self._said: Readiness | None = None
        self._told = False
        self._unready_since = time.monotonic()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End the thread soon."""
        self._stopping.set()

    def run(self) -> None:
        """Look until stopped. A defect in looking is logged, once, and must not end it."""
        crashed = False
        while not self._stopping.wait(READY_LOOK_SECONDS if self._said is not None and self._said.ready else LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # the thread's top
                if not crashed:
                    self._log.exception("herald_crashed")
                crashed = True

    def look(self) -> None:
        """One look."""
        verdict = self._readiness()
        now = time.monotonic()
        before, self._said = self._said, verdict
        if verdict.ready:
            if before is None or not before.ready:
                self._log.info("became_ready")
                trim_memory()
                self._tell_recovery()
            self._unready_since = now
            return
        if before is None or before.ready or before.reasons != verdict.reasons:
            self._log.warning("not_ready", reasons=list(verdict.reasons))
        if now - self._unready_since >= self._event_after:
            self._tell(verdict)

    def _tell(self, verdict: Readiness) -> None:
        uid = self._own_uid()
        if self._events is not None and uid:
            self._events.own(uid, "PynetNotReady", "; ".join(verdict.reasons)[:_LONGEST])
            self._told = True

    def _tell_recovery(self) -> None:
        uid = self._own_uid()
        if self._told and self._events is not None and uid:
            self._events.own(uid, "PynetReady", "the pod network of this node is as it should be", normal=True)
        self._told = False
