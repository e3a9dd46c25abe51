"""Two tables as one: a cell that is the same in both stands once, one that differs twice, marked. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from koopman_interp.tables import NOTHING, Table, escaped

Cells = Mapping[tuple[str, str], str]
"""What is shown, by row and column."""


def paired(a: Table | None, b: Table | None) -> str:
    """Return two tables as one `<table>`: rows and columns of both, A's first."""
    ours, theirs = _cells(a), _cells(b)
    rows, columns = (list(dict.fromkeys(key[place] for key in [*ours, *theirs])) for place in (0, 1))
    words = {column.name for each in (a, b) if each is not None for column in each.columns if column.left}
    captions = list(dict.fromkeys(each.caption for each in (a, b) if each is not None))
    caption = captions[0] if len(captions) == 1 else f"A: {captions[0]} B: {captions[1]}"
    first = next(each.columns[0].name for each in (a, b) if each is not None)
    looks = dict.fromkeys(words, ' class="words"')
    head = "".join(f'<th scope="col"{looks.get(name, "")}>{escaped(name)}</th>' for name in [first, *columns])
    body = "\n".join(
        f'<tr><th scope="row">{escaped(row)}</th>'
        + "".join(_cell(ours.get((row, name)), theirs.get((row, name)), name in words) for name in columns)
        + "</tr>"
        for row in rows
    )
    above = f"<caption>{escaped(caption)}</caption>\n<thead><tr>{head}</tr></thead>"
    return f"<table>\n{above}\n<tbody>\n{body}\n</tbody></table>"


def differing(a: Table | None, b: Table | None) -> int:
    """Count the cells that differ."""
    ours, theirs = _cells(a), _cells(b)
    return sum(ours.get(key, NOTHING) != theirs.get(key, NOTHING) for key in {**ours, **theirs})


def _cell(ours: str | None, theirs: str | None, words: bool) -> str:
    shown = [NOTHING if text is None else text for text in (ours, theirs)]
    if shown[0] == shown[1]:
        look = ' class="words"' if words else ""
        return f"<td{look}>{escaped(shown[0])}</td>"
    both = "".join(
        f'<span class="run"><b>{which}</b>{escaped(text)}</span>' for which, text in zip("AB", shown, strict=True)
    )
    look = "differs words" if words else "differs"
    return f'<td class="{look}">{both}</td>'


def _cells(table: Table | None) -> Cells:
    """Cells by the names of row and column; rows that share a name are numbered."""
    if table is None:
        return {}
    names, seen = [], dict[str, int]()
    for name in table.columns[0].cells():
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return {
        (row, column.name): cell
        for column in table.columns[1:]
        for row, cell in list(zip(names, column.cells(), strict=True))[: table.most]
    }
