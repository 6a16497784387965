"""What the API client and the two codecs of Nodes (nodeproto, nodejson) have in common: values, limits, errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pynet.core.model import NodeFacts

NODE_LIMIT: Final = 16 << 20
"""Bytes of one encoded Node above which it is refused, unread. etcd's own default limit is 1.5 MiB."""

NO_NAME: Final = "no name"
"""Why a Node without a name was refused: nobody else's facts depend on that one."""

INTERNAL_IP: Final = "InternalIP"
NETWORK_UNAVAILABLE: Final = "NetworkUnavailable"

_CHANGES: Final = frozenset(("ADDED", "MODIFIED", "DELETED"))


class MalformedError(ValueError):
    """The bytes are not what their content type says."""


class TruncatedError(MalformedError):
    """The stream ended inside a message."""


class Status(NamedTuple):
    """A ``v1.Status``, the API server's way to say no.

    HTTP ``code``, ``reason`` in one word, ``message`` for a person, ``retry_after`` in seconds (0 if not said).
    """

    code: int = 0
    reason: str = ""
    message: str = ""
    retry_after: int = 0


class NodeEvent(NamedTuple):
    """One event of a watch on Nodes.

    ``kind`` is ADDED, MODIFIED, DELETED, BOOKMARK, ERROR, or (ours) REFUSED for a Node that is too large or not a Node.
    ``version`` is the object's resourceVersion ("" for ERROR and REFUSED); ``facts`` is there for ADDED, MODIFIED and DELETED;
    ``status`` for ERROR, and for REFUSED with the reason in its message.
    """

    kind: str
    version: str = ""
    facts: NodeFacts | None = None
    status: Status | None = None


def node_event(kind: str, version: str, facts: NodeFacts) -> NodeEvent:
    """The event of a Node that was decoded. Raises MalformedError for a ``kind`` that a watch does not have."""
    if kind == "BOOKMARK":
        return NodeEvent(kind, version)
    if kind not in _CHANGES:
        raise MalformedError(f"an event of type {kind!r}")
    if not facts.name:
        return NodeEvent("REFUSED", status=Status(message=NO_NAME))
    return NodeEvent(kind, version, facts)


class Refused(NamedTuple):
    """A Node of a list that was not read: its ``name`` ("" if that could not be read either) and why."""

    name: str
    why: str


def too_large(size: int) -> str:
    """Why a Node of ``size`` bytes was refused."""
    return f"{size} bytes, more than {NODE_LIMIT}"
