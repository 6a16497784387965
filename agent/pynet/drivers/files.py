"""Files that are either the old one or the new one, whole: atomic writes, and reads that follow no symbolic link."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final, NamedTuple

TEMPORARY_SUFFIX: Final = ".tmp"
"""Ends the name of every temporary file; with the dot in front, no container runtime takes one for a network configuration."""


class RegularFile(NamedTuple):
    """A regular file as read: its bytes, permission bits and owner."""

    data: bytes
    mode: int
    uid: int


class NotRegularError(OSError):
    """There is something at the path that is no regular file: a symbolic link, a directory, a pipe."""


def is_temporary(name: str) -> bool:
    """Whether a file of this name is a temporary one, made by `write_atomically` or by somebody of the same habit."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def write_atomically(path: Path, data: bytes, mode: int, *, replace: bool = True) -> None:
    """Make ``path`` a regular file with these bytes and permission bits, in one step, and have it on the disk before returning.

    Whoever reads sees the old file or the new one. What was at ``path`` is replaced, never written through: a symbolic link
    there goes, its target stays. Without ``replace`` what is there stays, and FileExistsError is raised. Raises OSError with
    the path in it; nothing is left behind then, unless the process is killed (see `remove_leftovers`).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write_all(descriptor, data)
            os.fchmod(descriptor, mode)  # here, not at open: the umask must not have a say
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace or not _linked(temporary, path):
            temporary.rename(path)
        else:
            temporary.unlink()
    except BaseException as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(problem, OSError) and problem.filename is None:  # of an open file the system names none
            problem.filename = str(path)
        raise
    _sync_folder(path.parent)


def read_regular(path: Path, limit: int) -> RegularFile:
    """The regular file at ``path``, of ``limit`` bytes at most.

    Raises FileNotFoundError, NotRegularError, OSError (EFBIG if it is larger than ``limit``).
    """
    try:
        # O_NONBLOCK: a named pipe put there must not hold us up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise NotRegularError(errno.ELOOP, "is a symbolic link", str(path)) from None
        if problem.errno == errno.ENXIO:
            raise NotRegularError(errno.ENXIO, "is not a regular file", str(path)) from None
        raise
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise NotRegularError(errno.EINVAL, "is not a regular file", str(path))
        data = b"" if about.st_size > limit else _read_up_to(descriptor, limit + 1)
    finally:
        os.close(descriptor)
    if max(about.st_size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes", str(path))
    return RegularFile(data, stat.S_IMODE(about.st_mode), about.st_uid)


def remove_leftovers(path: Path) -> list[str]:
    """Remove the temporary files that a killed `write_atomically` of ``path`` left; returns their names.

    To be called when nobody writes ``path``: at start, or by its one writer. Raises OSError, but not for a folder that is not
    there.
    """
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for entry in path.parent.iterdir():
            if is_temporary(entry.name) and entry.name.startswith(f".{path.name}."):
                entry.unlink(missing_ok=True)
                removed.append(entry.name)
    return removed


def _linked(temporary: Path, path: Path) -> bool:
    """Give the file its second name; False where the file system knows no second names. Raises FileExistsError."""
    try:
        path.hardlink_to(temporary)
    except OSError as problem:
        if problem.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        return False
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_up_to(descriptor: int, limit: int) -> bytes:
    chunks = []
    while limit > 0 and (chunk := os.read(descriptor, min(limit, 1 << 20))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)


def _sync_folder(folder: Path) -> None:
    # The rename itself is on the disk only once the folder is. Some file systems refuse to sync one: the new file is in place
    # by then, so that is no failure of the write.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
