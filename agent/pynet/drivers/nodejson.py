"""Nodes in JSON, decoded by msgspec straight into the few fields that are kept: what any conformant server speaks."""

from __future__ import annotations

import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

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
    TruncatedError,
    node_event,
    too_large,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTENT_TYPE: Final = "application/json"


class _Annotations(msgspec.Struct, gc=False):
    node_ip: str = msgspec.field(default="", name=NODE_IP_ANNOTATION)


class _Metadata(msgspec.Struct, gc=False, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    annotations: _Annotations | None = None


class _Spec(msgspec.Struct, gc=False):
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="podCIDRs")


class _Address(msgspec.Struct, gc=False):
    type: str = ""
    address: str = ""


class _Condition(msgspec.Struct, gc=False):
    type: str = ""
    status: str = ""
    reason: str = ""


class _NodeInfo(msgspec.Struct, gc=False, rename="camel"):
    operating_system: str = ""


class _NodeStatus(msgspec.Struct, gc=False, rename="camel"):
    addresses: tuple[_Address, ...] | None = None
    conditions: tuple[_Condition, ...] | None = None
    node_info: _NodeInfo | None = None


class _Node(msgspec.Struct, gc=False):
    metadata: _Metadata
    spec: _Spec | None = None
    status: _NodeStatus | None = None


class _Name(msgspec.Struct, gc=False):
    name: str = ""


class _Named(msgspec.Struct, gc=False):
    metadata: _Name


class _ListMeta(msgspec.Struct, gc=False, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, gc=False):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int = 0


class _StatusObject(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_decode_node: Final = msgspec.json.Decoder(_Node).decode
_decode_named: Final = msgspec.json.Decoder(_Named).decode
_decode_list: Final = msgspec.json.Decoder(_List).decode
_decode_event: Final = msgspec.json.Decoder(_Event).decode
_decode_status: Final = msgspec.json.Decoder(_StatusObject).decode
_decode_list_meta: Final = msgspec.json.Decoder(_ListMeta).decode
_LIST_META: Final = re.compile(rb'"metadata"\s*:\s*(\{[^{}]*\})')


class NodePage(NamedTuple):
    """One page of a list; ``continue_`` is the token of the next one, "" on the last."""

    nodes: list[NodeFacts]
    refused: list[Refused]
    resource_version: str
    continue_: str


def _seconds(timestamp: str | None) -> int:
    try:
        return int(datetime.fromisoformat(timestamp or "").timestamp())
    except ValueError:
        return 0


def _facts(node: _Node, own: str) -> NodeFacts:
    metadata, spec, status = node.metadata, node.spec or _Spec(), node.status or _NodeStatus()
    condition = None
    if metadata.name == own:
        for each in status.conditions or ():
            if each.type == NETWORK_UNAVAILABLE:
                condition = (each.status, each.reason)
    return NodeFacts(
        name=metadata.name,
        uid=metadata.uid,
        created=_seconds(metadata.creation_timestamp),
        pod_cidrs=spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else ()),
        internal_ips=tuple(each.address for each in status.addresses or () if each.type == INTERNAL_IP),
        node_ip=metadata.annotations.node_ip if metadata.annotations else "",
        os=sys.intern(status.node_info.operating_system) if status.node_info else "",
        condition=condition,
    )


def _refuse(raw: msgspec.Raw, why: str) -> Refused:
    try:
        return Refused(_decode_named(raw).metadata.name, why)
    except msgspec.ValidationError:
        return Refused("", why)


def decode_page(data: bytes, own: str) -> NodePage:
    """A page of a NodeList; a Node with a field of the wrong type is refused alone. Raises MalformedError."""
    nodes: list[NodeFacts] = []
    refused: list[Refused] = []
    try:
        page = _decode_list(data)
        for raw in page.items or ():
            size = memoryview(raw).nbytes
            if size > NODE_LIMIT:
                refused.append(_refuse(raw, too_large(size)))
                continue
            try:
                facts = _facts(_decode_node(raw), own)
            except msgspec.ValidationError as error:
                refused.append(_refuse(raw, str(error)))
                continue
            if facts.name:
                nodes.append(facts)
            else:
                refused.append(Refused("", NO_NAME))
    except msgspec.DecodeError as error:
        raise MalformedError(f"JSON: {error}") from error
    return NodePage(nodes, refused, page.metadata.resource_version, page.metadata.continue_)


def decode_oversized(head: bytes) -> NodePage:
    """A page that was not read because its one Node is too large.

    What comes before the Node, in ``head``, has the token of the next page. Raises MalformedError if it has not.
    """
    found = _LIST_META.search(head)
    try:
        meta = _decode_list_meta(found[1] if found else b"")
    except msgspec.DecodeError as error:
        raise MalformedError("JSON: a page is too large, and its metadata does not come first") from error
    return NodePage([], [Refused("", f"more than {NODE_LIMIT} bytes")], meta.resource_version, meta.continue_)


def decode_status(data: bytes) -> Status:
    """The v1.Status in ``data``. Raises MalformedError."""
    try:
        status = _decode_status(data)
    except msgspec.DecodeError as error:
        raise MalformedError(f"JSON: {error}") from error
    return Status(status.code, status.reason, status.message, status.details.retry_after_seconds if status.details else 0)


def decode_event(line: bytes, own: str) -> NodeEvent:
    """One line of a watch. Raises MalformedError."""
    try:
        event = _decode_event(line)
        if event.type == "ERROR":
            return NodeEvent("ERROR", status=decode_status(event.object))
        try:
            node = _decode_node(event.object)
        except msgspec.ValidationError as error:
            return NodeEvent("REFUSED", status=Status(message=" ".join(_refuse(event.object, str(error)))))
    except msgspec.DecodeError as error:
        raise MalformedError(f"JSON: {error}") from error
    return node_event(event.type, node.metadata.resource_version, _facts(node, own))


def walk_events(chunks: Iterable[bytes], own: str) -> Iterator[NodeEvent]:
    """The events of a watch, one a line, as they arrive. Raises MalformedError, and whatever ``chunks`` raises."""
    buffer = bytearray()
    skipped = searched = 0
    for chunk in chunks:
        buffer += chunk
        while (newline := buffer.find(b"\n", searched)) >= 0:
            line = bytes(buffer[:newline])
            del buffer[: newline + 1]
            searched = 0
            if skipped or len(line) > NODE_LIMIT:
                yield NodeEvent("REFUSED", status=Status(message=too_large(skipped + len(line))))
                skipped = 0
            elif line.strip():
                yield decode_event(line, own)
        searched = len(buffer)
        if len(buffer) > NODE_LIMIT or skipped:
            skipped += len(buffer)
            buffer.clear()
            searched = 0
    if buffer or skipped:
        raise TruncatedError("JSON: the stream ended inside an event")
