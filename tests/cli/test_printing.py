"""Tables fit a terminal, and say what they leave out."""

from dataclasses import dataclass

import pytest

from koopman_interp.cli.printing import WIDTH, fitted, shown
from koopman_interp.results import Result
from koopman_interp.tables import Column, Table


def table(columns, words="edit", caption=""):
    numbers = tuple(Column(f"figure of the kind {index:02}", (f"at {index:02}", "–")) for index in range(columns))
    return Table((Column("method", (words, "base model")), *numbers), caption)


@pytest.mark.parametrize("columns", [2, 5, 9, 20])
@pytest.mark.parametrize("words", ["edit", 30 * "word "])
def test_no_line_is_wider_and_what_is_left_out_is_named(columns, words):
    whole = table(columns, words, 20 * "many words ")
    printed = fitted(whole)
    assert max(map(len, printed.splitlines())) <= WIDTH
    left_out = " ".join(printed.partition("Not shown: ")[2].split())
    named = [f"figure of the kind {index:02}" in left_out for index in range(columns)]
    assert [f"at {index:02}" not in printed for index in range(columns)] == named


def test_what_fits_is_left_as_it_is():
    assert fitted(table(2)) == table(2).text()


@dataclass(frozen=True, repr=False)
class Found(Result):
    whole: Table

    def __repr__(self):
        return 30 * "found "

    def tables(self):
        return [self.whole]

    def notes(self):
        return [30 * "note "]


def test_wide_shows_a_result_as_python_prints_it():
    found = Found(table(20))
    assert shown(found, wide=True) == str(found)
    assert max(map(len, shown(found).splitlines())) <= WIDTH
