"""The kernel's side of nftables, read only: what is committed (NFNLGRP_NFTABLES), the generation, the chains.

Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h. A message begins as rtnetlink's do, with the header that
`rtwire.messages` walks over; then the address family and three bytes that say nothing here.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections import deque
from typing import Final, NamedTuple

from pynet.drivers import rtwire
from pynet.drivers.nlsocket import BUFFER, DATAGRAM, Overrun, open_socket, receive, waiting
from pynet.drivers.rtwire import Message, messages

INET: Final = "inet"
IPV4: Final = "ip"
IPV6: Final = "ip6"
_FAMILIES: Final = {1: INET, 2: IPV4, 10: IPV6}

_NETLINK_NETFILTER: Final = 12
_NFNLGRP_NFTABLES: Final = 7
_RECEIVE_BUFFER: Final = BUFFER

_ATTRIBUTE: Final = struct.Struct("=HH")
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
    one, so each is remembered only until its transaction's end was seen: the last eight, if such an end was lost.
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
    for data, message in _ask(_GETGEN, 0):
        return int.from_bytes(_values(data, message)[1], "big")
    raise OSError(errno.EIO, "asking for nftables' generation: no answer")


def list_chains() -> list[Chain]:
    """Every chain of the families ip, ip6 and inet in this network namespace. Raises OSError."""
    chains: list[Chain] = []
    for data, message in _ask(_GETCHAIN, rtwire.NLM_F_DUMP):
        family = _FAMILIES.get(data[message[4]])
        if message[0] != _SUBSYSTEM | _NEWCHAIN or family is None:
            continue
        values = _values(data, message)
        hook = _attributes(values[4], 0, len(values[4])) if 4 in values else {}
        forward = int.from_bytes(hook.get(1, b""), "big") == _HOOK_FORWARD
        drops = 5 in values and not any(values[5])
        chains.append(Chain(family, _text(values[1]), _text(values[3]), forward, drops))
    return chains


def _ask(kind: int, flags: int) -> list[tuple[bytes, Message]]:
    """The messages that answer a question, each with the datagram it is in. Asked again if the rules changed meanwhile.

    Raises OSError.
    """
    scratch = bytearray(DATAGRAM)
    for _ in range(10):
        answers, interrupted, done = [], False, False
        with open_socket(_NETLINK_NETFILTER) as asking:
            asking.settimeout(2.0)
            asking.send(rtwire.encode_message(_SUBSYSTEM | kind, flags, 1, bytes(4)))
            while not done:
                data = receive(asking, scratch)
                for message in messages(data):
                    interrupted = interrupted or bool(message[1] & rtwire.NLM_F_DUMP_INTR)
                    if message[0] == rtwire.NLMSG_ERROR:
                        number, _ = rtwire.decode_error(data, message)
                        if number != errno.EINTR:
                            raise OSError(number, f"asking for nftables' state: {os.strerror(number)}")
                        interrupted = True
                    elif message[0] != rtwire.NLMSG_DONE:
                        answers.append((data, message))
                    done = done or message[0] in (rtwire.NLMSG_ERROR, rtwire.NLMSG_DONE) or not flags
        if not interrupted:
            return answers
    raise OSError(errno.EINTR, "asking for nftables' state: it changes all the time")


class Monitor:
    """Receives what is committed to nftables in the network namespace of the thread that makes it. Raises OSError."""

    def __init__(self) -> None:
        self._socket = open_socket(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,), _RECEIVE_BUFFER)
        self._scratch = bytearray(DATAGRAM)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop receiving."""
        self._socket.close()

    def read(self, tables: frozenset[tuple[str, str]], own: OwnTransactions) -> list[TableChange | Committed]:
        """What has come, in order: changes by others to the ``tables`` (family, name), and the end of each transaction.

        Raises Overrun if events were lost, in which case all that waits is thrown away; OSError if the socket fails.
        """
        buffers, lost = waiting(self._socket, self._scratch)
        if lost:
            raise Overrun(lost)
        found: list[TableChange | Committed] = []
        names = [name.encode() + b"\0" for _, name in tables]
        for data in buffers:
            kind, _, _, portid, *_ = next(messages(data))
            # A transaction of thousands of elements that are not ours costs no more than this search.
            if kind == _SUBSYSTEM | _NEWGEN or (portid not in own and any(name in data for name in names)):
                found += _decode(data, tables)
        return found


def _decode(data: bytes, tables: frozenset[tuple[str, str]]) -> list[TableChange | Committed]:
    """The messages of one datagram; all are of one transaction."""
    found: list[TableChange | Committed] = []
    for message in messages(data):
        kind, _, _, portid, at, _ = message
        values = _values(data, message)
        if kind == _SUBSYSTEM | _NEWGEN:
            process = int.from_bytes(values.get(2, b""), "big")
            found.append(Committed(int.from_bytes(values[1], "big"), process, _text(values.get(3, b"")), portid))
        elif kind & ~0xFF == _SUBSYSTEM and kind & 0xFF in _MESSAGES:
            what, gone, naming = _MESSAGES[kind & 0xFF]
            family, table = _FAMILIES.get(data[at], ""), _text(values.get(1, b""))
            if (family, table) in tables:
                found.append(TableChange(family, table, what, _text(values.get(naming, b"")), gone, portid))
    return found


def _values(data: bytes, message: Message) -> dict[int, bytes]:
    """The attributes of a message, by type."""
    return _attributes(data, message[4] + 4, message[5])


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
