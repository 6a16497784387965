"""The mailbox between the Node watcher and the loop: what was seen of the cluster, and how the API server is doing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pynet.core.model import NodeFacts

_HISTORY: Final = 8  # changes of one name that wait; the last one says what holds


class NodeChange(NamedTuple):
    """A Node that is new or different, or with ``facts`` None one that is gone. ``received`` is time.monotonic()."""

    facts: NodeFacts | None
    uid: str
    received: float


class NodeList(NamedTuple):
    """All Nodes at one moment, by name.

    ``consistent``: no older than anything seen before, and nothing in it unreadable. ``complete``: our own Node is in it.
    ``started`` and ``received`` (time.monotonic()) are when it was asked for and when it was there.
    """

    nodes: dict[str, NodeFacts]
    consistent: bool
    complete: bool
    started: float
    received: float

    @property
    def may_remove(self) -> bool:
        """Whether the absence of a Node from this list means that it is gone."""
        return self.consistent and self.complete


class NodeChanges(NamedTuple):
    """What has come since the last drain: a list, if any, and then ``changed`` by name, in order, on top of it."""

    listed: NodeList | None
    changed: dict[str, list[NodeChange]]


class NodeInbox:
    """Thread-safe. ``wake`` is called, outside the lock, when something was put in.

    The watcher's health is in plain attributes that it alone writes: ``connected``, a watch is open; ``error``, why not, in one
    line ("" if all is well); ``last_contact``, time.time() of the last good answer or event (0.0: never);
    ``unauthorized_since``, time.monotonic() of the first of an unbroken row of 401 or 403, or None; ``unreadable``, the Nodes
    that are too large or not what they should be, why by name ("": unknown, until the next list), a new dict each time.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.connected = False
        self.error = ""
        self.last_contact = 0.0
        self.unauthorized_since: float | None = None
        self.unreadable: dict[str, str] = {}
        self._wake = wake
        self._lock = threading.Lock()
        self._listed: NodeList | None = None
        self._changed: dict[str, list[NodeChange]] = {}

    def put_list(self, listed: NodeList) -> None:
        """Put a list in. One that may remove is not replaced by one that may not: it would never come again."""
        with self._lock:
            if self._listed is not None and self._listed.may_remove and not listed.may_remove:
                return
            self._listed = listed
            if listed.consistent:
                self._changed = {}  # the list has them; over an older one they still hold
        self._wake()

    def put_change(self, name: str, change: NodeChange) -> None:
        """Put a change of one Node in."""
        with self._lock:
            history = self._changed.setdefault(name, [])
            if history and history[-1].facts is not None and change.facts is not None and history[-1].uid == change.uid:
                history[-1] = change._replace(received=history[-1].received)
            else:
                history.append(change)
                del history[:-_HISTORY]
        self._wake()

    def drain(self) -> NodeChanges:
        """Take all that waits."""
        with self._lock:
            drained = NodeChanges(self._listed, self._changed)
            self._listed, self._changed = None, {}
        return drained
