"""``python -m pynet.uninstall``: what `helm uninstall` runs before it deletes the release.

In the hook's Job: delete the agents' DaemonSet, wait for its pods to go, run the cleanup DaemonSet, collect each node's result,
delete it, and name the nodes that were missed. With ``--node``, in that DaemonSet's init container: `pynet cleanup`, its result
left in the termination message, which the Job reads from the pod's status.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from pynet.drivers.credentials import CredentialsError, in_cluster
from pynet.drivers.kube import Api, ApiError

TERMINATION_LOG: Final = Path("/dev/termination-log")
_LONGEST_MESSAGE: Final = 4000  # bytes that kubelet keeps of a termination message
_LOOK: Final = 1.0  # seconds between two looks at the API
_AGENTS_GONE: Final = 40.0

Json = dict[str, Any]


class Uninstall:
    """The Job's work. ``clock`` and ``sleep`` are passed in."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        *,
        seconds: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = api
        self._sets = f"/apis/apps/v1/namespaces/{quote(namespace, safe='')}/daemonsets"
        self._pods = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods"
        self._end = clock() + seconds
        self._say = say
        self._clock = clock
        self._sleep = sleep

    def run(self, agent: str, agent_selector: str, cleanup: Mapping[str, Any]) -> list[str]:
        """Do it all; returns what stays, a line for each. Raises ApiError."""
        name = cleanup["metadata"]["name"]
        selector = ",".join(f"{key}={value}" for key, value in cleanup["spec"]["selector"]["matchLabels"].items())
        self._delete(name)  # of an attempt that was cut off
        self._delete(agent)
        self._await_none(agent_selector, "agents", min(self._end, self._clock() + _AGENTS_GONE))
        self._say("the agents are gone; cleaning the nodes")
        nodes = self._nodes()
        self._api.post_json(self._sets, cleanup)
        try:
            results = self._collect(selector, set(nodes))
        finally:
            self._delete(name)
        stays = [f"{node}: {line}" for node in sorted(results) for line in results[node]]
        missed = sorted(nodes.keys() - results.keys())
        stays += [f"{node}: not cleaned ({nodes[node]}); run `pynet cleanup` there" for node in missed]
        self._say(f"{len(results)} of {len(nodes)} nodes cleaned")
        return stays

    def _nodes(self) -> dict[str, str]:
        """Each Linux node's name, and why it may not answer."""
        found = {}
        for item in self._api.get_json("/api/v1/nodes").get("items") or []:
            if item["metadata"].get("labels", {}).get("kubernetes.io/os", "linux") == "linux":
                conditions = item.get("status", {}).get("conditions") or []
                ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
                found[item["metadata"]["name"]] = "no answer in time" if ready else "the node is not ready"
        return found

    def _collect(self, selector: str, nodes: set[str]) -> dict[str, list[str]]:
        """What stays on each node that has answered, until all have or time is up."""
        results: dict[str, list[str]] = {}
        while True:
            for pod in self._list(selector):
                node = pod["spec"].get("nodeName", "")
                result = _result(pod)
                if node in nodes and node not in results and result is not None:
                    results[node] = result
                    self._say(f"{node}: {'clean' if not result else '; '.join(result)}")
            if results.keys() >= nodes or self._clock() >= self._end:
                return results
            self._sleep(_LOOK)

    def _await_none(self, selector: str, what: str, end: float) -> None:
        while pods := self._list(selector):
            if self._clock() >= end:
                on = ", ".join(sorted({pod["spec"].get("nodeName", "?") for pod in pods}))
                self._say(f"{what} that do not go, on: {on} (a node that is down?)")
                return
            self._sleep(_LOOK)

    def _list(self, selector: str) -> list[Json]:
        pods: list[Json] = self._api.get_json(f"{self._pods}?labelSelector={quote(selector, safe='')}").get("items") or []
        return pods

    def _delete(self, name: str) -> None:
        try:
            self._api.delete(f"{self._sets}/{quote(name, safe='')}?propagationPolicy=Background")
        except ApiError as error:
            if error.status != 404:
                raise


def _result(pod: Json) -> list[str] | None:
    """What stays on the pod's node, by its init container's last words; None as long as there are none."""
    for status in pod.get("status", {}).get("initContainerStatuses") or []:
        terminated = (status.get("state") or {}).get("terminated") or (status.get("lastState") or {}).get("terminated")
        if terminated:
            try:
                stays = json.loads(terminated.get("message") or "")["stays"]
                return [str(line) for line in stays]
            except (ValueError, KeyError, TypeError):
                return [
                    f"the cleanup ended with status {terminated.get('exitCode')}: {terminated.get('message') or 'no words'}"
                ]
    return None


def clean_node(config: str | None) -> int:
    """Run `pynet cleanup` here and leave its result in the termination message; returns 0 even if something stays."""
    from pynet.commands import cleanup

    out = io.StringIO()
    arguments = argparse.Namespace(config=config, dry_run=False, force=False, output="json")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        cleanup.run(arguments)
    print(out.getvalue())
    TERMINATION_LOG.write_text(_short(out.getvalue()), encoding="utf-8")
    return 0


def _short(document: str) -> str:
    """The result without the list of what went, and cut to what kubelet keeps."""
    try:
        stays = json.loads(document)["stays"]
    except (ValueError, KeyError, TypeError):
        stays = [document.strip()]
    while len(text := json.dumps({"stays": stays})) > _LONGEST_MESSAGE and len(stays) > 1:
        stays = [*stays[: len(stays) // 2], f"and {len(stays) - len(stays) // 2} more"]
    return text if len(text) <= _LONGEST_MESSAGE else json.dumps({"stays": [text[: _LONGEST_MESSAGE // 2]]})


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done (what stays is said), 1 it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m pynet.uninstall", description="Take pynet off all nodes.")
    parser.add_argument("--node", action="store_true", help="clean this node")
    parser.add_argument("--config", metavar="FILE", help="with --node: the agent's configuration")
    parser.add_argument("--namespace")
    parser.add_argument("--agent", help="name of the agents' DaemonSet")
    parser.add_argument("--agent-selector", help="label selector of the agents' pods")
    parser.add_argument("--daemonset", metavar="FILE", help="the cleanup DaemonSet, as JSON")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--api-server", default="")
    options = parser.parse_args(arguments)
    if options.node:
        return clean_node(options.config)
    try:
        api = Api(in_cluster(server=options.api_server))
        work = Uninstall(api, options.namespace, seconds=options.seconds, say=lambda line: print(line, flush=True))
        cleanup = json.loads(Path(options.daemonset).read_text(encoding="utf-8"))
        stays = work.run(options.agent, options.agent_selector, cleanup)
    except (ApiError, CredentialsError, OSError, ValueError) as error:
        print(f"pynet.uninstall: {error}", file=sys.stderr)
        return 1
    for line in stays:
        print(f"stays on {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
