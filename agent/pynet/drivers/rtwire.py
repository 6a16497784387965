"""rtnetlink messages as bytes: routes, links, addresses and netconf, to and from the values of the core. No sockets here.

Numbers and layouts are those of linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, neighbour.h and netconf.h. Whatever the
bytes are, decoding ends: in a value, or in a NetlinkError that says what is wrong.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from pynet.core.model import Family, HostAddress, Link, Prefix, Route, family_of

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 17, 18, 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWNETCONF = 24, 25, 26, 80
RTM_DELNEIGH, RTM_GETNEIGH = 29, 30
AF: Final[dict[Family, int]] = {4: socket.AF_INET, 6: socket.AF_INET6}
_FAMILIES: Final[dict[int, Family]] = {number: family for family, number in AF.items()}

_NLM_F_CAPPED, _NLM_F_ACK_TLVS, _NLMSGERR_ATTR_MSG = 0x100, 0x200, 1
_RT_TABLE_COMPAT, _RTM_F_CLONED, _RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 252, 0x200, 0x1000, 0x2000
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH = 1, 4, 5, 6, 9
_RTA_CACHEINFO, _RTA_TABLE, _RTA_VIA, _RTA_PREF, _RTA_NH_ID = 12, 15, 18, 20, 30
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFF_UP = 3, 4, 10, 18, 1, 1
_IFA_ADDRESS, _IFA_LOCAL, _NETCONFA_IFINDEX, _NETCONFA_FORWARDING = 1, 2, 1, 2
_NDA_IFINDEX, _NUD_NOARP, _NUD_PERMANENT, _NTF_EXT_LEARNED = 8, 0x40, 0x80, 0x10

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_ATTRIBUTE: Final = struct.Struct("=HH")  # length with this header, type
_NUMBER: Final = struct.Struct("=HHI")  # an attribute that is one number
_RTMSG: Final = struct.Struct("=8BI")  # family, dst length, src length, tos, table, protocol, scope, type, flags
_REQUEST: Final = struct.Struct("=IHHII 8BI")  # nlmsghdr and rtmsg
_NEXTHOP: Final = struct.Struct("=HBBi")  # length, flags, weight - 1, interface
_IFINFO: Final = struct.Struct("=BxHiII")  # family, ARP type, index, flags, change mask
_IFADDR: Final = struct.Struct("=4BI")  # family, prefix length, flags, scope, index
_NDMSG: Final = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_U32, _I32, _NETCONF = struct.Struct("=I"), struct.Struct("=i"), struct.Struct("=B3x")


class NetlinkError(OSError):
    """The kernel refused, or did not answer as it should. ``errno`` as usual; ``text`` is the kernel's own explanation (its
    extended ack) where it gave one, else the usual words for the errno; str() also says what was asked.
    """

    def __init__(self, code: int, text: str = "", doing: str = "") -> None:
        self.text = text or os.strerror(code)
        super().__init__(code, f"{doing}: {self.text}" if doing else self.text)


class RouteEvent(NamedTuple):
    """A route came or changed (``replace``, ``append``: flags of the request), or went (``deleted``), by the hand of netlink
    socket ``portid`` (0: the kernel's own doing).
    """

    deleted: bool
    route: Route
    portid: int
    replace: bool
    append: bool


class LinkEvent(NamedTuple):
    """A network interface came or changed, or went (``deleted``)."""

    link: Link
    deleted: bool


class PortLeft(NamedTuple):
    """The bridge of index ``bridge`` has lost a port: taken out of it, or deleted."""

    bridge: int


class AddressEvent(NamedTuple):
    """An address of ours came or changed, or went (``deleted``)."""

    address: HostAddress
    deleted: bool


class Netconf(NamedTuple):
    """Whether interface ``ifindex`` (-1: conf/all, -2: conf/default) forwards packets of ``family``, as an event tells."""

    family: Family
    ifindex: int
    forwarding: bool


Message = tuple[int, int, int, int, int, int]
"""(type, flags, sequence, port id, start, end): buffer[start:end] is what follows the header."""

Event = RouteEvent | LinkEvent | PortLeft | AddressEvent | Netconf


def _malformed(what: str) -> NetlinkError:
    return NetlinkError(errno.EBADMSG, f"malformed netlink message: {what}")


def encode_message(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    """A request: the header, and ``body``."""
    return _HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, seq, 0) + body


def encode_route(kind: int, flags: int, seq: int, route: Route) -> bytes:
    """The message of type ``kind`` (RTM_NEWROUTE, RTM_DELROUTE) for ``route`` as a route of one next hop, every field given."""
    (address, length), metric, gateway, oif, protocol, type_, table, scope, tos, _ = route
    attributes = _ATTRIBUTE.pack(4 + len(address), _RTA_DST) + address
    if gateway:
        attributes += _gateway(gateway, len(address))
    if oif:
        attributes += _NUMBER.pack(8, _RTA_OIF, oif)
    if metric:
        attributes += _NUMBER.pack(8, _RTA_PRIORITY, metric)
    if table > 255:
        attributes += _NUMBER.pack(8, _RTA_TABLE, table)
        table = _RT_TABLE_COMPAT
    fields = (AF[family_of(address)], length, 0, tos, table, protocol, scope, type_, 0)
    return _REQUEST.pack(28 + len(attributes), kind, flags | NLM_F_REQUEST, seq, 0, *fields) + attributes


def _gateway(gateway: bytes, width: int) -> bytes:
    if len(gateway) == width:
        return _ATTRIBUTE.pack(4 + width, _RTA_GATEWAY) + gateway
    padding = bytes(-(2 + len(gateway)) % 4)
    return _ATTRIBUTE.pack(6 + len(gateway), _RTA_VIA) + struct.pack("=H", AF[family_of(gateway)]) + gateway + padding


def encode_dump_routes(family: Family, table: int) -> bytes:
    """Body of a RTM_GETROUTE dump of one table; the kernel filters where NETLINK_GET_STRICT_CHK is on."""
    return _RTMSG.pack(AF[family], 0, 0, 0, 0, 0, 0, 0, 0) + _NUMBER.pack(8, _RTA_TABLE, table)


def encode_lookup(address: bytes) -> bytes:
    """Body of a RTM_GETROUTE request for the route that the kernel would choose for ``address``, as it stands in its table."""
    flags = _RTM_F_FIB_MATCH | (_RTM_F_LOOKUP_TABLE if len(address) == 4 else 0)  # IPv6 does that unasked, and refuses the flag
    body = _RTMSG.pack(AF[family_of(address)], len(address) * 8, 0, 0, 0, 0, 0, 0, flags)
    return body + _ATTRIBUTE.pack(4 + len(address), _RTA_DST) + address


def encode_dump_neighbours(ifindex: int) -> bytes:
    """Body of a RTM_GETNEIGH dump of one interface, both families; the kernel filters where NETLINK_GET_STRICT_CHK is on."""
    return bytes(_NDMSG.size) + _NUMBER.pack(8, _NDA_IFINDEX, ifindex)


def messages(buffer: bytes) -> Iterator[Message]:
    """Walk over the messages of one datagram. Raises NetlinkError at a length that cannot be."""
    at, total, unpack = 0, len(buffer), _HEADER.unpack_from
    while at < total:
        if total - at < 16:
            raise _malformed(f"{total - at} bytes where a header should be")
        length, kind, flags, seq, portid = unpack(buffer, at)
        end = at + length
        if length < 16 or end > total:
            raise _malformed(f"type {kind} of length {length}, {total - at} bytes left")
        yield kind, flags, seq, portid, at + 16, end
        at = (end + 3) & ~3


def _attributes(buffer: bytes, at: int, end: int) -> dict[int, bytes]:
    found = {}
    unpack = _ATTRIBUTE.unpack_from
    while end - at >= 4:
        size, kind = unpack(buffer, at)
        if size < 4 or at + size > end:
            raise _malformed(f"attribute {kind} of length {size}, {end - at} bytes left")
        found[kind & 0x3FFF] = buffer[at + 4 : at + size]  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
        at += (size + 3) & ~3
    return found


def _fixed(layout: struct.Struct, buffer: bytes, at: int, end: int) -> tuple[int, ...]:
    if end - at < layout.size:
        raise _malformed(f"{end - at} bytes where {layout.size} should be")
    return layout.unpack_from(buffer, at)


def _number(attributes: dict[int, bytes], kind: int, default: int = 0, layout: struct.Struct = _U32) -> int:
    value = attributes.get(kind)
    return default if value is None else _fixed(layout, value, 0, len(value))[0]


def _text(attributes: dict[int, bytes], kind: int) -> str:
    return os.fsdecode(attributes.get(kind, b"").partition(b"\0")[0])


def _shape(width: int, *tail: tuple[int, int]) -> tuple[struct.Struct, tuple[int, ...]]:
    attributes = ((_RTA_TABLE, 4), (_RTA_DST, width), (_RTA_PRIORITY, 4), (_RTA_GATEWAY, width), (_RTA_OIF, 4), *tail)
    headers = tuple(_U32.unpack(_ATTRIBUTE.pack(4 + size, kind))[0] for kind, size in attributes)
    return struct.Struct(f"=8BI II I{width}s II I{width}s II" + ("I32s Ic3x" if tail else "")), headers


_SHAPES: Final = {52: _shape(4), 120: _shape(16, (_RTA_CACHEINFO, 32), (_RTA_PREF, 1))}
"""By size, how the kernel lays out an ordinary route through a gateway: nearly all of a dump. Taken apart at one stroke, they
need a third of the time of a walk from attribute to attribute."""


def decode_route(buffer: bytes, offset: int, end: int) -> Route:
    """The route whose rtmsg is buffer[offset:end]. Of several next hops, the first. Raises NetlinkError if malformed."""
    shape = _SHAPES.get(end - offset)
    if shape is not None:
        fields = shape[0].unpack_from(buffer, offset)
        if fields[9::2] == shape[1]:
            _, length, _, tos, _, protocol, scope, type_, _, _, table, _, address, _, metric, _, gateway, _, oif = fields[:19]
            return Route(Prefix(address, length), metric, gateway, oif, protocol, type_, table, scope, tos)
    return _walk_route(buffer, offset, end)


def _walk_route(buffer: bytes, offset: int, end: int) -> Route:
    family, length, _, tos, table, protocol, scope, type_, _ = _fixed(_RTMSG, buffer, offset, end)
    found = _attributes(buffer, offset + 12, end)
    address = found.get(_RTA_DST) or bytes(4 if family == socket.AF_INET else 16)
    if family not in _FAMILIES or AF[family_of(address)] != family or length > len(address) * 8:
        raise _malformed(f"destination of {len(address)} bytes and {length} bits in address family {family}")
    hop, oif = found, _number(found, _RTA_OIF)
    if _RTA_MULTIPATH in found:
        hop, oif = _first_hop(found[_RTA_MULTIPATH])
    gateway = hop.get(_RTA_GATEWAY) or hop.get(_RTA_VIA, b"")[2:]  # the latter says its family first
    if len(gateway) not in {0, 4, 16}:
        raise _malformed(f"gateway of {len(gateway)} bytes")
    metric, table = _number(found, _RTA_PRIORITY), _number(found, _RTA_TABLE, table)
    multipath = _RTA_MULTIPATH in found or _RTA_NH_ID in found
    return Route(Prefix(address, length), metric, gateway, oif, protocol, type_, table, scope, tos, multipath)


def _first_hop(value: bytes) -> tuple[dict[int, bytes], int]:
    size, _, _, oif = _fixed(_NEXTHOP, value, 0, len(value))
    if not _NEXTHOP.size <= size <= len(value):
        raise _malformed(f"next hop of length {size} in {len(value)} bytes")
    return _attributes(value, _NEXTHOP.size, size), oif


def is_route(buffer: bytes, offset: int, end: int, *families: int) -> bool:
    """Whether buffer[offset:end] is a route of one of ``families`` (AF_INET, AF_INET6): not one of another kind (multicast
    forwarding), and not the kernel's own exception to a route (a path MTU, a redirect).
    """
    return end - offset < 12 or (buffer[offset] in families and not _U32.unpack_from(buffer, offset + 8)[0] & _RTM_F_CLONED)


def is_learnt(buffer: bytes, offset: int, end: int, ifindex: int) -> bool:
    """Whether the neighbour whose ndmsg is buffer[offset:end] is at ``ifindex``, and there because the kernel has asked: not
    set by somebody, or by the kernel itself for good (multicast). Raises NetlinkError if malformed.
    """
    _, at, state, flags, _ = _fixed(_NDMSG, buffer, offset, end)
    return at == ifindex and not state & (_NUD_PERMANENT | _NUD_NOARP) and not flags & _NTF_EXT_LEARNED


def decode_link(buffer: bytes, offset: int, end: int) -> Link:
    """The interface whose ifinfomsg is buffer[offset:end]. Raises NetlinkError if malformed."""
    _, _, ifindex, flags, _ = _fixed(_IFINFO, buffer, offset, end)
    found = _attributes(buffer, offset + _IFINFO.size, end)
    info = found.get(_IFLA_LINKINFO, b"")
    kind = _text(_attributes(info, 0, len(info)), _IFLA_INFO_KIND)
    name, up = _text(found, _IFLA_IFNAME), bool(flags & _IFF_UP)
    return Link(ifindex, name, up, _number(found, _IFLA_MTU), kind, _number(found, _IFLA_MASTER))


def decode_address(buffer: bytes, offset: int, end: int) -> HostAddress:
    """The address whose ifaddrmsg is buffer[offset:end]: our end of a point-to-point link. Raises NetlinkError if malformed."""
    family, length, _, _, ifindex = _fixed(_IFADDR, buffer, offset, end)
    found = _attributes(buffer, offset + _IFADDR.size, end)
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    if len(address) != (4 if family == socket.AF_INET else 16):
        raise _malformed(f"address of {len(address)} bytes in address family {family}")
    return HostAddress(ifindex, address, length)


def decode_netconf(buffer: bytes, offset: int, end: int) -> Netconf | None:
    """The settings whose netconfmsg is buffer[offset:end]; None if not about forwarding. Raises NetlinkError if malformed."""
    family = _FAMILIES.get(_fixed(_NETCONF, buffer, offset, end)[0])
    found = _attributes(buffer, offset + _NETCONF.size, end)
    if family is None or _NETCONFA_FORWARDING not in found:
        return None
    return Netconf(family, _number(found, _NETCONFA_IFINDEX, 0, _I32), bool(_number(found, _NETCONFA_FORWARDING)))


def decode_event(buffer: bytes, message: Message) -> Event | None:
    """What a notification says; None if it is none of our business. Raises NetlinkError if malformed."""
    kind, flags, _, portid, offset, end = message
    if kind in {RTM_NEWROUTE, RTM_DELROUTE}:
        if not is_route(buffer, offset, end, *_FAMILIES):
            return None
        route = decode_route(buffer, offset, end)
        return RouteEvent(kind == RTM_DELROUTE, route, portid, bool(flags & NLM_F_REPLACE), bool(flags & NLM_F_APPEND))
    if kind in {RTM_NEWLINK, RTM_DELLINK}:
        link = decode_link(buffer, offset, end)
        if buffer[offset] == socket.AF_UNSPEC:
            return LinkEvent(link, kind == RTM_DELLINK)
        # AF_BRIDGE tells only that a port joined or left its bridge: the "deleted" interface may live on.
        return PortLeft(link.master) if kind == RTM_DELLINK and link.master else None
    if kind in {RTM_NEWADDR, RTM_DELADDR}:
        return AddressEvent(decode_address(buffer, offset, end), kind == RTM_DELADDR)
    return decode_netconf(buffer, offset, end) if kind == RTM_NEWNETCONF else None


def decode_error(buffer: bytes, message: Message) -> tuple[int, str]:
    """(errno, the kernel's own words, "" if none) of a NLMSG_ERROR, or of the NLMSG_DONE of a dump. An ACK is errno 0."""
    kind, flags, _, _, offset, end = message
    (code,) = _fixed(_I32, buffer, offset, end)
    if not flags & _NLM_F_ACK_TLVS:
        return -code, ""
    start = offset + 4
    if kind == NLMSG_ERROR:  # the request comes back first; all of it, unless capped
        length, *_ = _fixed(_HEADER, buffer, start, end)
        start += 16 if flags & _NLM_F_CAPPED or not code else (length + 3) & ~3
    return -code, _text(_attributes(buffer, start, end), _NLMSGERR_ATTR_MSG)
