"""`pynet plan`: what the agent would do to the routes now. Reads the API server and the kernel; changes nothing."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from pathlib import Path
from typing import Final

from pynet import config
from pynet.commands.agent import add_api_arguments, check_node_name
from pynet.commands.agent.process import FatalError
from pynet.commands.agent.wiring import credentials_of, settings_of
from pynet.commands.output import add_output_argument, printable
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.desired import Desired
from pynet.core.diff import Differ, Plan
from pynet.core.guard import GuardSettings, too_many
from pynet.core.model import RTN_UNICAST, NodeFacts, Route, format_address
from pynet.drivers.credentials import CredentialsError
from pynet.drivers.kube import Api, ApiError
from pynet.drivers.netlink import Monitor, RouteSocket
from pynet.drivers.nodeapi import NodeApi
from pynet.observe.cluster import kubernetes_endpoints, list_service_cidrs
from pynet.observe.facts import ClusterFacts, Facts
from pynet.observe.fib import Fib
from pynet.observe.inbox import NodeInbox, NodeList
from pynet.observe.links import EgressInterfaces

EXIT_CHANGES: Final = 2
_VERBS: Final = {"add": "add", "replace": "replace", "delete": "del"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the agent's flags that matter here."""
    import os

    parser.add_argument("--config", metavar="FILE", help="the agent's configuration file")
    parser.add_argument("--node-name", default=os.environ.get("NODE_NAME", ""), help="name of this Node (default: $NODE_NAME)")
    add_api_arguments(parser)
    add_output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print the plan; returns 0 if there is nothing to do, 2 if there is, 1 if it cannot be made. Raises ConfigError."""
    settings = config.load(args.config)
    name = check_node_name(args.node_name)
    try:
        plan, facts = _make(settings, name, Api(credentials_of(args, Path(settings.run_dir))))
    except (ApiError, FatalError, CredentialsError, OSError) as error:
        print(f"pynet plan: {error}", file=sys.stderr)
        return 1
    if not facts.desired.own.known:
        print(f"pynet plan: Node {name!r} is not in the list of Nodes: is --node-name right?", file=sys.stderr)
        return 1
    held = too_many(
        plan.departures, facts.fib.count_peers(), GuardSettings(settings.removal_guard.fraction, settings.removal_guard.minimum)
    )
    _print(plan, facts, held, as_json=args.output == "json")
    return EXIT_CHANGES if plan.operations else 0


def _make(settings: config.Config, name: str, api: Api) -> tuple[Plan, Facts]:
    """One look at everything. Raises ApiError or OSError."""
    started = time.monotonic()
    listing = NodeApi(api, name).list("")
    nodes: dict[str, NodeFacts] = {node.name: node for node in listing.nodes}
    ranges, endpoints = list_service_cidrs(api) or [], kubernetes_endpoints(api)
    services = frozenset(parse_prefix(text) for text in (*settings.service_cidrs, *ranges))
    cluster = ClusterFacts(services, frozenset(map(parse_address, endpoints)) | api.peer_addresses())
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
        plan = Differ(routes.protocol, routes.foreign, {}).plan(desired.routes.keys() | fib.ours, desired.routes, fib.routes)
    return plan, facts


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
        print(f"# the removals would wait for a second list: {held}")
    if not commands:
        print("# nothing to do")


def _family(route: Route) -> str:
    return "-6 " if route.prefix.family == 6 else ""


def words(route: Route) -> str:
    """A route as `ip route` takes it."""
    kind = "" if route.type == RTN_UNICAST else "unreachable "
    via = f" via {format_address(route.gateway)}" if route.gateway else ""
    dev = f" dev {_name(route.oif)}" if route.oif else ""
    table = f" table {route.table}" if route.table != 254 else ""
    return f"{kind}{route.prefix}{via}{dev} proto {route.protocol} metric {route.metric}{table}"


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"if{index}"
