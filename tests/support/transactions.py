"""What others see being committed to nftables: nft's own monitor, as an oracle."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
from typing import TYPE_CHECKING

from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.netns import Namespace


class Transactions:
    """``nft monitor`` in a namespace, hearing from the moment that this is made."""

    def __init__(self, netns: Namespace) -> None:
        self._netns = netns
        self._child = netns.popen("nft", "monitor", stdout=subprocess.PIPE, text=True, bufsize=1)
        self._lines: queue.Queue[str] = queue.Queue()
        self._marks = 0
        threading.Thread(target=self._read, daemon=True).start()
        until(lambda: self._until_mark(0.2) is not None, "nft monitor hears")

    def since_last_look(self) -> list[str]:
        """What was announced since the last call, a line each, without the announcements of generations."""
        seen = self._until_mark(5.0)
        assert seen is not None, "nft monitor fell silent"
        return seen

    def _read(self) -> None:
        with contextlib.suppress(ValueError):  # closed with the namespace
            for line in self._child.stdout or ():
                self._lines.put(line)

    def _until_mark(self, wait: float) -> list[str] | None:
        """The lines up to a table that is made, and removed, to mark the end; None if it is not heard of."""
        self._marks += 1
        name = f"marker{self._marks}"
        self._netns.run("nft", f"add table ip {name}; delete table ip {name}")
        seen: list[str] = []
        with contextlib.suppress(queue.Empty):
            while True:
                line = self._lines.get(timeout=wait)
                if f"delete table ip {name}" in line:
                    return [one for one in seen if "marker" not in one and "new generation" not in one]
                seen.append(line)
        return None
