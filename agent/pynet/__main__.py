"""The command line: arguments to a command's module, and nothing else.

Each command is a module of pynet.commands with ``add_arguments(parser)`` and ``run(args) -> int``, imported only when it is
chosen: the agent must not pay for what the lab needs.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Final, NoReturn, cast

COMMANDS: Final = {
    "agent": "run the node agent, until SIGTERM",
    "status": "show what the agent of this node does: peers, routes, rules, API",
    "plan": "show what the agent would do now, as ip route lines; change nothing",
    "cleanup": "remove everything of pynet's from this node, and nothing else",
    "lab": "build a cluster in network namespaces on this machine, and ping between all its pods",
    "version": "show the versions of pynet, Python and the kernel",
}

EXIT_USAGE: Final = 64  # EX_USAGE of sysexits.h: argparse's own 2 means "changes" to `pynet plan`
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT
EXIT_PIPE: Final = 141  # 128 + SIGPIPE
EXIT_FULL: Final = 1


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors exit with our status."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (default: the process's arguments) names; returns the exit status.

    Raises SystemExit for --help and for wrong usage (64).
    """
    # structlog imports rich wherever it finds it, and an agent has no use for its 4 MB.
    sys.modules.setdefault("rich", cast("ModuleType", None))
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        if sys.stdout is not None:  # `pynet version >&-`
            sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `pynet status | head`: the reader has what it wanted
        _drop_output()
        return EXIT_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:  # not standard output: a defect, or a file's
            raise
        print("pynet: what it has to say cannot be written: No space left on device", file=sys.stderr)
        _drop_output()
        return EXIT_FULL
    return status


def _drop_output() -> None:
    """Or the interpreter's own flush at the end would fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(argv: list[str]) -> int:
    parser = _Parser(prog="pynet", description="A per-node Kubernetes network agent: one kernel route per peer, kept right.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            module = import_module(f"pynet.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except Exception as error:
        from pynet.config import ConfigError  # only now: it brings msgspec with it

        if not isinstance(error, ConfigError):
            raise
        print(f"pynet: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
