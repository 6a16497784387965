"""The kernel settings that pods on routed networks need: what they must be, whether they are, and making them so.

Called by the loop in its own thread: a handful of small files of procfs, read and compared; written only where wrong, because
a write to ``ip_forward`` resets what other programs have set on single interfaces.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_ACCEPT_RA: Final = "else forwarding ends the routes that this interface has from router advertisements"
_CALL_IPTABLES: Final = "else a reply between two pods of this node is not translated back (kube-proxy in iptables mode)"


class Sysctl(NamedTuple):
    """One setting we need: ``path`` under the root of the settings, the ``value`` it must have, and ``why``.

    ``only_from``: any value but this one is left alone and is right. ``missing``: what it means that the file is not there:
    "wrong", "gone" (the interface is: nothing to set) or "unloaded" (a module is not loaded: said, but no failure).
    """

    path: str
    value: str
    why: str
    only_from: str = ""
    missing: Literal["wrong", "gone", "unloaded"] = "wrong"

    @property
    def name(self) -> str:
        """As sysctl(8) takes it: with dots, or with slashes where an interface's name has a dot of its own."""
        return self.path if "." in self.path else self.path.replace("/", ".")


class SysctlState(NamedTuple):
    """How one setting is. ``have`` is "" if it could not be read.

    ``ok`` is what readiness asks for; ``error`` says (without repeating name and values) what that means and what mends it,
    and may be there with ``ok`` where only a part does not work (br_netfilter not loaded).
    """

    name: str
    want: str
    have: str
    error: str = ""
    ok: bool = True


def wanted(
    *,
    ipv4: bool,
    ipv6: bool,
    interfaces: Collection[str],
    ra_interfaces: Collection[str] = (),
    bridge_filter: bool,
) -> tuple[Sysctl, ...]:
    """The settings that this node needs, in the order in which they must be written.

    ``ipv4``, ``ipv6``: the node has a podCIDR of that family. ``interfaces``: those that carry pod traffic (egress ones, our
    bridge). ``ra_interfaces``: those with a kernel route from router advertisements. ``bridge_filter``: pods are on a bridge,
    whose traffic iptables must see.
    """
    wants: list[Sysctl] = []
    if ipv6:
        # First: the moment forwarding is on, the kernel drops the default route of an interface whose accept_ra is 1.
        wants += [
            Sysctl(f"net/ipv6/conf/{name}/accept_ra", "2", _ACCEPT_RA, only_from="1", missing="gone")
            for name in sorted(ra_interfaces)
        ]
    for wants_family, family, switch in ((ipv4, "ipv4", "net/ipv4/ip_forward"), (ipv6, "ipv6", "net/ipv6/conf/all/forwarding")):
        if not wants_family:
            continue
        wants.append(Sysctl(switch, "1", "else packets from and to pods are not forwarded"))
        # After the switch: it sets every interface anew.
        wants += [
            Sysctl(f"net/{family}/conf/{name}/forwarding", "1", f"else what {name} receives is not forwarded", missing="gone")
            for name in sorted(interfaces)
        ]
    if bridge_filter:
        files = (("bridge-nf-call-iptables", ipv4), ("bridge-nf-call-ip6tables", ipv6))
        wants += [Sysctl(f"net/bridge/{file}", "1", _CALL_IPTABLES, missing="unloaded") for file, needed in files if needed]
    return tuple(wants)


def check(root: Path, wants: Sequence[Sysctl]) -> list[SysctlState]:
    """How the wanted settings are, in the same order. Reads only; ``root`` is ``/proc/sys`` or where a pod has it mounted."""
    return [_state(root, want) for want in wants]


def repair(root: Path, wants: Sequence[Sysctl]) -> tuple[list[SysctlState], list[SysctlState]]:
    """Write each setting that is wrong, and no other; returns how all are afterwards, and how those written were before.

    What cannot be written has its reason in ``error``. Raises nothing.
    """
    failures: dict[str, str] = {}
    written: list[SysctlState] = []
    for want in wants:
        # Read at its turn, not before: the write of a switch may have put the ones after it right.
        state = _state(root, want)
        if state.ok:
            continue
        try:
            _write(root / want.path, want.value)
            written.append(state)
        except OSError as problem:
            failures[want.name] = _why_not_written(root, want, problem)
    return [_with_failure(state, failures.get(state.name, "")) for state in check(root, wants)], written


def _state(root: Path, want: Sysctl) -> SysctlState:
    try:
        have = _read(root / want.path)
    except FileNotFoundError:
        return _missing(root, want)
    except OSError as problem:
        return SysctlState(want.name, want.value, "", f"cannot be read: {problem.strerror}", ok=False)
    if have == want.value or (want.only_from and have != want.only_from):
        return SysctlState(want.name, want.value, have)
    return SysctlState(want.name, want.value, have, want.why, ok=False)


def _missing(root: Path, want: Sysctl) -> SysctlState:
    if want.missing == "gone":
        return SysctlState(want.name, want.value, "")
    if want.missing == "unloaded":
        text = f"br_netfilter is not loaded, {want.why}: modprobe br_netfilter"
        return SysctlState(want.name, want.value, "", text)
    text = f"there is no {root / want.path}: the kernel lacks it, or sysctls.root is wrong; {want.why}"
    return SysctlState(want.name, want.value, "", text, ok=False)


def _with_failure(state: SysctlState, failure: str) -> SysctlState:
    return state if state.ok or not failure else state._replace(error=f"{state.error}; {failure}")


def _why_not_written(root: Path, want: Sysctl, problem: OSError) -> str:
    if problem.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"we cannot write below {root} ({problem.strerror}): set it on the host (sysctl -w {want.name}={want.value}), "
            "or mount the host's /proc/sys/net elsewhere and name that place in sysctls.root"
        )
    return f"cannot be written: {problem.strerror}"


def _read(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 256).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


def _write(path: Path, value: str) -> None:
    # No O_CREAT, no O_TRUNC: these are the kernel's files, and one that is not there must not come to be.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)
