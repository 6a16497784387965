"""The last-good snapshot: what was known of the nodes, kept on disk, so that routes can come back while the API is away.

One JSON object: ``version``, ``sha256`` (hexadecimal, of the bytes of ``body``), and ``body``. It is believed only if it is
ours, whole and unchanged; one that is refused is left where it is, and the next `save` replaces it. Nothing is ever deleted
on its word.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from pynet.core.model import NodeFacts
from pynet.drivers.files import NotRegularError, read_regular, remove_leftovers, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1
MAX_BYTES: Final = 64 << 20
"""Ten times what 15,000 nodes need: a larger file is not ours."""


def path_in(state_dir: Path) -> Path:
    """Where the snapshot is."""
    return state_dir / "last-good.json"


class SnapshotError(Exception):
    """Why a snapshot was not believed, or could not be written: one line that names the file."""


class Snapshot(msgspec.Struct, frozen=True):
    """What is kept: the nodes, and whose view it was. ``node`` is our own Node's name, ``saved`` in seconds since the epoch."""

    node: str
    saved: float
    nodes: tuple[NodeFacts, ...]


class _Envelope(msgspec.Struct, frozen=True):
    version: int
    sha256: str = ""
    body: msgspec.Raw = msgspec.Raw()


def load(path: Path, node: str) -> Snapshot | None:
    """The snapshot at ``path`` of the node named ``node``; None if there is none. Changes nothing.

    Raises SnapshotError for a file that is not to be believed: of another node or version, incomplete, changed, too large,
    reached through a symbolic link, of another owner or writable for others.
    """
    try:
        file = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return None
    except NotRegularError as problem:
        raise SnapshotError(f"{path} {problem.strerror}: not read") from None
    except OSError as problem:
        raise SnapshotError(f"{path} cannot be read: {problem.strerror}") from None
    if file.uid != os.geteuid():
        raise SnapshotError(f"{path} belongs to uid {file.uid}, not to us (uid {os.geteuid()}): not believed")
    if file.mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SnapshotError(f"{path} can be written by others (mode {file.mode:04o}): not believed")
    snapshot = _decode(path, file.data)
    if snapshot.node != node:
        raise SnapshotError(f"{path} is the snapshot of node {snapshot.node!r}, and we are {node!r}: not used")
    return snapshot


def save(path: Path, snapshot: Snapshot) -> None:
    """Replace the snapshot at ``path`` in one step, mode 0600, and have it on the disk; makes the folder (0700) if need be.

    To be called by one thread only, every few seconds at most. Raises SnapshotError.
    """
    body = msgspec.json.encode(snapshot)
    if len(body) > MAX_BYTES - 1024:
        raise SnapshotError(f"{path} not written: {len(body)} bytes are more than a snapshot may have ({MAX_BYTES})")
    data = msgspec.json.encode(_Envelope(VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_leftovers(path)
        write_atomically(path, data, 0o600)
    except FileExistsError:
        raise SnapshotError(f"{path} cannot be written: {path.parent} (stateDir) is not a folder") from None
    except OSError as problem:
        raise SnapshotError(f"{path} cannot be written: {problem.strerror}") from None


def _decode(path: Path, data: bytes) -> Snapshot:
    # RecursionError: what nests without end is garbage too, and must not look like a fault of ours.
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise SnapshotError(f"{path} is not a whole snapshot: {problem}") from None
    if envelope.version != VERSION:
        raise SnapshotError(f"{path} has version {envelope.version}, and we read version {VERSION}: not used")
    if hashlib.sha256(envelope.body).hexdigest() != envelope.sha256:
        raise SnapshotError(f"{path} is damaged: its checksum does not fit")
    try:
        return msgspec.json.decode(envelope.body, type=Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise SnapshotError(f"{path} has a body that is no snapshot: {problem}") from None
