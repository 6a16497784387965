"""A Node API for the lab: list and watch of Nodes in JSON as kube-apiserver speaks them, nothing else.

It answers protobuf with 406, so an agent uses JSON here. It has no authentication: it listens inside a lab's own namespace.
Run as ``python -m pynet.commands.lab.apiserver ADDRESS PORT``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast
from urllib.parse import parse_qs, urlsplit

from pynet.commands.lab.store import Change, Json, StatusError, Store

NODES: Final = "/api/v1/nodes"
WATCH_SECONDS: Final = 1800
KNOWN: Final = frozenset(
    ("watch", "limit", "continue", "resourceVersion", "resourceVersionMatch", "allowWatchBookmarks", "sendInitialEvents",
     "timeoutSeconds", "fieldSelector", "fieldManager", "pretty")
)  # fmt: skip
PATCHES: Final = {"application/strategic-merge-patch+json": True, "application/merge-patch+json": False}
"""Patch types, and whether each is strategic."""


class NodeServer(ThreadingHTTPServer):
    """The server. ``bookmark_seconds`` is how often a quiet watch gets a bookmark (kube-apiserver: about every minute)."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: Store, bookmark_seconds: float = 60.0) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.store = store
        self.bookmark_seconds = bookmark_seconds
        super().__init__(address, _Exchange)

    def server_bind(self) -> None:
        """Bind without looking up the host's name: there is no resolver in a lab."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        address = self.socket.getsockname()
        self.server_address = address
        self.server_name, self.server_port = str(address[0]), int(address[1])


class Query:
    """The parameters of a request. Raises StatusError 400 for one that this server would otherwise ignore."""

    def __init__(self, text: str) -> None:
        self._values = {key: values[-1] for key, values in parse_qs(text).items()}
        unknown = sorted(self._values.keys() - KNOWN)
        if unknown:
            raise StatusError(400, "BadRequest", f"the lab's Node API does not know the parameter {unknown[0]}")

    def text(self, key: str) -> str:
        """Return a parameter, "" if it is not there."""
        return self._values.get(key, "")

    def flag(self, key: str) -> bool:
        """Whether a parameter is true."""
        return self.text(key) in ("1", "true", "True")

    def number(self, key: str) -> int:
        """Return a parameter as a number, 0 if it is not there. Raises StatusError 400."""
        text = self.text(key) or "0"
        if not text.isdecimal():
            raise StatusError(400, "BadRequest", f'{key}: Invalid value: "{text}"')
        return int(text)

    @property
    def name(self) -> str:
        """The name that a field selector asks for, "" for all. Raises StatusError 400 for any other selector."""
        selector = self.text("fieldSelector")
        key, _, name = selector.replace("==", "=").partition("=")
        if selector and key != "metadata.name":
            raise StatusError(400, "BadRequest", f'"{key}" is not a known field selector: only "metadata.name"')
        return name


class _Exchange(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def api(self) -> NodeServer:
        return cast("NodeServer", self.server)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path in ("/livez", "/readyz", "/healthz"):
            return self._send(200, b"ok", "text/plain")
        return self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PATCH(self) -> None:
        self._answer(self._patch)

    def do_DELETE(self) -> None:
        self._answer(lambda path, _: (200, self.api.store.delete(_name(path))))

    def _answer(self, work: Any) -> None:
        """Do one request and send its object, or the Status that says why not."""
        url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))  # whole, or the next request begins in it
        try:
            self._accepts_json()
            answer = work(url.path, Query(url.query))
        except StatusError as error:
            answer = error.code, status(error)
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
            answer = 400, status(StatusError(400, "BadRequest", f"the body is not what this needs: {error}"))
        if answer is not None:
            self._send(answer[0], json.dumps(answer[1]).encode(), "application/json")

    def _get(self, path: str, query: Query) -> tuple[int, Json] | None:
        if path != NODES:
            return 200, self.api.store.get(_name(path))
        if query.flag("watch"):
            self._watch(query)
            return None
        return 200, self._list(query)

    def _list(self, query: Query) -> Json:
        version, after, limit = 0, "", query.number("limit")
        if query.text("continue"):
            version, after = _read_token(query.text("continue"))
        elif query.number("resourceVersion") > self.api.store.version:
            raise StatusError(504, "Timeout", f"Too large resource version: {query.text('resourceVersion')}")
        elif query.text("resourceVersion") == "0":
            limit = 0  # kube-apiserver answers this from its cache, whole
        page = self.api.store.page(limit, after, version)
        nodes = [node for node in page.nodes if query.name in ("", node["metadata"]["name"])]
        metadata: Json = {"resourceVersion": str(page.version)}
        if page.remaining:
            metadata["continue"] = _write_token(page.version, page.nodes[-1]["metadata"]["name"])
            metadata["remainingItemCount"] = page.remaining
        items = [{key: value for key, value in node.items() if key not in ("kind", "apiVersion")} for node in nodes]
        return {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items}

    def _post(self, path: str, _: Query) -> tuple[int, Json]:
        body = self._body()
        if path == NODES:
            return 201, self.api.store.create(body)
        if path.endswith("/events"):
            self.log_message("event: %s %s", body.get("reason"), body.get("message") or body.get("note"))
            return 201, body
        raise _unknown(path)

    def _patch(self, path: str, _: Query) -> tuple[int, Json]:
        kind = self.headers.get("Content-Type", "").partition(";")[0]
        body = self._body()
        if kind not in PATCHES:
            raise StatusError(415, "UnsupportedMediaType", f"this server takes patches as {' or '.join(PATCHES)}")
        on_status = path.endswith("/status")
        name = _name(path.removesuffix("/status"))
        return 200, self.api.store.patch(name, body, status=on_status, strategic=PATCHES[kind])

    def _watch(self, query: Query) -> None:
        """Stream events until the client goes or the time is up. A version that is too old ends it with an ERROR event."""
        store, version, initial = self.api.store, query.number("resourceVersion"), query.flag("sendInitialEvents")
        if initial and query.text("resourceVersionMatch") != "NotOlderThan":
            raise StatusError(422, "Invalid", "sendInitialEvents is forbidden without resourceVersionMatch=NotOlderThan")
        seconds = query.number("timeoutSeconds") or WATCH_SECONDS
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client has gone
            if initial or not version:
                page = store.page()
                version = page.version
                self._events([Change(version, "ADDED", node) for node in page.nodes], query.name)
                if initial and query.flag("allowWatchBookmarks"):
                    self._chunk(_bookmark(version, {"k8s.io/initial-events-end": "true"}))
            self._follow(query, version, time.monotonic() + seconds)
            self.wfile.write(b"0\r\n\r\n")

    def _follow(self, query: Query, version: int, until: float) -> None:
        bookmark = self.api.bookmark_seconds if query.flag("allowWatchBookmarks") else float(WATCH_SECONDS)
        while (remaining := until - time.monotonic()) > 0:
            try:
                changes = self.api.store.since(version, min(remaining, bookmark))
            except StatusError as error:
                return self._chunk({"type": "ERROR", "object": status(error)})
            version = changes[-1].version if changes else version
            self._events(changes, query.name)
            if not changes and query.flag("allowWatchBookmarks"):
                self._chunk(_bookmark(version))
        return None

    def _events(self, changes: list[Change], name: str) -> None:
        for change in changes:
            if name in ("", change.node["metadata"]["name"]):
                self._chunk({"type": change.kind, "object": change.node})

    def _chunk(self, event: Json) -> None:
        line = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def _accepts_json(self) -> None:
        accepted = [part.partition(";")[0].strip() for part in self.headers.get("Accept", "*/*").split(",")]
        if not {"application/json", "application/*", "*/*"} & set(accepted):
            raise StatusError(406, "NotAcceptable", "only the following media types are accepted: application/json")

    def _body(self) -> Json:
        body: Json = json.loads(self.body)
        return body

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)


def status(error: StatusError) -> Json:
    """Make the Status object that the API answers instead of what was asked for."""
    head = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return {**head, "message": error.message, "reason": error.reason, "code": error.code}


def _bookmark(version: int, annotations: Json | None = None) -> Json:
    metadata: Json = {"resourceVersion": str(version), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    return {"type": "BOOKMARK", "object": {"kind": "Node", "apiVersion": "v1", "metadata": metadata}}


def _name(path: str) -> str:
    """Return the name in a path of one Node. Raises StatusError 404 for any other path."""
    folder, _, name = path.rpartition("/")
    if folder != NODES or not name:
        raise _unknown(path)
    return name


def _unknown(path: str) -> StatusError:
    return StatusError(404, "NotFound", f"the lab's Node API has no {path}")


def _write_token(version: int, after: str) -> str:
    return base64.urlsafe_b64encode(json.dumps({"rv": version, "start": after}).encode()).decode()


def _read_token(token: str) -> tuple[int, str]:
    try:
        content = json.loads(base64.urlsafe_b64decode(token))
        return int(content["rv"]), str(content["start"])
    except (ValueError, KeyError, TypeError):
        raise StatusError(400, "BadRequest", "continue key is not valid") from None


def main(arguments: list[str]) -> int:
    """Serve until the process is ended."""
    with NodeServer((arguments[0], int(arguments[1])), Store()) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
