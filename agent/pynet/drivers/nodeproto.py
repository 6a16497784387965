r"""Nodes in the Kubernetes protobuf encoding, walked field by field: no generated classes, nothing kept but NodeFacts.

A message starts with ``k8s\0`` and a runtime.Unknown {1 typeMeta, 2 raw, ...}; ``raw`` is the NodeList, Node or Status.
A watch is a sequence of frames: four bytes of length (big endian), then a WatchEvent {1 type, 2 RawExtension {1 raw}} with
such a message in it. Field numbers are those of k8s.io/api/core/v1/generated.proto and of apimachinery, which never change.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from pynet.core.model import NODE_IP_ANNOTATION, NodeFacts
from pynet.drivers.apiwire import (
    INTERNAL_IP,
    NETWORK_UNAVAILABLE,
    NO_NAME,
    NODE_LIMIT,
    MalformedError,
    NodeEvent,
    Refused,
    Status,
    node_event,
    too_large,
)
from pynet.drivers.protowire import Source, fields, text, varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTENT_TYPE: Final = "application/vnd.kubernetes.protobuf"

_MAGIC: Final = b"k8s\0"
_ANNOTATION: Final = NODE_IP_ANNOTATION.encode()
_NETWORK_UNAVAILABLE: Final = NETWORK_UNAVAILABLE.encode()
_INTERNAL_IP: Final = INTERNAL_IP.encode()
_FRAME_LIMIT: Final = 256 << 20  # text taken for a length gives more than this
_HEAD: Final = 4096  # of a refused Node, enough to find its name, which comes first


def _pair(data: bytes, at: int, end: int) -> tuple[bytes, bytes]:
    """Fields 1 and 2, both strings: a map entry, a NodeAddress, the head of a NodeCondition."""
    first = second = b""
    for number, start, stop in fields(data, at, end):
        if number == 1:
            first = data[start:stop]
        elif number == 2:
            second = data[start:stop]
    return first, second


def _seconds(data: bytes, at: int, end: int) -> int:
    """Seconds of a meta/v1 Time; 0 for the zero time, which is an empty message."""
    for number, value, _ in fields(data, at, end):
        if number == -1:
            return value if value < 1 << 63 else value - (1 << 64)
    return 0


def _annotation(data: bytes, at: int, end: int) -> str:
    for number, start, stop in fields(data, at, end):
        if number == 12:
            key, value = _pair(data, start, stop)
            if key == _ANNOTATION:
                return value.decode("utf-8", "replace")
    return ""


def _condition(data: bytes, at: int, end: int) -> tuple[str, str] | None:
    """(status, reason) of a NodeCondition if it is NetworkUnavailable."""
    kind, status = _pair(data, at, end)
    if kind != _NETWORK_UNAVAILABLE:
        return None
    reason = ""
    for number, start, stop in fields(data, at, end):
        if number == 5:
            reason = text(data, start, stop)
    return status.decode("utf-8", "replace"), reason


def _metadata(data: bytes, at: int, end: int) -> tuple[str, str, str, int]:
    """(name, uid, resourceVersion, creationTimestamp). Labels and managedFields behind them are not walked."""
    name = uid = version = ""
    created = 0
    for number, start, stop in fields(data, at, end):
        if number == 1:
            name = text(data, start, stop)
        elif number == 5:
            uid = text(data, start, stop)
        elif number == 6:
            version = text(data, start, stop)
        elif number == 8:
            created = _seconds(data, start, stop)
            if name and uid and version:
                break
    return name, uid, version, created


def _pod_cidrs(data: bytes, at: int, end: int) -> tuple[str, ...]:
    """spec.podCIDRs, or spec.podCIDR if there is no plural."""
    single = ""
    several: list[str] = []
    for number, start, stop in fields(data, at, end):
        if number == 1:
            single = text(data, start, stop)
        elif number == 7:
            several.append(text(data, start, stop))
    if several:
        return tuple(several)
    return (single,) if single else ()


def _status(data: bytes, at: int, end: int, own: bool) -> tuple[tuple[str, ...], str, tuple[str, str] | None]:
    """(InternalIPs, operating system, NetworkUnavailable if ``own``)."""
    addresses: list[str] = []
    system = ""
    condition = None
    for number, start, stop in fields(data, at, end):
        if number == 5:
            kind, address = _pair(data, start, stop)
            if kind == _INTERNAL_IP:
                addresses.append(address.decode("utf-8", "replace"))
        elif number == 4:
            if own:
                condition = _condition(data, start, stop) or condition
        elif number == 7:
            for inner, first, last in fields(data, start, stop):
                if inner == 9:
                    system = sys.intern(text(data, first, last))
        elif number == 8 and system:
            break  # images: most of the bytes of a Node, and by number the fields after nodeInfo
    return tuple(addresses), system, condition


def _node(data: bytes, at: int, end: int, own: str) -> tuple[NodeFacts, str]:
    name = uid = version = node_ip = system = ""
    created = 0
    pod_cidrs: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    condition = None
    for number, start, stop in fields(data, at, end):
        if number == 1:
            name, uid, version, created = _metadata(data, start, stop)
            if data.find(_ANNOTATION, start, stop) >= 0:  # a search in C, instead of a walk over what nobody annotated
                node_ip = _annotation(data, start, stop)
        elif number == 2:
            pod_cidrs = _pod_cidrs(data, start, stop)
        elif number == 3:
            addresses, system, condition = _status(data, start, stop, name == own)
    return NodeFacts(name, uid, created, pod_cidrs, addresses, node_ip, system, condition), version


def decode_node(data: bytes, own: str) -> tuple[NodeFacts, str]:
    """The facts and the resourceVersion of an encoded Node, its condition if its name is ``own``. Raises MalformedError."""
    return _node(data, 0, len(data), own)


def _unwrap(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the ``raw`` of the runtime.Unknown at ``data[at:end]`` starts and stops."""
    if data[at : at + 4] != _MAGIC:
        raise MalformedError("protobuf: no k8s prefix")
    for number, start, stop in fields(data, at + 4, end):
        if number == 2:
            return start, stop
    return end, end


def decode_status(data: bytes) -> Status:
    """The v1.Status in ``data``, prefix and envelope included. Raises MalformedError."""
    start, stop = _unwrap(data, 0, len(data))
    return _status_message(data, start, stop)


def _status_message(data: bytes, at: int, end: int) -> Status:
    message = reason = ""
    code = retry_after = 0
    for number, start, stop in fields(data, at, end):
        if number == 3:
            message = text(data, start, stop)
        elif number == 4:
            reason = text(data, start, stop)
        elif number == 5:
            for inner, value, _ in fields(data, start, stop):
                if inner == -5:
                    retry_after = value
        elif number == -6:
            code = start
    return Status(code, reason, message, retry_after)


def decode_event(data: bytes, own: str) -> NodeEvent:
    """One frame of a watch, without its length. Raises MalformedError."""
    kind = ""
    at = end = 0
    for number, start, stop in fields(data, 0, len(data)):
        if number == 1:
            kind = sys.intern(text(data, start, stop))
        elif number == 2:
            for inner, first, last in fields(data, start, stop):
                if inner == 1:
                    at, end = _unwrap(data, first, last)
    if kind == "ERROR":
        return NodeEvent(kind, status=_status_message(data, at, end))
    facts, version = _node(data, at, end, own)
    return node_event(kind, version, facts)


class NodeListWalk:
    """Iterates over the NodeFacts of an encoded NodeList while its chunks arrive; holds one Node at a time.

    After the iteration, ``resource_version`` is the list's and ``refused`` has the Nodes that were not read. Raises
    MalformedError, and whatever ``chunks`` raises.
    """

    def __init__(self, chunks: Iterable[bytes], own: str) -> None:
        self.resource_version = ""
        self.refused: list[Refused] = []
        self._source = Source(chunks)
        self._own = own

    def __iter__(self) -> Iterator[NodeFacts]:
        source = self._source
        if source.take(4) != _MAGIC:
            raise MalformedError("protobuf: no k8s prefix")
        while not source.at_end():
            key, _ = source.varint()
            if key & 7 != 2:
                raise MalformedError(f"protobuf: wire type {key & 7} in the envelope")
            size, _ = source.varint()
            if key >> 3 == 2:
                yield from self._items(size)
            else:
                source.skip(size)
        if not self.resource_version:
            raise MalformedError("protobuf: a NodeList without resourceVersion")

    def _items(self, left: int) -> Iterator[NodeFacts]:
        """The NodeList itself, ``left`` bytes of it."""
        source = self._source
        while left > 0:
            key, width = source.varint()
            size, more = source.varint()
            left -= width + more + size
            if key & 7 != 2 or left < 0:
                raise MalformedError("protobuf: not a NodeList")
            if key >> 3 != 2 or size > NODE_LIMIT:
                self._aside(key >> 3, size)
                continue
            facts, _ = decode_node(source.take(size), self._own)
            if facts.name:
                yield facts
            else:
                self.refused.append(Refused("", NO_NAME))

    def _aside(self, number: int, size: int) -> None:
        """A field of the list that is not a Node, or one that is too large to be read."""
        head = self._source.take(min(size, _HEAD))
        self._source.skip(size - len(head))
        if number == 1:
            for inner, start, stop in fields(head, 0, len(head)):
                if inner == 2:
                    self.resource_version = text(head, start, stop)
        elif number == 2:
            self.refused.append(Refused(_name_in(head), too_large(size)))


def _name_in(head: bytes) -> str:
    """The name of a Node of which only the first bytes are there: metadata is its first field, the name the first of that."""
    try:
        if head[0] == 0x0A:
            _, at = varint(head, 1)
            if head[at] == 0x0A:
                size, at = varint(head, at + 1)
                return text(head, at, at + size)
    except IndexError:
        return ""
    return ""


def walk_events(chunks: Iterable[bytes], own: str) -> Iterator[NodeEvent]:
    """The events of a watch as they arrive; the end of the stream between two frames is their end.

    Raises MalformedError, and whatever ``chunks`` raises.
    """
    source = Source(chunks)
    while not source.at_end():
        size = int.from_bytes(source.take(4), "big")
        if size <= NODE_LIMIT:
            yield decode_event(source.take(size), own)
        elif size <= _FRAME_LIMIT:
            source.skip(size)
            yield NodeEvent("REFUSED", status=Status(message=too_large(size)))
        else:
            raise MalformedError(f"protobuf: a frame of {size} bytes")
