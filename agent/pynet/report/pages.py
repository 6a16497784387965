"""The pages that the agent serves: /metrics on the node; /livez, /readyz and /status on loopback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest

from pynet.report.httpwire import JSON, Page, PageSource, Reply
from pynet.report.readiness import liveness

if TYPE_CHECKING:
    from pynet.report.status import StatusBoard


def metrics_pages(registry: CollectorRegistry) -> dict[str, PageSource]:
    """/metrics, in the text format or as OpenMetrics, as the scraper prefers."""

    def metrics(headers: Mapping[str, str]) -> Reply:
        try:
            encode, content_type = choose_encoder(headers.get("accept", ""))
        except (ValueError, TypeError):  # the library's, for a version that is no number
            encode, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return Reply(HTTPStatus.OK, Page(encode(registry), content_type))

    return {"/metrics": metrics}


def health_pages(board: StatusBoard, seconds_since_tick: Callable[[], float]) -> dict[str, PageSource]:
    """/livez, /readyz and /status. ``seconds_since_tick`` is how long ago the loop showed a sign of life."""

    def livez(_headers: Mapping[str, str]) -> Reply:
        problem = liveness(seconds_since_tick())
        return _verdict("not alive" if problem else "alive", [problem] if problem else [], ())

    def readyz(_headers: Mapping[str, str]) -> Reply:
        verdict = board.readiness()
        return _verdict("ready" if verdict.ready else "not ready", verdict.reasons, verdict.remarks)

    def status(_headers: Mapping[str, str]) -> Reply:
        return Reply(HTTPStatus.OK, Page(board.document(), JSON))

    return {"/livez": livez, "/readyz": readyz, "/status": status}


def _verdict(word: str, reasons: list[str] | tuple[str, ...], remarks: tuple[str, ...]) -> Reply:
    """One line a reason, after the word; 503 if there is any."""
    lines = [f"{word}: {reason}" for reason in reasons] or [word]
    lines += [f"remark: {remark}" for remark in remarks]
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return Reply(status, Page("".join(f"{line}\n" for line in lines).encode()))
