"""rtnetlink sockets: `RouteSocket` asks and changes, `Monitor` is told. They stay in the network namespace they are opened in.

Needs Linux 4.20 (NETLINK_GET_STRICT_CHK). pyroute2 can do the same and much more, but takes a hundred times as long.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Self, TypeVar

from pynet.core.model import Family, HostAddress, Link, Operation, Route, format_address
from pynet.drivers import nlsocket, rtwire
from pynet.drivers.nlsocket import Overrun
from pynet.drivers.rtwire import AddressEvent, Event, LinkEvent, Message, Netconf, NetlinkError, PortLeft, RouteEvent

__all__ = [
    "AddressEvent", "Event", "LinkEvent", "Monitor", "Netconf", "NetlinkError", "Overrun", "PortLeft", "RouteEvent",
    "RouteSocket",
]  # fmt: skip
T = TypeVar("T")

_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 10, 11, 12
_IPV6_ROUTE: Final = 11
_GROUPS: Final = (1, 5, 7, 9, _IPV6_ROUTE, 24, 25)  # the others: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV4/6_NETCONF
_BATCH, _TRIES = 500, 8
_SKIP_STATISTICS: Final = struct.pack("=HHI", 8, 29, 8)  # IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS: two thirds of a link
_NO_WAY: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
_REQUESTS: Final = {
    "add": (rtwire.RTM_NEWROUTE, rtwire.NLM_F_CREATE | rtwire.NLM_F_EXCL),
    "replace": (rtwire.RTM_NEWROUTE, rtwire.NLM_F_CREATE | rtwire.NLM_F_REPLACE),
    "delete": (rtwire.RTM_DELROUTE, 0),
}


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise NetlinkError(errno.ETIMEDOUT, "the kernel does not answer", doing) from None
    except OSError as error:
        raise NetlinkError(error.errno or errno.EIO, error.strerror or "", doing) from error


class RouteDump:
    """Routes, decoded while they are iterated over, once. Two dumps of one ``digest`` hold the same; b"" says nothing."""

    def __init__(self, digest: bytes, routes: Iterator[Route]) -> None:
        self.digest = digest
        self._routes = routes

    def __iter__(self) -> Iterator[Route]:
        return self._routes


class RouteSocket:
    """One socket for requests, used by one thread; a context manager. Its methods raise NetlinkError if the kernel refuses, is
    silent for ``timeout`` seconds, or sends what makes no sense.
    """

    def __init__(self, *, timeout: float = 5.0) -> None:
        self._socket = nlsocket.open_socket(socket.NETLINK_ROUTE)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(nlsocket.SOL_NETLINK, option, 1)
        timeval = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._watch = Monitor(groups=(), receive_buffer=nlsocket.DATAGRAM)
        self._scratch = bytearray(nlsocket.DATAGRAM)
        self._sequence = 0
        self.portid: int = self._socket.getsockname()[0]  # our name in notifications of what we did

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; again is no harm."""
        self._socket.close()
        self._watch.close()

    def dump_routes(self, family: Family, table: int) -> RouteDump:
        """Every route of one table, of any protocol; at one prefix in the kernel's order of preference. None if no such table.

        All is read at the call, and held as bytes: a route is decoded when it is asked for.
        """
        if family == 4:
            return self._routes(family, table)
        # When a route goes and another comes, an IPv6 dump loses its place, says nothing, and leaves out routes that were there
        # all the time (Linux 6.18). What one attempt under change left out, another has.
        attempts: list[RouteDump] = []
        self._watch.listen((_IPV6_ROUTE,))
        try:
            self._saw_change(table)
            while len(attempts) < _TRIES:
                attempts.append(self._routes(family, table))
                if not self._saw_change(table):
                    return attempts[-1]
        finally:
            self._watch.listen((_IPV6_ROUTE,), on=False)
        return RouteDump(b"", iter(dict.fromkeys(itertools.chain.from_iterable(attempts))))

    def dump_links(self) -> list[Link]:
        """Every network interface."""
        _, dumped = self._dump(rtwire.RTM_GETLINK, bytes(16) + _SKIP_STATISTICS, "dump links")
        return [rtwire.decode_link(*message) for message in dumped]

    def dump_addresses(self, family: Family) -> list[HostAddress]:
        """Every address of ours, IPv6 ones that are tentative or failed duplicate detection included."""
        number = rtwire.AF[family]
        _, dumped = self._dump(rtwire.RTM_GETADDR, bytes((number, *bytes(7))), f"dump IPv{family} addresses")
        return [rtwire.decode_address(buffer, at, end) for buffer, at, end in dumped if buffer[at] == number]

    def lookup(self, address: bytes) -> Route | None:
        """The route that the kernel chooses for ``address``, as it stands in its table (the local one for our own addresses).
        None if there is none, or one of type unreachable, prohibit or blackhole.
        """
        first, doing = self._number(1), f"look up the route to {format_address(address)}"
        self._send(rtwire.encode_message(rtwire.RTM_GETROUTE, 0, first, rtwire.encode_lookup(address)), doing)
        buffer, message = next(self._answers(first, 1, doing))
        if message[0] != rtwire.NLMSG_ERROR:
            return rtwire.decode_route(buffer, *message[4:])
        code, text = rtwire.decode_error(buffer, message)
        if code in _NO_WAY and not text:  # with words it is our request that was wrong
            return None
        raise NetlinkError(code, text, doing)

    def apply(self, operations: Sequence[Operation]) -> dict[int, NetlinkError]:
        """Do ``operations`` in order, each whatever becomes of the others; returns the error of each that failed, by index.

        A delete takes the first route that has all of these: prefix, table, tos, metric (0: any), protocol, gateway, interface,
        and for IPv4 type and scope. An IPv6 multipath route loses but the hop that is named.
        """
        errors: dict[int, NetlinkError] = {}
        for i, code, text in self._change(operations, _encode, "change routes"):
            kind, route = operations[i]
            errors[i] = NetlinkError(code, text, f"{kind} route {route.prefix}")
        return errors

    def forget_neighbours(self, ifindex: int) -> int:
        """Delete what the kernel has learnt of neighbours at one interface, in both families; returns how many entries. Those
        that somebody has set stay (:func:`rtwire.is_learnt`).
        """
        doing = f"forget the neighbours at interface {ifindex}"
        _, dumped = self._dump(rtwire.RTM_GETNEIGH, rtwire.encode_dump_neighbours(ifindex), doing)
        learnt = [buffer[at:end] for buffer, at, end in dumped if rtwire.is_learnt(buffer, at, end, ifindex)]
        for _, code, text in self._change(learnt, _encode_forget, doing):
            if code != errno.ENOENT:  # it has gone by itself
                raise NetlinkError(code, text, doing)
        return len(learnt)

    def _change(self, items: Sequence[T], encode: Callable[[T, int, int], bytes], doing: str) -> Iterator[tuple[int, int, str]]:
        """Send what ``encode`` makes of each item, its number and flags; yields (index, errno, words) of each that failed."""
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            first, last = self._number(len(batch)), len(batch) - 1
            wire = [encode(item, first + i, rtwire.NLM_F_ACK if i == last else 0) for i, item in enumerate(batch)]
            self._send(b"".join(wire), doing)
            for buffer, message in self._answers(first, len(batch), doing):
                i = message[2] - first
                code, text = rtwire.decode_error(buffer, message)
                if code:
                    yield start + i, code, text
                if i == last:
                    break

    def _routes(self, family: Family, table: int) -> RouteDump:
        body, number = rtwire.encode_dump_routes(family, table), rtwire.AF[family]
        digest, dumped = self._dump(rtwire.RTM_GETROUTE, body, f"dump IPv{family} routes of table {table}")
        return RouteDump(digest, (rtwire.decode_route(*message) for message in dumped if rtwire.is_route(*message, number)))

    def _saw_change(self, table: int) -> bool:
        try:
            return any(isinstance(event, RouteEvent) and event.route.table == table for event in self._watch.read())
        except Overrun:
            return True

    def _number(self, count: int) -> int:
        first = self._sequence % 0xF0000000 + 1  # 32 bits in the header
        self._sequence = first + count - 1
        return first

    def _send(self, data: bytes, doing: str) -> None:
        with _explained(doing):
            # What an earlier request left: a dump that was given up goes on in the kernel, and bars the next, until it is read.
            nlsocket.waiting(self._socket, self._scratch)
            self._socket.send(data)

    def _answers(self, first: int, count: int, doing: str) -> Iterator[tuple[bytes, Message]]:
        """What the kernel says to the ``count`` requests from number ``first``; the caller knows when it is enough."""
        while True:
            with _explained(doing):
                buffer = nlsocket.receive(self._socket, self._scratch)
            for message in rtwire.messages(buffer):
                if message[3] == self.portid and 0 <= message[2] - first < count:
                    yield buffer, message

    def _dump(self, kind: int, body: bytes, doing: str) -> tuple[bytes, Iterator[tuple[bytes, int, int]]]:
        """The digest of a whole dump, and where each of its messages is: (buffer, start, end). Begun again if something changed
        while it was read.
        """
        for _ in range(_TRIES):
            first = self._number(1)
            self._send(rtwire.encode_message(kind, rtwire.NLM_F_DUMP, first, body), doing)
            buffers: list[bytes] = []
            interrupted = 0
            digest = hashlib.sha256()
            for buffer, message in self._answers(first, 1, doing):
                interrupted |= message[1] & rtwire.NLM_F_DUMP_INTR
                if message[0] in {rtwire.NLMSG_DONE, rtwire.NLMSG_ERROR}:
                    code, text = rtwire.decode_error(buffer, message)
                    if code not in {0, errno.ENOENT}:  # the latter: there is no such table
                        raise NetlinkError(code, text, doing)
                    break
                digest.update(buffer[message[4] : message[5]])
                if not buffers or buffers[-1] is not buffer:
                    buffers.append(buffer)
            if not interrupted:
                return digest.digest(), _contents(buffers)
        raise NetlinkError(errno.EAGAIN, f"changed under each of {_TRIES} attempts", doing)


def _contents(buffers: list[bytes]) -> Iterator[tuple[bytes, int, int]]:
    for i, buffer in enumerate(buffers):
        buffers[i] = b""  # 70 to 140 bytes a route: held no longer than needed
        for kind, _, _, _, at, end in rtwire.messages(buffer):
            if kind != rtwire.NLMSG_DONE:
                yield buffer, at, end


def _encode(operation: Operation, sequence: int, acknowledge: int) -> bytes:
    kind, route = operation
    number, flags = _REQUESTS[kind]
    if kind == "delete" and route.multipath and route.prefix.family == 4:
        route = route._replace(gateway=b"", oif=0)  # with these, IPv4 never finds a route of several hops
    return rtwire.encode_route(number, flags | acknowledge, sequence, route)


def _encode_forget(dumped: bytes, sequence: int, acknowledge: int) -> bytes:
    # As it was dumped: the kernel picks out the interface and the address.
    return rtwire.encode_message(rtwire.RTM_DELNEIGH, acknowledge, sequence, dumped)


class Monitor:
    """The kernel's notifications of links, bridge ports, addresses, routes and forwarding, from now on; a context manager.
    Never blocks.

    The default buffer holds what 5,000 peers in both families give in one pass three times over; it costs nothing while empty.
    """

    def __init__(self, *, groups: Iterable[int] = _GROUPS, receive_buffer: int = 4 * nlsocket.BUFFER) -> None:
        self._socket = nlsocket.open_socket(socket.NETLINK_ROUTE, groups, receive_buffer)
        self._scratch = bytearray(nlsocket.DATAGRAM)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; again is no harm."""
        self._socket.close()

    def fileno(self) -> int:
        """For poll: readable when notifications wait, or were lost."""
        return self._socket.fileno()

    def listen(self, groups: Iterable[int], *, on: bool = True) -> None:
        """Join or leave groups of notifications, by number."""
        nlsocket.listen(self._socket, groups, on=on)

    def read(self, *, but_routes_of: int = 0) -> list[Event]:
        """The notifications that wait, oldest first; none if there are none. Raises Overrun if any was lost or makes no sense.

        Routes changed by the socket of port ``but_routes_of`` are passed over unread, for who dumps all routes anyway (0: none
        are; it is the port of the kernel's own changes). After a loss nothing comes until all that waits has been read, so that
        is thrown away first.
        """
        with _explained("read notifications"):
            buffers, lost = nlsocket.waiting(self._socket, self._scratch)
        if lost:
            raise Overrun(lost)
        try:
            messages = [(buffer, message) for buffer in buffers for message in rtwire.messages(buffer)]
            if but_routes_of:  # a RouteSocket's: we are told of its routes alone
                messages = [(buffer, message) for buffer, message in messages if message[3] != but_routes_of]
            events = [rtwire.decode_event(*message) for message in messages]
        except NetlinkError as error:
            raise Overrun(str(error)) from error
        return [event for event in events if event]
