"""The removal guard: most routes do not go at once on the word of one list.

An API server restored from a backup, a bug in a controller, or `kubectl delete nodes --all` would otherwise cut off every pod
within a second. A removal of more than ``fraction`` of our routes that is also more than ``minimum`` routes, or that would
leave none, is held until a second consistent list, asked for after the hold began, agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pynet.core.model import Family, Operation


class GuardSettings(msgspec.Struct, frozen=True):
    """``fraction`` of the routes (0..1), and ``minimum`` number of them."""

    fraction: float = 0.5
    minimum: int = 10


class Held(NamedTuple):
    """A removal that waits. ``since`` is the monotonic time at which it was first held."""

    since: float
    routes: int
    reason: str


def too_many(departures: Sequence[Operation], present: dict[Family, int], settings: GuardSettings) -> str:
    """Why ``departures`` must not happen at once, "" if they may. ``present`` counts the routes of ours in the kernel, per
    family; each family is judged on its own, and one that is too much holds all of them.
    """
    leaving: dict[Family, int] = {4: 0, 6: 0}
    for operation in departures:
        leaving[operation.route.prefix.family] += 1
    for family, count in leaving.items():
        total = present.get(family, 0)
        many = count > settings.fraction * total
        if many and (count > settings.minimum or (count >= total > 1)):
            return f"{count} of {total} IPv{family} routes would go at once"
    return ""
