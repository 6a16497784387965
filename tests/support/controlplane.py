"""A real control plane for tests and benchmarks: etcd and kube-apiserver, in a network namespace.

The programs come from go-binaries.sh. The API server can be stopped, killed and started again while etcd keeps its data, and
etcd can be compacted under it. Every process is ended in close(), and dies with this one whatever happens.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.support.apiclient import ApiClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.netns import Namespace

SUPPORT = Path(__file__).parent
PORT = 6443
_ETCD = "http://127.0.0.1:2379"
_READY_SECONDS = 60
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650")

# What agents may do. As narrow as the chart's ClusterRole, so that a right that the agent misses is missed here too.
AGENT_RULES: tuple[dict[str, Any], ...] = (
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
)
SYSTEM = "/api/v1/namespaces/kube-system"
ROLES = "/apis/rbac.authorization.k8s.io/v1"


def binaries(*names: str) -> dict[str, Path]:
    """Paths of these programs of go-binaries.txt, built if they are not there yet (progress on stderr)."""
    run = subprocess.run([SUPPORT / "go-binaries.sh", *names], stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(names, map(Path, run.stdout.split()), strict=True))


class ControlPlane:
    """etcd and kube-apiserver in network namespace ``namespace``, serving on ``address`` (must be there) and on its loopback.

    Its certificate names the addresses ``also`` too. ``folder`` takes data, keys and logs. ``client`` is an ApiClient of an
    administrator. Not thread-safe; the processes die with the thread that started them, so start it from the main thread.
    """

    def __init__(
        self,
        folder: Path,
        namespace: Namespace,
        address: str,
        *,
        also: Sequence[str] = (),
        service_cidrs: str = "10.96.0.0/16",
        flags: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.namespace = namespace
        self.address = address
        self.service_cidrs = service_cidrs
        self.flags = list(flags)
        self.ca_file = folder / "ca.crt"
        self._admin = secrets.token_hex(16)
        self._paths = binaries("etcd", "kube-apiserver")
        self._etcd: subprocess.Popen[bytes] | None = None
        self._apiserver: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        _make_keys(folder, [address, *also, "127.0.0.1", _first_service_address(service_cidrs)])
        (folder / "tokens.csv").write_text(f'{self._admin},admin,admin,"system:masters"\n')
        self.client = ApiClient(namespace, address, PORT, token=self._admin, ca_file=self.ca_file)

    def __enter__(self) -> Self:
        try:
            self.start_etcd()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where agents in other namespaces find the API server."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{PORT}"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of what runs."""
        running = {"etcd": self._etcd, "kube-apiserver": self._apiserver}
        return {name: process.pid for name, process in running.items() if process}

    def start_etcd(self) -> None:
        """Start etcd; the API server waits for it by itself."""
        # Durability is for people who keep their clusters: without fsync a Node is written in a tenth of the time.
        self._etcd = self._spawn(
            "etcd",
            *("--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync", "--snapshot-count=1000000", "--log-level=warn"),
            *("--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD, "--listen-peer-urls", "http://127.0.0.1:2380"),
            # As kubeadm has it: without, a watch of a quiet cluster gets no bookmarks.
            *("--quota-backend-bytes=4294967296", "--watch-progress-notify-interval=5s"),
        )

    def start(self, *, wait: bool = True) -> None:
        """Start the API server, and wait until it is ready."""
        keys = self.folder
        self._apiserver = self._spawn(
            "kube-apiserver",
            *("--etcd-servers", _ETCD, "--secure-port", str(PORT), "--advertise-address", self.address),
            *("--tls-cert-file", f"{keys}/server.crt", "--tls-private-key-file", f"{keys}/server.key"),
            *("--token-auth-file", f"{keys}/tokens.csv", "--authorization-mode", "RBAC"),
            *("--service-cluster-ip-range", self.service_cidrs),
            *("--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", f"{keys}/sa.key"),
            *("--service-account-signing-key-file", f"{keys}/sa.key", "--cert-dir", str(keys)),
            *("--profiling=false", "--shutdown-delay-duration=0s"),
            # Half of the start is for these, and no test asks for them.
            *("--disable-admission-plugins", "ServiceAccount,DefaultIngressClass,RuntimeClass,StorageObjectInUseProtection"),
            *self.flags,
        )
        if wait:
            self.await_ready()

    def await_ready(self, seconds: float = _READY_SECONDS) -> None:
        """Wait until /readyz says ok. Raises TimeoutError or (if it has exited) RuntimeError, with its log's end."""
        deadline = time.monotonic() + seconds
        words = "no answer"
        while time.monotonic() < deadline:
            if self._apiserver is not None and self._apiserver.poll() is not None:
                raise RuntimeError(f"kube-apiserver exited with {self._apiserver.returncode}: {self._log_end()}")
            try:
                status, data = self.client.raw("GET", "/readyz")
                if status == 200:
                    return
                words = data.decode(errors="replace")[-300:]
            except OSError as error:
                words = str(error)
            time.sleep(0.02)
        raise TimeoutError(f"kube-apiserver not ready after {seconds} s ({words}): {self._log_end()}")

    def stop(self, *, seconds: float = 15) -> None:
        """Stop the API server in order (SIGTERM): it ends its watches. Killed if it takes longer than ``seconds``."""
        self._end("_apiserver", signal.SIGTERM, seconds)

    def kill(self) -> None:
        """Kill the API server (SIGKILL)."""
        self._end("_apiserver", signal.SIGKILL, 5)

    def freeze(self) -> None:
        """Stop the API server from answering, connections left open (SIGSTOP)."""
        assert self._apiserver
        self._apiserver.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen API server go on."""
        assert self._apiserver
        self._apiserver.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End everything."""
        self.client.close()
        self._end("_apiserver", signal.SIGKILL, 5)
        self._end("_etcd", signal.SIGKILL, 5)

    def compact(self) -> int:
        """Compact etcd to its newest revision, which is returned: older ones are gone (410), once the API server restarts."""
        revision = int(self._etcd_call("/v3/maintenance/status", {})["header"]["revision"])
        self._etcd_call("/v3/kv/compaction", {"revision": revision, "physical": True})
        return revision

    def service_account(self, name: str = "pynet", rules: Sequence[dict[str, Any]] = AGENT_RULES) -> None:
        """Make ServiceAccount ``name`` of kube-system with these cluster-wide rights."""
        client = self.client
        client.ensure(f"{SYSTEM}/serviceaccounts", {"metadata": {"name": name}})
        client.ensure(f"{ROLES}/clusterroles", {"metadata": {"name": name}, "rules": list(rules)})
        client.ensure(f"{ROLES}/clusterrolebindings", self._binding(name))

    def grant(self, name: str = "pynet") -> None:
        """Bind the ServiceAccount to its ClusterRole again."""
        self.client.ensure(f"{ROLES}/clusterrolebindings", self._binding(name))

    def revoke(self, name: str = "pynet") -> None:
        """Take the ServiceAccount's rights away: its requests get 403."""
        self.client.delete(f"{ROLES}/clusterrolebindings/{name}", absent_is_fine=True)

    def token(self, name: str = "pynet", seconds: int = 3600) -> str:
        """A new token of the ServiceAccount, by TokenRequest (no shorter than 600 s)."""
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": seconds}}
        return str(self.client.create(f"{SYSTEM}/serviceaccounts/{name}/token", body)["status"]["token"])

    def invalidate_tokens(self, name: str = "pynet") -> None:
        """Make every token of the ServiceAccount invalid (401), by making the account anew: tokens name its UID."""
        self.client.delete(f"{SYSTEM}/serviceaccounts/{name}")
        self.client.create(f"{SYSTEM}/serviceaccounts", {"metadata": {"name": name}})

    def other_ca(self, path: Path) -> None:
        """Write the certificate of a CA that has signed nothing here."""
        _openssl(self.folder, "req", "-x509", *_NEW_KEY, "-subj", "/CN=other-ca", "-keyout", "other.key", "-out", str(path))

    def _binding(self, name: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}],
        }

    def _spawn(self, name: str, *args: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = ("setpriv", "--pdeathsig", "KILL", str(self._paths[name]), *args)
            return self.namespace.popen(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _end(self, attribute: str, how: signal.Signals, seconds: float) -> None:
        process: subprocess.Popen[bytes] | None = getattr(self, attribute)
        if process is None:
            return
        setattr(self, attribute, None)
        process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)

    def _etcd_call(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(_ETCD + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with self.namespace.entered(), urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def _log_end(self) -> str:
        return "\n" + "\n".join((self.folder / "kube-apiserver.log").read_text(errors="replace").splitlines()[-15:])


def _first_service_address(cidrs: str) -> str:
    return str(ipaddress.ip_network(cidrs.split(",", maxsplit=1)[0])[1])


def _make_keys(folder: Path, addresses: Sequence[str]) -> None:
    """A CA, a server certificate for these addresses, and a key for ServiceAccount tokens (EC: made in milliseconds)."""
    _openssl(folder, "req", "-x509", *_NEW_KEY, "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.crt")
    names = ",".join([*(f"IP:{a}" for a in addresses), "DNS:localhost", "DNS:kubernetes.default.svc"])
    _openssl(
        *(folder, "req", "-x509", *_NEW_KEY, "-subj", "/CN=kube-apiserver", "-CA", "ca.crt", "-CAkey", "ca.key"),
        *("-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", "server.key", "-out", "server.crt"),
    )
    _openssl(folder, "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", "sa.key")


def _openssl(folder: Path, *args: str) -> None:
    run = subprocess.run(["openssl", *args], cwd=folder, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"openssl {args[0]} failed: {run.stderr.strip()}")
