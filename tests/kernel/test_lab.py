"""The lab's parts on the real kernel: namespaces, CNI ADD, pings, processes, removal. The whole is in test_lab_command.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pynet.apply.conflist import ConflistWanted, render
from pynet.commands import lab
from pynet.commands.lab import cleanup, cni, namespaces, processes, state
from pynet.commands.lab.ping import Pod, ping_all
from pynet.commands.lab.plan import LabError, folder_of, make_plan
from pynet.core.addresses import parse_prefix

from tests.support.netns import Namespace
from tests.support.waiting import until

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def nothing():
    """What `check` is where no signal is to be looked for."""


@pytest.fixture
def number():
    """A lab of this test's own, claimed and held; removed afterwards whatever was made of it."""
    with state.claim() as claimed:
        yield claimed
        assert cleanup.remove(claimed) == []


def conflist_of(node, families):
    prefixes = tuple(parse_prefix(cidr) for cidr in node.pod_cidrs)
    return json.loads(render(ConflistWanted(prefixes, ipam_dir=str(node.folder / "ipam"), bin_dir=str(cni.find_plugins()))))


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
@pytest.mark.parametrize("by", ["plugins", "hand"])
def test_pods_that_were_attached_reach_each_other_over_routes(number, families, by):
    plan = make_plan(number, 2, 2, families)
    namespaces.create(plan.namespaces, nothing)
    namespaces.join(plan)
    plugins = cni.find_plugins() if by == "plugins" else None
    assert (plugins is None) == (by == "hand"), "the CNI plugins are not installed (make env)"
    pods = []
    for node in plan.nodes:
        other = plan.nodes[1 - plan.nodes.index(node)]
        for family, cidr, address in zip(families, other.pod_cidrs, other.addresses, strict=True):
            ip(node.namespace, f"-{family}", "route", "add", cidr, "via", address)
        forward(node.namespace)
        for pod in node.pods:
            given = cni.attach(conflist_of(node, families), plugins, node, pod)
            pods.append(Pod(pod.name, pod.namespace, dict(zip(families, given, strict=True))))
    pings = ping_all(pods, nothing)
    assert len(pings) == 4 * 3 * len(families)
    assert [ping for ping in pings if ping.seconds is None] == []
    assert all(0 < ping.seconds < 1 for ping in pings)


def test_a_pod_that_is_not_reached_is_told_by_name_and_reason(number):
    plan = make_plan(number, 2, 1, (4,))
    namespaces.create(plan.namespaces, nothing)
    namespaces.join(plan)
    pods = []
    for node in plan.nodes:
        (address,) = cni.attach(conflist_of(node, (4,)), cni.find_plugins(), node, node.pods[0])
        pods.append(Pod(node.pods[0].name, node.pods[0].namespace, {4: address}))
    pings = ping_all(pods, nothing)
    assert [(ping.source, ping.target, ping.seconds, ping.error) for ping in pings] == [
        ("pod-1-1", "pod-2-1", None, "no reply"),
        ("pod-2-1", "pod-1-1", None, "no reply"),
    ]


def test_a_plugin_that_fails_is_quoted(number):
    plan = make_plan(number, 1, 1, (4,))
    namespaces.create(plan.namespaces, nothing)
    broken = conflist_of(plan.nodes[0], (4,))
    broken["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.77.1.0/33"}]]
    with pytest.raises(LabError, match=r"pod-1-1: the CNI plugin bridge says: .*10\.77\.1\.0/33"):
        cni.attach(broken, cni.find_plugins(), plan.nodes[0], plan.nodes[0].pods[0])


def test_only_the_process_that_was_recorded_is_ended(tmp_path):
    ours = processes.start(tmp_path, "ours", processes.python("-c", SLEEPER), tmp_path / "log")
    until(lambda: (tmp_path / "log").read_text() == "up\n", "the process")
    assert processes.recorded(tmp_path) == [ours]
    later = ours._replace(started=ours.started + 1)  # the same number, but another process
    assert processes.stop([later], grace=0.1) == []
    assert processes.alive(ours)
    assert processes.stop([ours], grace=0.1) == []  # it ignores SIGTERM
    assert not processes.alive(ours)


def test_a_process_that_was_stopped_by_hand_is_ended_too(tmp_path):
    ours = processes.start(tmp_path, "ours", ["sleep", "60"], tmp_path / "log")
    os.kill(ours.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert processes.stop([ours], grace=5) == []
    assert time.monotonic() - began < 2


def test_half_a_lab_is_removed_and_nothing_else():
    with Namespace() as others, state.claim() as number:
        plan = make_plan(number, 2, 1, (4,))
        state.write(state.State(number, 2, 1, (4,)))
        namespaces.create(plan.namespaces[:2], nothing)
        processes.start(plan.folder, "api", ["sleep", "60"], plan.folder / "log", plan.hub)
        bystander = others.popen("sleep", "60")
        assert cleanup.remove(number) == []
        assert leftovers(number) == []
        assert bystander.poll() is None
        assert others.path.exists()
        assert cleanup.remove(number) == []  # again: nothing to do


def test_a_lab_that_somebody_is_at_is_left_alone(number):
    with pytest.raises(state.BusyError, match="somebody is at lab"):
        cleanup.clean(number)
    assert folder_of(number).exists()


def test_namespaces_without_a_folder_are_found_and_removed():
    with state.claim() as number:
        namespaces.create([make_plan(number, 1, 1, (4,)).hub], nothing)
        folder_of(number).rmdir()
    assert number in state.numbers()
    assert cleanup.clean(number) == []
    assert leftovers(number) == []


def test_two_labs_never_have_one_number(number):
    with state.claim() as other:
        assert other != number
        assert cleanup.remove(other) == []


def test_without_root_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert lab.run(arguments()) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "pynet lab: needs root, to make network namespaces: run it with sudo\n"


def arguments(*flags):
    import argparse

    parser = argparse.ArgumentParser()
    lab.add_arguments(parser)
    return parser.parse_args(flags)


def ip(namespace, *args):
    subprocess.run(["ip", "-n", namespace, *args], check=True)


def forward(namespace):
    def on():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

    namespaces.enter(namespace, on)


def leftovers(number):
    """Everything of lab ``number`` that is on this machine: namespaces, its folder."""
    return [*namespaces.leftover(number), *([str(folder_of(number))] if folder_of(number).exists() else [])]
