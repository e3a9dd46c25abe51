"""The part of a run's page that shows audits: one table of all edits, what each comes to, figures. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from koopman_interp.report.joined_audits import JoinedAudit
from koopman_interp.report.language_section import texts_of
from koopman_interp.report.parts import Section, classes_named, figure, folded, paragraphs, section, shown
from koopman_interp.report.texts import beside
from koopman_interp.tables import escaped, in_percent


def audit_section(made: JoinedAudit, index: int, figures: Mapping[str, bytes], names: Mapping[int, str]) -> Section:
    """Show audits on the same rows: the numbers of all edits in one table, then what is to be said of each.

    Args:
        made: the audits.
        index: which of the run's it is.
        figures: SVG files by name.
        names: of the classes, where they are known.
    """
    audit, (overview, *further) = made.audit, made.tables()
    classes = classes_named(audit.labels, names, audit.classes)
    found = [row.best_probe for row in made.ours if row.best_probe is not None]
    probe = f"; a probe still finds {classes} at {in_percent(max(found), 1)} (50 % at chance)" if found else ""
    methods = ", ".join(row.name for row in audit.rows)
    return section(
        f"audit-{index}",
        f"Audit: {audit.edit}",
        f'<p class="plain"><strong>Reversible suppression{escaped(probe)}.</strong> Nothing has been removed from the '
        'weights. The columns are explained in the <a href="#glossary">glossary</a>.</p>',
        shown(overview),
        figure(
            figures,
            f"audit-{index}",
            f"Dot plot of the table above: {methods}, by what is suppressed and what probes still find.",
            "What each method suppresses at the output, and what is still there. Diamonds are edits.",
        ),
        *(_said_of(made, place) for place in range(len(made.audits))),
        paragraphs(*audit.left_out),
        folded("More tables: training rows, depths, relearning, language", *map(shown, further)),
        beside(texts_of({row.name: row.language for row in audit.rows if row.language is not None})),
        figure(
            figures, f"audit-{index}-depths", f"How well probes find {audit.classes} over depth, one line a method."
        ),
        figure(figures, f"audit-{index}-relearning", "Forget and retain accuracy by step of relearning."),
    )


def _said_of(made: JoinedAudit, place: int) -> str:
    """What an audit comes to, in its own words."""
    audit, row = made.audits[place], made.ours[place]
    head = f"{row.name}: forget {in_percent(row.forget_accuracy)} ↓, retain {in_percent(row.retain_accuracy)} ↑"
    return folded(head, paragraphs(*audit.verdict.splitlines(), *audit.reached), unfolded=place == 0)
