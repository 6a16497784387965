"""The metrics of the contract, on a registry of their own. docs/reference/metrics.md says what each is for.

Label values that are known from the start are there from the start, at 0: an alert on `increase()` misses the first event of
a series that appears with it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from pynet import __version__
from pynet.core.model import FAMILIES, Family

PEER_STATES: Final = ("programmed", "pending", "conflict", "ignored", "rejected", "unreachable", "failed")
TRIGGERS: Final = ("node", "kernel", "overrun", "resync", "wake")
RESULTS: Final = ("verified", "unverified", "failed")
KINDS: Final = ("route", "sysctl", "masquerade", "forward", "conflist", "condition")
OPERATIONS: Final = ("add", "replace", "delete")
OPERATION_RESULTS: Final = ("ok", "error")
VERBS: Final = ("get", "list", "watch", "patch", "post")
CODES: Final = ("200", "401", "403", "410", "429", "500", "503", "timeout", "refused")
RESTARTS: Final = (
    "closed", "gone", "error", "unauthorized", "throttled", "refused", "timeout", "dns", "tls", "broken", "credentials",
    "malformed", "stale", "relist", "crash",
)  # fmt: skip

# Seconds. The first buckets are the figures we hold ourselves to, the last what is as bad as never.
DURATION_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
PROPAGATION_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REPAIR_BUCKETS: Final = (0.0002, *PROPAGATION_BUCKETS)


class Metrics:
    """Every metric of one agent, as attributes named like the metric without prefix and unit.

    Safe to use from any thread, ``set_sysctls`` from one only. ``registry`` is what /metrics shows, process_* included.
    """

    def __init__(self) -> None:
        # The library would add a *_created series for each counter and histogram; the switch is the whole process's.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library forgot its annotation
        self.registry = CollectorRegistry()
        self._sysctls: set[str] = set()
        ProcessCollector(registry=self.registry)
        self._describe_state()
        self._count_work()
        self._count_api()

    def _describe_state(self) -> None:
        registry = self.registry
        self.nodes = Gauge("pynet_nodes", "Nodes that this agent knows of, its own included.", registry=registry)
        self.peers = Gauge("pynet_peers", "Peers by address family and state.", ("family", "state"), registry=registry)
        self.routes_programmed = Gauge(
            "pynet_routes_programmed", "Routes to peers that are in the kernel as wanted.", ("family",), registry=registry
        )
        self.sysctl_ok = Gauge("pynet_sysctl_ok", "1 if the setting is as pods need it.", ("name",), registry=registry)
        self.masquerade_ok = Gauge(
            "pynet_masquerade_ok", "1 if the masquerade rules, or their absence, are as configured.", registry=registry
        )
        self.conflist_ok = Gauge(
            "pynet_conflist_ok", "1 if the CNI configuration is in place and no other one comes before it.", registry=registry
        )
        self.ready = Gauge("pynet_ready", "1 if /readyz says so.", registry=registry)
        self.snapshot = Gauge(
            "pynet_snapshot_timestamp_seconds", "When the last-good snapshot was written; 0: none.", registry=registry
        )
        build = Gauge("pynet_build_info", "Always 1.", ("version", "python"), registry=registry)
        build.labels(__version__, platform.python_version()).set(1)
        self.set_peers({})
        for family in FAMILIES:
            self.routes_programmed.labels(family)

    def _count_work(self) -> None:
        registry = self.registry
        self.reconcile = Counter(
            "pynet_reconcile_total",
            "Passes, by what brought them about and how they ended.",
            ("trigger", "result"),
            registry=registry,
        )
        self.reconcile_duration = Histogram(
            "pynet_reconcile_duration_seconds", "How long a pass took.", registry=registry, buckets=DURATION_BUCKETS
        )
        self.propagation = Histogram(
            "pynet_propagation_seconds",
            "From the arrival of a Node event to its route verified in the kernel.",
            registry=registry,
            buckets=PROPAGATION_BUCKETS,
        )
        self.repair = Histogram(
            "pynet_repair_seconds",
            "From the kernel's event, or the look that found it, to drift repaired.",
            ("kind",),
            registry=registry,
            buckets=REPAIR_BUCKETS,
        )
        self.drift = Counter("pynet_drift_total", "State of ours that somebody else changed.", ("kind",), registry=registry)
        self.route_operations = Counter(
            "pynet_route_operations_total", "Route messages to the kernel.", ("operation", "result"), registry=registry
        )
        self.netlink_overruns = Counter(
            "pynet_netlink_overruns_total", "Times the kernel had more events than we could take.", registry=registry
        )
        for kind in KINDS:
            self.repair.labels(kind)
            self.drift.labels(kind)
        _prepare(self.reconcile, TRIGGERS, RESULTS)
        _prepare(self.route_operations, OPERATIONS, OPERATION_RESULTS)

    def _count_api(self) -> None:
        registry = self.registry
        self.api_requests = Counter(
            "pynet_api_requests_total",
            "Requests to the API server, by verb and HTTP status, or a word for why there was no answer.",
            ("verb", "code"),
            registry=registry,
        )
        self.api_watch_restarts = Counter(
            "pynet_api_watch_restarts_total",
            "Node watches begun anew, by why the last one ended.",
            ("reason",),
            registry=registry,
        )
        self.api_last_contact = Gauge(
            "pynet_api_last_contact_timestamp_seconds",
            "When the API server last said anything; 0 if not since the agent started.",
            registry=registry,
        )
        _prepare(self.api_requests, VERBS, CODES)
        for reason in RESTARTS:
            self.api_watch_restarts.labels(reason)

    def set_peers(self, counts: Mapping[tuple[Family, str], int]) -> None:
        """Take over the number of peers by (family, state); what is not in ``counts`` is 0."""
        for family in FAMILIES:
            for state in PEER_STATES:
                self.peers.labels(family, state).set(counts.get((family, state), 0))

    def set_sysctls(self, settings: Iterable[tuple[str, bool]]) -> None:
        """Take over (name, whether it is right) of the sysctls; names that are no longer in the list go."""
        current = dict(settings)
        for gone in self._sysctls - current.keys():
            self.sysctl_ok.remove(gone)
        for name, ok in current.items():
            self.sysctl_ok.labels(name).set(ok)
        self._sysctls = set(current)

    def on_request(self, verb: str, code: str) -> None:
        """Count a request to the API server; ``code`` is the HTTP status, or a word where there was no answer."""
        self.api_requests.labels(verb, code).inc()

    def on_restart(self, reason: str) -> None:
        """Count a watch begun anew."""
        self.api_watch_restarts.labels(reason).inc()


def _prepare(counter: Counter, first: Iterable[str], second: tuple[str, ...]) -> None:
    """Have every pair of label values there, at 0."""
    for one in first:
        for other in second:
            counter.labels(one, other)
