"""Fixtures of the end-to-end tests: one cluster per flavour, pynet in it, pods to talk between. See tests/e2e/run."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.e2e import workload
from tests.e2e.cluster import FLAVOURS, NAMESPACE, Cluster, asset, run
from tests.e2e.release import Release

TIMES: dict[str, float] = defaultdict(float)
"""Seconds by part, for the summary."""

NOTES: list[str] = []
"""Figures that tests noted, for the summary."""


def pytest_addoption(parser):
    parser.addoption("--flavours", default=",".join(FLAVOURS), help="clusters to test on, separated by commas")
    parser.addoption("--keep", action="store_true", help="leave the clusters running")
    parser.addoption("--reuse", action="store_true", help="use a cluster that an earlier --keep left")


def pytest_generate_tests(metafunc):
    """Run a module on the flavours of its FLAVOURS (all of them by default), as far as they were asked for."""
    if "cluster" in metafunc.fixturenames:
        asked = metafunc.config.getoption("flavours").split(",")
        offered = getattr(metafunc.module, "FLAVOURS", tuple(FLAVOURS))
        metafunc.parametrize("cluster", [name for name in asked if name in offered], indirect=True, scope="session")


def flavour_of(item):
    """The flavour that a test runs on, None if it needs no cluster."""
    call = getattr(item, "callspec", None)
    return call.params.get("cluster") if call else None


def pytest_collection_modifyitems(config, items):
    """One cluster after the other, and on each the sections in order. What needs no cluster goes with the first flavour."""
    asked = config.getoption("flavours").split(",")
    order = [None, *FLAVOURS] if next(iter(FLAVOURS)) in asked else [*FLAVOURS]
    # A module that runs on none of the flavours asked for is there once, with a flavour that is none.
    none = [item for item in items if flavour_of(item) not in order]
    config.hook.pytest_deselected(items=none)
    items[:] = sorted(
        (item for item in items if item not in none), key=lambda item: (order.index(flavour_of(item)), item.path.name)
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    began = time.monotonic()
    result = yield
    TIMES[f"{item.path.stem} {flavour_of(item) or ''}"] += time.monotonic() - began
    return result


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("time by part")
    for part, seconds in TIMES.items():
        terminalreporter.write_line(f"{seconds:7.1f} s  {part}")
    for text in NOTES:
        terminalreporter.write_line(text)


@pytest.fixture
def note(request):
    """A function that takes a figure for the summary."""
    return lambda text: NOTES.append(f"[{flavour_of(request.node) or '-'}] {text}")


@pytest.fixture(scope="session")
def cluster(request, tmp_path_factory):
    """A cluster of the flavour, with the tests' images and namespace; no pynet in it yet."""
    flavour = FLAVOURS[request.param]
    keep = request.config.getoption("keep")
    kubeconfig = Path(asset("E2E_WORK")) / f"kubeconfig-{flavour.name}"
    cluster = Cluster(flavour, f"e2e-{flavour.name}", kubeconfig)
    if request.config.getoption("reuse") and cluster.name in run("kind", "get", "clusters").split():
        yield cluster
        return
    began = time.monotonic()
    try:
        cluster.delete()  # one that a killed run left
        cluster.create(asset("E2E_NODE_IMAGE"))
        TIMES[f"create cluster {flavour.name}"] = time.monotonic() - began
        began = time.monotonic()
        for archive in (asset("E2E_AGENT_ARCHIVE"), asset("E2E_TOOLS_ARCHIVE")):
            cluster.load(archive)
        TIMES[f"load images {flavour.name}"] = time.monotonic() - began
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        yield cluster
    finally:
        if not keep:
            cluster.delete()


@pytest.fixture(scope="session")
def pynet(cluster):
    """pynet, installed with its chart by whoever asks first."""
    release = Release(cluster)
    if not release.installed():
        release.install()
    release.wait_ready()
    return release


@pytest.fixture(scope="session")
def pods(cluster, pynet):
    """The tests' pods on every node (see workload.deploy)."""
    workload.deploy(cluster)
    return workload


@pytest.fixture(scope="session")
def outside(cluster, pods):
    """A host outside the cluster."""
    with workload.outside(f"{cluster.name}-outside") as host:
        yield host
