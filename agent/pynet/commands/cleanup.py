"""`pynet cleanup`: takes everything of ours off this node, and nothing else.

Routes, rules, the conflist and the snapshot go at once. What pods still use waits for the last of them: the bridge, the
address leases and the CNI plugins that we installed, without which a pod cannot be taken down in good order.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pynet import config
from pynet.apply import confdir, forward, masquerade, snapshot
from pynet.apply.conflist import NETWORK
from pynet.commands.agent.process import LOCK, FatalError, HeldError, hold_lock, require_net_admin
from pynet.commands.output import add_output_argument
from pynet.config import Config
from pynet.core.addresses import host_prefix, parse_address
from pynet.core.model import FAMILIES, RT_TABLE_MAIN, Link, Operation, Prefix, Route
from pynet.drivers.netlink import RouteSocket
from pynet.install import RECORD, InstallError, remove_installed
from pynet.observe.cluster import parse_each

_EVERY_TABLE: Final = 0  # to the kernel: no table in particular


class Cleanup:
    """What was (or with ``dry_run`` would be) removed, and what stays and why."""

    def __init__(self, settings: Config, *, dry_run: bool, force: bool) -> None:
        self.removed: list[str] = []
        self.stays: list[str] = []
        self._settings = settings
        self._ipam = Path(settings.cni.ipam_dir, NETWORK)  # host-local gives each network a folder of its own
        self._dry_run = dry_run
        self._force = force

    def run(self) -> None:
        """Remove in the order that hurts least: no new pods first, then what carries the old ones' traffic."""
        self._step("conflist", self._conflist)
        self._step("routes", self._routes)
        self._step("masquerade", lambda: masquerade.remove(dry_run=self._dry_run))
        self._step("forward", lambda: forward.remove(dry_run=self._dry_run))
        self._step("snapshot", self._snapshot)
        pods = self._pod_interfaces()
        if pods and not self._force:
            self.stays += [f"{what}: pods still use it ({', '.join(pods)})" for what in self._shared()]
            return
        self._step("bridge", self._bridge)
        self._step("leases", self._leases)
        self._step("plugins", self._plugins)
        self._step("folders", self._folders)

    def _step(self, name: str, act: Callable[[], list[str]]) -> None:
        """One kind of state: a failure is said and does not keep the others from going."""
        try:
            self.removed += act()
        except (OSError, InstallError, RuntimeError) as error:
            self.stays.append(f"{name}: {_plain(error)}")

    def _conflist(self) -> list[str]:
        path = Path(self._settings.cni.conf_dir, self._settings.cni.conf_name)
        if self._dry_run:
            return [str(path)] if path.is_symlink() or path.exists() else []
        return [str(path.parent / name) for name in confdir.remove(path)]

    def _routes(self) -> list[str]:
        """Routes of our protocol, in every table: another setting may have put them there."""
        removed: dict[str, None] = {}  # each once, in their order
        with RouteSocket() as netlink:
            for _ in range(3):  # an IPv6 route with several next hops goes hop by hop
                found = list(self._our_routes(netlink))
                if not found or self._dry_run:
                    return list(removed or dict.fromkeys(map(_words, found)))
                errors = netlink.apply([Operation("delete", route) for route in found])
                removed |= {_words(route): None for n, route in enumerate(found) if n not in errors}
            left = list(self._our_routes(netlink))
        if left:
            raise OSError(f"{len(left)} routes are left, the first is {_words(left[0])}")
        return list(removed)

    def _our_routes(self, netlink: RouteSocket) -> Iterator[Route]:
        for family in FAMILIES:
            for route in netlink.dump_routes(family, _EVERY_TABLE):
                if route.protocol == self._settings.routes.protocol:
                    yield route

    def _snapshot(self) -> list[str]:
        path = snapshot.path_in(Path(self._settings.state_dir))
        if not path.exists():
            return []
        if not self._dry_run:
            path.unlink()
        return [str(path)]

    def _links(self) -> list[Link]:
        with RouteSocket() as netlink:
            return netlink.dump_links()

    def _pod_interfaces(self) -> list[str]:
        """Interfaces of pods that our conflist attached: ports of our bridge, and those that ptp made, whichever is set now."""
        with RouteSocket() as netlink:
            links = netlink.dump_links()
            leased = self._leased()
            # ptp gives each pod's address a route of its own at the host's end of the pair.
            ends = {r.oif for family in FAMILIES for r in netlink.dump_routes(family, RT_TABLE_MAIN) if r.prefix in leased}
        bridges = {link.ifindex for link in links if link.name == self._settings.cni.bridge_name and link.kind == "bridge"}
        return [link.name for link in links if link.master in bridges or (link.ifindex in ends and link.kind == "veth")]

    def _leased(self) -> set[Prefix]:
        """The addresses that host-local gave out and did not take back: it keeps a file of that name for each."""
        files = [path for path in self._ipam.rglob("*") if path.is_file()]
        return {host_prefix(address) for address in parse_each((path.name for path in files), parse_address)}

    def _shared(self) -> list[str]:
        """What pods use, as far as it is there."""
        things = [f"bridge {link.name}" for link in self._links() if self._is_bridge(link)]
        if self._ipam.exists():
            things.append(str(self._ipam))
        with contextlib.suppress(InstallError):
            things += remove_installed(Path(self._settings.state_dir), Path(self._settings.cni.bin_dir), dry_run=True)
        return things

    def _is_bridge(self, link: Link) -> bool:
        return link.name == self._settings.cni.bridge_name and link.kind == "bridge" and self._settings.cni.plugin == "bridge"

    def _bridge(self) -> list[str]:
        names = [link.name for link in self._links() if self._is_bridge(link)]
        if names and not self._dry_run:
            from pyroute2 import IPRoute

            with IPRoute() as netlink:
                for index in netlink.link_lookup(ifname=names[0]):
                    netlink.link("del", index=index)
        return [f"bridge {name}" for name in names]

    def _leases(self) -> list[str]:
        folder = self._ipam
        if not folder.is_dir() or folder.is_symlink():
            return []
        if not self._dry_run:
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # what other networks have there stays
                folder.parent.rmdir()
        return [str(folder)]

    def _plugins(self) -> list[str]:
        return remove_installed(Path(self._settings.state_dir), Path(self._settings.cni.bin_dir), dry_run=self._dry_run)

    def _folders(self) -> list[str]:
        """Remove the state folder, if nothing is left in it."""
        folder = Path(self._settings.state_dir)
        going = {Path(path).name for path in self.removed} | {RECORD} if self._dry_run else set()
        if not folder.is_dir() or any(path.name not in going for path in folder.iterdir()):
            return []
        try:
            if not self._dry_run:
                folder.rmdir()
        except OSError:  # a mount point, as in a pod: empty is all that can be had
            return []
        return [str(folder)]


def _plain(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the agent's settings are, and what to remove."""
    parser.add_argument("--config", metavar="FILE", help="the agent's configuration file")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; change nothing")
    parser.add_argument("--force", action="store_true", help="also what pods still use: bridge, leases, CNI plugins")
    add_output_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Clean up; returns 0 if nothing of ours stays, 1 if something does. Raises ConfigError."""
    settings = config.load(args.config)
    cleanup = Cleanup(settings, dry_run=args.dry_run, force=args.force)
    try:
        require_net_admin()  # or the files would go and the routes stay; and without it nft does not even show the rules
        with contextlib.nullcontext() if args.dry_run else hold_lock(Path(settings.run_dir)):
            cleanup.run()
    except FatalError as error:
        advice = "; stop the agent first" if isinstance(error, HeldError) else ""
        print(f"pynet cleanup: {error}{advice}", file=sys.stderr)
        return 1
    if not args.dry_run and not cleanup.stays:
        _remove_run_dir(Path(settings.run_dir))
    _print(cleanup, dry_run=args.dry_run, as_json=args.output == "json")
    return 1 if cleanup.stays else 0


def _remove_run_dir(folder: Path) -> None:
    """Remove the lock file, and its folder if that is empty (in a pod it is a mount point, and stays)."""
    with contextlib.suppress(OSError):
        (folder / LOCK).unlink()
        folder.rmdir()


def _print(cleanup: Cleanup, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"dryRun": dry_run, "removed": cleanup.removed, "stays": cleanup.stays}, indent=2))
        return
    for thing in cleanup.removed:
        print(f"{'would remove' if dry_run else 'removed'} {thing}")
    for thing in cleanup.stays:
        print(f"stays {thing}")
    if not cleanup.removed and not cleanup.stays:
        print("nothing of pynet's is here")


def _words(route: Route) -> str:
    return f"route {route.prefix} metric {route.metric}" + (f" table {route.table}" if route.table != RT_TABLE_MAIN else "")
