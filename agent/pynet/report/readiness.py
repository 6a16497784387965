"""Whether a node's network is as it should be, in words. Pure.

One rule decides what belongs here: what this node can do about itself. A peer with a bad podCIDR, or one that is not on-link,
is somebody else's fault, and would block every rollout if it made all nodes not ready; it is counted and reported instead. If
our own settings keep all peers out, the rollout must stop: it would take the network of one node after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pynet.core.model import FAMILIES, Family

if TYPE_CHECKING:
    from pynet.report.status import Status

REFUSED_SECONDS: Final = 60.0
"""How long the API server may answer 401 or 403 before that counts: a token that rotates is refused for a moment."""

TICK_SECONDS: Final = 30.0
"""A loop that has not ticked for longer hangs."""

_EXAMPLES: Final = 3


class Readiness(NamedTuple):
    """``reasons`` say why not, one line each; ``remarks`` what to know in any case."""

    ready: bool
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]


class Waiting(NamedTuple):
    """A peer that was accepted and is not programmed."""

    name: str
    family: Family
    state: str
    reason: str


def readiness(status: Status, counts: Mapping[tuple[Family, str], int], waiting: Sequence[Waiting], now: float) -> Readiness:
    """Judge a node: ``counts`` are peers by family and state, ``waiting`` a few examples of those pending or failed, ``now``
    is epoch seconds.
    """
    reasons = (*_facts(status, now), *_routes(status, counts, waiting), *_rest(status))
    return Readiness(not reasons, reasons, tuple(_remarks(status, counts)))


def liveness(seconds_since_tick: float) -> str:
    """Why the agent should be started anew, "" if it is alive."""
    if seconds_since_tick <= TICK_SECONDS:
        return ""
    return f"the loop has not ticked for {seconds_since_tick:.0f} s (allowed: {TICK_SECONDS:.0f})"


def _facts(status: Status, now: float) -> Iterator[str]:
    """What we have to know before anything can be right."""
    api, node = status.api, status.node
    if api.source == "none":
        why = f": {api.error}" if api.error else ""
        yield f"no complete list of Nodes yet, and no snapshot{why}"
    if not node.known:
        yield f"our own Node {node.name!r} has not been seen"
    elif not node.pod_cidrs:
        yield f"our own Node has no podCIDR that can be used: {'; '.join(node.refused) or 'spec.podCIDRs is empty'}"
    if api.unauthorized_since and now - api.unauthorized_since >= REFUSED_SECONDS:
        yield f"the API server refuses us for {now - api.unauthorized_since:.0f} s: {api.error or 'unauthorized'}"


def _routes(status: Status, counts: Mapping[tuple[Family, str], int], waiting: Sequence[Waiting]) -> Iterator[str]:
    """The loop's own work."""
    if status.last_pass is None:
        yield "no pass of the loop has ended yet"
    elif status.last_pass.error:
        yield f"the last pass failed: {status.last_pass.error}"
    elif not status.last_pass.verified:
        yield "the last pass is not verified: routes in the kernel are not yet as they should be"
    elif not status.settled:
        yield "no pass over all routes is verified yet"
    missing = sum(counts.get((family, state), 0) for family in FAMILIES for state in ("pending", "failed"))
    if missing:
        examples = "; ".join(f"{each.name} IPv{each.family} {each.state} ({each.reason})" for each in waiting)
        yield f"{missing} accepted {'peer is' if missing == 1 else 'peers are'} not programmed: {examples}"


def _rest(status: Status) -> Iterator[str]:
    """Sysctls, rules, conflist, our own listeners. The Node condition is for others to see, and no part of this."""
    for setting in status.sysctls:
        if not setting.ok:
            yield f"sysctl {setting.name} is {setting.have or 'unreadable'}, must be {setting.want}: {setting.error}"
    parts = {"masquerade": status.masquerade, "forward": status.forward, "conflist": status.conflist}
    for name, part in parts.items():
        if part.state == "failed":
            yield f"{name}: {part.error}"
        elif part.state == "waiting":
            yield f"{name}: {part.error or 'not yet in place'}"
    yield from status.problems


def _unreadable(nodes: Mapping[str, str]) -> Iterator[str]:
    """No metric says this: a Node of that kind is no peer in any state."""
    if not nodes:
        return
    few = "; ".join(f"{name or 'one whose name is unknown'} ({why})" for name, why in list(nodes.items())[:_EXAMPLES])
    more = f"; and {len(nodes) - _EXAMPLES} more" if len(nodes) > _EXAMPLES else ""
    yield f"{len(nodes)} {'Node' if len(nodes) == 1 else 'Nodes'} cannot be read, what was known of them stays: {few}{more}"


def _remarks(status: Status, counts: Mapping[tuple[Family, str], int]) -> Iterator[str]:
    api = status.api
    if api.source == "snapshot":
        yield f"routes come from the last-good snapshot; the API server has not been reached: {api.error or 'no answer yet'}"
    elif api.source == "api" and not api.connected:
        yield f"the API server is not connected, routes stay as they are: {api.error or 'no words'}"
    yield from _unreadable(api.unreadable)
    if status.node.pod_cidrs:
        yield from (f"a podCIDR of our own Node is not used: {why}" for why in status.node.refused)
    if status.held is not None:
        yield f"a removal of {status.held.routes} routes is held: {status.held.reason}"
    if status.condition.state == "failed":
        yield f"the Node condition: {status.condition.error}"
    for state in ("conflict", "unreachable", "rejected"):
        number = sum(counts.get((family, state), 0) for family in FAMILIES)
        if number:
            yield f"{number} {'peer' if number == 1 else 'peers'} in state {state}"
    for setting in status.sysctls:
        if setting.ok and setting.error:
            yield f"sysctl {setting.name}: {setting.error}"
