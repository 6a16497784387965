"""Network namespaces: made and removed, entered by a thread of their own, joined by links that are made inside them.

The lab's own process stays in the host's namespace all the time, and no link of a lab is ever there.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pynet.commands.lab.plan import BRIDGE, NAMESPACES, NODE_NETWORK, PREFIX, UPLINK, LabError, NodePlan, Plan
from pynet.core.model import Family

T = TypeVar("T")

NETWORK_BITS: dict[Family, int] = {family: network[1] for family, network in NODE_NETWORK.items()}


def enter(namespace: str, do: Callable[[], T]) -> T:
    """Return what ``do`` returns inside a namespace: in a thread that ends with it, so that nothing else moves there.

    Raises LabError if there is no such namespace, and whatever ``do`` raises.
    """
    from pyroute2 import netns

    results: list[T] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            netns.setns(namespace, flags=0)
            results.append(do())
        except FileNotFoundError as error:
            errors.append(LabError(f"no network namespace {namespace}") if not exists(namespace) else error)
        except BaseException as error:  # raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=inside, name=f"in {namespace}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def exists(namespace: str) -> bool:
    """Whether a namespace of this name is there."""
    return (NAMESPACES / namespace).exists()


def leftover(number: int) -> list[str]:
    """List the namespaces of lab ``number`` that are on this machine."""
    if not NAMESPACES.exists():
        return []
    return sorted(path.name for path in NAMESPACES.iterdir() if path.name.startswith(f"{PREFIX}{number}-"))


def create(namespaces: Iterable[str], check: Callable[[], None]) -> None:
    """Make the namespaces, each with its loopback up and without duplicate address detection.

    Detection keeps an IPv6 address from use for a second or two, and nobody else is on these links. ``check`` is called before
    each. Raises LabError.
    """
    from pyroute2 import netns

    for namespace in namespaces:
        check()
        try:
            netns.create(namespace)
        except OSError as error:
            raise LabError(f"cannot make the network namespace {namespace}: {error.strerror or error}") from error
        enter(namespace, _prepare)


def remove(namespace: str) -> None:
    """Remove a namespace and with it every link inside; nothing if it is not there. Raises LabError if it is busy."""
    from pyroute2 import netns

    try:
        netns.remove(namespace)
    except FileNotFoundError:
        return
    except OSError as error:
        raise LabError(f"cannot remove the network namespace {namespace}: {error.strerror or error}") from error


def join(plan: Plan) -> None:
    """Make the hub's bridge and a veth from it to each node; set every address. Raises NetlinkError with the kernel's words."""
    enter(plan.hub, lambda: _hub(plan))
    for node in plan.nodes:
        enter(node.namespace, partial(_uplink, node, plan.families))


def _prepare() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        kernel.link("set", index=1, state="up")
    try:  # /proc/sys/net shows the namespace of the thread that looks
        Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EROFS):
            raise


def _hub(plan: Plan) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        # Its own hardware address: it would change with each port otherwise, and neighbours keep the old one.
        kernel.link("add", ifname=BRIDGE, kind="bridge", address="02:00:00:00:00:fe", state="up")
        bridge = _index(kernel, BRIDGE)
        for family, address in zip(plan.families, plan.hub_addresses, strict=True):
            kernel.addr("add", index=bridge, address=address, prefixlen=NETWORK_BITS[family])
        for node in plan.nodes:
            kernel.link("add", ifname=node.port, kind="veth", peer={"ifname": UPLINK, "net_ns_fd": node.namespace})
            kernel.link("set", index=_index(kernel, node.port), master=bridge, state="up")


def _uplink(node: NodePlan, families: tuple[Family, ...]) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        index = _index(kernel, UPLINK)
        kernel.link("set", index=index, state="up")
        for family, address in zip(families, node.addresses, strict=True):
            kernel.addr("add", index=index, address=address, prefixlen=NETWORK_BITS[family])


def _index(kernel: Any, name: str) -> int:
    index: int = kernel.link_lookup(ifname=name)[0]
    return index
