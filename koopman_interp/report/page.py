"""One self-contained HTML page a run, that says what was done and how far it can be trusted.

`build_page` makes the page from what stands in a run's folder alone, so that it can be rebuilt anywhere. The page needs
no script and no network: figures are drawings within it, made anew of what drawings need, and all text is escaped. Its
tables are those that the results print. Knows nothing of models or of how figures are drawn, and computes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from koopman_interp.errors import FileFormatError
from koopman_interp.files import write_text
from koopman_interp.report import folder as places
from koopman_interp.report import surrogate_sections as sections_of
from koopman_interp.report.audit_section import audit_section
from koopman_interp.report.folder import Run, read_run
from koopman_interp.report.joined_audits import joined
from koopman_interp.report.language_section import language_section
from koopman_interp.report.lead import lead
from koopman_interp.report.lens_section import lens_section
from koopman_interp.report.look import STYLE
from koopman_interp.report.modes_section import modes_section
from koopman_interp.report.parts import Section, contents, described, section, shown
from koopman_interp.report.text import FILES, GLOSSARY, PAGE, PRIMER
from koopman_interp.tables import Column, Table, digits, escaped


def build_page(folder: str | os.PathLike[str]) -> Path:
    """Build the page of a run from what its folder holds; the same files give the same bytes.

    Args:
        folder: one that `write_run` wrote.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: there are no numbers, or one of the files they name is missing.
        FileFormatError: a file is not whole, not of a run, or incomplete.
    """
    run = read_run(folder)
    try:
        page = _page(run)
    except FileFormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileFormatError(
            f"{Path(folder) / places.METRICS} is incomplete: {type(error).__name__} {error}, building the page. Write "
            "the run again."
        ) from error
    write_text(Path(folder) / places.PAGE, page)
    return Path(folder) / places.PAGE


def framed(title: str, result: str, sections: Sequence[Section], *, primer: str = "") -> str:
    """Put sections into a page.

    Args:
        title: of the page, not yet escaped.
        result: its lead, as paragraphs of HTML.
        sections: in their order.
        primer: what stands between lead and contents, as HTML.

    Returns:
        The page.
    """
    return Template(PAGE).substitute(
        title=escaped(title),
        style=STYLE,
        result=result,
        primer=primer,
        contents=contents(sections),
        sections="\n".join(each.html() for each in sections),
    )


def _page(run: Run) -> str:
    audits = enumerate(joined(run.audits))
    topologies = enumerate(run.topologies.items())
    sections = [
        sections_of.trajectories_section(run.trajectories, run.figures) if run.trajectories else None,
        *(audit_section(made, index, run.figures, run.class_names) for index, made in audits),
        *(language_section(audit, index) for index, audit in enumerate(run.language)),
        sections_of.edit_section(run.edits) if run.edits else None,
        sections_of.fidelity_section(run.fidelity, run.figures) if run.fidelity else None,
        lens_section(run.lens, run.figures) if run.lens else None,
        sections_of.spectrum_section(run.spectrum, run.figures) if run.spectrum else None,
        modes_section(run.modes, run.figures) if run.modes else None,
        *(sections_of.topology_section(name, each, index, run.figures) for index, (name, each) in topologies),
        sections_of.fit_section(run.koopman, run.figures) if run.koopman else None,
        section("glossary", "Glossary", GLOSSARY),
        section("files", "Files in this folder", FILES),
        provenance_section(run),
    ]
    return framed(
        run.title, f'<p class="result">{lead(run)}</p>', [each for each in sections if each is not None], primer=PRIMER
    )


def provenance_section(run: Run) -> Section:
    """Show when, by what and on what a run was made."""
    command = f'<pre tabindex="0"><code>{escaped(run.command)}</code></pre>' if run.command else ""
    facts = {name: said_of_fact(value) for name, value in run.facts.items()}
    return section(
        "provenance", "Provenance: what was done", command, described(facts), described(run.made), _seconds(run.seconds)
    )


def said_of_fact(value: Any) -> str:
    """Say a fact in words, whatever JSON holds for it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {said_of_fact(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(said_of_fact, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    columns = (
        Column("stage", (*seconds, "together")),
        Column("seconds", (*seconds.values(), sum(seconds.values())), digits(2)),
    )
    return shown(Table(columns, "Time per stage."))
