"""Asks the API server now and then for what the guard protects: Service ranges, and its own addresses."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.model import Prefix
from pynet.drivers.kube import Api, ApiError
from pynet.observe.cluster import kubernetes_endpoints, list_service_cidrs, parse_each
from pynet.observe.facts import ClusterFacts

_EVERY: Final = (240.0, 360.0)  # seconds: these objects hardly ever change, and all agents ask
_RETRY: Final = (1.0, 5.0)


class ClusterWatch(threading.Thread):
    """A thread that asks; ``facts()`` has the answers so far, and those addresses that the API is really reached at.

    ``service_cidrs`` from the configuration count in any case.
    """

    def __init__(
        self, api: Api, service_cidrs: Iterable[str], wake: Callable[[], None], log: structlog.typing.FilteringBoundLogger
    ) -> None:
        super().__init__(name="cluster-watch", daemon=True)
        self._asked = False
        self._api = api
        self._configured = frozenset(parse_prefix(text) for text in service_cidrs)
        self._services: frozenset[Prefix] = self._configured
        self._endpoints: frozenset[bytes] = frozenset()
        self._wake = wake
        self._log = log
        self._stopping = threading.Event()

    def facts(self) -> ClusterFacts:
        """What is known now. Quick; called by the loop at each pass."""
        return ClusterFacts(self._services, self._endpoints | self._api.peer_addresses(), self._asked)

    def stop(self) -> None:
        """End the thread soon; a request under way is not waited for (it is a daemon)."""
        self._stopping.set()

    def run(self) -> None:
        """Ask now, and again every few minutes; after a failure within seconds."""
        while not self._stopping.is_set():
            pause = random.uniform(*(_EVERY if self._ask() else _RETRY))  # noqa: S311  jitter
            if not self._asked:
                self._asked = True
                self._wake()
            self._stopping.wait(pause)

    def _ask(self) -> bool:
        try:
            ranges, endpoints = list_service_cidrs(self._api), kubernetes_endpoints(self._api)
        except ApiError as error:
            self._log.debug("cluster_facts_not_read", error=error.reason)
            return False
        except Exception:  # the thread's top: without these facts the guard protects less, and the agent goes on
            self._log.exception("cluster_watch_crashed")
            return False
        services = self._configured | parse_each(ranges or (), parse_prefix)
        addresses = parse_each(endpoints, parse_address)
        if (services, addresses) != (self._services, self._endpoints):
            self._services, self._endpoints = services, addresses
            self._log.info("cluster_facts_read", service_cidrs=[*map(str, sorted(services))], api_servers=len(addresses))
            self._wake()
        return True
