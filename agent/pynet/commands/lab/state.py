"""What a lab leaves for those who come later: its number, its size, whether somebody is still at it.

The folder ``/run/pynet-lab-N`` belongs to lab N. Whoever builds, checks or removes that lab holds a lock on it, which the
kernel takes back when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pynet.commands.lab import namespaces
from pynet.commands.lab import plan as layout
from pynet.commands.lab.plan import PREFIX, LabError, Plan
from pynet.core.model import Family

STATE: Final = "state.json"
MAX_LABS: Final = 100


class State(msgspec.Struct, frozen=True):
    """What a lab was made with. ``kubeconfig`` is that of a real cluster, "" for the embedded Node API;
    ``token`` marks its Nodes there.
    """

    number: int
    nodes: int
    pods: int
    families: tuple[Family, ...]
    kubeconfig: str = ""
    token: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))
    addresses: dict[str, tuple[str, ...]] = {}
    """Each pod's addresses, by its name; complete once the lab stands."""

    @property
    def plan(self) -> Plan:
        """The lab's plan. In a cluster of other people the nodes are named for the lab."""
        prefix = f"lab-{self.number}-" if self.kubeconfig else ""
        return layout.make_plan(self.number, self.nodes, self.pods, self.families, prefix)


class BusyError(LabError):
    """Another process is at this lab."""


@contextmanager
def claim() -> Iterator[int]:
    """Take the first free number for a new lab: make its folder and hold it. Raises LabError if there is none."""
    for number in range(1, MAX_LABS):
        try:
            layout.folder_of(number).mkdir(mode=0o700)
        except FileExistsError:
            continue
        if namespaces.leftover(number):
            layout.folder_of(number).rmdir()  # namespaces of a lab whose folder is gone: for --clean
            continue
        with hold(number):
            yield number
        return
    raise LabError(f"there are {MAX_LABS - 1} labs already: pynet lab --clean removes those that nobody is at")


@contextmanager
def hold(number: int) -> Iterator[None]:
    """Hold lab ``number`` against others. Raises BusyError if another process does, LabError if there is no such lab."""
    folder = layout.folder_of(number)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(f"there is no lab {number}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise BusyError(f"lab {number} has just been removed")
        yield
    except BlockingIOError:
        raise BusyError(f"somebody is at lab {number}: end that command first (Ctrl-C)") from None
    finally:
        os.close(descriptor)


def numbers() -> list[int]:
    """List the labs of which there is anything on this machine: a folder or a namespace."""
    names = [path.name for folder in (layout.RUN, layout.NAMESPACES) if folder.exists() for path in folder.iterdir()]
    found = {name.removeprefix(PREFIX).partition("-")[0] for name in names if name.startswith(PREFIX)}
    return sorted(int(text) for text in found if text.isdecimal())


def write(state: State) -> None:
    """Write down what the lab is, for --check and --clean."""
    _file(state.number).write_bytes(msgspec.json.encode(state))


def read(number: int) -> State | None:
    """Read what a lab was made with; None if nothing whole was written down."""
    try:
        return msgspec.json.decode(_file(number).read_bytes(), type=State)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _file(number: int) -> Path:
    return layout.folder_of(number) / STATE
