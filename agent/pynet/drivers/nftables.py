"""Changing and listing tables through nft, the distribution's program, in its JSON (libnftables-json(5))."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pynet.drivers import command
from pynet.drivers.command import CommandError, MissingError

if TYPE_CHECKING:
    from pynet.drivers.nfnetlink import OwnTransactions

Command = dict[str, Any]
"""One command or object."""


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


def _plain(error: CommandError) -> CommandError:
    """The error without its position in our input, and with what mends it where that is known."""
    if isinstance(error, MissingError):
        return MissingError("nft", "not installed: install the package nftables")
    text = error.text.partition("Error: ")[2] or error.text
    if "Operation not permitted" in text:
        text += " (CAP_NET_ADMIN is needed)"
    return CommandError("nft", text, error.status)
