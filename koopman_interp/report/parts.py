"""The parts that a page is put together from: sections, tables, figures and shares, all text escaped.

Knows nothing of what they show.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from koopman_interp.tables import Table, percent


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


def figure(figures: Mapping[str, str], name: str, alt: str, caption: str = "") -> str:
    """One figure on a white card, as an image, since nothing in an image can run; nothing where it was not drawn."""
    if name not in figures:
        return ""
    look = ' class="wide"' if name.startswith("audit-") else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll card" role="region" aria-label="Figure: {escape(name)}" tabindex="0">'
        f'<img{look} src="{figures[name]}" alt="{escape(alt)}"></div>{below}</figure>'
    )


def strong(share: float | None) -> str:
    """A share in per cent, in bold."""
    return f"<strong>{percent(share, 1)} %</strong>"
