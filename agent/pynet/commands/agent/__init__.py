"""`pynet agent`: the node agent. This module turns flags into settings and failures into exit statuses; wiring.py builds it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import Final

from pynet import config
from pynet.commands.agent.process import FatalError, hold_lock, settle_memory
from pynet.report.logs import LEVELS

TERMINATION_LOG: Final = "/dev/termination-log"

_LABEL: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NODE_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")  # a DNS subdomain (RFC 1123)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the agent's flags; each wins over the configuration file."""
    parser.add_argument("--config", metavar="FILE", help="configuration file (YAML); default: every setting's default")
    parser.add_argument("--node-name", default=os.environ.get("NODE_NAME", ""), help="name of this Node (default: $NODE_NAME)")
    add_api_arguments(parser)
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    parser.add_argument("--log-format", choices=("json", "console"), help="default: console on a terminal, else json")


def add_api_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how the API server is reached."""
    parser.add_argument("--kubeconfig", metavar="FILE", help="reach the API server by a kubeconfig, outside the cluster")
    parser.add_argument("--api-server", metavar="URL", help="the API server's URL, over the in-cluster address")
    parser.add_argument("--token-file", metavar="FILE", help="bearer token, with --api-server where there is no ServiceAccount")
    parser.add_argument("--ca-file", metavar="FILE", help="certificate authority, with --api-server")


def check_node_name(name: str) -> str:
    """``name`` if it can be a Node's. Raises ConfigError."""
    if not name:
        raise config.ConfigError("--node-name is not given and $NODE_NAME is not set; allowed: the name of this Node")
    if not _NODE_NAME.fullmatch(name):
        allowed = "lower-case letters, digits, - and ., as the Node object has it (a host's name may differ in case)"
        raise config.ConfigError(f"--node-name is {name!r}; allowed: {allowed}")
    return name


def check_api_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for flags of which one would silently be ignored."""
    own = [flag for flag in ("--api-server", "--token-file", "--ca-file") if getattr(args, flag[2:].replace("-", "_"))]
    if args.kubeconfig and own:
        raise config.ConfigError(f"--kubeconfig is given together with {own[0]}; allowed: one of them")
    if own and not args.api_server:
        raise config.ConfigError(f"{own[0]} is given without --api-server; allowed: both, or neither")


def run(args: argparse.Namespace) -> int:
    """Run the agent until SIGTERM or SIGINT; returns 0 then, 1 if it cannot work at all. Raises ConfigError."""
    try:
        settings = config.load(args.config)
        name = check_node_name(args.node_name)
        check_api_arguments(args)
    except config.ConfigError as error:
        _leave_word(f"pynet: {error}")
        raise
    settle_memory()
    try:
        with hold_lock(Path(settings.run_dir)):
            from pynet.commands.agent.wiring import Agent

            agent = Agent(settings, name, args)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: agent.stop())
            agent.run()
    except FatalError as error:
        print(f"pynet agent: {error}", file=sys.stderr)
        _leave_word(f"pynet agent: {error}")
        return 1
    return 0


def _leave_word(line: str) -> None:
    """Say a fatal error where kubelet shows why a container ended."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        with contextlib.suppress(OSError):
            Path(TERMINATION_LOG).write_text(line + "\n", encoding="utf-8")
