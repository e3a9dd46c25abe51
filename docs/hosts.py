"""Write docs/hosts.md from the tests' own table of situations: python docs/hosts.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Write the page."""
    sys.path.insert(0, str(ROOT))
    situations = importlib.import_module("tests.hosts.situations")
    for name in situations.MODULES:
        importlib.import_module(name)
    (ROOT / "docs" / "hosts.md").write_text(situations.page(), encoding="utf-8")


if __name__ == "__main__":
    main()
