"""`pynet plan`, as a process in a namespace beside a small API server: what it prints can be pasted, and it changes nothing."""

from __future__ import annotations

import json
import sys

import pytest

from tests.kernel.rig import OWN, OWN_FACTS, eventually, peer, running
from tests.support.fake_api import FakeApi
from tests.support.nodes import node as node_object

SERVICES = "/apis/networking.k8s.io/v1/servicecidrs"


@pytest.fixture
def node(lan3):
    return lan3[0]


@pytest.fixture
def api(node):
    with node.entered():
        server = FakeApi()
    with server:
        for facts in (OWN_FACTS, peer(1), peer(2)):
            put(server, facts)
        yield server


def put(api: FakeApi, facts) -> None:
    api.put(node_object(facts.name, facts.pod_cidrs, facts.internal_ips), uid=facts.uid)


class Planner:
    def __init__(self, namespace, api, folder) -> None:
        self.namespace, self.api, self.folder = namespace, api, folder

    def __call__(self, *flags: str, name: str = OWN, **settings) -> tuple[int, str, str]:
        config = self.folder / "pynet.yaml"
        config.write_text(json.dumps({"runDir": str(self.folder), **settings}))
        arguments = ["--api-server", self.api.url, "--node-name", name, "--config", str(config), *flags]
        child = self.namespace.popen(sys.executable, "-m", "pynet", "plan", *arguments, stdout=-1, stderr=-1, text=True)
        said, complaint = child.communicate(timeout=60)
        return child.returncode, said, complaint


@pytest.fixture
def plan(node, api, tmp_path):
    return Planner(node, api, tmp_path)


def table(node) -> list:
    return [r for f in "46" for r in node.ip("-details", f"-{f}", "route", "show", "table", "all")]


def paste(node, text: str) -> None:
    node.run("sh", "-e", input=text)


@pytest.mark.parametrize("settings", [{}, {"routes": {"table": 1000}}])
def test_what_it_prints_does_what_the_agent_does(node, plan, settings):
    before = table(node)
    status, said, complaint = plan(**settings)
    assert (status, complaint) == (2, "")
    assert table(node) == before, "it changes nothing"
    assert len(said.splitlines()) == 6
    paste(node, said)
    assert plan(**settings)[:2] == (0, "# nothing to do\n")
    with running(node, peer(1), peer(2), table=settings.get("routes", {}).get("table", 254)) as rig:
        assert rig.operations == [], "the agent has nothing to do either"


def test_stale_routes_of_every_kind_are_mended_by_pasting(node, plan):
    with running(node, peer(1), peer(2), peer(3)):
        pass
    metric = str(node.ip("route", "show", "10.244.1.0/24")[0]["metric"])
    for command in (
        f"route replace 10.244.1.0/24 via 10.99.0.3 proto 110 metric {metric}",
        "route add 10.77.0.0/16 proto 110 nexthop via 10.99.0.2 nexthop via 10.99.0.3",
        "-6 route add fd77::/64 proto 110 nexthop via fd99::2 nexthop via fd99::3",
        "route add blackhole 10.78.0.0/16 proto 110 metric 7",
        "route add prohibit 10.79.0.0/16 proto 110",
        "-6 route add unreachable fd80::/64 proto 110 metric 9",
        "route add 10.80.0.0/16 tos 0x10 via 10.99.0.3 proto 110",
        "route add 10.81.0.0/16 via inet6 fd99::2 dev eth0 proto 110",
    ):
        node.run("ip", *command.split())
    status, said, _ = plan()
    assert status == 2
    paste(node, said)
    status, said, _ = plan()
    assert (status, said) == (0, "# nothing to do\n")
    assert {r["dst"] for r in node.ip("route", "show", "proto", "110")} == {"10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"}


def test_refused_peers_conflicts_and_held_removals_are_told_as_comments(node, api, plan):
    with running(node, *[peer(n) for n in range(1, 9)]):
        pass
    node.run("ip", "-6", "route", "replace", "fd00:244:0:1::/64", "via", "fd99::3", "metric", "1")
    put(api, peer(4, cidr="10.99.0.0/24", ip="10.99.0.9"))
    status, said, _ = plan(removalGuard={"fraction": 0.5, "minimum": 3})
    assert status == 2
    lines = said.splitlines()
    assert any(line.startswith("# node-4 IPv4 rejected: podCIDR 10.99.0.0/24 overlaps") for line in lines)
    assert any(line.startswith("# fd00:244:0:1::/64 conflict: there is") for line in lines)
    assert "# the removals would wait for another list: 6 of 8 IPv4 routes would go at once" in lines
    _, said, _ = plan("--output", "json", removalGuard={"fraction": 0.5, "minimum": 3})
    found = json.loads(said)
    assert set(found) == {"commands", "peers", "conflicts", "held"}
    assert found["commands"] == [line for line in lines if not line.startswith("#")]


def test_what_the_api_says_may_be_nonsense(api, plan):
    api.others[SERVICES] = {"items": [{"spec": {"cidrs": ["nonsense", "10.244.2.0/24"]}}]}
    status, said, complaint = plan()
    assert (status, complaint) == (2, "")
    assert "# node-2 IPv4 rejected: podCIDR 10.244.2.0/24 overlaps the Service range" in said


def test_errors_are_said_in_one_line_with_status_1(node, api, plan):
    status, said, complaint = plan(name="nobody")
    assert (status, said) == (1, "")
    assert complaint == "pynet plan: Node 'nobody' is not in the list of Nodes: is --node-name right?\n"
    refused = "401: Unauthorized: our credentials are not, or no longer, accepted"
    refusal = b'{"kind":"Status","message":"Unauthorized","code":401}'
    api.script("list", lambda exchange: exchange.answer(401, refusal, "application/json"))
    assert plan() == (1, "", f"pynet plan: the API server says {refused}\n")
    api.script("list", *[lambda exchange: exchange.answer(200, b"nonsense", "text/plain")] * 9)
    status, said, complaint = plan()
    assert (status, said, complaint.count("\n")) == (1, "", 1)
    assert complaint.startswith("pynet plan: the API server's answer cannot be read: ")
    api.url = "http://127.0.0.1:1"
    status, said, complaint = plan()
    assert (status, said, complaint.count("\n")) == (1, "", 1)


def test_beside_a_running_agent_there_is_nothing_to_do(node, plan):
    with running(node, peer(1), peer(2)) as rig:
        assert plan()[0] == 0
        rig.drop(peer(2))
        eventually(lambda: not rig.has("10.244.2.0/24"))
        status, said, _ = plan()
        assert status == 2
        assert [line.split()[:4] for line in said.splitlines() if "-6" not in line] == [["ip", "route", "add", "10.244.2.0/24"]]
