"""The words of HTTP/1.1 that the agent's server needs: a request's head in, an answer out. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlsplit

MAX_HEAD: Final = 8192
"""Bytes of a request's head: more than any probe or scraper sends."""

PLAIN: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"

_END: Final = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE: Final = re.compile(r"([A-Z]{1,20}) (\S{1,2000}) HTTP/1\.[01]")


class Page(NamedTuple):
    """A body and what it is."""

    body: bytes
    content_type: str = PLAIN


class Reply(NamedTuple):
    """An HTTP status and a page."""

    status: int
    page: Page


PageSource = Callable[[Mapping[str, str]], Reply]
"""Makes a page's answer; takes the request's headers, names in lower case."""


class Request(NamedTuple):
    """A request that can be answered. ``method`` is GET or HEAD, ``path`` has no query."""

    method: str
    path: str
    headers: Mapping[str, str]


def read_request(received: bytearray) -> Request | Reply | None:
    """What a client asks for: None as long as its head is not there whole, a Reply if it cannot be served.

    A body, if there is one, is not looked at.
    """
    end = _END.search(received, 0, MAX_HEAD)
    if end is None:
        return Reply(431, Page(b"the request's head is too large\n")) if len(received) >= MAX_HEAD else None
    line, *fields = received[: end.start()].decode("latin-1").splitlines() or [""]
    asked = _REQUEST_LINE.fullmatch(line)
    if asked is None:
        return Reply(400, Page(b"not an HTTP/1 request\n"))
    method, target = asked.groups()
    if method not in {"GET", "HEAD"}:
        return Reply(405, Page(b"only GET and HEAD are allowed\n"))
    try:
        path = urlsplit(target).path
    except ValueError:
        return Reply(400, Page(b"not a URL\n"))
    headers = {}
    for field in fields:
        name, _, value = field.partition(":")
        headers[name.strip().lower()] = value.strip()
    return Request(method, path, headers)


def write_reply(reply: Reply, *, head_only: bool) -> bytes:
    """The answer's bytes. The connection ends with it."""
    status, (body, content_type) = reply
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if head_only else head + body
