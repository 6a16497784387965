"""The protobuf wire format, as far as reading needs it: varints, fields, and bytes that arrive in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pynet.drivers.apiwire import MalformedError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at ``at`` and the position behind it. Raises MalformedError, or IndexError where the bytes end early."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedError("protobuf: a varint of more than ten bytes")


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the message at ``data[at:end]``, in their order.

    Yields (number, start, stop) for a length-delimited field and (-number, value, 0) for a varint, so that neither is taken for
    the other; fixed-width fields are skipped. Raises MalformedError.
    """
    try:
        while at < end:
            key = data[at]
            at += 1
            if key >= 0x80:
                key, at = varint(data, at - 1)
            wire = key & 7
            if wire == 2:
                size = data[at]
                at += 1
                if size >= 0x80:
                    size, at = varint(data, at - 1)
                stop = at + size
                if stop > end:
                    break
                yield key >> 3, at, stop
                at = stop
            elif wire == 0:
                value, at = varint(data, at)
                yield -(key >> 3), value, 0
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise MalformedError(f"protobuf: wire type {wire}")
        else:
            if at == end:
                return
    except IndexError:
        raise MalformedError("protobuf: the bytes end inside a field") from None
    raise MalformedError("protobuf: a field reaches over the end of its message")


def text(data: bytes, start: int, stop: int) -> str:
    """The string at ``data[start:stop]``; what is not UTF-8 becomes U+FFFD."""
    return str(data[start:stop], "utf-8", "replace")


class Source:
    """Bytes that arrive in chunks, read by count. Holds what was asked for and the rest of one chunk."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = bytearray()

    def _fill(self, count: int) -> bool:
        """False if the stream ends before ``count`` bytes are there."""
        while len(self._buffer) < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._buffer += chunk
        return True

    def at_end(self) -> bool:
        """True if not one more byte comes. Waits for it."""
        return not self._fill(1)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes. Raises TruncatedError."""
        if not self._fill(count):
            raise TruncatedError("protobuf: the stream ended inside a message")
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def skip(self, count: int) -> None:
        """Throw ``count`` bytes away as they arrive. Raises TruncatedError."""
        while count > 0:
            if not self._fill(1):
                raise TruncatedError("protobuf: the stream ended inside a message")
            step = min(count, len(self._buffer))
            del self._buffer[:step]
            count -= step

    def varint(self) -> tuple[int, int]:
        """The next varint, and how many bytes it took. Raises MalformedError, TruncatedError."""
        count = 1
        while self._fill(count) and self._buffer[count - 1] & 0x80 and count < 11:
            count += 1
        return varint(self.take(count), 0)
