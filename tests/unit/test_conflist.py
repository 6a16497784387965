"""What the configuration list says, and that it stays in its place, whatever others do in the folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pynet.apply import conflist as module
from pynet.apply.confdir import ConflistError, FolderWatch, earlier, put, remove
from pynet.apply.conflist import Conflist, ConflistWanted, render
from pynet.apply.gateways import stale_gateways
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.model import HostAddress, Link, Prefix
from pynet.drivers.inotify import IN_Q_OVERFLOW, FileEvent, Inotify

from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BOTH = (parse_prefix("10.244.1.0/24"), parse_prefix("fd00:244:1::/64"))


class Place:
    """A folder for configurations, one for plugins, and what is wanted there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "cni" / "net.d"
        self.bin = root / "bin"
        self.bin.mkdir()
        self.conf.parent.mkdir()
        for name in ("bridge", "ptp", "host-local", "portmap", "bandwidth"):
            self.install(name)
        self.path = self.conf / "05-pynet.conflist"
        self.others = set(threading.enumerate())  # of other tests, or of the test runner
        self.results: list[str] = []
        self.repairs: list[str] = []
        self.conflist = Conflist(lambda _, error: self.results.append(error), lambda path, _: self.repairs.append(path))

    def install(self, name: str) -> None:
        (self.bin / name).write_text("#!/bin/sh\n")
        (self.bin / name).chmod(0o755)

    def wanted(self, **changes: Any) -> ConflistWanted:
        values: dict[str, Any] = {"pod_cidrs": BOTH, "conf_dir": str(self.conf), "bin_dir": str(self.bin), **changes}
        return ConflistWanted(**values)

    def start(self, **changes: Any) -> bytes:
        """Have it written; returns the content."""
        wanted = self.wanted(**changes)
        self.conflist.submit(wanted)
        until(lambda: self.conflist.ok, "written")
        assert self.path.read_bytes() == render(wanted)
        return render(wanted)

    def threads(self) -> list[str]:
        """Names of the threads that have begun here and still run."""
        return [thread.name for thread in threading.enumerate() if thread not in self.others]

    def is_back(self, content: bytes) -> bool:
        return self.path.is_file() and self.path.read_bytes() == content and self.path.stat().st_mode & 0o7777 == 0o644


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    assert made.conflist.stop(5)


def vanish(folder: Path) -> None:
    """Remove a folder with all in it, in one step: between two of `rm -r` our file would be back, and rm would fail."""
    shutil.rmtree(folder.rename(folder.with_name("gone")))


# What it says


def test_the_default_list_is_a_bridge_with_both_families() -> None:
    document = json.loads(render(ConflistWanted(BOTH, mtu=1450)))
    assert document == {
        "cniVersion": "1.0.0",
        "name": "pynet",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pynet0",
                "isGateway": True,
                "hairpinMode": True,
                "ipMasq": False,
                "mtu": 1450,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/pynet/ipam",
                    "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:244:1::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        ],
    }


@pytest.mark.parametrize(("cidr", "route"), [(BOTH[0], "0.0.0.0/0"), (BOTH[1], "::/0")])
def test_one_family_has_one_range_and_one_default_route(cidr: Prefix, route: str) -> None:
    ipam = json.loads(render(ConflistWanted((cidr,))))["plugins"][0]["ipam"]
    assert ipam["ranges"] == [[{"subnet": str(cidr)}]]
    assert ipam["routes"] == [{"dst": route}]


def test_two_podcidrs_of_one_family_are_one_range_set_since_a_pod_gets_one_address_of_each() -> None:
    more = parse_prefix("10.244.9.0/24")
    ipam = json.loads(render(ConflistWanted((*BOTH, more))))["plugins"][0]["ipam"]
    assert ipam["ranges"][0] == [{"subnet": "10.244.1.0/24"}, {"subnet": "10.244.9.0/24"}]
    assert len(ipam["routes"]) == 2


def test_ptp_has_no_bridge_and_what_is_not_chosen_is_not_there() -> None:
    wanted = ConflistWanted(BOTH, plugin="ptp", portmap=False, bandwidth=False)
    [plugin] = json.loads(render(wanted))["plugins"]
    assert sorted(plugin) == ["ipMasq", "ipam", "type"]
    assert wanted.binaries == ("ptp", "host-local")
    assert ConflistWanted(BOTH).binaries == ("bridge", "host-local", "portmap", "bandwidth")


def test_the_text_ends_with_a_newline_and_is_the_same_each_time() -> None:
    assert render(ConflistWanted(BOTH)) == render(ConflistWanted(BOTH))
    assert render(ConflistWanted(BOTH)).endswith(b"}\n")


# Writing it


def test_nothing_is_written_before_it_is_wanted(place: Place) -> None:
    place.conflist.submit(None)
    place.conflist.resync()
    assert not place.conflist.ok
    assert not place.conflist.tried
    assert place.conflist.error == "not written yet: the first verified pass and the masquerade rules come before"
    assert not place.conf.exists()
    assert place.threads() == []


def test_the_folder_is_made_and_the_file_has_mode_0644_whatever_the_umask(place: Place) -> None:
    before = os.umask(0o077)
    try:
        content = place.start()
    finally:
        os.umask(before)
    assert place.is_back(content)
    assert place.conf.stat().st_mode & 0o7777 == 0o755
    assert place.results == [""]
    assert place.conflist.error == ""


def test_a_right_file_is_not_written_again(place: Place) -> None:
    put(place.path, render(place.wanted()))
    before = place.path.stat()
    place.start()
    place.conflist.resync()
    until(place.conflist._applier.idle, "idle")
    assert place.path.stat().st_ino == before.st_ino
    assert place.path.stat().st_mtime_ns == before.st_mtime_ns
    assert place.repairs == []


def test_a_new_podcidr_rewrites_it(place: Place) -> None:
    place.start()
    place.start(pod_cidrs=(parse_prefix("10.244.7.0/24"),))
    assert b"10.244.7.0/24" in place.path.read_bytes()
    assert place.repairs == []


def test_a_new_value_is_not_ok_until_it_is_written(place: Place) -> None:
    place.start()
    place.conf.rename(place.conf.with_name("aside"))
    place.conf.touch()  # a file where the folder should be
    place.conflist.submit(place.wanted(mtu=9000))
    assert not place.conflist.ok
    until(lambda: "is not a folder" in place.conflist.error, "reason")


# Putting it back


def delete(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    path.write_text("{}")


def cut(path: Path) -> None:
    os.truncate(path, 10)


def shut(path: Path) -> None:
    path.chmod(0o600)


def move(path: Path) -> None:
    path.rename(path.with_name("zz.bak"))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("theirs")
    other.rename(path)


@pytest.mark.parametrize("harm", [delete, change, cut, shut, move, replace])
def test_it_is_put_back_by_the_event_not_by_the_resync(place: Place, harm: Callable[[Path], None]) -> None:
    content = place.start()
    time.sleep(0.2)  # our own write is an event too: the look that it brings must not be the one that finds the harm
    harm(place.path)
    until(lambda: place.is_back(content), harm.__name__)
    until(lambda: place.repairs == [str(place.path)], "told")
    until(lambda: place.conflist.ok, "ok again")


def test_a_symbolic_link_in_its_place_is_replaced_and_its_target_stays(place: Place) -> None:
    target = place.root / "precious"
    target.write_text("x")
    place.conf.mkdir()
    place.path.symlink_to(target)
    place.start()
    assert target.read_text() == "x"
    assert not place.path.is_symlink()


def test_a_pipe_in_its_place_is_replaced(place: Place) -> None:
    place.conf.mkdir()
    os.mkfifo(place.path)
    place.start()


def test_the_folder_is_removed_and_the_file_comes_back(place: Place) -> None:
    content = place.start()
    for _ in range(3):
        place.path.unlink(missing_ok=True)
        try:
            place.conf.rmdir()
        except OSError:  # it was back before the folder could go
            continue
        until(lambda: place.is_back(content), "after rmdir")
    vanish(place.conf.parent)
    until(lambda: not place.conf.parent.exists() and "is not there" in place.conflist.error, "reason")
    place.conf.parent.mkdir()
    until(lambda: place.is_back(content), "after rm -rf of the parent")
    until(lambda: place.conflist.ok, "ok again")
    place.path.unlink()
    until(lambda: place.is_back(content), "watched anew")


def test_the_folder_is_moved_away_and_another_one_put_there(place: Place) -> None:
    content = place.start()
    place.conf.rename(place.conf.with_name("old"))
    until(lambda: place.is_back(content), "made anew")
    place.path.unlink()
    until(lambda: place.is_back(content), "watched anew")


def test_the_folder_may_be_a_symbolic_link_that_changes(place: Place) -> None:
    for name in ("one", "two"):
        (place.root / name).mkdir()
    place.conf.symlink_to(place.root / "one")
    content = place.start()
    assert (place.root / "one" / place.path.name).read_bytes() == content
    (place.root / "link").symlink_to(place.root / "two")
    (place.root / "link").rename(place.conf)
    until(lambda: place.is_back(content), "in the new folder")
    (place.root / "two" / place.path.name).unlink()
    until(lambda: place.is_back(content), "watched there")
    vanish(place.root / "two")
    until(lambda: "is a symbolic link to" in place.conflist.error, "dangling")
    (place.root / "two").mkdir()
    until(lambda: place.is_back(content), "the target is back")


class Watched:
    """A FolderWatch as its reader sees it."""

    def __init__(self, source: Inotify, place: Place, folder: Path) -> None:
        self.source = source
        self.watch = FolderWatch(source)
        self.place = place
        self.arm(folder)

    def arm(self, folder: Path) -> None:
        self.watch.arm(folder, self.place.bin, ("bridge",))
        self.source.read()

    def concerned(self) -> bool:
        """Whether what has happened since the last question is a reason to look."""
        return any(self.watch.concerns(event) for event in self.source.read())


@pytest.fixture
def source() -> Iterator[Inotify]:
    with Inotify() as made:
        yield made


def test_only_what_matters_is_a_reason_to_look(place: Place, source: Inotify) -> None:
    place.conf.mkdir()
    watched = Watched(source, place, place.conf)
    for path in (place.conf / ".05-pynet.conflist.1-ab.tmp", place.conf.parent / "other", place.bin / "vlan", place.root / "x"):
        path.touch()
        assert not watched.concerned(), path
    for path in (place.conf / "00-any.conf", place.bin / "bridge"):
        path.touch()
        assert watched.concerned(), path
    assert watched.watch.concerns(FileEvent(-1, IN_Q_OVERFLOW, ""))


def test_the_target_of_a_symbolic_link_is_awaited_where_it_will_be(place: Place, source: Inotify) -> None:
    (place.root / "data").mkdir()
    place.conf.symlink_to(place.root / "data" / "net.d")
    watched = Watched(source, place, place.conf)
    (place.root / "data" / "net.d").mkdir()
    assert watched.concerned()


def test_the_nearest_folder_above_is_watched_for_the_way_to_ours(place: Place, source: Inotify) -> None:
    folder = place.root / "a" / "b" / "net.d"
    watched = Watched(source, place, folder)
    (place.root / "a").mkdir()
    assert watched.concerned()
    watched.arm(folder)
    (place.root / "a" / "b").mkdir()
    assert watched.concerned()


def test_a_folder_that_is_no_longer_ours_is_no_longer_watched(place: Place, source: Inotify) -> None:
    for name in ("one", "two"):
        (place.root / name).mkdir()
    watched = Watched(source, place, place.root / "one")
    watched.arm(place.root / "two")
    (place.root / "one" / "05-pynet.conflist").touch()
    assert source.read() == []


def test_without_inotify_the_resync_puts_it_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "Inotify", refuse)
    content = place.start()
    place.path.unlink()
    time.sleep(0.1)
    assert not place.path.exists()
    place.conflist.resync()
    until(lambda: place.is_back(content), "put back")


def test_a_rival_is_left_alone_for_ever_longer_and_named(place: Place) -> None:
    place.start()
    done = threading.Event()

    def fight() -> None:
        while not done.is_set():
            place.path.write_text("theirs")
            done.wait(0.01)

    rival = threading.Thread(target=fight)
    rival.start()
    try:
        until(lambda: "another program keeps changing" in place.conflist.error, "said")
        assert f"another program keeps changing {place.path}: put back " in place.conflist.error
        assert not place.conflist.ok
        assert 5 <= len(place.repairs) <= 7
    finally:
        done.set()
        rival.join()
    until(lambda: place.conflist.ok, "it gave up")


def test_after_stop_the_file_stays_and_is_no_longer_put_back(place: Place) -> None:
    place.start()
    assert sorted(place.threads()) == ["applier-conflist", "conflist-watch"]
    assert place.conflist.stop(5)
    assert place.path.exists()
    assert place.threads() == []
    place.path.unlink()
    place.conflist.resync()
    time.sleep(0.1)
    assert not place.path.exists()


# Who comes first, and what it needs


@pytest.mark.parametrize("name", ["00-other.conflist", "01-a.conf", "05-pynet.conf", "05-aaa.json", ".hidden.conf", ".conf"])
def test_an_earlier_file_is_named_and_ours_is_still_written(place: Place, name: str) -> None:
    place.conf.mkdir()
    (place.conf / name).write_text("not even JSON")
    place.conflist.submit(place.wanted())
    until(lambda: bool(place.results), "told")
    assert not place.conflist.ok
    assert place.conflist.error.startswith(f"{place.conf / name} sorts before 05-pynet.conflist")
    assert place.path.read_bytes() == render(place.wanted())
    (place.conf / name).unlink()
    until(lambda: place.conflist.ok, "by the event")


def test_an_earlier_file_that_comes_later_is_noticed(place: Place) -> None:
    place.start()
    (place.conf / "00-later.conf").touch()
    until(lambda: "00-later.conf sorts before" in place.conflist.error, "noticed")


def test_what_a_runtime_does_not_take_is_no_earlier_file(place: Place) -> None:
    place.conf.mkdir()
    (place.conf / "00-folder.conf").mkdir()
    for name in (
        "00-a.txt",
        "00-old.conflist.bak",
        ".05-pynet.conflist.12-ab.tmp",
        "10-flannel.conflist",
        "05-pynet.json",
    ):
        (place.conf / name).touch()
    place.start()
    assert earlier(place.path) == ""


def test_of_two_earlier_files_the_one_that_the_runtime_takes_is_named(place: Place) -> None:
    place.conf.mkdir()
    for name in ("04-\udcff.conf", "04-\U0001f600.conf", "04-é.conf", "04-b.conf", "04-B.conf"):  # Go sorts bytes
        (place.conf / name).touch()
    assert earlier(place.path) == "04-B.conf"
    for name in ("04-B.conf", "04-b.conf", "04-é.conf"):
        (place.conf / name).unlink()
    assert earlier(place.path) == "04-\U0001f600.conf"


def test_missing_plugins_are_named_and_noticed_when_they_come(place: Place) -> None:
    (place.bin / "portmap").unlink()
    (place.bin / "bandwidth").chmod(0o644)
    place.conflist.submit(place.wanted())
    until(lambda: bool(place.results), "told")
    assert place.conflist.error == f"CNI plugins not there or not executable in {place.bin}: portmap, bandwidth"
    assert place.path.exists()
    place.install("portmap")
    place.install("bandwidth")
    until(lambda: place.conflist.ok, "by the event")
    (place.bin / "bridge").unlink()
    until(lambda: place.conflist.error.endswith(": bridge"), "noticed")


# What cannot be written


def test_a_missing_parent_is_a_reason(place: Place) -> None:
    place.conf.parent.rmdir()
    place.conflist.submit(place.wanted())
    until(lambda: bool(place.results), "told")
    assert place.conflist.error.startswith(f"{place.conf} cannot be made: {place.conf.parent} is not there")


def test_a_file_where_the_folder_should_be_is_a_reason(place: Place) -> None:
    place.conf.touch()
    with pytest.raises(ConflistError, match=r"cni/net\.d .cni\.confDir. is not a folder"):
        put(place.path, b"")


def test_a_folder_where_the_file_should_be_is_a_reason(place: Place) -> None:
    place.path.mkdir(parents=True)
    with pytest.raises(ConflistError, match=r"05-pynet\.conflist is a folder, .* remove it"):
        put(place.path, b"")


IN_A_NAMESPACE = """
import subprocess, sys
from pathlib import Path
from pynet.apply.confdir import ConflistError, put
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "--bind", source, folder], check=True)
if source == folder:
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
else:
    print("mounted", flush=True)
    sys.stdin.readline()
try:
    put(folder / "05-pynet.conflist", b"x")
except ConflistError as problem:
    print(problem)
"""
UNSHARE = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", IN_A_NAMESPACE]


def test_a_read_only_folder_is_a_reason(place: Place) -> None:
    place.conf.mkdir()
    result = subprocess.run([*UNSHARE, place.conf, place.conf], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == f"{place.path} cannot be written: Read-only file system"


def test_a_folder_removed_behind_a_mount_is_a_reason(place: Place) -> None:
    place.conf.mkdir()
    (mounted := place.root / "mounted").mkdir()
    with subprocess.Popen([*UNSHARE, place.conf, mounted], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "mounted\n"
        place.conf.rmdir()
        output, _ = process.communicate("\n")
    assert output.strip() == f"{mounted} was removed and is only still mounted here: restart the agent's pod"


def test_killed_while_writing_the_file_is_whole_and_the_next_start_sweeps(place: Place) -> None:
    place.conf.mkdir()
    script = """
import sys
from pathlib import Path
from pynet.apply.confdir import put
big = b"n" * 30_000_000
while True:
    put(Path(sys.argv[1]), big)
"""
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", script, str(place.path)]) as writer:
            until(lambda: any(e.name.endswith(".tmp") for e in place.conf.iterdir()), "writing", seconds=20)
            writer.send_signal(signal.SIGKILL)
        if any(e.name.endswith(".tmp") for e in place.conf.iterdir()):
            break
    leftovers = [e.name for e in place.conf.iterdir() if e != place.path]
    assert leftovers
    assert all(name.startswith(".") and name.endswith(".tmp") for name in leftovers)
    assert not place.path.exists() or place.path.stat().st_size == 30_000_000
    place.start()
    assert [e.name for e in place.conf.iterdir()] == [place.path.name]


def test_remove_takes_ours_and_nothing_else(place: Place) -> None:
    content = place.start()
    place.conflist.stop(5)
    (place.conf / ".05-pynet.conflist.1-ab.tmp").touch()
    (place.conf / "10-other.conflist").touch()
    assert sorted(remove(place.path)) == [".05-pynet.conflist.1-ab.tmp", "05-pynet.conflist"]
    assert [entry.name for entry in place.conf.iterdir()] == ["10-other.conflist"]
    assert remove(place.path) == []
    assert remove(place.root / "no" / "file") == []
    assert content


# The bridge's old addresses


def address(text: str, ifindex: int = 3) -> HostAddress:
    packed, length = text.split("/")
    return HostAddress(ifindex, parse_address(packed), int(length))


def stale(*texts: HostAddress, cidrs: tuple[Prefix, ...] = BOTH, **keep: Any) -> list[str]:
    links = [Link(2, "eth0", True, 1500), Link(3, "pynet0", True, 1500, "bridge"), Link(4, "br1", True, 1500, "bridge")]
    return [str(prefix) for prefix in stale_gateways("pynet0", cidrs, links, texts, **keep)]


def test_old_gateways_of_both_families_are_stale_and_the_current_ones_are_not() -> None:
    current = (address("10.244.1.1/24"), address("fd00:244:1::1/64"), address("fe80::1/64"), address("169.254.0.1/16"))
    old = (address("10.244.9.1/24"), address("fd00:244:9::1/64"))
    assert stale(*current, *old) == ["10.244.9.1/24", "fd00:244:9::1/64"]


def test_only_our_bridge_only_gateways_and_never_our_own_internal_ip() -> None:
    assert stale(address("10.244.9.1/24", 2), address("10.244.9.1/24", 4)) == []
    assert stale(address("10.244.9.5/24")) == []
    assert stale(address("10.244.9.1/24"), keep={parse_address("10.244.9.1")}) == []
    links = [Link(3, "pynet0", True, 1500, "")]  # the name of ours, and no bridge
    assert stale_gateways("pynet0", BOTH, links, [address("10.244.9.1/24")]) == ()


def test_nothing_is_stale_while_we_have_no_podcidr() -> None:
    assert stale(address("10.244.9.1/24"), cidrs=()) == []


def test_a_family_that_the_node_lost_is_stale() -> None:
    assert stale(address("fd00:244:1::1/64"), cidrs=BOTH[:1]) == ["fd00:244:1::1/64"]


def test_the_value_is_compared_by_what_it_says() -> None:
    assert ConflistWanted(BOTH) == ConflistWanted(tuple(BOTH))
    assert msgspec.structs.replace(ConflistWanted(BOTH), mtu=1400) != ConflistWanted(BOTH)
