"""Tables: columns of values, each with how it is shown, as text, as HTML or as a data frame.

What a terminal prints, what a notebook shows and what a page holds are three looks of the same columns. Knows nothing
of what they are about.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from koopman_interp.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

NOTHING = "–"
"""What stands where there is no value."""

_UNSEEN = {"Cc", "Cf", "Cs"}
"""Categories of Unicode that no reader sees: control characters, formats such as right-to-left marks, surrogates."""


def readable(text: str) -> str:
    r"""Write out the code points that cannot be seen, or would turn the text round them; lines stay lines.

    >>> readable("class\u202e 4"), readable("two\nlines")
    ('class⟨U+202E⟩ 4', 'two\nlines')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"⟨U+{ord(each):04X}⟩" if each not in "\n\t" and unicodedata.category(each) in _UNSEEN else each
        for each in text
    )


def escaped(text: str) -> str:
    """Escape a text for HTML, within an element or a quoted attribute, with nothing in it that cannot be seen."""
    return html.escape(readable(text))


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: its heading.
        values: one a row; None or NaN where there is none.
        show: how a value is shown; it is never called where there is none.
        parts: names of the entries where each value is a tuple, such as the ends of an interval: one cell to read, a
            column each in a data frame.
        left: whether it is set flush left, as words are; the first column always is.
    """

    name: str
    values: tuple[Any, ...]
    show: Callable[[Any], str] = str
    parts: tuple[str, ...] = ()
    left: bool = False

    def cells(self) -> list[str]:
        """Show all values, a dash where there is none."""
        return [NOTHING if _missing(value) else self.show(value) for value in self.values]

    def numbers(self) -> list[tuple[str, list[Any]]]:
        """Return the values as they are by heading, those of tuples apart."""
        if not self.parts:
            return [(self.name, list(self.values))]
        return [
            (f"{self.name}, {part}", [None if value is None else value[place] for value in self.values])
            for place, part in enumerate(self.parts)
        ]


@dataclass(frozen=True)
class Table:
    """Columns of one length under one caption; the first names the rows.

    Attributes:
        columns: the columns, from left to right.
        caption: what the table shows, in words.
        marked: the row that a reader looks for, or several, which HTML sets off.
        most: rows to show, from the first; a data frame has them all. None shows all.
    """

    columns: tuple[Column, ...]
    caption: str = ""
    marked: int | Collection[int] | None = None
    most: int | None = None

    def without_empty(self) -> Table:
        """Leave out the columns, past the first, in which no row has a value."""
        first, *others = self.columns
        kept = [column for column in others if not all(map(_missing, column.values))]
        return replace(self, columns=(first, *kept))

    def text(self) -> str:
        """Align it for a terminal.

        >>> print(Table((Column("row", ("base model", "edit")), Column("forget ↓", (1.0, None), percent))).text())
        row         forget ↓
        base model    100.00
        edit               –
        """
        header = [column.name for column in self.columns]
        left = [place for place, column in enumerate(self.columns) if column.left or place == 0]
        lines = [table(header, self._rows(), left=left)]
        if self.caption:
            lines.insert(0, self.caption)
        if more := self._more():
            lines.append(more)
        return "\n".join(lines)

    def html(self, *, marked_column: int | None = None) -> str:
        """Return it as one `<table>`, all text escaped.

        Args:
            marked_column: a column to set off.
        """

        def cell(tag: str, text: str, place: int, scope: str = "") -> str:
            look = ["marked"] * (place == marked_column) + ["words"] * self.columns[place].left
            names = f' class="{" ".join(look)}"' if look else ""
            return f"<{tag}{scope}{names}>{escaped(text)}</{tag}>"

        head = "".join(cell("th", column.name, place, ' scope="col"') for place, column in enumerate(self.columns))
        body, scope = [], ' scope="row"'
        marked = (self.marked,) if self.marked is None or isinstance(self.marked, int) else self.marked
        for index, (name, *others) in enumerate(self._rows()):
            look = ' class="marked"' if index in marked else ""
            cells = "".join(cell("td", text, place) for place, text in enumerate(others, 1))
            body.append(f"<tr{look}>{cell('th', name, 0, scope)}{cells}</tr>")
        caption = f"<caption>{escaped(self.caption)}</caption>\n" if self.caption else ""
        foot = ""
        if more := self._more():
            foot = f'\n<tfoot><tr><td colspan="{len(self.columns)}">{more}</td></tr></tfoot>'
        rows = "\n".join(body)
        return f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>{foot}</table>"

    def frame(self) -> DataFrame:
        """Return it as a pandas data frame, one column a column, with the values of all rows as they are.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            from pandas import DataFrame  # which `datasets` brings; it takes half a second to import
        except ImportError as error:
            raise InputError(
                "A data frame needs the package pandas: pip install pandas. The same numbers are in as_dict() and, "
                "as text, in str()."
            ) from error

        numbers = [pair for column in self.columns for pair in column.numbers()]
        frame = DataFrame({place: values for place, (_, values) in enumerate(numbers)})
        frame.columns = [name for name, _ in numbers]
        return frame

    def _rows(self) -> list[tuple[str, ...]]:
        return list(zip(*(column.cells() for column in self.columns), strict=True))[: self.most]

    def _more(self) -> str:
        hidden = 0 if self.most is None else len(self.columns[0].values) - self.most
        return f"… and {hidden:,} more" if hidden > 0 else ""


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


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Align columns of text: those named flush left, the others flush right.

    >>> print(table(["row", "forget ↓"], [["base model", "100.0"], ["edit", "0.0"]]))
    row         forget ↓
    base model     100.0
    edit             0.0
    """
    body = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = []
    for row in body:
        placed = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(width) if place in left else cell.rjust(width) for place, (cell, width) in placed]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None, digits: int = 4, kind: str = "f") -> str:
    """Show a number, or a dash where there is none.

    >>> number(1234.5, 1), number(0.00012, 1, "e"), number(None)
    ('1,234.5', '1.2e-04', '–')
    """
    return NOTHING if value is None or math.isnan(value) else f"{value:,.{digits}{kind}}"


def percent(share: float | None, digits: int = 2) -> str:
    """Show a share in per cent, or a dash where there is none."""
    return NOTHING if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def in_percent(share: float | None, digits: int = 2, *, sign: str = "") -> str:
    """Show a share in per cent with its unit, a blank before it as for any other, or a dash where there is none.

    >>> in_percent(0.975), in_percent(0.02, 1, sign="+"), in_percent(None)
    ('97.50 %', '+2.0 %', '–')
    """
    return NOTHING if share is None or math.isnan(share) else f"{100 * share:{sign}.{digits}f} %"


def digits(count: int, kind: str = "f") -> Callable[[float], str]:
    """Return how to show numbers with so many digits behind the point, for a column."""
    return partial(number, digits=count, kind=kind)


def percents(count: int = 2) -> Callable[[float], str]:
    """Return how to show shares in per cent with so many digits behind the point, for a column."""
    return partial(percent, digits=count)


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
