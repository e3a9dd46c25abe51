"""Two runs side by side on one page: every number of both, those that differ marked, figures next to each other.

Reads what stands in the two folders alone, and computes nothing: a number is shown as the page of its own run shows it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from koopman_interp.auditing.language import texts_table
from koopman_interp.errors import FileFormatError
from koopman_interp.files import write_text
from koopman_interp.report.folder import METRICS, Run, read_run
from koopman_interp.report.joined_audits import joined
from koopman_interp.report.language_section import texts_of
from koopman_interp.report.lead import lead
from koopman_interp.report.page import framed, said_of_fact
from koopman_interp.report.paired_tables import differing, paired
from koopman_interp.report.parts import figure, scrolling, section
from koopman_interp.report.surrogate_sections import edit_table
from koopman_interp.tables import Column, Table, digits, escaped

_FIGURES = {
    "trajectories": "States in their first two principal components, one panel a depth",
    "audit": "What each method suppresses at the output, and what is still there",
    "output": "Agreement and accuracy by substitute",
    "fidelity": "FVU over depth, one line a predictor",
    "spans": "KL to the model by where the span starts",
    "lens": "The likeliest output by depth",
    "spectrum": "Eigenvalues of K in the complex plane",
    "modes": "Size of each mode over depth",
    "topology": "Betti curves, one panel a depth",
    "fit": "Held-out figures by step",
}
"""What figures show, by how their names begin."""


def compare_runs(
    folder_a: str | os.PathLike[str], folder_b: str | os.PathLike[str], out: str | os.PathLike[str]
) -> Path:
    """Write one page that shows two runs side by side, A and B, with all that differs marked.

    Args:
        folder_a: one that `write_run` wrote.
        folder_b: another.
        out: the page to write (.html).

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: a folder holds no run, or a part of it is missing.
        FileFormatError: a file is not whole, not of a run, or incomplete.
        StorageError: the page cannot be written.
    """
    a, b = read_run(folder_a), read_run(folder_b)
    try:
        page = _page(a, b)
    except FileFormatError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FileFormatError(
            f"The {METRICS} of one of the two runs is incomplete: {type(error).__name__} {error}, building the page. "
            "Write the run again."
        ) from error
    write_text(out, page)
    return Path(out)


def _page(a: Run, b: Run) -> str:
    tables = _tables(a), _tables(b)
    sections = []
    for name, heading in _headings(*tables).items():
        ours, theirs = (each.get(name, (heading, ()))[1] for each in tables)
        parts = [_side_by_side(*pair) for pair in zip_longest(ours, theirs)]
        sections.append(section(name, heading, *parts, _figures(a, b, name)))
    drawn = _figures(a, b, "trajectories")
    if drawn:
        sections.insert(1, section("trajectories", "Trajectories", drawn))
    marked = sum(
        differing(*pair)
        for name in _headings(*tables)
        if name != "provenance"
        for pair in zip_longest(*(each.get(name, ("", ()))[1] for each in tables))
    )
    leads = "\n".join(
        f'<p class="result"><strong>{which}</strong>: {escaped(run.title)}. {lead(run)}</p>'
        for which, run in (("A", a), ("B", b))
    )
    key = (
        f"<p>{marked:,} of the cells below differ, provenance aside; they are marked, with the value of A above that "
        "of B. A cell with one value has it in both.</p>"
    )
    return framed(f"{a.title} | {b.title}", leads + key, sections)


def _headings(*tables: Mapping[str, tuple[str, Sequence[Table]]]) -> dict[str, str]:
    """Headings of the sections that either run has, provenance first."""
    return {name: heading for each in tables for name, (heading, _) in each.items()}


def _tables(run: Run) -> dict[str, tuple[str, Sequence[Table]]]:
    """All tables of a run, by section, with its heading."""
    found: dict[str, tuple[str, Sequence[Table]]] = {"provenance": ("Provenance", [_facts(run)])}
    for index, made in enumerate(joined(run.audits)):
        found[f"audit-{index}"] = (f"Audit {index + 1}" if index else "Audit", made.tables())
    found |= _spoken(run)
    if run.edits is not None:
        found["edit"] = ("Edit", [edit_table(run.edits)])
    for name, heading, result in (
        ("fidelity", "Fidelity", run.fidelity),
        ("lens", "Lens", run.lens),
        ("spectrum", "Spectrum of K", run.spectrum),
        ("modes", "What modes mean", run.modes),
        ("fit", "Fit", None if run.koopman is None else run.koopman.record),
    ):
        if result is not None:
            found[name] = (heading, result.tables())
    for index, (name, topology) in enumerate(run.topologies.items()):
        found[f"topology-{index}"] = (f"Topology of the {name}", topology.tables())
    return found


def _spoken(run: Run) -> dict[str, tuple[str, Sequence[Table]]]:
    """Tables of what a language model says: those of scores and those of texts each by themselves."""
    scores = [table for audit in run.language if audit.scored for table in audit.tables()]
    texts = [texts_table(audit.rows) for audit in run.language if texts_of(audit.rows)]
    return {
        f"{name}-{index}": (f"{heading} {index + 1}" if index else heading, [table])
        for name, heading, tables in (("language", "Language", scores), ("texts", "Texts", texts))
        for index, table in enumerate(tables)
    }


def _facts(run: Run) -> Table:
    facts = {"title": run.title, "command": run.command, **run.made}
    facts |= {name: said_of_fact(value) for name, value in run.facts.items()}
    facts |= {f"seconds to {stage}": digits(2)(seconds) for stage, seconds in run.seconds.items()}
    known = {name: value for name, value in facts.items() if value}
    return Table((Column("fact", tuple(known)), Column("value", tuple(known.values()), left=True)), "What was done.")


def _side_by_side(ours: Table | None, theirs: Table | None) -> str:
    caption = next(each.caption for each in (ours, theirs) if each is not None)
    return scrolling(paired(ours, theirs), caption)


def _figures(a: Run, b: Run, section_name: str) -> str:
    """The figures of a section, those of both runs next to each other."""
    kinds = ("output", "fidelity", "spans") if section_name == "fidelity" else (section_name,)
    names = [
        name
        for name in dict.fromkeys([*a.figures, *b.figures])
        if any(name == kind or name.startswith(f"{kind}-") for kind in kinds)
    ]
    pairs = []
    for name in names:
        what = _FIGURES.get(name.partition("-")[0], name)
        if a.figures.get(name) == b.figures.get(name):
            pairs.append(figure(a.figures, name, f"A and B: {what}.", "The same in A and B."))
            continue
        drawn = (
            figure(run.figures, name, f"{which}: {what}.", which, within=f"{which}-")
            for which, run in (("A", a), ("B", b))
        )
        pairs.append(f'<div class="pair">{"".join(drawn)}</div>')
    return "".join(pairs)
