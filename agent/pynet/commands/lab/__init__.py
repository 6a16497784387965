"""`pynet lab`: a cluster in network namespaces on this machine, with real agents; a picture of it; pings between all pods.

Nothing of the host's own namespace is touched: no link, route, rule or sysctl. Exit status 0 if every ping passes, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from pynet.commands.lab.plan import MAX_NODES, MAX_PODS, LabError
from pynet.core.model import Family

FAMILIES: Final[dict[str, tuple[Family, ...]]] = {"4": (4,), "6": (6,), "dual": (4, 6)}
TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux", "nft": "nftables"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--nodes", type=_number(MAX_NODES), default=3, metavar="N", help=f"nodes, 1 to {MAX_NODES} (default 3)")
    parser.add_argument(
        "--pods", type=_number(MAX_PODS), default=2, metavar="N", help=f"pods on each, 1 to {MAX_PODS} (default 2)"
    )
    parser.add_argument("--family", choices=list(FAMILIES), default="dual", help="address families (default dual)")
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="a real cluster's Node API, not the embedded one")
    parser.add_argument("--keep", action="store_true", help="leave the lab up and print commands to try")
    parser.add_argument("--output", choices=["text", "json"], default="text", help="what to print (default text)")
    later = parser.add_argument_group("with a lab that --keep or a crash left")
    exclusive = later.add_mutually_exclusive_group()
    exclusive.add_argument("--check", action="store_true", help="its picture, routes and pings again")
    exclusive.add_argument("--clean", action="store_true", help="remove it")
    exclusive.add_argument("--remove-node", metavar="NAME", help="delete a Node object")
    exclusive.add_argument("--add-node", metavar="NAME", help="create it again")
    later.add_argument(
        "--lab", type=_number(10**6), default=0, metavar="N", help="which (default: the last; --clean: all that nobody is at)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the flags say; return the exit status."""
    try:
        _check_host()
        from pynet.commands.lab import command

        return command.run(arguments, FAMILIES[arguments.family])
    except BrokenPipeError:  # who reads has seen enough
        raise
    except (LabError, OSError) as error:
        if arguments.output == "json":
            print(json.dumps({"passed": False, "error": _plain(error)}))
        print(f"pynet lab: {_plain(error)}", file=sys.stderr)
        return 1


def _plain(error: LabError | OSError) -> str:
    """In one line: what the machine has not got for us (space, a folder that can be written) is no defect."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _check_host() -> None:
    """Raise LabError if this machine or this user cannot have a lab."""
    if os.geteuid() != 0:
        raise LabError("needs root, to make network namespaces: run it with sudo")
    # A root shell got by su may lack the folders that Debian keeps root's tools in.
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise LabError(f"needs {' '.join(missing)}: apt-get install {' '.join(missing)}")
    if not Path("/proc/self/ns/net").exists():
        raise LabError("needs a kernel with network namespaces")


def _number(largest: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {largest}")
        return int(text)

    return number
