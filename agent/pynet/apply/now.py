"""What the loop tells its effects after a pass, and what effects are to it."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

from pynet.core.claims import Claim


class Now(NamedTuple):
    """The state after a pass, as far as effects depend on it.

    ``settled``: a pass over everything was verified; ``complete``: it follows from a complete list; ``verified``: so was the
    last pass; ``advertised``: indexes of interfaces with a default route from router advertisements; ``kept``: peers that are
    no longer wanted, whose routes the removal guard holds.
    """

    settled: bool
    complete: bool
    verified: bool
    advertised: frozenset[int]
    kept: frozenset[Claim] = frozenset()


class Effects(Protocol):
    """Everything that a pass hands on: all of it quick, or done by threads of its own."""

    def write_sysctls(self, now: Now) -> None:
        """Check the forwarding sysctls and repair what is wrong."""

    def ports_left(self, bridges: Collection[int], *, unsure: bool) -> None:
        """These bridges, by index, have lost a port; ``unsure``: others may have too."""

    def hand_over(self, now: Now) -> None:
        """Give the slow appliers what follows from the state after a pass."""

    def resync(self) -> None:
        """Have the slow appliers check their work."""
