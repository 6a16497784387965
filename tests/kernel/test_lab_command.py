"""`pynet lab` as a user runs it: it stands, it is whole, it leaves nothing behind however it ends, and the host is not touched.

The command runs inside a namespace that stands for the host, so that what it does there can be told from what others do.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pynet.commands.lab import namespaces, processes
from pynet.commands.lab.plan import folder_of

from tests.support.netns import Namespace
from tests.support.waiting import until

SECONDS = 60


class Host:
    """A namespace that stands for the host's own; what runs in it is `pynet lab`."""

    def __init__(self, namespace):
        self.namespace = namespace
        self.started = []

    def lab(self, *flags):
        """Run to the end: exit status, standard output, standard error."""
        done = self.start(*flags)
        out, err = done.communicate(timeout=SECONDS)
        return done.returncode, out, err

    def start(self, *flags):
        command = [sys.executable, "-m", "pynet", "lab", *flags]
        # A group of its own: Ctrl-C in a terminal goes to the group.
        child = self.namespace.popen(
            *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.started.append(child)
        return child

    def state(self):
        """Everything of this namespace that a lab must leave as it is."""
        listed = [self.namespace.run("ip", "-json", what, "show") for what in ("link", "addr", "rule", "neigh")]
        listed += [self.namespace.run("ip", "-json", f"-{family}", "route", "show", "table", "all") for family in (4, 6)]
        return [*listed, self.namespace.run("nft", "list", "ruleset"), sysctls(self.namespace)]


@pytest.fixture
def host():
    with Namespace() as namespace:
        made = Host(namespace)
        yield made
        for child in made.started:
            if child.poll() is None:  # the test has failed
                child.terminate()
                child.wait(SECONDS)


def test_three_nodes_stand_and_every_pod_reaches_every_other(host):
    status, out, err = host.lab("--output", "json")
    assert (status, err) == (0, "")
    result = json.loads(out)
    pods = [pod["name"] for node in result["nodes"] for pod in node["pods"]]
    pairs = {(ping["source"], ping["target"], ping["family"]) for ping in result["pings"] if ping["seconds"] is not None}
    assert pairs == {(a, b, family) for a in pods for b in pods if a != b for family in (4, 6)}
    assert result["passed"]
    assert gone(result["lab"])


@pytest.mark.parametrize("family", ["4", "6"])
def test_one_family_stands_alone(host, family):
    status, out, err = host.lab("--nodes", "2", "--pods", "1", "--family", family, "--output", "json")
    assert (status, err) == (0, "")
    assert {ping["family"] for ping in json.loads(out)["pings"]} == {int(family)}


def test_the_hosts_own_namespace_is_never_touched(host):
    before = host.state()
    monitor = host.namespace.popen("ip", "monitor", "all", stdout=subprocess.PIPE, text=True)
    rules = host.namespace.popen("nft", "monitor", stdout=subprocess.PIPE, text=True)
    until(lambda: listens(monitor.pid) and listens(rules.pid), "the monitors")
    status, _, err = host.lab("--nodes", "2")
    assert (status, err) == (0, "")
    for each in (monitor, rules):
        each.terminate()
        assert each.communicate(timeout=10)[0] == "", "the kernel told of a change in the host's namespace"
    assert host.state() == before


def test_the_picture_the_routes_and_the_matrix_are_there_to_read(host):
    status, out, _ = host.lab("--nodes", "2", "--pods", "1")
    assert status == 0
    for words in (
        "br0 ┴",
        "│ node-2",
        "└─ pod-1-1",
        "10.77.2.0/24 via 192.168.77.2 dev eth0 proto",
        "proto 110 is pynet's",
        "IPv6, ms",
    ):
        assert words in out
    assert "IPv4: 2 of 2 pings passed" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_ends_it_and_leaves_nothing(host, number):
    child = host.start()
    lab = agents_run(child)
    os.killpg(child.pid, number)
    _, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 1
    assert err == f"pynet lab: ended by {number.name}\n"
    assert gone(lab)


def test_after_kill_9_the_next_command_removes_what_it_left(host):
    child = host.start()
    lab = agents_run(child)
    running = processes.recorded(folder_of(lab))
    child.kill()
    child.wait()
    assert any(map(processes.alive, running))
    status, out, _ = host.lab("--clean", "--lab", str(lab))
    assert (status, out) == (0, f"removed: lab {lab}\n")
    assert gone(lab)
    assert not any(map(processes.alive, running))


def test_a_lab_that_is_being_built_is_not_removed_by_another_command(host):
    child = host.start()
    lab = agents_run(child)
    status, out, _ = host.lab("--clean", "--lab", str(lab))
    assert status == 1
    assert f"somebody is at lab {lab}" in out
    out, err = child.communicate(timeout=SECONDS)
    assert (child.returncode, err) == (0, "")


def test_an_error_in_the_middle_is_told_and_leaves_nothing(host):
    child = host.start()
    lab = agents_run(child)
    agent = next(each for each in processes.recorded(folder_of(lab)) if each.name == "agent-1")
    os.kill(agent.pid, signal.SIGKILL)
    _, err = child.communicate(timeout=SECONDS)
    assert child.returncode == 1
    assert err.startswith("pynet lab: agent-1 has ended")
    assert gone(lab)


class TestKeptLab:
    @pytest.fixture
    def kept(self, host):
        status, out, err = host.lab("--nodes", "2", "--pods", "1", "--keep")
        assert (status, err) == (0, "")
        lab = int(re.search(r"^lab (\d+):", out)[1])
        host.commands = dict(re.findall(r"^  (\S.*?)   +(\S.*)$", out, re.MULTILINE))
        yield lab
        host.lab("--clean", "--lab", str(lab))
        assert gone(lab)

    def test_every_command_to_try_can_be_run_and_a_deleted_route_comes_back(self, host, kept):
        delete = next(line for words, line in host.commands.items() if words.startswith("delete a route"))
        done = subprocess.run(["bash", "-c", delete], capture_output=True, text=True, timeout=SECONDS, check=True)
        assert "10.77.2.0/24 via 192.168.77.2" in done.stdout
        check = host.lab("--check", "--lab", str(kept))
        assert check[0] == 0, check

    def test_a_removed_node_goes_from_every_route_and_comes_back(self, host, kept):
        route = ["ip", "-n", f"pynet-lab-{kept}-node-1", "route", "show", "10.77.2.0/24"]

        def shown():
            return subprocess.run(route, capture_output=True, text=True, check=True).stdout

        # Of two nodes one is more than half, and would leave none: the guard asks for a second list first.
        assert host.lab("--remove-node", "node-2", "--lab", str(kept))[0] == 0
        until(lambda: shown() == "", "the route to go")
        assert host.lab("--check", "--lab", str(kept))[0] == 1
        assert host.lab("--add-node", "node-2", "--lab", str(kept))[0] == 0
        until(lambda: "via 192.168.77.2" in shown(), "the route's return")

    def test_a_conflist_that_somebody_removes_comes_back_with_a_word_in_the_log(self, host, kept):
        folder = folder_of(kept) / "node-1"
        conflist = folder / "cni" / "net.d" / "05-pynet.conflist"
        conflist.unlink()
        until(conflist.exists, "the conflist's return")
        until(lambda: f'"event":"conflist_repaired","path":"{conflist}"' in (folder / "agent.log").read_text(), "the word")

    def test_the_network_outlives_the_node_api(self, host, kept):
        api = next(each for each in processes.recorded(folder_of(kept)) if each.name == "api")
        os.kill(api.pid, signal.SIGKILL)
        assert host.lab("--check", "--lab", str(kept))[0] == 0

    def test_another_lab_stands_beside_it(self, host, kept):
        status, out, _ = host.lab("--nodes", "1", "--output", "json")
        assert status == 0
        assert json.loads(out)["lab"] != kept
        assert host.lab("--check", "--lab", str(kept))[0] == 0


def test_what_there_is_not_is_told_in_one_line(host):
    for flags in (["--check", "--lab", "99"], ["--add-node", "node-9", "--lab", "99"]):
        status, out, err = host.lab(*flags)
        assert (status, out, err) == (1, "", "pynet lab: there is no lab 99\n")
    assert host.lab("--clean", "--lab", "99") == (0, "nothing to remove\n", "")


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("mount -t tmpfs -o ro none /run", "/run/pynet-lab-1: Read-only file system"),
        ("mount -t tmpfs -o size=8k none /run; head -c 8192 /dev/zero >/run/x", "No space left on device"),
    ],
)
def test_a_machine_that_has_no_place_for_a_lab_is_told_in_one_line(host, run, words):
    script = f"{run}; exec {sys.executable} -m pynet lab --nodes 1"
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    done = host.namespace.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, err = done.communicate(timeout=SECONDS)
    assert (done.returncode, err) == (1, f"pynet lab: {words}\n")


@pytest.mark.parametrize(
    "flags", [["--nodes", "0"], ["--nodes", "65"], ["--nodes", "x"], ["--family", "5"], ["--check", "--clean"]]
)
def test_wrong_usage_is_64(host, flags):
    assert host.lab(*flags)[0] == 64


def agents_run(child):
    """Wait until the lab of ``child`` has started its agents; return the lab's number, which its first line tells."""
    lab = int(re.match(r"lab (\d+):", child.stdout.readline())[1])
    last = folder_of(lab) / "processes" / "agent-3"
    until(last.exists, "the agents", seconds=20)
    return lab


def gone(lab):
    return not folder_of(lab).exists() and namespaces.leftover(lab) == []


def listens(pid):
    """Whether a monitor has bound its netlink socket."""
    return any(line.split()[2] == str(pid) for line in Path(f"/proc/{pid}/net/netlink").read_text().splitlines()[1:])


def sysctls(namespace):
    with namespace.entered():
        found = {}
        for path in sorted(Path("/proc/sys/net").rglob("*")):
            if path.is_file() and os.access(path, os.R_OK) and path.stat().st_mode & 0o400:
                try:
                    found[str(path)] = path.read_text(errors="replace")
                except OSError as error:
                    found[str(path)] = str(error.errno)
        return found
