"""The parts that a page is put together from: sections, tables, figures and numbers, all text escaped.

Knows nothing of what they show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from koopman_interp.tables import Table


def section(name: str, heading: str, *parts: str) -> str:
    """One section under its heading; empty parts are left out."""
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(heading)}</h2>\n{body}\n</section>'


def shown(table: Table, *, marked_column: int | None = None) -> str:
    """One table in a container that scrolls, under its caption.

    Args:
        table: with a caption, by which a reader who cannot see finds it.
        marked_column: a column to set off.
    """
    label = escape(table.caption)
    html = table.html(marked_column=marked_column)
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{html}</div>'


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    marked: int | None = None,
    marked_column: int | None = None,
) -> str:
    """One table in a container that scrolls; the first column names the rows."""

    def cell(tag: str, text: str, column: int, scope: str = "") -> str:
        look = ' class="marked"' if column == marked_column else ""
        return f"<{tag}{scope}{look}>{escape(text)}</{tag}>"

    head = "".join(cell("th", name, column, ' scope="col"') for column, name in enumerate(header))
    body = []
    for index, (name, *others) in enumerate(rows):
        cells = "".join(cell("td", text, column) for column, text in enumerate(others, 1))
        first = cell("th", name, 0, ' scope="row"')
        look = ' class="marked"' if index == marked else ""
        body.append(f"<tr{look}>{first}{cells}</tr>")
    label = escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>\n'
        f"<caption>{label}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def figure(figures: Mapping[str, str], name: str, alt: str, caption: str = "") -> str:
    """One figure on a white card; as an image, since nothing in an image can run."""
    look = ' class="wide"' if name.startswith("audit-") else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll card" role="region" aria-label="Figure: {escape(name)}" tabindex="0">'
        f'<img{look} src="{figures[name]}" alt="{escape(alt)}"></div>{below}</figure>'
    )


def strong(value: float | None) -> str:
    """A share in per cent, in bold."""
    return f"<strong>{percent(value)} %</strong>"


def percent(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return number(None if share is None else 100 * share, 1)


def number(value: float | None, digits: int, kind: str = "f") -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:,.{digits}{kind}}"
