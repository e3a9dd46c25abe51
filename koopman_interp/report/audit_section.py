"""The part of a run's page that shows an audit: its verdict, its tables, its figures. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from koopman_interp.auditing.result import Audit
from koopman_interp.report.parts import figure, section, shown
from koopman_interp.report.text import AUDIT_KEY
from koopman_interp.tables import percent


def audit_section(audit: Audit, index: int, figures: Mapping[str, str]) -> str:
    """Show one audit.

    Args:
        audit: the audit.
        index: which of the run's it is; the first explains the columns.
        figures: images by name.

    Returns:
        A section of the page.
    """
    ours, methods = audit.rows[-1], ", ".join(row.name for row in audit.rows)
    probe = (
        "</strong>"
        if ours.best_probe is None
        else f": a probe still finds {audit.classes} at {percent(ours.best_probe, 1)} %</strong> (50 % at chance)"
    )
    return section(
        f"audit-{index}",
        f"Audit: {audit.edit}, {ours.name}",
        f'<p class="plain"><strong>Reversible suppression{probe}. Nothing has been removed from the weights.</p>',
        *(f"<p>{escape(line)}</p>" for line in [*audit.verdict.splitlines(), *audit.left_out, *audit.reached]),
        *map(shown, audit.tables()),
        _samples(audit),
        AUDIT_KEY if index == 0 else "",
        figure(
            figures,
            f"audit-{index}",
            f"Dot plot of the tables above: {methods}, by what is suppressed and what probes still find.",
            "What each method suppresses at the output, and what is still there.",
        ),
        figure(
            figures, f"audit-{index}-depths", f"How well probes find {audit.classes} over depth, one line a method."
        ),
        figure(figures, f"audit-{index}-relearning", "Forget and retain accuracy by step of relearning."),
    )


def _samples(audit: Audit) -> str:
    """List how the language model goes on, under each method."""
    samples = [(row.name, sample) for row in audit.rows if row.language is not None for sample in row.language.samples]
    body = "".join(f"<dt>{escape(name)}</dt><dd>{escape(sample)}</dd>" for name, sample in samples)
    return f"<dl>{body}</dl>" if samples else ""
