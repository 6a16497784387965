"""Connections to the API server that tell when they are there: whom we talk to is known, and a stream can be broken off."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import InsecureRequestWarning

from pynet.drivers.tls import tls_context

if TYPE_CHECKING:
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


class _PlainConnection(HTTPConnection):
    """An HTTP connection that tells when it is there."""

    def __init__(self, *args: Any, opened: Callable[[socket.socket], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened = opened

    def connect(self) -> None:
        """Connect, and tell."""
        super().connect()
        self._opened(self.sock)


class _TlsConnection(HTTPSConnection):
    """The same over TLS."""

    def __init__(self, *args: Any, opened: Callable[[socket.socket], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened = opened

    def connect(self) -> None:
        """Connect, and tell."""
        super().connect()
        self._opened(self.sock)


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def new_pool(access: Access, opened: Callable[[socket.socket], None]) -> urllib3.HTTPConnectionPool:
    """A pool of connections to one server. Raises CredentialsError."""
    parts = urlsplit(access.server)
    context = tls_context(access)
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
