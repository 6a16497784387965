"""Agents end and begin: the kernel does not notice, and neither do the pods."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.pods import attach
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.cluster import Agent, Cluster
    from tests.support.netns import Namespace


@contextlib.contextmanager
def _monitored(namespace: Namespace, log: Path) -> Iterator[Path]:
    """`ip monitor` of routes, addresses, links and rules runs meanwhile; its output is in ``log``."""
    with log.open("wb") as file:
        monitor = namespace.popen("ip", "monitor", "route", "address", "link", "rule", "netconf", stdout=file)
        # It says nothing when it begins to listen: so make it say something.
        until(lambda: _touch(namespace) and "10.254.254.254" in log.read_text(), "the monitor listens")
        try:
            yield log
        finally:
            monitor.terminate()
            monitor.wait(5)


def _touch(namespace: Namespace) -> bool:
    namespace.run("ip", "route", "add", "unreachable", "10.254.254.254/32")
    namespace.run("ip", "route", "del", "unreachable", "10.254.254.254/32")
    return True


def _said(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if "10.254.254.254" not in line and " lladdr " not in line]


def _cluster_of_two(cluster: Cluster) -> Agent:
    cluster.client.each(
        lambda i: cluster.add(f"p{i}", [f"10.202.{i}.0/24", f"fd02:{i}::/64"], [f"10.99.0.{100 + i}", f"fd99::{100 + i}"]),
        range(1, 50),
    )
    return cluster.node("self", ["10.201.0.0/24", "fd01::/64"])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart_makes_no_change_in_the_kernel(cluster: Cluster, tmp_path: Path, how: signal.Signals) -> None:
    agent = _cluster_of_two(cluster)
    assert (len(agent.routes(4)), len(agent.routes(6))) == (49, 49)

    with _monitored(agent.namespace, tmp_path / "monitor") as log:
        agent.stop(how)
        agent.start()

    assert _said(log) == []


def test_sigterm_ends_within_two_seconds_and_leaves_the_data_path(cluster: Cluster) -> None:
    agent = _cluster_of_two(cluster)
    routes, rules = agent.routes(), agent.namespace.run("nft", "list", "ruleset")
    conflist = (agent.conf_dir / "05-pynet.conflist").read_text()

    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 2

    assert agent.routes() == routes
    assert agent.namespace.run("nft", "list", "ruleset") == rules
    assert (agent.conf_dir / "05-pynet.conflist").read_text() == conflist


def test_snapshot_brings_the_routes_back_while_the_api_is_away(cluster: Cluster) -> None:
    agent = _cluster_of_two(cluster)
    want, want6 = agent.routes(), agent.routes(6)
    until((agent.folder / "state" / "last-good.json").exists, "a snapshot", seconds=60)
    agent.stop()
    agent.namespace.run("ip", "route", "flush", "proto", "110")
    agent.namespace.run("ip", "-6", "route", "flush", "proto", "110")
    cluster.plane.stop()

    agent.start()

    assert (agent.routes(), agent.routes(6)) == (want, want6)
    assert agent.status()["api"]["source"] == "snapshot"
    assert "snapshot" in " ".join(agent.status()["remarks"])


def test_nothing_is_deleted_on_the_word_of_a_snapshot(cluster: Cluster) -> None:
    agent = _cluster_of_two(cluster)
    until((agent.folder / "state" / "last-good.json").exists, "a snapshot", seconds=60)
    agent.stop()
    agent.namespace.run("ip", "route", "add", "10.203.0.0/24", "via", "10.99.0.150", "proto", "110", "metric", "120")
    cluster.plane.stop()

    agent.start()
    assert "10.203.0.0/24" in agent.routes()

    cluster.plane.start()
    until(lambda: "10.203.0.0/24" not in agent.routes(), "the list of the API has removed it", seconds=60)


def test_restart_loses_no_packet(cluster: Cluster, tmp_path: Path) -> None:
    agents = [cluster.node(f"n{i}", [f"10.201.{i}.0/24"]) for i in range(2)]
    agents[0].await_routes({"10.201.1.0/24": "10.99.0.3"})
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(attach(agent.namespace, [f"10.201.{i}.0/24"])) for i, agent in enumerate(agents)]
        with (tmp_path / "ping").open("wb") as log:
            ping = pods[0].namespace.popen("ping", "-n", "-i", "0.01", "-W", "2", pods[1].addresses[0], stdout=log, stderr=log)
            until(lambda: (tmp_path / "ping").read_text().count("bytes from") > 10, "pings pass")
            for agent in agents:
                agent.stop()
                agent.start()
            for agent in agents:
                agent.stop(signal.SIGKILL)
                agent.start()
            assert _pings_passed(ping, tmp_path / "ping")


def _pings_passed(ping: subprocess.Popen[bytes], log: Path) -> bool:
    ping.send_signal(signal.SIGINT)
    ping.wait(10)
    text = log.read_text()
    assert " 0% packet loss" in text, text[-500:]
    return True


def test_second_agent_with_the_same_rundir_is_refused(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"])
    first = agent.process

    agent.start(wait=False)

    assert agent.process
    assert agent.process.wait(20) != 0
    assert first
    assert first.poll() is None
    assert agent.readyz()[0] == 200
