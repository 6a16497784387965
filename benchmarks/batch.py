"""What `ip -batch` takes for the same routes: the work of the kernel and of a C program, without any API."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from benchmarks.figures import median
from tests.support.nodes import peer

if TYPE_CHECKING:
    from benchmarks.rig import Rig

BUCKETS = 64


def lines(rig: Rig) -> str:
    """One paragraph: all routes added with one metric, with the metric spread, and deleted."""
    names = {"one metric": 1, f"spread over {BUCKETS} metrics": BUCKETS}
    seconds: dict[str, list[float]] = {name: [] for name in (*names, "deleted")}
    for _ in range(rig.settings.runs):
        with rig.host() as host:
            for name, buckets in names.items():
                routes = [
                    f"{peer(i)[1]} via {peer(i)[2]} dev eth0 proto 111 metric {100 + i % buckets}" for i in range(rig.count)
                ]
                for verb, key in (("add", name), ("del", "deleted")):
                    batch = "\n".join(f"route {verb} {route}" for route in routes)
                    began = time.monotonic()
                    host.namespace.run("ip", "-batch", "-", input=batch)
                    seconds[key].append(time.monotonic() - began)
    return f"`ip -batch`, {rig.count} routes: " + "; ".join(
        f"{name} {median(values, 's', 3)}" for name, values in seconds.items()
    )
