"""Lets pod traffic through a host whose iptables FORWARD policy is DROP (Docker and ufw set it): chain PYNET-FORWARD.

Only this node's podCIDRs are named. iptables has no sets, and none are needed: whatever a node forwards for pods comes from
or goes to a pod of its own. Replies are covered too, since each direction is accepted without looking at connections.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from pynet.apply.applier import Applier
from pynet.apply.tablewatch import Drift, TableWatch
from pynet.core.fights import Fights
from pynet.core.model import FAMILIES, Family, Prefix
from pynet.drivers.command import CommandError
from pynet.drivers.iptables import Backend, has_legacy_filter, list_rules, restore
from pynet.drivers.nfnetlink import Chain, TableChange, list_chains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import structlog

KIND: Final = "forward"
CHAIN: Final = "PYNET-FORWARD"
_COMMENT: Final = '-m comment --comment "{}"'
_JUMP: Final = f"{_COMMENT.format('pynet: pods of this node')} -j {CHAIN}"
_TABLES: Final = frozenset({("ip", "filter"), ("ip6", "filter")})
_GAP: Final = 0.1  # seconds between an event and the look that follows: a rival in a tight loop must not take a core


class ForwardState(msgspec.Struct, frozen=True):
    """What decides: ``own``, this node's podCIDRs, and ``mode``.

    auto: where the policy of FORWARD is DROP, accept what no other rule decided. always: accept before any other rule, wherever
    FORWARD exists. never: none of ours.
    """

    own: tuple[Prefix, ...] = ()
    mode: Literal["auto", "always", "never"] = "auto"


class ForwardError(Exception):
    """What could not be done, per backend, in one line."""


def rules(own: Iterable[Prefix], family: Family) -> list[str]:
    """The chain as ``iptables -S`` lists it; [] if there is nothing to accept."""
    lines: list[str] = []
    for prefix in own:
        if prefix.family == family:
            lines += [
                f"-A {CHAIN} -s {prefix} {_COMMENT.format('from a pod of this node')} -j ACCEPT",
                f"-A {CHAIN} -d {prefix} {_COMMENT.format('to a pod of this node')} -j ACCEPT",
            ]
    return [f"-N {CHAIN}", *lines] if lines else []


def plan(forward: Sequence[str], chain: Sequence[str] | None, wanted: Sequence[str], *, first: bool) -> list[str]:
    """The lines for iptables-restore that make the chain as ``wanted`` ([]: gone), with one jump to it; [] if all is right.

    ``forward`` and ``chain`` (None: there is none) as `iptables.list_rules` lists FORWARD and ours. A new jump goes to the end
    of FORWARD, or to its beginning if ``first``; where it is does not matter later, or we would quarrel with all who like to be
    first. At the end it decides only what would have met the policy: before the others it would overrule what they reject, say
    kube-proxy's refusal of a Service without endpoints, or a network policy.
    """
    jumps = [line for line in forward if line.endswith((f"-j {CHAIN}", f"-g {CHAIN}"))]
    gone = [line.replace("-A", "-D", 1) for line in jumps]
    if not wanted:
        return gone + ([] if chain is None else [f"-F {CHAIN}", f"-X {CHAIN}"])
    lines: list[str] = []
    if chain is None or list(chain) != list(wanted):
        lines += [f":{CHAIN} - [0:0]", *wanted[1:]]  # this declaration also empties it
    if jumps != [f"-A FORWARD {_JUMP}"]:
        lines += [*gone, f"{'-I' if first else '-A'} FORWARD {_JUMP}"]
    return lines


def native_drops(chains: Iterable[Chain]) -> list[str]:
    """What drops forwarded traffic by policy and is not iptables': for a person, since an accept of ours would not undo it."""
    return [
        f"nft chain {chain.family} {chain.table} {chain.name} drops what it does not accept: pod traffic needs a rule there"
        for chain in chains
        if chain.forward and chain.drops and not _is_iptables(chain)
    ]


def _is_iptables(chain: Chain) -> bool:
    return (chain.family, chain.table) in _TABLES and chain.name == "FORWARD"


class Forward:
    """The chain, in the network namespace of the thread that submits first. Callbacks as of Masquerade."""

    def __init__(
        self,
        on_result: Callable[[str, str], None],
        on_drift: Callable[[str, float], None],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        self.reported: tuple[str, ...] = ()
        """What drops pod traffic and is not ours to change, each for a person."""
        self._on_drift = on_drift
        self._log = log
        self._applier = Applier(KIND, self._converge, on_result=on_result)
        self._watch = TableWatch(KIND, _TABLES, lambda: self._applier.retry(_GAP), log, _concerns)
        # The applier's thread only: what we last found or put right, for which state; who keeps undoing it.
        self._right: dict[Backend, ForwardState] = {}
        self._fights = Fights()

    @property
    def ok(self) -> bool:
        """Whether the last attempt succeeded."""
        return self._applier.ok

    @property
    def error(self) -> str:
        """Why not, in one line."""
        return self._applier.error

    def submit(self, state: ForwardState) -> None:
        """Have the rules be as ``state`` says. Returns at once."""
        self._applier.submit(state)

    def resync(self) -> None:
        """Look at the rules, and mend them. Returns at once."""
        self._applier.retry()

    def stop(self, timeout: float = 1.0) -> bool:
        """End both threads and leave the rules in place; True if they ended within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        ended = self._applier.stop(timeout)
        return self._watch.stop(max(0.0, deadline - time.monotonic())) and ended

    def _converge(self, state: ForwardState) -> None:
        """Make all backends be as ``state`` says; one that fails does not stop the others. Raises ForwardError, OSError."""
        if state.mode != "never":
            self._watch.start()
        drift = self._watch.take()[0] or Drift("", "somebody unseen", time.monotonic())
        chains = list_chains()
        self._report(native_drops(chains) if state.mode != "never" else [])
        errors: list[str] = []
        for backend in backends(chains):
            try:
                self._keep(backend, state, chains, drift)
            except CommandError as error:
                self._right.pop(backend, None)
                if state.mode != "never":  # then it is not worth an alarm
                    errors.append(str(error))
            except ForwardError as error:
                errors.append(str(error))
        if errors:
            raise ForwardError("; ".join(errors))

    def _keep(self, backend: Backend, state: ForwardState, chains: list[Chain], drift: Drift) -> None:
        """Make one backend be as ``state`` says. Raises CommandError; ForwardError while a fight's pause lasts."""
        forward, chain = _listed(backend, chains)
        accepts = state.mode == "always" or (state.mode == "auto" and _drops(forward))
        wanted = rules(state.own, backend.family) if accepts else []
        lines = plan(forward, chain, wanted, first=state.mode == "always")
        if lines:
            now = time.monotonic()
            if until := self._fights.not_before(backend, now):
                raise ForwardError(f"{backend}: {drift.who} keeps undoing {CHAIN}: left alone for {math.ceil(until - now)} s")
            restore(backend, lines, self._watch.own.started if backend.kind == "nft" else None)
            self._log.info("forward_rules_written", backend=str(backend), lines=lines)
            if self._right.get(backend) == state and wanted:
                self._fights.repaired(backend, time.monotonic())
                self._on_drift(KIND, time.monotonic() - drift.since)
                self._log.warning("forward_repaired", backend=str(backend), by=drift.who)
        if wanted:
            self._right[backend] = state
        else:
            self._right.pop(backend, None)

    def _report(self, drops: list[str]) -> None:
        if self.reported != tuple(drops):
            self.reported = tuple(drops)
            for reason in drops:
                self._log.warning("forward_dropped_elsewhere", reason=reason)


def _concerns(change: TableChange) -> bool:
    return change.name in ("FORWARD", CHAIN) or (change.what == "table" and change.gone)


def backends(chains: Iterable[Chain]) -> list[Backend]:
    """Where iptables has a FORWARD chain now. Creates nothing. Raises OSError."""
    by_nft = {chain.family for chain in chains if _is_iptables(chain)}
    found = [Backend("nft", family) for family in FAMILIES if ("ip" if family == 4 else "ip6") in by_nft]
    return found + [Backend("legacy", family) for family in FAMILIES if has_legacy_filter(family)]


def _drops(forward: Sequence[str]) -> bool:
    return "-P FORWARD DROP" in forward


def _listed(backend: Backend, chains: Iterable[Chain]) -> tuple[list[str], list[str] | None]:
    """FORWARD and our chain as a backend has them. A program runs only where there may be something to do or to see."""
    if backend.kind == "nft":
        table = ("ip" if backend.family == 4 else "ip6", "filter")
        mine = [chain for chain in chains if (chain.family, chain.table) == table]
        ours = any(chain.name == CHAIN for chain in mine)
        if not ours and not any(chain.name == "FORWARD" and chain.drops for chain in mine):
            return ["-P FORWARD ACCEPT"], None
        return list_rules(backend, "FORWARD") or [], list_rules(backend, CHAIN) if ours else None
    return list_rules(backend, "FORWARD") or [], list_rules(backend, CHAIN)


def remove(*, dry_run: bool = False) -> list[str]:
    """Remove chain PYNET-FORWARD and the jumps to it; return what was (with ``dry_run``: would be) removed.

    Raises CommandError, OSError: what could be removed is removed before.
    """
    removed: list[str] = []
    failed: CommandError | None = None
    chains = list_chains()
    for backend in backends(chains):
        try:
            forward, chain = _listed(backend, chains)
            lines = plan(forward, chain, [], first=False)
            if lines and not dry_run:
                restore(backend, lines)
        except CommandError as error:
            failed = failed or error
            continue
        if lines:
            removed.append(f"{backend} chain {CHAIN}")
    if failed is not None:
        raise failed
    return removed
