"""The conflist with the real CNI plugins in real namespaces: pods attached by it, also after the podCIDRs have changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pynet.apply.conflist import Conflist, ConflistWanted
from pynet.apply.gateways import remove_addresses, stale_gateways
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.model import HostAddress, Link, Prefix

from tests.support.lacking import fail_or_skip
from tests.support.netns import CommandError, Namespace
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PLUGINS = Path("/usr/lib/cni")  # Debian: containernetworking-plugins
OLD = (parse_prefix("10.244.1.0/24"), parse_prefix("fd00:244:1::/64"))
NEW = (parse_prefix("10.244.7.0/24"), parse_prefix("fd00:244:7::/64"))


@pytest.fixture
def node() -> Iterator[Namespace]:
    if not (PLUGINS / "bridge").exists():
        fail_or_skip(f"no CNI plugins in {PLUGINS}: apt-get install containernetworking-plugins")
    with Namespace() as made:
        yield made


@pytest.fixture
def pod() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def wanted(root: Path, pod_cidrs: tuple[Prefix, ...], **more: Any) -> ConflistWanted:
    return ConflistWanted(
        pod_cidrs, conf_dir=str(root / "net.d"), bin_dir=str(PLUGINS), ipam_dir=str(root / "ipam"), mtu=1450, **more
    )


def write(node: Namespace, conflist: Conflist, value: ConflistWanted) -> None:
    with node.entered():  # the applier's thread starts in the namespace of whoever gives it the first value
        conflist.submit(value)
    until(lambda: conflist.ok, "written", seconds=20)


@pytest.fixture
def conflist() -> Iterator[Conflist]:
    made = Conflist()
    yield made
    assert made.stop(10)


def add(node: Namespace, pod: Namespace, path: Path) -> list[str]:
    """CNI ADD with the whole list, as a runtime does it; the pod's addresses. Raises CommandError with the plugin's words."""
    document = json.loads(path.read_bytes())
    result: dict[str, Any] = {}
    for plugin in document["plugins"]:
        request = {**plugin, "name": document["name"], "cniVersion": document["cniVersion"]}
        if result:
            request["prevResult"] = result
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod.name,
            "CNI_NETNS": str(pod.path),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(PLUGINS),
        }
        assignments = [f"{key}={value}" for key, value in environment.items()]
        said = node.run("env", *assignments, str(PLUGINS / plugin["type"]), input=json.dumps(request))
        result = json.loads(said)
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def bridge_addresses(node: Namespace, bridge: str = "pynet0") -> list[str]:
    """Global ones, as ``ip`` shows them."""
    [link] = node.ip("address", "show", "dev", bridge)
    return sorted(f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global")


def stale(node: Namespace, pod_cidrs: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    """What the loop finds, with ``ip`` for its eyes."""
    links, addresses = [], []
    for link in node.ip("-details", "address", "show"):
        kind = link.get("linkinfo", {}).get("info_kind", "")
        links.append(Link(link["ifindex"], link["ifname"], "UP" in link["flags"], link["mtu"], kind))
        addresses += [HostAddress(link["ifindex"], parse_address(a["local"]), a["prefixlen"]) for a in link["addr_info"]]
    return stale_gateways("pynet0", pod_cidrs, links, addresses)


def pings(pod: Namespace, address: str) -> bool:
    return "2 received" in pod.run("ping", "-n", "-c", "2", "-i", "0.05", "-W", "2", address, check=False)


def test_pods_attached_by_it_reach_each_other_and_have_a_default_route_per_family(
    node: Namespace, pod: Namespace, other: Namespace, conflist: Conflist, tmp_path: Path
) -> None:
    value = wanted(tmp_path, OLD)
    write(node, conflist, value)
    addresses = add(node, pod, value.path)
    assert addresses == ["10.244.1.2", "fd00:244:1::2"]
    assert add(node, other, value.path) == ["10.244.1.3", "fd00:244:1::3"]
    for address in addresses:
        until(lambda address=address: pings(other, address), f"{address} answers")
    assert [route["gateway"] for family in ("-4", "-6") for route in pod.ip(family, "route", "show", "default")] == [
        "10.244.1.1",
        "fd00:244:1::1",
    ]
    assert pod.ip("link", "show", "dev", "eth0")[0]["mtu"] == 1450
    assert bridge_addresses(node) == ["10.244.1.1/24", "fd00:244:1::1/64"]
    assert stale(node, OLD) == ()
    [port] = [link for link in node.ip("-details", "link") if link.get("master") == "pynet0"][:1]
    assert port["linkinfo"]["info_slave_data"]["hairpin"] is True


def test_ptp_attaches_pods_too(node: Namespace, pod: Namespace, conflist: Conflist, tmp_path: Path) -> None:
    value = wanted(tmp_path, OLD, plugin="ptp")
    write(node, conflist, value)
    assert add(node, pod, value.path) == ["10.244.1.2", "fd00:244:1::2"]
    assert [route["gateway"] for family in ("-4", "-6") for route in pod.ip(family, "route", "show", "default")] == [
        "10.244.1.1",
        "fd00:244:1::1",
    ]


def test_after_a_new_podcidr_pods_are_attached_again_and_the_old_gateways_are_gone(
    node: Namespace, pod: Namespace, other: Namespace, conflist: Conflist, tmp_path: Path
) -> None:
    write(node, conflist, wanted(tmp_path, OLD))
    add(node, pod, wanted(tmp_path, OLD).path)
    found = stale(node, NEW)
    assert [str(prefix) for prefix in found] == ["10.244.1.1/24", "fd00:244:1::1/64"]

    write(node, conflist, wanted(tmp_path, NEW, stale=found))
    assert bridge_addresses(node) == []

    assert add(node, other, wanted(tmp_path, NEW).path) == ["10.244.7.2", "fd00:244:7::2"]
    assert bridge_addresses(node) == ["10.244.7.1/24", "fd00:244:7::1/64"]
    assert stale(node, NEW) == ()
    for gateway in ("10.244.7.1", "fd00:244:7::1"):
        until(lambda gateway=gateway: pings(other, gateway), f"{gateway} answers")


def test_without_the_removal_the_plugin_refuses_and_ipv6_addresses_pile_up(
    node: Namespace, pod: Namespace, other: Namespace, conflist: Conflist, tmp_path: Path
) -> None:
    """The plugin's rule that makes the removal needed: if this fails, it can go."""
    write(node, conflist, wanted(tmp_path, OLD))
    add(node, pod, wanted(tmp_path, OLD).path)
    write(node, conflist, wanted(tmp_path, NEW))
    with pytest.raises(CommandError, match="already has an IP address different from"):
        add(node, other, wanted(tmp_path, NEW).path)
    write(node, conflist, wanted(tmp_path, NEW[1:]))
    with Namespace() as third:
        add(node, third, wanted(tmp_path, NEW).path)
    assert {"fd00:244:1::1/64", "fd00:244:7::1/64"} <= set(bridge_addresses(node))


def test_a_family_that_goes_takes_its_gateway_with_it(
    node: Namespace, pod: Namespace, conflist: Conflist, tmp_path: Path
) -> None:
    write(node, conflist, wanted(tmp_path, OLD))
    add(node, pod, wanted(tmp_path, OLD).path)
    write(node, conflist, wanted(tmp_path, OLD[:1], stale=stale(node, OLD[:1])))
    assert bridge_addresses(node) == ["10.244.1.1/24"]


def make_bridge(node: Namespace) -> None:
    node.run("ip", "link", "add", "pynet0", "type", "bridge")
    node.run("ip", "link", "set", "pynet0", "up")
    for address in ("10.9.0.1/24", "fd09::1/64", "10.8.0.1/24"):
        node.run("ip", "address", "add", address, "dev", "pynet0")


def test_exactly_the_named_addresses_go_and_those_gone_already_are_no_error(node: Namespace) -> None:
    make_bridge(node)
    link_local = [a for a in node.ip("-6", "address", "show", "dev", "pynet0")[0]["addr_info"] if a["scope"] == "link"]
    with node.entered():
        for _ in range(2):
            remove_addresses("pynet0", [Prefix(parse_address("10.9.0.1"), 24), Prefix(parse_address("fd09::1"), 64)])
    assert bridge_addresses(node) == ["10.8.0.1/24"]
    assert [a for a in node.ip("-6", "address", "show", "dev", "pynet0")[0]["addr_info"] if a["scope"] == "link"] == link_local


def test_a_bridge_that_is_not_there_is_no_error(node: Namespace) -> None:
    with node.entered():
        remove_addresses("pynet0", [Prefix(parse_address("10.9.0.1"), 24)])


def test_an_address_that_cannot_be_removed_is_a_reason(node: Namespace) -> None:
    make_bridge(node)
    script = (
        "from pynet.apply.gateways import remove_addresses\nfrom pynet.core.model import Prefix\n"
        "try:\n    remove_addresses('pynet0', [Prefix(bytes([10, 9, 0, 1]), 24)])\n"
        "except OSError as problem:\n    print(problem.strerror)\n"
    )
    said = node.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script)
    assert said.startswith("10.9.0.1/24 of pynet0 cannot be removed:")
    assert "Operation not permitted" in said
    assert "10.9.0.1/24" in bridge_addresses(node)


def test_pyroute2_is_imported_only_when_an_address_has_to_go() -> None:
    script = (
        "import sys\nfrom pynet.apply import conflist, gateways\ngateways.remove_addresses('pynet0', ())\n"
        "sys.exit('pyroute2' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
