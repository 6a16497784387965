"""`pynet cleanup`, as a process in a namespace: everything of ours goes, and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import sys

import pytest

from tests.kernel.rig import peer, running

FOREIGN = [
    ("10.244.9.0/24", "static"),
    ("10.250.0.0/16", "bgp"),
    ("10.251.0.0/16", "boot"),
]


@pytest.fixture
def node(lan3):
    return lan3[0]


class Host:
    """A node's files in a folder of the test's, and the command."""

    def __init__(self, namespace, folder) -> None:
        self.namespace = namespace
        self.folder = folder
        self.conflist = folder / "net.d" / "05-pynet.conflist"
        self.state = folder / "state"
        self.leases = folder / "ipam"
        self.run_dir = folder / "run"
        self.config = folder / "pynet.yaml"
        self.plugin = "bridge"
        for each in (self.conflist.parent, self.state, self.leases / "pynet"):
            each.mkdir(parents=True)
        self.conflist.write_text("{}")
        (self.conflist.parent / "10-other.conflist").write_text("{}")
        (self.state / "last-good.json").write_text("{}")

    def cleanup(self, *flags: str, wrapper: tuple[str, ...] = ()) -> tuple[int, dict]:
        cni = {"confDir": str(self.conflist.parent), "binDir": str(self.folder / "bin"), "ipamDir": str(self.leases)}
        settings = {"stateDir": str(self.state), "runDir": str(self.run_dir), "cni": {**cni, "plugin": self.plugin}}
        self.config.write_text(json.dumps(settings))
        command = [*wrapper, sys.executable, "-m", "pynet", "cleanup", "--config", str(self.config), "--output", "json", *flags]
        child = self.namespace.popen(*command, stdout=-1, stderr=-1, text=True)
        said, complaint = child.communicate(timeout=60)
        return child.returncode, json.loads(said) if said else {"error": complaint}


@pytest.fixture
def host(node, tmp_path):
    return Host(node, tmp_path)


def make_routes(node) -> None:
    """Ours, of every kind there may be, and those of others."""
    with running(node, peer(1), peer(2)):
        pass
    for command in (
        "route add 10.77.0.0/16 proto 110 nexthop via 10.99.0.2 nexthop via 10.99.0.3",
        "-6 route add fd77::/64 proto 110 nexthop via fd99::2 nexthop via fd99::3",
        "route add blackhole 10.78.0.0/16 proto 110 metric 7",
        "route add 10.79.0.0/16 via 10.99.0.2 proto 110 table 1000",  # of a setting that is no longer
        "-6 route add fd79::/64 via fd99::2 proto 110 table 1000",
        "-6 route add fd80::/64 via fd99::2 proto static",
        "route add 10.79.0.0/16 via 10.99.0.2 proto static table 1001",
        *(f"route add {prefix} via 10.99.0.3 proto {protocol}" for prefix, protocol in FOREIGN),
    ):
        node.run("ip", *command.split())


def everything(node) -> list:
    rows = [r for f in "46" for r in node.ip("-details", f"-{f}", "route", "show", "table", "all")]
    for row in rows:
        row.pop("expires", None)
    return rows


def ours(node) -> list:
    return [row for row in everything(node) if row.get("protocol") in {"110", "pynet"}]


def test_everything_of_ours_goes_and_nothing_else(node, host):
    before = everything(node)
    make_routes(node)
    others = [row for row in everything(node) if row.get("protocol") not in {"110", "pynet"}]
    assert len(ours(node)) == 11
    status, said = host.cleanup()
    assert (status, said["stays"]) == (0, [])
    assert ours(node) == []
    assert everything(node) == others
    assert len(others) == len(before) + 5
    assert not host.conflist.exists()
    assert (host.conflist.parent / "10-other.conflist").exists()
    assert not host.state.exists()
    assert not host.leases.exists()
    assert not host.run_dir.exists()


def test_a_dry_run_says_the_same_and_changes_nothing(node, host):
    make_routes(node)
    node.run("ip", "link", "add", "pynet0", "type", "bridge")
    before = everything(node)
    status, dry = host.cleanup("--dry-run")
    assert status == 0
    assert everything(node) == before
    assert host.conflist.exists()
    assert (host.state / "last-good.json").exists()
    assert not host.run_dir.exists(), "not even the lock"
    status, said = host.cleanup()
    assert (status, said["removed"]) == (0, dry["removed"])
    assert len(said["removed"]) == len(set(said["removed"]))


def test_a_second_cleanup_finds_nothing(node, host):
    make_routes(node)
    host.cleanup()
    assert host.cleanup() == (0, {"dryRun": False, "removed": [], "stays": []})


def test_a_file_that_cannot_go_is_named_with_why_and_the_rest_goes(node, host):
    snapshot = host.state / "last-good.json"
    snapshot.unlink()
    snapshot.mkdir()
    status, said = host.cleanup()
    assert (status, said["stays"]) == (1, [f"snapshot: {snapshot}: Is a directory"])
    assert not host.conflist.exists()


def test_what_pods_use_stays_until_the_last_one_is_gone(node, host):
    make_routes(node)
    node.run("ip", "link", "add", "pynet0", "type", "bridge")
    node.run("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "pod1")
    node.run("ip", "link", "set", "veth1", "master", "pynet0")
    status, said = host.cleanup()
    assert status == 1
    assert any("bridge pynet0" in line and "veth1" in line for line in said["stays"])
    assert ours(node) == [], "routes, rules and the conflist do not wait"
    assert not host.conflist.exists()
    assert host.leases.exists()
    node.run("ip", "link", "del", "veth1")
    status, said = host.cleanup()
    assert (status, said["removed"][0]) == (0, "bridge pynet0")
    assert not [link for link in node.ip("link") if link["ifname"] == "pynet0"]


def test_force_takes_what_pods_use(node, host):
    node.run("ip", "link", "add", "pynet0", "type", "bridge")
    node.run("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "pod1", "address", "02:00:00:00:00:01")
    node.run("ip", "link", "set", "veth1", "master", "pynet0")
    status, said = host.cleanup("--force")
    assert (status, "bridge pynet0" in said["removed"]) == (0, True)


@pytest.mark.parametrize("plugin", ["ptp", "bridge"])
@pytest.mark.parametrize(("address", "length"), [("10.244.0.5", 32), ("fd00:244::5", 128)])
def test_pods_that_ptp_attached_are_found_whatever_is_set_now(node, host, plugin, address, length):
    host.plugin = plugin
    for name in ("vethpod", "vethother"):  # the other one is some other network's
        node.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"p-{name}")
        node.run("ip", "link", "set", name, "up")
    node.run("ip", "route", "add", f"{address}/{length}", "dev", "vethpod")
    (host.leases / "pynet" / address).write_text("id\r\neth0")
    (host.leases / "pynet" / "last_reserved_ip.0").write_text(address)
    status, said = host.cleanup()
    assert status == 1
    assert said["stays"] == [f"{host.leases / 'pynet'}: pods still use it (vethpod)"]
    node.run("ip", "link", "del", "vethpod")
    status, said = host.cleanup()
    assert (status, said["stays"]) == (0, [])
    assert not host.leases.exists()


def test_leases_of_other_networks_in_the_same_folder_stay(node, host):
    """host-local's own default is one folder for all, with one inside for each network; somebody may have named that."""
    theirs = host.leases / "other" / "10.1.0.5"
    theirs.parent.mkdir()
    theirs.write_text("id\r\neth0")
    (host.leases / "pynet" / "10.244.0.5").write_text("id\r\neth0")
    node.run("ip", "link", "add", "vethother", "type", "veth", "peer", "name", "far1")
    node.run("ip", "link", "set", "vethother", "up")
    node.run("ip", "route", "add", "10.1.0.5/32", "dev", "vethother")

    status, dry = host.cleanup("--dry-run")
    assert (status, str(host.leases / "pynet") in dry["removed"]) == (0, True)
    status, said = host.cleanup()

    assert (status, said["stays"], said["removed"]) == (0, [], dry["removed"])
    assert theirs.exists()
    assert not (host.leases / "pynet").exists()


def test_a_bridge_of_our_name_that_is_none_stays(node, host):
    node.run("ip", "link", "add", "pynet0", "type", "veth", "peer", "name", "far0")
    assert host.cleanup()[0] == 0
    assert [link for link in node.ip("link") if link["ifname"] == "pynet0"]


def test_without_net_admin_nothing_is_removed(node, host):
    make_routes(node)
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    for flags in ((), ("--dry-run",)):
        status, said = host.cleanup(*flags, wrapper=without)
        assert (status, said["error"].count("\n")) == (1, 1)
        assert said["error"].startswith("pynet cleanup: CAP_NET_ADMIN is missing")
        assert "stop the agent" not in said["error"]
    assert len(ours(node)) == 11
    assert host.conflist.exists()


def test_beside_a_running_agent_nothing_is_removed(node, host):
    make_routes(node)
    host.run_dir.mkdir()
    lock = os.open(host.run_dir / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, said = host.cleanup()
    finally:
        os.close(lock)
    assert status == 1
    assert "stop the agent first" in said["error"]
    assert len(ours(node)) == 11
    assert host.conflist.exists()
