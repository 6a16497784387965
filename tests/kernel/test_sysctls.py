"""Forwarding settings on the real /proc/sys of a namespace: what is repaired, what survives, what a read-only one says."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pynet.apply.sysctls import check, repair, wanted

from tests.support.netns import Namespace
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynet.apply.sysctls import Sysctl, SysctlState

ROOT = Path("/proc/sys")
ROUTER = "fe80::1"


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A node with one interface, eth0, whose other end is a router's."""
    with Namespace() as made, Namespace() as router:
        made.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "up0", "netns", router.name)
        router.sysctl("net/ipv6/conf/up0/addr_gen_mode", 1)
        router.run("ip", "addr", "add", f"{ROUTER}/64", "dev", "up0", "nodad")
        router.run("ip", "link", "set", "up0", "up")
        made.run("ip", "link", "set", "eth0", "up")
        made.router = router  # type: ignore[attr-defined]
        yield made


def mend(node: Namespace, wants: tuple[Sysctl, ...]) -> tuple[list[SysctlState], list[str]]:
    with node.entered():
        states, written = repair(ROOT, wants)
    return states, [state.name for state in written]


def advertise(router: Namespace) -> None:
    """Send one router advertisement: a default route for half an hour, and an on-link prefix."""
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + socket.inet_pton(socket.AF_INET6, "2001:db8:5::")
    packet = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    with router.entered(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sender.sendto(packet, ("ff02::1", 0, 0, socket.if_nametoindex("up0")))


def ra_default(node: Namespace) -> bool:
    return any(route.get("protocol") == "ra" for route in node.ip("-6", "route", "show", "default"))


def learn_a_route(node: Namespace) -> None:
    def learnt() -> bool:
        advertise(node.router)  # type: ignore[attr-defined]
        return ra_default(node)

    until(learnt, "a default route from a router advertisement")


def test_forwarding_is_switched_on_for_both_families_and_interfaces(node: Namespace) -> None:
    wants = wanted(ipv4=True, ipv6=True, interfaces=["eth0"], bridge_filter=True)
    for file in ("iptables", "ip6tables"):
        node.sysctl(f"net/bridge/bridge-nf-call-{file}", 0)
    states, written = mend(node, wants)
    assert [state.have for state in states] == ["1"] * 6
    assert all(state.ok and not state.error for state in states)
    # The switch sets the interfaces: they are not written again.
    assert written == [
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
    ]
    assert node.sysctl("net/ipv4/conf/eth0/forwarding") == "1"
    assert mend(node, wants)[1] == []


def test_one_interface_is_mended_without_touching_the_switch_or_the_others(node: Namespace) -> None:
    node.run("ip", "link", "add", "mgmt0", "type", "bridge")
    wants = wanted(ipv4=True, ipv6=True, interfaces=["eth0"], bridge_filter=False)
    mend(node, wants)
    for family in ("ipv4", "ipv6"):
        for name in ("eth0", "mgmt0"):  # what an administrator has set on mgmt0 is to stay
            node.sysctl(f"net/{family}/conf/{name}/forwarding", 0)
    assert mend(node, wants)[1] == ["net.ipv4.conf.eth0.forwarding", "net.ipv6.conf.eth0.forwarding"]
    assert [node.sysctl(f"net/{family}/conf/mgmt0/forwarding") for family in ("ipv4", "ipv6")] == ["0", "0"]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_the_other_family_is_left_alone(node: Namespace, family: str) -> None:
    mend(node, wanted(ipv4=family == "ipv4", ipv6=family == "ipv6", interfaces=["eth0"], bridge_filter=False))
    assert node.sysctl("net/ipv4/ip_forward") == ("1" if family == "ipv4" else "0")
    assert node.sysctl("net/ipv6/conf/all/forwarding") == ("1" if family == "ipv6" else "0")


def test_a_route_from_router_advertisements_survives_forwarding(node: Namespace) -> None:
    learn_a_route(node)
    states, written = mend(
        node, wanted(ipv4=False, ipv6=True, interfaces=["eth0"], ra_interfaces=["eth0"], bridge_filter=False)
    )
    assert written == ["net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.all.forwarding"]
    assert all(state.ok for state in states)
    assert node.sysctl("net/ipv6/conf/eth0/accept_ra") == "2"
    assert ra_default(node)


def test_without_accept_ra_the_route_would_be_lost(node: Namespace) -> None:
    """The kernel's rule that the test before depends on: if this fails, accept_ra need not be touched."""
    learn_a_route(node)
    mend(node, wanted(ipv4=False, ipv6=True, interfaces=["eth0"], bridge_filter=False))
    assert node.sysctl("net/ipv6/conf/eth0/accept_ra") == "1"
    assert not ra_default(node)


def test_an_interface_that_ignores_advertisements_goes_on_ignoring_them(node: Namespace) -> None:
    node.sysctl("net/ipv6/conf/eth0/accept_ra", 0)
    states, _ = mend(node, wanted(ipv4=False, ipv6=True, interfaces=["eth0"], ra_interfaces=["eth0"], bridge_filter=False))
    assert node.sysctl("net/ipv6/conf/eth0/accept_ra") == "0"
    assert all(state.ok for state in states)


def test_an_interface_with_a_dot_in_its_name_is_set(node: Namespace) -> None:
    node.run("ip", "link", "add", "eth0.100", "type", "bridge")
    mend(node, wanted(ipv4=True, ipv6=True, interfaces=["eth0.100"], bridge_filter=False))
    for family in ("ipv4", "ipv6"):
        node.sysctl(f"net/{family}/conf/eth0.100/forwarding", 0)
    states, written = mend(node, wanted(ipv4=True, ipv6=True, interfaces=["eth0.100"], bridge_filter=False))
    assert written == ["net/ipv4/conf/eth0.100/forwarding", "net/ipv6/conf/eth0.100/forwarding"]
    assert all(state.ok for state in states)


def test_an_interface_that_is_not_there_yet_is_no_failure(node: Namespace) -> None:
    states, _ = mend(node, wanted(ipv4=True, ipv6=True, interfaces=["pynet0"], ra_interfaces=["gone0"], bridge_filter=False))
    assert all(state.ok and not state.error for state in states)


def test_check_changes_nothing(node: Namespace) -> None:
    with node.entered():
        states = check(ROOT, wanted(ipv4=True, ipv6=True, interfaces=["eth0"], bridge_filter=False))
    assert [state.ok for state in states] == [False] * 4
    assert node.sysctl("net/ipv4/ip_forward") == "0"


IN_A_POD = """
import subprocess, sys
from pathlib import Path
from pynet.apply.sysctls import repair, wanted
place, root = Path(sys.argv[1]), Path(sys.argv[2])
# As in a pod: a hostPath of /proc/sys/net elsewhere, and /proc/sys read-only.
subprocess.run(["mount", "--bind", "/proc/sys/net", place / "net"], check=True)
subprocess.run(["mount", "--bind", "/proc/sys", "/proc/sys"], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", "/proc/sys"], check=True)
states, written = repair(root, wanted(ipv4=True, ipv6=False, interfaces=[], bridge_filter=False))
print(states[0].have, states[0].ok, [state.name for state in written], states[0].error, sep="|")
"""


def in_a_pod(node: Namespace, place: Path, root: Path) -> list[str]:
    (place / "net").mkdir(exist_ok=True)
    command = ("unshare", "--mount", sys.executable, "-c", IN_A_POD, str(place), str(root))
    return node.run(*command).strip().split("|")


def test_a_read_only_proc_sys_says_so_only_while_the_value_is_wrong(node: Namespace, tmp_path: Path) -> None:
    have, ok, written, error = in_a_pod(node, tmp_path, ROOT)
    assert (have, ok, written) == ("0", "False", "[]")
    assert "we cannot write below /proc/sys (Read-only file system)" in error
    assert "sysctls.root" in error
    node.sysctl("net/ipv4/ip_forward", 1)
    assert in_a_pod(node, tmp_path, ROOT) == ["1", "True", "[]", ""]


def test_a_host_path_of_proc_sys_net_elsewhere_is_written(node: Namespace, tmp_path: Path) -> None:
    assert in_a_pod(node, tmp_path, tmp_path) == ["1", "True", "['net.ipv4.ip_forward']", ""]
    assert node.sysctl("net/ipv4/ip_forward") == "1"


def test_without_the_right_to_write_the_reason_is_said(node: Namespace) -> None:
    script = (
        "from pathlib import Path\nfrom pynet.apply.sysctls import repair, wanted\n"
        "print(repair(Path('/proc/sys'), wanted(ipv4=True, ipv6=False, interfaces=[], bridge_filter=False))[0][0].error)"
    )
    # A user namespace of its own has no say over the settings of a network namespace that it does not own.
    said = node.run("unshare", "--user", sys.executable, "-c", script)
    assert "we cannot write below /proc/sys (Operation not permitted)" in said
