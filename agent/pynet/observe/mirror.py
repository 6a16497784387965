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
        fresh = not self._older(version, self.high)
        if fresh or quorum:
            self.high = version
        self.version = version
        self._floor = _number(version)
        self._versions = {}
        return fresh

    def take(self, event: NodeEvent, received: float) -> NodeChange | None:
        """What an ADDED, MODIFIED or DELETED event changes in what we keep; None for a heartbeat, a late or a double event."""
        facts = event.facts
        if facts is None:
            return None
        if not self._in_order(facts.name, event.version):
            return None
        known = self.nodes.get(facts.name)
        if event.kind == "DELETED":
            if known is not None and known.uid != facts.uid:
                return None  # of an older Node of this name
            self.nodes.pop(facts.name, None)
            self._forget()
            return NodeChange(None, facts.uid, received)
        if known == facts:
            return None
        self.nodes[facts.name] = facts
        return NodeChange(facts, facts.uid, received)

    def advance(self, version: str) -> None:
        """A watch has come this far."""
        if version and not self._older(version, self.version):
            self.version = version
            if not self._older(version, self.high):
                self.high = version

    @staticmethod
    def _older(version: str, than: str) -> bool:
        return 0 <= _number(version) < _number(than)

    def _in_order(self, name: str, version: str) -> bool:
        number = _number(version)
        if number < 0:
            return True
        if number <= self._versions.get(name, self._floor):
            return False
        self._versions[name] = number
        return True

    def _forget(self) -> None:
        if len(self._versions) > 2 * len(self.nodes) + _SLACK:
            self._versions = {name: number for name, number in self._versions.items() if name in self.nodes}
