"""A kubeconfig, resolved by the kubernetes package: ``python -m pynet.drivers.kubeconfig PATH``, in a child of the agent.

The package costs memory (docs/adr/0001) that the agent should not pay for good. One JSON document goes to
standard output: a pynet.drivers.credentials.Access, exec plug-ins run, files read. What goes wrong is one line on standard
error, and status 1.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import msgspec

from pynet.drivers.credentials import Access


class _Words(logging.Handler):
    """Keeps what the kubernetes package logs: it logs the failure of an exec plug-in, and goes on without credentials."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of ``record``."""
        self.said.append(record.getMessage())


def resolve(path: Path) -> Access:
    """The Access of the current context in ``path``. Raises ValueError, or whatever the kubernetes package raises."""
    from kubernetes.client import Configuration
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    if not path.is_file():
        raise ValueError("not a file" if path.exists() else "no such file")
    words = _Words()
    logging.getLogger().addHandler(words)
    loader = KubeConfigLoader(config_dict=KubeConfigMerger(str(path)).config, config_base_path=None)
    configuration = Configuration()
    loader.load_and_set(configuration)
    if words.said:
        raise ValueError(words.said[-1])
    if configuration.proxy and "proxy" in vars(loader):
        raise ValueError("proxy-url is not supported")
    user = _user(loader)
    token_file = "" if "token" in user else str(user.get("tokenFile", ""))
    return Access(
        server=configuration.host,
        token="" if token_file else _bearer(configuration),
        token_file=str(path.absolute().parent / token_file) if token_file else "",
        ca=_read(configuration.ssl_ca_cert),
        certificate=_read(configuration.cert_file),
        key=_read(configuration.key_file),
        insecure=not configuration.verify_ssl,
        tls_server_name=configuration.tls_server_name or "",
        expires=loader.expiry.timestamp() if "expiry" in vars(loader) else 0.0,
    )


def _user(loader: Any) -> dict[str, Any]:
    """The user entry of the current context: what it names as its files is not kept in the loader's own result."""
    return loader._user.value if loader._user else {}  # noqa: SLF001  the library shows it nowhere else


def _bearer(configuration: Any) -> str:
    authorization: str = configuration.api_key.get("BearerToken", "")
    scheme, _, token = authorization.partition(" ")
    if authorization and scheme != "Bearer":
        raise ValueError("user name and password are not supported (nor by any API server since 1.19)")
    return token.strip()


def _read(path: str | None) -> str:
    return Path(path).read_text(encoding="utf-8") if path else ""


def _words(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not text"
    if isinstance(error, (TypeError, AttributeError, KeyError)):  # a list where the package expects a mapping, or the like
        return "not a kubeconfig: a part of it is not of the shape that it should have"
    return " ".join(str(error).split()) or type(error).__name__


def main() -> int:
    """Print the Access of the kubeconfig named by the first argument."""
    try:
        access = resolve(Path(sys.argv[1]))
    except Exception as error:  # whatever the package or a plug-in raises becomes one line for the operator
        print(_words(error), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(access))
    return 0


if __name__ == "__main__":
    sys.exit(main())
