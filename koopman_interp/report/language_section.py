"""The part of a page that shows what a language model says before and under edits: its scores, then its texts."""

from __future__ import annotations

from collections.abc import Mapping

from koopman_interp.auditing.language import LanguageAudit, LanguageScores
from koopman_interp.report.parts import Section, section, shown
from koopman_interp.report.texts import Texts, beside
from koopman_interp.tables import escaped


def language_section(audit: LanguageAudit, index: int) -> Section:
    """Show the scores of all methods in one table, then what each of them says.

    Args:
        audit: what was asked, and what was said.
        index: which of the run's it is.
    """
    texts = texts_of(audit.rows)
    what = "What the language model says" if audit.scored else "Text without and under an edit"
    written = f"The edit is {audit.way}. " if audit.way else ""
    marked = "A text is marked from where it leaves the base model's. " if texts else ""
    explained = 'The columns are explained in the <a href="#glossary">glossary</a>.' if audit.scored else ""
    return section(
        f"language-{index}",
        f"{what}: {audit.edit}",
        f"<p>{escaped(written + marked)}{explained}</p>",
        *(map(shown, audit.tables()) if audit.scored else ()),
        beside(texts),
    )


def texts_of(rows: Mapping[str, LanguageScores]) -> Texts:
    """Return the texts of those methods that were to go on."""
    return {name: row.samples for name, row in rows.items() if row.samples}
