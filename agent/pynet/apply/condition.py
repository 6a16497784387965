"""The Node condition NetworkUnavailable: set to False once the routes are there, and kept so. It is never set to True."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pynet.apply.applier import Applier
from pynet.core.fights import Fights
from pynet.drivers.kube import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynet.drivers.kube import Api

TYPE: Final = "NetworkUnavailable"
REASON: Final = "PynetRoutesReady"
MESSAGE: Final = "pynet has made and verified the routes to the other nodes' pods"
CONTENT_TYPE: Final = "application/strategic-merge-patch+json"

Seen = tuple[str, str] | None
"""The condition as the watch shows it: (status, reason); None if there is none."""

RIGHT: Final[Seen] = ("False", REASON)
_NOTHING: Final = object()


class ConditionError(Exception):
    """Why the condition could not be set, or does not stay: one line."""


def body_for(seen: Seen, now: float) -> dict[str, Any]:
    """The strategic merge patch of the Node's status that sets the condition; ``now`` is seconds since the epoch. Pure."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    condition = {"type": TYPE, "status": "False", "reason": REASON, "message": MESSAGE, "lastHeartbeatTime": stamp}
    if seen is None or seen[0] != "False":  # only a new status is a transition
        condition["lastTransitionTime"] = stamp
    return {"status": {"conditions": [condition]}}


class NodeCondition:
    """Keeps the condition of the Node named ``node``, in a thread of its own. To be used once the first pass is verified.

    ``on_result(name, error)`` is called when the state changes (see Applier); ``on_repair(was, seconds)`` when it was put back,
    so long after it was found changed. Both in a thread of this class: they must not block or raise.
    """

    def __init__(
        self,
        api: Api,
        node: str,
        on_result: Callable[[str, str], None] | None = None,
        on_repair: Callable[[str, float], None] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._path = f"/api/v1/nodes/{quote(node, safe='')}"
        self._node = node
        self._on_repair = on_repair
        self._clock = clock
        self._fights = Fights(free=4, window=180.0, longest=60.0)  # each repair is a write to the API server
        self._done_for: object = _NOTHING  # what the watch showed when there was last nothing left to do
        self._seen: Seen = RIGHT
        self._applier: Applier[Seen] = Applier("condition", self._apply, on_result=on_result)

    @property
    def ok(self) -> bool:
        """Whether the condition was right when last seen, or the API server has accepted it since."""
        return self._applier.ok

    @property
    def error(self) -> str:
        """Why it is not ok, in one line; "" if it is, or before the first try."""
        return self._applier.error

    def observe(self, seen: Seen) -> None:
        """Take in what the watch shows of our own Node; writes only if that is not right. May be called at each pass."""
        self._seen = seen
        self._applier.submit(seen)

    def resync(self) -> None:
        """Ask the API server if the watch still does not show what it has accepted."""
        if self._seen != RIGHT:
            self._applier.retry()

    def stop(self, timeout: float = 1.0) -> bool:
        """End the thread; the condition stays. True if it has ended within ``timeout`` seconds."""
        return self._applier.stop(timeout)

    def _apply(self, seen: Seen) -> None:
        try:
            # The same again: the watch may be late, or somebody was quicker than it. Only the server knows.
            actual = self._current() if self._done_for == seen else seen
            if actual != RIGHT:
                self._assert(actual)
        except ApiError as problem:
            raise ConditionError(self._why(problem)) from None
        self._done_for = seen

    def _assert(self, seen: Seen) -> None:
        now = self._clock()
        status, reason = seen or ("absent", "none")
        was = f"status {status}, reason {reason}"
        if self._fights.not_before(TYPE, now):
            raise ConditionError(f"another controller keeps setting {TYPE} ({was}): {self._fights.told(TYPE)}")
        self._api.patch_json(f"{self._path}/status", body_for(seen, time.time()), CONTENT_TYPE)
        self._fights.repaired(TYPE, now)
        if self._done_for is not _NOTHING and self._on_repair is not None:  # it was right before
            self._on_repair(was, self._clock() - now)

    def _current(self) -> Seen:
        node = self._api.get_json(self._path)
        for condition in (node.get("status") or {}).get("conditions") or ():
            if condition.get("type") == TYPE:
                return condition.get("status", ""), condition.get("reason", "")
        return None

    def _why(self, problem: ApiError) -> str:
        if problem.status == 404:
            return f"{TYPE} not set: there is no Node {self._node!r}"
        if problem.status == 403:
            return f"{TYPE} not set: we may not patch nodes/status (RBAC, or an admission policy): {problem.reason}"
        return f"{TYPE} not set: {problem}"
