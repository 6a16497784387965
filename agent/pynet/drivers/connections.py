"""Connections to the API server that tell when they are there: whom we talk to is known, and a stream can be broken off."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import InsecureRequestWarning

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from pynet.drivers.credentials import Access

_PEERS: Final = 16  # addresses remembered


class Connections:
    """Whom we are, or were last, connected to; and the open sockets of streams."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[str, bytes] = {}
        self._streams: set[socket.socket] = set()

    def opened(self, sock: socket.socket, stream: bool) -> None:
        """Remember a connection that was just made."""
        with contextlib.suppress(OSError):  # reset at once: then nobody is there to be remembered
            text = sock.getpeername()[0]
            packed = socket.inet_pton(sock.family, text.partition("%")[0])
            with self._lock:
                self._peers.pop(text, None)
                self._peers[text] = packed
                if len(self._peers) > _PEERS:
                    del self._peers[next(iter(self._peers))]
        if stream:
            with self._lock:
                self._streams = {each for each in self._streams if each.fileno() >= 0} | {sock}

    def peers(self) -> set[bytes]:
        """The addresses we are connected to, or were: packed, the latest 16."""
        with self._lock:
            return set(self._peers.values())

    def interrupt(self) -> None:
        """Shut the sockets of all streams down."""
        with self._lock:
            streams = list(self._streams)
        for sock in streams:
            with contextlib.suppress(OSError):  # closed meanwhile
                # The plain socket's method: SSLSocket.shutdown would pull the TLS object from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Connection(HTTPConnection):
    """An HTTP connection that tells when it is there, and keeps ``answer``, the response that it is giving.

    The answer is http.client's own: to read a stream through urllib3's wrapping of it takes half as long again.
    """

    answer: http.client.HTTPResponse

    def __init__(self, *args: Any, opened: Callable[[socket.socket], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened = opened
        cast("Any", self).response_class = self._answer  # http.client calls it and asks no more of it

    def connect(self) -> None:
        """Connect, and tell."""
        super().connect()
        self._opened(self.sock)

    def _answer(self, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
        self.answer = http.client.HTTPResponse(*args, **kwargs)
        return self.answer


class _TlsConnection(Connection, HTTPSConnection):
    """The same over TLS."""


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def new_pool(
    access: Access, context: ssl.SSLContext | None, opened: Callable[[socket.socket], None]
) -> urllib3.HTTPConnectionPool:
    """A pool of connections to one server, over TLS if there is a ``context``; ``opened`` is told of each."""
    parts = urlsplit(access.server)
    if context is None:
        return _PlainPool(parts.hostname or "", parts.port or 80, maxsize=2, opened=opened)
    if access.insecure:
        urllib3.disable_warnings(InsecureRequestWarning)  # the kubeconfig asks for it
    return _TlsPool(
        parts.hostname or "",
        parts.port or 443,
        maxsize=2,
        opened=opened,
        ssl_context=context,
        server_hostname=access.tls_server_name or None,
    )
