"""nftables: transactions through nft, and what the kernel announces about them (NFNLGRP_NFTABLES).

Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections import deque
from typing import Any, Final, NamedTuple

import msgspec

from pynet.drivers import command
from pynet.drivers.command import CommandError, MissingError

Command = dict[str, Any]
"""One command or object in nft's JSON (libnftables-json(5))."""

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
_NLM_F_REQUEST: Final = 1
_SUBSYSTEM: Final = 10 << 8
_NEWGEN: Final = 15
_GETGEN: Final = 16
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


def transact(commands: list[Command], own: OwnTransactions | None = None) -> None:
    """Have the kernel accept all ``commands`` or none. Raises CommandError with nft's or the kernel's words, MissingError."""
    processes: list[int] = []

    def started(process: int) -> None:
        processes.append(process)
        if own is not None:
            own.started(process)

    try:
        command.run(["nft", "-j", "-f", "-"], msgspec.json.encode({"nftables": commands}), started=started)
    except CommandError as error:
        if own is not None and error.status is not None:  # refused; after a time-out it may have been accepted
            own.ended(processes[0])
        raise _plain(error) from None


def list_table(family: str, name: str) -> list[Command] | None:
    """A table's objects as nft lists them, handles and all; None if there is no such table. Raises CommandError."""
    try:
        said = command.run(["nft", "-j", "list", "table", family, name])
    except CommandError as error:
        if "No such file or directory" in error.text:
            return None
        raise _plain(error) from None
    document = msgspec.json.decode(said)
    return [thing for thing in document["nftables"] if "metainfo" not in thing]


def list_chains() -> list[Command]:
    """Every chain of every table, without rules. Raises CommandError."""
    try:
        said = command.run(["nft", "-j", "list", "chains"])
    except CommandError as error:
        raise _plain(error) from None
    return [thing["chain"] for thing in msgspec.json.decode(said)["nftables"] if "chain" in thing]


def _plain(error: CommandError) -> CommandError:
    """The error without its position in our input, and with what mends it where that is known."""
    if isinstance(error, MissingError):
        return MissingError("nft", "not installed: install the package nftables")
    text = error.text.partition("Error: ")[2] or error.text
    if "Operation not permitted" in text:
        text += " (CAP_NET_ADMIN is needed)"
    return CommandError("nft", text, error.status)


def generation() -> int:
    """The generation of the rules in this network namespace: it changes with every transaction. Raises OSError."""
    with _socket() as asking:
        asking.settimeout(2.0)
        asking.send(_HEADER.pack(20, _SUBSYSTEM | _GETGEN, _NLM_F_REQUEST, 1, 0) + bytes(4))
        data = asking.recv(4096)
    kind = _HEADER.unpack_from(data)[1]
    if kind == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", data, 16)[0]
        raise OSError(code, f"asking for nftables' generation: {os.strerror(code)}")
    return int.from_bytes(_attributes(data, 20, len(data))[1], "big")


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
    offset = 0
    while offset + 20 <= len(data):
        length, kind, _, _, portid = _HEADER.unpack_from(data, offset)
        if length < 20:
            break
        if kind == _SUBSYSTEM | _NEWGEN:
            values = _attributes(data, offset + 20, offset + length)
            process = int.from_bytes(values.get(2, b""), "big")
            found.append(Committed(int.from_bytes(values[1], "big"), process, _text(values.get(3, b"")), portid))
        elif kind >> 8 == _SUBSYSTEM >> 8 and kind & 0xFF in _MESSAGES:
            what, gone, naming = _MESSAGES[kind & 0xFF]
            values = _attributes(data, offset + 20, offset + length)
            family, table = _FAMILIES.get(data[offset + 16], ""), _text(values.get(1, b""))
            if (family, table) in tables:
                found.append(TableChange(family, table, what, _text(values.get(naming, b"")), gone, portid))
        offset += (length + 3) & ~3
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
