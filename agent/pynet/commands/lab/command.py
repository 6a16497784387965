"""What `pynet lab` does with its flags: a new lab, or something with one that is there."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pynet.commands.lab import agents, cleanup, cluster, picture, processes, state
from pynet.commands.lab.lab import Interrupts, Lab
from pynet.commands.lab.plan import LabError, NodePlan, Plan, folder_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from pynet.commands.lab.ping import Ping
    from pynet.core.model import Family

COLUMNS: Final = 120
"""The width of the picture where there is no terminal to ask."""


def run(arguments: argparse.Namespace, families: tuple[Family, ...]) -> int:
    """Do what the flags say; return the exit status. Raises LabError."""
    if arguments.clean:
        return _clean(arguments.lab, arguments.output)
    if not (arguments.check or arguments.remove_node or arguments.add_node):
        return _new(arguments, families)
    kept = _kept(arguments.lab)
    if arguments.check:
        return _check(kept, arguments.output)
    if arguments.remove_node:
        agents.unregister(kept.plan, _node(kept.plan, arguments.remove_node).name)
    else:
        agents.register(kept.plan, [_node(kept.plan, arguments.add_node)], kept.token)
    return 0


def _new(arguments: argparse.Namespace, families: tuple[Family, ...]) -> int:
    """Build a lab, show it, ping, and remove it again unless it is to be kept."""
    output, keep = arguments.output, False
    kubeconfig = ""
    if arguments.kubeconfig:
        kubeconfig = str(Path(arguments.kubeconfig).resolve())  # --clean may run elsewhere
        cluster.check(kubeconfig)
    with Interrupts() as interrupts, state.claim() as number:
        made = state.State(number, arguments.nodes, arguments.pods, families, kubeconfig)
        lab = Lab(made, _say(output), interrupts.check)
        try:
            kinds = " and ".join(f"IPv{family}" for family in families)
            lab.say(f"lab {number}: {_count(arguments.nodes, 'node')} with {_count(arguments.pods, 'pod')} each, {kinds}")
            lab.build()
            passed = _show(lab, output)
            keep = arguments.keep
        finally:
            left = [] if keep else cleanup.remove(number)
            for line in left:
                print(f"pynet lab: left behind: {line}", file=sys.stderr)
    if keep and output == "text":
        print(commands_to_try(lab))
    return 0 if passed and not left else 1


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _check(kept: state.State, output: str) -> int:
    with Interrupts() as interrupts, state.hold(kept.number):
        return 0 if _show(Lab(kept, _say(output), interrupts.check), output) else 1


def _show(lab: Lab, output: str) -> bool:
    """Print the picture, the routes and the pings; whether all of them passed."""
    pings = lab.ping()
    routes = lab.routes()
    passed = bool(pings) and all(ping.seconds is not None for ping in pings)
    if output == "json":
        print(json.dumps(_as_json(lab, routes, pings, passed=passed)))
        return passed
    width = shutil.get_terminal_size((COLUMNS, 24)).columns
    bridge = lab.conflist(lab.plan.nodes[0])["plugins"][0].get("bridge", "pods")
    node_of = {pod.name: node.name for node, pod in lab.plan.pods}
    print("", picture.topology(lab.plan, lab.state.addresses, bridge, width), "", sep="\n")
    print(picture.routes(lab.plan.nodes, routes), "", sep="\n")
    for family in lab.plan.families:
        print(picture.matrix(pings, family, width, node_of), "", sep="\n")
    print(picture.summary(pings, lab.plan.families))
    return passed


def _as_json(lab: Lab, routes: dict[str, list[str]], pings: list[Ping], *, passed: bool) -> dict[str, Any]:
    nodes = [
        {
            "name": node.name,
            "namespace": node.namespace,
            "addresses": node.addresses,
            "podCIDRs": node.pod_cidrs,
            "pods": [
                {"name": pod.name, "namespace": pod.namespace, "addresses": lab.state.addresses.get(pod.name, ())}
                for pod in node.pods
            ],
            "routes": routes[node.name],
        }
        for node in lab.plan.nodes
    ]
    return {
        "lab": lab.plan.number,
        "api": lab.plan.api_url,
        "nodes": nodes,
        "pings": [ping._asdict() for ping in pings],
        "seconds": lab.times,
        "passed": passed,
    }


def _clean(number: int, output: str) -> int:
    """Remove one lab, or all that nobody is at; 1 if anything stays."""
    removed: list[int] = []
    left: list[str] = []
    busy: list[str] = []
    for each in [each for each in state.numbers() if number in (0, each)]:
        try:
            lines = cleanup.clean(each)
        except state.BusyError as error:
            busy.append(str(error))
            continue
        removed.extend([] if lines else [each])
        left.extend(f"lab {each}: {line}" for line in lines)
    if output == "json":
        print(json.dumps({"removed": removed, "busy": busy, "left": left}))
    else:
        if removed or not (left or busy):
            print(f"removed: {', '.join(f'lab {each}' for each in removed)}" if removed else "nothing to remove")
        for line in [*busy, *left]:
            print(line)
    return 1 if left or (number and busy) else 0


def _kept(number: int) -> state.State:
    """Return a lab that stands: the one named, else the last. Raises LabError."""
    found = [each for each in (state.read(one) for one in state.numbers()) if each is not None and each.addresses]
    chosen = [each for each in found if number in (0, each.number)]
    if not chosen:
        raise LabError(f"there is no lab {number}" if number else "there is no lab: pynet lab --keep leaves one up")
    return chosen[-1]


def _node(plan: Plan, name: str) -> NodePlan:
    for node in plan.nodes:
        if name in (node.name, f"node-{node.index}"):
            return node
    raise LabError(f"lab {plan.number} has no {name}; it has {', '.join(node.name for node in plan.nodes)}")


def commands_to_try(lab: Lab) -> str:
    """Say what can be tried with a lab that is left up."""
    plan, me, which = lab.plan, sys.argv[0], f"--lab {lab.plan.number}"
    first, last = plan.nodes[0], plan.nodes[-1]
    enter = f"ip netns exec {first.namespace}"
    route, there = f"ip -n {first.namespace} route", last.pod_cidrs[0]
    agent = f"--config {first.config_file} --node-name {first.name} --api-server {plan.api_url}"
    api = next((each.pid for each in processes.recorded(folder_of(plan.number)) if each.name == "api"), 0)
    tries = [
        ("what the agent of the first node says", f"{enter} {me} status"),
        ("watch its routes (in another terminal)", f"ip -n {first.namespace} monitor route"),
        (
            "delete a route, and see it come back",
            f"{route} del {there}; sleep 0.1; {route} show {there}",
        ),
        ("what the agent would do now", f"{enter} {me} plan {agent}"),
        ("remove a node: its routes go everywhere", f"{me} lab --remove-node {last.name} {which}"),
        ("and take it back", f"{me} lab --add-node {last.name} {which}"),
        ("stop the Node API; the network stays", f"kill -STOP {api}"),
        ("and let it go on", f"kill -CONT {api}"),
        ("picture, routes and pings again", f"{me} lab --check {which}"),
        ("the agent's log", f"tail -f {first.log_file}"),
        ("remove the lab", f"{me} lab --clean {which}"),
    ]
    width = max(len(words) for words, _ in tries)
    return "\n".join(["", "the lab stays up; to try (as root):", *(f"  {words:<{width}}   {line}" for words, line in tries)])


def _say(output: str) -> Callable[[str], None]:
    """Print lines as they come, also into a pipe; in JSON there is but one."""
    return partial(print, flush=True) if output == "text" else lambda _: None
