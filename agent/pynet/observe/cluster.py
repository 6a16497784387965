"""Rare objects that tell the guard what to protect: Service ranges, and where the API server really is."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from pynet.drivers.kube import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pynet.drivers.kube import Api

T = TypeVar("T")

SERVICE_CIDRS: Final = "/apis/networking.k8s.io/v1/servicecidrs"
KUBERNETES_ENDPOINTS: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
_ABSENT: Final = frozenset((403, 404))


class _Spec(msgspec.Struct):
    cidrs: list[str] = []


class _ServiceCidr(msgspec.Struct):
    spec: _Spec = msgspec.field(default_factory=_Spec)


class _ServiceCidrs(msgspec.Struct):
    items: list[_ServiceCidr] | None = None


class _Endpoint(msgspec.Struct):
    addresses: list[str] = []


class _EndpointSlice(msgspec.Struct):
    endpoints: list[_Endpoint] | None = None


def parse_each(texts: Iterable[str], parse: Callable[[str], T]) -> frozenset[T]:
    """What can be parsed of ``texts``: one that cannot protects nothing, and must not cost us the others."""
    found = set()
    for text in texts:
        with contextlib.suppress(ValueError):
            found.add(parse(text))
    return frozenset(found)


def list_service_cidrs(api: Api) -> list[str] | None:
    """The Service ranges of the cluster, as text; None where the API has no such objects (before 1.33) or does not show them.

    Raises ApiError for anything else.
    """
    answer = _get(api, SERVICE_CIDRS, _ServiceCidrs)
    return None if answer is None else [cidr for item in answer.items or () for cidr in item.spec.cidrs]


def kubernetes_endpoints(api: Api) -> list[str]:
    """The API servers' own addresses, as text, from the EndpointSlice default/kubernetes; [] where we may not see it.

    Raises ApiError for anything else.
    """
    answer = _get(api, KUBERNETES_ENDPOINTS, _EndpointSlice)
    return [] if answer is None else [address for endpoint in answer.endpoints or () for address in endpoint.addresses]


def _get(api: Api, path: str, kind: type[T]) -> T | None:
    try:
        return msgspec.convert(api.get_json(path), kind)
    except ApiError as error:
        if error.status in _ABSENT:
            return None
        raise
    except msgspec.ValidationError as error:
        raise ApiError(0, f"{path}: {error}", code="broken") from None
