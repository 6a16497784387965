"""What a node's cleanup tells the uninstall hook's Job: small enough for kubelet, and never nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynet.uninstall import main, short_result

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


def test_outside_a_pod_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    assert main(["--namespace=x", "--agent=x", "--agent-selector=a=b", "--daemonset=/none"]) == 1
    assert "no way to the API server" in capsys.readouterr().err
