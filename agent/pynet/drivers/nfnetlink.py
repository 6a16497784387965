"""The kernel's side of nftables, read only: what is committed (NFNLGRP_NFTABLES), the generation, the chains.

Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

INET: Final = "inet"
IPV4: Final = "ip"
IPV6: Final = "ip6"
_FAMILIES: Final = {1: INET, 2: IPV4, 10: IPV6}

_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_SO_RCVBUFFORCE: Final = 33
_RECEIVE_BUFFER: Final = 4 << 20

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST: Final = 1
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_DUMP: Final = 0x300
_SUBSYSTEM: Final = 10 << 8
_NEWGEN: Final = 15
_GETGEN: Final = 16
_NEWCHAIN: Final = 3
_GETCHAIN: Final = 4
_HOOK_FORWARD: Final = 2
# Message type -> what it is about, whether it went, and which attribute names it (the table's name is attribute 1 in all).
_MESSAGES: Final = {
    0: ("table", False, 0),
    2: ("table", True, 0),
    3: ("chain", False, 3),
    5: ("chain", True, 3),
    6: ("rule", False, 2),
    8: ("rule", True, 2),
    9: ("set", False, 2),
    11: ("set", True, 2),
    12: ("element", False, 2),
    14: ("element", True, 2),
    18: ("object", False, 2),
    20: ("object", True, 2),
    22: ("flowtable", False, 2),
    24: ("flowtable", True, 2),
}


class Overrun(Exception):  # noqa: N818  it is no error of ours: the kernel dropped events
    """ENOBUFS: events were lost. Reading goes on afterwards."""


class TableChange(NamedTuple):
    """Somebody changed something in a table. ``what`` is table, chain, rule, set, element, object or flowtable; ``name`` the
    chain's, set's or object's, for a rule or an element of where it is; ``portid`` of who did it.
    """

    family: str
    table: str
    what: str
    name: str
    gone: bool
    portid: int

    def __str__(self) -> str:
        where = f" {self.name}" if self.name else ""
        inside = " in" if self.what in ("rule", "element") else ""
        return f"{self.what}{inside}{where} {'removed' if self.gone else 'added or changed'}"


class Committed(NamedTuple):
    """A transaction ended: the new ``generation`` of the rules, the process (as the host numbers it) and port id behind it."""

    generation: int
    process: int
    program: str
    portid: int


class OwnTransactions:
    """The port ids of our own nft processes, so that what they change is not taken for somebody else's work.

    The kernel gives a netlink socket its process's id as the port id. A process in another PID namespace may have the same
    one, so each is remembered only until its transaction's end was seen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._portids: deque[int] = deque(maxlen=8)

    def started(self, portid: int) -> None:
        """A process of ours will make a transaction."""
        with self._lock:
            self._portids.append(portid)

    def ended(self, portid: int) -> None:
        """Its transaction was announced, or it made none."""
        with self._lock:
            if portid in self._portids:
                self._portids.remove(portid)

    def __contains__(self, portid: int) -> bool:
        with self._lock:
            return portid in self._portids


class Chain(NamedTuple):
    """A chain of a table. ``forward``: it is a base chain at the forward hook; ``drops``: its policy is to drop."""

    family: str
    table: str
    name: str
    forward: bool
    drops: bool


def generation() -> int:
    """The generation of the rules in this network namespace: it changes with every transaction. Raises OSError."""
    for data in _ask(_GETGEN, 0):
        return int.from_bytes(_attributes(data, 20, len(data))[1], "big")
    raise OSError(errno.EIO, "asking for nftables' generation: no answer")


def list_chains() -> list[Chain]:
    """Every chain of the families ip, ip6 and inet in this network namespace. Raises OSError."""
    chains: list[Chain] = []
    for data in _ask(_GETCHAIN, _NLM_F_DUMP):
        if _HEADER.unpack_from(data)[1] != _SUBSYSTEM | _NEWCHAIN or data[16] not in _FAMILIES:
            continue
        values = _attributes(data, 20, len(data))
        hook = _attributes(values[4], 0, len(values[4])) if 4 in values else {}
        forward = int.from_bytes(hook.get(1, b""), "big") == _HOOK_FORWARD
        drops = 5 in values and not any(values[5])
        chains.append(Chain(_FAMILIES[data[16]], _text(values[1]), _text(values[3]), forward, drops))
    return chains


def _ask(kind: int, flags: int) -> Iterator[bytes]:
    """The messages that answer a question; asked again if the rules changed meanwhile. Raises OSError."""
    for _ in range(10):
        answers, interrupted = [], False
        with _socket() as asking:
            asking.settimeout(2.0)
            asking.send(_HEADER.pack(20, _SUBSYSTEM | kind, _NLM_F_REQUEST | flags, 1, 0) + bytes(4))
            done = False
            while not done:
                for code, answer in _messages(asking.recv(1 << 16)):
                    interrupted = interrupted or bool(_HEADER.unpack_from(answer)[2] & _NLM_F_DUMP_INTR)
                    if code == _NLMSG_ERROR:
                        number = -struct.unpack_from("=i", answer, 16)[0]
                        if number != errno.EINTR:
                            raise OSError(number, f"asking for nftables' state: {os.strerror(number)}")
                        interrupted = True
                    elif code != _NLMSG_DONE:
                        answers.append(answer)
                    done = done or code in (_NLMSG_ERROR, _NLMSG_DONE) or not flags
        if not interrupted:
            return iter(answers)
    raise OSError(errno.EINTR, "asking for nftables' state: it changes all the time")


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of a datagram, each with its type."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = _HEADER.unpack_from(data, offset)[:2]
        if length < 16:
            return
        yield kind, data[offset : offset + length]
        offset += (length + 3) & ~3


class Monitor:
    """Receives what is committed to nftables in the network namespace of the thread that makes it. Raises OSError."""

    def __init__(self) -> None:
        self._socket = _socket()
        try:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            except PermissionError:  # without NET_ADMIN: as much as the host allows
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()

    def read(self, tables: frozenset[tuple[str, str]], own: OwnTransactions) -> list[TableChange | Committed]:
        """What has come, in order: changes by others to the ``tables`` (family, name), and the end of each transaction.

        Raises Overrun if events were lost, OSError if the socket fails.
        """
        found: list[TableChange | Committed] = []
        names = [name.encode() + b"\0" for _, name in tables]
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    raise Overrun from None
                raise
            # A transaction of thousands of elements that are not ours costs no more than this search.
            wanted = any(name in data for name in names) and _HEADER.unpack_from(data)[4] not in own
            if wanted or _HEADER.unpack_from(data)[1] == _SUBSYSTEM | _NEWGEN:
                found += _decode(data, tables)


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    made.bind((0, 0))
    return made


def _decode(data: bytes, tables: frozenset[tuple[str, str]]) -> list[TableChange | Committed]:
    """The messages of one datagram; all are of one transaction."""
    found: list[TableChange | Committed] = []
    for kind, message in _messages(data):
        portid = _HEADER.unpack_from(message)[4]
        values = _attributes(message, 20, len(message))
        if kind == _SUBSYSTEM | _NEWGEN:
            process = int.from_bytes(values.get(2, b""), "big")
            found.append(Committed(int.from_bytes(values[1], "big"), process, _text(values.get(3, b"")), portid))
        elif kind & ~0xFF == _SUBSYSTEM and kind & 0xFF in _MESSAGES:
            what, gone, naming = _MESSAGES[kind & 0xFF]
            family, table = _FAMILIES.get(message[16], ""), _text(values.get(1, b""))
            if (family, table) in tables:
                found.append(TableChange(family, table, what, _text(values.get(naming, b"")), gone, portid))
    return found


def _attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        values[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return values


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
