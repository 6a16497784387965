"""HTTP to the API server: one request, or one stream that another thread can break off."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import zlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec
import urllib3
from urllib3 import exceptions as failures

from pynet import __version__
from pynet.drivers import nodejson, nodeproto
from pynet.drivers.apiwire import MalformedError, Status, TruncatedError
from pynet.drivers.connections import Connections, new_pool
from pynet.drivers.credentials import CredentialsError
from pynet.drivers.tls import tls_context

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

    from pynet.drivers.connections import Connection
    from pynet.drivers.credentials import Access, Credentials

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 10.0
RETRY_AFTER_LIMIT: Final = 60.0
_BODY_LIMIT: Final = 4 << 20  # bytes of an answer that is read whole
_ERROR_LIMIT: Final = 64 << 10
_CHUNK: Final = 64 << 10
_INFLATED: Final = 256 << 10  # bytes of one inflated piece, so that a small answer cannot become a large one at once
_WORDS: Final = 400  # characters of a server's message
_OPENSSL: Final = re.compile(r"^\[[^]]*\] | \(_ssl\.c:\d+\)$")  # what Python puts around OpenSSL's words


class ApiError(Exception):
    """The API server said no, or was not reached.

    ``status`` is the HTTP status, 0 if there was none; ``code`` the same as a label: the status, or refused, timeout, dns, tls,
    broken, credentials; ``reason`` what the server or the kernel said, in one line; ``retry_after`` in seconds, 0 if not said.
    As text it is the status and the reason, or where there was no answer the reason alone, which says as much as the code.
    """

    def __init__(self, status: int, reason: str, *, code: str = "", retry_after: float = 0.0) -> None:
        self.status = status
        self.reason = " ".join(reason.split())[:_WORDS]
        self.code = code or str(status)
        self.retry_after = min(max(retry_after, 0.0), RETRY_AFTER_LIMIT)
        super().__init__(f"{status}: {self.reason}" if status else self.reason)


class Stream:
    """A successful answer whose body is read as it arrives. ``content_type`` is without parameters, in lower case."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self._response = response
        self._answer = cast("Connection", response.connection).answer

    def chunks(self) -> Iterator[bytes]:
        """The body, inflated, in pieces of at most 256 KiB. Raises ApiError, or MalformedError for what is no gzip."""
        encoding = self._response.headers.get("Content-Encoding", "identity").lower()
        if encoding not in {"identity", "gzip"}:
            raise MalformedError(f"content encoding {encoding!r}, not asked for")
        yield from inflated(self._raw()) if encoding == "gzip" else self._raw()

    def _raw(self) -> Iterator[bytes]:
        answer = self._answer
        try:
            while data := answer.read1(_CHUNK):
                yield data
        except (http.client.HTTPException, OSError) as error:
            raise _transport_error(error, "the API server's stream") from None
        if answer.length:
            raise ApiError(0, f"the API server's stream: it ended {answer.length} bytes early", code="broken")
        answer.close()
        self._response.release_conn()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end and others may use it."""
        self._response.close()


def inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The gzip stream in ``chunks``, in pieces of at most 256 KiB. Raises MalformedError."""
    inflate = zlib.decompressobj(31)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                piece = inflate.decompress(data, _INFLATED)
                data = inflate.unconsumed_tail
                if piece:
                    yield piece
        if rest := inflate.flush():
            yield rest
    except zlib.error as error:
        raise MalformedError(f"gzip: {error}") from None
    if not inflate.eof:
        raise TruncatedError("gzip: the stream ended early")


class _Request(NamedTuple):
    """What to ask for; ``verb`` is for the metric, ``stream`` tells which connections to use."""

    verb: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None
    read_timeout: float
    stream: bool


class Api:
    """The API server, with the credentials of the moment. Safe to use from several threads, each with its own requests.

    ``on_request(verb, code)`` is called once for each request: ``verb`` is get, list, watch, patch, post or delete, ``code``
    an HTTP status or the ``code`` of an ApiError. Redirects are never followed: they could carry the token to another host.
    """

    def __init__(self, credentials: Credentials, *, on_request: Callable[[str, str], None] = lambda _verb, _code: None) -> None:
        self._credentials = credentials
        self._on_request = on_request
        self._connections = Connections()
        self._lock = threading.Lock()
        self._made_for: Access | None = None
        self._pools: dict[bool, urllib3.HTTPConnectionPool] = {}

    def get_json(self, path: str) -> Any:
        """The JSON document at ``path``. Raises ApiError."""
        return self._whole("get", path)

    def patch_json(self, path: str, body: Any, content_type: str) -> Any:
        """PATCH ``body`` as a patch of ``content_type``; returns the patched object. Raises ApiError."""
        return self._whole("patch", path, msgspec.json.encode(body), content_type)

    def post_json(self, path: str, body: Any) -> Any:
        """POST ``body``; returns the created object. Raises ApiError."""
        return self._whole("post", path, msgspec.json.encode(body), "application/json")

    def delete(self, path: str) -> Any:
        """DELETE the object at ``path``; returns what the server says of it. Raises ApiError."""
        return self._whole("delete", path)

    def open_stream(self, verb: str, path: str, *, accept: str, read_timeout: float, gzip: bool = False) -> Stream:
        """GET ``path`` and return as soon as the headers are there.

        ``read_timeout`` is the longest silence, in seconds; ``verb`` is for the metric (list, watch). interrupt() breaks the
        stream off. Raises ApiError.
        """
        headers = {"Accept": accept, "Accept-Encoding": "gzip" if gzip else "identity"}
        return Stream(self._request(_Request(verb, "GET", path, headers, None, read_timeout, stream=True)))

    def interrupt(self) -> None:
        """Break off every stream, in whatever thread: its read ends or fails at once."""
        self._connections.interrupt()

    def peer_addresses(self) -> set[bytes]:
        """Packed addresses of the servers that we are connected to, or were when last connected (the latest 16)."""
        return self._connections.peers()

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()
            self._made_for = None

    def _whole(self, verb: str, path: str, body: bytes | None = None, content_type: str = "") -> Any:
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if content_type else {})
        response = self._request(_Request(verb, verb.upper(), path, headers, body, READ_TIMEOUT, stream=False))
        try:
            data = _body(response, _BODY_LIMIT)
            return msgspec.json.decode(data) if data else None
        except msgspec.DecodeError as error:
            raise ApiError(0, f"{path}: {error}", code="broken") from None
        finally:
            response.close()

    def _request(self, asked: _Request) -> urllib3.BaseHTTPResponse:
        """A response of status 2xx. After a 401 with credentials that have changed since, once again."""
        access = self._current()
        for _ in range(2):
            response = self._send(asked, access)
            if 200 <= response.status < 300:
                return response
            try:
                refusal = _refusal(response)
            finally:
                response.close()
            newer = self._credentials.refresh(access) if response.status == 401 else access
            if newer == access:
                break
            access = newer
        raise self._explained(refusal)

    def _explained(self, refusal: ApiError) -> ApiError:
        """A 401 with what is known of it: the API server itself says no more than "Unauthorized", whatever is wrong."""
        if refusal.status != 401:
            return refusal
        stale = f"; they could not be read again: {self._credentials.error}" if self._credentials.error else ""
        words = f"{refusal.reason}: our credentials are not, or no longer, accepted{stale}"
        return ApiError(401, words, retry_after=refusal.retry_after)

    def _current(self) -> Access:
        try:
            return self._credentials.current()
        except CredentialsError as error:
            raise ApiError(0, str(error), code="credentials") from None

    def _send(self, asked: _Request, access: Access) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": f"pynet/{__version__}", **asked.headers}
        if access.token:
            headers["Authorization"] = f"Bearer {access.token}"
        pool = self._pool_for(access, asked.stream)
        try:
            response = pool.urlopen(
                asked.method,
                urlsplit(access.server).path + asked.path,
                body=asked.body,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=asked.read_timeout),
                preload_content=False,
                decode_content=False,
            )
        except (failures.HTTPError, OSError) as error:
            refused = _transport_error(error, access.server)
            self._on_request(asked.verb, refused.code)
            if refused.code == "tls":
                self._credentials.refresh(access)  # for the next try: the server may have a certificate of a new CA
            raise refused from None
        self._on_request(asked.verb, str(response.status))
        return response

    def _pool_for(self, access: Access, stream: bool) -> urllib3.HTTPConnectionPool:
        wanted = access.connection()
        with self._lock:
            if self._made_for != wanted:  # another CA or client certificate: what is connected stays, nothing new joins it
                try:
                    context = tls_context(wanted)
                except CredentialsError as error:
                    raise ApiError(0, str(error), code="credentials") from None
                for pool in self._pools.values():
                    pool.close()
                self._pools = {each: new_pool(wanted, context, self._opened(each)) for each in (False, True)}
                self._made_for = wanted
            return self._pools[stream]

    def _opened(self, stream: bool) -> Callable[[socket.socket], None]:
        return lambda sock: self._connections.opened(sock, stream)


def _body(response: urllib3.BaseHTTPResponse, limit: int) -> bytes:
    data = bytearray()
    try:
        while len(data) <= limit and (piece := response.read1(_CHUNK, decode_content=False)):
            data += piece
    except (failures.HTTPError, OSError) as error:
        raise _transport_error(error, "the API server's answer") from None
    if len(data) > limit:
        raise ApiError(0, f"an answer of more than {limit} bytes", code="broken")
    return bytes(data)


def _refusal(response: urllib3.BaseHTTPResponse) -> ApiError:
    """What an answer other than 2xx says, from its Status object if it has one."""
    if 300 <= response.status < 400:
        where = urlsplit(response.headers.get("Location", "")).netloc or "another path"
        return ApiError(response.status, f"redirected to {where}: not followed")
    status = Status()
    with contextlib.suppress(MalformedError, ApiError):  # then the HTTP status must do
        data = _body(response, _ERROR_LIMIT)
        status = nodeproto.decode_status(data) if data.startswith(b"k8s\0") else nodejson.decode_status(data)
    header = response.headers.get("Retry-After", "")
    retry_after = float(header) if header.isascii() and header.isdigit() else float(status.retry_after)
    reason = status.message or status.reason or response.reason or "no reason given"
    return ApiError(response.status, reason, retry_after=retry_after)


def _transport_error(error: Exception, where: str) -> ApiError:
    """An ApiError in the kernel's or the TLS library's own words."""
    cause = error.__cause__ or error.__context__ or error
    words = _OPENSSL.sub("", (cause.strerror if isinstance(cause, OSError) else None) or str(cause))
    if isinstance(error, failures.NameResolutionError):
        return ApiError(0, f"{where}: name not resolved: {words}", code="dns")
    if isinstance(error, failures.NewConnectionError):  # a subclass of the next one
        return ApiError(0, f"{where}: {words}", code="refused")
    if isinstance(error, failures.ConnectTimeoutError):
        return ApiError(0, f"{where}: no connection within {CONNECT_TIMEOUT:.0f} s", code="timeout")
    if isinstance(error, (failures.ReadTimeoutError, TimeoutError)):
        return ApiError(0, f"{where}: silent for too long", code="timeout")
    if isinstance(error, failures.SSLError):
        return ApiError(0, f"{where}: TLS: {words}", code="tls")
    return ApiError(0, f"{where}: {words}", code="broken")
