"""Who the agent is to the API server: tokens that rotate, rights that are taken away, kubeconfig files."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING

from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.cluster import Agent, Cluster

PEER = {"10.201.1.0/24": "10.99.0.101"}


def _break_the_stream(cluster: Cluster) -> None:
    """A watch is authorised once, when it begins."""
    cluster.plane.stop()
    cluster.plane.start()


def test_rotated_token_is_read_again_after_a_401(cluster: Cluster) -> None:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent = cluster.node("self", ["10.201.0.0/24"])

    cluster.plane.invalidate_tokens()
    _break_the_stream(cluster)
    until(lambda: agent.status()["api"]["unauthorizedSince"], "the agent is refused", seconds=30)
    assert agent.routes() == PEER
    agent.token_file.write_text(cluster.plane.token())
    cluster.add("other", ["10.201.2.0/24"], ["10.99.0.102"])

    agent.await_routes(PEER | {"10.201.2.0/24": "10.99.0.102"}, seconds=60)
    assert not agent.status()["api"]["unauthorizedSince"]


def test_rights_taken_away_show_in_readyz_after_a_minute_and_routes_stay(cluster: Cluster) -> None:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent = cluster.node("self", ["10.201.0.0/24"])

    cluster.plane.revoke()
    _break_the_stream(cluster)
    began = time.time()
    until(lambda: agent.readyz()[0] != 200, "not ready for want of rights", seconds=100)

    code, text = agent.readyz()
    assert code != 200
    assert "refuses" in text
    assert "403" in text or "forbidden" in text.lower(), text
    assert time.time() - began > 55, "a short refusal is no reason"
    assert agent.routes() == PEER
    assert agent.get("/livez")[0] == 200

    cluster.plane.grant()
    agent.await_ready(60)


def test_agent_that_may_not_list_from_the_start_says_so(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    cluster.plane.revoke()

    agent.start(wait=False)

    until(lambda: "forbidden" in agent.readyz()[1].lower(), "readyz has the API server's words", seconds=20)
    assert agent.routes() == {}
    cluster.plane.grant()
    agent.await_ready(60)


def test_wrong_ca_is_refused_and_named(cluster: Cluster) -> None:
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)
    wrong = agent.folder / "wrong.crt"
    cluster.plane.other_ca(wrong)

    agent.start("--api-server", cluster.plane.url, "--token-file", str(agent.token_file), "--ca-file", str(wrong), wait=False)

    until(lambda: "certificate" in agent.readyz()[1].lower(), "readyz names the certificate", seconds=20)
    assert agent.routes() == {}


def _kubeconfig(agent: Agent, token: str) -> str:
    certificate = base64.b64encode(agent.ca_file.read_bytes()).decode()
    path = agent.folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": agent.url, "certificate-authority-data": certificate}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_kubeconfig_serves_as_well(cluster: Cluster) -> None:
    cluster.add("peer", ["10.201.1.0/24"], ["10.99.0.101"])
    agent = cluster.node("self", ["10.201.0.0/24"], start=False)

    agent.start("--kubeconfig", _kubeconfig(agent, cluster.plane.token()))

    assert agent.routes() == PEER


def test_api_server_by_its_ipv6_address(cluster: Cluster) -> None:
    cluster.add("peer", ["fd01:1::/64"], ["fd99::101"])
    agent = cluster.node("self", ["fd01::/64"], start=False)
    files = ("--token-file", str(agent.token_file), "--ca-file", str(agent.ca_file))

    agent.start("--api-server", "https://[fd99::1]:6443", *files)

    assert agent.routes(6) == {"fd01:1::/64": "fd99::101"}
