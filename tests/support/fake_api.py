"""A Node API on a loopback socket that can fail in every way: what a real kube-apiserver cannot be made to do at will.

Without faults it lists (protobuf with gzip, JSON in pages) and watches as the real one does. A fault is a function of the
Exchange; ``script`` queues faults, and each request of that verb takes the next one instead of the proper answer.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import socket
import ssl
import struct
import threading
import uuid
from collections import defaultdict, deque
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from tests.support import kubeproto

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Fault = Callable[["Exchange"], None]

Json = dict[str, Any]
PROTOBUF = "application/vnd.kubernetes.protobuf"
JSON = "application/json"
NODES = "/api/v1/nodes"


class Request(NamedTuple):
    """A request as it came in."""

    verb: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")


class Exchange(BaseHTTPRequestHandler):
    """One connection; ``asked`` is the request that is being answered."""

    protocol_version = "HTTP/1.1"
    server: _Server
    asked: Request

    def _answer(self) -> None:
        api = self.server.api
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        verb = self.command.lower()
        if verb == "get" and url.path == NODES:
            verb = "watch" if query.get("watch") else "list"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.asked = Request(verb, url.path, query, headers, body)
        fault = api.next_fault(self.asked)
        with contextlib.suppress(OSError):
            (fault or api.serve)(self)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815  names of http.server

    def log_message(self, *_args: object) -> None:
        """Tests print what they need."""

    @property
    def speaks_protobuf(self) -> bool:
        return PROTOBUF in self.asked.headers.get("accept", "")

    def begin(self, content_type: str, *, code: int = 200, **headers: str) -> None:
        """Status and headers of a chunked answer."""
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def finish_chunks(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def answer(self, code: int, body: bytes, content_type: str = JSON, **headers: str) -> None:
        """A whole answer of known length."""
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code: int, reason: str, message: str, retry_after: int = 0, **headers: str) -> None:
        """A Status object, in the encoding that was asked for."""
        status = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
        if retry_after:
            status["details"] = {"retryAfterSeconds": retry_after}
        if self.speaks_protobuf:
            self.answer(code, kubeproto.status(status), PROTOBUF, **headers)
        else:
            self.answer(code, json.dumps(status).encode(), **headers)

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.cut()

    def cut(self) -> None:
        """End the connection after what was sent, whatever was promised."""
        self.close_connection = True
        self.wfile.flush()

    def hang(self) -> None:
        """Say nothing more, until the test is over or the client has gone."""
        self.close_connection = True
        self.connection.settimeout(0.05)
        while not self.server.api.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    api: FakeApi

    def handle_error(self, *_args: object) -> None:
        """Broken connections are what this is for."""


class FakeApi:
    """The server; a context manager. ``put`` and ``delete`` change Nodes; ``requests`` has all that was asked.

    ``bookmark_seconds`` is how often a watch that is quiet gets a bookmark; ``protobuf`` False makes it answer 406 to that.
    """

    def __init__(self, *, tls: tuple[Path, Path] | None = None, protobuf: bool = True, family: int = socket.AF_INET) -> None:
        self.nodes: dict[str, Json] = {}
        self.version = 100
        self.compacted = 0
        self.bookmark_seconds = 60.0
        self.protobuf = protobuf
        self.tokens: set[str] = set()
        self.others: dict[str, Json] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._events: list[tuple[int, str, Json]] = []
        self._news = threading.Condition()
        self._generation = 0
        self._server = type("Server", (_Server,), {"address_family": family})(
            ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Exchange
        )
        self._server.api = self
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]
        host = "[::1]" if family == socket.AF_INET6 else "127.0.0.1"
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()

    # ---- what is in it

    def put(self, body: Json, *, uid: str = "") -> Json:
        """Create or replace a Node; returns it with its uid and resourceVersion."""
        with self._news:
            self.version += 1
            body = copy.deepcopy(body)
            metadata = body["metadata"]
            old = self.nodes.get(metadata["name"])
            metadata["uid"] = uid or (old["metadata"]["uid"] if old else str(uuid.uuid4()))
            metadata.setdefault("creationTimestamp", "2026-01-02T03:04:05Z")
            metadata["resourceVersion"] = str(self.version)
            self.nodes[metadata["name"]] = body
            self._tell("MODIFIED" if old else "ADDED", body)
        return body

    def delete(self, name: str) -> None:
        with self._news:
            self.version += 1
            body = self.nodes.pop(name)
            body["metadata"]["resourceVersion"] = str(self.version)
            self._tell("DELETED", body)

    def say(self, kind: str, body: Json) -> None:
        """An event on all watches, of whatever kind and content."""
        with self._news:
            self._tell(kind, body)

    def end_watches(self) -> None:
        """End all watches in order, as a server does when their time is over."""
        with self._news:
            self._generation += 1
            self._news.notify_all()

    def script(self, verb: str, *faults: Fault) -> None:
        """Let the next requests of ``verb`` (list, watch, get, patch, post) meet with these."""
        self._faults[verb].extend(faults)

    def asked(self, verb: str) -> list[Request]:
        return [request for request in self.requests if request.verb == verb]

    # ---- what it does

    def next_fault(self, request: Request) -> Fault | None:
        self.requests.append(request)
        faults = self._faults[request.verb]
        return faults.popleft() if faults else None

    def serve(self, exchange: Exchange) -> None:
        """The proper answer."""
        asked = exchange.asked
        if self.tokens and asked.token not in self.tokens:
            exchange.refuse(401, "Unauthorized", "Unauthorized")
        elif asked.verb in {"list", "watch"}:
            if exchange.speaks_protobuf and not self.protobuf:
                exchange.answer(406, b"", "text/plain")
            elif asked.verb == "list":
                self._list(exchange)
            else:
                self.watch(exchange)
        elif asked.path in self.others:
            exchange.answer(200, json.dumps(self.others[asked.path]).encode())
        else:
            exchange.refuse(404, "NotFound", f"{asked.path} not found")

    def snapshot(self) -> tuple[list[Json], str]:
        with self._news:
            return list(self.nodes.values()), str(self.version)

    def encoded_list(self) -> bytes:
        """The whole list in protobuf."""
        return kubeproto.node_list(*self.snapshot())

    def _list(self, exchange: Exchange) -> None:
        query = exchange.asked.query
        if int(query.get("resourceVersion") or 0) > self.version:
            exchange.refuse(504, "Timeout", "Timeout: Too large resource version", retry_after=1)
        elif exchange.speaks_protobuf:
            data = gzip.compress(self.encoded_list(), 1)
            exchange.begin(PROTOBUF, Content_Encoding="gzip")
            for at in range(0, len(data), 4096):
                exchange.chunk(data[at : at + 4096])
            exchange.finish_chunks()
        else:
            exchange.answer(200, self.page(int(query.get("limit", 0)), query.get("continue", "")))

    def page(self, limit: int, token: str) -> bytes:
        """A page of the list in JSON."""
        items, version = self.snapshot()
        start = int(token or 0)
        stop = start + limit if limit else len(items)
        metadata = {"resourceVersion": version, "continue": str(stop) if stop < len(items) else ""}
        return json.dumps({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items[start:stop]}).encode()

    def watch(self, exchange: Exchange) -> None:
        """Serve a watch until its time is over."""
        version = int(exchange.asked.query["resourceVersion"])
        if version < self.compacted:
            exchange.begin(PROTOBUF + ";stream=watch" if exchange.speaks_protobuf else JSON)
            exchange.chunk(encode(exchange, "ERROR", {"code": 410, "reason": "Expired", "message": "too old resource version"}))
            exchange.finish_chunks()
            return
        exchange.begin(PROTOBUF + ";stream=watch" if exchange.speaks_protobuf else JSON)
        with self._news:
            generation = self._generation
            at = next((i for i, event in enumerate(self._events) if event[0] > version), len(self._events))
        while True:
            with self._news:
                self._news.wait_for(partial(self._has_news, at, generation), self.bookmark_seconds)
                events, at = self._events[at:], len(self._events)
                over = self._generation > generation
            if not events and not over:
                events = [(0, "BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": str(self.version)}})]
            for _, kind, body in events:
                exchange.chunk(encode(exchange, kind, body))
            if over:
                exchange.finish_chunks()
                return

    def _has_news(self, at: int, generation: int) -> bool:
        return len(self._events) > at or self._generation > generation

    def _tell(self, kind: str, body: Json) -> None:
        self._events.append((self.version, kind, copy.deepcopy(body)))
        self._news.notify_all()


def encode(exchange: Exchange, kind: str, body: Json) -> bytes:
    """An event in the encoding that was asked for."""
    if exchange.speaks_protobuf:
        return kubeproto.frame(kind, body)
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"
