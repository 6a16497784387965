"""Which of several overlapping claims wins: the oldest, whatever order they came in.

Two claims clash if their podCIDRs overlap, or if the podCIDR of one holds the node address of the other. Clashing claims are
granted greedily by age: a claim is granted unless it clashes with an older one that was. So when a winner goes, those it
kept out come back. An index of the claims of one family answers "who clashes with this one" without looking at all of them;
whom a change reaches by way of others is worked out once for a whole batch, so that one wide claim costs one wide look.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import Final, NamedTuple

from pynet.core.claims import Claim, bounds

_UNKNOWN: Final = 1 << 62  # a claim of unknown age is younger than any other


class Aged(NamedTuple):
    """A claim with what orders it: creationTimestamp in seconds, then UID."""

    claim: Claim
    created: int
    uid: str


class _Places:
    """A multimap from (first address, prefix length) to names, ordered by address."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, int], tuple[str, ...]] = {}
        self.sorted: list[tuple[int, int]] = []
        self.lengths: dict[int, int] = {}

    def add(self, place: tuple[int, int], name: str) -> None:
        names = self.names.get(place)
        if names is None:
            insort(self.sorted, place)
            self.lengths[place[1]] = self.lengths.get(place[1], 0) + 1
        self.names[place] = (*(names or ()), name)

    def remove(self, place: tuple[int, int], name: str) -> None:
        names = tuple(other for other in self.names[place] if other != name)
        if names:
            self.names[place] = names
            return
        del self.names[place]
        del self.sorted[bisect_left(self.sorted, place)]
        self.lengths[place[1]] -= 1
        if not self.lengths[place[1]]:
            del self.lengths[place[1]]

    def inside(self, first: int, last: int) -> list[str]:
        """Names at places that begin in [first, last]."""
        begin = bisect_left(self.sorted, (first, 0))
        end = bisect_right(self.sorted, (last, 129))
        return [name for place in self.sorted[begin:end] for name in self.names[place]]

    def around(self, first: int, size: int) -> list[str]:
        """Names at places that hold the address ``first`` of ``size`` bits."""
        found: list[str] = []
        for length in self.lengths:
            shift = size - length
            found.extend(self.names.get((first >> shift << shift, length), ()))
        return found


class Overlaps:
    """The claims of one family by node name. ``put`` and ``remove`` give the names next to the change, for ``grant``."""

    def __init__(self, size: int) -> None:
        self._size = size  # bits of an address
        self._claims: dict[str, Aged] = {}
        self._prefixes = _Places()
        self._hops = _Places()

    def get(self, name: str) -> Aged | None:
        """What ``name`` claims here, None if nothing."""
        return self._claims.get(name)

    def put(self, name: str, aged: Aged) -> set[str]:
        """Add or replace the claim of ``name``; returns itself and all that it clashed with before."""
        near = self.remove(name)
        self._claims[name] = aged
        prefix, next_hop = aged.claim
        self._prefixes.add((bounds(prefix)[0], prefix.length), name)
        self._hops.add((int.from_bytes(next_hop), self._size), name)
        return near | {name}

    def remove(self, name: str) -> set[str]:
        """Forget the claim of ``name``, if there is one; returns all that it clashed with."""
        aged = self._claims.get(name)
        if aged is None:
            return set()
        near = self._clashing(name)
        del self._claims[name]
        prefix, next_hop = aged.claim
        self._prefixes.remove((bounds(prefix)[0], prefix.length), name)
        self._hops.remove((int.from_bytes(next_hop), self._size), name)
        return near

    def grant(self, names: set[str]) -> dict[str, str]:
        """Decide for ``names`` and all whom they reach by clashes: "" if granted, else the older node that is in the way."""
        reached = self._reached(names)
        decided: dict[str, str] = {}
        for name in sorted(reached, key=self._age):
            older = [other for other in reached[name] if decided.get(other) == ""]
            decided[name] = min(older, key=self._age) if older else ""
        return decided

    def _age(self, name: str) -> tuple[int, str, str]:
        aged = self._claims[name]
        return aged.created or _UNKNOWN, aged.uid, name

    def _clashing(self, name: str) -> set[str]:
        prefix, next_hop = self._claims[name].claim
        first, last = bounds(prefix)
        found = set(self._prefixes.around(first, self._size))
        found.update(self._prefixes.inside(first, last))
        found.update(self._hops.inside(first, last))
        found.update(self._prefixes.around(int.from_bytes(next_hop), self._size))
        found.discard(name)
        return found

    def _reached(self, names: set[str]) -> dict[str, set[str]]:
        """``names`` that claim something, and those connected with them by clashes; each with whom it clashes with."""
        clashes: dict[str, set[str]] = {}
        queue = [name for name in names if name in self._claims]
        while queue:
            name = queue.pop()
            if name not in clashes:
                clashes[name] = self._clashing(name)
                queue.extend(clashes[name])
        return clashes
