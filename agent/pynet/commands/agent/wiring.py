"""Builds the agent out of its parts and runs it. Nothing is decided here; architecture.md has the picture."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from pynet.apply.condition import NodeCondition
from pynet.apply.conflist import Conflist
from pynet.apply.effects import Effects, Parts
from pynet.apply.events import Events
from pynet.apply.forward import Forward
from pynet.apply.masquerade import Masquerade
from pynet.apply.routes import RouteWriter
from pynet.apply.snapshot import SnapshotError, load
from pynet.commands.agent.herald import Herald
from pynet.commands.agent.process import FatalError, collect_garbage, require_net_admin
from pynet.commands.agent.reporter import Reporter
from pynet.config import Config
from pynet.core.addresses import parse_prefix
from pynet.core.desired import Desired, Settings
from pynet.core.diff import Differ
from pynet.core.guard import GuardSettings
from pynet.core.model import NodeFacts, Prefix, format_address
from pynet.drivers.credentials import Credentials, CredentialsError, from_kubeconfig, from_token_files, in_cluster
from pynet.drivers.kube import Api
from pynet.drivers.netlink import Monitor, RouteSocket
from pynet.loop import Loop, PassReport, Waker
from pynet.observe.clusterwatch import ClusterWatch
from pynet.observe.facts import Facts, Observed
from pynet.observe.fib import Fib
from pynet.observe.inbox import NodeInbox
from pynet.observe.links import EgressInterfaces
from pynet.observe.nodes import NodeWatch
from pynet.report.httpd import HttpServer, Listener
from pynet.report.httpwire import PageSource, Reply
from pynet.report.logs import new_logger, take_over
from pynet.report.metrics import Metrics
from pynet.report.pages import health_pages, metrics_pages

SNAPSHOT_AFTER: Final = 1.0
"""Seconds without a list from an API server that does not even refuse, after which the snapshot is used."""

STOP_SECONDS: Final = 1.2
"""For all threads to end: SIGTERM to exit takes less than 2 s."""


def settings_of(config: Config, name: str) -> Settings:
    """What the core needs of the configuration."""
    routes = config.routes
    return Settings(
        own_name=name,
        cluster_cidrs=tuple(parse_prefix(text) for text in config.cluster_cidrs),
        protocol=routes.protocol,
        table=routes.table,
        metric=routes.metric,
        metric_buckets=routes.metric_buckets,
        unreachable_local=routes.unreachable_local,
    )


def credentials_of(args: argparse.Namespace, run_dir: Path) -> Credentials:
    """How to reach the API server, by the flags. Raises FatalError."""
    try:
        if args.kubeconfig:
            return from_kubeconfig(Path(args.kubeconfig), scratch=run_dir)
        if args.api_server and (args.token_file or args.ca_file or args.api_server.startswith("http:")):
            files = (Path(file) if file else None for file in (args.token_file, args.ca_file))
            return from_token_files(args.api_server, *files)
        return in_cluster(server=args.api_server or "")
    except CredentialsError as error:
        raise FatalError(str(error)) from None


class Agent:
    """One agent. Raises FatalError if it cannot work at all."""

    def __init__(self, config: Config, name: str, args: argparse.Namespace) -> None:
        self.log: structlog.typing.FilteringBoundLogger = new_logger(level=args.log_level, style=args.log_format)
        take_over(self.log)
        require_net_admin()
        self._config = config
        self._waker = Waker()
        self._metrics = Metrics()
        self._credentials = credentials_of(args, Path(config.run_dir))
        self._api = Api(self._credentials, on_request=self._metrics.on_request)
        self._inbox = NodeInbox(self._waker)
        self._reporter = Reporter(self._metrics, self._inbox, self._server, self.log)
        self._watch = NodeWatch(self._api, self._inbox, name, log=self.log, on_restart=self._metrics.on_restart)
        self._cluster = ClusterWatch(self._api, config.service_cidrs, self._waker, self.log)
        self._desired = Desired(settings_of(config, name))
        try:
            self._socket, self._monitor = RouteSocket(), Monitor()
        except OSError as error:
            raise FatalError(f"no netlink socket: {error}") from None
        parts = self._parts(name)
        self._effects = Effects(config, self._desired, parts, self._reporter, self.log, socket=self._socket)
        self._loop = self._make_loop()
        self._reporter.attach(self._loop, self._effects)
        self._reporter.events = parts.events
        self._herald = Herald(self._reporter.board.readiness, lambda: self._desired.own.uid, parts.events, self.log)
        self._http = HttpServer(self._listeners(), self.log)
        self._reporter.problems = self._http.problems
        self._reporter.address_known = self._http.look_again

    def run(self) -> None:
        """Run until :meth:`stop`."""
        self.log.info("agent_started", node=self._desired.settings.own_name)
        self._http.start()
        self._cluster.start()
        self._watch.start()
        self._herald.start()
        try:
            self._loop.run(self._monitor, self._waker)
        finally:
            end = time.monotonic() + STOP_SECONDS
            self._herald.stop()
            self._watch.stop(0.3)
            self._cluster.stop()
            self._effects.stop(max(0.1, end - time.monotonic()))
            self._http.stop()
            self.log.info("agent_stopped")

    def stop(self) -> None:
        """End :meth:`run`, leaving routes, rules and conflist as they are. Safe in a signal handler."""
        self._loop.stop()
        self._waker()

    def _make_loop(self) -> Loop:
        config, desired = self._config, self._desired
        routes = config.routes
        writer = RouteWriter(
            self._socket, lambda operation, result: self._metrics.route_operations.labels(operation, result).inc()
        )
        fib = Fib(self._socket, self._monitor, table=routes.table, protocol=routes.protocol)
        facts = Facts(
            desired,
            fib,
            self._socket,
            self._inbox,
            egress=EgressInterfaces(config.interface_choice),
            cluster=self._cluster.facts,
            load_snapshot=self._load_snapshot,
            snapshot_at=time.monotonic() + SNAPSHOT_AFTER,
        )
        return Loop(
            facts,
            writer,
            Differ(routes.protocol, routes.foreign, writer.programmed),
            self._effects,
            guard=GuardSettings(config.removal_guard.fraction, config.removal_guard.minimum),
            relist=self._watch.relist,
            observer=self._passed,
            resync_seconds=config.resync_seconds,
            log=self.log,
        )

    def _passed(self, observed: Observed, report: PassReport, repaired: set[Prefix]) -> None:
        self._reporter.passed(observed, report, repaired)
        if report.trigger == "resync":
            collect_garbage()

    def _parts(self, name: str) -> Parts:
        config, reporter = self._config, self._reporter
        conflist = Conflist(self._on_result, self._conflist_repaired) if config.cni.enabled else None
        condition = (
            NodeCondition(self._api, name, self._on_result, self._condition_repaired) if config.network_unavailable else None
        )
        return Parts(
            masquerade=Masquerade(self._on_result, reporter.drifted, self.log),
            forward=Forward(self._on_result, reporter.drifted, self.log),
            conflist=conflist,
            condition=condition,
            events=Events(self._api, name, lambda why: self.log.warning("events_not_posted", reason=why)),
        )

    def _conflist_repaired(self, path: str, seconds: float) -> None:
        self.log.warning("conflist_repaired", path=path)
        self._reporter.drifted("conflist", seconds)

    def _condition_repaired(self, was: str, seconds: float) -> None:
        self.log.warning("condition_repaired", was=was)
        self._reporter.drifted("condition", seconds)

    def _on_result(self, part: str, error: str) -> None:
        """An applier's state has changed: log it, and let the loop hand over what waited for it."""
        if error:
            self.log.warning("apply_failed", part=part, error=error)
        else:
            self.log.info("applied", part=part)
        self._waker()

    def _load_snapshot(self) -> Mapping[str, NodeFacts]:
        try:
            snapshot = load(self._effects.snapshot_path, self._desired.settings.own_name)
        except SnapshotError as error:
            self.log.warning("snapshot_refused", reason=str(error))
            return {}
        if snapshot is None:
            return {}
        self._reporter.snapshot_time = snapshot.saved
        self.log.info("snapshot_used", nodes=len(snapshot.nodes), saved=snapshot.saved)
        return {node.name: node for node in snapshot.nodes}

    def _listeners(self) -> list[Listener]:
        metrics, health = self._config.metrics, self._config.health
        pages = metrics_pages(self._metrics.registry)
        pages["/metrics"] = self._refreshing(pages["/metrics"])
        node = self._node_address if metrics.address == "node" else lambda: metrics.address
        return [
            Listener("metrics", node, metrics.port, pages),
            Listener(
                "health",
                lambda: health.address,
                health.port,
                health_pages(self._reporter.board, lambda: time.monotonic() - self._loop.ticked),
            ),
        ]

    def _refreshing(self, page: PageSource) -> PageSource:
        def refreshed(headers: Mapping[str, str]) -> Reply:
            self._reporter.refresh_metrics()
            return page(headers)

        return refreshed

    def _node_address(self) -> str | None:
        addresses = self._desired.own.addresses
        return format_address(addresses[0]) if addresses else None

    def _server(self) -> str:
        try:
            return self._credentials.current().server
        except CredentialsError:
            return ""
