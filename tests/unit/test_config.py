"""The configuration file: every key has a default, and every mistake one line that names it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pynet import config
from pynet.config import Config, ConfigError
from pynet.config_rules import KNOWN_PROTOCOLS, RULES, InterfaceChoice, parse_interface
from pynet.core.addresses import parse_prefix

CONTRACT = """
clusterCIDRs: []
serviceCIDRs: []
interface: auto
routes: {protocol: 110, table: 254, metric: 100, metricBuckets: 64, unreachableLocal: true, foreign: respect}
removalGuard: {fraction: 0.5, minimum: 10}
masquerade: {ipv4: true, ipv6: true, exceptCIDRs: [], randomFully: true}
forward: auto
cni: {enabled: true, confDir: /etc/cni/net.d, confName: 05-pynet.conflist, binDir: /opt/cni/bin,
      plugin: bridge, bridgeName: pynet0, mtu: auto, portmap: true, bandwidth: true, ipamDir: /run/pynet/ipam}
sysctls: {manage: true, root: /proc/sys}
networkUnavailable: true
stateDir: /var/lib/pynet
runDir: /run/pynet
metrics: {address: node, port: 9793}
health: {address: 127.0.0.1, port: 9794}
resyncSeconds: 30
"""


def parse(text: str) -> Config:
    return config.parse(text.encode())


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    line = str(caught.value)
    assert "\n" not in line
    return line


def leaves(section: type = Config, where: str = "") -> dict[str, object]:
    """Every key of the file by its full name, with its default."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(section):
        if isinstance(field.default, msgspec.Struct):
            found |= leaves(type(field.default), f"{where}{field.encode_name}.")
        else:
            found[where + field.encode_name] = field.default
    return found


def nested(key: str, value: object) -> str:
    for part in reversed(key.split(".")):
        value = {part: value}
    return yaml.safe_dump(value)


def test_defaults_are_those_of_the_contract_under_the_contract_s_keys():
    assert msgspec.to_builtins(Config()) == {**yaml.safe_load(CONTRACT), "clusterCIDRs": (), "serviceCIDRs": ()} | {
        "masquerade": {"ipv4": True, "ipv6": True, "exceptCIDRs": (), "randomFully": True}
    }
    assert parse(CONTRACT) == Config()


def test_no_file_and_an_empty_file_give_the_defaults(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing but a comment\n")
    assert config.load(None) == config.load(str(empty)) == parse("") == parse("{}") == Config()


def test_a_dumped_configuration_loads_as_itself():
    changed = msgspec.structs.replace(
        Config(),
        cluster_cidrs=("10.0.0.0/8", "fd00::/8"),
        interface="/^eth[0-9]/",
        routes=config.Routes(metric=1, metric_buckets=254, foreign="replace"),
        removal_guard=config.RemovalGuard(fraction=1, minimum=0),
        cni=config.Cni(mtu=1280, plugin="ptp"),
        metrics=config.MetricsListener(address=""),
        health=config.HealthListener(address="::1"),
        resync_seconds=3600,
    )
    for original in (Config(), changed):
        assert parse(json_text := msgspec.json.encode(original).decode()) == original, json_text
        assert parse(yaml.safe_dump(msgspec.json.decode(json_text))) == original


def test_every_section_can_be_given_in_part():
    given_in_part = parse("cni: {mtu: 9000}\nroutes: {foreign: replace}")
    assert given_in_part.cni == config.Cni(mtu=9000)
    assert given_in_part.routes == config.Routes(foreign="replace")
    assert given_in_part.masquerade == config.Masquerade()


def test_configuration_cannot_be_changed_once_loaded():
    with pytest.raises(AttributeError):
        Config().routes.metric = 7  # type: ignore[misc]


# (file, what the line says about the key and its value)
MISTAKES = [
    ("route: {}", "route is not a known key (its value: a mapping); allowed: clusterCIDRs, "),
    ("routes: {metrics: 5}", "routes.metrics is not a known key (its value: 5); allowed: protocol, table, metric, "),
    ("cluster_cidrs: []", "cluster_cidrs is not a known key"),
    ("clusterCidrs: []", "clusterCidrs is not a known key"),
    ("1: 2", "1 is not a known key"),
    ("true: 2", "true is not a known key"),
    ("- a", "the file is ['a']; allowed: a mapping of clusterCIDRs"),
    ("plain text", "the file is 'plain text'; allowed: a mapping of"),
    ("routes:", "routes is empty; allowed: a mapping of protocol"),
    ("routes: 7", "routes is 7; allowed: a mapping of protocol"),
    ("clusterCIDRs: 10.0.0.0/8", "clusterCIDRs is '10.0.0.0/8'; allowed: a list of networks"),
    (
        "clusterCIDRs: [10.0.0.1/8]",
        "clusterCIDRs is ['10.0.0.1/8'] ('10.0.0.1/8' has host bits set; the network is ",
    ),
    ("clusterCIDRs: ['fd00::1/8']", "clusterCIDRs is ['fd00::1/8'] ('fd00::1/8' has host bits set; the network is fd00::/8)"),
    ("clusterCIDRs: [10.0.0.0/33]", "clusterCIDRs is ['10.0.0.0/33'] ("),
    ("clusterCIDRs: [10.0.0.0]", "clusterCIDRs is ['10.0.0.0'] ("),
    ("clusterCIDRs: [7]", "clusterCIDRs is [7]; allowed: a list of networks"),
    ("clusterCIDRs:", "clusterCIDRs is empty; allowed: a list of networks"),
    ("serviceCIDRs: [10.96.0.0/255.240.0.0]", "serviceCIDRs is ['10.96.0.0/255.240.0.0'] ("),
    ("masquerade: {exceptCIDRs: [10.1.0.0/8]}", "masquerade.exceptCIDRs is ['10.1.0.0/8'] ("),
    ("masquerade: {ipv4: 'true'}", "masquerade.ipv4 is 'true'; allowed: true or false"),
    ("masquerade: {ipv6: 1}", "masquerade.ipv6 is 1; allowed: true or false"),
    ("interface: ''", "interface is '' ("),
    ("interface: abcdefghijklmnop", "interface is 'abcdefghijklmnop' (not an interface's name); allowed: auto, "),
    ("interface: ethé01234567890", "interface is 'ethé01234567890' (not an interface's name)"),  # 16 bytes
    ("interface: eth/0", "interface is 'eth/0' ("),
    ("interface: ..", "interface is '..' ("),
    ("interface: 'e 0'", "interface is 'e 0' ("),
    ("interface: /(/", "interface is '/(/' (not a regular expression: "),
    ("interface: //", "interface is '//' ("),
    ("interface: can-reach=", "interface is 'can-reach=' ("),
    ("interface: can-reach=node-1", "interface is 'can-reach=node-1' ('node-1' is not an IP address)"),
    ("interface: [eth0]", "interface is ['eth0']; allowed: auto, an interface's name"),
    ("routes: {protocol: 0}", "routes.protocol is 0; allowed: a whole number 1..255, but not 1, 2, 3, 4, 8, 9, "),
    ("routes: {protocol: 2}", "routes.protocol is 2 (that is kernel); allowed: "),
    ("routes: {protocol: 16}", "routes.protocol is 16 (that is dhcp); allowed: "),
    ("routes: {protocol: 256}", "routes.protocol is 256; allowed: "),
    ("routes: {protocol: bird}", "routes.protocol is 'bird'; allowed: "),
    ("routes: {protocol: true}", "routes.protocol is true; allowed: "),
    ("routes: {table: 0}", "routes.table is 0; allowed: a whole number 1..4294967295, but not 255"),
    ("routes: {table: 255}", "routes.table is 255 (that is the kernel's table local); allowed: "),
    ("routes: {table: 4294967296}", "routes.table is 4294967296; allowed: "),
    ("routes: {table: main}", "routes.table is 'main'; allowed: "),
    ("routes: {metric: 0}", "routes.metric is 0; allowed: a whole number 1..254"),
    ("routes: {metric: 1024}", "routes.metric is 1024; allowed: a whole number 1..254"),
    ("routes: {metric: 100.0}", "routes.metric is 100.0; allowed: a whole number 1..254"),
    ("routes: {metricBuckets: 0}", "routes.metricBuckets is 0; allowed: a whole number 1..254"),
    ("routes: {metric: 192}", "routes.metric is 192 and routes.metricBuckets is 64; allowed: a sum below 256"),
    ("routes: {foreign: fight}", "routes.foreign is 'fight'; allowed: respect, replace"),
    ("routes: {unreachableLocal: maybe}", "routes.unreachableLocal is 'maybe'; allowed: true or false"),
    ("removalGuard: {fraction: 50}", "removalGuard.fraction is 50; allowed: a number 0..1"),
    ("removalGuard: {fraction: -0.1}", "removalGuard.fraction is -0.1; allowed: a number 0..1"),
    ("removalGuard: {fraction: .nan}", "removalGuard.fraction is nan; allowed: a number 0..1"),
    ("removalGuard: {minimum: -1}", "removalGuard.minimum is -1; allowed: a whole number from 0"),
    ("forward: sometimes", "forward is 'sometimes'; allowed: auto, always, never"),
    ("forward: true", "forward is true; allowed: auto, always, never"),
    ("cni: {plugin: macvlan}", "cni.plugin is 'macvlan'; allowed: bridge, ptp"),
    ("cni: {mtu: 1279}", "cni.mtu is 1279; allowed: auto, or a whole number 1280..65535"),
    ("cni: {mtu: 65536}", "cni.mtu is 65536; allowed: auto, or a whole number 1280..65535"),
    ("cni: {mtu: large}", "cni.mtu is 'large'; allowed: auto, or a whole number 1280..65535"),
    ("cni: {mtu: '1500'}", "cni.mtu is '1500'; allowed: auto, or a whole number 1280..65535"),
    ("cni: {bridgeName: a-bridge-with-a-long-name}", "cni.bridgeName is 'a-bridge-with-a-long-name' ("),
    ("cni: {bridgeName: br%d}", "cni.bridgeName is 'br%d' ("),
    ("cni: {confName: pynet.conf}", "cni.confName is 'pynet.conf'; allowed: a file name ending in .conflist"),
    ("cni: {confName: .conflist}", "cni.confName is '.conflist'; allowed: "),
    ("cni: {confName: ../05-pynet.conflist}", "cni.confName is '../05-pynet.conflist'; allowed: "),
    ("cni: {confName: 5}", "cni.confName is 5; allowed: "),
    ("cni: {confDir: etc}", "cni.confDir is 'etc'; allowed: an absolute path"),
    ("cni: {binDir: ''}", "cni.binDir is ''; allowed: an absolute path"),
    ("cni: {ipamDir: ~}", "cni.ipamDir is empty; allowed: an absolute path"),
    ("sysctls: {root: ../proc/sys}", "sysctls.root is '../proc/sys'; allowed: an absolute path"),
    ('stateDir: "/a\\0b"', "stateDir is '/a\\x00b'; allowed: an absolute path"),
    ("runDir: {}", "runDir is a mapping; allowed: an absolute path"),
    (
        "metrics: {address: localhost}",
        "metrics.address is 'localhost' ('localhost' is not an IP address); allowed: node",
    ),
    ("metrics: {address: 300.1.1.1}", "metrics.address is '300.1.1.1' ("),
    ("metrics: {port: 0}", "metrics.port is 0; allowed: a whole number 1..65535"),
    ("metrics: {port: 65536}", "metrics.port is 65536; allowed: a whole number 1..65535"),
    ("metrics: {port: '9793'}", "metrics.port is '9793'; allowed: a whole number 1..65535"),
    ("metrics: {port: 9794}", "health.port is 9794, as is metrics.port; allowed: two different ports"),
    ("health: {address: 0.0.0.0}", "health.address is '0.0.0.0' (not a loopback address); allowed: a loopback address"),
    ("health: {address: ''}", "health.address is '' ("),
    ("health: {address: node}", "health.address is 'node' ("),
    ("health: {port: 70000}", "health.port is 70000; allowed: a whole number 1..65535"),
    ("resyncSeconds: 0", "resyncSeconds is 0; allowed: a whole number 1..3600"),
    ("resyncSeconds: 3601", "resyncSeconds is 3601; allowed: a whole number 1..3600"),
    ("resyncSeconds: 30s", "resyncSeconds is '30s'; allowed: a whole number 1..3600"),
    ("networkUnavailable: No thanks", "networkUnavailable is 'No thanks'; allowed: true or false"),
    # YAML itself
    ("routes: {metric: 1", "line 1, column 19: not valid YAML: "),
    ("a: 1\n b: 2", "line 2, column 3: not valid YAML: "),
    ("forward: auto\nforward: never", "line 2, column 1: not valid YAML: the key 'forward' is there twice"),
    ("routes: {metric: 1, metric: 2}", "line 1, column 21: not valid YAML: the key 'metric' is there twice"),
    ("routes: &r {}\ncni: *r", "line 2, column 6: not valid YAML: aliases are not allowed"),
    ("routes: {<<: {metric: 5}}", "line 1, column 10: not valid YAML: merge keys are not allowed"),
    ("? [a]\n: b", "line 1, column 3: not valid YAML: a key must be a single word"),
    ("forward: auto\n---\nforward: never", "line 2, column 1: not valid YAML: "),
    ("forward: !!python/object/apply:os.getpid []", "line 1, column 10: not valid YAML: could not determine a constructor"),
    ("\tforward: auto", "line 1, column 1: not valid YAML: "),
    (
        "routes:\n\tmetric: 5",
        "line 2, column 1: not valid YAML: found character '\\t' that cannot start any token (indent with",
    ),
    ("resyncSeconds: 2026-13-45", "not valid YAML: a value that cannot be (month must be in 1..12)"),
    ("resyncSeconds: " + "9" * 5000, "not valid YAML: a value that cannot be ("),
    ("[" * 5000, "not valid YAML: nested too deeply"),
    ("\x00", "not valid YAML: unacceptable character"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=lambda value: value[:60])
def test_a_mistake_is_named_with_its_key_its_value_and_what_is_allowed(text, words):
    line = refusal(text)
    assert line.startswith(words), line
    assert len(line) < 500
    if "YAML" not in line:
        assert "; allowed: " in line


def test_long_values_are_cut_so_that_the_line_stays_readable():
    assert len(refusal(f"interface: {'x' * 100_000}")) < 300
    assert len(refusal(f"{'x' * 1000}: 1")) < 500
    assert len(refusal("clusterCIDRs: [" + "x, " * 10_000 + "x]")) < 400


@pytest.mark.parametrize("protocol", sorted(KNOWN_PROTOCOLS))
def test_no_known_protocol_can_be_ours(protocol):
    assert f"routes.protocol is {protocol}" in refusal(f"routes: {{protocol: {protocol}}}")


@pytest.mark.parametrize("key", sorted(leaves()))
def test_every_key_refuses_a_wrong_type_by_its_full_name(key):
    for wrong in ({"a": 1}, None, 1j.real + 0.25):
        if wrong == 0.25 and key == "removalGuard.fraction":
            continue
        assert refusal(nested(key, wrong)).startswith(f"{key} is "), (key, wrong)


def test_rules_are_about_keys_that_exist():
    assert set(RULES) <= set(leaves())


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("routes.metric", [1, 191]),
        ("routes.metricBuckets", [1, 155]),
        ("routes.protocol", [5, 255]),
        ("routes.table", [1, 254, 256, 4294967295]),
        ("removalGuard.fraction", [0, 1, 0.25]),
        ("removalGuard.minimum", [0]),
        ("cni.mtu", [1280, 65535, "auto"]),
        ("cni.bridgeName", ["br0", "abcdefghijklmno"]),
        ("cni.confName", ["10-pynet.conflist", "a.b.conflist"]),
        ("metrics.address", ["node", "", "10.0.0.1", "fd00::1", "0.0.0.0"]),
        ("health.address", ["127.0.0.1", "127.8.9.10", "::1"]),
        ("metrics.port", [1, 65535]),
        ("resyncSeconds", [1, 3600]),
        ("interface", ["auto", "eth0", "abcdefghijklmno", "/^e/", "can-reach=10.0.0.1", "can-reach=fd00::1"]),
        ("clusterCIDRs", [[], ["10.0.0.0/8", "fd00::/8"], ["0.0.0.0/0"]]),
    ],
)
def test_what_is_allowed_is_allowed_to_its_edges(key, values):
    for value in values:
        found = msgspec.to_builtins(parse(nested(key, value)))
        for part in key.split("."):
            found = found[part]
        assert found == (tuple(value) if isinstance(value, list) else value)


def test_interface_is_parsed_into_its_four_forms():
    assert parse_interface("auto") == InterfaceChoice("auto")
    assert parse_interface("eth0") == InterfaceChoice("name", "eth0")
    assert parse_interface("/^eth/") == InterfaceChoice("pattern", "^eth")
    assert parse_interface("can-reach=fd00::1") == InterfaceChoice("can-reach", "fd00::1")
    assert Config(interface="/x/").interface_choice == InterfaceChoice("pattern", "x")


def test_the_line_begins_with_the_file_s_name(tmp_path):
    file = tmp_path / "pynet.yaml"
    file.write_text("forward: perhaps")
    with pytest.raises(ConfigError, match=rf"^{file}: forward is 'perhaps'; allowed: auto, always, never$"):
        config.load(str(file))


@pytest.mark.parametrize("make", ["missing", "folder", "null"])
def test_a_file_that_cannot_be_read_is_a_configuration_error(tmp_path, make):
    path = {"missing": str(tmp_path / "absent.yaml"), "folder": str(tmp_path), "null": "a\0b"}[make]
    with pytest.raises(ConfigError, match="cannot be read: "):
        config.load(path)


def test_a_file_above_one_mebibyte_is_refused_before_it_is_parsed(tmp_path):
    file = tmp_path / "big.yaml"
    file.write_bytes(b"#" * (config.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        config.load(str(file))
    file.write_bytes(b"#" * config.MAX_FILE_BYTES)
    assert config.load(str(file)) == Config()


def test_bytes_that_are_not_utf8_are_refused_and_a_byte_order_mark_is_not():
    with pytest.raises(ConfigError, match=r"^not UTF-8 \(byte 10\)$"):
        config.parse(b"forward: \xff")
    assert config.parse(b"\xef\xbb\xbfforward: never").forward == "never"


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates(), st.binary(max_size=5),
    st.sampled_from(["auto", "node", "/(/", "//", "can-reach=", "10.0.0.0/8", "fd00::/8", "/a", ".conflist", "bridge"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)
FILES = st.dictionaries(
    st.sampled_from(sorted({key.split(".")[0] for key in leaves()})) | st.text(max_size=5),
    VALUES | st.dictionaries(st.sampled_from(sorted({key.split(".")[-1] for key in leaves()})), VALUES, max_size=4),
    max_size=5,
)


def config_or_error(content: bytes) -> None:
    """Parse; what comes back is a good configuration, or one line."""
    try:
        loaded = config.parse(content)
    except ConfigError as error:
        line = str(error)
    else:
        check_loaded(loaded)
        line = "a good configuration"
    assert line
    assert "\n" not in line


def check_loaded(loaded: Config) -> None:
    for text in (*loaded.cluster_cidrs, *loaded.service_cidrs, *loaded.masquerade.except_cidrs):
        parse_prefix(text)
    assert loaded.routes.metric + loaded.routes.metric_buckets < 256
    assert config.parse(msgspec.json.encode(loaded)) == loaded


@given(FILES)
def test_any_structure_is_a_configuration_or_one_line(data):
    config_or_error(yaml.safe_dump(data).encode())


@given(st.binary(max_size=200))
@example(b"interface: /[[a]/")  # re warns about this one
@example(b"interface: !!timestamp x")
@example(b"interface: !!int ''")
@example(b"interface: !!bool x")
@example(b"a: !!float ''")
@example(b"? !!map {}\n: 1")
@example(b"!!set {a, a}")
@example(b"removalGuard: {fraction: 1" + b"0" * 400 + b"}")
@example(b"routes: {table: 1" + b"0" * 400 + b"}")
@example(b"interface: /a{99999999999999999999}/")
def test_any_bytes_are_a_configuration_or_one_line(content):
    config_or_error(content)


@given(
    st.text(alphabet="abc:{}[],&*!|>-'\"\\#%@`?<=\n\t 0129./~", max_size=60),
    st.sampled_from(["", "interface: ", "routes: {", "- "]),
)
def test_any_yaml_text_is_a_configuration_or_one_line(text, start):
    config_or_error((start + text).encode())


def kinds(section: type = Config, where: str = "") -> dict[str, object]:
    """Every key by its full name, with its type."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(section):
        if isinstance(field.default, msgspec.Struct):
            found |= kinds(type(field.default), f"{where}{field.encode_name}.")
        else:
            found[where + field.encode_name] = field.type
    return found


def test_the_reference_page_has_every_key_with_its_default_and_what_is_allowed():
    page = (Path(__file__).parents[2] / "docs/reference/configuration.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    documented = {key: (json.loads(default), words) for key, default, words in rows}
    assert len(rows) == len(documented)
    assert documented == {
        key: (msgspec.to_builtins(default, builtin_types=()) if default != () else [], config.allowed(key, kinds()[key]))
        for key, default in leaves().items()
    }
