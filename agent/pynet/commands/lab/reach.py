"""HTTP into a namespace: a connection is made there, and used from here."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from pynet.commands.lab.namespaces import enter
from pynet.commands.lab.plan import API_PORT, LabError, NodePlan, Plan

Json = dict[str, Any]
HEALTH_PORT = 9794


class Answer(Exception):  # noqa: N818 (what the server said, not what went wrong here)
    """The server said no: ``code`` is the HTTP status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@contextlib.contextmanager
def connected(namespace: str, address: str, port: int, seconds: float = 5.0) -> Iterator[http.client.HTTPConnection]:
    """Connect from inside a namespace. Raises OSError."""
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    connection.sock = enter(namespace, lambda: socket.create_connection((address, port), seconds))
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Json | None = None) -> bytes:
    """Send one request and return the answer's body. Raises Answer if its status is not 2xx, OSError if there is none."""
    headers = {"Accept": "application/json", "Content-Type": "application/json"}
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    if response.status // 100 != 2:
        raise Answer(response.status, content.decode(errors="replace"))
    return content


def health(node: NodePlan, path: str, seconds: float = 2.0) -> bytes:
    """Ask a node's agent at its loopback address: /readyz, /status. Raises Answer, OSError."""
    with connected(node.namespace, "127.0.0.1", HEALTH_PORT, seconds) as connection:
        return ask(connection, "GET", path)


@contextlib.contextmanager
def node_api(plan: Plan) -> Iterator[http.client.HTTPConnection]:
    """Connect to the lab's Node API. Raises LabError."""
    try:
        with connected(plan.hub, plan.hub_addresses[0], API_PORT) as connection:
            yield connection
    except OSError as error:
        raise LabError(f"the Node API does not answer at {plan.api_url}: {error.strerror or error}") from error
    except Answer as answer:
        raise LabError(f"the Node API says: {message(answer)}") from answer


def message(answer: Answer) -> str:
    """Return the words of a Status object, or of whatever else was answered."""
    try:
        return str(json.loads(str(answer))["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.code} {answer}".strip()
