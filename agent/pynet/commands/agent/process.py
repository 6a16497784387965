"""What the agent does about itself as a process: one per run directory, the right capability, little memory."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOCK: Final = "agent.lock"
"""Name of the lock file, in runDir."""

_CAP_NET_ADMIN: Final = 12
_M_TRIM_THRESHOLD: Final = -1
_M_ARENA_MAX: Final = -8


class FatalError(Exception):
    """Why the agent cannot work at all, in one line."""


class HeldError(FatalError):
    """Another process holds the lock."""


@contextlib.contextmanager
def hold_lock(run_dir: Path) -> Iterator[None]:
    """Hold ``run_dir``'s lock: a second agent, or a cleanup beside an agent, would fight over the same routes.

    Raises HeldError if another process holds it, FatalError if the folder cannot be written.
    """
    path = run_dir / LOCK
    try:
        run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise FatalError(f"{run_dir} (runDir) is not a folder") from None
    except OSError as error:
        raise FatalError(f"{path} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HeldError(f"{path} is held by another process: an agent runs already with this runDir") from None
        yield
    finally:
        os.close(lock)


def require_net_admin() -> None:
    """Raise FatalError unless the process may change routes here."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:") and not int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1:
            raise FatalError("CAP_NET_ADMIN is missing: routes cannot be written (run as root, with the capability NET_ADMIN)")


def trim_memory() -> None:
    """Give the memory back that starting took: some MB of pages that a first list of thousands of Nodes has left half empty.

    What is there now mostly stays: later collections leave it out, which makes them 2 ms instead of 50 at 5,000 nodes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to trim
        ctypes.CDLL(None).malloc_trim(0)


def collect_garbage() -> None:
    """To be called now and then: what is left over in cycles is next to nothing, and seldom looked for (see settle_memory)."""
    gc.collect()


def settle_memory() -> None:
    """Keep the heap small and the threads quick.

    One malloc arena and a low trim threshold give large pages of a Node list back (45 instead of 60 MB at 5,000 nodes); a short
    switch interval lets the loop run at once while another thread decodes. The collector of cycles, which stops all threads,
    begins by itself only after 50,000 objects more than were freed: a wave of Nodes, not every other change of a route.
    """
    gc.set_threshold(50_000, 10, 10)
    with contextlib.suppress(OSError, AttributeError):  # not glibc: nothing to tune
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TRIM_THRESHOLD, 65536)
    sys.setswitchinterval(0.0005)
