"""The chart, rendered by the real helm: what it makes, and what can be set."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pynet import config
from pynet.config import Config

from tests.support.chart import (
    CHART,
    REPOSITORY,
    agent_config,
    agent_set,
    cleanup_set,
    helm,
    is_hook,
    one,
    refusal,
    render,
    values,
)

Json = dict[str, Any]


def _pod(*flags: str) -> Json:
    spec: Json = agent_set(*flags)["spec"]["template"]["spec"]
    return spec


def _container(*flags: str) -> Json:
    found: Json = _pod(*flags)["containers"][0]
    return found


def _job(*flags: str) -> Json:
    return one(render(*flags), "Job")


def _config(*flags: str) -> Config:
    return config.parse(agent_config(*flags))


def _pods(*flags: str) -> dict[str, Json]:
    """Every pod template that the chart makes, hooks included."""
    objects = render(*flags)
    found = {each["kind"]: each["spec"]["template"] for each in objects if each["kind"] in {"DaemonSet", "Job"}}
    return found | {"Pod": one(objects, "Pod"), "cleanup": cleanup_set(*flags)["spec"]["template"]}


def _containers(*flags: str) -> dict[str, Json]:
    return {
        f"{kind} {container['name']}": container
        for kind, pod in _pods(*flags).items()
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]
    }


# ---- what is rendered


def test_chart_is_sound() -> None:
    done = subprocess.run([helm(), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("version", "policy"), [("1.27.0", False), ("1.29.9", False), ("1.30.0", True), ("1.36.1", True)])
def test_admission_policy_comes_where_kubernetes_has_it(version: str, policy: bool) -> None:
    kinds = {each["kind"] for each in render("--kube-version", version)}

    assert ("ValidatingAdmissionPolicy" in kinds) is policy
    assert ("ValidatingAdmissionPolicyBinding" in kinds) is policy


def test_kubernetes_before_1_27_is_refused() -> None:
    assert "1.27" in refusal("--kube-version", "1.26.15")


def test_rendered_manifest_for_those_without_helm_is_up_to_date() -> None:
    environment = {**os.environ, "HELM": helm()}
    done = subprocess.run(
        [REPOSITORY / "deploy/render.sh", "--check"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_no_container_has_more_than_it_needs() -> None:
    for name, container in _containers().items():
        context = container["securityContext"]
        added = context["capabilities"].get("add", [])
        assert context["capabilities"]["drop"] == ["ALL"], name
        assert added == (["NET_ADMIN", "NET_RAW"] if name in {"DaemonSet agent", "cleanup cleanup"} else []), name
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False), name
        assert "privileged" not in context, name
        assert container["resources"]["limits"]["memory"], name
    for name, pod in _pods().items():
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name


def test_only_the_host_paths_that_are_needed_are_mounted() -> None:
    paths = {volume["hostPath"]["path"] for volume in _pod()["volumes"] if "hostPath" in volume}

    assert paths == {
        *("/etc/cni/net.d", "/opt/cni/bin", "/var/lib/pynet", "/run/pynet"),
        *("/proc/sys/net", "/run/xtables.lock"),
    }


def test_agent_cannot_write_plugins_and_cleanup_can() -> None:
    def mount(container: Json) -> Json:
        found: Json = next(each for each in container["volumeMounts"] if each["name"] == "cni-bin")
        return found

    assert mount(_container())["readOnly"] is True
    assert "readOnly" not in mount(cleanup_set()["spec"]["template"]["spec"]["initContainers"][0])


def test_without_net_raw_neither_the_capability_nor_the_lock_is_there() -> None:
    assert _container("--set", "netRaw=false")["securityContext"]["capabilities"]["add"] == ["NET_ADMIN"]
    for pod in _pods("--set", "netRaw=false").values():
        assert "xtables" not in json.dumps(pod)


def test_agent_runs_on_every_linux_node_before_all_else() -> None:
    pod = _pod()

    assert pod["hostNetwork"] is True
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert pod["priorityClassName"] == "system-node-critical"


def test_probes_ask_where_health_is_served() -> None:
    there = ("--set", "config.health.address=127.0.0.9", "--set", "config.health.port=9800")
    for probe in ("livenessProbe", "readinessProbe"):
        assert _container()[probe]["httpGet"]["host"] == "127.0.0.1"
        assert _container()[probe]["httpGet"]["port"] == Config().health.port
        assert _container(*there)[probe]["httpGet"]["host"] == "127.0.0.9"
        assert _container(*there)[probe]["httpGet"]["port"] == 9800
    assert _container("--set", "config.metrics.port=9900")["ports"][0]["containerPort"] == 9900


def test_volumes_of_every_mount_are_there() -> None:
    for name, pod in _pods().items():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, (name, container["name"])


# ---- what can be set

EVERYWHERE = {
    "image.digest": ("sha256:" + "a" * 64, lambda c: c["image"] == "pynet@sha256:" + "a" * 64),
    "image.tag": ("v9", lambda c: c["image"] == "pynet:v9"),
    "image.repository": (
        "registry.example.com:5000/net/pynet",
        lambda c: c["image"].startswith("registry.example.com:5000/net/pynet:"),
    ),
    "image.pullPolicy": ("Always", lambda c: c["imagePullPolicy"] == "Always"),
}


@pytest.mark.parametrize("key", EVERYWHERE)
def test_every_container_follows(key: str) -> None:
    value, follows = EVERYWHERE[key]
    for name, container in _containers("--set", f"{key}={value}").items():
        assert follows(container), name


@pytest.mark.parametrize("key", ["imagePullSecrets", "global.imagePullSecrets"])
def test_every_pod_pulls_with_the_secrets(key: str) -> None:
    for name, pod in _pods("--set", f"{key}[0].name=mine").items():
        assert pod["spec"]["imagePullSecrets"] == [{"name": "mine"}], name


def test_what_works_on_nodes_follows_selinux_priority_selector_and_affinity(tmp_path: Path) -> None:
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    given: Json = {"seLinuxOptions": {"type": "spc_t"}, "priorityClassName": "mine", "affinity": affinity}
    given |= {"nodeSelector": {"pool": "a"}, "tolerations": [{"key": "x", "operator": "Exists"}]}
    pods = _pods(values(tmp_path, given))

    for kind in ("DaemonSet", "cleanup"):
        spec = pods[kind]["spec"]
        assert spec["affinity"] == affinity
        assert spec["priorityClassName"] == "mine"
        assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "a"}
        assert spec["tolerations"] == [{"key": "x", "operator": "Exists"}]
        for container in spec["initContainers"] + [c for c in spec["containers"] if c["name"] == "agent"]:
            assert container["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}


def test_knobs_of_the_daemon_set(tmp_path: Path) -> None:
    given: Json = {
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 3}},
        "podAnnotations": {"pod/annotation": "1"},
        "podLabels": {"pod/label": "1"},
        "daemonSetAnnotations": {"set/annotation": "1"},
        "daemonSetLabels": {"set/label": "1"},
        "extraEnv": [{"name": "NO_PROXY", "value": "*"}],
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "terminationGracePeriodSeconds": 9,
        "probes": {"readiness": {"periodSeconds": 7}, "liveness": {"failureThreshold": 8}},
        "logLevel": "debug",
        "logFormat": "console",
    }
    made = agent_set(values(tmp_path, given))
    pod, container = made["spec"]["template"], made["spec"]["template"]["spec"]["containers"][0]

    assert made["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 3
    assert pod["metadata"]["annotations"]["pod/annotation"] == pod["metadata"]["labels"]["pod/label"] == "1"
    assert made["metadata"]["annotations"]["set/annotation"] == made["metadata"]["labels"]["set/label"] == "1"
    assert {"name": "NO_PROXY", "value": "*"} in container["env"]
    assert container["resources"] == given["resources"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 9
    assert (container["readinessProbe"]["periodSeconds"], container["livenessProbe"]["failureThreshold"]) == (7, 8)
    assert {"--log-level=debug", "--log-format=console"} <= set(container["args"])


def test_common_labels_and_annotations_reach_every_object(tmp_path: Path) -> None:
    for made in render(values(tmp_path, {"commonLabels": {"team": "net"}, "commonAnnotations": {"note": "x"}})):
        assert made["metadata"]["labels"]["team"] == "net", made["kind"]
        assert made["metadata"]["annotations"]["note"] == "x", made["kind"]


def test_labels_of_the_user_cannot_break_the_selectors(tmp_path: Path) -> None:
    wrong = {"app.kubernetes.io/component": "mine", "app.kubernetes.io/name": "mine"}
    given = values(tmp_path, {"commonLabels": wrong, "podLabels": wrong, "daemonSetLabels": wrong})

    for made in (agent_set(given), cleanup_set(given)):
        labels = made["spec"]["template"]["metadata"]["labels"]
        assert made["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_folders_elsewhere_are_mounted_and_in_the_configuration() -> None:
    k3s = (f"--values={CHART}/values-k3s.yaml",)
    settings = _config(*k3s)

    assert settings.cni.conf_dir == "/var/lib/rancher/k3s/agent/etc/cni/net.d"
    assert settings.cni.bin_dir == "/var/lib/rancher/k3s/data/cni"
    mounts = {mount["name"]: mount["mountPath"] for mount in _container(*k3s)["volumeMounts"]}
    assert (mounts["cni-conf"], mounts["cni-bin"]) == (settings.cni.conf_dir, settings.cni.bin_dir)
    volumes = {v["name"]: v["hostPath"]["path"] for v in _pod(*k3s)["volumes"] if "hostPath" in v}
    assert (volumes["cni-conf"], volumes["cni-bin"]) == (settings.cni.conf_dir, settings.cni.bin_dir)


def test_folders_of_another_user_can_be_written_on_kubespray() -> None:
    for name, container in _containers(f"--values={CHART}/values-kubespray.yaml").items():
        if name in {"DaemonSet install-plugins", "DaemonSet agent", "cleanup cleanup"}:
            assert "DAC_OVERRIDE" in container["securityContext"]["capabilities"]["add"], name


def test_api_server_of_the_user_is_used_by_agents_and_by_the_uninstall_job() -> None:
    flags = ("--set", "apiServer=https://lb.example.com:6443")

    assert "--api-server=https://lb.example.com:6443" in _container(*flags)["args"]
    assert "--api-server=https://lb.example.com:6443" in _job(*flags)["spec"]["template"]["spec"]["containers"][0]["command"]


def test_account_and_roles_of_the_user_are_taken() -> None:
    flags = ("--set", "serviceAccount.create=false", "--set", "serviceAccount.name=mine", "--set", "rbac.create=false")
    objects = [each for each in render(*flags) if not is_hook(each)]

    assert {each["kind"] for each in objects} & {
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    } == set()
    assert _pod(*flags)["serviceAccountName"] == "mine"
    for what in ("node-status", "node-events"):
        assert "serviceaccount:pynet-system:mine" in json.dumps(one(objects, "ValidatingAdmissionPolicy", f"pynet-{what}"))


def test_monitoring_objects_come_when_asked_for() -> None:
    assert {"PodMonitor", "PrometheusRule"} & {each["kind"] for each in render()} == set()
    objects = render(
        *(part for key in ("podMonitor", "prometheusRule", "dashboard") for part in ("--set", f"{key}.enabled=true"))
    )

    monitor = one(objects, "PodMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == agent_set()["spec"]["selector"]["matchLabels"]
    port = _container()["ports"][0]["name"]
    assert [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]] == [port]
    assert monitor["spec"]["podMetricsEndpoints"][0]["relabelings"][0]["targetLabel"] == "node"
    assert one(objects, "PrometheusRule")["spec"] == yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    dashboard = one(objects, "ConfigMap", "pynet-dashboard")
    assert json.loads(dashboard["data"]["pynet.json"]) == json.loads((CHART / "files/dashboard.json").read_text())
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


# ---- hooks


def test_hooks_run_at_uninstall_and_test_and_never_at_an_upgrade() -> None:
    hooks = {(each["kind"], each["metadata"]["annotations"]["helm.sh/hook"]) for each in render() if is_hook(each)}

    assert {event for _kind, event in hooks} == {"pre-delete", "test"}
    assert ("Job", "pre-delete") in hooks
    assert ("Pod", "test") in hooks


def test_kubectl_knows_which_container_is_meant() -> None:
    template = agent_set()["spec"]["template"]

    name = template["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]
    assert name in {container["name"] for container in template["spec"]["containers"]}


def test_helm_shows_what_the_test_pod_said() -> None:
    pod = next(each for each in render() if is_hook(each) and each["kind"] == "Pod")

    assert pod["metadata"]["annotations"]["helm.sh/hook-output-log-policy"] == "hook-succeeded,hook-failed"


def test_uninstall_job_comes_after_its_rights_and_knows_the_agents() -> None:
    hooks = [each for each in render() if is_hook(each) and each["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"]
    weights = {each["kind"]: int(each["metadata"]["annotations"]["helm.sh/hook-weight"]) for each in hooks}
    command = _job()["spec"]["template"]["spec"]["containers"][0]["command"]
    selector = next(part.partition("=")[2] for part in command if part.startswith("--agent-selector="))

    assert all(weights[kind] < weights["Job"] for kind in weights.keys() - {"Job"})
    assert dict(part.split("=") for part in selector.split(",")) == agent_set()["spec"]["selector"]["matchLabels"]
    assert f"--agent={agent_set()['metadata']['name']}" in command
    assert "hook-succeeded" in _job()["metadata"]["annotations"]["helm.sh/hook-output-log-policy"]


def test_uninstall_job_has_an_end_and_does_not_go_to_nodes_that_are_down() -> None:
    spec = _job("--set", "uninstall.timeoutSeconds=60")["spec"]

    assert 60 < spec["activeDeadlineSeconds"] <= 90
    for toleration in spec["template"]["spec"]["tolerations"]:
        assert toleration.get("key") not in {None, "node.kubernetes.io/unreachable"}


def test_cleanup_sees_what_the_agent_sees_and_is_noagent_set() -> None:
    cleanup, agent = cleanup_set(), agent_set()
    mounts = {m["name"]: m["mountPath"] for m in cleanup["spec"]["template"]["spec"]["initContainers"][0]["volumeMounts"]}

    assert mounts == {mount["name"]: mount["mountPath"] for mount in _container()["volumeMounts"]}
    assert cleanup["spec"]["template"]["spec"]["volumes"] == agent["spec"]["template"]["spec"]["volumes"]
    assert cleanup["spec"]["selector"]["matchLabels"] != agent["spec"]["selector"]["matchLabels"]
    assert cleanup["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def _texts(made: object) -> Iterator[object]:
    """Everything that names an object or is a label, wherever it is."""
    if isinstance(made, list):
        for each in made:
            yield from _texts(each)
    elif isinstance(made, dict):
        for key, value in made.items():
            if key in {"name", "namespace", "serviceAccountName"}:
                yield value
            elif key in {"labels", "annotations", "matchLabels"}:
                yield from value.values()
            else:
                yield from _texts(value)


@pytest.mark.parametrize("name", ["123", "1e3", "0x1f", "true", "null", "n", "2026-11-21"])
def test_names_that_yaml_takes_for_something_else_stay_names(name: str) -> None:
    objects = [*render(release=name, namespace=name), json.loads(_daemon_set_of_the_hook(name))]

    assert [text for text in _texts(objects) if not isinstance(text, str)] == []
    assert {one(objects[:-1], "DaemonSet")["metadata"][key] for key in ("name", "namespace")} == {name}


def _daemon_set_of_the_hook(name: str) -> str:
    hooks = [each for each in render(release=name, namespace=name) if is_hook(each)]
    return str(one(hooks, "ConfigMap")["data"]["daemonset.json"])


@pytest.mark.parametrize("name", ["x" * 53, "x" * 49 + "-yy", "x" * 49 + ".yy"])
def test_objects_of_a_release_with_the_longest_of_names_have_names_that_kubernetes_takes(name: str) -> None:
    for made in render(release=name):
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", made["metadata"]["name"])
        assert len(made["metadata"]["name"]) <= 63, "the limit of labels, which Jobs and DaemonSets copy it to"


def test_without_uninstall_there_is_no_hook_for_it() -> None:
    hooks = [each for each in render("--set", "uninstall.enabled=false") if is_hook(each)]

    assert {each["kind"] for each in hooks} == {"Pod"}
