"""``python -m pynet.uninstall``: what `helm uninstall` runs before it deletes the release, and deploy/uninstall/ without it.

In the hook's Job: delete the agents' DaemonSet, wait for its pods to go, run the cleanup DaemonSet, collect each node's result,
delete it, and name the nodes that were missed. With ``--node``, in that DaemonSet's init container: `pynet cleanup`, its result
left in the termination message, which the Job reads from the pod's status.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from pynet.config import ConfigError
from pynet.drivers.credentials import CredentialsError, in_cluster
from pynet.drivers.kube import Api, ApiError

_LONGEST_MESSAGE: Final = 4000  # bytes; kubelet keeps 4096 of a termination message
_LONGEST_EVENT: Final = 1000  # bytes; the API server takes 1024
_LOOK: Final = 1.0  # seconds between two looks at the API
_AGENTS_GONE: Final = 40.0
_PODS_GONE: Final = 10.0
_RIGHTS_ARRIVE: Final = 10.0  # seconds in which an API server may not know our rights: just given by Helm, or just started
_PAGE: Final = 100  # objects of 10 kB or so: an answer that is read whole has a limit

Json = dict[str, Any]
T = TypeVar("T")


class Outcome(NamedTuple):
    """``cleaned``: the nodes that answered; ``stays``: what is left there and which nodes were missed, a line for each."""

    cleaned: tuple[str, ...]
    stays: tuple[str, ...]


class Uninstall:
    """The Job's work, which takes ``seconds`` at the most, but for a request that hangs."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        *,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._sets = f"/apis/apps/v1/namespaces/{quote(namespace, safe='')}/daemonsets"
        self._pods = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods"
        self._events = f"/api/v1/namespaces/{quote(namespace, safe='')}/events"
        began = time.monotonic()
        self._end = began + seconds
        self._rights_by = began + _RIGHTS_ARRIVE
        self._say = say

    def run(self, agent: str, agent_selector: str, cleanup: Mapping[str, Any]) -> Outcome:
        """Do it all: ``agent`` names the agents' DaemonSet, ``cleanup`` is the other one. Raises ApiError."""
        name = cleanup["metadata"]["name"]
        self._delete(agent)
        self._await_gone(agent_selector, _AGENTS_GONE)
        self._say("the agents are gone; cleaning the nodes")
        selector = ",".join(f"{key}={value}" for key, value in cleanup["spec"]["selector"]["matchLabels"].items())
        try:
            outcome = self._collect(name, selector, self._create(name, cleanup))
        finally:
            self._delete(name)
        self._await_gone(selector, _PODS_GONE)
        if outcome.stays:
            self._record(agent, outcome.stays)
        return outcome

    def _create(self, name: str, cleanup: Mapping[str, Any]) -> str:
        """Create the cleanup DaemonSet; returns its UID. One of an attempt that was cut off makes way first."""
        while True:
            try:
                return str(self._ask(lambda: self._api.post_json(self._sets, cleanup))["metadata"]["uid"])
            except ApiError as error:
                if error.status != 409 or time.monotonic() >= self._end:
                    raise
            time.sleep(_LOOK)
            self._delete(name)

    def _collect(self, name: str, selector: str, uid: str) -> Outcome:
        """Each node's result, until every node that can answer has, or time is up."""
        results: dict[str, list[str]] = {}
        while True:
            began = time.monotonic()
            pods = {_node_of(pod): pod for pod in self._list(self._pods, selector) if _owner(pod) == uid}
            for node in sorted(pods.keys() - results.keys()):
                if (result := _result(pods[node])) is not None:
                    results[node] = result
                    self._say(f"{node}: {'; '.join(result) or 'clean'}")
            dead = self._dead() if pods.keys() - results.keys() else set()
            answered = self._all_made(name, len(pods)) and pods.keys() <= results.keys() | dead
            if answered or time.monotonic() >= self._end:
                break
            time.sleep(max(_LOOK, 3 * (time.monotonic() - began)))  # a large cluster's pods are not read all the time
        stays = [f"{node}: {line}" for node in sorted(results) for line in results[node]]
        for node in sorted(pods.keys() - results.keys()):
            why = "the node is down" if node in dead else _why(pods[node])
            stays.append(f"{node}: not cleaned ({why}); run `pynet cleanup` there")
        if not pods:
            stays.append("all nodes: no pod was made to clean them (does kube-controller-manager run?)")
        self._say(f"{len(results)} of {len(pods)} nodes have answered")
        return Outcome(tuple(sorted(results)), tuple(stays))

    def _all_made(self, name: str, pods: int) -> bool:
        """Whether the controller has made a pod for each node that is to have one."""
        status = self._ask(lambda: self._api.get_json(f"{self._sets}/{quote(name, safe='')}")).get("status") or {}
        return bool(status.get("observedGeneration")) and pods >= status.get("desiredNumberScheduled", 0)

    def _dead(self) -> set[str]:
        """Nodes whose kubelet does not answer: nothing can be run on them, and nothing will end there."""
        return {node["metadata"]["name"] for node in self._list("/api/v1/nodes") if _ready(node) == "Unknown"}

    def _await_gone(self, selector: str, seconds: float) -> None:
        """Wait for pods to go; what is on a node that is down, or does not go in time, is said and left behind."""
        end = min(self._end, time.monotonic() + seconds)
        while pods := {_node_of(pod) for pod in self._list(self._pods, selector)}:
            if pods <= self._dead() or time.monotonic() >= end:
                self._say(f"pods that do not go, on: {', '.join(sorted(pods))} (a node that is down?)")
                return
            time.sleep(_LOOK)

    def _list(self, path: str, selector: str = "") -> list[Json]:
        items: list[Json] = []
        token = ""
        while True:
            query = f"?limit={_PAGE}&labelSelector={quote(selector, safe='')}&continue={quote(token, safe='')}"
            page = self._ask(lambda query=query: self._api.get_json(path + query))  # type: ignore[misc]  # mypy: no defaults in lambdas
            items += page.get("items") or []
            token = page["metadata"].get("continue", "")
            if not token:
                return items

    def _delete(self, name: str) -> None:
        try:
            self._ask(lambda: self._api.delete(f"{self._sets}/{quote(name, safe='')}?propagationPolicy=Background"))
        except ApiError as error:
            if error.status != 404:
                raise

    def _record(self, agent: str, stays: tuple[str, ...]) -> None:
        """Leave an Event, which outlives the Job and its log. That it cannot be written stops nothing."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = "stays: " + "; ".join(stays)
        event: Json = {
            "metadata": {"generateName": f"{agent}-uninstall-"},
            "involvedObject": {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": agent, "namespace": self._namespace},
            "type": "Warning",
            "reason": "PynetStays",
            "message": text.encode()[:_LONGEST_EVENT].decode(errors="ignore"),
            "source": {"component": "pynet"},
        }
        event |= {"firstTimestamp": now, "lastTimestamp": now, "count": 1}
        try:
            self._ask(lambda: self._api.post_json(self._events, event))
        except ApiError as error:
            self._say(f"no Event could be written: {error}")

    def _ask(self, request: Callable[[], T]) -> T:
        """The request's answer. What may pass is tried again while there is time: no connection, 429, 5xx, and soon after the
        start or after one of those also 401 and 403. Raises ApiError.
        """
        while True:
            try:
                return request()
            except ApiError as error:
                now = time.monotonic()
                away = error.status == 0 or error.status >= 500
                if away:
                    self._rights_by = now + _RIGHTS_ARRIVE
                early = error.status in (401, 403) and now < self._rights_by
                if not (away or early or error.status == 429) or now >= self._end:
                    raise
                self._say(f"trying again: {error}")
                time.sleep(max(_LOOK, error.retry_after))


def _owner(pod: Json) -> str:
    return next((owner["uid"] for owner in pod["metadata"].get("ownerReferences") or [] if owner.get("controller")), "")


def _node_of(pod: Json) -> str:
    """The pod's node; of one that is not scheduled yet, the node that its DaemonSet made it for."""
    if name := pod["spec"].get("nodeName"):
        return str(name)
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    for term in (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field["key"] == "metadata.name":
                return str(field["values"][0])
    return "?"


def _ready(node: Json) -> str:
    conditions = (node.get("status") or {}).get("conditions") or []
    return next((str(c.get("status")) for c in conditions if c.get("type") == "Ready"), "")


def _result(pod: Json) -> list[str] | None:
    """What stays on the pod's node, by its init container's last words; None as long as it has not ended well."""
    for status in (pod.get("status") or {}).get("initContainerStatuses") or []:
        ended = (status.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode") == 0:
            try:
                return [str(line) for line in json.loads(ended.get("message") or "")["stays"]]
            except (ValueError, KeyError, TypeError):
                return [f"the cleanup's words are not understood: {ended.get('message') or 'none'}"]
    return None


def _why(pod: Json) -> str:
    """Why a pod has no result: the words of its container's failure, of kubelet, or of the scheduler."""
    status = pod.get("status") or {}
    for container in status.get("initContainerStatuses") or []:
        state, last = container.get("state") or {}, container.get("lastState") or {}
        if ended := state.get("terminated") or last.get("terminated"):
            return f"exit status {ended.get('exitCode')}: {' '.join((ended.get('message') or 'no words').split())}"
        if waiting := state.get("waiting"):
            return f"{waiting.get('reason', 'waiting')}: {waiting.get('message', 'not started in time')}"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"not scheduled: {condition.get('message', '')}"
    return "no answer in time"


def clean_node(config: str | None, result: Path) -> int:
    """Run `pynet cleanup` here and leave what stays in ``result``; returns 0 even if something does."""
    from pynet.commands import cleanup

    out = io.StringIO()
    arguments = argparse.Namespace(config=config, dry_run=False, force=False, output="json")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cleanup.run(arguments)
    except ConfigError as error:
        out.write(str(error))
    print(out.getvalue())
    result.write_text(short_result(out.getvalue()), encoding="utf-8")
    return 0


def short_result(document: str) -> str:
    """What `pynet cleanup` printed without the list of what went, as JSON, cut to what kubelet keeps."""
    try:
        stays = [str(line) for line in json.loads(document)["stays"]]
    except (ValueError, KeyError, TypeError):
        stays = [" ".join(document.split())]
    left = 0
    while True:
        text = json.dumps({"stays": [*stays, f"and {left} more"] if left else stays})
        if len(text) <= _LONGEST_MESSAGE:
            return text
        if len(stays) > 1:
            left += len(stays) - len(stays) // 2
            stays = stays[: len(stays) // 2]
        else:
            stays = [stays[0][: len(stays[0]) // 2]]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done (what stays is said), 1 it cannot be done."""
    options = _parser().parse_args(arguments)
    if options.node:
        return clean_node(options.config, options.result)
    try:
        api = Api(in_cluster(server=options.api_server))
        work = Uninstall(api, options.namespace, seconds=options.seconds, say=lambda line: print(line, flush=True))
        cleanup = json.loads(Path(options.daemonset).read_text(encoding="utf-8"))
        # So that the DaemonSet goes also then; process 1 of a container would not even notice.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("pynet.uninstall: told to end before all was done"))
        outcome = work.run(options.agent, options.agent_selector, cleanup)
    except (ApiError, CredentialsError, OSError, ValueError) as error:
        print(f"pynet.uninstall: {error}", file=sys.stderr)
        return 1
    for line in outcome.stays:
        print(f"stays on {line}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pynet.uninstall", description="Take pynet off all nodes.")
    parser.add_argument("--node", action="store_true", help="clean this node")
    parser.add_argument("--config", metavar="FILE", help="with --node: the agent's configuration")
    parser.add_argument("--result", metavar="FILE", type=Path, default="/dev/termination-log", help="with --node (%(default)s)")
    parser.add_argument("--namespace")
    parser.add_argument("--agent", help="name of the agents' DaemonSet")
    parser.add_argument("--agent-selector", help="label selector of the agents' pods")
    parser.add_argument("--daemonset", metavar="FILE", help="the cleanup DaemonSet, as JSON")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--api-server", default="")
    return parser


if __name__ == "__main__":
    sys.exit(main())
