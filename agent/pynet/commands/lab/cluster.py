"""A real cluster's API for a lab: Nodes deleted from outside, and a relay that the lab's agents reach inside their network.

A lab has no way out of its namespaces. The relay listens in the hub's namespace and connects from the host's, as the
kubeconfig says; inside it is plain HTTP, which only this machine's root can reach. Run as
``python -m pynet.commands.lab.cluster KUBECONFIG NAMESPACE ADDRESS PORT``.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from urllib.parse import quote

from pynet.commands.lab import namespaces
from pynet.commands.lab.apiserver import NODES
from pynet.commands.lab.plan import LAB_LABEL, LabError
from pynet.drivers.credentials import from_kubeconfig
from pynet.drivers.kube import Api, ApiError

HOP_BY_HOP: Final = frozenset(("connection", "transfer-encoding", "content-length", "host", "keep-alive"))
"""Headers that are about one connection (RFC 9110, section 7.6.1), and those that each side makes itself."""


class Upstream(NamedTuple):
    """The cluster: its URL, a urllib3 pool with its TLS settings, and the kubernetes package's configuration."""

    url: str
    pool: Any
    configuration: Any

    def authorisation(self) -> dict[str, str]:
        """Return the header that says who we are, refreshed if need be; none where a client certificate does."""
        token = self.configuration.auth_settings().get("BearerToken", {}).get("value")
        return {"Authorization": token} if token else {}


def check(kubeconfig: str) -> None:
    """Ask the cluster for a Node: what is wrong is better said before anything is made. Raises LabError."""
    try:
        Api(from_kubeconfig(Path(kubeconfig))).get_json(f"{NODES}?limit=1")
    except ApiError as error:
        why = f"the cluster says {error}" if error.status else str(error).removeprefix(f"{kubeconfig}: ")
        raise LabError(f"the kubeconfig {kubeconfig} is of no use: {why}") from None


def connect(kubeconfig: str) -> Upstream:
    """Read a kubeconfig (exec plug-ins included). Raises LabError."""
    from kubernetes import client, config

    try:
        configuration = client.Configuration()
        config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    except Exception as error:  # for a file of another shape the package raises whatever comes
        raise LabError(f"the kubeconfig {kubeconfig} is of no use: {' '.join(str(error).split())}") from error
    pool = client.ApiClient(configuration).rest_client.pool_manager
    return Upstream(configuration.host.rstrip("/"), pool, configuration)


def delete_nodes(kubeconfig: str, token: str) -> list[str]:
    """Delete the Nodes that carry a lab's token from a real cluster, and no others. Return what went wrong, a line each."""
    from urllib3.exceptions import HTTPError

    try:
        upstream = connect(kubeconfig)
        url = f"{upstream.url}{NODES}?labelSelector={quote(f'{LAB_LABEL}={token}', safe='')}"
        answer = upstream.pool.request("DELETE", url, headers=upstream.authorisation(), timeout=10.0, retries=False)
    except (LabError, HTTPError) as error:
        return [f"the lab's Nodes in the cluster: {error}"]
    return [] if answer.status in (200, 202) else [f"the lab's Nodes: the cluster says {answer.status} {answer.reason}"]


class Relay(ThreadingHTTPServer):
    """The relay's server."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: Upstream, address: tuple[str, int]) -> None:
        self.upstream = upstream
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Exchange)

    def server_bind(self) -> None:
        """Bind without looking up the host's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Exchange(BaseHTTPRequestHandler):
    """One connection: each request is sent on with our credentials, each answer sent back as it arrives."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _relay(self) -> None:
        from urllib3.exceptions import HTTPError

        upstream = cast("Relay", self.server).upstream
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        headers = {key: value for key, value in self.headers.items() if key.lower() not in HOP_BY_HOP}
        try:
            answer = upstream.pool.request(
                self.command,
                upstream.url + self.path,
                body=body,
                headers={**headers, **upstream.authorisation()},
                preload_content=False,
                decode_content=False,
                retries=False,
            )
        except HTTPError as error:
            return self.send_error(502, "the cluster does not answer", str(error))
        try:
            self._send_back(answer)
        finally:
            answer.release_conn()
        return None

    def _send_back(self, answer: Any) -> None:
        self.send_response(answer.status)
        for key, value in answer.headers.items():
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the agent has gone
            for part in _parts(answer):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _relay  # noqa: N815 (http.server names them)


def _parts(answer: Any) -> Iterator[bytes]:
    """Yield what has arrived, as it arrives: an event of a watch must not wait until a buffer is full."""
    while part := answer.read1(65536):
        yield part


def main(arguments: list[str]) -> int:
    """Relay until the process is ended; 1 if the kubeconfig is of no use."""
    kubeconfig, namespace, address, port = arguments
    try:
        upstream = connect(kubeconfig)
        server = namespaces.enter(namespace, lambda: Relay(upstream, (address, int(port))))
    except LabError as error:
        print(f"pynet lab: {error}", file=sys.stderr)
        return 1
    with server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
