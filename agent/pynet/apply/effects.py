"""What a pass hands on besides routes: sysctls and neighbours at once, all slow things to threads of their own.

The order in which a node begins: routes verified, then the masquerade rules, then the conflist (from which moment pods start)
and the Node condition. Whatever is handed over is the newest; nothing here can delay a route.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from pynet.apply.applier import Applier
from pynet.apply.condition import NodeCondition
from pynet.apply.conflist import NETWORK, Conflist, ConflistWanted
from pynet.apply.events import Events
from pynet.apply.forward import Forward, ForwardState
from pynet.apply.gateways import stale_gateways
from pynet.apply.leases import stranded
from pynet.apply.masquerade import Masquerade
from pynet.apply.neighbours import Neighbours
from pynet.apply.ruleset import Ruleset
from pynet.apply.snapshot import Snapshot, path_in, save
from pynet.apply.sysctls import SysctlState, repair, wanted
from pynet.config import Config
from pynet.core.addresses import parse_prefix
from pynet.core.claims import Claim
from pynet.core.desired import Desired, OwnNode
from pynet.core.model import Link
from pynet.drivers.netlink import RouteSocket

_RULES_DEBOUNCE: Final = 0.05
_SNAPSHOT_DEBOUNCE: Final = 5.0


class Now(NamedTuple):
    """The state after a pass, as far as effects depend on it.

    ``settled``: a pass over everything was verified; ``complete``: it follows from a complete list; ``verified``: so was the
    last pass; ``advertised``: indexes of interfaces with a default route from router advertisements; ``kept``: peers that are
    no longer wanted, whose routes the removal guard holds.
    """

    settled: bool
    complete: bool
    verified: bool
    advertised: frozenset[int]
    kept: frozenset[Claim] = frozenset()


class Parts(NamedTuple):
    """The appliers, each with a thread of its own. None: off by configuration, or there is no API server to write to."""

    masquerade: Masquerade
    forward: Forward
    conflist: Conflist | None
    condition: NodeCondition | None
    events: Events | None


class Counters(Protocol):
    """What effects count."""

    def drifted(self, kind: str, seconds: float) -> None:
        """State of ``kind`` was changed by somebody else, and put right within ``seconds``."""


class Effects:
    """Hands over. ``sysctls`` are the settings as last checked, ``snapshot_saved`` when the snapshot was written (epoch)."""

    def __init__(
        self,
        config: Config,
        desired: Desired,
        parts: Parts,
        counters: Counters,
        log: structlog.typing.FilteringBoundLogger,
        *,
        socket: RouteSocket,
    ) -> None:
        self.parts = parts
        self.sysctls: tuple[SysctlState, ...] = ()
        self.snapshot_saved = 0.0
        self._config = config
        self._desired = desired
        self._counters = counters
        self._log = log
        self._bridge = config.cni.bridge_name if config.cni.enabled and config.cni.plugin == "bridge" else ""
        self._neighbours = Neighbours(socket, self._bridge, log)
        self._exceptions = frozenset(parse_prefix(text) for text in config.masquerade.except_cidrs)
        self._cluster = frozenset(parse_prefix(text) for text in config.cluster_cidrs)
        self._rules: Applier[tuple[int, frozenset[Claim]]] = Applier("rules", self._submit_rules, debounce=_RULES_DEBOUNCE)
        self._snapshot: Applier[int] = Applier("snapshot", self._save_snapshot, debounce=_SNAPSHOT_DEBOUNCE)
        self._sysctls_checked = False
        self._mtu = 0

    @property
    def snapshot_path(self) -> Path:
        """Where the last good state is kept."""
        return path_in(Path(self._config.state_dir))

    @property
    def snapshot_error(self) -> str:
        """Why the snapshot could not be written, "" if it could."""
        return self._snapshot.error

    @property
    def stranded(self) -> str:
        """Which pods have lost their bridge, "" if none has."""
        return stranded(Path(self._config.cni.ipam_dir, NETWORK), self._bridge) if self._bridge else ""

    def write_sysctls(self, now: Now) -> None:
        """Check the forwarding settings, and write what is wrong."""
        config, own = self._config, self._desired.own
        if not config.sysctls.manage or not own.cidrs:
            return
        began = time.monotonic()
        egress = {link.name for link in self._egress()}
        bridge = {self._bridge} if self._bridge else set()
        wants = wanted(
            ipv4=any(prefix.family == 4 for prefix in own.cidrs),
            ipv6=any(prefix.family == 6 for prefix in own.cidrs),
            interfaces=egress | bridge,
            ra_interfaces={name for name in map(_name_of, now.advertised) if name},
            bridge_filter=bool(bridge),
        )
        states, written = repair(Path(config.sysctls.root), wants)
        self.sysctls = tuple(states)
        for before in written:
            self._log.info("sysctl_written", name=before.name, was=before.have, value=before.want)
            if self._sysctls_checked:
                self._counters.drifted("sysctl", time.monotonic() - began)
        self._sysctls_checked = True

    def ports_left(self, bridges: Collection[int], *, unsure: bool) -> None:
        """These bridges, by index, have lost a port; ``unsure``: others may have too. Ours forgets its neighbours."""
        if self._bridge:
            self._neighbours.ports_left(bridges, unsure=unsure)

    def hand_over(self, now: Now) -> None:
        """Give the slow appliers what follows from the state after a pass."""
        own = self._desired.own
        if not own.known:
            return
        # One number stands for the whole desired state: sets of 5,000 peers are made in the applier's thread, not here.
        self._rules.submit((self._desired.revision, now.kept))
        self.parts.forward.submit(ForwardState(own.cidrs, self._config.forward))
        if now.settled and own.cidrs:
            self._begin(now, own)
        if now.complete and now.verified and not now.kept:  # a removal in doubt is not the last good state
            self._snapshot.submit(self._desired.revision)

    def resync(self) -> None:
        """Have the slow appliers check their work."""
        self.parts.masquerade.resync()
        self.parts.forward.resync()
        if self.parts.conflist is not None:
            self.parts.conflist.resync()
        if self.parts.condition is not None:
            self.parts.condition.resync()

    def stop(self, seconds: float) -> None:
        """End the threads; what they made stays. Takes ``seconds`` at most in all."""
        end = time.monotonic() + seconds
        stops: list[Callable[[float], object]] = [self._rules.stop, self._snapshot.stop]
        stops += [part.stop for part in self.parts if part is not None]
        for stop in stops:
            stop(max(0.0, end - time.monotonic()))

    def _begin(self, now: Now, own: OwnNode) -> None:
        """What tells the world that pods may start here: not before the routes are verified and the rules are in place."""
        parts, facts = self.parts, self._desired.nodes.get(self._desired.settings.own_name)
        if parts.conflist is not None and (parts.masquerade.ok or parts.conflist.ok):
            parts.conflist.submit(self._conflist_wanted(own))
        if parts.condition is not None and now.complete and facts is not None:
            parts.condition.observe(facts.condition)

    def _conflist_wanted(self, own: OwnNode) -> ConflistWanted:
        cni, host = self._config.cni, self._desired.host
        # An interface that is gone for a moment is no reason to write the file without an MTU, and then again with it.
        self._mtu = cni.mtu if cni.mtu != "auto" else min((link.mtu for link in self._egress()), default=self._mtu)
        stale = stale_gateways(cni.bridge_name, own.cidrs, host.links.values(), host.addresses, own.addresses)
        return ConflistWanted(
            own.cidrs, self._mtu, cni.conf_dir, cni.conf_name, cni.bin_dir, cni.plugin, cni.bridge_name, cni.portmap,
            cni.bandwidth, cni.ipam_dir, stale,
        )  # fmt: skip

    def _egress(self) -> list[Link]:
        host = self._desired.host
        indexes = set().union(*host.interfaces.values())
        return [link for index, link in host.links.items() if index in indexes]

    def _submit_rules(self, state: tuple[int, frozenset[Claim]]) -> None:
        """In the applier's thread: make the sets, of all that is accepted and of what the removal guard keeps."""
        kept = state[1]
        own, members, settings = self._desired.own, self._desired.members, self._config.masquerade
        self.parts.masquerade.submit(
            Ruleset(
                own=frozenset(own.cidrs),
                pods=self._cluster or frozenset(members.pods).union(own.cidrs, (claim.prefix for claim in kept)),
                nodes=frozenset(members.nodes).union(own.addresses, (claim.next_hop for claim in kept)),
                except_=self._exceptions,
                ipv4=settings.ipv4,
                ipv6=settings.ipv6,
                random_fully=settings.random_fully,
            )
        )

    def _save_snapshot(self, _version: int) -> None:
        """In the applier's thread: keep our own Node and the accepted peers, and nobody else's claims."""
        desired = self._desired
        names = {name for (name, _), v in list(desired.verdicts.items()) if v.state in {"accepted", "unreachable"}}
        names.add(desired.settings.own_name)
        nodes = tuple(facts for name, facts in sorted(desired.nodes.copy().items()) if name in names)
        saved = time.time()
        save(self.snapshot_path, Snapshot(desired.settings.own_name, saved, nodes))
        self.snapshot_saved = saved


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
