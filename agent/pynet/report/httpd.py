"""A small HTTP server for probes and scrapes: every listener and every connection in one thread.

It speaks just enough of HTTP/1.1: GET and HEAD, one request a connection. Written here because http.server gives each
connection a thread and has no deadline for a whole request: a client that sends a byte now and then would hold its thread for
ever, and with some dozens of them the kubelet's probe, and then the agent, would die.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from pynet.report.httpwire import Page, PageSource, Reply, read_request, write_reply

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

CONNECTIONS: Final = 16
"""Per listener. When they are all taken, the one that has been there the longest gives way."""

SECONDS: Final = 5.0
"""How long a client may take to send its request, and again to read the answer."""

RETRY_SECONDS: Final = 5.0
"""Pause between attempts to listen, and how soon a changed address is followed."""

_LINGER_SECONDS: Final = 1.0


class Listener(NamedTuple):
    """Where to listen and what to serve there.

    ``address()`` is asked before each attempt to listen, and every few seconds after: an IP address, "" for all, or None as
    long as it is not known. ``port`` may be 0 for any that is free. ``pages`` maps paths to what makes them, which is called in
    the server's thread.
    """

    name: str
    address: Callable[[], str | None]
    port: int
    pages: Mapping[str, PageSource]


class _Connection:
    """One client: first its request comes in, then the answer goes out, then we wait for it to hang up."""

    def __init__(self, sock: socket.socket, pages: Mapping[str, PageSource], deadline: float) -> None:
        self.sock = sock
        self.pages = pages
        self.deadline = deadline
        self.received = bytearray()
        self.to_send = memoryview(b"")
        self.answered = False


class _Port:
    """A listener's socket, if it has one, and its connections, oldest first."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.sock: socket.socket | None = None
        self.address: str | None = None
        self.problem = f"{listener.name} port {listener.port}: not yet listening"
        self.connections: dict[_Connection, None] = {}

    def failed(self, words: str) -> bool:
        """Note a problem; returns whether it is a new one."""
        old, self.problem = self.problem, f"{self.listener.name} port {self.listener.port}: {words}"
        return old != self.problem


class HttpServer:
    """Serves ``listeners`` from :meth:`start` to :meth:`stop`, in a daemon thread.

    A port that is taken, or an address that the host does not have, is a problem (see :meth:`problems`), logged once and
    tried again every few seconds; it stops nothing else.
    """

    def __init__(self, listeners: list[Listener], log: FilteringBoundLogger, *, seconds: float = SECONDS) -> None:
        self._ports = [_Port(listener) for listener in listeners]
        self._log = log
        self._seconds = seconds
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._again = False
        self._thread = threading.Thread(target=self._run, name="httpd", daemon=True)

    def start(self) -> None:
        """Listen, as far as that is possible now, and serve. Raises nothing."""
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._listen()
        self._thread.start()

    def look_again(self) -> None:
        """Listen where that was not possible before, now: what ``address()`` says may have changed. Called by any thread."""
        self._again = True
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Close everything; answers under way are cut off."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._close_all()

    def problems(self) -> tuple[str, ...]:
        """Why a listener does not listen, one line each: ``metrics port 9793: Address already in use``."""
        return tuple(port.problem for port in self._ports if port.problem)

    def port(self, name: str) -> int:
        """The port that the listener called ``name`` listens on; 0 if it does not."""
        return next((p.sock.getsockname()[1] for p in self._ports if p.listener.name == name and p.sock), 0)

    def _run(self) -> None:
        listen_at = time.monotonic() + RETRY_SECONDS
        while not self._stopping:
            now = time.monotonic()
            if now >= listen_at or self._again:
                self._again = False
                self._listen()
                listen_at = now + RETRY_SECONDS
            deadlines = [connection.deadline for port in self._ports for connection in port.connections]
            for key, _ in self._selector.select(max(0.0, min([*deadlines, listen_at]) - now)):
                self._serve(key.data)
            self._expire(time.monotonic())

    def _serve(self, ready: _Port | tuple[_Port, _Connection] | None) -> None:
        if ready is None:
            os.eventfd_read(self._wake)
        elif isinstance(ready, _Port):
            self._accept(ready)
        else:
            port, connection = ready
            if connection not in port.connections:  # it gave way to another one a moment ago
                return
            try:
                done = self._advance(port, connection)
            except BlockingIOError:
                return
            except OSError:  # the client went away: nobody is left to tell
                done = True
            except Exception:  # a defect of ours must cost one connection, not the probes
                self._log.exception("request_failed", listener=port.listener.name)
                done = True
            if done:
                self._close(port, connection)

    # Listening

    def _listen(self) -> None:
        """Open what is not open, and follow addresses that have changed."""
        for port in self._ports:
            address = port.listener.address()
            if port.sock is not None and address in {port.address, None}:
                continue
            self._unlisten(port)
            if address is not None:
                self._open(port, address)

    def _unlisten(self, port: _Port) -> None:
        if port.sock is not None:
            self._selector.unregister(port.sock)
            port.sock.close()
            port.sock = None

    def _open(self, port: _Port, address: str) -> None:
        name, number = port.listener.name, port.listener.port
        try:
            port.sock = _listening_socket(address, number)
        except OSError as error:
            words = _words(error)
            if port.failed(words):
                self._log.warning("listen_failed", listener=name, address=address, port=number, error=words)
            return
        port.address, port.problem = address, ""
        self._selector.register(port.sock, selectors.EVENT_READ, port)
        self._log.info("listening", listener=name, address=address, port=port.sock.getsockname()[1])

    def _accept(self, port: _Port) -> None:
        if port.sock is None:
            return
        try:
            sock, _ = port.sock.accept()
        except (BlockingIOError, ConnectionError):  # gone again already
            return
        except OSError as error:  # out of descriptors or memory: trying again at once would take a whole core
            self._unlisten(port)
            port.failed(_words(error))
            self._log.warning("accept_failed", listener=port.listener.name, error=_words(error))
            return
        sock.setblocking(False)
        if len(port.connections) >= CONNECTIONS:
            self._close(port, next(iter(port.connections)))
        connection = _Connection(sock, port.listener.pages, time.monotonic() + self._seconds)
        port.connections[connection] = None
        self._selector.register(sock, selectors.EVENT_READ, (port, connection))

    # One connection

    def _advance(self, port: _Port, connection: _Connection) -> bool:
        """Go on with a connection that is ready; returns whether it is over. Raises OSError if the client is gone."""
        if connection.to_send:
            return self._send(port, connection)
        data = connection.sock.recv(16384)
        if connection.answered or not data:  # what comes after a request is read only so that the answer is not lost by a reset
            return not data
        connection.received += data
        request = read_request(connection.received)
        if request is None:
            return False
        reply = request if isinstance(request, Reply) else self._reply(connection.pages, request.path, request.headers)
        head_only = not isinstance(request, Reply) and request.method == "HEAD"
        connection.to_send = memoryview(write_reply(reply, head_only=head_only))
        connection.received.clear()
        connection.answered = True
        connection.deadline = time.monotonic() + self._seconds
        self._selector.modify(connection.sock, selectors.EVENT_WRITE, (port, connection))
        return self._send(port, connection)

    def _send(self, port: _Port, connection: _Connection) -> bool:
        sent = connection.sock.send(connection.to_send)
        connection.to_send = connection.to_send[sent:]
        if not connection.to_send:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.deadline = time.monotonic() + min(_LINGER_SECONDS, self._seconds)
            self._selector.modify(connection.sock, selectors.EVENT_READ, (port, connection))
        return False

    def _reply(self, pages: Mapping[str, PageSource], path: str, headers: Mapping[str, str]) -> Reply:
        page = pages.get(path)
        if page is None:
            return Reply(404, Page(f"no such page; there are {', '.join(sorted(pages))}\n".encode()))
        try:
            return page(headers)
        except Exception:
            self._log.exception("page_failed", path=path)
            return Reply(500, Page(b"internal error: see the agent's log\n"))

    def _expire(self, now: float) -> None:
        for port in self._ports:
            for connection in [each for each in port.connections if each.deadline <= now]:
                self._close(port, connection)

    def _close(self, port: _Port, connection: _Connection) -> None:
        self._selector.unregister(connection.sock)
        connection.sock.close()
        del port.connections[connection]

    def _close_all(self) -> None:
        for port in self._ports:
            for connection in list(port.connections):
                self._close(port, connection)
            self._unlisten(port)
        self._selector.close()
        os.close(self._wake)


def _words(error: OSError) -> str:
    """The kernel's words alone: create_server adds the address to them, which we say ourselves."""
    return os.strerror(error.errno) if error.errno else str(error)


def _listening_socket(address: str, port: int) -> socket.socket:
    """Listen on ``address``; "" is every address of both families. Raises OSError."""
    if not address:
        if socket.has_dualstack_ipv6():
            return _prepared(socket.create_server(("::", port), family=socket.AF_INET6, backlog=64, dualstack_ipv6=True))
        address = "0.0.0.0"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return _prepared(socket.create_server((address, port), family=family, backlog=64))


def _prepared(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock
