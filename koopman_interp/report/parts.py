"""The parts that a page is put together from: sections, tables, figures and shares, all text escaped.

Knows nothing of what they show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from koopman_interp.report.inline_svg import inline
from koopman_interp.tables import Table, escaped, in_percent


@dataclass(frozen=True)
class Section:
    """One section of a page.

    Attributes:
        name: what links lead to.
        heading: in words, not yet escaped.
        parts: what stands in it, as HTML; empty ones are left out.
    """

    name: str
    heading: str
    parts: tuple[str, ...]

    def html(self) -> str:
        """Return it under its heading."""
        body = "\n".join(part for part in self.parts if part)
        heading = f'<h2 id="{self.name}">{escaped(self.heading)}</h2>'
        return f'<section aria-labelledby="{self.name}">\n{heading}\n{body}\n</section>'


def section(name: str, heading: str, *parts: str) -> Section:
    """Make a section of its parts."""
    return Section(name, heading, parts)


def contents(sections: Sequence[Section]) -> str:
    """List sections with links that lead to them."""
    lines = (f'<li><a href="#{each.name}">{escaped(each.heading)}</a></li>' for each in sections)
    return f'<nav aria-label="Contents"><ol>{"".join(lines)}</ol></nav>'


def paragraphs(*texts: str) -> str:
    """One paragraph a text."""
    return "".join(f"<p>{escaped(text)}</p>" for text in texts)


def shown(table: Table, *, marked_column: int | None = None) -> str:
    """One table in a container that scrolls and shows that it does, under its caption.

    Args:
        table: with a caption, by which a reader who cannot see finds it.
        marked_column: a column to set off.
    """
    return scrolling(table.html(marked_column=marked_column), table.caption)


def scrolling(html: str, label: str) -> str:
    """Put what may be wide in a container that scrolls, and that a keyboard reaches."""
    return f'<div class="scroll" role="region" aria-label="{escaped(label)}" tabindex="0">{html}</div>'


def figure(figures: Mapping[str, bytes], name: str, alt: str, caption: str = "", *, within: str = "") -> str:
    """One figure, inline; nothing where it was not drawn.

    Args:
        figures: SVG files by name.
        name: of the figure.
        alt: what it shows, for those who cannot see it.
        caption: below it.
        within: what its ids begin with beside its name, where a page has several of that name.
    """
    if name not in figures:
        return ""
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    drawn = inline(figures[name], f"{within}{name}", alt)
    return (
        f'<figure><div class="scroll card" role="region" aria-label="Figure: {escaped(name)}" tabindex="0">'
        f"{drawn}</div>{below}</figure>"
    )


def folded(summary: str, *parts: str, unfolded: bool = False) -> str:
    """Parts that a reader unfolds; nothing without any."""
    body = "\n".join(part for part in parts if part)
    state = " open" if unfolded else ""
    return f"<details{state}><summary>{escaped(summary)}</summary>\n{body}\n</details>" if body else ""


def described(facts: Mapping[str, str]) -> str:
    """Facts by name, those without a value left out."""
    body = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in facts.items() if value)
    return f"<dl>{body}</dl>" if body else ""


def strong(share: float | None) -> str:
    """A share in per cent, in bold."""
    return f"<strong>{in_percent(share, 1)}</strong>"


def classes_named(labels: Sequence[int], names: Mapping[int, str], otherwise: str) -> str:
    """Name classes by name and number where all have names, and as told otherwise."""
    if not all(label in names for label in labels):
        return otherwise
    return ", ".join(f"{names[label]} (class {label})" for label in labels)
