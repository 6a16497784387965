"""``python -m pynet.install``: put the CNI plugins that a node lacks into its plugin folder, and list what was put there.

The chart's init container runs it. A plugin that somebody else brought is left alone, whatever its version; one that we
installed, and that nobody has changed since, follows our image. `remove_installed` is the way back, for ``pynet cleanup``.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pynet.config import Config, ConfigError, load
from pynet.drivers.files import NotRegularError, read_regular, remove_leftovers, write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORD: Final = "plugins.json"
"""Name of the list, in the state folder."""

MAX_PLUGIN_BYTES: Final = 64 << 20
MAX_RECORD_BYTES: Final = 1 << 20


class InstallError(Exception):
    """Why the plugins could not be installed or removed: one line."""


class Installed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The list of what we installed: for each plugin the SHA-256 (hexadecimal) of every content that is ours.

    Usually one; two while a plugin is being replaced, so that a kill at any point leaves nothing that we take for another's.
    """

    version: int = 1
    plugins: dict[str, tuple[str, ...]] = {}


def wanted_plugins(config: Config) -> tuple[str, ...]:
    """The plugins that the conflist of this configuration calls, and loopback, which the container runtime calls itself."""
    if not config.cni.enabled:
        return ()
    chained = [name for name, on in (("portmap", config.cni.portmap), ("bandwidth", config.cni.bandwidth)) if on]
    return ("loopback", "host-local", config.cni.plugin, *chained)


def read_record(state_dir: Path) -> Installed:
    """The list in ``state_dir``; an empty one if there is none. Raises InstallError for one that cannot be understood."""
    path = state_dir / RECORD
    try:
        return msgspec.json.decode(read_regular(path, MAX_RECORD_BYTES).data, type=Installed)
    except FileNotFoundError:
        return Installed()
    except (OSError, msgspec.MsgspecError) as problem:
        raise InstallError(f"{path} cannot be read, so no plugin counts as ours: {_words(problem)}") from None


def install(source: Path, bin_dir: Path, state_dir: Path, names: Sequence[str]) -> list[str]:
    """Copy each plugin of ``names`` from ``source`` to ``bin_dir`` unless somebody else's is there; returns a line for each.

    Each appears in one step, with mode 0755. A list that cannot be read is replaced: what is there then stays, as another's.
    Raises InstallError, also if a plugin is in neither folder.
    """
    lines = []
    try:
        for folder, mode in ((bin_dir, 0o755), (state_dir, 0o700)):
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        try:
            record = read_record(state_dir)
        except InstallError as problem:
            lines.append(str(problem))
            record = _write_record(state_dir, Installed())
        for name in names:
            line, record = _install_one(name, source / name, bin_dir / name, state_dir, record)
            lines.append(line)
    except OSError as problem:
        raise InstallError(_with_owner(problem, bin_dir)) from None
    return lines


def remove_installed(state_dir: Path, bin_dir: Path, dry_run: bool) -> list[str]:
    """Remove from ``bin_dir`` the plugins that we installed and nobody changed since; returns their paths.

    What was changed is another's by now, and stays. The list goes last. ``dry_run``: say what would go, and change nothing.
    Raises InstallError.
    """
    removed = []
    try:
        for name, ours in read_record(state_dir).plugins.items():
            path = bin_dir / name
            if _digest_at(path) in ours:
                removed.append(str(path))
                if not dry_run:
                    path.unlink()
            if not dry_run:
                remove_leftovers(path)
        if not dry_run:
            (state_dir / RECORD).unlink(missing_ok=True)
    except OSError as problem:
        raise InstallError(_with_owner(problem, bin_dir)) from None
    return removed


def _install_one(name: str, source: Path, target: Path, state_dir: Path, record: Installed) -> tuple[str, Installed]:
    """Install one plugin; returns what was done, in a line, and the list as it is now."""
    remove_leftovers(target)
    ours = record.plugins.get(name, ())
    present = _digest_at(target)
    if present is not None and present not in ours:
        return f"{name}: {target} is not ours, left alone", _with_plugin(state_dir, record, name, ())
    try:
        data = read_regular(source, MAX_PLUGIN_BYTES).data
    except FileNotFoundError:
        if present is not None:
            return f"{name}: {target} is ours, and this image has no other", record
        raise InstallError(f"plugin {name} is neither in {target.parent} nor in this image ({source})") from None
    digest = hashlib.sha256(data).hexdigest()
    if present == digest:
        return f"{name}: {target} is up to date", _with_plugin(state_dir, record, name, (digest,))
    record = _with_plugin(state_dir, record, name, (digest, *ours))
    try:
        write_atomically(target, data, 0o755, replace=present is not None)
    except FileExistsError:
        record = _with_plugin(state_dir, record, name, ())
        return f"{name}: {target} has just come from elsewhere, left alone", record
    done = "installed" if present is None else "replaced ours of an earlier image"
    return f"{name}: {target} {done}", _with_plugin(state_dir, record, name, (digest,))


def _with_plugin(state_dir: Path, record: Installed, name: str, digests: tuple[str, ...]) -> Installed:
    """The list with ``name``'s contents being ``digests`` (none: not in it), written if that is a change."""
    plugins = {other: value for other, value in record.plugins.items() if other != name}
    if digests:
        plugins[name] = tuple(dict.fromkeys(digests))
    if plugins == record.plugins:
        return record
    return _write_record(state_dir, Installed(plugins=plugins))


def _write_record(state_dir: Path, record: Installed) -> Installed:
    write_atomically(state_dir / RECORD, msgspec.json.encode(record, order="sorted"), 0o600)
    return record


def _digest_at(path: Path) -> str | None:
    """SHA-256 of the file at ``path``; None if nothing is there, "" if it is no plain file, or too large, and so not ours."""
    try:
        return hashlib.sha256(read_regular(path, MAX_PLUGIN_BYTES).data).hexdigest()
    except FileNotFoundError:
        return None
    except NotRegularError:
        return ""
    except OSError as problem:
        if problem.errno == errno.EFBIG:
            return ""
        raise


def _with_owner(problem: OSError, bin_dir: Path) -> str:
    """The problem in one line, and what mends it where the folder belongs to another user (kubespray does that)."""
    words = _words(problem)
    if isinstance(problem, PermissionError):
        try:
            about = bin_dir.stat()
        except OSError:
            return words
        if about.st_uid != os.geteuid() and not about.st_mode & stat.S_IWOTH:
            words += f"; the folder belongs to uid {about.st_uid}: run as that user, or with CAP_DAC_OVERRIDE"
    return words


def _words(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 every plugin is there, 1 not (one line says why), 64 wrong usage or configuration."""
    parser = argparse.ArgumentParser(prog="python -m pynet.install", description="Install the CNI plugins that a node lacks.")
    parser.add_argument("--config", metavar="FILE", help="pynet's configuration: which plugins are wanted, and stateDir")
    parser.add_argument(
        "--from", dest="source", type=Path, default=Path("/opt/cni/bin"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--to", dest="target", type=Path, required=True, metavar="DIR", help="the node's plugin folder, as seen from here"
    )
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        return 64 if end.code else 0
    try:
        config = load(options.config)
        for line in install(options.source, options.target, Path(config.state_dir), wanted_plugins(config)):
            print(line)
    except ConfigError as problem:
        print(f"pynet.install: {problem}", file=sys.stderr)
        return 64
    except InstallError as problem:
        print(f"pynet.install: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
