"""A kind cluster and what a test does with it: create, load images, kubectl, run commands in pods and nodes, wait, delete.

Everything that waits waits for a condition and not longer than it says; what times out says what it saw last.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).resolve().parents[2]
NAMESPACE = "e2e"
"""Where the tests' own workloads are."""


class Flavour(NamedTuple):
    """One kind of cluster: the file of deploy/kind that makes it, and its families."""

    name: str
    families: tuple[int, ...]


FLAVOURS = {
    "ipv4": Flavour("ipv4", (4,)),
    "dual": Flavour("dual", (4, 6)),
    "ipv6": Flavour("ipv6", (6,)),
}


class CommandError(AssertionError):
    """A command of the test failed or took too long; the text has its output."""


def run(*command: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
    """Run a command and return what it printed. Raises CommandError with everything it said."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as slow:
        raise CommandError(f"{' '.join(command)}: not done after {timeout} s\n{slow.stdout or ''}{slow.stderr or ''}") from None
    if check and done.returncode != 0:
        raise CommandError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def asset(name: str) -> str:
    """Something that tests/e2e/run prepared, by the name of its environment variable."""
    value = os.environ.get(name)
    assert value, f"{name} is not set: the end-to-end tests are started by tests/e2e/run"
    return value


def until(what: str, probe: Callable[[], Any], timeout: float = 60, interval: float = 0.25) -> Any:
    """Call ``probe`` until it returns something true, and return that. A CommandError counts as not yet."""
    deadline = time.monotonic() + timeout
    seen: object = None
    while True:
        try:
            seen = probe()
            if seen:
                return seen
        except CommandError as problem:
            seen = problem
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout} s still not: {what}; last seen: {seen}")
        time.sleep(interval)


class Cluster:
    """A running cluster of one flavour. Its nodes are docker containers of the same names."""

    def __init__(self, flavour: Flavour, name: str, kubeconfig: Path) -> None:
        self.flavour = flavour
        self.name = name
        self.control_plane = f"{name}-control-plane"
        self.workers = (f"{name}-worker", f"{name}-worker2")
        self.nodes = (self.control_plane, *self.workers)
        self.before: dict[str, set[str]] = {}
        self.kubeconfig = kubeconfig

    # --- life ---------------------------------------------------------------
    def create(self, image: str) -> None:
        """Make the cluster and wait until its API answers for every node; the nodes are not Ready then."""
        config = REPOSITORY / "deploy" / "kind" / f"{self.flavour.name}.yaml"
        self.tool("kind", "create", "cluster", "--name", self.name, "--image", image, "--config", str(config), timeout=240)
        until("every node is registered", lambda: len(self.get("nodes")["items"]) == len(self.nodes))
        self.before = {node: node_state(self, node) for node in self.nodes}

    def delete(self) -> None:
        """Remove the cluster and its volumes, whatever state it is in."""
        self.tool("kind", "delete", "cluster", "--name", self.name, timeout=120)

    def load(self, archive: str) -> None:
        """Give an image archive to every node's container runtime."""
        self.tool("kind", "load", "image-archive", "--name", self.name, archive, timeout=240)

    # --- tools --------------------------------------------------------------
    def tool(self, *command: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        """Run kind, kubectl or helm against this cluster."""
        return run("env", f"KUBECONFIG={self.kubeconfig}", *command, stdin=stdin, timeout=timeout, check=check)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> str:
        """Run kubectl in the tests' namespace, unless the arguments name another."""
        return self.tool("kubectl", "-n", NAMESPACE, *arguments, stdin=stdin, timeout=timeout, check=check)

    def get(self, *what: str) -> Any:
        """An object or a list of objects, as the API has it: ``get("pod", "a")``, ``get("nodes")``."""
        return json.loads(self.kubectl("get", *what, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def exec(self, pod: str, script: str, timeout: float = 60, check: bool = True) -> str:
        """Run a shell script in a pod of the tests' namespace; returns what it printed."""
        return self.kubectl("exec", pod, "--", "sh", "-c", script, timeout=timeout, check=check)

    def on_node(self, node: str, *command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a command on a node."""
        return run("docker", "exec", node, *command, timeout=timeout, check=check)

    # --- looking -------------------------------------------------------------
    def node_addresses(self, node: str) -> dict[int, str]:
        """A node's InternalIP by family."""
        addresses = self.get("node", node)["status"]["addresses"]
        return by_family(entry["address"] for entry in addresses if entry["type"] == "InternalIP")

    def pod_cidrs(self, node: str) -> dict[int, str]:
        """A node's podCIDR by family."""
        return by_family(self.get("node", node)["spec"].get("podCIDRs", []))

    def pod_addresses(self, pod: str) -> dict[int, str]:
        """A pod's addresses by family."""
        return _addresses(self.get("pod", pod))

    def all_pod_addresses(self) -> dict[str, dict[int, str]]:
        """The addresses of every pod of the tests, by its name and family."""
        return {item["metadata"]["name"]: _addresses(item) for item in self.get("pods")["items"]}

    def condition(self, node: str, kind: str) -> dict[str, str] | None:
        """One condition of a Node, None if it has none of this type."""
        conditions = self.get("node", node)["status"]["conditions"]
        return next((entry for entry in conditions if entry["type"] == kind), None)

    def is_ready(self, node: str) -> bool:
        """Whether kubelet calls the node ready."""
        return (self.condition(node, "Ready") or {}).get("status") == "True"

    def wait_ready(self, kind: str, selector: str, count: int, timeout: float = 90) -> list[dict[str, Any]]:
        """Wait for exactly ``count`` ready ``kind`` with these labels, none of them being deleted; returns them."""

        def ready() -> list[dict[str, Any]]:
            items = self.get(kind, "-l", selector)["items"]
            good = [item for item in items if "deletionTimestamp" not in item["metadata"] and _is_ready(item)]
            return good if len(good) == len(items) == count else []

        return until(f"{count} ready {kind} with {selector}", ready, timeout)

    def wait_gone(self, *what: str, timeout: float = 60) -> None:
        """Wait until ``kubectl get`` finds nothing."""
        until(
            f"no {' '.join(what)}", lambda: not self.kubectl("get", *what, "--ignore-not-found", "-o", "name").strip(), timeout
        )

    @contextlib.contextmanager
    def pinging(self, pod: str, target: str, interval: float = 0.01) -> Iterator[Pings]:
        """Ping from a pod while the block runs; ``lost`` and ``sent`` are there after it.

        The ping runs in the pod by itself, so that the API server may be away meanwhile.
        """
        pings = Pings()
        log = f"/tmp/ping.{time.monotonic_ns()}"
        ping = f"ping -q -n -i {interval} -W 1 {target} >{log} 2>&1 & echo $!"
        process = self.exec(pod, ping).strip()
        try:
            self.exec(pod, f"ping -n -c 1 -W 1 {target}")
            yield pings
        finally:
            # ping says its sums when interrupted.
            self.exec(pod, f"kill -INT {process}; while kill -0 {process} 2>/dev/null; do sleep 0.05; done")
        sums = self.exec(pod, f"cat {log}")
        found = re.search(r"(\d+) packets transmitted, (\d+) received", sums)
        assert found, sums
        pings.sent = int(found[1])
        pings.lost = pings.sent - int(found[2])


def node_state(cluster: Cluster, node: str) -> set[str]:
    """What pynet may leave on a node, in lines: routes, links, rules, files."""
    script = r"""
    for family in 4 6; do ip -$family route show table all | sed 's/ expires [0-9]*sec//; s/^/route /'; done
    ip -o link show | sed -E 's/^[0-9]+: ([^:@]+).*/link \1/'
    nft list tables | sed 's/^/nft /'
    iptables-save; ip6tables-save; iptables-legacy-save; ip6tables-legacy-save
    find /etc/cni /opt/cni/bin /var/lib/pynet /run/pynet /var/lib/cni/networks -type f -exec sha256sum {} + 2>/dev/null
    true"""
    lines = cluster.on_node(node, "sh", "-c", script).splitlines()
    # An empty folder may stay: it was mounted in the pod that cleaned up.
    # Rules of kube-proxy and of docker's resolver come and go; link-local routes come with a link that is seen by itself.
    return {line for line in lines if not re.search(r"KUBE-|DOCKER_|^[:*#]|^COMMIT|^nft table ip6? |fe80::|ff00::", line)}


class Pings:
    """What became of a run of pings."""

    sent = 0
    lost = -1

    def __repr__(self) -> str:
        return f"{self.lost} of {self.sent} lost"


def by_family(values: Any) -> dict[int, str]:
    """Addresses or prefixes by their family, the first of each."""
    found: dict[int, str] = {}
    for value in values:
        found.setdefault(ipaddress.ip_interface(value).version, value)
    return found


def _addresses(pod: dict[str, Any]) -> dict[int, str]:
    return by_family(entry["ip"] for entry in pod["status"].get("podIPs", []))


def in_url(address: str) -> str:
    """An address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


def _is_ready(item: dict[str, Any]) -> bool:
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in item["status"].get("conditions", []))
