"""Plugins on a node: what is missing comes, what is another's stays, what is ours follows the image and goes again."""

from __future__ import annotations

import errno
import json
import os

import pytest
from pynet import install
from pynet.config import parse

NAMES = ("loopback", "bridge")


@pytest.fixture
def place(tmp_path):
    """An image's folder with both plugins, an empty node and an empty state folder."""
    source = tmp_path / "image"
    source.mkdir()
    for name in NAMES:
        (source / name).write_bytes(b"1 " + name.encode())
    return source, tmp_path / "node" / "bin", tmp_path / "state"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_missing_plugins_are_installed_executable_and_recorded(place):
    _, target, state = place
    install.install(*place, NAMES)
    assert (target / "bridge").read_bytes() == b"1 bridge"
    assert (target / "bridge").stat().st_mode & 0o7777 == 0o755
    assert sorted(json.loads((state / install.RECORD).read_text())["plugins"]) == ["bridge", "loopback"]
    assert names_in(target) == ["bridge", "loopback"]


def test_somebody_elses_plugin_is_left_alone_and_not_removed(place):
    _, target, state = place
    target.mkdir(parents=True)
    (target / "bridge").write_bytes(b"theirs")
    install.install(*place, NAMES)
    assert (target / "bridge").read_bytes() == b"theirs"
    assert install.remove_installed(state, target, dry_run=False) == [str(target / "loopback")]
    assert names_in(target) == ["bridge"]
    assert names_in(state) == []


def test_an_identical_plugin_that_was_there_before_us_is_not_ours(place):
    source, target, state = place
    target.mkdir(parents=True)
    (target / "bridge").write_bytes((source / "bridge").read_bytes())
    install.install(*place, ("bridge",))
    assert install.remove_installed(state, target, dry_run=False) == []
    assert (target / "bridge").exists()


def test_our_own_plugin_follows_the_image(place):
    source, target, state = place
    install.install(*place, NAMES)
    (source / "bridge").write_bytes(b"2 bridge")
    lines = install.install(*place, NAMES)
    assert (target / "bridge").read_bytes() == b"2 bridge"
    assert any("replaced ours" in line for line in lines)
    assert len(install.remove_installed(state, target, dry_run=False)) == 2
    assert names_in(target) == []


def test_a_plugin_replaced_after_us_is_no_longer_ours(place):
    source, target, state = place
    install.install(*place, NAMES)
    (target / "bridge").write_bytes(b"newer, by the distribution")
    (source / "bridge").write_bytes(b"2 bridge")
    install.install(*place, NAMES)
    assert (target / "bridge").read_bytes() == b"newer, by the distribution"
    assert "bridge" not in install.read_record(state).plugins


def test_a_second_run_changes_nothing(place):
    _, target, state = place
    install.install(*place, NAMES)
    before = [(path, path.stat().st_ino) for path in (target / "bridge", target / "loopback", state / install.RECORD)]
    install.install(*place, NAMES)
    assert [(path, path.stat().st_ino) for path, _ in before] == before


def test_dry_run_names_what_would_go_and_removes_nothing(place):
    _, target, state = place
    install.install(*place, NAMES)
    assert sorted(install.remove_installed(state, target, dry_run=True)) == [str(target / "bridge"), str(target / "loopback")]
    assert len(names_in(target)) == 2
    assert (state / install.RECORD).exists()


@pytest.mark.parametrize("killed_before", ["first record", "plugin", "last record"])
def test_a_kill_while_replacing_leaves_nothing_that_counts_as_anothers(place, monkeypatch, killed_before):
    source, target, state = place
    install.install(*place, ("bridge",))
    (source / "bridge").write_bytes(b"2 bridge")
    left = ["first record", "plugin", "last record"].index(killed_before)
    write = install.write_atomically

    def dies(path, data, mode, **how):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write(path, data, mode, **how)

    monkeypatch.setattr(install, "write_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
        install.install(*place, ("bridge",))
    monkeypatch.undo()
    assert install.remove_installed(state, target, dry_run=True) == [str(target / "bridge")]
    install.install(*place, ("bridge",))
    assert (target / "bridge").read_bytes() == b"2 bridge"
    assert install.remove_installed(state, target, dry_run=False) == [str(target / "bridge")]


def test_a_symbolic_link_at_a_plugins_name_is_not_written_through(place, tmp_path):
    _, target, _ = place
    target.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(b"theirs")
    (target / "bridge").symlink_to(tmp_path / "elsewhere")
    install.install(*place, NAMES)
    assert (target / "bridge").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"theirs"


def test_leftovers_of_a_killed_installation_go(place):
    _, target, _ = place
    target.mkdir(parents=True)
    (target / ".bridge.1-0.tmp").write_bytes(b"half")
    install.install(*place, NAMES)
    assert names_in(target) == ["bridge", "loopback"]


def test_an_unreadable_record_makes_everything_present_somebody_elses(place):
    _, target, state = place
    install.install(*place, NAMES)
    (state / install.RECORD).write_bytes(b"{")
    with pytest.raises(install.InstallError, match=r"plugins\.json"):
        install.remove_installed(state, target, dry_run=False)
    assert install.install(*place, NAMES)[0].startswith(str(state / install.RECORD))
    assert install.remove_installed(state, target, dry_run=False) == []
    assert len(names_in(target)) == 2


@pytest.mark.parametrize("full", [1, 2])
def test_a_full_disk_is_told_with_the_file_and_leaves_nothing_half_written(place, monkeypatch, full):
    """The first write is of the list, the second of a plugin."""
    _, target, state = place
    write, left = os.write, full

    def fills_up(descriptor, data):
        nonlocal left
        left -= 1
        if left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", fills_up)
    where = target / "bridge" if full == 2 else state / "plugins.json"
    with pytest.raises(install.InstallError, match=rf"^{where}: No space left on device$"):
        install.install(*place, ("bridge",))
    monkeypatch.undo()
    assert not [name for name in names_in(target) + names_in(state) if name.endswith(".tmp")]
    install.install(*place, ("bridge",))
    assert install.remove_installed(state, target, dry_run=False) == [str(target / "bridge")]


def test_a_plugin_larger_than_any_of_ours_is_somebody_elses(place):
    """All plugins in one binary, with debug information, and nobody stripped it."""
    _, target, state = place
    install.install(*place, NAMES)
    with (target / "bridge").open("wb") as file:
        file.truncate(install.MAX_PLUGIN_BYTES + 1)
    install.install(*place, NAMES)
    assert install.remove_installed(state, target, dry_run=False) == [str(target / "loopback")]
    assert names_in(target) == ["bridge"]


def test_a_plugin_that_comes_from_elsewhere_in_the_same_moment_is_not_replaced(place, monkeypatch):
    """On a new node everybody installs at once."""
    source, target, state = place
    read = install.read_regular

    def another_is_quicker(path, limit):
        if path == source / "bridge":
            (target / "bridge").write_bytes(b"theirs")
        return read(path, limit)

    monkeypatch.setattr(install, "read_regular", another_is_quicker)
    install.install(*place, NAMES)
    assert (target / "bridge").read_bytes() == b"theirs"
    assert install.remove_installed(state, target, dry_run=False) == [str(target / "loopback")]
    assert names_in(target) == ["bridge"]


def test_a_plugin_that_is_nowhere_is_named(place):
    source, _, _ = place
    (source / "bridge").unlink()
    with pytest.raises(install.InstallError, match="plugin bridge is neither in"):
        install.install(*place, NAMES)


def test_a_plugin_that_the_image_lacks_is_fine_where_the_node_has_it(place):
    source, target, _ = place
    target.mkdir(parents=True)
    (source / "bridge").unlink()
    (target / "bridge").write_bytes(b"theirs")
    install.install(*place, NAMES)
    assert (target / "bridge").read_bytes() == b"theirs"


def test_wanted_plugins_are_those_of_the_conflist():
    assert install.wanted_plugins(parse(b"")) == ("loopback", "host-local", "bridge", "portmap", "bandwidth")
    assert install.wanted_plugins(parse(b"cni: {plugin: ptp, portmap: false, bandwidth: false}")) == (
        "loopback",
        "host-local",
        "ptp",
    )
    assert install.wanted_plugins(parse(b"cni: {enabled: false}")) == ()


def test_exit_statuses_and_one_line_errors(place, tmp_path, capsys):
    source, target, state = place
    config = tmp_path / "pynet.yaml"
    config.write_text(f"stateDir: {state}\ncni: {{portmap: false, bandwidth: false, plugin: bridge}}\n")
    arguments = ["--config", str(config), "--from", str(source), "--to", str(target)]
    assert install.main(arguments) == 1
    assert (
        capsys.readouterr().err
        == f"pynet.install: plugin host-local is neither in {target} nor in this image ({source}/host-local)\n"
    )
    (source / "host-local").write_bytes(b"x")
    assert install.main(arguments) == 0
    config.write_text("cni: {plugin: macvlan}\n")
    assert install.main(arguments) == 64
    assert "cni.plugin" in capsys.readouterr().err
    assert install.main([]) == 64
