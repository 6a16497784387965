"""Fixtures for tests on the real kernel. Where it cannot be had they fail; PYNET_ALLOW_SKIP=1 outside CI makes them skip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.lacking import fail_or_skip
from tests.support.netns import Lan, Namespace, lan, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _real_kernel() -> None:
    fail_or_skip(why_not())


@pytest.fixture
def netns() -> Iterator[Namespace]:
    """One network namespace with ``lo`` up."""
    with Namespace() as namespace:
        yield namespace


@pytest.fixture
def lan3() -> Iterator[Lan]:
    """Three nodes on one Ethernet, both families."""
    with lan(3) as nodes:
        yield nodes
