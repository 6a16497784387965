"""Writes routes: the operations of a plan in one batch, and what became of each.

The kernel is asked; whether it did as told is for the loop to see in the kernel's own answer (dump or notification).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Final

from pynet.core.model import Operation, Prefix, Route
from pynet.drivers.netlink import NetlinkError, RouteSocket

_GONE: Final = frozenset({errno.ESRCH, errno.ENOENT, errno.ENODEV})
"""A delete that finds nothing has nothing left to do."""

OnOperation = Callable[[str, str], None]
"""Told of each operation: its kind (add, replace, delete), and ok or error."""


class RouteWriter:
    """Does operations, and remembers what became of them.

    ``programmed`` maps each prefix to the route that this process wrote there and has not taken away since: our key there is
    ours even if somebody changed the route's protocol. ``failures`` maps prefixes to the kernel's words.
    """

    def __init__(self, socket: RouteSocket, on_operation: OnOperation) -> None:
        self._socket = socket
        self._on_operation = on_operation
        self.programmed: dict[Prefix, Route] = {}
        self.failures: dict[Prefix, str] = {}

    def apply(self, operations: Sequence[Operation]) -> None:
        """Do ``operations`` in their order. Failures are kept per prefix until it works.

        Raises NetlinkError if the kernel does not answer.
        """
        errors = self._socket.apply(operations)
        for position, operation in enumerate(operations):
            error = errors.get(position)
            if error is None or (operation.kind == "delete" and error.errno in _GONE):
                self._accepted(operation)
            else:
                self._refused(operation, error)

    def adopt(self, route: Route) -> None:
        """A route of ours was found in the kernel as wanted: from now on its key counts as programmed by this process."""
        self.programmed[route.prefix] = route
        self.failures.pop(route.prefix, None)

    def forget(self, prefix: Prefix) -> None:
        """``prefix`` is no longer wanted and nothing of ours is left there."""
        self.programmed.pop(prefix, None)
        self.failures.pop(prefix, None)

    def _accepted(self, operation: Operation) -> None:
        self._on_operation(operation.kind, "ok")
        prefix = operation.route.prefix
        if operation.kind != "delete":
            self.programmed[prefix] = operation.route
            self.failures.pop(prefix, None)

    def _refused(self, operation: Operation, error: NetlinkError) -> None:
        self._on_operation(operation.kind, "error")
        self.failures[operation.route.prefix] = f"kernel refused to {operation.kind} the route: {error.text}"
