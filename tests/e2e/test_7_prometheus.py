"""Section 8: a real Prometheus finds every agent by the chart's PodMonitor; alerts and dashboard have data; an alert fires."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml

from tests.e2e import workload
from tests.e2e.cluster import NAMESPACE, asset, in_url, run, until
from tests.e2e.release import CHART, RELEASE
from tests.e2e.release import NAMESPACE as PYNET_NAMESPACE
from tests.e2e.workload import pod_name

FLAVOURS = ("ipv4", "dual")
IMAGE = "pynet-e2e/prometheus:1"


@pytest.fixture(scope="session")
def monitoring():
    """What the chart renders for monitoring: by kind."""
    enabled = [part for key in ("podMonitor", "prometheusRule", "dashboard") for part in ("--set", f"{key}.enabled=true")]
    text = run("helm", "template", RELEASE, str(CHART), "--namespace", PYNET_NAMESPACE, *enabled)
    wanted = {"PodMonitor", "PrometheusRule", "ConfigMap"}
    found = [item for item in yaml.safe_load_all(text) if item and item["kind"] in wanted]
    return {item["kind"]: item for item in found if item["kind"] != "ConfigMap" or "dashboard" in item["metadata"]["name"]}


def scrape_config(monitor):
    """What the Prometheus operator makes of a PodMonitor: the parts that ours uses."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    relabel = [{"source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": endpoint["port"], "action": "keep"}]
    for label, value in monitor["spec"]["selector"]["matchLabels"].items():
        name = "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", label)
        relabel.append({"source_labels": [name], "regex": re.escape(value), "action": "keep"})
    relabel += [{_snake(key): value for key, value in rule.items()} for rule in endpoint.get("relabelings", [])]
    return {
        "job_name": f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}",
        "kubernetes_sd_configs": [{"role": "pod", "namespaces": {"names": [monitor["metadata"]["namespace"]]}}],
        "relabel_configs": relabel,
        "metrics_path": endpoint.get("path", "/metrics"),
    }


def _snake(key):
    return re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), key)


@pytest.fixture(scope="session")
def prometheus(cluster, pods, monitoring):
    """A function that asks a Prometheus of the cluster: query(text) -> result vector."""
    cluster.load(asset("E2E_PROMETHEUS_ARCHIVE"))
    rules = json.loads(json.dumps(monitoring["PrometheusRule"]["spec"]))
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "0s"  # nobody waits ten minutes here
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": ["/etc/prometheus/rules.yml"],
        "scrape_configs": [scrape_config(monitoring["PodMonitor"])],
    }
    account = {"kind": "ServiceAccount", "name": "prometheus", "namespace": NAMESPACE}
    spec = {
        "nodeName": cluster.control_plane,
        "serviceAccountName": "prometheus",
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": "c",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "readinessProbe": {"httpGet": {"path": "/-/ready", "port": 9090}, "periodSeconds": 1},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/prometheus"}, {"name": "data", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "config", "configMap": {"name": "prometheus"}}, {"name": "data", "emptyDir": {}}],
    }
    api = "rbac.authorization.k8s.io"
    cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "prometheus", "namespace": NAMESPACE}},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "e2e-prometheus"},
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "e2e-prometheus"},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "e2e-prometheus"},
            "subjects": [account],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "prometheus", "namespace": NAMESPACE},
            "data": {"prometheus.yml": json.dumps(config), "rules.yml": json.dumps(rules)},
        },
        workload.pod("prometheus", {"app": "prometheus"}, spec),
    )
    cluster.wait_ready("pods", "app=prometheus", 1)
    address = next(iter(cluster.pod_addresses("prometheus").values()))

    def query(text):
        ask = f"curl -s -S -m 10 -G --data-urlencode query={shlex.quote(text)} http://{in_url(address)}:9090/api/v1/query"
        answer = json.loads(cluster.exec(pod_name("a", cluster.control_plane), ask))
        assert answer["status"] == "success", f"{text}: {answer}"
        return answer["data"]["result"]

    return query


def test_every_agent_is_scraped(cluster, prometheus):
    def scraped():
        return {sample["metric"]["node"] for sample in prometheus("up == 1")} == set(cluster.nodes)

    until("every agent is up in Prometheus", scraped, 60)


def test_alerts_and_panels_have_data(cluster, prometheus, monitoring):
    # Drift is counted from the first on: let there be some.
    node = cluster.workers[0]
    family, cidr = next(iter(cluster.pod_cidrs(cluster.workers[1]).items()))
    cluster.on_node(node, "ip", f"-{family}", "route", "del", cidr, "protocol", "110")
    until("the drift is seen", lambda: prometheus("rate(pynet_drift_total[1m]) > 0"), 30)
    rules = [rule for group in monitoring["PrometheusRule"]["spec"]["groups"] for rule in group["rules"]]
    queries = {f"{rule['alert']}: {part}": part for rule in rules for part in _compared(rule["expr"])}
    (dashboard,) = monitoring["ConfigMap"]["data"].values()
    for panel in _panels(json.loads(dashboard)):
        for target in panel.get("targets", []):
            queries[f"panel {panel['title']}: {target['expr']}"] = _concrete(target["expr"])
    assert len(queries) > len(rules)
    empty = {name: text for name, text in queries.items() if not prometheus(text)}
    assert empty == {}


def _compared(expression):
    """What an alert compares: healthy or not, each of these is to have data."""
    parts = re.split(r"\s(?:==|!=|>=|<=|>|<|and|or|unless)\s", re.sub(r"\babsent\(", "(", expression.strip()))
    return [part for part in parts if not re.fullmatch(r"\s*[\d.]+\s*", part)]


def _panels(dashboard):
    """Every panel, those in rows too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def _concrete(expression):
    """A panel's expression with Grafana's variables filled in."""
    for variable, value in (("__rate_interval", "1m"), ("__range", "5m"), ("__interval", "15s")):
        expression = re.sub(rf"\$\{{?{variable}\}}?", value, expression)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)


def test_an_alert_fires_when_its_cause_is_there_and_ends_with_it(cluster, prometheus):
    """A static route of somebody else decides about a peer: it goes to the same place, so that nothing breaks."""
    node, peer = cluster.workers
    family, cidr = next(iter(cluster.pod_cidrs(peer).items()))
    route = (f"-{family}", "route")
    theirs = (cidr, "via", cluster.node_addresses(peer)[family], "protocol", "static", "metric", "10")
    firing = f'ALERTS{{alertname="PynetRouteConflict", alertstate="firing", node="{node}"}}'
    assert prometheus(firing) == []
    cluster.on_node(node, "ip", *route, "add", *theirs)
    try:
        until("the alert fires", lambda: prometheus(firing), 60)
    finally:
        cluster.on_node(node, "ip", *route, "del", *theirs)
    until("the alert has ended", lambda: not prometheus(firing), 60)
