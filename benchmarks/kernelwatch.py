"""When the kernel did what: its own announcements in a namespace, with the time at which they were read.

A thread reads and stamps, nothing else; parsing waits until somebody asks. Loss of messages is an error, not a gap.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.netns import Namespace

_ROUTE_GROUPS: Final = 0x1 | 0x10 | 0x40  # RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE
_NFT_GROUPS: Final = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_SO_RCVBUFFORCE: Final = 33
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ROUTE_KINDS: Final = {24: "route+", 25: "route-", 20: "addr+", 21: "addr-", 16: "link+", 17: "link-"}
_NFT_KINDS: Final = {0xA00: "table+", 0xA02: "table-", 0xA0F: "generation"}
_IFF_UP: Final = 1


class Seen(NamedTuple):
    """One announcement. ``time`` is time.monotonic(); ``kind`` is route+, route-, addr+, addr-, link+ (``up`` says whether it
    is up), link-, table+, table-, generation (the end of an nft transaction). ``name`` is of tables.
    """

    time: float
    kind: str
    prefix: str = ""
    gateway: str = ""
    up: bool = False
    name: str = ""


class KernelWatch:
    """Watches ``namespace`` (IPv4 routes and addresses, links; with ``nft`` the nft tables) for the length of a with block."""

    def __init__(self, namespace: Namespace, *, nft: bool = False) -> None:
        self._nft = nft
        with namespace.entered():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12 if nft else 0)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            self._socket.bind((0, _NFT_GROUPS if nft else _ROUTE_GROUPS))
        self._socket.settimeout(0.2)
        self._raw: list[tuple[float, bytes]] = []
        self._parsed: list[Seen] = []
        self._taken = 0
        self._stop = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._read, daemon=True, name="kernelwatch")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2)
        self._socket.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                data = self._socket.recv(1 << 16)
                self._raw.append((time.monotonic(), data))
            except TimeoutError:
                continue
            except OSError as error:
                if error.errno != errno.EBADF:
                    self._error = error
                return

    def events(self) -> list[Seen]:
        """All announcements so far, in order. Raises OSError if some were lost."""
        if self._error:
            raise self._error
        end = len(self._raw)
        for stamp, data in self._raw[self._taken : end]:
            self._parsed += _parse(stamp, data, nft=self._nft)
        self._taken = end
        return self._parsed

    def mark(self) -> int:
        """Where we are: give it to `await_`, so that only what comes later counts."""
        return len(self.events())

    def await_(self, done: Callable[[list[Seen]], float | None], *, since: int = 0, seconds: float = 60) -> float | None:
        """Call ``done`` with what came after ``since`` until it returns a time. None if it has not within ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = done(self.events()[since:])
            if found is not None:
                return found
            time.sleep(0.003)
        return None


def all_present(prefixes: Iterable[str]) -> Callable[[list[Seen]], float | None]:
    """For `KernelWatch.await_`: the time at which every prefix had a route. Each call goes on where the last one ended."""
    wanted = set(prefixes)
    missing = set(wanted)
    at = 0

    def done(events: list[Seen]) -> float | None:
        nonlocal at
        while at < len(events):
            event = events[at]
            at += 1
            if event.kind == "route+":
                missing.discard(event.prefix)
            elif event.kind == "route-" and event.prefix in wanted:
                missing.add(event.prefix)
            if not missing:
                return event.time
        return None

    return done


def first(match: Callable[[Seen], bool]) -> Callable[[list[Seen]], float | None]:
    """For `KernelWatch.await_`: the time of the first announcement that matches."""
    return lambda events: next((event.time for event in events if match(event)), None)


def _parse(stamp: float, data: bytes, *, nft: bool) -> list[Seen]:
    found = []
    offset = 0
    while offset + 16 <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        body = data[offset + 16 : offset + length]
        event = _nft_event(stamp, kind, body) if nft else _route_event(stamp, kind, body)
        if event:
            found.append(event)
        offset += (length + 3) & ~3
    return found


def _route_event(stamp: float, kind: int, body: bytes) -> Seen | None:
    name = _ROUTE_KINDS.get(kind)
    if name is None:
        return None
    if name.startswith("link"):
        return Seen(stamp, name, up=bool(struct.unpack_from("=I", body, 8)[0] & _IFF_UP))
    if name.startswith("addr"):
        return Seen(stamp, name)
    if body[4] != 254:  # table
        return None
    values = _attributes(body, 12)
    destination = socket.inet_ntoa(values[1]) if 1 in values else "0.0.0.0"
    gateway = socket.inet_ntoa(values[5]) if len(values.get(5, b"")) == 4 else ""
    return Seen(stamp, name, prefix=f"{destination}/{body[1]}", gateway=gateway)


def _nft_event(stamp: float, kind: int, body: bytes) -> Seen | None:
    name = _NFT_KINDS.get(kind)
    if name is None:
        return None
    if name == "generation":
        return Seen(stamp, name)
    return Seen(stamp, name, name=_attributes(body, 4).get(1, b"").rstrip(b"\0").decode())


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    values = {}
    while offset + 4 <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        values[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return values
