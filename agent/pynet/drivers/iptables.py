"""The filter table of iptables, which a host can have twice per family: in nftables (iptables-nft) and on its own (legacy)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from pynet.drivers import command
from pynet.drivers.command import CommandError, MissingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pynet.core.model import Family

_LOCK_SECONDS: Final = "5"  # how long a program waits for another one's transaction
# The kernel's words for what a container lacks, and what mends it.
_HINTS: Final = {
    "Permission denied": "CAP_NET_ADMIN and, for iptables-legacy, CAP_NET_RAW are needed",
    "lock file": "/run/xtables.lock of the host must be mounted writable",
}


class Backend(NamedTuple):
    """Where rules of ``family`` are kept."""

    kind: Literal["nft", "legacy"]
    family: Family

    def __str__(self) -> str:
        return f"{'iptables' if self.family == 4 else 'ip6tables'}-{self.kind}"


def has_legacy_filter(family: Family) -> bool:
    """Whether the legacy filter table exists in the calling thread's network namespace. Asking creates nothing. Raises OSError.

    iptables-legacy itself would load the module and make the table, at the mere listing.
    """
    name = "ip_tables_names" if family == 4 else "ip6_tables_names"
    try:
        return "filter" in Path("/proc/thread-self/net", name).read_text().split()
    except FileNotFoundError:
        return False


def list_rules(backend: Backend, chain: str) -> list[str] | None:
    """A chain of the filter table as ``iptables -S`` tells it, policy or name first; None if there is no such chain (legacy).

    Raises CommandError, MissingError. The nft variant calls a chain that is not there incompatible: ask nfnetlink.list_chains.
    """
    try:
        said = command.run([str(backend), "-w", _LOCK_SECONDS, "-t", "filter", "-S", chain])
    except CommandError as error:
        if "No chain/target/match by that name" in error.text:
            return None
        raise _plain(backend, error) from None
    return [line for line in said.decode(errors="replace").splitlines() if line.startswith("-")]


def restore(backend: Backend, lines: Sequence[str], started: Callable[[int], None] | None = None) -> None:
    """Commit ``lines`` (of iptables-save's format) to the filter table: all or none. Raises CommandError, MissingError.

    ``started`` is told the process id, which is also the port id that the nft variant commits with.
    """
    text = "\n".join(("*filter", *lines, "COMMIT", ""))
    try:
        command.run([f"{backend}-restore", "--noflush", "-w", _LOCK_SECONDS], text.encode(), started=started)
    except CommandError as error:
        raise _plain(backend, error) from None


def _plain(backend: Backend, error: CommandError) -> CommandError:
    """The error with what mends it, where that is known."""
    if isinstance(error, MissingError):
        return MissingError(str(backend), "not installed: install the package iptables")
    hint = next((f" ({mends})" for words, mends in _HINTS.items() if words in error.text), "")
    return CommandError(str(backend), error.text + hint, error.status)
