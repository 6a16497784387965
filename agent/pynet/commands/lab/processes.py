"""The lab's processes: each writes down who it is before it becomes its program, and is ended by that record alone.

A record is the process's own line of /proc/PID/stat, in a file of the lab's folder. Its number and its start time together
name one process for ever: a number that another process has got since is left alone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pynet.commands.lab.plan import NAMESPACES, LabError

FOLDER: Final = "processes"

# The shell's own words only (no fork), so the record is the line of the very process that becomes the program.
# Descriptor 3 is a pipe to whoever started it: its end says that the record is written.
_RECORD: Final = 'read -r line <"/proc/$$/stat" && printf "%s\\n" "$line" >"$0" && exec 3>&- && exec "$@"'


class Process(NamedTuple):
    """One process: ``pid``, and ``started`` in clock ticks since boot."""

    name: str
    pid: int
    started: int


def start(folder: Path, name: str, command: Sequence[str], log: Path, namespace: str | None = None) -> Process:
    """Start a command in a session of its own, inside ``namespace`` if one is named, with its output in ``log``.

    Its record goes to ``folder``/processes/``name``. Raises LabError.
    """
    record = folder / FOLDER / name
    record.parent.mkdir(exist_ok=True)
    inside = ["nsenter", f"--net={NAMESPACES / namespace}", "--"] if namespace else []
    reader, writer = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, writer, 3),
    ]
    arguments = ["/bin/sh", "-c", _RECORD, str(record), *inside, *command]
    try:
        os.posix_spawn("/bin/sh", arguments, dict(os.environ), file_actions=actions, setsid=True, setsigmask=())
        os.close(writer)
        os.read(reader, 1)
    finally:
        os.close(reader)
    process = _parse(name, record.read_text()) if record.exists() else None
    if process is None:
        raise LabError(f"{name} did not start: see {log}")
    return process


def python(*arguments: str) -> list[str]:
    """Name the command that runs this Python, this pynet."""
    return [sys.executable, *arguments]


def recorded(folder: Path) -> list[Process]:
    """List the processes that the folder's records name, alive or not."""
    processes = []
    for record in sorted((folder / FOLDER).glob("*")):
        process = _parse(record.name, record.read_text())
        if process is not None:
            processes.append(process)
    return processes


def alive(process: Process) -> bool:
    """Whether this very process still runs."""
    now = _look(process.name, process.pid)
    return now is not None and now.started == process.started


def stop(processes: Iterable[Process], grace: float = 3.0) -> list[Process]:
    """End processes: SIGTERM to all, SIGKILL to what is left after ``grace`` seconds. Return those that would not go."""
    opened = {descriptor: process for process in processes if (descriptor := _open(process)) is not None}
    try:
        left = set(opened)
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 1.0)):
            for descriptor in left:
                _signal(descriptor, number)
                _signal(descriptor, signal.SIGCONT)  # a stopped one (see the commands to try) cannot end
            left = _wait(left, seconds)
        return [opened[descriptor] for descriptor in left]
    finally:
        for descriptor, process in opened.items():
            os.close(descriptor)
            _reap(process.pid)


def _wait(descriptors: set[int], seconds: float) -> set[int]:
    """Wait until the processes of these pidfds have ended; return those of them that have not in time."""
    left = set(descriptors)
    deadline = time.monotonic() + seconds
    while left and (remaining := deadline - time.monotonic()) > 0:
        poll = select.poll()
        for descriptor in left:
            poll.register(descriptor, select.POLLIN)
        left -= {descriptor for descriptor, _ in poll.poll(remaining * 1000)}
    return left


def _open(process: Process) -> int | None:
    """Open a pidfd of this very process, None if it has ended."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if alive(process):  # looked at after opening: the descriptor is of the process that the record names
        return descriptor
    os.close(descriptor)
    return None


def _signal(descriptor: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return  # it has ended meanwhile, as it should


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return  # an earlier lab's: not our child


def _look(name: str, pid: int) -> Process | None:
    try:
        return _parse(name, Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def _parse(name: str, stat: str) -> Process | None:
    """Read one line of /proc/PID/stat (proc(5)); None if it is not whole, or of a zombie."""
    pid, _, rest = stat.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return Process(name, int(pid), int(fields[19]))
