"""What the values of the configuration file may be: one rule a key, with the words that say so to a person."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from pynet.core.addresses import parse_address, parse_prefix

KNOWN_PROTOCOLS: Final = {
    0: "unspec", 1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird",
    13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel", 99: "openr", 186: "bgp",
    187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip
"""Route protocols with an owner (linux/rtnetlink.h): whoever else uses one would delete our routes, or we theirs."""


class InterfaceChoice(NamedTuple):
    """Which interface carries routes to peers.

    ``kind`` says what ``value`` is: nothing ("auto"), an interface's name, a regular expression to search names with, or an
    address whose route tells the interface.
    """

    kind: Literal["auto", "name", "pattern", "can-reach"]
    value: str = ""


def parse_interface(text: str) -> InterfaceChoice:
    """Parse the key ``interface``. Raises ValueError if it is none of its four forms."""
    if text == "auto":
        return InterfaceChoice("auto")
    if text.startswith("can-reach="):
        address = text.removeprefix("can-reach=")
        parse_address(address)
        return InterfaceChoice("can-reach", address)
    if len(text) > 2 and text[0] == text[-1] == "/":
        try:
            with warnings.catch_warnings(action="ignore"):  # re's thoughts about its own future
                re.compile(text[1:-1])
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return InterfaceChoice("pattern", text[1:-1])
    _link_name(text)
    return InterfaceChoice("name", text)


class Rule(NamedTuple):
    """What a value must be beyond its type.

    ``check`` raises ValueError, with words where they add something; ``words`` say what is allowed.
    """

    check: Callable[[Any], None]
    words: str


def _between(low: float, high: float) -> Callable[[float], None]:
    def check(value: float) -> None:
        if not low <= value <= high:  # false for nan too
            raise ValueError

    return check


def _protocol(value: int) -> None:
    _between(1, 255)(value)
    if value in KNOWN_PROTOCOLS:
        raise ValueError(f"that is {KNOWN_PROTOCOLS[value]}")


def _table(value: int) -> None:
    _between(1, 4294967295)(value)
    if value == 255:
        raise ValueError("that is the kernel's table local")


def _mtu(value: int | str) -> None:
    if not isinstance(value, str):
        _between(1280, 65535)(value)


def _cidrs(values: tuple[str, ...]) -> None:
    for text in values:
        parse_prefix(text)


def _interface(value: str) -> None:
    parse_interface(value)


def _link_name(value: str) -> None:
    # The kernel's dev_valid_name, without "%", which it would replace by a number.
    if not re.fullmatch(r"[^\s/:%\x00]{1,15}", value) or value in {".", ".."} or len(value.encode()) > 15:
        raise ValueError("not an interface's name")


def _folder(value: str) -> None:
    if not value.startswith("/") or "\0" in value:
        raise ValueError


def _conflist_name(value: str) -> None:
    # A runtime loads *.conflist, and our own temporary files are hidden ones.
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.conflist", value) or len(value) > 64:
        raise ValueError


def _metrics_address(value: str) -> None:
    if value not in {"node", ""}:
        parse_address(value)


def _loopback(value: str) -> None:
    address = parse_address(value)
    if address[:1] != b"\x7f" and address != bytes(15) + b"\1":
        raise ValueError("not a loopback address")


_CIDRS: Final = Rule(_cidrs, "a list of networks, address/length with no host bits set")
_FOLDER: Final = Rule(_folder, "an absolute path")
_PORT: Final = Rule(_between(1, 65535), "a whole number 1..65535")

RULES: Final = {
    "clusterCIDRs": _CIDRS,
    "serviceCIDRs": _CIDRS,
    "interface": Rule(_interface, "auto, an interface's name (1..15 characters), /regular expression/ or can-reach=ADDRESS"),
    "routes.protocol": Rule(_protocol, f"a whole number 1..255, but not {', '.join(map(str, list(KNOWN_PROTOCOLS)[1:]))}"),
    "routes.table": Rule(_table, "a whole number 1..4294967295, but not 255"),
    "routes.metric": Rule(_between(1, 254), "a whole number 1..254"),
    "routes.metricBuckets": Rule(_between(1, 254), "a whole number 1..254"),
    "removalGuard.fraction": Rule(_between(0, 1), "a number 0..1"),
    "removalGuard.minimum": Rule(_between(0, 2**31), "a whole number from 0"),
    "masquerade.exceptCIDRs": _CIDRS,
    "cni.confDir": _FOLDER,
    "cni.confName": Rule(_conflist_name, "a file name ending in .conflist, of letters, digits, '.', '_' and '-', not hidden"),
    "cni.binDir": _FOLDER,
    "cni.bridgeName": Rule(_link_name, "an interface's name (1..15 characters)"),
    "cni.mtu": Rule(_mtu, "auto, or a whole number 1280..65535"),
    "cni.ipamDir": _FOLDER,
    "sysctls.root": _FOLDER,
    "stateDir": _FOLDER,
    "runDir": _FOLDER,
    "metrics.address": Rule(_metrics_address, 'node, an IP address, or "" for all'),
    "metrics.port": _PORT,
    "health.address": Rule(_loopback, "a loopback address (127.0.0.1, ::1)"),
    "health.port": _PORT,
    "resyncSeconds": Rule(_between(1, 3600), "a whole number 1..3600"),
}
"""Every key whose values need more than their type. Keys without a rule are flags and choices."""
