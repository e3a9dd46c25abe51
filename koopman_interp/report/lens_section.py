"""The section of a page that shows what a lens reads."""

from __future__ import annotations

from collections.abc import Mapping

from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.report.parts import Section, figure, paragraphs, section, shown


def lens_section(lens: LensReading, figures: Mapping[str, bytes]) -> Section:
    """Show what a lens reads: all samples by depth, and the first of them one by one."""
    by_depth, likeliest = map(shown, lens.tables())
    return section(
        "lens",
        "What the model would say if its motion were linear from each depth on",
        paragraphs(
            f"{len(lens):,} samples through the {lens.lens}: a state is advanced by K to the last site, "
            "decoded, and read by the model's own head."
        ),
        by_depth,
        figure(figures, "lens", "The likeliest output by depth, for the first samples."),
        likeliest,
    )
