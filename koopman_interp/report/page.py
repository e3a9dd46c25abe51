"""One self-contained HTML page a run, that says what was done and how far it can be trusted.

`build_page` makes the page from the numbers and figures in a run's folder alone, so that it can be rebuilt
anywhere. The page needs no script and no network: figures are embedded as images, in which nothing can run,
and all text is escaped. Knows nothing of models or of how figures are drawn, and computes nothing but
percentages.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from koopman_interp.errors import FileFormatError
from koopman_interp.files import read_json, write_text
from koopman_interp.report.audit_section import audit_section
from koopman_interp.report.lens_section import lens_sections
from koopman_interp.report.parts import figure, number, percent, section, strong, table
from koopman_interp.report.text import FILES, PAGE, STYLE

KIND = "koopman-interp run"
METRICS_FILE = "metrics.json"
PAGE_FILE = "report.html"
FIGURES = "figures"
SLOWEST = 12
"""Modes that the page lists; the numbers hold all of them."""


def build_page(folder: str | os.PathLike[str]) -> Path:
    """Build the page of a run from its numbers and figures; the same files give the same bytes.

    Args:
        folder: one that `write_run` wrote.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: there are no numbers, or one of the figures they name is missing.
        FileFormatError: the numbers are not JSON, not of a run, or incomplete.
    """
    source = Path(folder) / METRICS_FILE
    values = read_json(source)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise FileFormatError(f"{source} does not hold the numbers of a {KIND}. Write the run again.")
    try:
        figures = {name: _image(Path(folder) / FIGURES / f"{name}.svg") for name in values["figures"]}
        page = _page(values, figures)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{source} is incomplete: {type(error).__name__} {error}, building the page. Write the run again."
        ) from error
    write_text(Path(folder) / PAGE_FILE, page)
    return Path(folder) / PAGE_FILE


def _page(values: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    sections = [
        *(audit_section(audit, index, figures) for index, audit in enumerate(values["audits"])),
        _edit(values["edits"]),
        _fidelity(values["fidelity"], figures),
        *lens_sections(values["lens"], figures),
        _spectrum(values["spectrum"], figures),
        *(_topology(name, each, i, figures) for i, (name, each) in enumerate(values["topologies"].items())),
        _fit(values["surrogate"], figures),
        _trajectories(values["trajectories"], figures),
        FILES,
    ]
    return Template(PAGE).substitute(
        title=escape(values["title"]),
        style=STYLE,
        result=_result(values["audits"], values["fidelity"]),
        command=escape(values["command"]),
        host=_facts(values["host"]),
        seconds=_seconds(values["seconds"]),
        sections="\n".join(sections),
    )


def _result(audits: Sequence[Mapping[str, Any]], fidelity: Mapping[str, Any]) -> str:
    """One sentence with the numbers of the first audit, or of the fidelity without one."""
    ours = next(row for row in fidelity["outputs"] if row["name"] == "surrogate")
    agrees = f"the host predicts as before on {strong(ours['agreement'])} of held-out rows"
    if not audits:
        return f"With the surrogate in place of its span, {agrees}; no edit was audited."
    audit = audits[0]
    before, after = audit["rows"][0], audit["rows"][-1]
    return (
        f"After “{escape(audit['edit'])}”, class {audit['label']} is still predicted on "
        f"{strong(after['forgotten'])} of its held-out rows (host: {percent(before['forgotten'])} %) and "
        f"{strong(after['retained'])} of the others are right (host: {percent(before['retained'])} %), "
        f"while probes find the class in the representation at {_probes(after)}, where chance is 50 %; without the "
        f"edit and with the surrogate in place of its span, {agrees}."
    )


def _probes(row: Mapping[str, Any]) -> str:
    names = {"linear_probe": "linear", "rbf_probe": "RBF", "mlp_probe": "MLP"}
    shown = [f"{strong(row[name])} ({kind})" for name, kind in names.items() if row[name] is not None]
    return ", ".join(shown) or "no accuracy that was measured"


def _edit(edits: Sequence[Mapping[str, Any]]) -> str:
    """Tabulate what is known of an edit, or of several, one column a site."""
    first = edits[0]
    heading = f"Edit: {first['description']}, at {first['site'] if len(edits) == 1 else f'{len(edits)} sites'}"
    known = {edit["site"]: edit["certificate"] for edit in edits if edit["certificate"] is not None}
    if not known:
        body = "<p>This edit has no certificate: it was composed or scaled after it was made.</p>"
        return section("edit", heading, body)
    measured = [one["drift_rows"] for one in known.values()]
    source = f"measured on {measured[0]:,} rows" if all(measured) else "a bound from held-out moments"
    lines = {
        "rank of the change of K": lambda one: str(one["rank"]),
        "noise of the reading (the class reads 1, the retained mean 0)": lambda one: number(one["noise"], 2),
        f"drift of retained rows, % of the spread of all rows ({source})": lambda one: percent(one["retained_drift"]),
        "farthest drift of a retained class mean, % of the same spread": lambda one: percent(one["class_mean_drift"]),
        "undo error, ‖undo(K′) − K‖ / ‖K‖": lambda one: number(one["undo_error"], 1, "e"),
    }
    rows = [[name, *map(shown, known.values())] for name, shown in lines.items()]
    header = ["figure", *(["value"] if len(edits) == 1 else known)]
    return section("edit", heading, table("What can be said of the edit without running the host.", header, rows))


def _fidelity(fidelity: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    outputs, depths = fidelity["outputs"], fidelity["depths"]
    at_output = [
        [row["name"], percent(row["accuracy"]), percent(row["agreement"]), number(row["kl"], 4)] for row in outputs
    ]
    marked = next(index for index, row in enumerate(outputs) if row["name"] == "surrogate")
    names = list(depths[-1]["unexplained"])
    at_depths = [
        [
            depth["site"],
            *(number(depth["unexplained"][name], 4) for name in names),
            number(depth["linearity_residual"], 4),
            " / ".join(number(ratio, 2) for ratio in depth["isometry"]),
        ]
        for depth in depths
    ]
    header = ["site", *(f"unexplained: {name}" for name in names), "linearity residual", "isometry 5/50/95 %"]
    caption = "At each depth: share of variance that each predictor from the first depth leaves unexplained."
    return section(
        "fidelity",
        "Fidelity: the surrogate beside what is free",
        f"<p>On {fidelity['rows']:,} held-out rows. Identity is the state as it was at the first depth; mean "
        "and endpoint linear map were fitted on the surrogate's rows. The output has the last word.</p>",
        table(
            "At the host's output, with each predictor in place of the span.",
            ["in place of the span", "accuracy %", "agreement %", "KL to host, nats"],
            at_output,
            marked=marked,
        ),
        figure(figures, "output", "Dot plot of agreement and accuracy by predictor, as in the table above."),
        table(caption, header, at_depths, marked_column=1 + names.index("surrogate")),
        "<p>Linearity residual: how far observables miss K's step from the depth before. Isometry: quantiles "
        "of the ratio of distances in observables to distances in states; 1 keeps shapes.</p>",
        figure(
            figures,
            "fidelity",
            "Unexplained variance over depth, one line a predictor, as in the table above.",
        ),
        *_by_span(fidelity, figures),
    )


def _by_span(fidelity: Mapping[str, Any], figures: Mapping[str, str]) -> list[str]:
    spans = fidelity["spans"]
    if not spans:
        return []
    names = [row["name"] for row in fidelity["outputs"][1:]]
    rows = []
    for one in spans:
        found = {row["name"]: f"{number(row['kl'], 4)} / {percent(row['agreement'])}" for row in one["outputs"]}
        rows.append([f"{one['source']} → {one['target']}", *(found.get(name, "–") for name in names)])
    return [
        table(
            "At the host's output, with each predictor in place of a shorter span: KL to host, nats / agreement %.",
            ["span", *names],
            rows,
            marked_column=1 + names.index("surrogate"),
        ),
        figure(figures, "spans", "KL to the host by where the span starts, one line a predictor.")
        if "spans" in figures
        else "",
    ]


def _spectrum(spectrum: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    values = [complex(*pair) for pair in spectrum["eigenvalues"]]
    residuals, tolerance = spectrum["residuals"], spectrum["tolerance"]
    trusted = sum(residual is not None and residual <= tolerance for residual in residuals)
    shown = [index for index, value in enumerate(values) if value.imag >= 0][:SLOWEST]
    rows = [
        [
            str(index),
            f"{abs(values[index]):.4f}",
            f"{'±' if values[index].imag > 0 else ''}{np.degrees(np.angle(values[index])):.1f}°",
            number(residuals[index], 3),
            "trusted" if residuals[index] is not None and residuals[index] <= tolerance else "spurious",
        ]
        for index in shown
    ]
    text = (
        f"{trusted} of {len(values)} modes keep a residual of {tolerance:g} or less on "
        f"{spectrum['samples']:,} rows; read nothing into the others. Condition number of the eigenvectors: "
        f"{number(spectrum['condition'], 1, 'e')}; the larger, the farther small changes of K move λ."
    )
    alt = f"Eigenvalues of K in the complex plane with the unit circle: {trusted} trusted of {len(values)}."
    caption = "Slowest modes first; a conjugate pair is one line. |λ| and turn are per operator step."
    header = ["mode", "|λ|", "turn", "residual", "verdict"]
    return section(
        "spectrum",
        "Spectrum of K",
        f"<p>{text}</p>",
        figure(figures, "spectrum", alt, "Filled: trusted; hollow: spurious."),
        table(caption, header, rows),
    )


def _topology(name: str, topology: Mapping[str, Any], index: int, figures: Mapping[str, str]) -> str:
    betti = topology["betti"]
    clouds = list(next(iter(betti.values()), {}))
    header = [
        "cloud",
        *(f"β{k} at {scale}" for scale, counts in betti.items() for k in range(len(counts[clouds[0]]))),
        "diameter",
    ]
    rows = [
        [
            cloud,
            *("–" if count is None else str(count) for counts in betti.values() for count in counts[cloud]),
            number(diameter, 3),
        ]
        for cloud, diameter in zip(clouds, topology["diameters"], strict=bool(clouds))
    ]
    drawn = [each for each in figures if each.startswith(f"topology-{index}-")]
    return section(
        f"topology-{index}",
        f"Topology of the {name}",
        f"<p>{topology['points']:,} points a depth. β0 counts connected pieces and β1 loops; scales are "
        "shares of each cloud's own diameter.</p>",
        *(figure(figures, each, f"Betti-{each[-1]} curves of the {name}, one line a depth.") for each in drawn),
        table("Betti numbers by scale.", header, rows) if rows else "",
    )


def _fit(surrogate: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    history = surrogate["history"]
    if not history:
        return section("fit", "Fit", f"<p>{escape(surrogate['description'])}; no history was kept.</p>")
    kept = min(history, key=lambda entry: entry["loss"]) if "loss" in history[-1] else history[-1]
    when = f"kept weights: step {kept['step']:,}" if "step" in kept else "one least-squares solve"
    shares = f"FVU {number(kept['fvu'], 4)}, stress {number(kept['stress'], 4)}"
    return section(
        "fit",
        "Fit",
        f"<p>{escape(surrogate['description'])}; {when}, with held-out {shares}.</p>",
        figure(figures, "fit", f"Held-out figures by step; {when}, {shares}."),
    )


def _trajectories(trajectories: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    text = "Each depth has its own plane, turned to lie nearest to the one before; part of the rows is drawn."
    return section(
        "trajectories",
        "Trajectories",
        f"<p>{escape(trajectories['description'])}. {text}</p>",
        figure(figures, "trajectories", "States in their first two principal components, one panel a depth."),
    )


def _facts(facts: Mapping[str, Any]) -> str:
    body = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(_fact(value))}</dd>" for name, value in facts.items())
    return f"<dl>{body}</dl>"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_fact(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _seconds(seconds: Mapping[str, float]) -> str:
    rows = [[name, f"{spent:.2f}"] for name, spent in seconds.items()]
    return table("Time per stage.", ["stage", "seconds"], [*rows, ["together", f"{sum(seconds.values()):.2f}"]])


def _image(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no figure {path}, which {METRICS_FILE} names. Write the run again.")
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"
