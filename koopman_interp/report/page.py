"""One self-contained HTML page a run, that says what was done and how far it can be trusted.

`build_page` makes the page from what stands in a run's folder alone, so that it can be rebuilt anywhere. The page needs
no script and no network: figures are embedded as images, in which nothing can run, and all text is escaped. Its tables
are those that the results print. Knows nothing of models or of how figures are drawn, and computes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.stand_ins import SURROGATE
from koopman_interp.auditing.result import Audit
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.errors import FileFormatError
from koopman_interp.files import write_text
from koopman_interp.report.audit_section import audit_section
from koopman_interp.report.folder import METRICS, Run, read_run
from koopman_interp.report.lens_section import lens_section
from koopman_interp.report.parts import figure, section, shown, strong
from koopman_interp.report.text import FILES, PAGE, STYLE
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits, percent

PAGE_FILE = "report.html"


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
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{Path(folder) / METRICS} is incomplete: {type(error).__name__} {error}, building the page. Write the run "
            "again."
        ) from error
    write_text(Path(folder) / PAGE_FILE, page)
    return Path(folder) / PAGE_FILE


def _page(run: Run) -> str:
    sections = [
        *(audit_section(audit, index, run.figures) for index, audit in enumerate(run.audits)),
        _edit(run.edits) if run.edits else "",
        _fidelity(run.fidelity, run.figures) if run.fidelity else "",
        lens_section(run.lens, run.figures) if run.lens else "",
        _spectrum(run.spectrum, run.figures) if run.spectrum else "",
        *(_topology(name, each, index, run.figures) for index, (name, each) in enumerate(run.topologies.items())),
        _fit(run.koopman, run.figures),
        _trajectories(run.trajectories, run.figures) if run.trajectories else "",
        FILES,
    ]
    return Template(PAGE).substitute(
        title=escape(run.title),
        style=STYLE,
        result=_result(run.audits, run.fidelity),
        command=escape(run.command),
        facts=_facts(run.facts),
        seconds=_seconds(run.seconds),
        sections="\n".join(part for part in sections if part),
    )


def _result(audits: Sequence[Audit], fidelity: Fidelity | None) -> str:
    """One sentence with the numbers of the first audit and of the fidelity, as far as there are any."""
    agrees = ""
    if fidelity is not None and fidelity.outputs:
        ours = next(row for row in fidelity.outputs if row.name == SURROGATE)
        agrees = f"the model predicts as before on {strong(ours.agreement)} of held-out rows"
    if not audits:
        judged = f"With the surrogate substituted for its span, {agrees}" if agrees else "The output was not judged"
        return f"{judged}; no edit was audited."
    audit, without = audits[0], ""
    before, after = audit.rows[0], audit.rows[-1]
    if agrees:
        without = f"; without the edit and with the surrogate substituted for its span, {agrees}"
    return (
        f"After “{escape(audit.edit)}”, the forget accuracy of {audit.classes} on held-out rows is "
        f"{strong(after.forget_accuracy)} (base model: {percent(before.forget_accuracy, 1)} %) and the retain "
        f"accuracy {strong(after.retain_accuracy)} (base model: {percent(before.retain_accuracy, 1)} %), while "
        f"probes find it in the representation at {_probes(after)}, where 50 % is at chance{without}."
    )


def _probes(row: AuditRow) -> str:
    probes = {"linear": row.linear_probe, "RBF": row.rbf_probe, "MLP": row.mlp_probe}
    measured = [f"{strong(share)} ({kind})" for kind, share in probes.items() if share is not None]
    return ", ".join(measured) or "no accuracy that was measured"


def _edit(edits: EditSet) -> str:
    """Show what is known of an edit, or of several, a row a site."""
    where = edits[0].site if len(edits) == 1 else f"{len(edits)} sites"
    (table,) = edits[0].tables() if len(edits) == 1 else edits.tables()
    caption = "What can be said of the edit without running the model."
    return section("edit", f"Edit: {edits.description}, at {where}", shown(replace(table, caption=caption)))


def _fidelity(fidelity: Fidelity, figures: Mapping[str, str]) -> str:
    """Show the figures at the output, by depth and by span, each with what is drawn of it."""
    at_output = fidelity.tables()[:1] if fidelity.outputs else ()
    return section(
        "fidelity",
        "Fidelity: the surrogate beside baselines",
        f"<p>On {fidelity.rows:,} held-out rows. Identity is the state as it was at the first depth; the mean and the "
        "linear maps were fitted on the surrogate's rows. The output has the last word.</p>",
        *map(_beside_surrogate, at_output),
        figure(figures, "output", "Dot plot of agreement and accuracy by substitute, as in the table above."),
        _beside_surrogate(fidelity.by_depth()),
        "<p>Linearity residual: how far observables miss K's step from the depth before. Isometry: quantiles "
        "of the ratio of distances in observables to distances in states; 1 keeps shapes.</p>",
        figure(figures, "fidelity", "FVU over depth, one line a predictor, as in the table above."),
        *map(_beside_surrogate, fidelity.by_span()),
        figure(figures, "spans", "KL to the model by where the span starts, one line a substitute."),
        *(f"<p>{escape(note)}</p>" for note in fidelity.notes()),
    )


def _beside_surrogate(table: Table) -> str:
    """Show a table with the surrogate's column, where it has one, set off."""
    ours = [place for place, column in enumerate(table.columns) if column.name.endswith(SURROGATE)]
    return shown(table, marked_column=ours[0] if ours else None)


def _spectrum(spectrum: Spectrum, figures: Mapping[str, str]) -> str:
    trusted, modes = int(spectrum.trusted.sum()), len(spectrum.eigenvalues)
    condition = f"{spectrum.condition:.1e}" if math.isfinite(spectrum.condition) else "–"
    text = (
        f"{trusted} of {modes} modes are trusted, with a residual of {spectrum.tolerance:g} or less on "
        f"{spectrum.samples:,} rows; read nothing into the others. Condition number of the eigenvectors: {condition}; "
        "the larger, the farther small changes of K move λ."
    )
    alt = f"Eigenvalues of K in the complex plane with the unit circle: {trusted} trusted of {modes}."
    return section(
        "spectrum",
        "Spectrum of K",
        f"<p>{text}</p>",
        figure(figures, "spectrum", alt, "Filled: trusted; hollow: not trusted."),
        *map(shown, spectrum.tables()),
        *(f"<p>{escape(note)}</p>" for note in spectrum.notes()),
    )


def _topology(name: str, topology: Topology, index: int, figures: Mapping[str, str]) -> str:
    drawn = [each for each in figures if each.startswith(f"topology-{index}-")]
    return section(
        f"topology-{index}",
        f"Topology of the {name}",
        f"<p>{topology.points:,} points a depth, scales in {escape(topology.scale_name)}.</p>",
        *(figure(figures, each, f"Betti-{each[-1]} curves of the {name}, one line a depth.") for each in drawn),
        *map(shown, topology.tables()),
    )


def _fit(koopman: KoopmanAutoencoder, figures: Mapping[str, str]) -> str:
    record = koopman.record
    return section(
        "fit",
        "Fit",
        *(f"<p>{escape(line)}</p>" for line in (repr(koopman), repr(record), *record.notes())),
        figure(figures, "fit", f"Held-out figures by step. {record!r}"),
    )


def _trajectories(description: str, figures: Mapping[str, str]) -> str:
    text = "Each depth has its own plane, turned to lie nearest to the one before; part of the rows is drawn."
    return section(
        "trajectories",
        "Trajectories",
        f"<p>{escape(description)}. {text}</p>",
        figure(figures, "trajectories", "States in their first two principal components, one panel a depth."),
    )


def _facts(facts: Mapping[str, object]) -> str:
    body = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_fact(value))}</dd>" for name, value in facts.items())
    return f"<dl>{body}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_fact(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _seconds(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    columns = (
        Column("stage", (*seconds, "together")),
        Column("seconds", (*seconds.values(), sum(seconds.values())), digits(2)),
    )
    return shown(Table(columns, "Time per stage."))
