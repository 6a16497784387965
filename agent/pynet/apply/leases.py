"""Pods that have lost their bridge: host-local's leases say that they are there, and they are in no network any more.

Somebody who deletes the bridge takes the network of every pod on the node. The next pod brings the bridge back, but not the
others' places at it: only new pods have one. So nothing is made here; it is said.
"""

from __future__ import annotations

import os
from pathlib import Path
from socket import if_nametoindex
from typing import Final

from pynet.core.addresses import parse_address

_EXAMPLES: Final = 3


def stranded(folder: Path, bridge: str) -> str:
    """Whose bridge is gone, and what mends it; "" if it is there, or nobody has a lease in ``folder`` (a file an address)."""
    try:
        if_nametoindex(bridge)
    except OSError:
        pass
    else:
        return ""
    try:
        leases = sorted(filter(_is_address, os.listdir(folder)))  # noqa: PTH208  a Path for each of 250 leases, only to take its name
    except OSError:  # no pod has been here
        return ""
    if not leases:
        return ""
    few = ", ".join(leases[:_EXAMPLES]) + (", …" if len(leases) > _EXAMPLES else "")
    return (
        f"bridge {bridge} is gone, and with it the network of the pods here ({few}): delete these pods, and new ones are made"
    )


def _is_address(name: str) -> bool:
    try:
        parse_address(name)
    except ValueError:
        return False
    return True
