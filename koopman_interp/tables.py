"""Tables: columns of values, each with how it is shown, as text, as HTML or as a data frame.

What a terminal prints, what a notebook shows and what a page holds are three looks of the same columns. Knows nothing
of what they are about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

NOTHING = "–"
"""What stands where there is no value."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: its heading.
        values: one a row; None where there is none.
        show: how a value is shown; it is never called with None.
    """

    name: str
    values: tuple[Any, ...]
    show: Callable[[Any], str] = str

    def cells(self) -> list[str]:
        """Show all values, a dash where there is none."""
        return [NOTHING if value is None else self.show(value) for value in self.values]


@dataclass(frozen=True)
class Table:
    """Columns of one length under one caption; the first names the rows.

    Attributes:
        columns: the columns, from left to right.
        caption: what the table shows, in words.
        marked: the row that a reader looks for, which HTML sets off.
    """

    columns: tuple[Column, ...]
    caption: str = ""
    marked: int | None = None

    def without_empty(self) -> Table:
        """Leave out the columns, past the first, in which no row has a value."""
        first, *others = self.columns
        kept = [column for column in others if any(value is not None for value in column.values)]
        return Table((first, *kept), self.caption, self.marked)

    def text(self) -> str:
        """Align it for a terminal.

        >>> print(Table((Column("row", ("host", "edit")), Column("forget ↓", (1.0, None), percent))).text())
        row   forget ↓
        host    100.00
        edit         –
        """
        header = [column.name for column in self.columns]
        body = table(header, list(zip(*(column.cells() for column in self.columns), strict=True)))
        return f"{self.caption}\n{body}" if self.caption else body

    def html(self) -> str:
        """Return it as one `<table>`, all text escaped."""
        head = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in self.columns)
        body = []
        for index, (name, *others) in enumerate(zip(*(column.cells() for column in self.columns), strict=True)):
            look = ' class="marked"' if index == self.marked else ""
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
            body.append(f'<tr{look}><th scope="row">{escape(name)}</th>{cells}</tr>')
        caption = f"<caption>{escape(self.caption)}</caption>\n" if self.caption else ""
        rows = "\n".join(body)
        return f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"

    def frame(self) -> DataFrame:
        """Return it as a pandas data frame, one column a column, with the values as they are."""
        from pandas import DataFrame  # which `datasets` brings; it takes half a second to import

        return DataFrame({column.name: list(column.values) for column in self.columns})


def columns_of(rows: Sequence[Any], **shown: Callable[[Any], str]) -> tuple[Column, ...]:
    """Make a column of each named attribute of some rows.

    Args:
        rows: values with these attributes.
        **shown: how each is shown; underscores in its name become blanks in the heading.

    Returns:
        The columns, in the order given.
    """
    return tuple(
        Column(name.replace("_", " "), tuple(getattr(row, name) for row in rows), show) for name, show in shown.items()
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align columns of text: the first to the left, the others to the right.

    >>> print(table(["row", "forgotten"], [["host", "100.0"], ["edit", "0.0"]]))
    row   forgotten
    host      100.0
    edit        0.0
    """
    body = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = []
    for row in body:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 4, kind: str = "f") -> str:
    """Show a number, or a dash where there is none.

    >>> number(1234.5, 1), number(0.00012, 1, "e"), number(None)
    ('1,234.5', '1.2e-04', '–')
    """
    return NOTHING if value is None else f"{value:,.{digits}{kind}}"


def percent(share: float | None, digits: int = 2) -> str:
    """Show a share in per cent, or a dash where there is none."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}"


def digits(count: int, kind: str = "f") -> Callable[[float], str]:
    """Return how to show numbers with so many digits behind the point, for a column."""
    return partial(number, digits=count, kind=kind)


def percents(count: int = 2) -> Callable[[float], str]:
    """Return how to show shares in per cent with so many digits behind the point, for a column."""
    return partial(percent, digits=count)
