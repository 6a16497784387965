"""5,000 routes added, dumped and deleted: by pynet's own codec, by `ip -batch`, by pyroute2's IPRoute. Prints medians.

Run as root: python -m benchmarks.netlink [--routes 5000] [--runs 3]. Works in a network namespace of its own.
"""

from __future__ import annotations

import argparse
import platform
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from typing import Literal

from pynet.core.model import FAMILIES, Family, Operation, Prefix, Route, format_address
from pynet.drivers.netlink import RouteSocket
from pyroute2 import IPRoute

from tests.support.netns import Namespace, lan

PROTOCOL = 110
Steps = tuple[Callable[[], object], Callable[[], int], Callable[[], object]]  # add, dump, delete


def routes(family: Family, count: int) -> list[Route]:
    """Distinct destinations and gateways, the metric spread over 64 values as the agent does."""
    made = []
    for i in range(count):
        if family == 4:
            destination, gateway = bytes((10, 128 + (i >> 8), i & 255, 0)), bytes((10, 98, i // 250, 1 + i % 250))
        else:
            destination, gateway = struct.pack(">IHH8x", 0xFD010000, 0, i), struct.pack(">II4xI", 0xFD980000, 0, i + 2)
        made.append(Route(Prefix(destination, 24 if family == 4 else 64), 100 + i % 64, gateway, 2, PROTOCOL))
    return made


def ours(node: Namespace, family: Family, wanted: list[Route]) -> Iterator[Steps]:
    with node.entered():
        rsock = RouteSocket()
    with rsock:

        def do(kind: Literal["add", "delete"]) -> None:
            errors = rsock.apply([Operation(kind, route) for route in wanted])
            assert not errors, next(iter(errors.values()))

        yield lambda: do("add"), lambda: len(list(rsock.dump_routes(family, 254))), lambda: do("delete")


def ip_batch(node: Namespace, family: Family, wanted: list[Route]) -> Iterator[Steps]:
    def do(verb: str) -> None:
        lines = (
            f"route {verb} {route.prefix} via {format_address(route.gateway)} dev eth0 metric {route.metric} proto {PROTOCOL}"
            for route in wanted
        )
        node.run("ip", f"-{family}", "-batch", "-", input="\n".join(lines))

    yield lambda: do("add"), lambda: len(node.ip(f"-{family}", "route", "show")), lambda: do("del")


def pyroute2(node: Namespace, family: Family, wanted: list[Route]) -> Iterator[Steps]:
    number = socket.AF_INET if family == 4 else socket.AF_INET6
    with node.entered():
        ipr = IPRoute()
    with ipr:

        def do(verb: str) -> None:
            for route in wanted:
                ipr.route(
                    verb, family=number, dst=str(route.prefix), gateway=format_address(route.gateway), oif=2,
                    priority=route.metric, proto=PROTOCOL,
                )  # fmt: skip

        yield lambda: do("add"), lambda: len(list(ipr.get_routes(family=number, table=254))), lambda: do("del")


def timed(step: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    result = step()
    return (time.perf_counter() - began) * 1000, result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--routes", type=int, default=5000)
    options.add_argument("--runs", type=int, default=3)
    chosen = options.parse_args()
    machine = f"Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{machine}, {chosen.routes} routes, medians of {chosen.runs} runs in ms")
    print(f"{'':22}{'add':>9}{'dump':>9}{'delete':>9}")
    with lan(1) as (node,):
        node.run("ip", "addr", "add", "10.98.255.254/16", "dev", "eth0")
        node.run("ip", "addr", "add", "fd98::1/64", "dev", "eth0", "nodad")
        for family in FAMILIES:
            wanted = routes(family, chosen.routes)
            for name, way in (("pynet", ours), ("ip -batch", ip_batch), ("pyroute2", pyroute2)):
                for steps in way(node, family, wanted):
                    runs = []
                    for _ in range(chosen.runs):
                        (add, _), (dump, seen), (delete, _) = (timed(step) for step in steps)
                        assert isinstance(seen, int)
                        assert seen >= chosen.routes
                        runs.append((add, dump, delete))
                    medians = (statistics.median(column) for column in zip(*runs, strict=True))
                    print(f"IPv{family} {name:17}" + "".join(f"{value:9.1f}" for value in medians), flush=True)


if __name__ == "__main__":
    main()
