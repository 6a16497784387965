"""Keeps table ``inet pynet`` as a `Ruleset` says, in threads of its own: one that applies, one that watches for others."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Final

from pynet.apply.applier import Applier
from pynet.apply.ruleset import FAMILY, NAME, Ruleset, Table, difference, is_whole, parse, plan, render, replacement
from pynet.apply.tablewatch import Drift, TableWatch
from pynet.core.fights import Fights
from pynet.drivers.command import CommandError, MissingError
from pynet.drivers.nfnetlink import generation, list_chains
from pynet.drivers.nftables import Command, list_table, transact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import structlog

KIND: Final = "masquerade"


class ContestedError(Exception):
    """Somebody keeps undoing what we put right; we leave it alone for a while."""


class Masquerade:
    """Table ``inet pynet`` in the network namespace of the thread that submits first.

    ``on_result(name, error)``: as of Applier. ``on_drift(kind, seconds)`` is called after a repair, with the time since the
    kernel announced the change, or since we found it. Both in threads of ours: they must not block or raise.
    """

    def __init__(
        self,
        on_result: Callable[[str, str], None],
        on_drift: Callable[[str, float], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self._on_drift = on_drift
        self._log = log
        self._applier = Applier(KIND, self._converge, on_result=on_result)
        self._watch = TableWatch(KIND, frozenset({(FAMILY, NAME)}), self._applier.retry, log)
        # From here on: the applier's thread only.
        self._fights = Fights()
        self._rendered: tuple[Ruleset, Table | None] | None = None
        self._held: Table | None = None  # what the kernel holds, if we know:
        self._known = False
        self._compared = -1  # the generation of the rules at which that was last compared with the kernel's own
        self._alias: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None  # what nft lists, for what we wrote

    @property
    def ok(self) -> bool:
        """Whether the last attempt succeeded."""
        return self._applier.ok

    @property
    def error(self) -> str:
        """Why not, in one line."""
        return self._applier.error

    def submit(self, ruleset: Ruleset) -> None:
        """Have the kernel hold the table for ``ruleset``. Returns at once."""
        self._applier.submit(ruleset)

    def resync(self) -> None:
        """Compare the kernel's table with what it should be, and mend it. Returns at once."""
        self._watch.suspect("resync")

    def stop(self, timeout: float = 1.0) -> bool:
        """End both threads and leave the table in place; True if they ended within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        ended = self._applier.stop(timeout)
        return self._watch.stop(max(0.0, deadline - time.monotonic())) and ended

    def _converge(self, ruleset: Ruleset) -> None:
        """Make the kernel hold the table for ``ruleset``. Raises CommandError, OSError, ContestedError."""
        if self._rendered is None or self._rendered[0] is not ruleset:
            self._rendered = ruleset, render(ruleset)
        wanted = self._rendered[1]
        if wanted is not None:
            self._watch.start()
        drift, doubt = self._watch.take()
        try:
            self._mend(wanted, drift, doubt)
        except Exception as error:
            if wanted is None and isinstance(error, MissingError):
                return  # masquerading is off, and there is no nft that could have made a table
            self._watch.give_back(drift, doubt)
            raise

    def _mend(self, wanted: Table | None, drift: Drift | None, doubt: str) -> None:
        self._hold_back(drift)
        if drift is None:
            drift = self._look(doubt)
        generation_of_ours = 0
        if commands := replacement(wanted) if drift else plan(self._held, wanted):
            generation_of_ours = self._write(commands, wanted)
        if drift is not None:
            self._repaired(drift)
        if generation_of_ours:
            self._confirm(generation_of_ours)

    def _hold_back(self, drift: Drift | None) -> None:
        """Raises ContestedError while a fight's pause lasts."""
        now = time.monotonic()
        if until := self._fights.not_before(KIND, now):
            last = f" (last: {drift.what}, by {drift.who})" if drift else ""
            pause = math.ceil(until - now)
            raise ContestedError(f"somebody keeps changing table {FAMILY} {NAME}{last}: left alone for {pause} s")

    def _repaired(self, drift: Drift) -> None:
        now = time.monotonic()
        self._fights.repaired(KIND, now)
        self._log.warning("masquerade_repaired", change=drift.what, by=drift.who, seconds=round(now - drift.since, 4))
        self._on_drift(KIND, now - drift.since)

    def _look(self, doubt: str) -> Drift | None:
        """Find out what the kernel holds, unless we know. Returns what somebody did to it while we thought that we knew.

        A doubt costs one system call while no transaction of anybody came after the last comparison.
        """
        if self._known and not (doubt and generation() != self._compared):
            return None
        began = time.monotonic()
        expected, known = self._held, self._known
        self._held = self._read()
        self._known = True
        if known and (what := difference(self._held, expected)):
            return Drift(what, f"somebody unseen ({doubt})", began)
        return None

    def _read(self) -> Table | None:
        """What the kernel holds, in our words."""
        before = generation()
        listing = list_table(FAMILY, NAME)
        if generation() == before:
            self._compared = before
        if listing is None:
            return None
        found = parse(listing)
        if self._alias is not None and found.objects == self._alias[0]:
            return found._replace(objects=self._alias[1])
        return found

    def _write(self, commands: list[Command], wanted: Table | None) -> int:
        """Have the kernel accept ``commands``, which make it hold ``wanted``; the whole table if it refuses a part.

        Returns the generation that the whole table made, if nobody intervened; 0 for a part, which the next resync compares.
        """
        self._known = False
        before = generation()
        try:
            transact(commands, self._watch.own)
        except CommandError as error:
            if is_whole(commands):
                raise
            self._log.warning("masquerade_update_refused", error=str(error))
            commands = replacement(wanted)
            before = generation()
            transact(commands, self._watch.own)
        self._held, self._known = wanted, True
        if is_whole(commands):
            self._log.info("masquerade_replaced", table=f"{FAMILY} {NAME}")
            return before + 1
        self._log.debug("masquerade_updated", commands=len(commands))
        return 0

    def _confirm(self, ours: int) -> None:
        """Look at what became of the whole table. ``ours`` is the generation that our transaction made if nobody intervened.

        nft may list with other words than it was given, depending on its version: learned once. Raises CommandError if it lost
        elements.
        """
        wanted = self._held
        found = self._read()
        if found == wanted or self._compared != ours or found is None or wanted is None:
            return  # others may be at work: if at our table, the watch tells, and the next resync compares again
        what = difference(found, wanted)
        if found.elements != wanted.elements:
            self._known = False
            raise CommandError("nft", f"made something else of our rules: {what}")
        self._alias = (found.objects, wanted.objects)
        self._log.info("masquerade_listed_otherwise", difference=what)


def remove(*, dry_run: bool = False) -> list[str]:
    """Remove table ``inet pynet``; return what was (with ``dry_run``: would be) removed.

    Raises CommandError (a RuntimeError), OSError; MissingError if there is a table and no nft to remove it with.
    """
    try:
        if list_table(FAMILY, NAME) is None:
            return []
    except MissingError:
        if any((chain.family, chain.table) == (FAMILY, NAME) for chain in list_chains()):
            raise
        return []
    if not dry_run:
        transact(replacement(None))
    return [f"nft table {FAMILY} {NAME}"]
