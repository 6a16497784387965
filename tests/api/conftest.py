"""Fixtures: one real control plane for the session, and for each test a cluster that begins without nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import cluster as clusters
from tests.support.controlplane import binaries
from tests.support.lacking import fail_or_skip
from tests.support.netns import why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster


# Beside etcd and kube-apiserver: what the tests of the chart run.
_PROGRAMS = {
    "test_admission.py": ("helm", "kubectl", "kube-controller-manager"),
    "test_release.py": ("helm",),
    "test_uninstall.py": ("helm", "kubectl"),
}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build programs before the first test: minutes on a new machine, which no test's time limit is made for."""
    modules = {item.path.name for item in session.items if item.path.parent.name == "api"}
    if modules and not session.config.option.collectonly and not why_not():
        binaries("etcd", "kube-apiserver", *{name for module in modules for name in _PROGRAMS.get(module, ())})


@pytest.fixture(scope="session")
def whole_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of the session: its control plane takes 4 s to start (minutes where it has to be built first)."""
    fail_or_skip(why_not())
    with clusters.cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture
def cluster(whole_session: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster without nodes; what a test adds, stops or breaks is put right after it."""
    yield whole_session
    for agent in whole_session.agents.values():
        if agent.log.exists():
            request.node.add_report_section("teardown", f"log of {agent.name}", agent.log_end())
    whole_session.clear()
