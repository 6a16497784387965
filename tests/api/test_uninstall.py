"""The uninstall hook's program against the real API server, with the rights and the manifests that the chart gives it.

No controller and no kubelet run here: the tests make the pods of the DaemonSets, and write what kubelets would.
"""

from __future__ import annotations

import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from pynet.drivers.credentials import from_token_files
from pynet.drivers.kube import Api
from pynet.uninstall import Outcome, Uninstall

from tests.api.charted import NAMESPACE, PODS, RELEASE, SETS, Charted
from tests.support import chart as charts
from tests.support.apiclient import MERGE, RefusedError
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

AGENTS = {"app.kubernetes.io/name": "pynet", "app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "agent"}
CLEANUP = f"{RELEASE}-cleanup"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"


class Hook:
    """The Job's program, running in a thread with the hook's own token; what it says is in ``said``."""

    def __init__(self, chart: Charted, folder: Path) -> None:
        self.chart = chart
        self.client = chart.client
        self.folder = folder
        self.cleanup = json.loads(charts.one(chart.hooks, "ConfigMap")["data"]["daemonset.json"])
        self.said: list[str] = []
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self, seconds: float = 20) -> None:
        token = self.folder / "token"
        token.write_text(self.chart.unbound_token(f"{RELEASE}-uninstall"))
        self._thread = threading.Thread(target=self._run, args=(token, seconds), daemon=True)
        self._thread.start()

    def _run(self, token: Path, seconds: float) -> None:
        plane = self.chart.cluster.plane
        selector = ",".join(f"{key}={value}" for key, value in AGENTS.items())
        with plane.namespace.entered():
            api = Api(from_token_files(plane.url, token, plane.ca_file))
            try:
                work = Uninstall(api, NAMESPACE, seconds=seconds, say=self.said.append)
                self.outcome = work.run(RELEASE, selector, self.cleanup)
            except Exception as error:
                self.error = error
            finally:
                api.close()

    def end(self, seconds: float = 30) -> Outcome:
        assert self._thread
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
            if any("nodes have answered" in line for line in self.said):
                self.collect_garbage()
        assert not self._thread.is_alive(), self.said
        if self.error:
            raise self.error
        assert self.outcome
        return self.outcome

    # What controllers and kubelets do.

    def collect_garbage(self) -> None:
        """Pods of the cleanup DaemonSet go once it is gone."""
        if _get(self.client, f"{SETS}/{CLEANUP}") is None:
            for pod in self.client.get(f"{PODS}?labelSelector=app.kubernetes.io/component=cleanup")["items"]:
                _remove(self, pod["metadata"]["name"])

    def scheduled(self, *nodes: str) -> dict[str, str]:
        """The cleanup DaemonSet, once it is there, gets a pod on each node; returns their names."""
        made = self.set()
        names = {node: self.pod_of(made, node) for node in nodes}
        status = {"observedGeneration": 1, "desiredNumberScheduled": len(nodes), "numberReady": 0}
        self.client.patch(f"{SETS}/{CLEANUP}/status", {"status": status | _ZEROES}, MERGE)
        return names

    def set(self) -> Any:
        """The cleanup DaemonSet, once it is there."""

        def there() -> Any:
            assert not self.error, self.error
            return _get(self.client, f"{SETS}/{CLEANUP}")

        return until(there, "the cleanup DaemonSet", seconds=20)

    def pod_of(self, made: Any, node: str) -> str:
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "controller": True}
        owner |= {"name": made["metadata"]["name"], "uid": made["metadata"]["uid"]}
        return self.chart.pod(node, "default", labels=made["spec"]["selector"]["matchLabels"], ownerReferences=[owner])

    def ends(self, pod: str, message: str, code: int = 0) -> None:
        """The cleanup's container has ended with these words."""
        self.reports(pod, {"terminated": {"exitCode": code, "message": message}})

    def reports(self, pod: str, state: dict[str, Any], last: dict[str, Any] | None = None) -> None:
        status = {"name": "cleanup", "image": "x", "imageID": "x", "ready": False, "restartCount": 0, "state": state}
        status["lastState"] = last or {}
        self.client.patch(f"{PODS}/{pod}/status", {"status": {"initContainerStatuses": [status]}}, MERGE)


_ZEROES = {"currentNumberScheduled": 0, "numberMisscheduled": 0}
CLEAN = '{"stays": []}'


def _get(client: Any, path: str) -> Any:
    try:
        return client.get(path)
    except RefusedError as refusal:
        if refusal.code != 404:
            raise
        return None


@pytest.fixture(scope="module")
def installed(whole_session: Cluster) -> Iterator[Charted]:
    made = Charted(whole_session)
    objects = [*made.objects, *(hook for hook in made.hooks if hook["kind"] not in {"Job", "Pod"})]
    made.apply(objects)
    yield made
    made.delete(objects)


@pytest.fixture
def hook(installed: Charted, cluster: Cluster, tmp_path: Path) -> Iterator[Hook]:
    installed.apply([charts.one(installed.objects, "DaemonSet")])
    for name in ("one", "two"):
        _node(cluster, name, "True")
    yield Hook(installed, tmp_path)
    for kind in (SETS, PODS, EVENTS):
        for item in installed.client.get(kind)["items"]:
            installed.client.request("DELETE", f"{kind}/{item['metadata']['name']}?gracePeriodSeconds=0")
    installed.hang_up()


def _node(cluster: Cluster, name: str, ready: str) -> None:
    conditions = [{"type": "Ready", "status": ready, "reason": "x", "message": "x"}]
    cluster.add(name, [], [])
    cluster.client.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": conditions}})


def test_both_daemon_sets_go_and_every_node_is_named(hook: Hook) -> None:
    hook.start()
    pods = hook.scheduled("one", "two")
    assert _get(hook.client, f"{SETS}/{RELEASE}") is None, "the agents go before anything is cleaned"
    hook.ends(pods["one"], CLEAN)
    hook.ends(pods["two"], '{"stays": ["bridge pynet0: pods still use it (veth1)"]}')

    outcome = hook.end()

    assert outcome.cleaned == ("one", "two")
    assert outcome.stays == ("two: bridge pynet0: pods still use it (veth1)",)
    assert "one: clean" in hook.said
    event = hook.client.get(EVENTS)["items"][0]
    assert (event["type"], event["reason"], event["involvedObject"]["name"]) == ("Warning", "PynetStays", RELEASE)
    assert "two: bridge pynet0" in event["message"]


def _remove(hook: Hook, *pods: str) -> None:
    """The garbage collector's and kubelet's part."""
    for pod in pods:
        hook.client.request("DELETE", f"{PODS}/{pod}?gracePeriodSeconds=0")


def test_no_event_where_nothing_stays(hook: Hook) -> None:
    hook.start()
    pods = hook.scheduled("one")
    hook.ends(pods["one"], CLEAN)

    assert hook.end() == Outcome(("one",), ())
    assert hook.client.get(EVENTS)["items"] == []


def test_cleaning_waits_for_the_agents_to_be_gone(hook: Hook) -> None:
    agent = hook.chart.pod("one", labels=AGENTS)
    hook.start()
    until(lambda: _get(hook.client, f"{SETS}/{RELEASE}") is None, "the agents' DaemonSet is gone")
    for _ in range(3):  # looks
        threading.Event().wait(0.5)
        assert _get(hook.client, f"{SETS}/{CLEANUP}") is None

    _remove(hook, agent)

    pods = hook.scheduled("one")
    hook.ends(pods["one"], CLEAN)
    assert hook.end().stays == ()


def test_node_that_is_down_is_named_and_not_waited_for(hook: Hook, cluster: Cluster) -> None:
    _node(cluster, "down", "Unknown")
    hook.chart.pod("down", labels=AGENTS)  # its agent's pod never goes
    hook.start(seconds=60)
    pods = hook.scheduled("one", "down")
    hook.ends(pods["one"], CLEAN)

    outcome = hook.end(20)

    assert outcome.cleaned == ("one",)
    assert outcome.stays == ("down: not cleaned (the node is down); run `pynet cleanup` there",)
    assert any("do not go, on: down" in line for line in hook.said)


def test_node_without_an_answer_is_named_when_time_is_up(hook: Hook) -> None:
    hook.start(seconds=5)
    pods = hook.scheduled("one", "two")
    hook.ends(pods["one"], CLEAN)
    hook.reports(pods["two"], {"waiting": {"reason": "ErrImageNeverPull", "message": "no such image"}})

    outcome = hook.end()

    assert outcome.cleaned == ("one",)
    assert outcome.stays == ("two: not cleaned (ErrImageNeverPull: no such image); run `pynet cleanup` there",)
    assert _get(hook.client, f"{SETS}/{CLEANUP}") is None


def test_words_of_a_cleanup_that_failed_are_passed_on(hook: Hook) -> None:
    hook.start(seconds=4)
    pods = hook.scheduled("one", "two")
    hook.ends(pods["one"], "Traceback: no such\nfile", code=1)
    hook.reports(
        pods["two"], {"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": {"exitCode": 137, "message": "killed"}}
    )

    assert hook.end().stays == (
        "one: not cleaned (exit status 1: Traceback: no such file); run `pynet cleanup` there",
        "two: not cleaned (exit status 137: killed); run `pynet cleanup` there",
    )


def test_cleanup_that_failed_once_and_then_succeeds_counts(hook: Hook) -> None:
    hook.start()
    pods = hook.scheduled("one")
    hook.ends(pods["one"], "killed", code=137)
    threading.Event().wait(1.5)  # it looks once a second
    hook.ends(pods["one"], CLEAN)

    assert hook.end().stays == ()


def test_words_that_are_not_a_result_are_passed_on(hook: Hook) -> None:
    hook.start()
    pods = hook.scheduled("one")
    hook.ends(pods["one"], "not JSON")

    assert hook.end().stays == ("one: the cleanup's words are not understood: not JSON",)


def test_node_of_a_pod_that_is_not_scheduled_is_named(hook: Hook) -> None:
    hook.start(seconds=4)
    made = hook.set()
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "controller": True, "name": CLEANUP, "uid": made["metadata"]["uid"]}
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["two"]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    labels = made["spec"]["selector"]["matchLabels"]
    pod = {"metadata": {"name": "waits", "labels": labels, "ownerReferences": [owner]}}
    pod["spec"] = {"affinity": affinity, "containers": [{"name": "c", "image": "none"}]}
    hook.client.create(PODS, pod)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "Insufficient cpu"}
    hook.client.patch(f"{PODS}/waits/status", {"status": {"conditions": [condition]}})

    assert hook.end().stays == ("two: not cleaned (not scheduled: Insufficient cpu); run `pynet cleanup` there",)


def test_no_pods_at_all_are_said(hook: Hook) -> None:
    hook.start(seconds=3)

    stays = hook.end().stays

    assert len(stays) == 1
    assert "does kube-controller-manager run?" in stays[0]


def test_it_does_not_end_before_the_controller_has_made_every_pod(hook: Hook) -> None:
    hook.start()
    made = hook.set()
    status = {"observedGeneration": 1, "desiredNumberScheduled": 2, "numberReady": 0}
    hook.client.patch(f"{SETS}/{CLEANUP}/status", {"status": status | _ZEROES}, MERGE)
    hook.ends(hook.pod_of(made, "one"), CLEAN)
    until(lambda: "one: clean" in hook.said, "the first node's result")
    threading.Event().wait(1.5)
    hook.ends(hook.pod_of(made, "two"), CLEAN)

    assert hook.end().cleaned == ("one", "two")


def test_it_starts_over_after_an_attempt_that_was_cut_off(hook: Hook) -> None:
    """The earlier DaemonSet takes its time to go, and a pod of it has a result from before the agents were gone."""
    earlier = {**hook.cleanup, "metadata": {**hook.cleanup["metadata"], "finalizers": ["example.com/slow"]}}
    old = hook.client.create(SETS, earlier)
    hook.ends(hook.pod_of(old, "one"), '{"stays": ["an old result"]}')
    hook.client.delete(f"{SETS}/{RELEASE}")  # the earlier attempt came as far as that
    hook.start()
    threading.Event().wait(2.5)
    assert hook.set()["metadata"]["uid"] == old["metadata"]["uid"], "still there"

    hook.client.patch(f"{SETS}/{CLEANUP}", {"metadata": {"finalizers": None}}, MERGE)

    until(lambda: (_get(hook.client, f"{SETS}/{CLEANUP}") or old)["metadata"]["uid"] != old["metadata"]["uid"], "a new one")
    pods = hook.scheduled("one")
    hook.ends(pods["one"], CLEAN)
    assert hook.end(40) == Outcome(("one",), ())


def test_daemon_set_that_never_goes_ends_in_an_error(hook: Hook) -> None:
    hook.client.create(SETS, {**hook.cleanup, "metadata": {**hook.cleanup["metadata"], "finalizers": ["example.com/slow"]}})
    hook.start(seconds=3)
    try:
        with pytest.raises(Exception, match="409"):
            hook.end()
    finally:
        hook.client.patch(f"{SETS}/{CLEANUP}", {"metadata": {"finalizers": None}}, MERGE)


def test_an_api_server_that_is_away_for_a_while_is_waited_for(hook: Hook, cluster: Cluster) -> None:
    hook.start(seconds=60)
    pods = hook.scheduled("one")
    cluster.plane.stop()
    until(lambda: any("trying again" in line for line in hook.said), "it notices", seconds=20)
    cluster.plane.start()
    hook.ends(pods["one"], CLEAN)

    assert hook.end(60).cleaned == ("one",)


def test_hook_may_do_what_it_does_and_nothing_else(hook: Hook) -> None:
    token = hook.chart.unbound_token(f"{RELEASE}-uninstall")
    said = hook.chart.kubectl("auth", "can-i", "--list", "--no-headers", "-n", NAMESPACE, token=token)
    rights = {re.sub(r"\s+", " ", line) for line in said.splitlines() if not line.startswith((" ", "self"))}

    assert rights == {
        "daemonsets.apps [] [] [create]",
        f"daemonsets.apps [] [{RELEASE}] [get delete]",
        f"daemonsets.apps [] [{CLEANUP}] [get delete]",
        "pods [] [] [list]",
        "nodes [] [] [list]",
        "events [] [] [create]",
    }
