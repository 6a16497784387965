"""Network namespaces for tests: the real kernel, away from the host's own links, routes and sysctls.

``Namespace()`` is one, ``lan(n)`` are n of them joined by a bridge. Both are context managers that remove what they made, and
end the processes that were started through them, whatever happens in between.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class CommandError(AssertionError):
    """A command in a namespace failed: the message has its arguments, status and what it said."""


def _execute(argv: Sequence[str], *, check: bool = True, input: str | None = None) -> str:  # noqa: A002  as in subprocess
    done = subprocess.run(argv, capture_output=True, text=True, input=input, check=False, timeout=60)
    if check and done.returncode:
        raise CommandError(f"{' '.join(argv)}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A network namespace of its own, with a random name below /run/netns; a context manager.

    ``lo`` is up. IPv6 duplicate address detection is off for links that are made in it later, so that an address can be used
    (and waited for) at once; give ``dad=True`` to keep the kernel's default.
    """

    def __init__(self, *, dad: bool = False) -> None:
        self.name = f"pnt-{secrets.token_hex(4)}"
        self._children: list[subprocess.Popen[Any]] = []
        _execute(["ip", "netns", "add", self.name])
        try:
            self.run("ip", "link", "set", "lo", "up")
            if not dad:
                self.sysctl("net/ipv6/conf/default/accept_dad", 0)
                self.sysctl("net/ipv6/conf/all/accept_dad", 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the processes started by `popen` (SIGKILL) and remove the namespace; nothing if that was done before."""
        for child in self._children:
            child.kill()
            child.wait(timeout=10)
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._children.clear()
        if self.path.exists():
            _execute(["ip", "netns", "del", self.name])

    @property
    def path(self) -> Path:
        """The file that stands for the namespace."""
        return Path("/run/netns", self.name)

    def run(self, *argv: str, check: bool = True, input: str | None = None) -> str:  # noqa: A002  as in subprocess
        """Run a command in it and return its standard output; raises CommandError if it fails and ``check`` is set."""
        return _execute([*self._enter(), *argv], check=check, input=input)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a process in it (``options`` as of subprocess.Popen); it is killed when the namespace is removed."""
        child = subprocess.Popen([*self._enter(), *argv], **options)
        self._children.append(child)
        return child

    def ip(self, *args: str) -> Any:
        """What ``ip -json ARGS`` says, parsed; [] if it says nothing (a change rather than a question)."""
        said = self.run("ip", "-json", *args)
        return json.loads(said) if said.strip() else []

    @contextlib.contextmanager
    def entered(self) -> Iterator[Self]:
        """Move the calling thread into it for a ``with`` block: sockets that are opened there belong to it for good."""
        with open("/proc/thread-self/ns/net", "rb") as home, self.path.open("rb") as there:  # noqa: PTH123  no Path for a magic link
            _setns(there.fileno())
            try:
                yield self
            finally:
                _setns(home.fileno())

    def sysctl(self, path: str, value: object = None) -> str:
        """Read (and first write, if ``value`` is given) a sysctl, say ``net/ipv4/ip_forward``; below net/ only."""
        with self.entered():  # /proc/sys/net shows the namespace of the thread that opens it
            file = Path("/proc/sys", path)
            if value is not None:
                file.write_text(str(value))
            return file.read_text().strip()

    def _enter(self) -> list[str]:
        return ["nsenter", f"--net={self.path}", "--"]


@dataclass(frozen=True)
class Lan:
    """Nodes on one Ethernet: ``nodes[i]`` has eth0 with 10.99.0.(i+1)/24 and fd99::(i+1)/64; port ``p<i>`` of the bridge in
    ``switch`` leads to it. No uplink, no default route. Behaves as the sequence of its nodes."""

    nodes: tuple[Namespace, ...]
    switch: Namespace

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> Namespace:
        return self.nodes[index]

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self.nodes)

    @staticmethod
    def address(index: int, family: int = 4) -> str:
        """The address of node ``index`` in ``family`` (4 or 6), as text."""
        return f"10.99.0.{index + 1}" if family == 4 else f"fd99::{index + 1}"


@contextlib.contextmanager
def lan(n: int, families: Sequence[int] = (4, 6)) -> Iterator[Lan]:
    """``n`` (up to 250) namespaces joined by a bridge in one more, addressed as `Lan` says, in ``families`` only."""
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(Namespace())
        switch.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        nodes = tuple(stack.enter_context(Namespace()) for _ in range(n))
        wires = ["link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up"]
        for i, node in enumerate(nodes):
            wires += [f"link add p{i} type veth peer name eth0 netns {node.name}", f"link set p{i} master br0 up"]
        switch.run("ip", "-batch", "-", input="\n".join(wires))
        for i, node in enumerate(nodes):
            lines = ["link set eth0 up"]
            if 4 in families:
                lines.append(f"addr add {Lan.address(i, 4)}/24 dev eth0")
            if 6 in families:
                lines.append(f"addr add {Lan.address(i, 6)}/64 dev eth0 nodad")
            node.run("ip", "-batch", "-", input="\n".join(lines))
        yield Lan(nodes, switch)


def why_not() -> str:
    """Why namespaces cannot be made here, in one line; "" if they can."""
    if os.geteuid():
        return "network namespaces need root: run the tests as root"
    try:
        Namespace().close()
    except (CommandError, OSError) as error:
        return f"network namespaces cannot be made here: {error}"
    return ""
