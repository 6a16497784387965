"""Which settings are wanted, and that only what is wrong is written (on plain files; tests/kernel has the real ones)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pynet.apply.sysctls import Sysctl, check, repair, wanted


def plant(root: Path, **files: str) -> None:
    for name, value in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".").replace("DASH", "-")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")


def plant_all(root: Path, wants: tuple[Sysctl, ...], value: str) -> None:
    for want in wants:
        path = root / want.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")


def names(wants: tuple[Sysctl, ...]) -> list[str]:
    return [want.name for want in wants]


def test_each_family_is_asked_for_on_its_own() -> None:
    four = names(wanted(ipv4=True, ipv6=False, interfaces=["eth0"], ra_interfaces=["eth0"], bridge_filter=True))
    six = names(wanted(ipv4=False, ipv6=True, interfaces=["eth0"], ra_interfaces=["eth0"], bridge_filter=True))
    assert four == ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.forwarding", "net.bridge.bridge-nf-call-iptables"]
    assert six == [
        "net.ipv6.conf.eth0.accept_ra",
        "net.ipv6.conf.all.forwarding",
        "net.ipv6.conf.eth0.forwarding",
        "net.bridge.bridge-nf-call-ip6tables",
    ]
    assert wanted(ipv4=False, ipv6=False, interfaces=["eth0"], ra_interfaces=["eth0"], bridge_filter=True) == ()


def test_bridge_filter_is_not_asked_for_without_a_bridge() -> None:
    assert not [name for name in names(wanted(ipv4=True, ipv6=True, interfaces=[], bridge_filter=False)) if "bridge" in name]


def test_accept_ra_comes_before_forwarding_and_the_switch_before_the_interfaces() -> None:
    order = names(wanted(ipv4=True, ipv6=True, interfaces=["a", "b"], ra_interfaces=["b"], bridge_filter=False))
    assert order.index("net.ipv6.conf.b.accept_ra") < order.index("net.ipv6.conf.all.forwarding")
    assert order.index("net.ipv6.conf.all.forwarding") < order.index("net.ipv6.conf.a.forwarding")
    assert order.index("net.ipv4.ip_forward") < order.index("net.ipv4.conf.a.forwarding")


def test_accept_ra_goes_from_one_to_two_and_never_from_zero(tmp_path: Path) -> None:
    wants = wanted(ipv4=False, ipv6=True, interfaces=[], ra_interfaces=["host0", "router0"], bridge_filter=False)
    plant(tmp_path, net__ipv6__conf__all__forwarding="1")
    plant(tmp_path, net__ipv6__conf__host0__accept_ra="0", net__ipv6__conf__router0__accept_ra="1")
    states, written = repair(tmp_path, wants)
    assert [(state.name, state.have, state.want) for state in written] == [("net.ipv6.conf.router0.accept_ra", "1", "2")]
    assert [state.have for state in states] == ["0", "2", "1"]
    assert all(state.ok and not state.error for state in states)


def test_what_is_right_is_not_written(tmp_path: Path) -> None:
    wants = wanted(ipv4=True, ipv6=True, interfaces=["eth0"], bridge_filter=True)
    plant_all(tmp_path, wants, "1")
    before = {want.path: (tmp_path / want.path).stat().st_mtime_ns for want in wants}
    states, written = repair(tmp_path, wants)
    assert written == []
    assert all(state.ok for state in states)
    assert before == {want.path: (tmp_path / want.path).stat().st_mtime_ns for want in wants}


def test_only_what_is_wrong_is_written(tmp_path: Path) -> None:
    wants = wanted(ipv4=True, ipv6=False, interfaces=["eth0"], bridge_filter=False)
    plant_all(tmp_path, wants, "1")
    (tmp_path / "net/ipv4/conf/eth0/forwarding").write_text("0\n")
    states, written = repair(tmp_path, wants)
    assert [state.name for state in written] == ["net.ipv4.conf.eth0.forwarding"]
    assert [state.have for state in states] == ["1", "1"]


def test_check_writes_nothing_and_names_value_and_reason(tmp_path: Path) -> None:
    plant(tmp_path, net__ipv4__ip_forward="0")
    [state] = check(tmp_path, wanted(ipv4=True, ipv6=False, interfaces=[], bridge_filter=False))
    assert (state.name, state.want, state.have, state.ok) == ("net.ipv4.ip_forward", "1", "0", False)
    assert state.error == "else packets from and to pods are not forwarded"
    assert (tmp_path / "net/ipv4/ip_forward").read_text() == "0\n"


def test_an_interface_with_a_dot_keeps_it(tmp_path: Path) -> None:
    wants = wanted(ipv4=True, ipv6=False, interfaces=["eth0.100"], bridge_filter=False)
    plant_all(tmp_path, wants, "0")
    states, written = repair(tmp_path, wants)
    assert (tmp_path / "net/ipv4/conf/eth0.100/forwarding").read_text() == "1\n"
    assert [state.name for state in written] == ["net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/forwarding"]
    assert states[1].name == "net/ipv4/conf/eth0.100/forwarding"


def test_an_interface_that_is_gone_is_no_failure_and_is_not_made(tmp_path: Path) -> None:
    wants = wanted(ipv4=True, ipv6=True, interfaces=["pynet0"], ra_interfaces=["eth9"], bridge_filter=False)
    plant(tmp_path, net__ipv4__ip_forward="1", net__ipv6__conf__all__forwarding="1")
    states, written = repair(tmp_path, wants)
    assert all(state.ok and not state.error for state in states)
    assert written == []
    assert not (tmp_path / "net/ipv4/conf").exists()


def test_br_netfilter_not_loaded_is_said_and_is_no_failure(tmp_path: Path) -> None:
    plant(tmp_path, net__ipv4__ip_forward="1")
    switch, bridge = check(tmp_path, wanted(ipv4=True, ipv6=False, interfaces=[], bridge_filter=True))
    assert switch.ok
    assert bridge.ok
    assert "modprobe br_netfilter" in bridge.error
    assert "two pods of this node" in bridge.error


def test_br_netfilter_loaded_with_the_wrong_value_is_a_failure(tmp_path: Path) -> None:
    plant(tmp_path, net__ipv4__ip_forward="1", net__bridge__bridgeDASHnfDASHcallDASHiptables="0")
    [_, bridge] = check(tmp_path, wanted(ipv4=True, ipv6=False, interfaces=[], bridge_filter=True))
    assert not bridge.ok
    assert (bridge.have, bridge.want) == ("0", "1")
    assert bridge.error.startswith("else a reply between two pods of this node")


def test_a_kernel_without_the_setting_is_a_failure(tmp_path: Path) -> None:
    [state], written = repair(tmp_path, wanted(ipv4=False, ipv6=True, interfaces=[], bridge_filter=False))
    assert not state.ok
    assert f"there is no {tmp_path}/net/ipv6/conf/all/forwarding" in state.error
    assert written == []


ON_READ_ONLY = """
import subprocess, sys
from pathlib import Path
from pynet.apply.sysctls import repair, wanted
root = Path(sys.argv[1])
subprocess.run(["mount", "--bind", root, root], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
states, written = repair(root, wanted(ipv4=True, ipv6=False, interfaces=[], bridge_filter=False))
print(states[0].ok, written, states[0].error, sep="|")
"""


@pytest.mark.parametrize("value", ["0", "1"])
def test_a_read_only_root_is_a_failure_only_if_the_value_is_wrong(tmp_path: Path, value: str) -> None:
    plant(tmp_path, net__ipv4__ip_forward=value)
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", ON_READ_ONLY, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    ok, written, error = output.split("|")
    assert written == "[]"
    if value == "1":
        assert (ok, error) == ("True", "")
    else:
        assert ok == "False"
        assert "else packets from and to pods are not forwarded" in error
        assert f"we cannot write below {tmp_path} (Read-only file system)" in error
        assert "sysctl -w net.ipv4.ip_forward=1" in error
        assert "sysctls.root" in error
