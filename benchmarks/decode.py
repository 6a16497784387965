"""What reading Nodes costs: ``python -m benchmarks.decode [NODES]`` prints medians, for protobuf and JSON side by side.

One Node event (a heartbeat of 12 kB, decoded and compared), and a whole list as it comes from the API server (gzip, in chunks),
with the memory that is allocated at its peak while nothing but the facts is kept.
"""

from __future__ import annotations

import gzip
import json
import platform
import statistics
import sys
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING

from pynet.drivers import nodejson, nodeproto
from pynet.drivers.kube import inflated
from pynet.observe.mirror import Mirror

from tests.support import kubeproto
from tests.support.nodes import node, peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK = 8192
PAGE = 100
PAUSE = 0.06


def body(i: int) -> dict:
    name, cidr, address = peer(i)
    made = node(name, [cidr], [address], full=True)
    made["metadata"] |= {
        "uid": f"f6f32bfa-fc15-4f4f-b4d5-{i:012x}",
        "resourceVersion": f"v{i}",  # no number: or it would be taken for a late event, and not be compared
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [{"manager": "kubelet"}, {"manager": "kube-controller-manager"}],
    }
    return made


def timed(work: Callable[[], object], *, runs: int = 7, loops: int = 1) -> float:
    """Median seconds of CPU for one call."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        for _ in range(loops):
            work()
        times.append((time.process_time() - began) / loops)
    return statistics.median(times)


def after_a_pause(work: Callable[[], object], *, runs: int = 50) -> float:
    """Median seconds of one call when nothing has run for a while, as between the heartbeats of 5,000 Nodes."""
    times = []
    for _ in range(runs):
        time.sleep(PAUSE)
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def peak(work: Callable[[], object]) -> float:
    """MB allocated at the peak of ``work``."""
    tracemalloc.start()
    work()
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest / 1e6


def chunks(packed: bytes) -> Iterator[bytes]:
    for at in range(0, len(packed), CHUNK):
        yield packed[at : at + CHUNK]


def walk(packed: bytes) -> list:
    return list(nodeproto.NodeListWalk(inflated(chunks(packed)), "own"))


def pages(packed: list[bytes]) -> list:
    return [facts for page in packed for facts in nodejson.decode_page(gzip.decompress(page), "own").nodes]


def events() -> None:
    beat = body(0)
    frame = kubeproto.frame("MODIFIED", beat)[4:]
    line = json.dumps({"type": "MODIFIED", "object": beat}, separators=(",", ":")).encode()
    for name, data, decode in (("protobuf", frame, nodeproto.decode_event), ("JSON", line, nodejson.decode_event)):
        mirror = Mirror()
        event = decode(data, "own")
        assert event.facts
        mirror.replace([event.facts], [], "1", quorum=True)
        seconds = timed(lambda data=data, decode=decode, mirror=mirror: mirror.take(decode(data, "own"), 0.0), loops=2000)
        rested = after_a_pause(lambda data=data, decode=decode, mirror=mirror: mirror.take(decode(data, "own"), 0.0))
        print(
            f"one heartbeat, {name:8} {len(data) / 1e3:5.1f} kB: {seconds * 1e6:6.1f} us in a row, "
            f"{rested * 1e6:6.1f} us after a pause of {PAUSE * 1e3:.0f} ms"
        )


def lists(count: int) -> None:
    bodies = [body(i) for i in range(count)]
    raw = kubeproto.node_list(bodies, "9999")
    packed = gzip.compress(raw, 4)
    json_pages = [
        gzip.compress(json.dumps({"metadata": {"resourceVersion": "9999"}, "items": bodies[at : at + PAGE]}).encode(), 4)
        for at in range(0, count, PAGE)
    ]
    del bodies
    size = len(raw) / 1e6
    del raw
    inflating = timed(lambda: sum(map(len, inflated(chunks(packed)))))
    print(
        f"list of {count}, protobuf: {size:.1f} MB, {len(packed) / 1e6:.1f} MB gzip; inflating alone {inflating * 1e3:.0f} ms"
    )
    for name, work in (
        ("protobuf, as it arrives", lambda: walk(packed)),
        (f"JSON in pages of {PAGE}", lambda: pages(json_pages)),
    ):
        print(f"list of {count}, {name:24}: {timed(work) * 1e3:6.0f} ms CPU, peak {peak(work):5.1f} MB (facts included)")


def main() -> None:
    machine = f"{platform.machine()}, Linux {platform.release()}"
    print(f"Python {platform.python_version()}, zlib {zlib.ZLIB_RUNTIME_VERSION}, {machine}")
    events()
    lists(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)


if __name__ == "__main__":
    main()
