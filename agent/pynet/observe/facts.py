"""The facts that decisions follow from, and how they are kept: Nodes, the host, the kernel's routes.

``listen`` takes in what the kernel tells; ``observe`` looks into it and into what the watchers have recorded, and brings the
desired state up to date. Nothing is decided here but when to look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from pynet.core.desired import Desired
from pynet.core.host import Host, usable_families
from pynet.core.model import NodeFacts, Prefix
from pynet.drivers.netlink import NetlinkError, RouteSocket
from pynet.observe.fib import Changes, Fib, Interest
from pynet.observe.inbox import NodeChanges, NodeInbox, NodeList
from pynet.observe.links import EgressInterfaces, read_host

# Seconds:
_IMPATIENCE: Final = 0.05  # between looks while there is no list yet
_GUARD_WAIT: Final = 2.0  # for what the guard is to protect, after a list
_PATIENCE: Final = 0.1  # for a lost address or link to come back
_NEVER: Final = float("inf")


class ClusterFacts(msgspec.Struct, frozen=True):
    """What the cluster wants protected: the Service ranges, and the addresses that the API server is reached by.

    ``asked`` says that the API server has answered, or refused to.
    """

    service_cidrs: frozenset[Prefix] = frozenset()
    api_servers: frozenset[bytes] = frozenset()
    asked: bool = True


class Observed(msgspec.Struct):
    """What came of one look: prefixes to compare, whether to compare all of them, and the kernel's side of it.

    ``host`` says that our own Node or the host is not what it was.
    """

    touched: set[Prefix] = msgspec.field(default_factory=set)
    full: bool = False
    host: bool = False
    kernel: Changes = msgspec.field(default_factory=Changes)
    received: list[float] = []  # monotonic arrival times of the Node events behind this look


class Facts:
    """Node facts by way of the inbox, host facts and routes by way of netlink. Used by the loop's thread only.

    ``complete`` says that a complete list has been seen since the start: nothing may be removed before. ``listed_at`` is the
    monotonic time at which the last complete, consistent list was asked for; ``source`` is "none", "snapshot" or "api".
    ``snapshot_at`` is the monotonic time from which ``load_snapshot`` stands in for a list that has not come.
    """

    def __init__(
        self,
        desired: Desired,
        fib: Fib,
        socket: RouteSocket,
        inbox: NodeInbox,
        *,
        egress: EgressInterfaces,
        cluster: Callable[[], ClusterFacts],
        load_snapshot: Callable[[], Mapping[str, NodeFacts]],
        snapshot_at: float,
    ) -> None:
        self.desired = desired
        self.fib = fib
        self.complete = False
        self.source: Literal["none", "snapshot", "api"] = "none"
        self.listed_at = float("-inf")
        self._socket = socket
        self._inbox = inbox
        self._egress = egress
        self._cluster = cluster
        self._seen = (ClusterFacts(), desired.own.cidrs, desired.own.addresses)
        self._egress_names: set[str] = set()  # that interfaces for peers had so far
        self._load_snapshot = load_snapshot
        self._snapshot_at = snapshot_at
        self._postponed = Changes()
        self._taken = Changes()  # told by the kernel, and not yet looked into
        self._patient_until = 0.0

    def listen(self) -> None:
        """Take in what the kernel tells, for :meth:`cut_off` and :meth:`observe`."""
        self._taken.add(self._postponed)
        self._postponed = Changes()
        self._taken.add(self.fib.read(self.interest()))

    def cut_off(self, now: float) -> bool:
        """Whether the address or the link that peers are reached by has just gone: a pass had better wait, for 100 ms in all
        (see :meth:`look_at`). Raises NetlinkError if the kernel could not be read.

        Mostly it is back at once: a lease renewed, a network service restarted, an interface made anew. The kernel has taken
        the routes itself, and to work out that thousands of peers are unreachable would only put off their return.
        """
        lost = self._taken.host and usable_families(self.desired.host) - usable_families(self._look_at_host())
        if not lost:
            self._patient_until = 0.0
        elif not self._patient_until:
            self._patient_until = now + _PATIENCE
        return now < self._patient_until

    def observe(self, *, everything: bool) -> Observed:
        """Look into what :meth:`listen` took in and into the inbox; with ``everything`` read links, addresses and routes anew.

        Raises NetlinkError if the kernel could not be read: the Nodes are taken over all the same, for they are not told twice,
        and the next look has to be at everything.
        """
        kernel = self._news_of_kernel()
        self._consider_snapshot()
        nodes = self._inbox.drain()
        updates = self._updates(nodes)
        received = [change.received for changes in nodes.changed.values() for change in changes]
        touched, before = set(kernel.prefixes), (self.desired.own, self.desired.host)
        own_name = self.desired.settings.own_name
        if own_name in updates:
            # Our own Node first: it says which interfaces and which podCIDRs are ours, and all others are judged by that.
            touched |= self.desired.update({own_name: updates.pop(own_name)})
        full = everything or kernel.dump or nodes.listed is not None
        try:
            touched |= self._read_kernel(full=full, host=kernel.host)
        except NetlinkError:
            self._taken = kernel
            raise
        finally:
            touched |= self.desired.update(updates)
        if self.fib.partial and any(prefix not in self.fib.routes for prefix in touched):
            self.fib.dump(self.desired.routes)
        changed = (self.desired.own, self.desired.host) != before
        return Observed(touched, full, changed or kernel.host, kernel, received)

    def _news_of_kernel(self) -> Changes:
        kernel, self._taken = self._taken, Changes()
        self._patient_until = 0.0
        return kernel

    def _read_kernel(self, *, full: bool, host: bool) -> set[Prefix]:
        if full:
            self.fib.dump(self.desired.routes)
        if full or host or self._seen != self._seeing():
            return self._read_host()
        return set()

    def interest(self) -> Interest:
        """What the kernel tells that is worth a pass."""
        host, own = self.desired.host, self.desired.own
        oifs = set().union(*host.interfaces.values())
        return Interest(self.desired.routes, own.cidrs, oifs, self._named)

    def postpone(self, changes: Changes) -> None:
        """Keep for the next look what the kernel told in the middle of a pass, unless it is our own doing."""
        self._postponed.add(msgspec.structs.replace(changes, prefixes=set(changes.drift)))

    @property
    def sufficient(self) -> bool:
        """Whether enough is known to write routes: our own Node, a list or the snapshot, and (but not for long) what the guard
        is to protect.
        """
        if self.source == "none" or not self.desired.own.known:
            return False
        return self.source == "snapshot" or self._cluster().asked or time.monotonic() > self.listed_at + _GUARD_WAIT

    @property
    def waiting(self) -> bool:
        """Whether something postponed asks for another pass at once."""
        return bool(self._postponed)

    def look_at(self, now: float) -> float:
        """When to look again though nothing may have come: soon, while a failing API server may call for the snapshot, or while
        the host is cut off.
        """
        undecided = self.source == "none" and self._snapshot_at < _NEVER
        soon = now + _IMPATIENCE if undecided or (self.source == "api" and not self.sufficient) else _NEVER
        return min(soon, self._patient_until or _NEVER)

    def _consider_snapshot(self) -> None:
        """Without a list, take the Nodes of the last good state: as soon as the API server fails us, and no later than
        ``snapshot_at``. Routes may be added by them, and none removed.
        """
        if self.source != "none" or (time.monotonic() < self._snapshot_at and not self._inbox.error):
            return
        self._snapshot_at = _NEVER
        nodes = self._load_snapshot()
        if nodes:
            self.source = "snapshot"
            never = float("-inf")
            self._inbox.put_list(NodeList(dict(nodes), consistent=False, complete=False, started=never, received=never))

    def _named(self, name: str) -> bool:
        return name in self._egress_names or self._egress.names(name)

    def _seeing(self) -> tuple[ClusterFacts, tuple[Prefix, ...], tuple[bytes, ...]]:
        return self._cluster(), self.desired.own.cidrs, self.desired.own.addresses

    def _read_host(self) -> set[Prefix]:
        self._seen = self._seeing()
        host = self._look_at_host()
        # With `auto` the interface is known by our address, which may be gone along with it: then its name is all we have.
        self._egress_names |= {host.link_name(index) for index in set().union(*host.interfaces.values())}
        return self.desired.set_host(host)

    def _look_at_host(self) -> Host:
        cluster, own_cidrs, own_addresses = self._seeing()
        return read_host(
            self._socket,
            self._egress,
            own_cidrs=own_cidrs,
            own_ips=own_addresses,
            on_link=self.fib.on_link(own_cidrs),
            service_cidrs=cluster.service_cidrs,
            api_servers=cluster.api_servers,
        )

    def _updates(self, changes: NodeChanges) -> dict[str, NodeFacts | None]:
        """What differs from the Nodes we know of, by name."""
        updates: dict[str, NodeFacts | None] = {}
        known = self.desired.nodes
        if changes.listed is not None:
            updates = self._list_updates(changes.listed)
        for name, history in changes.changed.items():
            for change in history:
                current = updates.get(name, known.get(name))
                if change.facts is not None:
                    updates[name] = change.facts
                elif (current is None or change.uid in {"", current.uid}) and name != self.desired.settings.own_name:
                    updates[name] = None  # else: a late word about an older Node of the same name, or our own, which we keep
        return {name: facts for name, facts in updates.items() if facts != known.get(name)}

    def _list_updates(self, listed: NodeList) -> dict[str, NodeFacts | None]:
        updates: dict[str, NodeFacts | None] = dict(listed.nodes)
        if listed.complete:
            self.source = "api"
        if listed.complete and listed.consistent:
            self.complete = True
            self.listed_at = listed.started
            updates.update(dict.fromkeys(self.desired.nodes.keys() - listed.nodes.keys()))
        return updates
