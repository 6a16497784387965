"""The chart's life with the real helm and API server: install, upgrade, rollback, uninstall.

No controller runs here: what becomes of the uninstall hook's Job is written by the tests.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.charted import kubeconfig
from tests.support import chart
from tests.support.apiclient import RefusedError
from tests.support.netns import CommandError
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.cluster import Cluster

RELEASE = "life"  # what the chart makes for the whole cluster must not meet that of other tests
NAMESPACE = "life-system"
JOB = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs/{RELEASE}-uninstall"
SET = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{RELEASE}"
KINDS = (
    *(f"/api/v1/namespaces/{NAMESPACE}/{kind}" for kind in ("serviceaccounts", "configmaps", "pods", "secrets")),
    *(f"/apis/{group}/namespaces/{NAMESPACE}/{kind}" for group, kind in (("apps/v1", "daemonsets"), ("batch/v1", "jobs"))),
    *(
        f"/apis/rbac.authorization.k8s.io/v1/{kind}"
        for kind in ("clusterroles", "clusterrolebindings", "roles", "rolebindings")
    ),
    *(f"/apis/admissionregistration.k8s.io/v1/validatingadmissionpol{kind}" for kind in ("icies", "icybindings")),
)


class Release:
    """helm, run in the control plane's namespace."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.client = cluster.client
        self._run = cluster.plane.namespace
        self._command = (chart.helm(), "--kubeconfig", kubeconfig(cluster.plane, folder), "--namespace", NAMESPACE)

    def helm(self, *arguments: str) -> str:
        return self._run.run(*self._command, *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return self._run.popen(*self._command, *arguments, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def get(self, path: str) -> Any:
        try:
            return self.client.get(path)
        except RefusedError as refusal:
            if refusal.code != 404:
                raise
            return None

    def left(self) -> list[str]:
        """Objects of the release, of whatever kind the chart or helm makes."""
        names = [f"{kind}/{each['metadata']['name']}" for kind in KINDS for each in self.client.get(kind)["items"]]
        return [name for name in names if RELEASE in name.rpartition("/")[2] or name.split("/")[-1].startswith("sh.helm")]

    def versions(self) -> dict[str, str]:
        """The resourceVersion of every object there is, of a kind that the chart makes."""
        items = [each["metadata"] for kind in KINDS for each in self.client.get(kind)["items"]]
        return {each["uid"]: each["resourceVersion"] for each in items}

    def job_ends(self, how: str, before: str) -> None:
        """The Job's controller says Complete or Failed."""
        until(lambda: self.get(JOB), "the hook's Job", seconds=20)
        now = "2026-01-01T00:00:00Z"
        conditions = [{"type": each, "status": "True", "reason": "x", "message": "x"} for each in (before, how)]
        status: dict[str, Any] = {"startTime": now, "conditions": conditions}
        if how == "Complete":
            status |= {"completionTime": now, "succeeded": 1}
        self.client.patch(f"{JOB}/status", {"status": status})


@pytest.fixture
def release(cluster: Cluster, tmp_path: Path) -> Iterator[Release]:
    made = Release(cluster, tmp_path)
    made.helm("install", RELEASE, str(chart.CHART), "--create-namespace")
    yield made
    made.helm("uninstall", RELEASE, "--no-hooks", "--ignore-not-found")


def test_install_makes_no_hook_and_upgrade_and_rollback_run_none(release: Release) -> None:
    checksum = release.get(SET)["spec"]["template"]["metadata"]["annotations"]["pynet.io/config-checksum"]

    release.helm("upgrade", RELEASE, str(chart.CHART), "--reuse-values", "--set", "config.cni.mtu=1400")
    upgraded = release.get(SET)["spec"]["template"]["metadata"]["annotations"]["pynet.io/config-checksum"]
    release.helm("rollback", RELEASE, "1")
    back = release.get(SET)["spec"]["template"]["metadata"]["annotations"]["pynet.io/config-checksum"]

    assert upgraded != checksum == back
    assert [name for name in release.left() if "uninstall" in name or "test" in name] == []


def test_upgrade_from_values_of_an_older_chart_works(release: Release) -> None:
    """With --reuse-values helm hands the old chart's defaults to the new one: what is new has no value then."""
    new = ("commonLabels", "commonAnnotations", "daemonSetLabels", "daemonSetAnnotations", "global")

    release.helm("upgrade", RELEASE, str(chart.CHART), *(f"--set={key}=null" for key in new))


def test_uninstall_waits_for_the_hook_and_leaves_no_object(release: Release) -> None:
    helm = release.start("uninstall", RELEASE, "--timeout", "60s")
    until(lambda: release.get(JOB), "the hook's Job", seconds=20)
    assert release.get(SET), "nothing of the release goes before the hook has ended"
    release.job_ends("Complete", "SuccessCriteriaMet")

    said, _ = helm.communicate(timeout=60)

    assert helm.returncode == 0, said
    assert release.left() == []


def test_uninstall_that_failed_can_be_run_again(release: Release) -> None:
    first = release.start("uninstall", RELEASE, "--timeout", "60s")
    release.job_ends("Failed", "FailureTarget")
    said, _ = first.communicate(timeout=60)
    assert first.returncode != 0, said
    failed = release.get(JOB)["metadata"]["uid"]  # kept, for its log
    assert release.get(SET), "helm deletes nothing then"

    second = release.start("uninstall", RELEASE, "--timeout", "60s")
    until(lambda: (release.get(JOB) or {"metadata": {"uid": failed}})["metadata"]["uid"] != failed, "another Job", seconds=20)
    release.job_ends("Complete", "SuccessCriteriaMet")
    said, _ = second.communicate(timeout=60)

    assert second.returncode == 0, said
    assert release.left() == []


def test_second_release_of_the_name_in_another_namespace_is_refused_and_changes_nothing(release: Release) -> None:
    """What the chart makes for the whole cluster belongs to the first."""
    before = release.versions()

    with pytest.raises(CommandError, match="cannot be imported into the current release"):
        release.helm("install", RELEASE, str(chart.CHART), "--namespace", "life-elsewhere", "--create-namespace")
    release.helm("uninstall", RELEASE, "--namespace", "life-elsewhere", "--ignore-not-found")

    assert release.versions() == before


@pytest.mark.parametrize("name", ["123", "1e3", "true"])
def test_release_may_have_a_name_that_yaml_takes_for_something_else(release: Release, name: str) -> None:
    release.helm("install", name, str(chart.CHART))
    try:
        assert release.get(f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{name}")
    finally:
        release.helm("uninstall", name, "--no-hooks")


def test_notes_say_how_to_see_that_it_works(release: Release) -> None:
    notes = json.loads(release.helm("status", RELEASE, "-o", "json"))["info"]["notes"]

    assert f"kubectl -n {NAMESPACE} rollout status daemonset/{RELEASE}" in notes
    assert "pynet status" in notes
    assert "needs kube-proxy" in notes
    assert "no ValidatingAdmissionPolicy" not in notes
