"""Tells what the loop does: notes peers on the status board, counts in the metrics, and describes the rest on demand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from pynet.apply.effects import Effects
from pynet.apply.events import Events
from pynet.core.desired import Verdict
from pynet.core.model import Prefix, Route, format_address
from pynet.loop import Loop, PassReport
from pynet.observe.facts import Observed
from pynet.observe.inbox import NodeInbox
from pynet.report.metrics import Metrics
from pynet.report.status import (
    ApiStatus,
    HeldStatus,
    NodeStatus,
    PartStatus,
    PassStatus,
    PeerKey,
    Status,
    StatusBoard,
    SysctlStatus,
)

_MANY: Final = 20
_OF_THE_KERNEL: Final = frozenset(("conflict", "failed", "pending"))
"""States of an accepted peer that the kernel, or what it did, decides; what else it can be is programmed."""


class Reporter:
    """The loop calls :meth:`passed` after each pass; the other threads only read. Wired up by :meth:`attach`."""

    def __init__(
        self, metrics: Metrics, inbox: NodeInbox, server: Callable[[], str], log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self.board = StatusBoard(self._describe)
        self.problems: Callable[[], tuple[str, ...]] = tuple
        self.address_known: Callable[[], None] = lambda: None
        self.snapshot_time = 0.0
        self.events: Events | None = None
        self._metrics = metrics
        self._inbox = inbox
        self._server = server
        self._log = log
        self._loop: Loop | None = None
        self._effects: Effects | None = None
        self._started = time.time()
        self._addresses: tuple[bytes, ...] = ()

    def attach(self, loop: Loop, effects: Effects) -> None:
        """Tell whose state this is. Before the loop runs."""
        self._loop, self._effects = loop, effects

    def passed(self, observed: Observed, report: PassReport, repaired: set[Prefix]) -> None:
        """Note a finished pass."""
        loop = self._attached()
        self._note_peers(loop, report)
        if loop.facts.desired.own.addresses != self._addresses:
            self._addresses = loop.facts.desired.own.addresses
            self.address_known()
        metrics = self._metrics
        result = "failed" if report.error else "verified" if report.verified else "unverified"
        metrics.reconcile.labels(report.trigger, result).inc()
        metrics.reconcile_duration.observe(report.seconds)
        if report.verified:
            now = time.monotonic()
            for received in observed.received:
                metrics.propagation.observe(now - received)
        if repaired:
            metrics.drift.labels("route").inc(len(repaired))
            metrics.repair.labels("route").observe(report.seconds)
        if observed.kernel.overruns:
            metrics.netlink_overruns.inc(observed.kernel.overruns)

    def drifted(self, kind: str, seconds: float) -> None:
        """Count state of ``kind`` that was put right."""
        self._metrics.drift.labels(kind).inc()
        self._metrics.repair.labels(kind).observe(seconds)

    def refresh_metrics(self) -> None:
        """Bring the gauges up to date, when somebody scrapes."""
        loop, effects, metrics = self._attached(), self._effects, self._metrics
        counts = dict(self.board.counts)
        metrics.nodes.set(len(loop.facts.desired.nodes))
        metrics.set_peers(counts)
        for family in (4, 6):
            metrics.routes_programmed.labels(family).set(counts.get((family, "programmed"), 0))
        if effects is not None:
            metrics.set_sysctls((state.name, state.ok) for state in effects.sysctls)
            metrics.masquerade_ok.set(effects.parts.masquerade.ok)
            metrics.conflist_ok.set(effects.parts.conflist is None or effects.parts.conflist.ok)
            metrics.snapshot.set(effects.snapshot_saved or self.snapshot_time)
        metrics.api_last_contact.set(self._inbox.last_contact)
        metrics.ready.set(self.board.readiness().ready)

    def _note_peers(self, loop: Loop, report: PassReport) -> None:
        desired = loop.facts.desired
        keys: set[PeerKey] = desired.changed
        desired.changed = set()
        if loop.examined is not None:
            keys |= {desired.owners[prefix] for prefix in loop.examined if prefix in desired.owners}
        elif not self._all_as_before(loop, report):
            keys |= desired.verdicts.keys()
        news: list[tuple[PeerKey, str, str, str]] = []
        for key in keys:
            verdict = desired.verdicts.get(key)
            if verdict is None:
                self.board.drop(key)
                continue
            state, reason = self._outcome(loop, verdict)
            if self.board.put(key, state, reason, uid=verdict.uid, prefix=verdict.prefix, next_hop=verdict.next_hop):
                news.append((key, verdict.uid, state, reason))
        self._tell(news, agents=len(desired.nodes))

    def _all_as_before(self, loop: Loop, report: PassReport) -> bool:
        """Whether a look at everything found every accepted peer programmed, as all of them were before: then nothing is news
        but a decision that changed, and a resync at thousands of peers need not note each.
        """
        if not report.verified or report.operations or loop.rivals or loop.writer.failures or len(loop.fights):
            return False
        return not any(count for (_, state), count in self.board.counts.items() if state in _OF_THE_KERNEL)

    def _tell(self, news: list[tuple[PeerKey, str, str, str]], *, agents: int) -> None:
        """Have Events made of what is new. Many peers unreachable at once are no news about them: it is our own interface that
        is down, its repair must not wait for thousands of Events, and the status says it.
        """
        if self.events is None:
            return
        ours = sum(state == "unreachable" for _, _, state, _ in news) > _MANY
        for (name, family), uid, state, reason in news:
            if not (ours and state == "unreachable"):
                self.events.peer(name, uid, family, state=state, reason=reason, agents=agents)

    def _outcome(self, loop: Loop, verdict: Verdict) -> tuple[str, str]:
        """(state, reason) of a peer: what was decided, or for an accepted one what the kernel shows."""
        prefix = verdict.prefix
        if verdict.state != "accepted" or prefix is None:
            return verdict.state, verdict.reason
        want, have = loop.facts.desired.routes.get(prefix), loop.facts.fib.routes.get(prefix, ())
        rival = loop.rivals.get(prefix)
        if rival is not None:
            return "conflict", self._rivalry(loop, want, *rival)
        if want is not None and want in have:
            return "programmed", ""
        if prefix in loop.writer.failures:
            return "failed", loop.writer.failures[prefix]
        if loop.fights.not_before(prefix, time.monotonic()):
            return (
                "failed",
                f"somebody keeps changing the route to {prefix}: left alone for a while; find out who with `ip monitor`",
            )
        return "pending", "not yet in the kernel"

    @staticmethod
    def _rivalry(loop: Loop, want: Route | None, rival: Route, withheld: bool) -> str:
        theirs = _words(loop, rival)
        if withheld:
            return (
                f"ours ({_words(loop, want)}) is withheld, there is {theirs}: remove that one, or set routes.foreign to replace"
            )
        return f"the kernel prefers {theirs} to ours ({_words(loop, want)}): remove that one, or set routes.foreign to replace"

    def _attached(self) -> Loop:
        if self._loop is None:
            raise RuntimeError("the reporter was asked before the loop was attached")
        return self._loop

    def _describe(self) -> Status:
        """Everything on the status page but the peers. Called from other threads: reads, and changes nothing."""
        loop, effects = self._attached(), self._effects
        own, held, last = loop.facts.desired.own, loop.held, loop.last_pass
        parts = effects.parts if effects else None
        now, ticks = time.time(), time.monotonic()
        passed = PassStatus(last.time, last.seconds, last.trigger, last.operations, last.verified, last.error) if last else None
        return Status(
            node=NodeStatus(
                loop.facts.desired.settings.own_name, own.uid, own.known, tuple(map(str, own.cidrs)),
                tuple(map(format_address, own.addresses)), own.refused,
            ),
            api=self._api(loop, now - ticks),
            sysctls=tuple(SysctlStatus(s.name, s.want, s.have, s.error, s.ok) for s in effects.sysctls) if effects else (),
            held=HeldStatus(held.routes, held.reason, held.since + now - ticks) if held else None,
            last_pass=passed,
            settled=loop.settled,
            problems=tuple(self._problems(loop)),
            started=self._started,
            masquerade=_part(parts.masquerade) if parts else PartStatus(),
            forward=_part(parts.forward) if parts else PartStatus(),
            conflist=_part(parts.conflist) if parts else PartStatus(),
            condition=_part(parts.condition) if parts else PartStatus(),
        )  # fmt: skip

    def _api(self, loop: Loop, offset: float) -> ApiStatus:
        inbox = self._inbox
        return ApiStatus(
            server=self._server(),
            connected=inbox.connected,
            last_contact=inbox.last_contact,
            error=inbox.error,
            unauthorized_since=inbox.unauthorized_since + offset if inbox.unauthorized_since is not None else 0.0,
            complete=loop.facts.complete,
            source=loop.facts.source,
            snapshot_time=self.snapshot_time,
            unreadable=inbox.unreadable,
        )

    def _problems(self, loop: Loop) -> Iterable[str]:
        yield from self.problems()
        if self._effects is not None and self._effects.snapshot_error:
            yield f"snapshot: {self._effects.snapshot_error}"
        if self._effects is not None and (stranded := self._effects.stranded):
            yield stranded
        counts = self.board.counts
        for family, (state, reason) in loop.facts.desired.own_faults().items():
            if counts.get((family, state)):
                yield f"IPv{family} peers are {state}, by no fault of theirs: {reason}"


def _words(loop: Loop, route: Route | None) -> str:
    """A route as `ip route` would say it."""
    if route is None:
        return "no route"
    via = f" via {format_address(route.gateway)}" if route.gateway else ""
    dev = f" dev {loop.facts.desired.host.link_name(route.oif)}" if route.oif else ""
    return f"{route.prefix}{via}{dev} proto {route.protocol} metric {route.metric}"


def _part(part: object) -> PartStatus:
    if part is None:
        return PartStatus("off")
    ok, error, tried = bool(getattr(part, "ok", False)), str(getattr(part, "error", "")), bool(getattr(part, "tried", True))
    if ok:
        return PartStatus("ok", detail="; ".join(getattr(part, "reported", ())))
    return PartStatus("failed", error) if error and tried else PartStatus("waiting", error)
