"""Tables line up, and their text, HTML and data frame are looks of the same columns."""

import math
import re
from dataclasses import dataclass
from html import unescape

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koopman_interp.tables import NOTHING, Column, Table, columns_of, digits, number, percent, percents, table


def test_the_first_column_is_flush_left_and_the_others_flush_right():
    lines = table(["", "a", "long"], [["x", "1.25", "2"], ["wide", "3", ""]]).split("\n")
    assert lines == ["         a  long", "x     1.25     2", "wide     3"]


def test_every_line_ends_each_column_in_the_same_place():
    body = [[f"β{i}", str(10**i), "±" * i, f"{i / 7:.3f}"] for i in range(1, 6)]
    lines = table(["mode", "|λ|", "turn", "residual"], body).split("\n")
    assert len(lines) == 6
    assert {len(line) for line in lines} == {len(lines[0])}
    for line, row in zip(lines[1:], body, strict=True):
        assert line.split() == row


def test_a_header_alone():
    assert table(["a", "bc"], []) == "a  bc"


def test_nothing_trails():
    assert all(line == line.rstrip() for line in table(["a", "b"], [["x", ""], ["y", "z"]]).split("\n"))


def test_rows_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        table(["a", "b"], [["x"]])


NUMBERS = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=8)


def cells_of(html):
    """Cells of the body, one list a row."""
    body = html.split("<tbody>")[1].split("</tbody>")[0]
    return [[unescape(cell) for cell in re.findall(r"<t[hd]\b[^>]*>(.*?)</t", row)] for row in body.split("<tr")[1:]]


@given(NUMBERS, st.text(max_size=9))
def test_text_html_and_frame_say_the_same(values, name):
    rows = tuple(f"row {index}" for index in range(len(values)))
    made = Table((Column("", rows), Column("figure", tuple(values), digits(3))), name)
    shown = made.columns[1].cells()
    assert cells_of(made.html()) == [list(pair) for pair in zip(rows, shown, strict=True)]
    assert [line.split()[-1] for line in made.text().split("\n")[-len(rows) :]] == shown
    for value, cell, kept in zip(values, shown, made.frame()["figure"], strict=True):
        missing = value is None or math.isnan(value)
        assert (cell == NOTHING) == missing
        assert pandas.isna(kept) if missing else kept == value


def test_all_that_is_text_is_escaped():
    made = Table((Column("<a>", ("<b>",)), Column("&", ("<c>",), left=True)), "<d>")
    assert not re.search("<[abcd]>", made.html())
    assert cells_of(made.html()) == [["<b>", "<c>"]]


def test_only_the_first_rows_are_shown_and_the_frame_has_all():
    made = Table((Column("row", tuple(range(1500))),), most=2)
    assert made.text().split("\n") == ["row", "0", "1", "… and 1,498 more"]
    assert len(cells_of(made.html())) == 2
    assert "… and 1,498 more" in made.html()
    assert len(made.frame()) == 1500
    assert "more" not in Table(made.columns, most=1500).text()


def test_parts_of_a_value_are_one_cell_and_a_column_each_of_the_frame():
    interval = Column("share", ((0.1, 0.2), None), lambda ends: f"{ends[0]}…{ends[1]}", parts=("low", "high"))
    made = Table((Column("row", ("a", "b")), interval))
    assert [row[1] for row in cells_of(made.html())] == ["0.1…0.2", NOTHING]
    frame = made.frame()
    assert list(frame.columns) == ["row", "share, low", "share, high"]
    assert frame.iloc[0].tolist() == ["a", 0.1, 0.2]
    assert frame.iloc[1, 1:].isna().all()


def test_columns_of_one_name_are_all_kept():
    frame = Table((Column("row", ("a",)), Column("interval", (1,)), Column("interval", (2,)))).frame()
    assert frame.to_numpy().tolist() == [["a", 1, 2]]


def test_columns_without_a_value_can_be_left_out():
    empty, nan = Column("empty", (None, None)), Column("nan", (math.nan, None))
    made = Table((Column("row", (None, None)), empty, Column("half", (None, 1)), nan), "caption", 1, 1)
    kept = made.without_empty()
    assert [column.name for column in kept.columns] == ["row", "half"]
    assert (kept.caption, kept.marked, kept.most) == ("caption", 1, 1)


def test_words_stand_left_and_what_is_marked_is_set_off():
    made = Table(
        (Column("row", ("a", "b")), Column("word", ("x", "longer"), left=True), Column("n", (1, 22))), marked=1
    )
    assert made.text().split("\n")[1:] == ["a    x        1", "b    longer  22"]
    html = made.html(marked_column=2)
    assert html.count('<tr class="marked">') == 1
    assert html.index('<tr class="marked">') > html.index(">a<")
    assert re.findall(r'<t[dh][^>]*class="marked"[^>]*>(.*?)<', html) == ["n", "1", "22"]
    assert html.count('class="words"') == 3


def test_columns_of_attributes():
    @dataclass
    class Row:
        mean_shift: float
        count: int

    shift, count = columns_of([Row(0.5, 1), Row(math.nan, 2)], mean_shift=percents(0), count=str)
    assert (shift.name, count.name) == ("mean shift", "count")
    assert (shift.cells(), count.cells()) == (["50", NOTHING], ["1", "2"])


def test_numbers_that_are_none_are_dashes():
    for value in (None, math.nan):
        assert number(value) == percent(value) == NOTHING
    assert (number(-0.5, 1), percent(0.1234), percent(math.inf)) == ("-0.5", "12.34", "inf")
