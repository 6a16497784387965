"""Watches tables of nftables for what others do to them, in a thread of its own, and notes it until somebody looks."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from pynet.drivers.nfnetlink import Committed, Monitor, OwnTransactions, TableChange
from pynet.drivers.nlsocket import Overrun

if TYPE_CHECKING:
    from collections.abc import Callable

    import structlog

_REOPEN_AFTER = 5.0  # seconds


class Drift(NamedTuple):
    """``what`` somebody changed, ``who`` it was, and ``since`` when we know of it (time.monotonic())."""

    what: str
    who: str
    since: float


class TableWatch:
    """Notes what others do to ``tables`` (family, name), and calls ``look`` whenever there is something new to `take`: in its
    thread, so it must not block. ``concerns`` says which changes matter, ``kind`` begins the names of what is logged.

    A socket that fails is opened again after 5 seconds.
    """

    def __init__(
        self,
        kind: str,
        tables: frozenset[tuple[str, str]],
        look: Callable[[], None],
        log: structlog.typing.FilteringBoundLogger,
        concerns: Callable[[TableChange], bool] = lambda _change: True,
    ) -> None:
        self.own = OwnTransactions()
        """Whose changes are not to be noted."""
        self._kind = kind
        self._tables = tables
        self._look = look
        self._log = log
        self._concerns = concerns
        self._lock = threading.Lock()
        self._drift: Drift | None = None
        self._doubt = ""
        self._seen: list[TableChange] = []  # of a transaction whose end was not yet announced
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in the network namespace of the calling thread; nothing happens the second time.

        What is committed after this returns is seen, unless the monitor cannot be opened: that is logged, and tried again.
        """
        if self._thread is not None:
            return
        monitor: Monitor | None = None
        try:
            monitor = Monitor()
        except OSError as error:  # a resync repairs too, if later
            self._log.warning(f"{self._kind}_watch_failed", reason=error.strerror)
        self._thread = threading.Thread(target=self._run, args=(monitor,), name="nft-watch", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """End it; True if it has ended within ``timeout`` seconds."""
        os.eventfd_write(self._stop, 1)
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def take(self) -> tuple[Drift | None, str]:
        """The first thing that others did since the last call; and why there may be more that nobody saw ("": no reason)."""
        with self._lock:
            taken = self._drift, self._doubt
            self._drift, self._doubt = None, ""
        return taken

    def give_back(self, drift: Drift | None, doubt: str) -> None:
        """What was taken is not put right: have it taken again."""
        with self._lock:
            self._drift = self._drift or drift
            self._doubt = self._doubt or doubt

    def suspect(self, why: str) -> None:
        """Something may have happened: have somebody look."""
        self.give_back(None, why)
        self._look()

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
                    events = monitor.read(self._tables, self.own)
                except Overrun:
                    self._seen.clear()
                    self._lost("nftables events were lost")
                    continue
                for event in events:
                    self._hear(event)

    def _hear(self, event: TableChange | Committed) -> None:
        if isinstance(event, TableChange):
            if len(self._seen) < 100 and self._concerns(event):  # enough to say what happened
                self._seen.append(event)
            return
        if event.portid in self.own:
            self.own.ended(event.portid)
        elif self._seen:
            self._note(f"{event.program}[{event.process}]")
        self._seen = []

    def _note(self, who: str) -> None:
        with self._lock:
            if self._drift is not None:
                return  # about to be repaired, or in a fight's pause
            self._drift = Drift(", ".join(dict.fromkeys(map(str, self._seen[:3]))), who, time.monotonic())
        self._look()

    def _lost(self, why: str) -> None:
        self._log.warning(f"{self._kind}_events_lost", reason=why)
        self.suspect(why)

    def _stopping(self, seconds: float | None, monitor: Monitor | None = None) -> bool:
        """Wait so long (None: for ever) for the monitor; True as soon as it is to stop."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if monitor is not None:
            poll.register(monitor.fileno(), select.POLLIN)
        ready = poll.poll(None if seconds is None else seconds * 1000)
        return any(descriptor == self._stop for descriptor, _ in ready)
