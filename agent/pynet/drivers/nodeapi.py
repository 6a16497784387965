"""List and watch of Nodes in the cheapest form that the server speaks: protobuf if it can, JSON in pages if not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from pynet.drivers import nodejson, nodeproto
from pynet.drivers.apiwire import NODE_LIMIT, MalformedError, NodeEvent, Refused, TruncatedError
from pynet.drivers.kube import Api, ApiError, Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynet.core.model import NodeFacts

NODES: Final = "/api/v1/nodes"
PAGE: Final = 100
_PAGE_LIMIT: Final = 32 << 20  # bytes of a JSON page; a larger one is asked for again with fewer Nodes in it
_LIST_DEADLINE: Final = 300.0  # seconds for a whole list, however steadily it drips
_RESTARTS: Final = 3  # of a paged list whose token expired in the middle
_HEAD: Final = 8192


class Listing(NamedTuple):
    """A whole list. ``quorum`` says that it was asked for as the latest state, not as one at least as new as some version."""

    nodes: list[NodeFacts]
    refused: list[Refused]
    version: str
    quorum: bool


class NodeApi:
    """Nodes of one API server, as ``own`` sees them. ``silence`` is the longest time, in seconds, that a list may be silent."""

    def __init__(self, api: Api, own: str, *, silence: float = 30.0) -> None:
        self._api = api
        self._own = own
        self._silence = silence
        self._speaks_protobuf = True
        self._distrusted = False  # the last protobuf was malformed: JSON for one list and its watch

    @property
    def protobuf(self) -> bool:
        """Whether the next request is made for protobuf."""
        return self._speaks_protobuf and not self._distrusted

    def list(self, version: str = "") -> Listing:
        """All Nodes: the latest state, or one at least as new as ``version``. Raises ApiError, MalformedError."""
        try:
            return self._list(version)
        except ApiError as error:
            # 504 is "too large resource version", from a server that lags behind or whose etcd was restored; 410: compacted.
            if not version or error.status not in {400, 410, 504}:
                raise
            return self._list("")

    def watch(self, version: str, *, seconds: int, silence: float) -> tuple[Stream, Iterator[NodeEvent]]:
        """Open a watch from ``version`` on that the server ends after ``seconds``; silent for longer than ``silence`` it fails.

        Returns the stream, to be closed, and its events. Both this and the iteration raise ApiError and MalformedError.
        """
        path = f"{NODES}?watch=1&allowWatchBookmarks=true&resourceVersion={quote(version)}&timeoutSeconds={seconds}"
        if self.protobuf:
            stream = self._open_protobuf("watch", path, silence)
            if stream is not None:
                return stream, self._trusted(nodeproto.walk_events(stream.chunks(), self._own))
        stream = self._open_json("watch", path, silence)
        return stream, nodejson.walk_events(stream.chunks(), self._own)

    def _list(self, version: str) -> Listing:
        path = f"{NODES}?resourceVersion={quote(version)}&resourceVersionMatch=NotOlderThan" if version else NODES
        if self.protobuf:
            try:
                stream = self._open_protobuf("list", path, self._silence)
                if stream is not None:
                    return self._walk(stream, quorum=not version)
            except TruncatedError:
                raise
            except MalformedError:
                self._distrusted = True
        listing = self._pages(version)
        self._distrusted = False
        return listing

    def _open_protobuf(self, verb: str, path: str, silence: float) -> Stream | None:
        """None if the server does not speak it, once and for all."""
        try:
            stream = self._api.open_stream(verb, path, accept=nodeproto.CONTENT_TYPE, read_timeout=silence, gzip=verb == "list")
        except ApiError as error:
            if error.status not in {406, 415}:
                raise
            self._speaks_protobuf = False
            return None
        if stream.content_type == nodeproto.CONTENT_TYPE:
            return stream
        stream.close()
        if stream.content_type != nodejson.CONTENT_TYPE:
            raise MalformedError(f"content type {stream.content_type!r}")
        self._speaks_protobuf = False
        return None

    def _open_json(self, verb: str, path: str, silence: float) -> Stream:
        stream = self._api.open_stream(verb, path, accept=nodejson.CONTENT_TYPE, read_timeout=silence, gzip=verb == "list")
        if stream.content_type != nodejson.CONTENT_TYPE:
            stream.close()
            raise MalformedError(f"content type {stream.content_type!r}")
        return stream

    def _trusted(self, events: Iterator[NodeEvent]) -> Iterator[NodeEvent]:
        try:
            yield from events
        except TruncatedError:
            raise
        except MalformedError:
            self._distrusted = True
            raise

    def _walk(self, stream: Stream, *, quorum: bool) -> Listing:
        try:
            walk = nodeproto.NodeListWalk(_within(stream.chunks(), time.monotonic() + _LIST_DEADLINE), self._own)
            nodes = list(walk)
            return Listing(nodes, walk.refused, walk.resource_version, quorum)
        finally:
            stream.close()

    def _pages(self, version: str) -> Listing:
        """The list in JSON, page by page; from the start again if its token expires in the middle."""
        for left in reversed(range(_RESTARTS)):
            try:
                return self._all_pages(version)
            except ApiError as error:
                if error.status != 410 or not left:
                    raise
        raise AssertionError("unreachable")

    def _all_pages(self, version: str) -> Listing:
        nodes: list[NodeFacts] = []
        refused: list[Refused] = []
        token = ""
        limit = PAGE
        deadline = time.monotonic() + _LIST_DEADLINE
        while True:
            page = self._page(version, token, limit, deadline)
            if page is None:
                limit = max(1, limit // 10)
                continue
            limit = min(PAGE, limit * 10)
            nodes += page.nodes
            refused += page.refused
            token = page.continue_
            if not token:
                return Listing(nodes, refused, page.resource_version, quorum=not version)

    def _page(self, version: str, token: str, limit: int, deadline: float) -> nodejson.NodePage | None:
        """One page; None if it is too large and has more than one Node."""
        path = f"{NODES}?limit={limit}"
        if token:
            path += f"&continue={quote(token, safe='')}"
        elif version:
            path += f"&resourceVersion={quote(version)}&resourceVersionMatch=NotOlderThan"
        stream = self._open_json("list", path, self._silence)
        data = bytearray()
        try:
            for chunk in _within(stream.chunks(), deadline):
                data += chunk
                if len(data) > (_PAGE_LIMIT if limit > 1 else NODE_LIMIT):
                    return None if limit > 1 else nodejson.decode_oversized(bytes(data[:_HEAD]))
        finally:
            stream.close()
        return nodejson.decode_page(bytes(data), self._own)


def _within(chunks: Iterator[bytes], deadline: float) -> Iterator[bytes]:
    """``chunks`` until ``deadline`` (monotonic)."""
    for chunk in chunks:
        yield chunk
        if time.monotonic() > deadline:
            raise ApiError(0, f"the list took longer than {_LIST_DEADLINE:.0f} s", code="timeout")
