"""The section of a page that shows what modes mean."""

from __future__ import annotations

from collections.abc import Mapping

from koopman_interp.analysis.spectra.mode_meanings import ModeMeanings
from koopman_interp.report.parts import Section, figure, paragraphs, section, shown


def modes_section(meanings: ModeMeanings, figures: Mapping[str, bytes]) -> Section:
    """Show how far modes can be trusted, what they say at the output, the samples that have most, and their growth."""
    return section(
        "modes",
        f"What modes mean, read at {meanings.site}",
        paragraphs(
            "A mode is read along one axis, whose sign is arbitrary: up and down may be exchanged, together with more "
            "and less. What is said at the output is what the model itself makes of a step along the mode. Believe "
            "nothing of a mode that is not trusted."
        ),
        *map(shown, meanings.tables()),
        figure(
            figures,
            "modes",
            "Size of each mode over depth, as in the last table above.",
            "Solid: measured on the samples; dashed: what K makes of it. Where the two part, K does not tell what the "
            "mode does.",
        ),
    )
