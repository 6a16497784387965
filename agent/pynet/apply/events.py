"""Kubernetes Events: what an operator sees in ``kubectl describe node``. They may be late, few or missing; never in the way.

Every agent of a cluster sees the same bad peer. The Event's name follows from the peer and the reason alone, so that all of
them make one: the first POST wins, the others are told 409. Jitter that grows with the cluster keeps them apart.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pynet.apply.applier import one_line
from pynet.drivers.kube import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynet.core.model import Family
    from pynet.drivers.kube import Api

PATH: Final = "/api/v1/namespaces/default/events"
"""Events about what has no namespace are in ``default``."""

REASONS: Final = {
    "rejected": "PeerRejected",
    "conflict": "PeerRouteConflict",
    "unreachable": "PeerUnreachable",
    "failed": "PeerRouteFailed",
}
"""The peer states that are told, and the Event's reason."""

_QUEUE: Final = 100
_REMEMBERED: Final = 20_000  # verdicts: every peer of a large cluster, both families
_SETTLE: Final = 5.0  # seconds: a verdict that lasts shorter is not told
_SPREAD: Final = 0.02  # seconds of jitter per agent: 50 POSTs a second, whatever the cluster's size
_LONGEST_SPREAD: Final = 300.0
_PACE: Final = 0.5  # seconds between two requests of ours
_ATTEMPTS: Final = 5
_REFUSED_PAUSE: Final = 600.0  # seconds without Events after a 403
_REPEAT: Final = 600.0  # seconds in which the same event about ourselves is not repeated
_LONGEST_MESSAGE: Final = 1024  # what the API server takes


class Counts(NamedTuple):
    """What became of the Events: accepted (made by us, or by another agent before us), and dropped for whatever reason."""

    accepted: int = 0
    dropped: int = 0


class _Waiting(NamedTuple):
    due: float
    body: dict[str, Any]
    attempts: int = 0


class Events:
    """A bounded queue of Events and a thread that posts them. ``node`` is our own Node's name.

    ``on_failure(text)`` is called once when posting begins to fail, in the thread: it must not block or raise. ``settle`` and
    ``pace`` are in seconds. No method raises, and none but `stop` blocks.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        on_failure: Callable[[str], None] = lambda _: None,
        *,
        settle: float = _SETTLE,
        pace: float = _PACE,
    ) -> None:
        self._api = api
        self._node = node
        self._on_failure = on_failure
        self._settle = settle
        self._pace = pace
        self._changed = threading.Condition()
        self._queue: dict[str, _Waiting] = {}  # by the Event's name, oldest first
        self._verdicts: dict[tuple[str, Family], str] = {}  # of bad peers: the Event's name
        self._own: dict[tuple[str, str], float] = {}
        self._quiet_until = 0.0
        self._failing = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._accepted = self._dropped = 0

    @property
    def counts(self) -> Counts:
        """So far."""
        return Counts(self._accepted, self._dropped)

    def peer(self, name: str, uid: str, family: Family, *, state: str, reason: str, agents: int = 1) -> None:
        """Tell the verdict about a peer, the Node ``name`` with ``uid``. May be called at each pass: only a change counts.

        A good state takes back what has not been posted yet, and newer words replace it. ``agents`` is the number of nodes, all
        of which may see the same.
        """
        key = (uid, family)
        told_as = REASONS.get(state, "")
        event = _name(name, f"{uid}/{family}/{told_as}") if told_as else ""
        with self._changed:
            if self._verdicts.get(key, "") == event:
                if waiting := self._queue.get(event):  # a Node comes in pieces, and its first fault need not be its last
                    waiting.body["message"] = self._said(f"IPv{family}: {reason}")
                return
            self._queue.pop(self._verdicts.pop(key, ""), None)
            if not event:
                return
            self._verdicts[key] = event
            if len(self._verdicts) > _REMEMBERED:
                del self._verdicts[next(iter(self._verdicts))]
            spread = min(agents * _SPREAD, _LONGEST_SPREAD)
            delay = self._settle + random.uniform(0, spread)  # noqa: S311  no secret: it only keeps agents apart
            body = self._body(event, name, uid, kind="Warning", reason=told_as, message=f"IPv{family}: {reason}")
            self._put(event, delay, body)

    def own(self, uid: str, reason: str, message: str, *, normal: bool = False) -> None:
        """Tell something about our own Node, say PynetNotReady; the same again within 10 minutes is not told."""
        now = time.monotonic()
        with self._changed:
            if now < self._own.get((reason, message), 0.0):
                return
            self._own = {key: until for key, until in self._own.items() if until > now}
            self._own[reason, message] = now + _REPEAT
            event = _name(self._node, f"{uid}/{reason}/{time.time_ns()}")
            kind = "Normal" if normal else "Warning"
            self._put(event, 0.0, self._body(event, self._node, uid, kind=kind, reason=reason, message=message))

    def stop(self, timeout: float = 1.0) -> bool:
        """End the thread; what waits is dropped. True if it has ended within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _put(self, event: str, delay: float, body: dict[str, Any]) -> None:
        """Queue an Event. The lock is held."""
        now = time.monotonic()
        if self._stopping or now < self._quiet_until:
            self._dropped += 1
            return
        self._queue[event] = _Waiting(now + delay, body)
        if len(self._queue) > _QUEUE:
            del self._queue[next(iter(self._queue))]
            self._dropped += 1
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                event = self._await_due()
                if self._stopping:
                    return
                waiting = self._queue.pop(event)
            try:
                self._api.post_json(PATH, waiting.body)
            except ApiError as problem:
                self._refused(event, waiting, problem)
            except Exception as problem:
                self._failed(one_line(problem))
            else:
                self._posted()
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, self._pace)

    def _await_due(self) -> str:
        """Wait until an Event is due, or for the stop; the name of the first one due. The lock is held."""
        while not self._stopping:
            first = min(self._queue, key=lambda name: self._queue[name].due, default="")
            left = self._queue[first].due - time.monotonic() if first else None
            if left is not None and left <= 0:
                return first
            self._changed.wait(left)
        return ""

    def _posted(self) -> None:
        with self._changed:
            self._accepted += 1
            self._failing = False

    def _refused(self, event: str, waiting: _Waiting, problem: ApiError) -> None:
        if problem.status == 409:  # another agent was first
            self._posted()
        elif problem.status == 403:
            with self._changed:
                self._quiet_until = time.monotonic() + _REFUSED_PAUSE
                self._dropped += len(self._queue)
                self._queue.clear()
            self._failed(f"we may not create events in namespace default (RBAC): {problem.reason}")
        elif problem.status in (0, 401, 429) or problem.status >= 500:
            self._again(event, waiting, problem)
        else:
            self._failed(str(problem))

    def _again(self, event: str, waiting: _Waiting, problem: ApiError) -> None:
        attempts = waiting.attempts + 1
        if attempts >= _ATTEMPTS:
            self._failed(str(problem))
            return
        pause = max(problem.retry_after, self._pace * 2.0 ** (attempts + 1) * random.uniform(0.5, 1.0))  # noqa: S311  no secret either
        with self._changed:
            if event not in self._queue and len(self._queue) < _QUEUE:
                self._queue[event] = waiting._replace(due=time.monotonic() + pause, attempts=attempts)
            else:
                self._dropped += 1

    def _failed(self, why: str) -> None:
        with self._changed:
            self._dropped += 1
            news, self._failing = not self._failing, True
        if news:
            self._on_failure(why)

    def _body(self, event: str, node: str, uid: str, *, kind: str, reason: str, message: str) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": event, "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid},
            "type": kind,
            "reason": reason,
            "message": self._said(message),
            "source": {"component": "pynet", "host": self._node},
            "reportingComponent": "pynet.io/agent",
            "reportingInstance": self._node,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }

    def _said(self, message: str) -> str:
        said = f"{message} (seen by the agent of node {self._node})"
        return said.encode()[:_LONGEST_MESSAGE].decode(errors="ignore")


def _name(node: str, what: str) -> str:
    """An Event's name: the Node's for the reader, a digest so that the same thing has the same name at every agent."""
    return f"{node[:200].rstrip('-.')}.{hashlib.sha256(what.encode()).hexdigest()[:16]}"
