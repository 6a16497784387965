"""The loop on the real kernel, in a namespace, fed with Nodes by hand: everything of the agent but the API server's side."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import structlog
from pynet.apply.neighbours import Neighbours
from pynet.apply.routes import RouteWriter
from pynet.config_rules import parse_interface
from pynet.core.desired import Desired, Settings
from pynet.core.diff import Differ
from pynet.core.guard import GuardSettings
from pynet.core.model import NodeFacts
from pynet.drivers.netlink import Monitor, RouteSocket
from pynet.loop import Loop, Waker
from pynet.observe.facts import ClusterFacts, Facts
from pynet.observe.fib import Fib
from pynet.observe.inbox import NodeChange, NodeInbox, NodeList
from pynet.observe.links import EgressInterfaces

from tests.support.netns import Namespace
from tests.support.pods import BRIDGE

OWN = "node-0"
OWN_FACTS = NodeFacts(OWN, "u-0", 1, ("10.244.0.0/24", "fd00:244:0:0::/64"), ("10.99.0.1", "fd99::1"), os="linux")


def peer(n: int, cidr=None, ip=None, created=None, uid=None) -> NodeFacts:
    """Node n: 10.244.n.0/24 and fd00:244:0:n::/64 via 10.99.0.(n+1) and fd99::(n+1), unless said otherwise."""
    cidrs = (cidr,) if isinstance(cidr, str) else cidr or (f"10.244.{n}.0/24", f"fd00:244:0:{n:x}::/64")
    ips = (ip,) if isinstance(ip, str) else ip or (f"10.99.0.{n + 1}", f"fd99::{n + 1:x}")
    return NodeFacts(f"node-{n}", uid or f"u-{n}", created or 100 + n, cidrs, ips, os="linux")


def eventually(condition: Callable[[], object], what: str = "", seconds: float = 10.0) -> float:
    """Wait until ``condition`` holds; returns the seconds it took."""
    began = time.monotonic()
    while not (got := condition()):
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last: {got!r}")
        time.sleep(0.002)
    return time.monotonic() - began


NO_GUARD = GuardSettings(1.0, 10**6)


class NoEffects:
    """The rig is about routes and the bridge's neighbours: sysctls, rules and files have tests of their own."""

    def __init__(self, socket: RouteSocket) -> None:
        self.sysctls = 0  # how often they were looked at
        self.handed = []
        self.neighbours = Neighbours(socket, BRIDGE, structlog.get_logger())

    def write_sysctls(self, now) -> None:
        self.sysctls += 1

    def ports_left(self, bridges, *, unsure) -> None:
        self.neighbours.ports_left(bridges, unsure=unsure)

    def hand_over(self, now) -> None:
        self.handed.append(now)

    def resync(self) -> None:
        pass


class Rig:
    """A loop that runs in ``namespace``. ``feed`` gives it Node events, ``list`` a list."""

    def __init__(
        self,
        namespace: Namespace,
        *,
        foreign="respect",
        interface="auto",
        table=254,
        resync=3600.0,
        rcvbuf=None,
        guard=NO_GUARD,
        settings=None,
    ):
        self.namespace = namespace
        self.errors: list[BaseException] = []
        self.relists = 0
        self.passes = []
        settings = msgspec.structs.replace(Settings(OWN, table=table), **settings or {})
        with namespace.entered():
            self.socket = RouteSocket()
            self.monitor = Monitor() if rcvbuf is None else Monitor(receive_buffer=rcvbuf)
        self.waker = Waker()
        self.inbox = NodeInbox(self.waker)
        fib = Fib(self.socket, self.monitor, table=table, protocol=settings.protocol)
        self.operations: list[tuple[str, str]] = []
        self.writer = RouteWriter(self.socket, lambda kind, result: self.operations.append((kind, result)))
        self.cluster = ClusterFacts()
        facts = Facts(
            Desired(settings),
            fib,
            self.socket,
            self.inbox,
            egress=EgressInterfaces(parse_interface(interface)),
            cluster=lambda: self.cluster,
            load_snapshot=dict,
            snapshot_at=float("inf"),
        )
        self.effects = NoEffects(self.socket)
        self.loop = Loop(
            facts,
            self.writer,
            Differ(settings.protocol, foreign, self.writer.programmed),
            self.effects,
            guard=guard,
            relist=self._relist,
            observer=lambda *seen: self.passes.append(seen),
            resync_seconds=resync,
            log=structlog.get_logger(),
        )
        self.desired = facts.desired
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _relist(self) -> None:
        self.relists += 1

    def _run(self) -> None:
        with self.namespace.entered():
            try:
                self.loop.run(self.monitor, self.waker)
            except BaseException as error:
                self.errors.append(error)
                raise

    def list(self, *nodes: NodeFacts, own=OWN_FACTS, complete=True, consistent=True, started=None) -> None:
        now = time.monotonic()
        every = {n.name: n for n in ((own, *nodes) if own else nodes)}
        self.inbox.put_list(
            NodeList(every, consistent=consistent, complete=complete and own is not None, started=started or now, received=now)
        )

    def feed(self, node: NodeFacts) -> None:
        self.inbox.put_change(node.name, NodeChange(node, node.uid, time.monotonic()))

    def drop(self, node: NodeFacts) -> None:
        self.inbox.put_change(node.name, NodeChange(None, node.uid, time.monotonic()))

    def routes(self, family: int, **where) -> list[dict]:
        """Our routes as `ip -json` shows them."""
        rows = self.namespace.ip("-details", f"-{family}", "route", "show", "table", "all")
        mine = [r for r in rows if str(r.get("protocol")) in {"110", "pynet"}]
        return [r for r in mine if all(str(r.get(k)) == str(v) for k, v in where.items())]

    def has(self, dst: str, via: str | None = None) -> bool:
        """Whether a route of ours for ``dst`` (via ``via``) is in the kernel."""
        return any(r["dst"] == dst and (via is None or r.get("gateway") == via) for r in self.routes(6 if ":" in dst else 4))

    def fighting(self) -> bool:
        """Whether a prefix is left alone because somebody keeps undoing what we do there."""
        return self.loop.fights.next_end(time.monotonic()) < float("inf")

    def state(self, name: str, family=4) -> str:
        return self.desired.verdicts[name, family].state

    def close(self) -> None:
        self.loop.stop()
        self.waker()
        if self.thread.ident:
            self.thread.join(10)
        self.socket.close()
        self.monitor.close()
        assert not self.thread.is_alive()
        assert not self.errors


@contextlib.contextmanager
def running(namespace: Namespace, *nodes: NodeFacts, **options) -> Iterator[Rig]:
    """A rig that has been given a complete list of ``nodes`` and has settled."""
    rig = Rig(namespace, **options)
    try:
        rig.list(*nodes)
        rig.thread.start()
        eventually(lambda: rig.loop.settled and rig.passes, "the first pass")
        yield rig
    finally:
        rig.close()
