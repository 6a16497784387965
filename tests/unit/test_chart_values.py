"""The chart's values: which configuration they make, that schema and agent agree, and that mistakes are named by their keys."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from pynet import config
from pynet.config import Config, ConfigError

from tests.support.chart import CHART, REPOSITORY, agent_config, agent_set, refusal, template, values

Json = dict[str, Any]
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PAGE = REPOSITORY / "docs/reference/chart.md"


def _config(*flags: str) -> Config:
    return config.parse(agent_config(*flags))


# ---- configuration


def test_default_configuration_is_the_agents_with_the_writable_proc_sys() -> None:
    assert _config() == msgspec.structs.replace(Config(), sysctls=config.Sysctls(root="/host/proc/sys"))


def test_configuration_of_the_user_wins(tmp_path: Path) -> None:
    mine = {
        "clusterCIDRs": ["10.0.0.0/8"],
        "cni": {"mtu": 1400, "plugin": "ptp"},
        "sysctls": {"manage": False},
        "forward": "never",
    }
    settings = _config(values(tmp_path, {"config": mine}))

    assert settings.cluster_cidrs == ("10.0.0.0/8",)
    assert (settings.cni.mtu, settings.cni.plugin, settings.cni.conf_dir) == (1400, "ptp", "/etc/cni/net.d")
    assert (settings.sysctls.manage, settings.sysctls.root) == (False, "/host/proc/sys")
    assert settings.forward == "never"


def test_leases_may_be_in_another_folder_of_the_run_folder() -> None:
    assert _config("--set", "config.cni.ipamDir=/run/pynet/other").cni.ipam_dir == "/run/pynet/other"


def test_pods_roll_when_the_configuration_changes_and_not_otherwise() -> None:
    def template_of(*flags: str) -> Json:
        found: Json = agent_set(*flags)["spec"]["template"]
        return found

    assert template_of("--set", "config.cni.mtu=1400") != template_of()
    assert template_of("--set", "hostPaths.state=/var/lib/other") != template_of()
    assert template_of("--set", "uninstall.timeoutSeconds=20", "--set", "podMonitor.enabled=true") == template_of()


CLASHES = {
    "config.cni.confDir": ("/etc/other", "hostPaths.cniConf"),
    "config.cni.binDir": ("/opt/other", "hostPaths.cniBin"),
    "config.stateDir": ("/var/other", "hostPaths.state"),
    "config.runDir": ("/run/other", "hostPaths.run"),
    "config.cni.ipamDir": ("/var/lib/cni", "hostPaths.run"),
    "config.sysctls.root": ("/proc/sys", "/host/proc/sys"),
    "config.metrics.port": ("9794", "config.health.port"),
    "config.routes.metric": ("200", "config.routes.metricBuckets"),
}


@pytest.mark.parametrize("key", CLASHES)
def test_values_that_do_not_go_together_are_refused_with_both_keys(key: str) -> None:
    value, other = CLASHES[key]
    said = refusal("--set", f"{key}={value}")

    assert key in said
    assert other in said


def test_folder_named_twice_alike_is_fine() -> None:
    flags = ("--set", "hostPaths.cniConf=/etc/other", "--set", "config.cni.confDir=/etc/other")

    assert _config(*flags).cni.conf_dir == "/etc/other"


# ---- the schema


def _keys(properties: Json, where: str = "") -> set[str]:
    """Every key that a schema's properties name, sections as well, in dots."""
    found = set()
    for name, about in properties.items():
        found |= {where + name} | _keys(about.get("properties", {}), f"{where}{name}.")
    return found


def _value_keys(values: Json, where: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        found |= {where + name} | (_value_keys(value, f"{where}{name}.") if isinstance(value, dict) else set())
    return found


FREE = (
    "nodeSelector.",
    "resources.",
    "installResources.",
    "dashboard.labels.",
    "config.",
    "seLinuxOptions.",
    "global.",
    "probes.",
)


def test_schema_knows_every_value_and_no_other() -> None:
    known = {key for key in _keys(SCHEMA["properties"]) if not key.startswith(FREE)}

    assert known == {key for key in _value_keys(VALUES) if not key.startswith(FREE)}


def _config_keys(section: type[Any], where: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(section):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            found |= {where + field.encode_name: None} | _config_keys(field.type, f"{where}{field.encode_name}.")
        else:
            found[where + field.encode_name] = field.default
    return found


CONFIG_KEYS = _config_keys(Config)


def test_schema_of_the_configuration_has_the_agents_keys() -> None:
    assert _keys(SCHEMA["properties"]["config"]["properties"]) == set(CONFIG_KEYS)


def _nested(pairs: dict[str, object]) -> Json:
    made: Json = {}
    for key, value in pairs.items():
        *sections, last = key.split(".")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return made


def test_defaults_of_the_agent_pass_the_schema(tmp_path: Path) -> None:
    defaults = msgspec.json.decode(msgspec.json.encode(Config()))
    defaults["sysctls"]["root"] = "/host/proc/sys"

    assert _config(values(tmp_path, {"config": defaults})) == _config()


# For each key: what the agent accepts at its edges, and what it refuses. No key of a choice or a flag is missing: see below.
EDGES: dict[str, tuple[list[object], list[object]]] = {
    "clusterCIDRs": ([["10.0.0.0/8", "fd00::/8"]], [["all"], "10.0.0.0/8", [1]]),
    "serviceCIDRs": ([["10.0.0.0/8"]], [["10.0.0.0"]]),
    "interface": (["eth0", "/^eth/", "can-reach=10.0.0.1"], ["", 1]),
    "routes.protocol": ([5, 255], [0, 256, 4, 186, "110", 1.5]),
    "routes.table": ([1, 4294967295], [0, 255, 4294967296]),
    "routes.metric": ([1], [0, 255]),
    "routes.metricBuckets": ([1], [0, 255]),
    "routes.foreign": (["replace"], ["ignore"]),
    "removalGuard.fraction": ([0, 1, 0.25], [-0.1, 1.1, "0.5"]),
    "removalGuard.minimum": ([0, 2**31], [-1, 2**31 + 1]),
    "masquerade.exceptCIDRs": ([["192.0.2.0/24"]], [["x"]]),
    "forward": (["always", "never"], ["yes"]),
    "cni.confDir": (["/etc/cni/net.d"], ["etc", 1]),
    "cni.confName": (["00-a.conflist"], [".a.conflist", "a.conf", "a" * 60 + ".conflist"]),
    "cni.binDir": (["/opt/cni/bin"], ["bin"]),
    "cni.plugin": (["ptp"], ["macvlan"]),
    "cni.bridgeName": (["b", "b" * 15], ["", "b" * 16, "a/b", "a b"]),
    "cni.mtu": (["auto", 1280, 65535], [1279, 65536, "1500"]),
    "cni.ipamDir": (["/run/pynet/other"], ["ipam"]),
    "sysctls.root": (["/host/proc/sys"], ["proc"]),
    "stateDir": (["/var/lib/pynet"], ["state"]),
    "runDir": (["/run/pynet"], ["run"]),
    "metrics.address": (["", "node", "10.0.0.1"], [1]),
    "metrics.port": ([1, 65535], [0, 65536, "9793"]),
    "health.address": (["::1", "127.0.0.2"], ["", "0.0.0.0", "10.0.0.1"]),
    "health.port": ([1, 65535], [0, 65536]),
    "resyncSeconds": ([1, 3600], [0, 3601]),
}
FLAGS = {key for key, default in CONFIG_KEYS.items() if isinstance(default, bool)}
EDGES |= {flag: ([True, False], ["true", 1]) for flag in FLAGS}


def _agent_takes(pairs: dict[str, object]) -> bool:
    try:
        config.parse(json.dumps(_nested(pairs)).encode())
    except ConfigError:
        return False
    return True


def test_every_key_has_its_edges() -> None:
    sections = {key.rpartition(".")[0] for key in CONFIG_KEYS}

    assert set(EDGES) == CONFIG_KEYS.keys() - sections


@pytest.mark.parametrize("round_", range(max(len(good) for good, _bad in EDGES.values())))
def test_schema_takes_what_the_agent_takes(round_: int, tmp_path: Path) -> None:
    pairs = {key: good[min(round_, len(good) - 1)] for key, (good, _bad) in EDGES.items()}
    pairs["health.port"] = min(2 if pairs["metrics.port"] == 1 else 9794, 9794)

    assert [key for key, value in pairs.items() if not _agent_takes({key: value})] == []
    done = template(values(tmp_path, {"config": _nested(pairs)}))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("round_", range(max(len(bad) for _good, bad in EDGES.values())))
def test_schema_refuses_what_the_agent_refuses_and_names_the_key(round_: int, tmp_path: Path) -> None:
    pairs = {key: bad[round_] for key, (_good, bad) in EDGES.items() if round_ < len(bad)}

    assert [key for key, value in pairs.items() if _agent_takes({key: value})] == []
    said = refusal(values(tmp_path, {"config": _nested(pairs)}))
    assert [key for key in pairs if f"'/config/{key.replace('.', '/')}" not in said] == []


WRONG: Json = {
    "image": {"pullPolicy": "Sometimes", "digest": "sha256:short", "repository": "pynet:v1"},
    "imagePullSecrets": ["mine"],
    "apiServer": "lb.example.com",
    "logLevel": "loud",
    "logFormat": "xml",
    "hostPaths": {"cniConf": "etc", "cniBin": "", "state": "x", "run": "y"},
    "installPlugins": "yes",
    "updateStrategy": {"type": "Recreate", "rollingUpdate": {"maxUnavailable": "some"}},
    "priorityClassName": 1,
    "nodeSelector": {"a": 1},
    "tolerations": "all",
    "affinity": [],
    "podAnnotations": {"a": True},
    "podLabels": {"a": 1},
    "daemonSetAnnotations": {"a": 1},
    "daemonSetLabels": {"a": 1},
    "commonAnnotations": {"a": 1},
    "commonLabels": {"a": 1},
    "extraEnv": [{"value": "x"}],
    "extraCapabilities": "DAC_OVERRIDE",
    "netRaw": "no",
    "seLinuxOptions": {"type": 1},
    "terminationGracePeriodSeconds": "5s",
    "resources": {"limits": {"memory": True}},
    "installResources": {"limits": {"memory": True}},
    "probes": {"liveness": {"periodSeconds": 0}, "readiness": {"failureThreshold": "3"}},
    "serviceAccount": {"create": "yes", "name": 1, "annotations": {"a": 1}},
    "rbac": {"create": "yes"},
    "admissionPolicy": {"enabled": "yes"},
    "podMonitor": {"enabled": "yes", "labels": {"a": 1}, "interval": "often"},
    "prometheusRule": {"enabled": "yes", "labels": {"a": 1}},
    "dashboard": {"enabled": "yes", "labels": {"a": 1}},
    "uninstall": {"enabled": "yes", "timeoutSeconds": 1, "tolerations": {}},
}


def test_wrong_values_are_refused_with_their_keys(tmp_path: Path) -> None:
    said = refusal(values(tmp_path, WRONG))
    leaves = {key for key in _value_keys(WRONG) if not any(other.startswith(f"{key}.") for other in _value_keys(WRONG))}

    assert WRONG.keys() == VALUES.keys() - {"config", "global"}
    assert [key for key in leaves if f"'/{key.replace('.', '/')}" not in said] == []


@pytest.mark.parametrize("key", ["unknown", "config.unknown", "config.cni.MTU", "image.Tag", "hostPaths.etc", "probes.startup"])
def test_keys_that_do_not_exist_are_refused_by_name(key: str) -> None:
    assert f"'{key.rpartition('.')[2]}' not allowed" in refusal("--set", f"{key}=1")


# What would be YAML, an expression of the admission policy or another argument, instead of the value that was meant.
INJECTED = {
    "hostPaths.cniConf": ["/etc/x, readOnly: true", "/etc/x}\n- {name: y", "/etc/x #", '/etc/"x"', "/etc/a:b"],
    "hostPaths.cniBin": ["/opt/../x", "/opt/..", "/"],
    "image.repository": ["pynet\nx", "pynet #", "pynet x"],
    "image.tag": ["v1 # x", "v1\n  privileged: true", "v1:2", "v" * 129],
    "priorityClassName": ["x\n      hostPID: true", "x: y"],
    "serviceAccount.name": ['x" || true || "x', "x\n      hostPID: true", "X"],
    "apiServer": ["https://x #y", "https://x\n- y"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, bad in INJECTED.items() for value in bad])
def test_values_that_would_be_more_than_a_value_are_refused(key: str, value: str, tmp_path: Path) -> None:
    assert f"'/{key.replace('.', '/')}" in refusal(values(tmp_path, _nested({key: value})))


def test_values_that_yaml_takes_for_something_else_stay_text(tmp_path: Path) -> None:
    given = {"priorityClassName": "123", "serviceAccount": {"name": "1e3"}, "image": {"repository": "123", "tag": "1"}}
    pod = agent_set(values(tmp_path, given))["spec"]["template"]["spec"]

    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("123", "1e3")
    assert pod["containers"][0]["image"] == "123:1"


@pytest.mark.parametrize("key", sorted(VALUES))
def test_key_that_is_left_empty_is_its_default_or_named(key: str, tmp_path: Path) -> None:
    """``config:`` with nothing below it, as in a values file whose lines are commented out."""
    done = template(values(tmp_path, {key: None}))

    assert done.returncode == 0 or f"missing property '{key}'" in done.stderr, done.stderr
    if key in {"config", "podAnnotations", "extraCapabilities"}:
        assert done.returncode == 0, done.stderr


# ---- its page


def test_page_lists_every_value_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", PAGE.read_text(), re.MULTILINE))
    leaves: Json = {}

    def walk(values: Json, where: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value and f"{where}{name}." not in {*FREE, "updateStrategy."}:
                walk(value, f"{where}{name}.")
            else:
                leaves[where + name] = value

    walk({key: value for key, value in VALUES.items() if key != "probes"}, "")
    leaves |= {f"probes.{probe}": VALUES["probes"][probe] for probe in VALUES["probes"]}
    long = {key for key, value in leaves.items() if len(json.dumps(value)) > 120}

    assert listed.keys() == leaves.keys()
    assert {key: yaml.safe_load(value) for key, value in listed.items() if key not in long} == {
        key: value for key, value in leaves.items() if key not in long
    }
