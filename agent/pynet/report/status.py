"""What /status shows, and the board on which the loop notes what became of each peer.

The loop writes one entry a changed peer; text and JSON are made when somebody asks, in the asking thread. The document's
types are also what `pynet status` reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from pynet import __version__
from pynet.core.model import Family, Prefix, format_address
from pynet.report.readiness import Readiness, Waiting, readiness


class PeerStatus(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """A peer in one family. ``since`` is when it came into this state (epoch seconds)."""

    name: str
    uid: str
    family: Family
    pod_cidr: str = msgspec.field(name="podCIDR")
    next_hop: str
    state: str
    reason: str
    since: float


class NodeStatus(msgspec.Struct, frozen=True, rename="camel"):
    """Our own node. ``known``: its Node object has been seen; ``refused`` says why podCIDRs of it may not be used."""

    name: str = ""
    uid: str = ""
    known: bool = False
    pod_cidrs: tuple[str, ...] = msgspec.field(default=(), name="podCIDRs")
    addresses: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class ApiStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The API server, and what we have of it.

    ``last_contact``, ``snapshot_time`` and ``unauthorized_since`` (it answers 401 or 403 since then) are epoch seconds, 0 for
    never; ``source`` says where the Nodes come from; ``complete``: a complete list has been seen since the start;
    ``unreadable``: the Nodes that are too large or malformed, with why ("" for a name that could not be read either).
    """

    server: str = ""
    connected: bool = False
    last_contact: float = 0.0
    error: str = ""
    unauthorized_since: float = 0.0
    complete: bool = False
    source: Literal["none", "snapshot", "api"] = "none"
    snapshot_time: float = 0.0
    unreadable: dict[str, str] = {}


class SysctlStatus(msgspec.Struct, frozen=True):
    """One setting; ``ok`` is what readiness asks for, ``error`` what is wrong and what mends it."""

    name: str
    want: str
    have: str
    error: str = ""
    ok: bool = True


class PartStatus(msgspec.Struct, frozen=True):
    """Something slow that is kept right: off (by configuration), waiting (for its first time), ok, or failed with ``error``.

    ``detail`` is what there is to know of one that is right, such as a file's path.
    """

    state: Literal["off", "waiting", "ok", "failed"] = "waiting"
    error: str = ""
    detail: str = ""


class HeldStatus(msgspec.Struct, frozen=True):
    """A removal that the guard holds, since epoch seconds."""

    routes: int
    reason: str
    since: float


class PassStatus(msgspec.Struct, frozen=True):
    """The last pass of the loop: when (epoch seconds), how long, why, how many route messages, and whether it was verified."""

    time: float
    seconds: float
    trigger: str
    operations: int
    verified: bool
    error: str = ""


class Status(msgspec.Struct, frozen=True, rename="camel"):
    """The whole document.

    ``settled``: a pass over everything was verified; ``problems`` are listeners that cannot listen, and whatever else is
    wrong here. The last six fields are the board's to fill in: ``counts`` is peers by family and state, ``reasons`` why we are
    not ready, ``remarks`` what a person should know even if we are.
    """

    node: NodeStatus = NodeStatus()
    api: ApiStatus = ApiStatus()
    sysctls: tuple[SysctlStatus, ...] = ()
    masquerade: PartStatus = PartStatus()
    forward: PartStatus = PartStatus()
    conflist: PartStatus = PartStatus()
    condition: PartStatus = PartStatus()
    held: HeldStatus | None = None
    last_pass: PassStatus | None = None
    settled: bool = False
    problems: tuple[str, ...] = ()
    started: float = 0.0
    version: str = __version__
    time: float = 0.0
    ready: bool = False
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    counts: dict[str, dict[str, int]] = {}
    peers: tuple[PeerStatus, ...] = ()


PeerKey = tuple[str, Family]
"""Node name and family."""


class _Peer(msgspec.Struct, frozen=True, gc=False):
    """A peer as the loop has it: no text is made before somebody reads it. 5,000 of them, so they are kept small."""

    uid: str
    prefix: Prefix | None
    next_hop: bytes
    state: str
    reason: str
    since: float


class StatusBoard:
    """Peers as the loop sees them, and the document made of them and of ``describe()``.

    ``put`` and ``drop`` belong to the loop's thread; the rest may be called from any. ``describe`` is called in the reader's
    thread, and returns a Status in which everything but the board's own fields is filled in.
    """

    def __init__(self, describe: Callable[[], Status], clock: Callable[[], float] = time.time) -> None:
        self._describe = describe
        self._clock = clock
        self._peers: dict[PeerKey, _Peer] = {}
        self._counts: dict[tuple[Family, str], int] = {}
        self._encoder: Final = msgspec.json.Encoder()

    @property
    def counts(self) -> Mapping[tuple[Family, str], int]:
        """How many peers there are by (family, state). A copy."""
        return self._counts.copy()

    def put(
        self, key: PeerKey, state: str, reason: str = "", *, uid: str = "", prefix: Prefix | None = None, next_hop: bytes = b""
    ) -> bool:
        """Note what became of a peer; returns whether that is new. Costs about a microsecond if it is not."""
        old = self._peers.get(key)
        since = 0.0
        if old is not None:
            if old.state == state and old.prefix == prefix and old.next_hop == next_hop and old.uid == uid:
                if old.reason == reason:
                    return False
                since = old.since  # only the words changed
            self._counts[key[1], old.state] -= 1
        self._counts[key[1], state] = self._counts.get((key[1], state), 0) + 1
        self._peers[key] = _Peer(uid, prefix, next_hop, state, reason, since or self._clock())
        return True

    def drop(self, key: PeerKey) -> None:
        """The peer is gone."""
        old = self._peers.pop(key, None)
        if old is not None:
            self._counts[key[1], old.state] -= 1

    def readiness(self) -> Readiness:
        """Whether we are ready, and why not."""
        return self._judge(self._describe())

    def status(self) -> Status:
        """The whole document, peers in the order of their names."""
        peers = self._peers.copy()
        status = self._describe()
        verdict = self._judge(status)
        by_family: dict[str, dict[str, int]] = {}
        for (family, state), count in sorted(self.counts.items()):
            if count:
                by_family.setdefault(str(family), {})[state] = count
        return msgspec.structs.replace(
            status,
            time=self._clock(),
            ready=verdict.ready,
            reasons=verdict.reasons,
            remarks=verdict.remarks,
            counts=by_family,
            peers=tuple(_text(key, peers[key]) for key in sorted(peers)),
        )

    def document(self) -> bytes:
        """The document as JSON."""
        return self._encoder.encode(self.status())

    def _judge(self, status: Status) -> Readiness:
        counts = self.counts
        waiting = self._waiting() if any(counts.get((f, s)) for f in (4, 6) for s in ("pending", "failed")) else ()
        return readiness(status, counts, waiting, self._clock())

    def _waiting(self) -> tuple[Waiting, ...]:
        """Some of the peers that should be programmed and are not."""
        found = []
        for (name, family), peer in self._peers.copy().items():
            if peer.state in {"pending", "failed"}:
                found.append(Waiting(name, family, peer.state, peer.reason))
                if len(found) == 3:
                    break
        return tuple(found)


def _text(key: PeerKey, peer: _Peer) -> PeerStatus:
    cidr = "" if peer.prefix is None else str(peer.prefix)
    next_hop = format_address(peer.next_hop) if peer.next_hop else ""
    return PeerStatus(key[0], peer.uid, key[1], cidr, next_hop, peer.state, peer.reason, peer.since)
