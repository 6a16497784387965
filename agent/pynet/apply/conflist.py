"""The CNI configuration list: what is in it, and keeping it in its place, first of all, in a thread of its own."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from pynet.apply.applier import Applier
from pynet.apply.confdir import ConflistError, FolderWatch, earlier, is_right, missing_plugins, put
from pynet.apply.gateways import remove_addresses
from pynet.core.fights import Fights
from pynet.core.model import FAMILIES, Prefix
from pynet.drivers.files import remove_leftovers
from pynet.drivers.inotify import Inotify

if TYPE_CHECKING:
    from collections.abc import Callable

CNI_VERSION: Final = "1.0.0"
NETWORK: Final = "pynet"
_DEFAULT_ROUTES: Final = {4: "0.0.0.0/0", 6: "::/0"}
_GAP: Final = 0.05  # seconds between two looks that file events ask for: a rival in a tight loop must not take a core
_NOT_YET: Final = "not written yet: the first verified pass and the masquerade rules come before"


class ConflistWanted(msgspec.Struct, frozen=True):
    """Everything that decides about the file. ``mtu`` in bytes, 0: not said. ``pod_cidrs`` our own, of all families.

    ``stale`` are gateway addresses that the bridge must lose (see gateways.stale_gateways).
    """

    pod_cidrs: tuple[Prefix, ...]
    mtu: int = 0
    conf_dir: str = "/etc/cni/net.d"
    conf_name: str = "05-pynet.conflist"
    bin_dir: str = "/opt/cni/bin"
    plugin: Literal["bridge", "ptp"] = "bridge"
    bridge_name: str = "pynet0"
    portmap: bool = True
    bandwidth: bool = True
    ipam_dir: str = "/run/pynet/ipam"
    stale: tuple[Prefix, ...] = ()

    @property
    def path(self) -> Path:
        """Of the file."""
        return Path(self.conf_dir, self.conf_name)

    @property
    def binaries(self) -> tuple[str, ...]:
        """The plugins that the list names."""
        chained = (("portmap", self.portmap), ("bandwidth", self.bandwidth))
        return (self.plugin, "host-local", *(name for name, chosen in chained if chosen))


def render(wanted: ConflistWanted) -> bytes:
    """The file's content: JSON with a newline at its end. Pure; the same for the same value."""
    plugins: list[dict[str, Any]] = [_interface_plugin(wanted)]
    if wanted.portmap:
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
    if wanted.bandwidth:
        plugins.append({"type": "bandwidth", "capabilities": {"bandwidth": True}})
    document = {"cniVersion": CNI_VERSION, "name": NETWORK, "plugins": plugins}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _interface_plugin(wanted: ConflistWanted) -> dict[str, Any]:
    plugin: dict[str, Any] = {"type": wanted.plugin}
    if wanted.plugin == "bridge":
        plugin |= {"bridge": wanted.bridge_name, "isGateway": True, "hairpinMode": True}
    plugin["ipMasq"] = False  # the agent masquerades, and knows what is inside the cluster
    if wanted.mtu:
        plugin["mtu"] = wanted.mtu
    plugin["ipam"] = _ipam(wanted)
    return plugin


def _ipam(wanted: ConflistWanted) -> dict[str, Any]:
    """host-local: a pod gets one address of each range set, so there is one set per family."""
    families = [family for family in FAMILIES if any(cidr.family == family for cidr in wanted.pod_cidrs)]
    return {
        "type": "host-local",
        "dataDir": wanted.ipam_dir,
        "ranges": [[{"subnet": str(cidr)} for cidr in wanted.pod_cidrs if cidr.family == family] for family in families],
        "routes": [{"dst": _DEFAULT_ROUTES[family]} for family in families],
    }


class Conflist:
    """Keeps the configuration list as wanted, and its place in the folder.

    ``on_result(name, error)`` is called when the state changes (see Applier); ``on_repair(path, seconds)`` when the file was
    put back because somebody had removed or changed it, so long after that was found. Both in a thread of this class: they
    must not block or raise.
    """

    def __init__(
        self, on_result: Callable[[str, str], None] | None = None, on_repair: Callable[[str, float], None] | None = None
    ) -> None:
        self._on_repair = on_repair
        self._applier: Applier[ConflistWanted | None] = Applier("conflist", self._apply, on_result=on_result)
        self._wanted: ConflistWanted | None = None
        self._fights = Fights(free=5, window=180.0, longest=60.0)  # each repair is a reload of the container runtime
        self._placed: tuple[Path, bytes] | None = None  # what we last saw in its place
        self._swept: set[Path] = set()
        self._watcher: _Watcher | None = None
        self._stopping = False

    @property
    def ok(self) -> bool:
        """Whether the file wanted now is in its place, the first one there, and can be used."""
        return self._wanted is not None and self._applier.ok and self._applier.applied == self._wanted

    @property
    def tried(self) -> bool:
        """Whether there was a file to write; until then :attr:`error` says what it waits for."""
        return self._wanted is not None

    @property
    def error(self) -> str:
        """Why it is not ok, in one line; "" if it is."""
        if self.ok:
            return ""
        return _NOT_YET if self._wanted is None else self._applier.error or "being written"

    def submit(self, wanted: ConflistWanted | None) -> None:
        """Have the file as ``wanted``; None: leave it as it is (there was no verified pass yet)."""
        if wanted is None and self._wanted is None:
            return
        self._wanted = wanted
        self._applier.submit(wanted)

    def resync(self) -> None:
        """Look again, whatever the file events say."""
        self._applier.retry()

    def stop(self, timeout: float = 1.0) -> bool:
        """End the threads; the file stays. True if they have ended within ``timeout`` seconds."""
        self._stopping = True
        ended = self._applier.stop(timeout)
        if self._watcher is not None:
            ended = self._watcher.stop(timeout) and ended
        return ended

    def _apply(self, wanted: ConflistWanted | None) -> None:
        """One look, in the applier's thread. Raises ConflistError with everything that is wrong."""
        if wanted is None:
            return
        if watch := self._watch():
            watch.arm(wanted.path.parent, Path(wanted.bin_dir), wanted.binaries)
        self._sweep(wanted.path)
        self._place(wanted.path, render(wanted))
        problems = []
        try:
            # After the file: until it is there, a pod may still be added the old way, and the address with it.
            remove_addresses(wanted.bridge_name, wanted.stale)
        except OSError as problem:
            problems.append(str(problem.strerror or problem))
        if first := earlier(wanted.path):
            problems.append(
                f"{wanted.path.with_name(first)} sorts before {wanted.conf_name}, and the container runtime takes the first "
                "file: remove or rename it"
            )
        if missing := missing_plugins(Path(wanted.bin_dir), wanted.binaries):
            problems.append(f"CNI plugins not there or not executable in {wanted.bin_dir}: {', '.join(missing)}")
        if problems:
            raise ConflistError("; ".join(problems))

    def _place(self, path: Path, content: bytes) -> None:
        if not is_right(path, content):
            undone = self._placed == (path, content)
            now = time.monotonic()
            if undone and self._fights.not_before(path, now):
                raise ConflistError(f"another program keeps changing {path}: {self._fights.told(path)}")
            put(path, content)
            if undone:
                self._fights.repaired(path, now)
                if self._on_repair is not None:
                    self._on_repair(str(path), time.monotonic() - now)
        self._placed = (path, content)

    def _sweep(self, path: Path) -> None:
        """Once: remove what a killed agent left half-written."""
        if path not in self._swept:
            with contextlib.suppress(OSError):  # a folder that cannot be written is told by the write
                remove_leftovers(path)
            self._swept.add(path)

    def _watch(self) -> FolderWatch | None:
        """The watch on the folders; None where inotify is not to be had: then the resync finds what changed."""
        if self._watcher is None and not self._stopping:
            with contextlib.suppress(OSError):
                self._watcher = _Watcher(self._applier.retry)
        return self._watcher.watch if self._watcher else None


class _Watcher:
    """A thread that waits for file events and asks for a look. Raises OSError if there is no inotify."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._source = Inotify()
        self.watch = FolderWatch(self._source)
        self._look = look
        self._ended = threading.Event()
        self._waker = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="conflist-watch", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        if not self._ended.is_set():
            self._ended.set()
            os.eventfd_write(self._waker, 1)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._source.fileno(), select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        with self._source:
            while not self._ended.is_set():
                poll.poll()
                if any(self.watch.concerns(event) for event in self._source.read()):
                    self._look()
                    self._ended.wait(_GAP)
