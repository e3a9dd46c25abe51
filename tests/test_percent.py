"""Per cent is written one way, in the package, in what it prints, on its pages and in its tutorials: 97.5 %."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(
    path
    for folder in ("koopman_interp", "integrations", "benchmarks", "tutorials")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "tutorials" / "notebooks").glob("*.ipynb"))

CLOSE = re.compile(r"\d%(?![\da-fA-F]{2}|\w)")
"""A number with the sign close behind it, and neither an escaped byte of an address nor a format of old."""

FORMATS = re.compile(rf"{CLOSE.pattern}|\{{[^{{}}]*:[^{{}}]*%\}}|%%")
"""The same, and the formats that would write it."""

STYLE_SHEETS = {"look.py"}
"""Where 100% is a length."""


def written_close(tree):
    """Lines whose texts have, or make by a format, a number with the sign close behind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            form = "".join(part.value for part in node.format_spec.values if isinstance(part, ast.Constant))
            if form.endswith("%"):
                yield node.lineno
        elif isinstance(node, ast.Constant) and FORMATS.search(str(node.value)):
            yield node.lineno


def test_what_is_looked_for_is_found():
    written = 'f"{share:.1%}"\n"{:.1%}".format(1)\n"97%"\n"%.1f%%" % 1\n"97 %"\nf"{share} %"\n"a%20b"\n"%d" % 1\n'
    assert {*written_close(ast.parse(written))} == {1, 2, 3, 4}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_leaves_a_blank_before_the_sign(path):
    if path.name not in STYLE_SHEETS:
        assert [*written_close(ast.parse(path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_leave_a_blank_before_the_sign(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if CLOSE.search(line) and "://" not in line] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_leave_a_blank_before_the_sign(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    for output in (output for cell in cells for output in cell.get("outputs", ())):
        held = [output.get("text", ""), *(output.get("data", {}).get(f"text/{kind}", "") for kind in ("plain", "html"))]
        texts += ["".join(text) for text in held]
    assert [line for text in texts for line in text.splitlines() if CLOSE.search(line)] == []
