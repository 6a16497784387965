"""Check the Markdown files: every relative link and every `path/of/the/repository` that they name is there.

Prints one line for each that is not; exit status 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")
PATH = re.compile(r"`((?:agent|docs|tests|scripts|requirements|benchmarks|deploy|helm)/[\w./-]*)`")


def missing(page: Path) -> Iterator[str]:
    """Yield what ``page`` names and is not there."""
    text = page.read_text()
    for target in LINK.findall(text):
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
            yield f"link to {target}"
    for named in PATH.findall(text):
        if not (ROOT / named).exists():
            yield f"path {named}"


def main() -> int:
    """Check all tracked pages."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = [ROOT / name for name in listed.stdout.split()]
    wrong = [f"{page.relative_to(ROOT)}: {words} is not there" for page in pages for words in missing(page)]
    print("\n".join(wrong) or f"{len(pages)} pages: every link and path is there")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
