"""What pages quote from benchmarks stands in benchmarks/RESULTS.md: who measures anew is told where else to write."""

import re

import pytest

from tests.pages import ROOT

QUOTING = {
    "README.md": "## What was measured",
    "docs/limits.md": "# Limits",
    "docs/questions.md": "**How long does a fit take?**",
    "docs/how-to/which-tool.md": "# Choose a tool",
    "docs/how-to/sites-and-sizes.md": "## Sizes",
}
"""Pages, and the words from which their decimals are measurements."""
FIGURE = re.compile(r"(?<![\w./])\d*\.\d+(?:e[+-]\d+)?(?![\w/]|\.\d)")


def figures(text):
    """Decimals outside of code, by value; versions and addresses are none."""
    return {float(figure) for figure in FIGURE.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))}


@pytest.mark.parametrize("page", QUOTING)
def test_figures_of_a_page_stand_in_the_results(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    quoted = figures(text[text.index(QUOTING[page]) :])
    measured = figures((ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"))
    assert quoted
    assert not quoted - measured


def test_what_counts_as_a_figure():
    assert figures("98.69 %, (.017), 1.7e-02; 0.5.0, v4.3x, a/2.5 ```3.5``` 2.5.") == {98.69, 0.017, 2.5}
