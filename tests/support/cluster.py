"""A small cluster of network namespaces around a real control plane: real agents, the real kernel, Node objects as nodes have.

The control plane is 10.99.0.1 and fd99::1 on an Ethernet (a bridge in a namespace of its own); nodes come after it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.controlplane import ControlPlane
from tests.support.netns import Namespace, lan
from tests.support.nodes import node
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODES = "/api/v1/nodes"
PROTOCOL = "110"


def plugin_folder() -> Path:
    """Where the CNI plugins are. Raises FileNotFoundError with what to install."""
    for folder in (Path("/usr/lib/cni"), Path("/opt/cni/bin")):
        if (folder / "bridge").exists():
            return folder
    raise FileNotFoundError("no CNI plugins in /usr/lib/cni or /opt/cni/bin: apt-get install containernetworking-plugins")


class Agent:
    """One node: its namespace, and the agent that runs in it (or does not). Files live in ``folder``.

    ``config`` is the agent's configuration, written at each start; change it before.
    """

    def __init__(self, name: str, namespace: Namespace, folder: Path, url: str, ca_file: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.folder = folder
        self.url = url
        self.ca_file = ca_file
        self.token_file = folder / "token"
        self.conf_dir = folder / "net.d"
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.conf_dir.mkdir(parents=True)
        self.config: dict[str, Any] = {
            "runDir": str(folder / "run"),
            "stateDir": str(folder / "state"),
            "cni": {"confDir": str(self.conf_dir), "binDir": str(plugin_folder()), "ipamDir": str(folder / "ipam")},
        }

    def command(self, *flags: str) -> tuple[str, ...]:
        """The agent's command line, its configuration written; ``flags`` go instead of --api-server and its files."""
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(self.config))  # JSON is YAML
        api = flags or ("--api-server", self.url, "--token-file", str(self.token_file), "--ca-file", str(self.ca_file))
        return (sys.executable, "-m", "pynet", "agent", "--config", str(config), "--node-name", self.name, *api)

    def spawn(self, *command: str, **options: Any) -> None:
        """Run a command as this node's agent: in its namespace, its words in the log."""
        with self.log.open("ab") as log:
            self.process = self.namespace.popen(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)

    def start(self, *flags: str, wait: bool = True) -> None:
        """Start the agent, and wait until it says that it is ready."""
        self.spawn(*self.command(*flags))
        if wait:
            self.await_ready()

    def await_ready(self, seconds: float = 20) -> None:
        """Wait for /readyz to say yes; an agent that has exited ends the wait with its last words."""

        def ready() -> bool:
            if self.process and self.process.poll() is not None:
                raise RuntimeError(f"agent {self.name} exited with {self.process.returncode}: {self.log_end()}")
            code, text = self.readyz()
            assert code == 200, text
            return True

        try:
            until(ready, f"agent {self.name} ready", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_end()}") from None

    def stop(self, how: signal.Signals = signal.SIGTERM, *, seconds: float = 10) -> int:
        """Send the signal and wait for the end; returns the exit status."""
        assert self.process, "the agent does not run"
        process, self.process = self.process, None
        process.send_signal(how)
        return process.wait(seconds)

    def get(self, path: str, port: int = 9794) -> tuple[int, str]:
        """GET from the agent's health port (or another) on its loopback: status and body."""
        with self.namespace.entered():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.connect()
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def readyz(self) -> tuple[int, str]:
        """HTTP status and text of /readyz."""
        return self.get("/readyz")

    def status(self) -> Any:
        """The decoded /status."""
        code, text = self.get("/status")
        assert code == 200, text
        return json.loads(text)

    def peers(self) -> dict[tuple[str, int], dict[str, Any]]:
        """What /status says of each peer, by name and family."""
        return {(p["name"], p["family"]): p for p in self.status()["peers"]}

    def routes(self, family: int = 4) -> dict[str, str]:
        """The agent's unicast routes as `ip` shows them: prefix -> gateway."""
        shown = self.namespace.ip(f"-{family}", "route", "show", "proto", PROTOCOL)
        return {r["dst"]: r.get("gateway", "") for r in shown if r.get("type", "unicast") == "unicast"}

    def await_routes(self, want: dict[str, str], family: int = 4, *, seconds: float = 10) -> None:
        """Wait until the agent's routes are exactly these."""

        def same() -> bool:
            have = self.routes(family)
            assert have == want, f"{have} instead of {want}"
            return True

        until(same, f"IPv{family} routes of {self.name}", seconds=seconds)

    def events(self) -> list[dict[str, Any]]:
        """The agent's log, line by line (what is not JSON is left out)."""
        found = []
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def await_event(self, name: str, *, seconds: float = 10) -> dict[str, Any]:
        """Wait for a line of the log with this event."""
        return until(lambda: next((e for e in self.events() if e.get("event") == name), {}), f"log {name}", seconds=seconds)

    def log_end(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])


class Cluster:
    """A control plane on an Ethernet, and the nodes that join it; made by `cluster`."""

    def __init__(self, plane: ControlPlane, switch: Namespace, folder: Path) -> None:
        self.plane = plane
        self.client = plane.client
        self.switch = switch
        self.folder = folder
        self.agents: dict[str, Agent] = {}
        self._numbers = itertools.count(2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove every node: agents killed, namespaces and Node objects gone; the API server runs again if it does not."""
        for name in list(self.agents):
            self.leave(name)
        self._numbers = itertools.count(2)
        if "kube-apiserver" not in self.plane.pids:
            self.plane.start()
        self.plane.thaw()
        self.plane.await_ready()
        self.plane.service_account()
        # One by one: the DELETE of a whole collection is slower.
        names = [n["metadata"]["name"] for n in self.client.get(NODES)["items"]]
        self.client.each(lambda name: self.client.delete(f"{NODES}/{name}", absent_is_fine=True), names)

    def join(self, name: str, *, number: int = 0, length: int = 24, families: Sequence[int] = (4, 6)) -> Agent:
        """A namespace on the Ethernet, 10.99.0.N/``length`` and fd99::N/64 (``number`` or the next); no Node object yet."""
        number = number or next(self._numbers)
        namespace = Namespace()
        folder = self.folder / f"{name}-{time.monotonic_ns()}"
        self.agents[name] = agent = Agent(name, namespace, folder, self.plane.url, self.plane.ca_file)
        agent.token_file.write_text(self.plane.token())
        self.wire(agent, number, length=length, families=families)
        return agent

    def wire(self, agent: Agent, number: int, *, length: int = 24, families: Sequence[int] = (4, 6)) -> None:
        """Give the node its interface: eth0, up, with the addresses of ``number``."""
        run = agent.namespace.run
        self.switch.run(
            "ip", "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", agent.namespace.name
        )
        self.switch.run("ip", "link", "set", f"p{number}", "master", "br0", "up")
        run("ip", "link", "set", "eth0", "up")
        if 4 in families:
            run("ip", "addr", "add", f"10.99.0.{number}/{length}", "dev", "eth0")
        if 6 in families:
            run("ip", "addr", "add", f"fd99::{number:x}/64", "dev", "eth0", "nodad")

    def leave(self, name: str) -> None:
        """Undo `join`: the agent is killed, the namespace and its interface are gone when this returns."""
        agent = self.agents.pop(name)
        agent.namespace.run("ip", "link", "del", "eth0", check=False)
        agent.namespace.close()

    def node(self, name: str, pod_cidrs: Sequence[str], *, start: bool = True, **options: Any) -> Agent:
        """A node with Node object and (if ``start``) a ready agent; its addresses are those of `join`."""
        families = sorted({6 if ":" in cidr else 4 for cidr in pod_cidrs}) or [4, 6]
        agent = self.join(name, **options)
        number = int(agent.namespace.ip("-4", "addr", "show", "dev", "eth0")[0]["addr_info"][0]["local"].rsplit(".", 1)[1])
        addresses = [f"10.99.0.{number}" if family == 4 else f"fd99::{number:x}" for family in families]
        self.add(name, pod_cidrs, addresses)
        if start:
            agent.start()
        return agent

    def add(self, name: str, pod_cidrs: Sequence[str], addresses: Sequence[str], **extra: Any) -> dict[str, Any]:
        """Create a Node object (of a node that exists or does not)."""
        made: dict[str, Any] = self.client.create(NODES, node(name, pod_cidrs, addresses, **extra))
        return made

    def remove(self, name: str) -> None:
        """Delete a Node object."""
        self.client.delete(f"{NODES}/{name}")

    def readdress(self, name: str, addresses: Sequence[str]) -> None:
        """Change status.addresses of a Node, and nothing else, as its kubelet does."""
        wanted = [{"type": "Hostname", "address": name}, *({"type": "InternalIP", "address": a} for a in addresses)]
        patch = [{"op": "replace", "path": "/status/addresses", "value": wanted}]
        self.client.patch(f"{NODES}/{name}/status", patch, "application/json-patch+json")

    @contextlib.contextmanager
    def cut_off(self, agent: Agent) -> Iterator[None]:
        """Drop what the agent and the API server say to each other, both ways and without a word to either."""
        ruleset = """
            table inet cutoff {
              chain out { type filter hook output priority 0; tcp dport 6443 drop; }
              chain in { type filter hook input priority 0; tcp sport 6443 drop; }
            }
        """
        agent.namespace.run("nft", "-f", "-", input=ruleset)
        try:
            yield
        finally:
            agent.namespace.run("nft", "delete", "table", "inet", "cutoff")


@contextlib.contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster without nodes, its API server ready (``options`` as of ControlPlane); all of it is gone afterwards."""
    with (
        lan(1) as wire,
        ControlPlane(folder / "plane", wire[0], "10.99.0.1", also=["fd99::1"], **options) as plane,
        Cluster(plane, wire.switch, folder) as made,
    ):
        plane.service_account()
        yield made
