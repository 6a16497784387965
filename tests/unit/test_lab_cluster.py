"""A real cluster for a lab: what is wrong with its kubeconfig is said before anything is made."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

import pytest
from pynet.commands import lab
from pynet.commands.lab import cluster, command
from pynet.commands.lab.plan import LabError

from tests.support.fake_api import FakeApi
from tests.support.nodes import node

if TYPE_CHECKING:
    from pathlib import Path


def kubeconfig(folder: Path, server: str, token: str = "good") -> str:
    path = folder / "kubeconfig"
    document = {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": server}}],
        "users": [{"name": "it", "user": {"token": token}}],
    }
    path.write_text(json.dumps(document))
    return str(path)


def test_a_cluster_that_shows_its_nodes_is_of_use(tmp_path: Path) -> None:
    with FakeApi() as api:
        api.tokens = {"good"}
        api.put(node("n1"))
        cluster.check(kubeconfig(tmp_path, api.url))


def test_a_cluster_that_is_away_is_named_once(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(LabError) as caught:
        cluster.check(path)
    assert str(caught.value) == f"the kubeconfig {path} is of no use: http://127.0.0.1:1: Connection refused"


def test_an_expired_token_is_told_in_the_clusters_words(tmp_path: Path) -> None:
    with FakeApi() as api:
        api.tokens = {"good"}
        path = kubeconfig(tmp_path, api.url, "expired")
        with pytest.raises(LabError, match=f"the kubeconfig {path} is of no use: the cluster says 401: Unauthorized"):
            cluster.check(path)


@pytest.mark.parametrize("text", ["[]", "hello", "clusters: 5", "a: b: c"])
def test_a_file_of_another_shape_is_one_line_wherever_it_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    for read in (cluster.check, cluster.connect):
        with pytest.raises(LabError, match=f"the kubeconfig {path} is of no use: ") as caught:
            read(str(path))
        assert "\n" not in str(caught.value)


def test_nothing_is_made_for_a_cluster_that_is_of_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    lab.add_arguments(parser)
    monkeypatch.setattr(command.state, "claim", lambda: pytest.fail("a lab was begun"))
    with pytest.raises(LabError, match="of no use"):
        command.run(parser.parse_args(["--kubeconfig", kubeconfig(tmp_path, "http://127.0.0.1:1")]), (4,))
