"""Before the first test: what takes minutes on a new machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import chart

if TYPE_CHECKING:
    import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build helm, which the tests of the chart run: no test's time limit is made for that."""
    charts = any(item.path.name.startswith("test_chart") for item in session.items)
    if charts and not session.config.option.collectonly:
        chart.helm()
