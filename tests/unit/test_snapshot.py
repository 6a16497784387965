"""A snapshot comes back as it was saved, and anything else is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pynet.apply import snapshot as module
from pynet.apply.snapshot import Snapshot, SnapshotError, load, save
from pynet.core.model import NodeFacts

from tests.support.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

texts = st.text(max_size=20)
facts = st.builds(
    NodeFacts,
    name=texts,
    uid=texts,
    created=st.integers(0, 2**40),
    pod_cidrs=st.lists(texts, max_size=3).map(tuple),
    internal_ips=st.lists(texts, max_size=3).map(tuple),
    node_ip=texts,
    os=texts,
    condition=st.none() | st.tuples(texts, texts),
)


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def make(count: int = 3, node: str = "n0") -> Snapshot:
    nodes = tuple(
        NodeFacts(
            name=f"n{index}",
            uid=f"00000000-0000-0000-0000-{index:012}",
            created=1_700_000_000 + index,
            pod_cidrs=(f"10.{index >> 8}.{index & 255}.0/24", f"fd00:10:{index:x}::/64"),
            internal_ips=(f"192.168.{index >> 8}.{index & 255}", f"fd00::{index:x}"),
            os="linux",
        )
        for index in range(count)
    )
    return Snapshot(node, 1_700_000_000.5, nodes)


@given(nodes=st.lists(facts, max_size=5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_what_is_saved_comes_back_equal(tmp_path: Path, nodes: list[NodeFacts]) -> None:
    path = tmp_path / "last-good.json"
    saved = Snapshot("me", 3.25, tuple(nodes))
    save(path, saved)
    assert load(path, "me") == saved


def test_the_file_is_ours_alone_and_plain_json_with_version_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state" / "last-good.json"
    save(path, make())
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.parent.stat().st_mode & 0o7777 == 0o700
    document = json.loads(path.read_bytes())
    assert sorted(document) == ["body", "sha256", "version"]
    assert document["body"]["nodes"][1]["pod_cidrs"] == ["10.0.1.0/24", "fd00:10:1::/64"]
    body = path.read_bytes().split(b'"body":', 1)[1][:-1]
    assert hashlib.sha256(body).hexdigest() == document["sha256"]


def test_no_file_is_no_snapshot_and_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "last-good.json", "n0") is None
    assert load(tmp_path / "no" / "last-good.json", "n0") is None


@given(length=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_half_written_file_is_refused(tmp_path: Path, length: float) -> None:
    path = tmp_path / "last-good.json"
    save(path, make())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * length)])
    with pytest.raises(SnapshotError, match="is not a whole snapshot"):
        load(path, "n0")
    path.unlink()


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_one_changed_bit_is_never_believed(tmp_path: Path, at: float, bit: int) -> None:
    path = tmp_path / "last-good.json"
    save(path, make())
    changed = bytearray(path.read_bytes())
    position = int(len(changed) * at)
    changed[position] ^= 1 << bit
    path.write_bytes(changed)
    try:
        got = load(path, "n0")
    except SnapshotError as problem:
        assert str(path) in str(problem)  # noqa: PT017
    else:
        # A letter of the keys "version", "sha256" or "body" may change case or become an unknown key; the body never changes.
        assert got == make()
    path.unlink()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not a whole snapshot"),
        (b"\0" * 4096, "is not a whole snapshot"),
        (b"\xff\xfe{}", "is not a whole snapshot"),
        (b"[]", "is not a whole snapshot"),
        (b'{"version":1,"body":' + b"[" * 100_000, "is not a whole snapshot"),
        (b'{"version":2,"sha256":"","body":{}}', "has version 2, and we read version 1"),
        (b'{"version":0}', "has version 0, and we read version 1"),
        (b'{"version":1,"sha256":"00","body":{}}', "is damaged: its checksum does not fit"),
        (b'{"version":1}', "is damaged: its checksum does not fit"),
        (
            b'{"version":1,"sha256":"%s","body":{}}' % hashlib.sha256(b"{}").hexdigest().encode(),
            "has a body that is no snapshot",
        ),
        (b'{"version":1,"sha256":"%s"}' % hashlib.sha256(b"").hexdigest().encode(), "has a body that is no snapshot"),
    ],
)
def test_garbage_is_refused_with_a_reason_and_left_alone(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "last-good.json"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(SnapshotError, match=reason) as caught:
        load(path, "n0")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data
    save(path, make())
    assert load(path, "n0") == make()


def test_the_snapshot_of_another_node_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "s", make(node="other"))
    with pytest.raises(SnapshotError, match="snapshot of node 'other', and we are 'n0'"):
        load(tmp_path / "s", "n0")


def test_a_symbolic_link_is_refused_and_replaced_by_the_next_save(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", make())
    before = (tmp_path / "elsewhere").read_bytes()
    (tmp_path / "s").symlink_to("elsewhere")
    with pytest.raises(SnapshotError, match="is a symbolic link"):
        load(tmp_path / "s", "n0")
    save(tmp_path / "s", make(1))
    assert load(tmp_path / "s", "n0") == make(1)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_pipe_or_a_folder_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(SnapshotError, match="is not a regular file"):
            load(tmp_path / name, "n0")


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    save(tmp_path / "s", make())
    (tmp_path / "s").chmod(mode)
    with pytest.raises(SnapshotError, match=f"can be written by others .mode {mode:04o}"):
        load(tmp_path / "s", "n0")


def test_a_file_of_another_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "s", make())
    monkeypatch.setattr(os, "geteuid", lambda: 4711)  # the other way round needs no root
    with pytest.raises(SnapshotError, match=r"belongs to uid \d+, not to us .uid 4711"):
        load(tmp_path / "s", "n0")


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.touch(0o600)
    os.truncate(path, 1 << 40)  # sparse: reading it would take the test's whole time
    with pytest.raises(SnapshotError, match="is larger than 67108864 bytes"):
        load(path, "n0")


def test_a_snapshot_too_large_to_be_loaded_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "s", make())
    monkeypatch.setattr(module, "MAX_BYTES", 1500)
    with pytest.raises(SnapshotError, match="more than a snapshot may have"):
        save(tmp_path / "s", make(100))
    assert load(tmp_path / "s", "n0") == make()


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SnapshotError, match=rf"cannot be written: {tmp_path}/file \(stateDir\) is not a folder"):
        save(tmp_path / "file" / "s", make())


def test_killed_in_the_middle_of_saving_the_old_or_the_new_one_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save(path, make())
    script = """
import sys
from pathlib import Path
from pynet.apply.snapshot import load, save
path = Path(sys.argv[1])
small = load(path, "n0")
big = type(small)(small.node, small.saved, small.nodes * 30000)
while True:
    save(path, big)
"""
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", script, str(path)]) as writer:
            until(lambda: any(entry.name != "s" for entry in tmp_path.iterdir()), "writing", seconds=60)
            writer.send_signal(signal.SIGKILL)
        got = load(path, "n0")
        assert got is not None
        assert len(got.nodes) in {len(make().nodes), 30000 * len(make().nodes)}
        caught = any(entry.name != "s" for entry in tmp_path.iterdir())
        save(path, make())
        assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
        if caught:
            return
    pytest.fail("never caught in the middle")
