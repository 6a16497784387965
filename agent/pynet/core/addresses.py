"""Addresses and prefixes: strict parsing, and the arithmetic of networks. Pure; quick enough for 5,000 nodes in a pass."""

from __future__ import annotations

import re
import socket
from typing import Final

from pynet.core.model import Prefix, format_address

_AF: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_MAPPED: Final = bytes(10) + b"\xff\xff"
_LENGTH: Final = re.compile("0|[1-9][0-9]{0,2}")  # no sign, no leading zero, no digits of other scripts
_QUOTED: Final = 64  # characters of what somebody wrote that a reason repeats


def parse_address(text: str) -> bytes:
    """Pack an IPv4 or IPv6 address. Raises ValueError, with the reason in words, for anything else: zones, IPv4-mapped
    IPv6, leading zeros, white space.
    """
    family = 6 if ":" in text else 4
    try:
        packed = socket.inet_pton(_AF[family], text)
    except (OSError, ValueError):  # ValueError: an embedded null character
        raise ValueError(f"{_quoted(text)} is not an IP address") from None
    if packed.startswith(_MAPPED):
        raise ValueError(f"{text!r} is an IPv4 address written as IPv6")
    return packed


def parse_prefix(text: str) -> Prefix:
    """Parse ``address/length``. Raises ValueError, with the reason in words, if it is malformed or has host bits set."""
    address, slash, length_text = text.partition("/")
    packed = parse_address(address)
    if not slash or not _LENGTH.fullmatch(length_text):
        raise ValueError(f"{_quoted(text)} is not a network (address/length)")
    length = int(length_text)
    if length > len(packed) * 8:
        raise ValueError(f"{text!r} has a prefix length above {len(packed) * 8}")
    network = mask(packed, length)
    if network != packed:
        raise ValueError(f"{text!r} has host bits set; the network is {format_address(network)}/{length}")
    return Prefix(packed, length)


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}..."


def mask(address: bytes, length: int) -> bytes:
    """The network address of ``address`` under a prefix of ``length`` bits."""
    size = len(address)
    shift = size * 8 - length
    return (int.from_bytes(address) >> shift << shift).to_bytes(size)


def contains(outer: Prefix, address: bytes) -> bool:
    """Whether ``address`` lies in ``outer`` (never for the other family)."""
    if len(outer.address) != len(address):
        return False
    shift = len(address) * 8 - outer.length
    return int.from_bytes(outer.address) >> shift == int.from_bytes(address) >> shift


def covers(outer: Prefix, inner: Prefix) -> bool:
    """Whether ``inner`` equals or lies in ``outer``."""
    return outer.length <= inner.length and contains(outer, inner.address)


def overlap(one: Prefix, other: Prefix) -> bool:
    """Whether two networks share an address: then one lies in the other."""
    return covers(one, other) or covers(other, one)


def is_ipv6_link_local(address: bytes) -> bool:
    """Whether ``address`` is in fe80::/10: one is on each interface, and none is ever a next hop or a gateway of ours."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def host_prefix(address: bytes) -> Prefix:
    """The /32 or /128 of one address."""
    return Prefix(address, len(address) * 8)
