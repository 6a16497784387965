"""`pynet version`: what runs here."""

from __future__ import annotations

import argparse
import json
import platform

from pynet import __version__
from pynet.commands.output import add_output_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --output."""
    add_output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Print versions; returns 0."""
    versions = {"pynet": __version__, "python": platform.python_version(), "kernel": platform.release()}
    if args.output == "json":
        print(json.dumps(versions))
    else:
        print("".join(f"{name:<7} {version}\n" for name, version in versions.items()), end="")
    return 0
