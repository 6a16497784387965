"""Atomic writes and careful reads, on a real file system, and what inotify tells of them."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from pynet.drivers import inotify
from pynet.drivers.files import NotRegularError, is_temporary, read_regular, remove_leftovers, write_atomically
from pynet.drivers.inotify import Inotify

if TYPE_CHECKING:
    from pathlib import Path


def listed(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


ALL = inotify.IN_MOVED_TO | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_CLOSE_WRITE | inotify.IN_DELETE_SELF


def test_mode_is_exact_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "a", b"x", 0o644)
    finally:
        os.umask(before)
    assert read_regular(tmp_path / "a", 10) == (b"x", 0o644, os.geteuid())
    assert listed(tmp_path) == ["a"]


def test_a_symbolic_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to("target")
    write_atomically(tmp_path / "link", b"new", 0o600)
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "inside").write_text("x")
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "d", b"new", 0o600)
    assert listed(tmp_path) == ["d"]


@pytest.mark.parametrize("links", [True, False])
def test_without_replace_what_is_there_stays_and_what_is_not_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuses(path: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, "no links on this file system", str(path))

    (tmp_path / "theirs").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="theirs"):
        write_atomically(tmp_path / "theirs", b"ours", 0o755, replace=False)
    if not links:
        monkeypatch.setattr("pathlib.Path.hardlink_to", refuses)
    write_atomically(tmp_path / "new", b"ours", 0o755, replace=False)
    assert read_regular(tmp_path / "new", 10)[:2] == (b"ours", 0o755)
    assert (tmp_path / "new").stat().st_nlink == 1
    assert listed(tmp_path) == ["new", "theirs"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    script = """
import os, subprocess, sys
from pathlib import Path
from pynet.drivers.files import write_atomically
place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=True)
write_atomically(place / "a", b"old", 0o600)
try:
    write_atomically(place / "a", b"x" * 1000000, 0o600)
except OSError as problem:
    print(problem.strerror, os.listdir(place), (place / "a").read_text())
"""
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", script, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert output.strip() == "No space left on device ['a'] old"


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a"
    contents = (b"a" * 300_000, b"b" * 200_000)
    write_atomically(path, contents[0], 0o600)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(read_regular(path, 1 << 20).data)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        write_atomically(path, contents[turn % 2], 0o600)
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_killed_in_the_middle_of_writing_leaves_the_old_file_and_a_leftover_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old", 0o600)
    script = """
import sys
from pathlib import Path
from pynet.drivers.files import write_atomically
while True:
    write_atomically(Path(sys.argv[1]), b"n" * 50_000_000, 0o600)
"""
    leftovers: list[str] = []
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", script, str(path)]) as writer:
            deadline = time.monotonic() + 20
            while not any(is_temporary(name) for name in listed(tmp_path)) and time.monotonic() < deadline:
                time.sleep(0.001)
            writer.send_signal(signal.SIGKILL)
        assert path.read_bytes() in (b"old", b"n" * 50_000_000)
        if leftovers := [name for name in listed(tmp_path) if name != "a"]:
            break
    assert leftovers, "never caught in the middle"
    assert all(is_temporary(name) for name in leftovers)
    (tmp_path / ".b.1-2.tmp").write_text("somebody else's")
    (tmp_path / ".a.conf").write_text("not a temporary file")
    assert sorted(remove_leftovers(path)) == sorted(leftovers)
    assert listed(tmp_path) == [".a.conf", ".b.1-2.tmp", "a"]


def test_leftovers_of_a_folder_that_is_not_there_are_none(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "no" / "a") == []


def test_reading_refuses_what_is_no_regular_file_and_does_not_hang_on_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(NotRegularError):
            read_regular(tmp_path / name, 10)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent", 10)


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="is larger than 10 bytes") as caught:
        read_regular(tmp_path / "a", 10)
    assert caught.value.errno == errno.EFBIG
    assert read_regular(tmp_path / "a", 11).data == b"x" * 11
    assert stat.S_ISREG((tmp_path / "a").stat().st_mode)


def test_inotify_tells_of_a_rename_with_its_name(tmp_path: Path) -> None:
    with Inotify() as watcher:
        watch = watcher.watch(tmp_path, ALL)
        assert watcher.read() == []
        write_atomically(tmp_path / "ä.conflist", b"x", 0o644)
        assert select.select([watcher], [], [], 5)[0]
        events = watcher.read()
        assert (watch, inotify.IN_MOVED_TO, "ä.conflist") in events
        assert {event.watch for event in events} == {watch}
        assert watcher.watch(tmp_path, ALL) == watch


def test_inotify_tells_that_the_folder_itself_went(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    with Inotify() as watcher:
        watch = watcher.watch(folder, ALL)
        folder.rmdir()
        masks = [event.mask & ~0x40000000 for event in watcher.read()]
        assert masks == [inotify.IN_DELETE_SELF, inotify.IN_IGNORED]
        watcher.unwatch(watch)  # gone already: no error
        with pytest.raises(FileNotFoundError):
            watcher.watch(folder, ALL)


def test_inotify_gives_its_descriptor_back() -> None:
    watcher = Inotify()
    descriptor = watcher.fileno()
    watcher.close()
    watcher.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
