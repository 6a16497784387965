"""Which podCIDRs and node addresses belong to the cluster: what follows from the verdicts about peers, for masquerading.

Kept up to date verdict by verdict. To work it out anew for 5,000 peers after each change would keep the interpreter from the
loop for 10 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from pynet.core.claims import Claim
    from pynet.core.model import Prefix


class Members:
    """``pods`` are the podCIDRs of all peers neither rejected nor ignored, ``nodes`` the addresses of those that are or were
    on-link; each with the number of peers that have it.

    An outage does not take a peer's address out. But one that never was on-link is no more than a claim, and must not switch
    masquerading off for an address of the Internet.

    Another thread may copy either at any time: ``frozenset(members.pods)`` is a single step of the interpreter.
    """

    def __init__(self) -> None:
        self.pods: dict[Prefix, int] = {}
        self.nodes: dict[bytes, int] = {}
        self._unseen: set[Hashable] = set()  # peers that claim an address and never were on-link with it

    def note(self, peer: Hashable, before: Claim | None, after: Claim | None, *, on_link: bool) -> None:
        """What counts of ``peer`` is now ``after``, and was ``before``; None: nothing, it is gone, rejected or ignored."""
        was_seen = before is not None and peer not in self._unseen
        seen = after is not None and (on_link or (was_seen and before is not None and before.next_hop == after.next_hop))
        if after is None or seen:
            self._unseen.discard(peer)
        else:
            self._unseen.add(peer)
        _count(self.pods, before.prefix if before else None, after.prefix if after else None)
        _count(self.nodes, before.next_hop if before and was_seen else None, after.next_hop if after and seen else None)


def _count(counts: dict[Any, int], before: object, after: object) -> None:
    """One less of ``before`` and one more of ``after``, of which None is nothing."""
    if before == after:
        return
    if after is not None:
        counts[after] = counts.get(after, 0) + 1
    if before is not None:
        counts[before] -= 1
        if not counts[before]:
            del counts[before]
