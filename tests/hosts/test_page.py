"""docs/hosts.md is what the tests show, no more and no less."""

import importlib
from pathlib import Path

from tests.hosts.situations import MODULES, SITUATIONS, page

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"


def test_the_page_is_made_of_the_tests():
    for name in MODULES:
        importlib.import_module(name)
    assert PAGE.read_text(encoding="utf-8") == page(), "Write it anew: python docs/hosts.py"


def test_each_row_names_a_test_that_exists():
    for situation in SITUATIONS:
        file, name = situation.test.split("::")
        assert f"def {name}(" in (PAGE.parents[1] / file).read_text(encoding="utf-8")
