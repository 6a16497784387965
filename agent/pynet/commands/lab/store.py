"""Node objects with resource versions and a history, as a Kubernetes API server keeps them. No HTTP here.

Objects are the API's own JSON as dicts and are never changed once stored: a change makes a new one. So a page of a list that
began at an older version is cut from that version's own state.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

Json = dict[str, Any]

MERGE_KEYS: Final = {"conditions": "type", "addresses": "type"}
"""The lists of a Node's status that a strategic merge patch merges, and by which key (core/v1 NodeStatus)."""


PAGED_LISTS: Final = 8
"""How many lists are kept for the pages that are still to come."""


class StatusError(Exception):
    """An answer that is a Status object: ``code`` (HTTP), ``reason`` (the API's word), and the text."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


class Change(NamedTuple):
    """One event of a watch: ``kind`` is ADDED, MODIFIED or DELETED; ``node`` the object after it (before it, if deleted)."""

    version: int
    kind: str
    node: Json


class Page(NamedTuple):
    """A part of a list: the list's version, the nodes in order of name, and how many there are after them."""

    version: int
    nodes: list[Json]
    remaining: int


class Store:
    """All Nodes of the lab. Thread-safe. ``history`` is how many changes a watch can go back; older ones are 410 Gone."""

    def __init__(self, history: int = 1000) -> None:
        self._changed = threading.Condition()
        self._nodes: dict[str, Json] = {}
        # Begins at the time, so that a server started again is never behind what its clients have seen.
        self._version = int(time.time())
        self._oldest = self._version
        self._history: deque[Change] = deque(maxlen=history)
        self._lists: OrderedDict[int, dict[str, Json]] = OrderedDict()

    @property
    def version(self) -> int:
        """The version of the last change."""
        with self._changed:
            return self._version

    def get(self, name: str) -> Json:
        """Return one Node. Raises StatusError 404."""
        with self._changed:
            return self._get(name)

    def page(self, limit: int = 0, after: str = "", version: int = 0) -> Page:
        """List up to ``limit`` nodes (0: all) whose names come after ``after``, as of ``version`` (0: now).

        Raises StatusError 410 if that version's list is no longer kept.
        """
        with self._changed:
            if version and version not in self._lists:
                raise StatusError(410, "Expired", "The provided continue parameter is too old")
            version = version or self._version
            nodes = self._lists.get(version, self._nodes)
            names = [name for name in sorted(nodes) if name > after]
            part = names[:limit] if limit else names
            if len(part) < len(names):
                self._lists[version] = dict(nodes)
                while len(self._lists) > PAGED_LISTS:
                    self._lists.popitem(last=False)
            return Page(version, [nodes[name] for name in part], len(names) - len(part))

    def create(self, node: Json) -> Json:
        """Store a new Node. Raises StatusError 409 if there is one of its name, 422 if it has none."""
        meta = node.get("metadata") or {}
        name = meta.get("name")
        if not isinstance(name, str) or not name:
            raise StatusError(422, "Invalid", 'Node "" is invalid: metadata.name: Required value')
        with self._changed:
            if name in self._nodes:
                raise StatusError(409, "AlreadyExists", f'nodes "{name}" already exists')
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            own = {"uid": str(uuid.uuid4()), "creationTimestamp": stamp}
            return self._put("ADDED", {"kind": "Node", "apiVersion": "v1", **node, "metadata": {**meta, **own}})

    def delete(self, name: str) -> Json:
        """Remove a Node. Raises StatusError 404."""
        with self._changed:
            return self._put("DELETED", self._get(name))

    def patch(self, name: str, patch: Json, *, status: bool, strategic: bool) -> Json:
        """Merge a patch into a Node's status, or into all but its status. Raises StatusError 404, 409."""
        with self._changed:
            node = self._get(name)
            wanted = (patch.get("metadata") or {}).get("resourceVersion")
            if wanted not in (None, node["metadata"]["resourceVersion"]):
                raise StatusError(409, "Conflict", f'nodes "{name}": the object has been modified')
            part = {key: value for key, value in patch.items() if (key == "status") == status}
            merged = merge(node, part, MERGE_KEYS if strategic else {})
            for fixed in ("name", "uid", "creationTimestamp"):
                merged["metadata"][fixed] = node["metadata"][fixed]
            return node if merged == node else self._put("MODIFIED", merged)

    def since(self, version: int, timeout: float) -> list[Change]:
        """Return the changes after ``version``; wait up to ``timeout`` seconds for the first.

        Raises StatusError 410 if they are no longer all kept.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._version > version, timeout)
            if version < self._oldest:
                raise StatusError(410, "Expired", f"too old resource version: {version} ({self._oldest})")
            return [change for change in self._history if change.version > version]

    def compact(self) -> None:
        """Forget the history and the lists that pages were cut from: what comes back for an older version is 410."""
        with self._changed:
            self._history.clear()
            self._lists.clear()
            self._oldest = self._version

    def _get(self, name: str) -> Json:
        try:
            return self._nodes[name]
        except KeyError:
            raise StatusError(404, "NotFound", f'nodes "{name}" not found') from None

    def _put(self, kind: str, node: Json) -> Json:
        self._version += 1
        node = {**node, "metadata": {**node["metadata"], "resourceVersion": str(self._version)}}
        if kind == "DELETED":
            del self._nodes[node["metadata"]["name"]]
        else:
            self._nodes[node["metadata"]["name"]] = node
        if len(self._history) == self._history.maxlen:
            self._oldest = self._history[0].version
        self._history.append(Change(self._version, kind, node))
        self._changed.notify_all()
        return node


def merge(value: Json, patch: Json, merge_keys: Mapping[str, str]) -> Json:
    """Merge ``patch`` into ``value`` (RFC 7396: null removes, lists are replaced) and return the result.

    Lists whose name is in ``merge_keys`` are merged element by element, by that key, as a strategic merge patch does.
    """
    merged = dict(value)
    for key, new in patch.items():
        old = merged.get(key)
        if new is None:
            merged.pop(key, None)
        elif isinstance(new, dict):
            merged[key] = merge(old if isinstance(old, dict) else {}, new, merge_keys)
        elif isinstance(new, list) and key in merge_keys:
            merged[key] = _merge_list(old if isinstance(old, list) else [], new, merge_keys[key])
        else:
            merged[key] = new
    return merged


def _merge_list(old: list[Json], new: list[Json], key: str) -> list[Json]:
    """Merge elements that have the same ``key``; ``$patch: delete`` removes one; others are added at the end."""
    merged = {element.get(key): element for element in old}
    for element in new:
        name = element.get(key)
        if element.get("$patch") == "delete":
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name, {}), element, {})
    return list(merged.values())
