"""What a node's cleanup tells the uninstall hook's Job: small enough for kubelet, never nothing. And what the Job waits for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynet import uninstall
from pynet.drivers.kube import ApiError
from pynet.uninstall import Uninstall, main, short_result

if TYPE_CHECKING:
    from pathlib import Path

KUBELET_KEEPS = 4096  # bytes of a termination message


def _stays(document: str) -> list[str]:
    found: list[str] = json.loads(short_result(document))["stays"]
    return found


def test_what_went_is_left_out_and_what_stays_is_kept() -> None:
    document = {"dryRun": False, "removed": ["route 10.0.0.0/24"] * 1000, "stays": ["bridge pynet0: pods still use it"]}

    assert _stays(json.dumps(document)) == ["bridge pynet0: pods still use it"]


def test_clean_is_an_empty_list() -> None:
    assert short_result('{"dryRun": false, "removed": [], "stays": []}') == '{"stays": []}'


def test_words_that_are_no_document_are_what_stays() -> None:
    assert _stays("pynet cleanup: the lock is held;\nstop the agent first\n") == [
        "pynet cleanup: the lock is held; stop the agent first"
    ]


@pytest.mark.parametrize("document", ["", "null", "[]", "{}", '{"stays": 1}', '{"stays": null}', "{"])
def test_documents_that_are_not_understood_are_not_taken_for_clean(document: str) -> None:
    assert len(_stays(document)) == 1


@given(st.lists(st.text(max_size=3000), max_size=300))
def test_result_always_fits_and_says_how_much_is_left_out(stays: list[str]) -> None:
    text = short_result(json.dumps({"stays": stays}))

    kept = json.loads(text)["stays"]
    assert len(text.encode()) <= KUBELET_KEEPS
    assert bool(kept) is bool(stays)
    if len(kept) != len(stays) or (kept and kept[-1] != stays[-1] and kept[-1].startswith("and ")):
        assert kept[-1] == f"and {len(stays) - len(kept) + 1} more"


def test_job_that_is_told_to_end_takes_its_daemon_set_away_first(tmp_path: Path) -> None:
    """At its deadline, or when its node is drained. As process 1 of a container it would not even notice by itself."""
    script = """if True:
        import sys
        from unittest import mock
        from pynet import uninstall

        class Api:
            def __init__(self, _): pass
            def get_json(self, path): return {"metadata": {}, "items": []}
            def delete(self, path): print("DELETE", path.partition("?")[0].rpartition("/")[2], flush=True)
            def post_json(self, path, body): print("POST", flush=True); return {"metadata": {"uid": "u"}}

        with mock.patch.multiple(uninstall, Api=Api, in_cluster=lambda server: None):
            sys.exit(uninstall.main(["--namespace=x", "--agent=a", "--agent-selector=a=b", f"--daemonset={sys.argv[1]}"]))
    """
    made = tmp_path / "daemonset.json"
    made.write_text(json.dumps({"metadata": {"name": "a-cleanup"}, "spec": {"selector": {"matchLabels": {"c": "d"}}}}))
    job = subprocess.Popen([sys.executable, "-c", script, str(made)], stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout
        for line in job.stdout:
            if line == "POST\n":
                break
        job.send_signal(signal.SIGTERM)
        rest, _ = job.communicate(timeout=20)
    finally:
        job.kill()
    assert "DELETE a-cleanup\n" in rest
    assert job.returncode == 1


def test_outside_a_pod_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    assert main(["--namespace=x", "--agent=x", "--agent-selector=a=b", "--daemonset=/none"]) == 1
    assert "no way to the API server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("at", "answers", "asked"),
    [
        pytest.param(0, [403, 403, 200], 3, id="rights that Helm has just given"),
        pytest.param(50, [403, 200], 1, id="no rights"),
        pytest.param(50, [0, 0, 403, 401, 200], 5, id="a server that was started anew does not know of our rights yet"),
        pytest.param(50, [503, 403, 200], 3, id="nor one that is starting"),
        pytest.param(50, [0, *[403] * 20], 11, id="nor does it ever"),
        pytest.param(50, [404, 200], 1, id="what does not pass"),
        pytest.param(50, [429, 200], 2, id="too many requests"),
        pytest.param(95, [0] * 20, 6, id="until time is up"),
    ],
)
def test_what_may_pass_is_asked_again(monkeypatch: pytest.MonkeyPatch, at: float, answers: list[int], asked: int) -> None:
    clock = [0.0]
    monkeypatch.setattr(
        uninstall, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s))
    )
    work = Uninstall(None, "ns", seconds=100, say=lambda _: None)  # type: ignore[arg-type]
    clock[0] = at
    given_so_far: list[int] = []

    def request() -> str:
        given_so_far.append(answers[len(given_so_far)])
        if given_so_far[-1] != 200:
            raise ApiError(given_so_far[-1], "no")
        return "yes"

    if answers[asked - 1] == 200:
        assert work._ask(request) == "yes"
    else:
        with pytest.raises(ApiError):
            work._ask(request)
    assert len(given_so_far) == asked
