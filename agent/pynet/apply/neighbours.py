"""The bridge's neighbour entries, forgotten when a pod goes, so that the next pod of its address is reached at once.

The bridge plugin announces no new pod, and the kernel trusts an entry that was just confirmed for up to 45 s, and then asks the
old MAC address for some seconds more. With a small podCIDR, or many pods that come and go, kubelet's probes and the packets of
other nodes would run into that. An entry that is forgotten and still in use costs one ARP or NS packet on the bridge.

With the ptp plugin there is nothing to do: each pod has an interface of its own on the node, and its entries go with it. What
pods know of their neighbours on the same bridge is their own, and is not touched.
"""

from __future__ import annotations

from collections.abc import Collection
from socket import if_nametoindex

import structlog

from pynet.drivers.netlink import NetlinkError, RouteSocket


class Neighbours:
    """Those of the bridge named ``bridge``. Used by the loop's thread, with its socket."""

    def __init__(self, socket: RouteSocket, bridge: str, log: structlog.typing.FilteringBoundLogger) -> None:
        self._socket = socket
        self._bridge = bridge
        self._log = log
        self._due = True  # somebody may have left while no agent was there

    def ports_left(self, bridges: Collection[int], *, unsure: bool) -> None:
        """These bridges, by index, have lost a port; ``unsure``: others may have too.

        However many have left, the entries go in one batch (110 pods with two addresses each: 1.5 ms). Raises nothing: what the
        kernel refuses is tried again at the next call.
        """
        if not (bridges or unsure or self._due):
            return
        index = _index_of(self._bridge)
        self._due = bool(index) and (self._due or unsure or index in bridges)
        if not self._due:
            return
        try:
            count = self._socket.forget_neighbours(index)
        except NetlinkError as error:
            self._log.debug("neighbours_not_forgotten", bridge=self._bridge, error=str(error))
            return
        self._due = False
        if count:
            self._log.debug("neighbours_forgotten", bridge=self._bridge, entries=count)


def _index_of(name: str) -> int:
    """The interface's index; 0 if there is none of this name."""
    try:
        return if_nametoindex(name)
    except OSError:
        return 0
