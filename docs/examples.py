"""Run the examples of the pages, and keep what they print: python docs/examples.py [page …]

The blocks of a page are one program, run from its top. A block of text below the mark `<!-- printed -->` is what the
blocks between the mark before it and this one printed: it is written here, so that no page shows what its own code does
not print.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))

_PART = re.compile(
    r"^```python\n(?P<code>.*?)^```$|(?<=^<!-- printed -->\n```text\n)(?P<printed>.*?)(?=^```$)",
    re.DOTALL | re.MULTILINE,
)


def blocks(text: str) -> list[str]:
    """Return the blocks of Python in a page, in order."""
    return [part["code"] for part in _PART.finditer(text) if part["code"] is not None]


def prints(text: str) -> list[str]:
    """Return what a page says is printed, in order."""
    return [part["printed"] for part in _PART.finditer(text) if part["printed"] is not None]


def run(
    page: Path, folder: str | os.PathLike[str], smaller: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Run a page's blocks, top to bottom, in a folder of their own.

    Args:
        page: the page.
        folder: what they write goes here.
        smaller: pieces of code to be run as others: sizes, for tests.

    Returns:
        What was printed above each mark, and the names that the program defines.

    Raises:
        ValueError: a piece to be replaced stands nowhere on the page.
    """
    text = page.read_text(encoding="utf-8")
    left = {large for large in smaller or {} if not any(large in code for code in blocks(text))}
    if left:
        raise ValueError(f"{page.name} has nowhere: {', '.join(sorted(left))}.")
    printed: list[str] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    said = StringIO()
    with chdir(folder), redirect_stdout(said):
        for part in _PART.finditer(text):
            if part["code"] is None:
                printed.append(shown(said.getvalue()))
                said.seek(0)
                said.truncate()
                continue
            code = part["code"]
            for large, small in (smaller or {}).items():
                code = code.replace(large, small)
            # Tracebacks then name the line of the page.
            exec(compile("\n" * text[: part.start("code")].count("\n") + code, str(page), "exec"), names)
    return printed, names


def filled(text: str, printed: Iterable[str]) -> str:
    """Put what was printed below the marks of a page."""
    new = iter(printed)
    return _PART.sub(lambda part: next(new) if part["code"] is None else part[0], text)


def shown(text: str, width: int = 96) -> str:
    """Break sentences to the width of a page; the lines of tables, which have gaps, stay."""
    lines = (line.rstrip() for line in text.strip().splitlines())
    prose = re.compile(r"(?!.*\S {2,}\S)")
    return "\n".join(fill(line, width) if line and prose.match(line) else line for line in lines) + "\n"


def main(arguments: list[str]) -> None:
    """Run the pages named, or all that show what they print, and write into them what they printed."""
    for page in [ROOT / "docs" / name for name in arguments] or PAGES:
        text = page.read_text(encoding="utf-8")
        if not prints(text):
            continue
        with tempfile.TemporaryDirectory() as folder:
            printed, _ = run(page, folder)
        page.write_text(filled(text, printed), encoding="utf-8")
        sys.stderr.write(f"{page.relative_to(ROOT)}: {len(printed)} printed\n")


if __name__ == "__main__":
    main(sys.argv[1:])
