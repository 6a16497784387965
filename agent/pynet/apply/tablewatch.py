"""Watches tables of nftables for what others do to them, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import TYPE_CHECKING

from pynet.drivers.nfnetlink import Committed, Monitor, Overrun, OwnTransactions, TableChange

if TYPE_CHECKING:
    from collections.abc import Callable

_REOPEN_AFTER = 5.0  # seconds


class TableWatch:
    """Calls ``changed(what, who)`` when somebody else changed one of ``tables`` (family, name), once per transaction; and
    ``lost(why)`` when events may have been missed: look again then. Both are called in its thread and must not block.

    ``who`` is the program and process id of the change; ``concerns`` says which changes matter. A socket that fails is opened
    again after 5 seconds.
    """

    def __init__(
        self,
        tables: frozenset[tuple[str, str]],
        own: OwnTransactions,
        changed: Callable[[list[TableChange], str], None],
        lost: Callable[[str], None],
        concerns: Callable[[TableChange], bool] = lambda _change: True,
    ) -> None:
        self._tables = tables
        self._own = own
        self._changed = changed
        self._lost = lost
        self._concerns = concerns
        self._seen: list[TableChange] = []  # of a transaction whose end was not yet announced
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in the network namespace of the calling thread. What is committed after this returns is seen.

        Raises OSError if the monitor cannot be opened now; it is tried again all the same. Nothing happens the second time.
        """
        if self._thread is not None:
            return
        monitor: Monitor | None = None
        try:
            monitor = Monitor()
        finally:
            self._thread = threading.Thread(target=self._run, args=(monitor,), name="nft-watch", daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End it; True if it has ended within ``timeout`` seconds."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _run(self, monitor: Monitor | None) -> None:
        while not self._stopping(0):
            if monitor is None:
                if self._stopping(_REOPEN_AFTER):
                    return
                with contextlib.suppress(OSError):  # told when it failed first
                    monitor = Monitor()
                    self._lost("the nftables monitor was reopened")
                continue
            try:
                self._follow(monitor)
            except OSError as error:
                self._lost(f"the nftables monitor failed: {error.strerror}")
                monitor = None

    def _follow(self, monitor: Monitor) -> None:
        """Read until told to stop. Raises OSError if the socket fails; closes it in any case."""
        with contextlib.closing(monitor):
            while not self._stopping(None, monitor):
                try:
                    events = monitor.read(self._tables, self._own)
                except Overrun:
                    self._seen.clear()
                    self._lost("nftables events were lost")
                    continue
                for event in events:
                    self._take(event)

    def _take(self, event: TableChange | Committed) -> None:
        if isinstance(event, TableChange):
            if len(self._seen) < 100 and self._concerns(event):  # enough to say what happened
                self._seen.append(event)
            return
        if event.portid in self._own:
            self._own.ended(event.portid)
        elif self._seen:
            self._changed(self._seen, f"{event.program}[{event.process}]")
        self._seen = []

    def _stopping(self, seconds: float | None, monitor: Monitor | None = None) -> bool:
        """Wait so long (None: for ever) for the monitor; True as soon as it is to stop."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if monitor is not None:
            poll.register(monitor.fileno(), select.POLLIN)
        ready = poll.poll(None if seconds is None else seconds * 1000)
        return any(descriptor == self._stop for descriptor, _ in ready)
