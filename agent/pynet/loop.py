"""THE loop: facts, desired state, plan, apply, look again.

    Node stream ──┐                                                 ┌─► routes (one batch)
                  ├─► observe ─► desired ─► diff ─► guard ─► apply ─┼─► sysctls
    kernel events ┘                                                 └─► masquerade, conflist, condition, snapshot (own threads)

One thread runs it, and it alone writes routes and sysctls, and forgets neighbours. A wake says no more than "look again"; what
is done follows from the facts and from the kernel as it is. A pass is over when another look finds nothing left to do.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

import msgspec
import structlog

from pynet.apply.effects import Effects, Now
from pynet.apply.routes import RouteWriter
from pynet.core.diff import Differ, Plan
from pynet.core.fights import Fights
from pynet.core.guard import GuardSettings, Held, RemovalGuard
from pynet.core.model import Operation, Prefix, Route, format_address
from pynet.core.pace import Pace
from pynet.core.retry import Retry
from pynet.drivers.netlink import Monitor, NetlinkError
from pynet.observe.facts import Facts, Observed

_LOOKS: Final = 3  # how often a pass looks again before it leaves the rest to a retry


class PassReport(msgspec.Struct, frozen=True):
    """A finished pass: when (epoch seconds), how long, why, what it did, and whether the kernel shows it done."""

    time: float
    seconds: float
    trigger: str
    operations: int
    verified: bool
    error: str = ""


class Waker:
    """Wakes the loop from other threads: an eventfd, so that the loop can wait for it and for the kernel at once."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __call__(self) -> None:
        """Wake the loop; returns at once."""
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        """Take the wake back, before looking."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return


class Loop:
    """Runs passes until stopped. What it knows is public and read by the report layer from other threads."""

    def __init__(
        self,
        facts: Facts,
        writer: RouteWriter,
        differ: Differ,
        effects: Effects,
        *,
        guard: GuardSettings,
        relist: Callable[[], None],
        observer: Callable[[Observed, PassReport, set[Prefix]], None],
        resync_seconds: float,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.facts = facts
        self.writer = writer
        self.rivals: dict[Prefix, tuple[Route, bool]] = {}
        self.fights = Fights()
        self.verified = False  # the last pass was verified
        self.settled = False  # a pass over everything, after a complete list or a snapshot, was verified
        self.last_pass: PassReport | None = None
        self.examined: Collection[Prefix] | None = None  # what the last pass looked at; None: everything
        self.ticked = time.monotonic()
        self._differ = differ
        self._effects = effects
        self._guard = RemovalGuard(guard, lambda most: random.uniform(0, most))  # noqa: S311  jitter
        self._relist = relist
        self._observer = observer
        self._resync_seconds = resync_seconds
        self._log = log
        self._resync_at = 0.0
        self._retry = Retry()
        self._sysctls_due = True
        self._paused: set[Prefix] = set()
        self._pace = Pace()
        self._unsure = False  # something may be wrong that only a look at everything can tell
        self._stop = threading.Event()

    @property
    def held(self) -> Held | None:
        """The removal that waits for a second list to agree."""
        return self._guard.held

    def run(self, monitor: Monitor, waker: Waker) -> None:
        """Run until :meth:`stop`. Raises nothing: a pass that the kernel refuses is logged and tried again."""
        poll = select.poll()
        poll.register(monitor.fileno(), select.POLLIN)
        poll.register(waker.fd, select.POLLIN)
        while not self._stop.is_set():
            self.ticked = time.monotonic()
            poll.poll(self._timeout())
            waker.clear()
            began = time.monotonic()
            if not self._stop.is_set():
                self._pass(began)
            rest = self._pace.rest(worked=time.monotonic() - began, idle=began - self.ticked)
            if rest:
                self._stop.wait(rest)

    def stop(self) -> None:
        """End the loop after the pass that runs, taking nothing out of the kernel. To be followed by a wake."""
        self._stop.set()

    def _timeout(self) -> float:
        """Milliseconds until something is due; 10 s at most, so that livez sees the loop tick."""
        now = time.monotonic()
        if self.facts.waiting:
            return 0
        due = min(
            self._resync_at, self._retry.at, self._guard.relist_at, self.facts.look_at(now), self.fights.next_end(now)
        )  # fmt: skip
        return max(0.0, min(due - now, 10.0)) * 1000

    def _pass(self, began: float) -> None:
        """One pass: observe, plan, guard, apply, look again; then hand over and report."""
        resync, retry = began >= self._resync_at, self._retry.take(began)
        if self._guard.relist(began):
            self._relist()
        error, done, observed, repaired = "", 0, Observed(), set[Prefix]()
        try:
            self.facts.listen()
            if not (resync or retry) and self.facts.cut_off(began):
                return
            observed = self.facts.observe(everything=resync or retry)
            if observed.host or observed.kernel.dump:
                self._retry.done()  # what the kernel refused while a link was down, it may take now
            self._sysctls_due |= resync or observed.host or observed.kernel.sysctls
            if self.facts.sufficient:
                done, repaired = self._reconcile(observed)
                self._write_sysctls()
        except NetlinkError as failure:
            error, self.verified, self._unsure = str(failure), False, True
            self._log.warning("pass_failed", error=error)
        self._effects.ports_left(observed.kernel.bridges, unsure=observed.kernel.overruns > 0)
        self._schedule(began, resync=resync)
        if self.facts.sufficient:
            trigger = "resync" if resync else _trigger(observed)
            self.last_pass = PassReport(time.time(), time.monotonic() - began, trigger, done, self.verified, error)
            self._observer(observed, self.last_pass, repaired)
            self._effects.hand_over(self._now())
            if resync:
                self._effects.resync()

    def _now(self) -> Now:
        return Now(self.settled, self.facts.complete, self.verified, self.facts.fib.advertised, self._guard.kept)

    def _write_sysctls(self) -> None:
        if self._sysctls_due:
            self._sysctls_due = False
            self._effects.write_sysctls(self._now())

    def _reconcile(self, observed: Observed) -> tuple[int, set[Prefix]]:
        """Make the kernel's routes what they should be; returns (operations done, drifted prefixes put right)."""
        fib, desired, programmed = self.facts.fib, self.facts.desired, self.writer.programmed
        full = observed.full or not self.settled
        prefixes = observed.touched | self._guard.prefixes | self._paused
        drifted = observed.kernel.drift
        done, repaired = 0, set[Prefix]()
        self.verified = False
        for look in range(_LOOKS):
            examined: Collection[Prefix] = desired.routes.keys() | fib.ours | programmed.keys() if full else prefixes
            plan = self._plan(examined, full=full)
            operations = self._affordable(plan, drifted if look == 0 else set())
            if not operations:
                self.verified = True
                break
            repaired |= {o.route.prefix for o in operations if o.route.prefix in drifted and o.route.prefix in desired.routes}
            done += len(operations)
            self.writer.apply(operations)
            self._log_operations(operations, drifted)
            full = self._look_again(full=full)
        # What an incomplete pass left in doubt, a later pass at other prefixes does not clear up.
        self._unsure = not self.verified or (self._unsure and not full)
        self.verified = not self._unsure
        self.examined = None if full else prefixes
        self._adopt(desired.routes.keys() | programmed.keys() | self.writer.failures.keys() if full else prefixes)
        if full and self.verified and not self.settled:
            self.settled = True
            self._log.info("routes_settled", routes=len(desired.routes), source=self.facts.source)
        return done, repaired

    def _plan(self, prefixes: Collection[Prefix], *, full: bool) -> Plan:
        """Compare at ``prefixes``, and take note of conflicts; departures that must wait are taken out."""
        fib, desired = self.facts.fib, self.facts.desired
        plan = self._differ.plan(prefixes, desired.routes, fib.routes)
        if full:
            self.rivals = dict(plan.rivals)
        else:
            for prefix in prefixes:
                self.rivals.pop(prefix, None)
            self.rivals.update(plan.rivals)
        plan.departures = self._may_go(plan.departures)
        return plan

    def _may_go(self, departures: list[Operation]) -> list[Operation]:
        """The departures that need not wait for a complete list, nor the guard for a second one to agree."""
        facts = self.facts
        if not facts.complete:
            return []
        if not departures and self.held is None:
            return departures
        # Peers that are there and no longer on-link: an interface is down, and no list would tell anything about that.
        lost = facts.desired.unreachable() if len(departures) > 1 else frozenset[Prefix]()
        doubtful = [operation for operation in departures if operation.route.prefix not in lost]
        ruling = self._guard.judge(doubtful, facts.fib.count_peers(), listed_at=facts.listed_at, now=time.monotonic())
        if ruling.event == "removal_held" and self.held is not None:
            self._log.warning(ruling.event, reason=self.held.reason, until="a second complete list agrees")
        elif ruling.event:
            self._log.info(ruling.event)
        return departures if ruling.allowed else [o for o in departures if o.route.prefix in lost]

    def _affordable(self, plan: Plan, drifted: set[Prefix]) -> list[Operation]:
        """The plan's operations, without prefixes where somebody keeps undoing them (for a while), or that just failed."""
        now = time.monotonic()
        for prefix in (operation.route.prefix for operation in plan.operations):
            if prefix in drifted and not self.fights.not_before(prefix, now):  # what is undone in a pause does not prolong it
                self.fights.repaired(prefix, now)
        self._paused = set()
        if not len(self.fights) and not self.writer.failures:
            return plan.operations
        failing = self.writer.failures if self._retry.planned and now < self._retry.at else {}
        self._paused = {o.route.prefix for o in plan.operations if self.fights.not_before(o.route.prefix, now)}
        return [o for o in plan.operations if o.route.prefix not in self._paused and o.route.prefix not in failing]

    def _look_again(self, *, full: bool) -> bool:
        """See in the kernel what became of the operations; returns whether the next look has to be at everything.

        What somebody else changed meanwhile is for the next pass, which follows at once.
        """
        fib = self.facts.fib
        if self.writer.failures and not self._retry.planned:
            self._retry.later(time.monotonic(), first=1.0)
        changes = fib.read(self.facts.interest(), but_own=full)
        self.facts.postpone(changes)
        if full or changes.dump:
            fib.dump(self.facts.desired.routes)
            return True
        return False

    def _adopt(self, prefixes: Collection[Prefix]) -> None:
        """What the kernel shows as ours and as wanted is programmed; what is no longer wanted and gone is forgotten."""
        fib, desired, writer = self.facts.fib, self.facts.desired, self.writer
        for prefix in prefixes:
            want = desired.routes.get(prefix)
            if want is None:
                if prefix not in fib.ours:
                    writer.forget(prefix)
            elif (prefix not in writer.programmed or prefix in writer.failures) and want in fib.routes.get(prefix, ()):
                writer.adopt(want)

    def _schedule(self, began: float, *, resync: bool) -> None:
        now = time.monotonic()
        if resync:
            self._resync_at = began + self._resync_seconds
            self.fights.prune(now)
        if not self.writer.failures and self.verified:
            self._retry.done()
        elif self._retry.at <= now or (not self.verified and not self._retry.planned):
            self._retry.later(now, first=0.2)

    def _log_operations(self, operations: list[Operation], drifted: Collection[Prefix]) -> None:
        if len(operations) > 10:
            kinds = [operation.kind for operation in operations]
            self._log.info("routes_changed", **{kind: kinds.count(kind) for kind in sorted(set(kinds))})
            return
        for kind, route in operations:
            node, _ = self.facts.desired.owners.get(route.prefix, ("", 0))
            via = format_address(route.gateway) if route.gateway else ""
            self._log.info(f"route_{_PAST[kind]}", prefix=str(route.prefix), via=via, node=node, drift=route.prefix in drifted)


_PAST: Final = {"add": "added", "replace": "replaced", "delete": "deleted"}


def _trigger(observed: Observed) -> str:
    """The label of what brought the pass about."""
    if observed.kernel.overruns:
        return "overrun"
    if observed.received or (observed.full and not observed.kernel.dump):
        return "node"
    return "kernel" if observed.kernel.prefixes or observed.kernel.dump or observed.kernel.host else "wake"
