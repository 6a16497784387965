"""The metrics are exactly those of the contract, and those of the reference page."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pynet import __version__
from pynet.apply.routes import RouteWriter
from pynet.core.model import FAMILIES, Operation, Prefix, Route
from pynet.drivers.netlink import NetlinkError
from pynet.observe import nodes
from pynet.report import metrics
from pynet.report.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"

# The contract's list: name, labels.
CONTRACT = {
    "nodes": set(),
    "peers": {"family", "state"},
    "routes_programmed": {"family"},
    "reconcile_total": {"trigger", "result"},
    "reconcile_duration_seconds": set(),
    "propagation_seconds": set(),
    "repair_seconds": {"kind"},
    "drift_total": {"kind"},
    "route_operations_total": {"operation", "result"},
    "api_requests_total": {"verb", "code"},
    "api_watch_restarts_total": {"reason"},
    "api_last_contact_timestamp_seconds": set(),
    "netlink_overruns_total": set(),
    "sysctl_ok": {"name"},
    "masquerade_ok": set(),
    "conflist_ok": set(),
    "ready": set(),
    "snapshot_timestamp_seconds": set(),
    "build_info": {"version", "python"},
}


@pytest.fixture
def agent() -> Metrics:
    made = Metrics()
    made.set_sysctls([("net.ipv4.ip_forward", True)])  # the one metric whose label values are not known from the start
    return made


def exposed(agent: Metrics) -> dict[str, tuple[str, set[str]]]:
    """name as shown (counters with _total) -> type, labels; read with the library's parser from what a scrape gets."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(agent.registry).decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[name] = (family.type, labels)
    return found


def value(agent: Metrics, name: str, /, **labels: str) -> float | None:
    return agent.registry.get_sample_value(name, labels)


def test_metrics_are_those_of_the_contract_and_the_process_s_own(agent):
    ours = {name: labels for name, (_, labels) in exposed(agent).items() if not name.startswith("process_")}
    assert ours == {f"pynet_{name}": labels for name, labels in CONTRACT.items()}


def test_the_reference_page_lists_exactly_what_is_exposed(agent):
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", PAGE.read_text(), re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(rows) == len(documented)
    assert documented == exposed(agent)


def test_the_reference_page_names_every_label_value():
    page = PAGE.read_text()
    known = (
        metrics.PEER_STATES,
        metrics.TRIGGERS,
        metrics.RESULTS,
        metrics.KINDS,
        metrics.OPERATIONS,
        metrics.VERBS,
        metrics.RESTARTS,
    )
    for each in (value for values in known for value in values):
        assert f"`{each}`" in page


def test_reasons_of_watch_restarts_are_those_of_the_watch():
    assert set(metrics.RESTARTS) == nodes.RESTARTS


def test_results_of_operations_are_those_of_the_route_writer():
    class Refusing:
        """A double: the kernel refuses one route and takes the other, in one batch."""

        def apply(self, _operations):
            return {0: NetlinkError(errno.EINVAL, "Invalid argument")}

    seen = []
    route = Route(Prefix(bytes((10, 244, 7, 0)), 24), 100)
    RouteWriter(Refusing(), lambda kind, result: seen.append((kind, result))).apply([Operation("add", route)] * 2)
    assert {result for _, result in seen} == set(metrics.OPERATION_RESULTS)
    assert {kind for kind, _ in seen} <= set(metrics.OPERATIONS)


def test_known_label_values_are_there_at_zero_from_the_start(agent):
    for family in FAMILIES:
        assert value(agent, "pynet_routes_programmed", family=str(family)) == 0
        for state in metrics.PEER_STATES:
            assert value(agent, "pynet_peers", family=str(family), state=state) == 0
    for kind in metrics.KINDS:
        assert value(agent, "pynet_drift_total", kind=kind) == 0
        assert value(agent, "pynet_repair_seconds_count", kind=kind) == 0
    for trigger in metrics.TRIGGERS:
        for result in metrics.RESULTS:
            assert value(agent, "pynet_reconcile_total", trigger=trigger, result=result) == 0
    for operation in metrics.OPERATIONS:
        for result in metrics.OPERATION_RESULTS:
            assert value(agent, "pynet_route_operations_total", operation=operation, result=result) == 0
    for verb in metrics.VERBS:
        for code in metrics.CODES:
            assert value(agent, "pynet_api_requests_total", verb=verb, code=code) == 0
    for reason in metrics.RESTARTS:
        assert value(agent, "pynet_api_watch_restarts_total", reason=reason) == 0
    assert value(agent, "pynet_netlink_overruns_total") == 0


def test_peer_counts_replace_the_ones_before(agent):
    agent.set_peers({(4, "programmed"): 3, (6, "conflict"): 1})
    agent.set_peers({(4, "programmed"): 2})
    assert value(agent, "pynet_peers", family="4", state="programmed") == 2
    assert value(agent, "pynet_peers", family="6", state="conflict") == 0


def test_sysctls_that_are_no_longer_watched_disappear(agent):
    agent.set_sysctls([("net.ipv4.ip_forward", False), ("net.ipv6.conf.eth0.accept_ra", True)])
    assert value(agent, "pynet_sysctl_ok", name="net.ipv4.ip_forward") == 0
    assert value(agent, "pynet_sysctl_ok", name="net.ipv6.conf.eth0.accept_ra") == 1
    agent.set_sysctls([("net.ipv4.ip_forward", True)])
    assert value(agent, "pynet_sysctl_ok", name="net.ipv4.ip_forward") == 1
    assert value(agent, "pynet_sysctl_ok", name="net.ipv6.conf.eth0.accept_ra") is None


def test_callbacks_count(agent):
    agent.on_request("list", "200")
    agent.on_request("list", "dns")
    agent.on_restart("gone")
    assert value(agent, "pynet_api_requests_total", verb="list", code="200") == 1
    assert value(agent, "pynet_api_requests_total", verb="list", code="dns") == 1
    assert value(agent, "pynet_api_watch_restarts_total", reason="gone") == 1


def test_the_promised_figures_are_bucket_edges(agent):
    """Issue 3 asks for repairs within 1 and 3 ms and propagation within 1.5 and 5 ms: the histograms must resolve that."""
    for name, low in (("propagation", 0.0005), ("repair", 0.0002)):
        edges = {
            float(sample.labels["le"])
            for family in agent.registry.collect()
            for sample in family.samples
            if sample.name == f"pynet_{name}_seconds_bucket"
        }
        assert min(edges) == low
        assert sorted(edges)[-2:] == [30, float("inf")]
        assert {0.001, 0.005} <= edges


def test_two_agents_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.netlink_overruns.inc()
    assert value(one, "pynet_netlink_overruns_total") == 1
    assert value(other, "pynet_netlink_overruns_total") == 0


def test_build_info_tells_version_and_python(agent):
    assert f'version="{__version__}"' in generate_latest(agent.registry).decode()
