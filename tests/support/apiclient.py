"""A small Kubernetes API client for tests and benchmarks, which reaches an API server inside a network namespace.

JSON over kept-alive HTTPS connections, one per thread: thousands of Nodes are made in seconds, which the kubernetes package
(a new model object for each field) cannot do. It shares nothing with the agent's own client, so that it can be its oracle.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support.netns import Namespace

JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class RefusedError(Exception):
    """The API server refused: ``code`` is the HTTP status, ``message`` its words."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class _Connection(http.client.HTTPSConnection):
    """An HTTPS connection whose socket is made in a namespace."""

    namespace: Namespace

    def connect(self) -> None:
        with self.namespace.entered():
            super().connect()


class LineStream:
    """The lines of an answer, as they arrive; ends when the server ends it or another thread closes it."""

    def __init__(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self._socket = connection.sock
        self._socket.settimeout(None)

    def __iter__(self) -> Iterator[bytes]:
        with contextlib.closing(self._connection), contextlib.suppress(OSError, http.client.HTTPException):
            yield from self._response

    def close(self) -> None:
        """End it, also while another thread waits for a line."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class ApiClient:
    """Requests to ``https://host:port`` of network namespace ``namespace`` as whom ``token`` says. Thread-safe."""

    def __init__(self, namespace: Namespace, host: str, port: int, *, token: str, ca_file: Path, connections: int = 8) -> None:
        self.namespace = namespace
        self.host = host
        self.port = port
        self.token = token
        self.ca_file = ca_file
        self._tls = ssl.create_default_context(cafile=str(ca_file))
        self._local = threading.local()
        self._opened: list[_Connection] = []
        self._others: list[ApiClient] = []
        self._workers = ThreadPoolExecutor(connections, thread_name_prefix="apiclient")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker threads and every connection, also of clients that `as_token` made."""
        for other in self._others:
            other.close()
        self._workers.shutdown()
        for connection in self._opened:
            connection.close()

    def as_token(self, token: str) -> ApiClient:
        """The same server as somebody else; closed with this client, if not before."""
        self._others.append(ApiClient(self.namespace, self.host, self.port, token=token, ca_file=self.ca_file))
        return self._others[-1]

    def request(self, verb: str, path: str, body: Any = None, content: str = JSON) -> Any:
        """One request; ``body`` is an object or bytes that are JSON already. Returns the decoded answer.

        Raises RefusedError if the server refuses, OSError or http.client.HTTPException if it cannot be reached.
        """
        status, data = self.raw(verb, path, body, content)
        if status >= 400:
            raise RefusedError(status, _message(data))
        return json.loads(data)

    def raw(self, verb: str, path: str, body: Any = None, content: str = JSON) -> tuple[int, bytes]:
        """One request: its HTTP status and body as they are."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content, "Accept": JSON}
        connection = self._connection()
        fresh = connection.sock is None
        try:
            return self._exchange(connection, verb, path, data, headers)
        except (http.client.HTTPException, OSError) as error:
            if fresh or isinstance(error, TimeoutError):
                raise
            # A kept-alive connection that a restarted server has forgotten says nothing about the server now.
            return self._exchange(connection, verb, path, data, headers)

    def get(self, path: str) -> Any:
        """The object at ``path``."""
        return self.request("GET", path)

    def create(self, path: str, body: Any) -> Any:
        """The object that POST to the collection ``path`` made."""
        return self.request("POST", path, body)

    def patch(self, path: str, body: Any, content: str = STRATEGIC) -> Any:
        """The object after a patch (strategic merge unless ``content`` says otherwise)."""
        return self.request("PATCH", path, body, content)

    def delete(self, path: str, *, absent_is_fine: bool = False) -> None:
        """Delete the object, or every object of the collection, at ``path``."""
        try:
            self.request("DELETE", path)
        except RefusedError as refusal:
            if not (absent_is_fine and refusal.code == 404):
                raise

    def ensure(self, collection: str, body: Any) -> Any:
        """Create the object, or replace the one of its name."""
        try:
            return self.create(collection, body)
        except RefusedError as refusal:
            if refusal.code != 409:
                raise
            return self.request("PUT", f"{collection}/{body['metadata']['name']}", body)

    def each(self, do: Callable[[Any], object], items: Iterable[Any]) -> None:
        """Call ``do`` for each item on all connections at once; the first error is raised."""
        for _ in self._workers.map(do, items):
            pass

    def stream(self, path: str) -> LineStream:
        """GET with an answer that goes on, such as a watch, on a connection of its own."""
        connection = self._new_connection()
        connection.request("GET", path, None, {"Authorization": f"Bearer {self.token}", "Accept": JSON})
        response = connection.getresponse()
        if response.status >= 400:
            raise RefusedError(response.status, _message(response.read()))
        return LineStream(connection, response)

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._new_connection()
        return connection

    def _new_connection(self) -> _Connection:
        connection = _Connection(self.host, self.port, context=self._tls, timeout=30)
        connection.namespace = self.namespace
        self._opened.append(connection)
        return connection

    @staticmethod
    def _exchange(
        connection: _Connection, verb: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        try:
            connection.request(verb, path, data, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data).get("message", ""))
    except ValueError:
        return data[:300].decode(errors="replace")
