"""How a verb shows its result: as JSON, or as tables that fit a terminal, with what was left out named below each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from koopman_interp.results import Result
    from koopman_interp.tables import Table

WIDTH = 100
"""Columns of a terminal that a table fits, unless all of it is asked for."""

_LEAST = 20
"""Characters that words are cut to at most, so that they can still be told apart."""


@dataclass(frozen=True)
class Printing:
    """What the options of a verb say of how it prints.

    Attributes:
        as_json: print JSON alone.
        wide: print tables as wide as they are.
    """

    as_json: bool = False
    wide: bool = False

    def show(self, found: Result, tables: Sequence[Table] | None = None) -> None:
        """Print a result, and of its tables those given, where they are not all."""
        if self.as_json:
            from koopman_interp.files import jsonable

            click.echo(json.dumps(jsonable(found.as_dict())))  # type: ignore[attr-defined]  # every kept result has it
        else:
            click.echo(shown(found, tables, wide=self.wide))


def shown(found: Result, tables: Sequence[Table] | None = None, *, wide: bool = False) -> str:
    """Lay a result out for a terminal: its line, its tables and its notes."""
    fold, lay = (str, _whole) if wide else (folded, fitted)
    notes = [fold(note) for note in found.notes()]
    parts = [fold(repr(found)), *map(lay, found.tables() if tables is None else tables)]
    return "\n\n".join(parts + ["\n".join(notes)] * bool(notes))


def laid_out(value: object) -> str:
    """Lay out a result, or anything else as the text that it is."""
    from koopman_interp.results import Result

    return shown(value) if isinstance(value, Result) else folded(str(value))


def printed(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --json and --wide, as one `printing`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option("--wide", is_flag=True, help=f"Print tables with all columns; else they fit {WIDTH}.")
    @wraps(verb)
    def with_printing(as_json: bool, wide: bool, **given: Any) -> Any:
        return verb(printing=Printing(as_json, wide), **given)

    return with_printing


def folded(text: str, width: int = WIDTH) -> str:
    """Break lines that are longer than a width; each line by itself."""
    return "\n".join(textwrap.fill(line, width, break_on_hyphens=False) if line else "" for line in text.split("\n"))


def fitted(table: Table, width: int = WIDTH) -> str:
    """Show a table within a width: headings are broken, words cut, and columns left out from the right, and named."""
    caption, body = folded(table.caption, width), replace(table, caption="")
    if _width(body) > width:
        body = _cut(_headed(body), width)
    kept = list(body.columns)
    while len(kept) > 2 and _width(replace(body, columns=tuple(kept))) > width:
        kept.pop()
    lines = [caption] * bool(caption) + [replace(body, columns=tuple(kept)).text()]
    if left := [column.name for column in table.columns[len(kept) :]]:
        lines.append(folded(f"Not shown: {', '.join(left)}. --wide shows all.", width))
    return "\n".join(lines)


def _whole(table: Table) -> str:
    return table.text()


def _width(table: Table) -> int:
    return max(map(len, table.text().split("\n")))


def _headed(table: Table) -> Table:
    """Break headings at blanks, as wide as what stands below them; the lines past the first become rows."""
    broken = []
    for column in table.columns:
        cells = column.cells()
        most = max(map(len, [*cells, *column.name.split()]))
        broken.append((column, cells, textwrap.wrap(column.name, most, break_on_hyphens=False) or [""]))
    height = max(len(lines) for _, _, lines in broken)
    columns = []
    for column, cells, lines in broken:
        first, *others = [""] * (height - len(lines)) + lines
        columns.append(replace(column, name=first, values=(*others, *cells), show=str, parts=()))
    rows = None if table.most is None else table.most + height - 1
    return replace(table, columns=tuple(columns), most=rows, marked=None)


def _cut(table: Table, width: int) -> Table:
    """Cut words, those of the widest column first, as far as it helps and they can still be told apart."""
    columns = list(table.columns)
    words = [place for place, column in enumerate(columns) if column.left or place == 0]
    while (over := _width(replace(table, columns=tuple(columns))) - width) > 0:
        widths = {place: max(map(len, columns[place].cells())) for place in words}
        place = max(widths, key=lambda each: widths[each])
        if widths[place] <= _LEAST:
            break
        most = max(widths[place] - over, _LEAST)
        cells = tuple(cell if len(cell) <= most else f"{cell[: most - 1]}…" for cell in columns[place].cells())
        columns[place] = replace(columns[place], values=cells, show=str, parts=())
    return replace(table, columns=tuple(columns))
