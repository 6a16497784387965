"""The folder of CNI configurations: our file in it, whether a runtime would take it, and when something in it changes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pynet.drivers import inotify
from pynet.drivers.files import is_temporary, read_regular, remove_leftovers, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pynet.drivers.inotify import FileEvent, Inotify

MODE: Final = 0o644
LOADED: Final = (".conf", ".conflist", ".json")
"""What a container runtime loads (libcni.ConfFiles), hidden files included."""

_MOVES: Final = inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO | inotify.IN_MOVE_SELF
_COMES_AND_GOES: Final = _MOVES | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_DELETE_SELF
_CHANGES: Final = _COMES_AND_GOES | inotify.IN_CLOSE_WRITE | inotify.IN_MODIFY | inotify.IN_ATTRIB
_WATCH_FLAGS: Final = inotify.IN_ONLYDIR | inotify.IN_MASK_ADD  # one folder may be watched for two reasons


class ConflistError(Exception):
    """What is wrong with the configuration list, its folder or its plugins: one line that names the path and what mends it."""


def is_right(path: Path, content: bytes) -> bool:
    """Whether ``path`` is a regular file of exactly this content and of mode 0644."""
    try:
        file = read_regular(path, len(content))
    except OSError:  # not there, a link, larger, not readable: writing it anew mends it, or tells why not
        return False
    return file.data == content and file.mode == MODE


def put(path: Path, content: bytes) -> None:
    """Write the file; makes its folder (0755) if only that is missing. Raises ConflistError."""
    folder = path.parent
    _make(folder)
    if path.is_dir() and not path.is_symlink():
        raise ConflistError(f"{path} is a folder, and our configuration must be there: remove it")
    try:
        write_atomically(path, content, MODE)
    except FileNotFoundError:  # the folder is there, and takes nothing: it was removed behind a mount, as of a pod
        raise ConflistError(f"{folder} was removed and is only still mounted here: restart the agent's pod") from None
    except OSError as problem:
        raise ConflistError(f"{path} cannot be written: {problem.strerror}") from None


def remove(path: Path) -> list[str]:
    """Remove our file and what a killed write of it left; returns the names of what went. Raises OSError."""
    removed = remove_leftovers(path)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
        removed.append(path.name)
    return removed


def earlier(path: Path) -> str:
    """The name of the file that a runtime takes before ours, the lexically first one; "" if ours is. Raises ConflistError."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(LOADED) and not entry.is_dir(follow_symlinks=False)]
    except OSError as problem:
        raise ConflistError(f"{path.parent} cannot be listed: {problem.strerror}") from None
    first = min(names, key=os.fsencode, default="")
    return first if os.fsencode(first) < os.fsencode(path.name) else ""


def missing_plugins(folder: Path, names: Sequence[str]) -> list[str]:
    """Which of the plugins are not there as executable files."""
    return [name for name in names if not ((folder / name).is_file() and os.access(folder / name, os.X_OK))]


class FolderWatch:
    """Tells when something may have changed in the folder of our file, in the way to it, or among our plugins' binaries.

    ``arm`` is called before each look at the files (so nothing can slip in between), ``concerns`` by whoever reads the events.
    """

    def __init__(self, source: Inotify) -> None:
        self._source = source
        self._names: dict[int, frozenset[str] | None] = {}  # watch -> the names that matter there; None: all

    def arm(self, folder: Path, binaries: Path, plugins: Sequence[str]) -> None:
        """Watch what there is now: folders come, go and are replaced. What cannot be watched is left to the resync."""
        watches: dict[int, frozenset[str] | None] = {}
        for parent, name in _way_to(folder):
            self._add(watches, parent, _COMES_AND_GOES, frozenset({name}))
        self._add(watches, binaries, _CHANGES, frozenset(plugins))
        self._add(watches, folder, _CHANGES, None)
        before, self._names = self._names, watches
        for watch in before.keys() - watches.keys():
            self._source.unwatch(watch)

    def concerns(self, event: FileEvent) -> bool:
        """Whether an event is a reason to look again."""
        if event.watch < 0:  # events were lost
            return True
        if event.watch not in self._names:  # of a watch that has just ended, or begins: a look follows anyway
            return False
        names = self._names[event.watch]
        if not event.name:
            return True
        return not is_temporary(event.name) if names is None else event.name in names

    def _add(self, watches: dict[int, frozenset[str] | None], folder: Path, mask: int, names: frozenset[str] | None) -> None:
        with contextlib.suppress(OSError):
            watch = self._source.watch(folder, mask | _WATCH_FLAGS)
            known = watches.get(watch, frozenset())
            watches[watch] = None if known is None or names is None else known | names


def _way_to(folder: Path) -> Iterator[tuple[Path, str]]:
    """For the folder, and for what it is a symbolic link to: the nearest folder above, and the name to watch there."""
    for path in {folder, Path(os.path.realpath(folder))}:
        below = path
        for above in path.parents:
            if above.is_dir():
                yield above, below.name
                break
            below = above


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
        folder.chmod(0o755)  # whatever the umask
    except FileExistsError:
        if folder.is_dir():
            return
        if folder.is_symlink():
            raise ConflistError(f"{folder} is a symbolic link to {folder.readlink()}, which is not a folder") from None
        raise ConflistError(f"{folder} (cni.confDir) is not a folder") from None
    except FileNotFoundError:
        raise ConflistError(
            f"{folder} cannot be made: {folder.parent} is not there: is a container runtime installed, and cni.confDir right?"
        ) from None
    except OSError as problem:
        raise ConflistError(f"{folder} cannot be made: {problem.strerror}") from None
