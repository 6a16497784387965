"""The watcher's own copy of the facts, by which it tells news from repetition. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pynet.observe.inbox import NodeChange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pynet.core.model import NodeFacts
    from pynet.drivers.apiwire import NodeEvent, Refused

_SLACK: Final = 1024  # versions of deleted Nodes that may be kept


def _number(version: str) -> int:
    """A resourceVersion as a number; -1 if it is not one, as some servers have it: then there is no order to go by."""
    return int(version) if version.isascii() and version.isdigit() else -1


class Mirror:
    """Nodes as last seen. ``version`` is the resourceVersion that a watch goes on from, ``high`` the highest ever seen."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeFacts] = {}
        self.version = ""
        self.high = ""
        self._at = self._top = -1  # the same two as numbers
        self._floor = -1  # the list's version: no event at or below it is news
        self._versions: dict[str, int] = {}  # of the last event of each Node since the list

    def replace(self, nodes: Iterable[NodeFacts], refused: Iterable[Refused], version: str, *, quorum: bool) -> bool:
        """Take a list; returns True if it is no older than anything seen before.

        A refused Node keeps the facts it had, or has none. An older list is taken all the same, for the watch goes on from
        it; if it was a quorum read, then time has gone back (etcd restored), and it is the new measure.
        """
        known = self.nodes
        self.nodes = {}
        for facts in nodes:
            last = known.get(facts.name)
            self.nodes[facts.name] = last if last == facts else facts  # one object for what stays the same
        for each in refused:
            if each.name in known:
                self.nodes[each.name] = known[each.name]
        number = _number(version)
        fresh = not 0 <= number < self._top
        if fresh or quorum:
            self.high, self._top = version, number
        self.version = version
        self._at = self._floor = number
        self._versions = {}
        return fresh

    def take(self, event: NodeEvent, received: float) -> NodeChange | None:
        """Note how far the watch has come; returns what the event changes in what we keep, None for a heartbeat, a late or a
        double event, a bookmark.
        """
        number = _number(event.version)
        change = self._news(event.kind, event.facts, number, received) if event.facts is not None else None
        if event.version and not 0 <= number < self._at:  # the watch has come this far
            self.version, self._at = event.version, number
            if not 0 <= number < self._top:
                self.high, self._top = event.version, number
        return change

    def _news(self, kind: str, facts: NodeFacts, number: int, received: float) -> NodeChange | None:
        if not self._in_order(facts.name, number):
            return None
        known = self.nodes.get(facts.name)
        if kind == "DELETED":
            if known is not None and known.uid != facts.uid:
                return None  # of an older Node of this name
            self.nodes.pop(facts.name, None)
            self._forget()
            return NodeChange(None, facts.uid, received)
        if known == facts:
            return None
        self.nodes[facts.name] = facts
        return NodeChange(facts, facts.uid, received)

    def _in_order(self, name: str, number: int) -> bool:
        if number < 0:
            return True
        if number <= self._versions.get(name, self._floor):
            return False
        self._versions[name] = number
        return True

    def _forget(self) -> None:
        if len(self._versions) > 2 * len(self.nodes) + _SLACK:
            self._versions = {name: number for name, number in self._versions.items() if name in self.nodes}
