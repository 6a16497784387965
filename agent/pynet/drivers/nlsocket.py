"""Netlink sockets of any protocol: opened with room for much, read without a loss that nobody notices."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Final

SOL_NETLINK: Final = 270
DATAGRAM: Final = 65536
"""Bytes to read one with: the kernel makes none longer than 32 KiB."""

BUFFER: Final = 4 << 20
"""Bytes of a socket's buffers; they cost nothing while empty."""

_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_TRUNCATED, _DONT_WAIT = int(socket.MSG_TRUNC), int(socket.MSG_DONTWAIT)  # as an enum 1 us more at each of thousands of uses


class Overrun(Exception):  # noqa: N818  the field's word for it
    """Notifications were lost: look at everything again. The next ones come as usual."""


def open_socket(protocol: int, groups: Iterable[int] = (), receive_buffer: int = BUFFER) -> socket.socket:
    """A socket of ``protocol`` in the network namespace of the calling thread, which is told of ``groups``. Raises OSError."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    buffers = ((_SO_RCVBUFFORCE, socket.SO_RCVBUF, receive_buffer), (_SO_SNDBUFFORCE, socket.SO_SNDBUF, BUFFER))
    try:
        for force, plain, size in buffers:
            try:
                opened.setsockopt(socket.SOL_SOCKET, force, size)
            except PermissionError:  # without CAP_NET_ADMIN: as much as the host allows
                opened.setsockopt(socket.SOL_SOCKET, plain, size)
        opened.bind((0, 0))
        listen(opened, groups)
    except OSError:
        opened.close()
        raise
    return opened


def listen(opened: socket.socket, groups: Iterable[int], *, on: bool = True) -> None:
    """Join or leave groups of notifications, by number. Raises OSError."""
    for group in groups:
        opened.setsockopt(SOL_NETLINK, _ADD_MEMBERSHIP if on else _DROP_MEMBERSHIP, group)


def receive(opened: socket.socket, scratch: bytearray, flags: int = 0) -> bytes:
    """One datagram of the kernel's, by way of ``scratch``: memory for the largest at each call costs more than the call.

    Raises OSError: BlockingIOError or TimeoutError if none comes, ENOBUFS if some were lost, EMSGSIZE if ``scratch`` is small.
    """
    while True:
        size, _, received, (sender, _) = opened.recvmsg_into([scratch], 0, flags)
        if sender == 0:  # else another process, with CAP_NET_ADMIN, plays the kernel
            if received & _TRUNCATED:
                raise OSError(errno.EMSGSIZE, f"netlink message longer than {len(scratch)} bytes")
            return bytes(memoryview(scratch)[:size])


def waiting(opened: socket.socket, scratch: bytearray) -> tuple[list[bytes], str]:
    """Every datagram that waits, and in what way any was lost ("": none was). Raises OSError if the socket fails."""
    buffers, lost = [], ""
    while True:
        try:
            buffers.append(receive(opened, scratch, _DONT_WAIT))
        except BlockingIOError:
            return buffers, lost
        except OSError as error:
            if error.errno not in {errno.ENOBUFS, errno.EMSGSIZE}:
                raise
            lost = error.strerror or "lost"
