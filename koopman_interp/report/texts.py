"""Texts of several methods next to each other, a prompt after the other, marked from where they leave the first's.

Knows nothing of what wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from koopman_interp.report.parts import folded
from koopman_interp.tables import escaped

Texts = Mapping[str, Sequence[str]]
"""Texts by the name of the method that wrote them, each method's in the same order."""

_UNFOLDED = 4
"""Prompts whose texts a reader sees at once; those of the others are unfolded."""


def beside(texts: Texts) -> str:
    """Show the texts of all methods next to each other; nothing where there are none.

    Raises:
        ValueError: the methods have not as many texts as each other.
    """
    blocks = [_beside(dict(zip(texts, row, strict=True))) for row in zip(*texts.values(), strict=True)]
    more = blocks[_UNFOLDED:]
    return "\n".join([*blocks[:_UNFOLDED], folded(f"{len(more):,} more", *more)]).strip()


def _beside(row: Mapping[str, str]) -> str:
    (first, reference), *others = row.items()
    shown = [_text(first, "", reference, ""), *(_text(name, *_parted(text, reference)) for name, text in others)]
    return f'<div class="pair texts">{"".join(shown)}</div>'


def _text(name: str, said: str, shared: str, own: str) -> str:
    marked = f"<mark>{escaped(own)}</mark>" if own else ""
    return (
        f"<figure><figcaption>{escaped(name + said)}</figcaption>"
        f"<blockquote>{escaped(shared)}{marked}</blockquote></figure>"
    )


def _parted(text: str, reference: str) -> tuple[str, str, str]:
    """Part a text where it leaves another, at a word, and say so where it does not."""
    if text == reference:
        return ", word for word the same", text, ""
    alike = next(
        (place for place, pair in enumerate(zip(text, reference, strict=False)) if len({*pair}) > 1), len(text)
    )
    words = re.match(r".*\s", text[:alike], re.DOTALL)
    end = len(words[0]) if words is not None else 0
    return "", text[:end], text[end:]
