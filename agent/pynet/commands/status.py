"""`pynet status`: what the agent of this node says of itself, worst first."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import sys
from collections.abc import Iterator
from typing import Final

import msgspec

from pynet import config
from pynet.commands.output import add_output_argument, duration, printable, table
from pynet.report.status import ApiStatus, PartStatus, PeerStatus, Status

EXIT_NOT_READY: Final = 1
EXIT_NOT_REACHED: Final = 3

SHOWN: Final = 20
"""Peers in the table, unless all are asked for."""

_TIMEOUT: Final = 10.0
_LAST_PORT: Final = 65535
_MAX_DOCUMENT: Final = 64 * 1024 * 1024
_WORST_FIRST: Final = ("failed", "pending", "conflict", "unreachable", "rejected", "ignored", "programmed")


_SOURCES: Final = {"none": "no Nodes yet", "snapshot": "Nodes from the last-good snapshot", "api": "Nodes from its list"}


class _NotReachedError(Exception):
    """The agent gave no answer, or none that is one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the agent is, and how much to show."""
    parser.add_argument("--config", metavar="FILE", help="the agent's configuration, for health.address and health.port")
    parser.add_argument("--address", help="loopback address that the agent serves its status on (127.0.0.1)")
    parser.add_argument("--port", type=_port, help="port that the agent serves its status on (9794)")
    parser.add_argument("--all", action="store_true", help=f"show every peer, not only the first {SHOWN}")
    add_output_argument(parser)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _LAST_PORT):  # the C library takes 99999 for 34463
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 1 to {_LAST_PORT}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Print the agent's status; returns 0 if it is ready, 1 if not, 3 if it is not reached. Raises ConfigError."""
    health = config.load(args.config).health
    address = args.address or health.address
    port = args.port if args.port is not None else health.port
    try:
        document = _fetch(address, port)
        status = _decode(document)
    except _NotReachedError as error:
        print(f"pynet status: no agent at {address} port {port}: {error}", file=sys.stderr)
        return EXIT_NOT_REACHED
    if args.output == "json":
        print(msgspec.json.format(document, indent=2).decode())
    else:
        print("\n".join(render(status, limit=None if args.all else SHOWN)))
    return 0 if status.ready else EXIT_NOT_READY


def _fetch(address: str, port: int) -> bytes:
    """The document, as the agent made it. Raises _NotReachedError."""
    try:
        with contextlib.closing(http.client.HTTPConnection(address, port, timeout=_TIMEOUT)) as connection:
            connection.request("GET", "/status")
            answer = connection.getresponse()
            document = answer.read(_MAX_DOCUMENT)
    except (OSError, OverflowError, http.client.HTTPException) as error:
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise _NotReachedError(printable(words)) from None
    if answer.status != http.client.OK:
        raise _NotReachedError(f"it answers {answer.status} {printable(answer.reason)}")
    return document


def _decode(document: bytes) -> Status:
    try:
        return msgspec.json.decode(document, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _NotReachedError(f"what answers there is not a pynet agent ({printable(str(error))})") from None


def render(status: Status, *, limit: int | None) -> list[str]:
    """The status as lines of text. ``limit`` is how many peers to show, None for all."""
    node = status.node
    lines = [f"{'READY' if status.ready else 'NOT READY'}  node {node.name or '?'}, pynet {status.version}, {_up(status)}"]
    lines += [f"  not ready: {reason}" for reason in status.reasons]
    lines += [f"  remark: {remark}" for remark in status.remarks]
    lines = [printable(line) for line in lines]
    lines += ["", *table(_parts(status)), "", *_peers(status, limit)]
    return lines


def _up(status: Status) -> str:
    return f"up {duration(status.time - status.started)}" if status.started else "just started"


def _parts(status: Status) -> Iterator[tuple[str, str]]:
    """What there is besides peers, each with its state in words."""
    node = status.node
    yield "podCIDRs", " ".join(node.pod_cidrs) or "none"
    yield "addresses", " ".join(node.addresses) or "none"
    yield "API", _api(status.api, status.time)
    yield "last pass", _last_pass(status)
    for name in ("masquerade", "forward", "conflist", "condition"):
        yield name, _part(getattr(status, name))
    wrong = [setting for setting in status.sysctls if not setting.ok]
    yield "sysctls", f"{len(status.sysctls) - len(wrong)} of {len(status.sysctls)} right"
    for setting in wrong:
        yield "", f"{setting.name} is {setting.have or 'unreadable'}, must be {setting.want}: {setting.error}"
    if status.held is not None:
        age = duration(status.time - status.held.since)
        yield "guard", f"a removal of {status.held.routes} routes is held since {age}: {status.held.reason}"


def _api(api: ApiStatus, now: float) -> str:
    contact = f"last contact {duration(now - api.last_contact)} ago" if api.last_contact else "never reached"
    words = [f"{'connected to' if api.connected else 'NOT connected to'} {api.server or '?'}", contact]
    words.append(_SOURCES[api.source])
    if api.error:
        words.append(api.error)
    return ", ".join(words)


def _last_pass(status: Status) -> str:
    last = status.last_pass
    if last is None:
        return "none yet"
    result = "verified" if last.verified else f"NOT verified{': ' + last.error if last.error else ''}"
    age = duration(status.time - last.time)
    return f"{age} ago for {last.trigger}, {last.seconds * 1000:.1f} ms, {last.operations} route messages, {result}"


def _part(part: PartStatus) -> str:
    if part.error:
        return f"{'FAILED' if part.state == 'failed' else part.state}: {part.error}"
    return f"{part.state} ({part.detail})" if part.detail else part.state


def _peers(status: Status, limit: int | None) -> Iterator[str]:
    """Counts, then the table: what is not programmed first."""
    for family, counts in sorted(status.counts.items()):
        yield f"IPv{family} peers: " + ", ".join(f"{counts[state]} {state}" for state in _WORST_FIRST[::-1] if state in counts)
    if not status.peers:
        yield "no peers"
        return
    peers = sorted(status.peers, key=_urgency)
    shown = peers if limit is None else peers[:limit]
    head = ("PEER", "FAMILY", "PODCIDR", "VIA", "STATE", "SINCE", "REASON")
    yield from table([head, *(_row(peer, status.time) for peer in shown)])
    if len(shown) < len(peers):
        yield f"and {len(peers) - len(shown)} more; --all shows them"


def _urgency(peer: PeerStatus) -> tuple[int, str, int]:
    position = _WORST_FIRST.index(peer.state) if peer.state in _WORST_FIRST else -1
    return position, peer.name, peer.family


def _row(peer: PeerStatus, now: float) -> tuple[str, ...]:
    age = duration(now - peer.since)
    return peer.name, f"IPv{peer.family}", peer.pod_cidr or "-", peer.next_hop or "-", peer.state, age, peer.reason
