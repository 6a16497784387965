"""The commands of docs/guides/install.md, for tests that do literally what it says."""

from __future__ import annotations

import re

from tests.e2e.cluster import REPOSITORY

GUIDE = REPOSITORY / "docs" / "guides" / "install.md"


def commands(heading: str) -> list[str]:
    """The commands of a section, in their order; one that goes on over several lines is one."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"{GUIDE} has no section {heading}"
    return re.findall(r"^    (\S.*)$", section[1].replace("\\\n", ""), re.MULTILINE)
