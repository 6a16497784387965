"""The configuration file: its keys, their defaults, and one line that says what is wrong with one.

The keys are those of docs/reference/configuration.md. Every key is optional; a wrong one is refused with its full name, its
value and what is allowed, because a route agent that guesses what was meant is worse than one that does not start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from pynet.config_rules import RULES, InterfaceChoice, parse_interface

MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger file is a mistake: the longest sensible configuration has a few kilobytes."""


class ConfigError(Exception):
    """What is wrong with the configuration, in one line for the person who wrote it."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One mapping of the file: snake_case fields, camelCase keys."""


class Routes(_Section, frozen=True):
    """How our routes look in the kernel, and what becomes of other people's at the same prefix."""

    protocol: int = 110
    table: int = 254
    metric: int = 100
    metric_buckets: int = 64
    unreachable_local: bool = True
    foreign: Literal["respect", "replace"] = "respect"


class RemovalGuard(_Section, frozen=True):
    """When a removal of many peers at once waits for a second list: more than ``fraction`` and more than ``minimum``."""

    fraction: float = 0.5
    minimum: int = 10


class Masquerade(_Section, frozen=True):
    """Which families' pod traffic to outside the cluster leaves with the node's address, and to where it does not."""

    ipv4: bool = True
    ipv6: bool = True
    except_cidrs: tuple[str, ...] = msgspec.field(default=(), name="exceptCIDRs")
    random_fully: bool = True


class Cni(_Section, frozen=True):
    """The CNI configuration list that we write for the container runtime. ``mtu`` is in bytes."""

    enabled: bool = True
    conf_dir: str = "/etc/cni/net.d"
    conf_name: str = "05-pynet.conflist"
    bin_dir: str = "/opt/cni/bin"
    plugin: Literal["bridge", "ptp"] = "bridge"
    bridge_name: str = "pynet0"
    mtu: int | Literal["auto"] = "auto"
    portmap: bool = True
    bandwidth: bool = True
    ipam_dir: str = "/run/pynet/ipam"


class Sysctls(_Section, frozen=True):
    """Whether forwarding sysctls are ours to keep, and where /proc/sys is writable."""

    manage: bool = True
    root: str = "/proc/sys"


class MetricsListener(_Section, frozen=True):
    """Where /metrics is served: "node" is the InternalIP, "" every address."""

    address: str = "node"
    port: int = 9793


class HealthListener(_Section, frozen=True):
    """Where /livez, /readyz and /status are served: loopback, since /status shows the topology."""

    address: str = "127.0.0.1"
    port: int = 9794


class Config(_Section, frozen=True):
    """The whole configuration. CIDRs are text, checked: core.addresses.parse_prefix accepts each. See :func:`load`."""

    cluster_cidrs: tuple[str, ...] = msgspec.field(default=(), name="clusterCIDRs")
    service_cidrs: tuple[str, ...] = msgspec.field(default=(), name="serviceCIDRs")
    interface: str = "auto"
    routes: Routes = Routes()
    removal_guard: RemovalGuard = RemovalGuard()
    masquerade: Masquerade = Masquerade()
    forward: Literal["auto", "always", "never"] = "auto"
    cni: Cni = Cni()
    sysctls: Sysctls = Sysctls()
    network_unavailable: bool = True
    state_dir: str = "/var/lib/pynet"
    run_dir: str = "/run/pynet"
    metrics: MetricsListener = MetricsListener()
    health: HealthListener = HealthListener()
    resync_seconds: int = 30

    @property
    def interface_choice(self) -> InterfaceChoice:
        """``interface``, parsed."""
        return parse_interface(self.interface)


def load(path: str | None) -> Config:
    """Read the configuration file at ``path``; the defaults if there is none (None) or it is empty.

    Raises ConfigError, one line: the file, the key, the value and what is allowed.
    """
    if path is None:
        return Config()
    if not path:
        raise ConfigError("--config is empty; allowed: a file's name")
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{_show(path)[1:-1]}: cannot be read: {reason}") from None
    try:
        return parse(content)
    except ConfigError as error:
        raise ConfigError(f"{_show(path)[1:-1]}: {error}") from None


def parse(content: bytes) -> Config:
    """Parse a configuration file's bytes. Raises ConfigError as :func:`load` does, without the file's name."""
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"the file is larger than {MAX_FILE_BYTES} bytes")
    from pynet.config_yaml import read_yaml  # PyYAML costs 3 MB: only where a file is given

    try:
        data = read_yaml(content)
    except ValueError as error:
        raise ConfigError(_one_line(str(error))) from None
    config: Config = _build(Config, {} if data is None else data, "")
    _check_together(config)
    return config


def _build(section: type[Any], data: object, where: str) -> Any:
    """Make one section of ``data``; ``where`` is its key with a trailing dot, "" for the whole file."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(section)}
    if not isinstance(data, dict):
        name = where.rstrip(".") or "the file"
        raise ConfigError(f"{name} is {_show(data)}; allowed: a mapping of {', '.join(fields)}")
    values = {}
    for key, value in data.items():
        field = fields.get(key) if isinstance(key, str) else None
        if field is None:
            name = where + (_show(key)[1:-1] if isinstance(key, str) else _show(key))
            raise ConfigError(f"{name} is not a known key (its value: {_show(value)}); allowed: {', '.join(fields)}")
        if isinstance(field.type, type) and issubclass(field.type, _Section):
            values[field.name] = _build(field.type, value, f"{where}{key}.")
        else:
            values[field.name] = _value(where + key, field.type, value)
    return section(**values)


def _value(key: str, kind: Any, value: object) -> object:
    """One checked value. Raises ConfigError with the key, the value and what is allowed."""
    rule = RULES.get(key)
    try:
        converted: object = msgspec.convert(value, kind)
        if rule is not None:
            rule.check(converted)
    except (msgspec.ValidationError, ValueError) as error:
        # msgspec's words are about types, and the allowed values say those better.
        why = "" if isinstance(error, msgspec.ValidationError) or not str(error) else f" ({error})"
        raise ConfigError(_one_line(f"{key} is {_show(value)}{why}; allowed: {allowed(key, kind)}")) from None
    return converted


def allowed(key: str, kind: Any) -> str:
    """What a key may be, in words; ``kind`` is the type of its field."""
    if key in RULES:
        return RULES[key].words
    if kind is bool:
        return "true or false"
    return ", ".join(str(value) for value in kind.__args__)  # what is left are Literals


def _check_together(config: Config) -> None:
    """What no key can tell alone. Raises ConfigError."""
    routes = config.routes
    if routes.metric + routes.metric_buckets >= 256:
        raise ConfigError(
            f"routes.metric is {routes.metric} and routes.metricBuckets is {routes.metric_buckets}; allowed: a sum below 256,"
            " the metric of the bridge's own IPv6 route"
        )
    if config.metrics.port == config.health.port:
        raise ConfigError(f"health.port is {config.health.port}, as is metrics.port; allowed: two different ports")


def _show(value: object) -> str:
    """A value of the file as a person wrote it, more or less, and short."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):  # the whole may be a megabyte
        return "a mapping" if isinstance(value, dict) else "a list" if len(value) > 8 else f"[{', '.join(map(_show, value))}]"
    text = repr(value) if isinstance(value, str | int | float) else f"'{value}'"
    return text if len(text) <= 80 else f"{text[:60]}...{text[-1]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
