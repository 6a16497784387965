"""What the chart lets an agent do: its rights, and the admission policy that leaves it one condition of its own Node."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from pynet.apply.condition import body_for
from pynet.apply.events import Events
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api

from tests.api.charted import RELEASE, Charted, kubeconfig
from tests.support.apiclient import MERGE, STRATEGIC, RefusedError
from tests.support.controlplane import binaries
from tests.support.nodes import node
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.apiclient import ApiClient
    from tests.support.cluster import Cluster

NODES = "/api/v1/nodes"
AVAILABLE = body_for(None, 1_800_000_000.0)
POLICIES = (f"{RELEASE}-node-status", f"{RELEASE}-node-events")
EVENTS = "/api/v1/namespaces/default/events"


@pytest.fixture(scope="module")
def installed(whole_session: Cluster) -> Iterator[Charted]:
    made = Charted(whole_session)
    made.apply(made.objects)
    try:
        _await_policy(made)
        yield made
    finally:
        made.delete(made.objects)


def _await_policy(made: Charted) -> None:
    """The API server takes a moment to enforce a new policy, and to grant new rights."""
    made.client.create(NODES, node("probe"))
    agent = made.as_token(made.unbound_token())

    def words() -> str:
        try:
            agent.patch(f"{NODES}/probe/status", AVAILABLE)
        except RefusedError as refusal:
            return refusal.message
        return "nobody minds"

    until(lambda: "ValidatingAdmissionPolicy" in words(), "the admission policy is enforced", seconds=20)
    until(lambda: "ValidatingAdmissionPolicy" in _said(agent, EVENTS, {}), "that of Events is enforced", seconds=20)
    made.client.delete(f"{NODES}/probe")


@pytest.fixture
def chart(installed: Charted, cluster: Cluster) -> Iterator[Charted]:  # cluster: nodes are cleared after each test
    installed.client.create(NODES, node("self", ["10.201.0.0/24"], ["10.99.0.5"], full=True))
    installed.client.create(NODES, node("other", ["10.201.1.0/24"], ["10.99.0.6"], full=True))
    yield installed
    installed.hang_up()


def _conditions(chart: Charted, name: str = "self") -> dict[str, str]:
    return {c["type"]: c["status"] for c in chart.client.get(f"{NODES}/{name}")["status"].get("conditions", [])}


def _said(agent: ApiClient, path: str, body: Any) -> str:
    """Why an object is not created; "" if it is."""
    try:
        agent.create(path, {"metadata": {"generateName": "test-"}, **body})
    except RefusedError as refusal:
        return refusal.message
    return ""


def _refused(agent: ApiClient, path: str, patch: Any, content: str = STRATEGIC) -> str:
    with pytest.raises(RefusedError) as refusal:
        agent.patch(f"{NODES}/{path}", patch, content)
    assert refusal.value.code == 403, refusal.value
    return refusal.value.message


def test_agent_sets_the_condition_of_its_own_node(chart: Charted) -> None:
    before = _conditions(chart)
    agent = chart.agent("self")

    agent.patch(f"{NODES}/self/status", AVAILABLE)  # new
    agent.patch(f"{NODES}/self/status", body_for(("False", "PynetRoutesReady"), 1_800_000_100.0))  # again, later

    assert _conditions(chart) == before | {"NetworkUnavailable": "False"}


def test_agent_takes_back_a_condition_that_another_has_set(chart: Charted) -> None:
    there = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "by a cloud provider"}
    chart.client.patch(f"{NODES}/self/status", {"status": {"conditions": [there]}})

    chart.agent("self").patch(f"{NODES}/self/status", AVAILABLE)

    assert _conditions(chart)["NetworkUnavailable"] == "False"


def test_agent_sets_the_first_condition_of_a_node_that_has_none(chart: Charted) -> None:
    bare = node("bare")
    del bare["status"]
    chart.client.create(NODES, bare)

    chart.agent("bare").patch(f"{NODES}/bare/status", AVAILABLE)

    assert _conditions(chart, "bare") == {"NetworkUnavailable": "False"}


def test_policy_can_afford_the_largest_nodes(chart: Charted) -> None:
    large = node("large", full=True, labels={f"example.com/label-{i}": "x" * 60 for i in range(300)})
    names = [[f"registry.example.com/{i}/{j}@sha256:{i * 10 + j:064x}" for j in range(5)] for i in range(50)]
    large["status"]["images"] = [{"names": each, "sizeBytes": 1} for each in names]  # 50: kubelet's --node-status-max-images
    large["metadata"]["annotations"]["example.com/much"] = "x" * 200_000  # of the 262,144 that a Node may have
    chart.client.create(NODES, large)

    chart.agent("large").patch(f"{NODES}/large/status", AVAILABLE)


def test_agent_cannot_touch_another_node(chart: Charted) -> None:
    assert "its own Node only" in _refused(chart.agent("self"), "other/status", AVAILABLE)


def test_token_that_names_no_node_changes_none(chart: Charted) -> None:
    agent = chart.as_token(chart.unbound_token())

    assert "its own Node only" in _refused(agent, "self/status", AVAILABLE)


FORBIDDEN_STATUS = {
    "an address": {"addresses": [{"type": "InternalIP", "address": "8.8.8.8"}]},
    "addresses taken away": {"addresses": None},
    "capacity": {"capacity": {"example.com/gpu": "1"}},
    "allocatable": {"allocatable": {"cpu": "1000"}},
    "images": {"images": [{"names": ["none"], "sizeBytes": 1}]},
    "its kubelet's port": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}},
    "nodeInfo": {"nodeInfo": {"kernelVersion": "0"}},
    "volumes, a field that is not there yet": {"volumesInUse": ["kubernetes.io/none"]},
}


@pytest.mark.parametrize("change", FORBIDDEN_STATUS.values(), ids=FORBIDDEN_STATUS)
def test_agent_cannot_change_the_rest_of_the_status(chart: Charted, change: Any) -> None:
    content = MERGE if None in change.values() else STRATEGIC

    assert "no part of a Node's status" in _refused(chart.agent("self"), "self/status", {"status": change}, content)


FORBIDDEN_CONDITIONS = {
    "Ready": [{"type": "Ready", "status": "False", "reason": "x", "message": "x"}],
    "Ready beside NetworkUnavailable": [*AVAILABLE["status"]["conditions"], {"type": "Ready", "status": "Unknown"}],
    "one of its own": [{"type": "Mine", "status": "True"}],
    "one taken away": [{"type": "MemoryPressure", "$patch": "delete"}],
    "all others taken away": [{"$patch": "replace"}, *AVAILABLE["status"]["conditions"]],
}


@pytest.mark.parametrize("conditions", FORBIDDEN_CONDITIONS.values(), ids=FORBIDDEN_CONDITIONS)
def test_agent_cannot_change_other_conditions(chart: Charted, conditions: Any) -> None:
    said = _refused(chart.agent("self"), "self/status", {"status": {"conditions": conditions}})

    assert "no condition but NetworkUnavailable" in said


FORBIDDEN_METADATA = {
    "a new label": {"labels": {"node-role.kubernetes.io/control-plane": ""}},
    "a label": {"labels": {"kubernetes.io/hostname": "other"}},
    "a label taken away": {"labels": {"kubernetes.io/os": None}},
    "an annotation": {"annotations": {"pynet.io/node-ip": "8.8.8.8"}},
    "all annotations": {"annotations": None},
    "a finalizer, a field that is not there yet": {"finalizers": ["example.com/never"]},
    "an owner": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "y"}]},
}


@pytest.mark.parametrize("change", FORBIDDEN_METADATA.values(), ids=FORBIDDEN_METADATA)
def test_agent_cannot_change_metadata_with_the_status(chart: Charted, change: Any) -> None:
    said = _refused(chart.agent("self"), "self/status", {"metadata": change, **AVAILABLE}, MERGE)

    assert "may not change a Node's metadata" in said


CONDITION = AVAILABLE["status"]["conditions"][0]


def test_agent_cannot_fill_its_node_with_conditions_of_one_type(chart: Charted) -> None:
    """A merge patch replaces the list, and no rule of the API server's forbids a type that is there twice."""
    others = chart.client.get(f"{NODES}/self")["status"].get("conditions", [])

    said = _refused(chart.agent("self"), "self/status", {"status": {"conditions": [*others, CONDITION, CONDITION]}}, MERGE)

    assert "no condition but NetworkUnavailable" in said


def test_other_ways_to_the_status_end_alike(chart: Charted) -> None:
    agent = chart.agent("self")
    address = {"status": {"addresses": [{"type": "InternalIP", "address": "8.8.8.8"}]}}
    operations = [{"op": "replace", "path": "/status/addresses", "value": address["status"]["addresses"]}]

    assert "no part of a Node's status" in _refused(agent, "self/status", operations, "application/json-patch+json")
    apply = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "self"}, **address}
    forced = "self/status?fieldManager=x&force=true"
    assert "no part of a Node's status" in _refused(agent, forced, apply, "application/apply-patch+yaml")
    for verb, path in (
        ("PUT", "self/status"),
        ("DELETE", "self"),
        ("DELETE", "other"),
        ("PUT", "self"),
        ("POST", "self/proxy"),
    ):
        with pytest.raises(RefusedError, match="forbidden"):
            agent.request(verb, f"{NODES}/{path}", chart.client.get(f"{NODES}/self"))


def test_agent_may_not_patch_nodes_themselves(chart: Charted) -> None:
    agent = chart.agent("self")

    assert "cannot patch" in _refused(agent, "self", {"spec": {"unschedulable": True}})
    assert "cannot patch" in _refused(agent, "self", {"metadata": {"labels": {"x": "y"}}})


def test_policy_holds_for_an_account_with_more_rights_than_the_chart_gives(chart: Charted) -> None:
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "too-much"}}
    role["rules"] = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["create", "update", "patch"]}]
    binding = {"apiVersion": role["apiVersion"], "kind": "ClusterRoleBinding", "metadata": {"name": "too-much"}}
    binding["roleRef"] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "too-much"}
    binding["subjects"] = [{"kind": "ServiceAccount", "name": RELEASE, "namespace": "charted-system"}]
    chart.apply([role, binding])
    try:
        agent = chart.agent("self")
        until(lambda: "ValidatingAdmissionPolicy" in _refused(agent, "self", {"spec": {"unschedulable": True}}), "the rights")
        assert "a Node's spec" in _refused(agent, "self", {"spec": {"unschedulable": True}})
        assert "a Node's metadata" in _refused(agent, "self", {"metadata": {"labels": {"x": "y"}}})
        with pytest.raises(RefusedError, match="ValidatingAdmissionPolicy") as refusal:
            agent.create(NODES, node("made", ["10.201.2.0/24"]))
        assert refusal.value.code in {403, 422}
    finally:
        chart.delete([role, binding])


def test_others_are_not_held_by_the_policy(chart: Charted) -> None:
    patch = {"status": {"capacity": {"example.com/gpu": "2"}, "conditions": [{"type": "Ready", "status": "False"}]}}

    chart.client.patch(f"{NODES}/self/status", patch)

    assert _conditions(chart)["Ready"] == "False"


def test_type_checker_has_nothing_to_say_about_the_policy(chart: Charted, tmp_path: Path) -> None:
    """Its warnings are about fields that are not there, which at run time would deny everything."""
    plane = chart.cluster.plane
    only = "--controllers=validatingadmissionpolicy-status-controller"
    program = str(binaries("kube-controller-manager")["kube-controller-manager"])
    with (tmp_path / "log").open("wb") as log:
        command = (program, "--kubeconfig", kubeconfig(plane, tmp_path), only, "--leader-elect=false", "--secure-port=0")
        controller = plane.namespace.popen("setpriv", "--pdeathsig", "KILL", *command, stdout=log, stderr=log)
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    try:
        for name in POLICIES:
            status = until(lambda name=name: chart.client.get(f"{path}/{name}").get("status"), "a status", seconds=60)
            assert status["typeChecking"] == {}, (name, status)
    finally:
        controller.kill()
        controller.wait(10)


def test_agent_can_do_what_it_needs(chart: Charted) -> None:
    agent = chart.agent("self")

    assert {n["metadata"]["name"] for n in agent.get(NODES)["items"]} >= {"self", "other"}
    agent.get(f"{NODES}/self")
    agent.stream(f"{NODES}?watch=1").close()
    agent.get("/apis/networking.k8s.io/v1/servicecidrs")
    agent.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")


def test_agent_posts_its_events(chart: Charted, tmp_path: Path) -> None:
    """Those about itself, and those about peers."""
    plane = chart.cluster.plane
    token = tmp_path / "token"
    token.write_text(chart.token("self"))
    failures: list[str] = []
    with plane.namespace.entered():  # threads that are started here stay there
        api = Api(from_token_files(plane.url, token, plane.ca_file))
        events = Events(api, "self", failures.append, settle=0.0, pace=0.0)
        events.own("uid-self", "PynetNotReady", "a test")
        events.peer("other", "uid-other", 4, state="rejected", reason="a test")
    try:
        until(lambda: sum(events.counts) == 2, "both have been posted or dropped")
    finally:
        events.stop()
        api.close()
    assert not failures
    assert {e["involvedObject"]["name"] for e in chart.client.get(EVENTS)["items"] if "a test" in e["message"]} >= {
        "self",
        "other",
    }


OWN_EVENT = {
    "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "other"},
    "reason": "Test",
    "source": {"component": "pynet", "host": "self"},
    "reportingComponent": "pynet.io/agent",
    "reportingInstance": "self",
}
FORBIDDEN_EVENTS = {
    "about a pod": ({"involvedObject": {"kind": "Pod", "name": "x", "namespace": "default"}}, "about Nodes only"),
    "about nothing": ({"involvedObject": {}}, "about Nodes only"),
    "about a Node and a pod": ({"related": {"kind": "Pod", "name": "x"}}, "about Nodes only"),
    "as kubelet": ({"source": {"component": "kubelet", "host": "self"}}, "its own name only"),
    "as the scheduler": ({"reportingComponent": "default-scheduler"}, "its own name only"),
    "as nobody": ({"source": {}, "reportingComponent": ""}, "its own name only"),
    "as another agent": ({"source": {"component": "pynet", "host": "other"}}, "its own name only"),
    "as an instance of another's": ({"reportingInstance": "other"}, "its own name only"),
}


@pytest.mark.parametrize(("change", "why"), FORBIDDEN_EVENTS.values(), ids=FORBIDDEN_EVENTS)
def test_agent_can_write_no_other_events(chart: Charted, change: Any, why: str) -> None:
    agent = chart.agent("self")

    assert _said(agent, EVENTS, OWN_EVENT) == ""
    assert why in _said(agent, EVENTS, OWN_EVENT | change)


def test_token_that_names_no_node_writes_no_events(chart: Charted) -> None:
    assert "its own name only" in _said(chart.as_token(chart.unbound_token()), EVENTS, OWN_EVENT)


def test_agent_cannot_change_events_nor_write_them_elsewhere(chart: Charted) -> None:
    agent = chart.agent("self")
    there = chart.client.create(EVENTS, {"metadata": {"generateName": "x-"}, "involvedObject": {"namespace": "default"}})
    name = there["metadata"]["name"]

    with pytest.raises(RefusedError, match="cannot patch"):
        agent.patch(f"{EVENTS}/{name}", {"message": "changed"}, MERGE)
    with pytest.raises(RefusedError, match="cannot delete"):
        agent.delete(f"{EVENTS}/{name}")
    elsewhere = OWN_EVENT | {"involvedObject": {"kind": "Node", "name": "self", "namespace": "kube-system"}}
    assert "cannot create" in _said(agent, "/api/v1/namespaces/kube-system/events", elsewhere)
    newer = {"regarding": {"kind": "Node", "name": "self"}, "action": "x", "reason": "x", "type": "Normal"}
    assert "cannot create" in _said(agent, "/apis/events.k8s.io/v1/namespaces/default/events", newer)


def test_agent_can_do_nothing_else(chart: Charted) -> None:
    anybody = _rights(chart, chart.unbound_token("default"))

    assert _rights(chart, chart.token("self")) - anybody == {
        ("nodes", "", "get list watch"),
        ("nodes/status", "", "patch"),
        ("servicecidrs.networking.k8s.io", "", "list"),
        ("endpointslices.discovery.k8s.io", "kubernetes", "get"),
        ("events", "", "create"),
    }
    assert _rights(chart, chart.token("self"), "kube-system") - anybody == {
        ("nodes", "", "get list watch"),
        ("nodes/status", "", "patch"),
        ("servicecidrs.networking.k8s.io", "", "list"),
    }


def _rights(chart: Charted, token: str, namespace: str = "default") -> set[tuple[str, str, str]]:
    """What kubectl says that the token's holder may do: (resource or URL, name, verbs)."""
    lines = chart.kubectl("auth", "can-i", "--list", "--no-headers", "-n", namespace, token=token).splitlines()
    found = set()
    for line in lines:
        resource, urls, names, verbs = re.fullmatch(r"(\S*)\s*\[(.*?)\]\s*\[(.*?)\]\s*\[(.*?)\]", line.strip()).groups()
        found.add((resource or urls, names, verbs))
    return found
