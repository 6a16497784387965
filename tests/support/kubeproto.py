"""Node objects (JSON dictionaries) in the Kubernetes protobuf encoding, written from the published field numbers alone.

Independent of the product's reader, and like the API server's own writer: fields in order of their numbers, empty strings of
plain fields written out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

Json = dict[str, Any]
Value = bytes | str | int

_NODE_INFO = (
    *("machineID", "systemUUID", "bootID", "kernelVersion", "osImage", "containerRuntimeVersion", "kubeletVersion"),
    *("kubeProxyVersion", "operatingSystem", "architecture"),
)


def varint(value: int) -> bytes:
    """``value`` in groups of seven bits, negative ones as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(*fields: tuple[int, Value]) -> bytes:
    """A message of these (number, value) pairs: an int as varint, text and bytes by length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def wrap(kind: str, raw: bytes) -> bytes:
    """The prefix and the runtime.Unknown around ``raw``."""
    return b"k8s\0" + message((1, message((1, "v1"), (2, kind))), (2, raw), (3, ""), (4, ""))


def node(body: Json) -> bytes:
    """core/v1 Node."""
    return message((1, _metadata(body["metadata"])), (2, _spec(body.get("spec", {}))), (3, _status(body.get("status", {}))))


def node_list(bodies: list[Json], version: str) -> bytes:
    """A whole NodeList, prefix included."""
    metadata = message((1, ""), (2, version), (3, ""))
    return wrap("NodeList", message((1, metadata), *((2, node(body)) for body in bodies)))


def status(body: Json) -> bytes:
    """meta/v1 Status, prefix included."""
    retry_after = body.get("details", {}).get("retryAfterSeconds", 0)
    details = message((1, ""), (2, ""), (3, ""), (5, retry_after), (6, ""))
    fields = ((2, "Failure"), (3, body.get("message", "")), (4, body.get("reason", "")), (5, details), (6, body.get("code", 0)))
    return wrap("Status", message((1, message((1, ""))), *fields))


def frame(kind: str, body: Json) -> bytes:
    """One frame of a watch, length included."""
    raw = status(body) if kind == "ERROR" else wrap("Node", node(body))
    data = message((1, kind), (2, message((1, raw))))
    return len(data).to_bytes(4, "big") + data


def _metadata(body: Json) -> bytes:
    plain = ((1, "name"), (2, "generateName"), (3, "namespace"), (4, "selfLink"), (5, "uid"), (6, "resourceVersion"))
    fields: list[tuple[int, Value]] = [(number, body.get(key, "")) for number, key in plain]
    fields += [(7, body.get("generation", 0)), (8, _time(body.get("creationTimestamp")))]
    fields += [(11, message((1, key), (2, value))) for key, value in sorted(body.get("labels", {}).items())]
    fields += [(12, message((1, key), (2, value))) for key, value in sorted(body.get("annotations", {}).items())]
    fields += [
        (17, message((1, each.get("manager", "")), (2, "Update"), (3, "v1"), (6, "FieldsV1"), (7, message((1, b"{}" * 300)))))
        for each in body.get("managedFields", [])
    ]
    return message(*fields)


def _time(text: str | None) -> bytes:
    return message((1, int(datetime.fromisoformat(text).timestamp())), (2, 0)) if text else b""


def _spec(body: Json) -> bytes:
    fields: list[tuple[int, Value]] = [(1, body.get("podCIDR", "")), (3, body.get("providerID", "")), (4, 0)]
    fields += [(5, message((1, each["key"]), (2, ""), (3, each["effect"]))) for each in body.get("taints", [])]
    fields += [(7, each) for each in body.get("podCIDRs") or []]
    return message(*fields)


def _status(body: Json) -> bytes:
    fields: list[tuple[int, Value]] = []
    for number, key in ((1, "capacity"), (2, "allocatable")):
        fields += [(number, message((1, name), (2, message((1, q))))) for name, q in sorted(body.get(key, {}).items())]
    fields.append((3, ""))
    for each in body.get("conditions") or []:
        times = ((3, _time(each.get("lastHeartbeatTime"))), (4, _time(each.get("lastTransitionTime"))))
        words = ((5, each.get("reason", "")), (6, each.get("message", "")))
        fields.append((4, message((1, each["type"]), (2, each["status"]), *times, *words)))
    fields += [(5, message((1, each["type"]), (2, each["address"]))) for each in body.get("addresses") or []]
    fields.append((6, message((1, message((1, 10250))))))
    info = body.get("nodeInfo", {})
    fields.append((7, message(*((number, info.get(key, "")) for number, key in enumerate(_NODE_INFO, 1)))))
    for each in body.get("images") or []:
        fields.append((8, message(*((1, name) for name in each["names"]), (2, each["sizeBytes"]))))
    return message(*fields)
