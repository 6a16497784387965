"""Ping every pod from every pod: ICMP echo through raw sockets that were opened in the pods' namespaces.

One thread sends and receives for all of them, so that a few hundred pings take milliseconds and no process is started.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Self

from pynet.commands.lab.namespaces import enter
from pynet.core.model import Family

IN_FLIGHT: Final = 64
"""Pings that wait for their reply at once: more would drop each other's neighbour requests on two cores."""

ATTEMPTS: Final = 3
TIMEOUT: Final = 0.7
"""Seconds until a ping is tried again, and given up after the last attempt."""

SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h; Python has no name for it

_ECHO: Final[dict[Family, tuple[int, int]]] = {4: (8, 0), 6: (128, 129)}
_HEADER: Final = struct.Struct("!BBHHH")
_TIMESPEC: Final = struct.Struct("@qq")


class Pod(NamedTuple):
    """An end of pings: its name, its namespace, its addresses (text) by family."""

    name: str
    namespace: str
    addresses: dict[Family, str]


class Ping(NamedTuple):
    """One ping and how it went: ``seconds`` to the reply, None if none came. ``error`` is the kernel's words, "" if none."""

    source: str
    target: str
    family: Family
    seconds: float | None
    error: str = ""


class _Try(NamedTuple):
    source: Pod
    target: Pod
    family: Family
    left: int


def ping_all(pods: Sequence[Pod], check: Callable[[], None]) -> list[Ping]:
    """Ping every pod from every other, in each family that both have. Returns the results by source, target, family.

    ``check`` is called now and then, and may raise.
    """
    with _Sockets(pods) as sockets:
        tries = deque(_Try(*pair, ATTEMPTS) for pair in _pairs(pods))
        waiting: dict[tuple[int, Family], tuple[_Try, float]] = {}
        results: dict[tuple[str, str, Family], Ping] = {}
        sequence = 0

        def settle(each: _Try, seconds: float | None, error: str = "") -> None:
            key = (each.source.name, each.target.name, each.family)
            results[key] = Ping(*key, seconds, error)

        while tries or waiting:
            check()
            if tries and len(waiting) < IN_FLIGHT:
                each = tries.popleft()
                sequence = sequence % 65535 + 1
                began = time.time()
                error = sockets.send(each, sequence)
                if error:
                    settle(each, None, error)
                else:
                    waiting[sequence, each.family] = (each, began)
            more = bool(tries) and len(waiting) < IN_FLIGHT
            for key, arrived in sockets.receive(0 if more else _patience(waiting)):
                if key in waiting:
                    each, began = waiting.pop(key)
                    settle(each, max(0.0, arrived - began))
            late = [key for key, (_, began) in waiting.items() if time.time() - began >= TIMEOUT]
            for each in (waiting.pop(key)[0] for key in late):
                if each.left > 1:
                    tries.append(each._replace(left=each.left - 1))
                else:
                    settle(each, None, "no reply")
    return [results[pair[0].name, pair[1].name, pair[2]] for pair in _pairs(pods)]


class _Sockets:
    """One raw ICMP socket for each pod and family."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._ident = os.getpid() & 0xFFFF
        self._sockets: dict[tuple[str, Family], socket.socket] = {}
        self._by_descriptor: dict[int, tuple[socket.socket, Family]] = {}
        self._poll = select.epoll()
        for pod in pods:
            for family, sock in enter(pod.namespace, partial(_open_all, pod)):
                self._sockets[pod.name, family] = sock
                self._by_descriptor[sock.fileno()] = (sock, family)
                self._poll.register(sock, select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._poll.close()
        for sock in self._sockets.values():
            sock.close()

    def send(self, each: _Try, sequence: int) -> str:
        """Send one echo request; return the kernel's words if it will not."""
        packet = _packet(each.family, self._ident, sequence)
        try:
            self._sockets[each.source.name, each.family].sendto(packet, (each.target.addresses[each.family], 0))
        except OSError as error:
            return (error.strerror or str(error)).lower()
        return ""

    def receive(self, seconds: float) -> Iterator[tuple[tuple[int, Family], float]]:
        """Wait up to ``seconds`` for replies; yield each one's sequence number and family, and when it came (epoch seconds).

        When is what the kernel says: by the time that this thread looks, a reply may have waited behind many others.
        """
        for descriptor, _ in self._poll.poll(seconds):
            sock, family = self._by_descriptor[descriptor]
            try:
                while True:
                    packet, ancillary, _, _ = sock.recvmsg(2048, socket.CMSG_SPACE(_TIMESPEC.size))
                    sequence = _reply(family, packet, self._ident)
                    if sequence is not None:
                        yield (sequence, family), _stamp(ancillary)
            except OSError:  # empty, or an ICMP error that belongs to a ping that will time out
                continue


def _pairs(pods: Sequence[Pod]) -> Iterator[tuple[Pod, Pod, Family]]:
    for source in pods:
        for target in pods:
            if source is not target:
                for family in sorted(source.addresses.keys() & target.addresses.keys()):
                    yield source, target, family


def _patience(waiting: dict[tuple[int, Family], tuple[_Try, float]]) -> float:
    """Seconds until the first of those that wait is late."""
    oldest = min((began for _, began in waiting.values()), default=time.time() - TIMEOUT)
    return min(TIMEOUT, max(0.0, oldest + TIMEOUT - time.time()))


def _open_all(pod: Pod) -> list[tuple[Family, socket.socket]]:
    return [(family, _open(family)) for family in pod.addresses]


def _open(family: Family) -> socket.socket:
    if family == 4:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    else:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return sock


def _stamp(ancillary: list[tuple[int, int, bytes]]) -> float:
    """Return the kernel's time of arrival."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return float(seconds + nanoseconds / 1e9)
    return time.time()


def _packet(family: Family, ident: int, sequence: int) -> bytes:
    payload = b"pynet lab".ljust(56, b".")
    kind = _ECHO[family][0]
    # The kernel computes the sum of ICMPv6, which covers the addresses; that of ICMP is ours to make.
    total = 0 if family == 6 else _checksum(_HEADER.pack(kind, 0, 0, ident, sequence) + payload)
    return _HEADER.pack(kind, 0, total, ident, sequence) + payload


def _reply(family: Family, packet: bytes, ident: int) -> int | None:
    """Return the sequence number of an echo reply to us, None for any other packet."""
    if family == 4:  # a raw IPv4 socket delivers the IP header too
        packet = packet[(packet[0] & 0x0F) * 4 :]
    if len(packet) < _HEADER.size:
        return None
    kind, _, _, to, sequence = _HEADER.unpack_from(packet)
    return sequence if kind == _ECHO[family][1] and to == ident else None


def _checksum(data: bytes) -> int:
    """Compute the Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
