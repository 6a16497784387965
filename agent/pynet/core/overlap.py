"""Which of several overlapping claims wins: the oldest, whatever order they came in.

Two claims clash if their podCIDRs overlap, or if the podCIDR of one holds the node address of the other. Clashing claims are
granted greedily by age: a claim is granted unless it clashes with an older one that was. So when a winner goes, those it
kept out come back. An index of the claims of one family answers "who else is affected" without looking at all of them.
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
    """The claims of one family by node name. ``put`` and ``remove`` give the names whose fate may have changed."""

    def __init__(self, size: int) -> None:
        self._size = size  # bits of an address
        self._claims: dict[str, Aged] = {}
        self._prefixes = _Places()
        self._hops = _Places()

    def get(self, name: str) -> Aged | None:
        """What ``name`` claims here, None if nothing."""
        return self._claims.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._claims

    def put(self, name: str, aged: Aged) -> set[str]:
        """Add or replace the claim of ``name``; returns every name that may be affected, itself included."""
        affected = self.remove(name)
        self._claims[name] = aged
        prefix, next_hop = aged.claim
        self._prefixes.add((bounds(prefix)[0], prefix.length), name)
        self._hops.add((int.from_bytes(next_hop), self._size), name)
        affected |= self._component(name)
        return affected

    def remove(self, name: str) -> set[str]:
        """Forget the claim of ``name``, if there is one; returns the other names that may be affected."""
        aged = self._claims.get(name)
        if aged is None:
            return set()
        affected = self._component(name) - {name}
        del self._claims[name]
        prefix, next_hop = aged.claim
        self._prefixes.remove((bounds(prefix)[0], prefix.length), name)
        self._hops.remove((int.from_bytes(next_hop), self._size), name)
        return affected

    def grant(self, names: set[str]) -> dict[str, str]:
        """Decide for whole components: name -> "" if granted, else the name of the older node that it clashes with."""
        decided: dict[str, str] = {}
        for name in sorted((n for n in names if n in self._claims), key=self._age):
            older = [other for other in self._clashing(name) if decided.get(other) == ""]
            decided[name] = min(older, key=self._age) if older else ""
        return decided

    def claim(self, name: str) -> Claim:
        """The claim of ``name``. Raises KeyError if it has none."""
        return self._claims[name].claim

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

    def _component(self, name: str) -> set[str]:
        seen = {name}
        queue = [name]
        while queue:
            for other in self._clashing(queue.pop()):
                if other not in seen:
                    seen.add(other)
                    queue.append(other)
        return seen
