"""What the loop tells its effects after a pass."""

from __future__ import annotations

from typing import NamedTuple


class Now(NamedTuple):
    """The state after a pass, as far as effects depend on it.

    ``settled``: a pass over everything was verified; ``complete``: it follows from a complete list; ``verified``: so was the
    last pass; ``advertised``: indexes of interfaces with a default route from router advertisements.
    """

    settled: bool
    complete: bool
    verified: bool
    advertised: frozenset[int]
