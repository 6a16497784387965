"""The Node watcher: one thread that lists and watches for ever, and records in the inbox what the loop has to know."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pynet.drivers.apiwire import NO_NAME, MalformedError, NodeEvent, TruncatedError
from pynet.drivers.kube import Api, ApiError
from pynet.drivers.nodeapi import NodeApi
from pynet.observe.backoff import Backoff
from pynet.observe.inbox import NodeInbox, NodeList
from pynet.observe.mirror import Mirror

if TYPE_CHECKING:
    from collections.abc import Callable

    import structlog

RESTARTS: Final = frozenset(
    (
        "closed", "gone", "error", "unauthorized", "throttled", "refused", "timeout", "dns", "tls", "broken", "credentials",
        "malformed", "stale", "relist", "crash",
    )
)  # fmt: skip
"""Reasons for which a list or a watch is begun anew (label ``reason`` of pynet_api_watch_restarts_total)."""

_STATUS_REASONS: Final = {401: "unauthorized", 403: "unauthorized", 410: "gone", 429: "throttled"}
_UNANSWERED: Final = frozenset(("refused", "timeout", "dns", "credentials"))


class Timing(NamedTuple):
    """Seconds. ``silence``: bookmarks come each minute, so a watch silent for longer is dead, whatever TCP says.

    ``settled``: a watch that lasted this long was a success. ``watch`` is the range of the time after which a watch is to end:
    random, so that all agents do not come back at once after all came at once.
    """

    silence: float = 90.0
    list_silence: float = 30.0
    settled: float = 5.0
    watch: tuple[int, int] = (300, 600)
    backoff: tuple[float, float] = (0.2, 30.0)


DEFAULT_TIMING: Final = Timing()


class _Ended(NamedTuple):
    """Why a turn is over: ``reason`` is one of RESTARTS, ``error`` says it in words that stand alone.

    ``gone``: what was seen is no base for another watch.
    """

    reason: str
    error: str
    gone: bool = False
    retry_after: float = 0.0
    unauthorized: bool = False


class NodeWatch(threading.Thread):
    """List, watch, and after whatever happens again. Never raises, never busy: each failure waits longer, up to 30 s.

    ``on_restart`` is called with one of RESTARTS. ``log`` gets one line for each change of state, none for an event.
    """

    def __init__(
        self,
        api: Api,
        inbox: NodeInbox,
        own: str,
        *,
        log: structlog.typing.FilteringBoundLogger,
        on_restart: Callable[[str], None] = lambda _reason: None,
        timing: Timing = DEFAULT_TIMING,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(name="node-watch", daemon=True)
        self._api = api
        self._inbox = inbox
        self._own = own
        self._log = log
        self._on_restart = on_restart
        self._timing = timing
        self._rng = rng or random.Random()  # noqa: S311  jitter, not secrets
        self._nodes = NodeApi(api, own, silence=timing.list_silence)
        self._mirror = Mirror()
        self._backoff = Backoff(first=timing.backoff[0], cap=timing.backoff[1])
        self._stopping = threading.Event()
        self._asked = threading.Event()  # by relist()
        self._poked = threading.Event()  # ends a wait
        self._quorum = True
        self._listed = False
        self._watching = False
        self._watch_since = 0.0
        self._last_failure = ""

    def relist(self) -> None:
        """Ask for a list of the latest state (quorum read), at once: a watch is broken off, a wait ends.

        A list that is under way goes on, and another follows. Called by any thread.
        """
        self._asked.set()
        self._poked.set()
        if self._watching:
            self._api.interrupt()

    def stop(self, timeout: float = 1.0) -> None:
        """End the thread; waits for at most ``timeout`` seconds (it is a daemon: a stuck name look-up delays nobody's exit)."""
        self._stopping.set()
        self._poked.set()
        self._api.interrupt()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        """The thread."""
        while not self._stopping.is_set():
            try:
                ended = self._turn()
            except Exception as error:  # the thread's top: a bug here must not end the watch, and must not spin
                self._log.exception("node_watch_crashed")
                ended = _Ended("crash", f"a defect of pynet: {error!r}", gone=True)
            pause = self._settle(ended)
            if pause and not self._stopping.is_set():
                self._poked.wait(pause)
            self._poked.clear()

    def _turn(self) -> _Ended:
        """A list if one is due, then a watch until it ends."""
        self._watch_since = 0.0
        if self._asked.is_set():
            self._asked.clear()
            self._listed, self._quorum = False, True
        try:
            if not self._listed and not self._list():
                return _Ended("stale", "an older list than what was seen", gone=True)
            if not self._interrupted():
                self._watch()
            ended = _Ended("closed", "the API server ended the watch at once")  # said only if it did
        except (ApiError, MalformedError) as error:
            ended = _judge(error)
        return _Ended("relist", "another list was asked for") if self._interrupted() else ended

    def _settle(self, ended: _Ended) -> float:
        """Draw the consequences; returns the seconds to wait."""
        self._watching = False
        self._inbox.connected = False
        if self._stopping.is_set():
            return 0.0
        if ended.gone:
            self._listed = False
        if ended.reason == "stale":
            self._quorum = True
        lasted = time.monotonic() - self._watch_since if self._watch_since else 0.0
        if lasted >= self._timing.settled:
            self._backoff.reset()
            self._last_failure = ""
        self._on_restart(ended.reason)
        if ended.reason == "relist" or (ended.reason == "closed" and lasted >= self._timing.settled):
            self._log.debug("watch_restarted", reason=ended.reason)
            return 0.0
        self._report(ended)
        pause = self._backoff.next(answered=ended.reason not in _UNANSWERED)
        return max(pause, ended.retry_after)

    def _report(self, ended: _Ended) -> None:
        """Say what failed: in the inbox each time, in the log when it is something else than the last time."""
        if ended.unauthorized and self._inbox.unauthorized_since is None:
            self._inbox.unauthorized_since = time.monotonic()
        self._inbox.error = ended.error
        if self._inbox.error != self._last_failure:
            self._last_failure = self._inbox.error
            self._log.warning("watch_restarted", reason=ended.reason, error=ended.error)

    def _interrupted(self) -> bool:
        return self._asked.is_set() or self._stopping.is_set()

    def _list(self) -> bool:
        """List, and put it in the inbox. False if it is older than what was seen, so that another one is due."""
        started = time.monotonic()
        listing = self._nodes.list("" if self._quorum else self._mirror.high)
        fresh = self._mirror.replace(listing.nodes, listing.refused, listing.version, quorum=listing.quorum)
        self._inbox.unreadable = dict(listing.refused)
        for name, why in listing.refused:
            self._refuse(name, why)
        readable = all(each.name or each.why == NO_NAME for each in listing.refused)
        received = time.monotonic()
        nodes = dict(self._mirror.nodes)
        self._answered()
        self._quorum = False
        self._listed = True
        self._inbox.put_list(
            NodeList(nodes, consistent=fresh and readable, complete=self._own in nodes, started=started, received=received)
        )
        self._log.info(
            "nodes_listed",
            nodes=len(nodes),
            version=listing.version,
            quorum=listing.quorum,
            consistent=fresh and readable,
            own_node=self._own in nodes,
            seconds=round(received - started, 3),
        )
        return fresh

    def _watch(self) -> None:
        """Watch until the server closes the stream."""
        self._watching = True  # before _asked is looked at: relist() does it the other way round, so one sees the other
        stream, events = self._nodes.watch(
            self._mirror.version, seconds=self._rng.randint(*self._timing.watch), silence=self._timing.silence
        )
        try:
            self._watch_since = time.monotonic()
            self._answered()
            self._inbox.connected = True
            if not self._interrupted():
                for event in events:
                    self._take(event)
        finally:
            self._watching = False
            stream.close()

    def _take(self, event: NodeEvent) -> None:
        received = time.monotonic()
        self._inbox.last_contact = time.time()
        if event.status is not None:
            self._take_status(event)
            return
        if event.facts is not None and event.facts.name in self._inbox.unreadable:
            self._inbox.unreadable = {name: why for name, why in self._inbox.unreadable.items() if name != event.facts.name}
        change = self._mirror.take(event, received)
        if change is not None and event.facts is not None:
            self._inbox.put_change(event.facts.name, change)

    def _take_status(self, event: NodeEvent) -> None:
        status = event.status
        if status is None:
            return
        if event.kind == "REFUSED":
            self._refuse("", status.message)
            self._inbox.unreadable = {**self._inbox.unreadable, "": status.message}
        else:
            raise ApiError(status.code or 500, status.message or status.reason, retry_after=status.retry_after)

    def _refuse(self, name: str, why: str) -> None:
        self._log.warning("node_refused", node=name, reason=why)

    def _answered(self) -> None:
        """The server has done what it was asked for."""
        self._inbox.last_contact = time.time()
        self._inbox.unauthorized_since = None
        self._inbox.error = ""


def _judge(error: ApiError | MalformedError) -> _Ended:
    """What an error means for the next turn."""
    if isinstance(error, ApiError):
        reason = _STATUS_REASONS.get(error.status, "error") if error.status else error.code
        return _Ended(reason, str(error), error.status in {400, 410}, error.retry_after, reason == "unauthorized")
    if isinstance(error, TruncatedError):  # all events before it were whole: the watch may go on from there
        return _Ended("broken", f"the answer broke off: {error}")
    return _Ended("malformed", f"an answer that cannot be read: {error}", gone=True)
