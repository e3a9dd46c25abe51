"""Tables line up."""

import pytest

from koopman_interp.tables import table


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
