"""Where the API server is, and what we show it: service account, token files or kubeconfig, read again as they rotate."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REREAD: Final = 60.0
"""Seconds after which token and CA files are read again: kubelet rotates them in place."""
_CHILD_TIMEOUT: Final = 60.0  # an exec plug-in may ask somebody far away
_CHILD_PAUSE: Final = 10.0  # a 401 that no new credentials can mend must not start one child after another
_EXPIRY_MARGIN: Final = 10.0
_WORDS: Final = 400  # characters of a child's last words


class CredentialsError(Exception):
    """No way to the API server: what is missing or wrong, in one line, without anything secret."""


class Access(msgspec.Struct, frozen=True, rename="camel"):
    """A server and what to show it. Certificates and keys are PEM text.

    ``token_file`` names the file that ``token`` came from, if it is to be read again; ``expires`` is in seconds since the
    epoch, 0 for never; ``reread`` the seconds after which all this is to be loaded again, 0 for never.
    """

    server: str
    token: str = ""
    token_file: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    insecure: bool = False
    tls_server_name: str = ""
    expires: float = 0.0
    reread: float = 0.0

    def __repr__(self) -> str:
        """Only what may stand in a log."""
        return f"Access(server={self.server!r})"

    def connection(self) -> Access:
        """Self without what each request carries anew: connections made for an equal one may go on being used."""
        return msgspec.structs.replace(self, token="", token_file="", expires=0.0, reread=0.0)

    def expired(self, now: float) -> bool:
        """True from shortly before ``expires``; ``now`` in seconds since the epoch."""
        return bool(self.expires) and now > self.expires - _EXPIRY_MARGIN


class Credentials:
    """The current Access, loaded again when it is due. Safe to use from several threads.

    ``load`` returns a whole Access or raises CredentialsError. Once there was one, a failure to load leaves the last good
    one in use and its words in ``error``. ``pause`` is the least time in seconds between two loads.
    """

    def __init__(self, load: Callable[[], Access], *, pause: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.error = ""
        self._load = load
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._access: Access | None = None
        self._loaded = 0.0

    def current(self) -> Access:
        """The Access to use now. Raises CredentialsError if there never was one."""
        with self._lock:
            access = self._access
            if access is None:
                return self._reload(None)
            age = self._clock() - self._loaded
            due = (access.reread and age >= access.reread) or access.expired(time.time())
            return self._reload(access) if due and age >= self._pause else access

    def refresh(self, refused: Access) -> Access:
        """What to use instead of ``refused``, which the server answered with 401; equal to it if there is nothing newer."""
        with self._lock:
            if self._access is not None and self._access != refused:
                return self._access  # another thread was here first
            if self._clock() - self._loaded < self._pause:
                return refused
            return self._reload(self._access)

    def _reload(self, last: Access | None) -> Access:
        self._loaded = self._clock()
        try:
            self._access = self._load()
        except CredentialsError as error:
            self.error = str(error)
            if last is None:
                raise
            return last
        self.error = ""
        return self._access


def in_cluster(*, server: str = "", folder: Path = SERVICE_ACCOUNT) -> Credentials:
    """The service account of this pod; ``server`` goes before the address in the pod's environment. Raises CredentialsError."""
    if not server:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise CredentialsError(
                "no way to the API server: not in a pod (KUBERNETES_SERVICE_HOST is not set); "
                "give --kubeconfig FILE, or --api-server URL with --token-file and --ca-file"
            )
        server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return from_token_files(server, folder / "token", folder / "ca.crt")


def from_token_files(server: str, token_file: Path | None = None, ca_file: Path | None = None) -> Credentials:
    """A server by its URL, with a bearer token and a CA from files.

    Without ``token_file`` we are anonymous, without ``ca_file`` the system's CAs decide. The files are read again every 60 s
    and after a 401. Raises CredentialsError for a bad URL.
    """
    url = checked_url(server)

    def load() -> Access:
        return Access(
            server=url,
            token=_read_token(token_file) if token_file else "",
            token_file=str(token_file or ""),
            ca=_read_ca(ca_file) if ca_file and url.startswith("https:") else "",
            reread=REREAD,
        )

    return Credentials(load)


def from_kubeconfig(path: Path, *, scratch: Path | None = None) -> Credentials:
    """The current context of a kubeconfig, resolved by a short-lived child process (pynet.drivers.kubeconfig).

    The child runs at the start, at the expiry that an exec plug-in names, and after a 401. A tokenFile is read again as
    from_token_files does. ``scratch`` is a folder for the child's temporary files.
    """
    resolved: list[Access] = []

    def load() -> Access:
        if resolved and resolved[0].token_file:
            return msgspec.structs.replace(resolved[0], token=_read_token(Path(resolved[0].token_file)))
        access = _resolve(path, scratch)
        if access.token_file:
            access = msgspec.structs.replace(access, token=_read_token(Path(access.token_file)), reread=REREAD)
        resolved[:] = [access]
        return access

    return Credentials(load, pause=_CHILD_PAUSE)


def checked_url(server: str) -> str:
    """``server`` without a trailing slash. Raises CredentialsError unless it is an http or https URL of a host."""
    try:
        parts = urlsplit(server)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username:
        raise CredentialsError(f"API server {server!r}: want http(s)://HOST[:PORT][/PATH], an IPv6 address in brackets")
    return server.rstrip("/")


def _read(what: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise CredentialsError(f"{what} {path}: {why}") from None


def _read_token(path: Path) -> str:
    return _checked_token(_read("token file", path).strip(), f"token file {path}")


def _read_ca(path: Path) -> str:
    """The CA's text. OpenSSL does not say which file was wrong."""
    text = _read("CA file", path)
    if "-----BEGIN " not in text:
        raise CredentialsError(f"CA file {path}: no certificate in PEM")
    return text


def _checked_token(token: str, where: str) -> str:
    """``token`` if an HTTP header can carry it: http.client would print it in its error otherwise."""
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CredentialsError(f"{where}: the token has characters that no HTTP header may carry")
    if not token:
        raise CredentialsError(f"{where}: the token is empty")
    return token


def _resolve(path: Path, scratch: Path | None) -> Access:
    """Run the child and read what it prints."""
    environment = {**os.environ, "TMPDIR": str(scratch)} if scratch else None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pynet.drivers.kubeconfig", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CHILD_TIMEOUT,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CredentialsError(f"{path}: not resolved within {_CHILD_TIMEOUT:.0f} s (does an exec plug-in hang?)") from None
    except OSError as error:
        raise CredentialsError(f"{path}: {sys.executable}: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise CredentialsError(f"{path}: {lines[-1][:_WORDS]}")
    try:
        access = msgspec.json.decode(done.stdout, type=Access)
    except msgspec.DecodeError:
        raise CredentialsError(f"{path}: the child process printed something else than its one document") from None
    if access.token:
        _checked_token(access.token, str(path))
    return msgspec.structs.replace(access, server=checked_url(access.server))
