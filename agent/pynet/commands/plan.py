"""`pynet plan`: what the agent would do to the routes now. Reads the API server and the kernel; changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Final

from pynet import config
from pynet.commands.agent import add_api_arguments, check_api_arguments, check_node_name
from pynet.commands.agent.process import FatalError
from pynet.commands.agent.wiring import credentials_of, settings_of
from pynet.commands.output import add_output_argument, printable
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.desired import Desired
from pynet.core.diff import Differ, Plan
from pynet.core.guard import GuardSettings, too_many
from pynet.core.model import RT_TABLE_MAIN, RTN_UNICAST, RTN_UNREACHABLE, NodeFacts, Route, format_address
from pynet.drivers.apiwire import MalformedError
from pynet.drivers.credentials import CredentialsError
from pynet.drivers.kube import Api, ApiError
from pynet.drivers.netlink import Monitor, RouteSocket
from pynet.drivers.nodeapi import NodeApi
from pynet.observe.cluster import kubernetes_endpoints, list_service_cidrs, parse_each
from pynet.observe.facts import ClusterFacts, Facts
from pynet.observe.fib import Fib
from pynet.observe.inbox import NodeInbox, NodeList
from pynet.observe.links import EgressInterfaces

EXIT_CHANGES: Final = 2
_TYPES: Final = {RTN_UNICAST: "", 2: "local ", 6: "blackhole ", RTN_UNREACHABLE: "unreachable ", 8: "prohibit ", 9: "throw "}
_VERBS: Final = {"add": "add", "replace": "replace", "delete": "del"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the agent's flags that matter here."""
    parser.add_argument("--config", metavar="FILE", help="the agent's configuration file")
    parser.add_argument("--node-name", default=os.environ.get("NODE_NAME", ""), help="name of this Node (default: $NODE_NAME)")
    add_api_arguments(parser)
    add_output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns 0 if there is nothing to do, 2 if there is, 1 if it cannot be made. Raises ConfigError."""
    settings = config.load(args.config)
    name = check_node_name(args.node_name)
    check_api_arguments(args)
    try:
        plan, facts, unreadable = _make(settings, name, Api(credentials_of(args, Path(settings.run_dir))))
    except (ApiError, MalformedError, FatalError, CredentialsError, OSError) as error:
        print(f"pynet plan: {_plain(error)}", file=sys.stderr)
        return 1
    if not facts.desired.own.known:
        print(f"pynet plan: Node {name!r} is not in the list of Nodes: is --node-name right?", file=sys.stderr)
        return 1
    guard = GuardSettings(settings.removal_guard.fraction, settings.removal_guard.minimum)
    held = too_many(plan.departures, facts.fib.count_peers(), guard)
    if unreadable and plan.departures:
        held = f"{unreadable} Nodes cannot be read, and these routes may be theirs"
    _print(plan, facts, held, as_json=args.output == "json")
    return EXIT_CHANGES if plan.operations else 0


def _plain(error: Exception) -> str:
    if isinstance(error, MalformedError):
        return f"the API server's answer cannot be read: {error}"
    return f"the API server says {error}" if isinstance(error, ApiError) and error.status else str(error)


def _make(settings: config.Config, name: str, api: Api) -> tuple[Plan, Facts, int]:
    """One look at everything: the plan, what it follows from, and how many Nodes could not be read.

    Raises ApiError, MalformedError, OSError.
    """
    started = time.monotonic()
    listing = NodeApi(api, name).list("")
    nodes: dict[str, NodeFacts] = {node.name: node for node in listing.nodes}
    ranges, endpoints = list_service_cidrs(api) or [], kubernetes_endpoints(api)
    services = parse_each((*settings.service_cidrs, *ranges), parse_prefix)
    cluster = ClusterFacts(services, parse_each(endpoints, parse_address) | api.peer_addresses())
    inbox = NodeInbox(lambda: None)
    inbox.put_list(NodeList(nodes, consistent=True, complete=name in nodes, started=started, received=time.monotonic()))
    routes = settings.routes
    with RouteSocket() as netlink, Monitor() as monitor:
        facts = Facts(
            Desired(settings_of(settings, name)),
            Fib(netlink, monitor, table=routes.table, protocol=routes.protocol),
            netlink,
            inbox,
            egress=EgressInterfaces(settings.interface_choice),
            cluster=lambda: cluster,
            load_snapshot=dict,
            snapshot_at=float("inf"),
        )
        facts.observe(everything=True)
        desired, fib = facts.desired, facts.fib
        # Only what carries our protocol counts as ours here: what an agent has programmed, only that agent knows.
        prefixes = sorted(desired.routes.keys() | fib.ours, key=lambda prefix: (prefix.family, prefix))
        plan = Differ(routes.protocol, routes.foreign, {}).plan(prefixes, desired.routes, fib.routes)
    return plan, facts, len(listing.refused)


def _print(plan: Plan, facts: Facts, held: str, *, as_json: bool) -> None:
    commands = [f"ip {_family(o.route)}route {_VERBS[o.kind]} {words(o.route)}" for o in plan.operations]
    refused = {
        f"{name} IPv{family}": f"{verdict.state}: {verdict.reason}"
        for (name, family), verdict in sorted(facts.desired.verdicts.items())
        if verdict.state != "accepted"
    }
    conflicts = {str(prefix): words(rival) for prefix, (rival, _) in sorted(plan.rivals.items())}
    if as_json:
        print(json.dumps({"commands": commands, "peers": refused, "conflicts": conflicts, "held": held}, indent=2))
        return
    for line in commands:
        print(line)
    for peer, why in refused.items():
        print(f"# {printable(peer)} {printable(why)}")
    for prefix, rival in conflicts.items():
        print(f"# {prefix} conflict: there is {rival}")
    if held:
        print(f"# the removals would wait for another list: {held}")
    if not commands:
        print("# nothing to do")


def _family(route: Route) -> str:
    return "-6 " if route.prefix.family == 6 else ""


def words(route: Route) -> str:
    """A route as `ip route` takes it. One of several next hops is named without them, which is enough to remove it."""
    kind = _TYPES.get(route.type, f"type {route.type} ")
    family = " inet6" if route.prefix.family == 4 and len(route.gateway) == 16 else ""
    via = f" via{family} {format_address(route.gateway)}" if route.gateway and not route.multipath else ""
    dev = f" dev {_name(route.oif)}" if route.oif and not route.multipath else ""
    table = f" table {route.table}" if route.table != RT_TABLE_MAIN else ""
    tos = f" tos {route.tos:#x}" if route.tos else ""
    return f"{kind}{route.prefix}{tos}{via}{dev} proto {route.protocol} metric {route.metric}{table}"


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
