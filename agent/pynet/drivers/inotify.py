"""The kernel's inotify by ctypes: what happens in a few folders, as readable events. linux/inotify.h has the numbers."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from pathlib import Path

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF, IN_Q_OVERFLOW = 0x100, 0x200, 0x400, 0x800, 0x4000
IN_IGNORED, IN_ONLYDIR, IN_MASK_ADD = 0x8000, 0x1000000, 0x20000000

_HEADER: Final = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows


class FileEvent(NamedTuple):
    """Something happened to ``name`` in the folder ``watch`` ("": to itself). ``watch`` is -1 when events were lost."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance; a context manager. Raises OSError where the kernel has none to give (EMFILE, ENOSYS)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._checked(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")

    def fileno(self) -> int:
        """For poll: readable when events wait."""
        return self._descriptor

    def watch(self, folder: Path, mask: int) -> int:
        """Watch a folder (a symbolic link is followed); returns the watch's number, always the same for one. Raises OSError."""
        return self._checked(self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask), str(folder))

    def unwatch(self, watch: int) -> None:
        """End a watch; one that has ended by itself (its folder is gone) is no error."""
        self._libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[FileEvent]:
        """The events that wait, oldest first; none if there are none. Does not block."""
        try:
            buffer = os.read(self._descriptor, 65536)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(buffer):
            watch, mask, _, length = _HEADER.unpack_from(buffer, at)
            at += _HEADER.size
            events.append(FileEvent(watch, mask, os.fsdecode(buffer[at : at + length].rstrip(b"\0"))))
            at += length
        return events

    def close(self) -> None:
        """End all watches. May be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, result: int, what: str) -> int:
        if result < 0:
            number = ctypes.get_errno() or errno.EIO
            raise OSError(number, os.strerror(number), what)
        return result
