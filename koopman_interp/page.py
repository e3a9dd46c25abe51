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

from koopman_interp.auditing import SHOTS
from koopman_interp.errors import FileFormatError
from koopman_interp.files import read_json, write_text
from koopman_interp.page_text import AUDIT_KEY, FILES, PAGE, STYLE

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
        *(_audit(audit, index, figures) for index, audit in enumerate(values["audits"])),
        _edit(values["edit"]),
        _fidelity(values["fidelity"], figures),
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
    agrees = f"the host predicts as before on {_strong(ours['agreement'])} of held-out rows"
    if not audits:
        return f"With the surrogate in place of its span, {agrees}; no edit was audited."
    audit = audits[0]
    before, after = audit["rows"][0], audit["rows"][-1]
    return (
        f"After “{escape(audit['edit'])}”, class {audit['label']} is still predicted on "
        f"{_strong(after['forgotten'])} of its held-out rows (host: {_percent(before['forgotten'])} %) and "
        f"{_strong(after['retained'])} of the others are right (host: {_percent(before['retained'])} %), "
        f"while probes find the class in the representation at {_strong(after['linear_probe'])} (linear) and "
        f"{_strong(after['rbf_probe'])} (RBF), where chance is 50 %; without the edit and with the surrogate "
        f"in place of its span, {agrees}."
    )


def _audit(audit: Mapping[str, Any], index: int, figures: Mapping[str, str]) -> str:
    rows = audit["rows"]
    label, ours, names = audit["label"], rows[-1], [row["name"] for row in rows]
    measures = ("forgotten", "retained", "linear_probe", "rbf_probe", "prototype")
    body = [
        [row["name"], _percent(row["forgotten"]), _percent(row["retained"]), _number(row["kl"], 4)]
        + [_percent(row[name]) for name in measures[2:]]
        for row in rows
    ]
    header = [
        "way of forgetting",
        "forgotten %",
        "retained %",
        "KL to host, nats",
        "linear probe %",
        "RBF probe %",
    ]
    found = _percent(max(ours["linear_probe"], ours["rbf_probe"]))
    alt = f"Dot plot of the table above: {', '.join(names)}, by what is suppressed and what probes still find."
    counts = f"{audit['forget_rows']:,} held-out rows of class {label}, {audit['retain_rows']:,} of the others"
    return _section(
        f"audit-{index}",
        f"Audit: {audit['edit']}, {ours['name']}",
        f'<p class="plain"><strong>Reversible suppression: probe still finds the class at {found} %</strong> '
        "(50 % is chance). Nothing has been removed from the weights.</p>",
        _table(f"{counts}.", [*header, f"{SHOTS}-shot prototype %"], body, marked=len(rows) - 1),
        AUDIT_KEY if index == 0 else "",
        _figure(figures, f"audit-{index}", alt, "What each way suppresses at the output, and what is still there."),
    )


def _edit(edit: Mapping[str, Any]) -> str:
    known = edit["certificate"]
    if known is None:
        body = "<p>This edit has no certificate: it was composed or scaled after it was made.</p>"
    else:
        source = f"measured on {known['drift_rows']:,} rows" if known["drift_rows"] else "a bound from held-out moments"
        rows = [
            ["rank of the change of K", str(known["rank"])],
            ["noise of the reading (the class reads 1, the retained mean 0)", _number(known["noise"], 2)],
            [
                f"drift of retained rows, % of the spread of all rows ({source})",
                _percent(known["retained_drift"]),
            ],
            [
                "farthest drift of a retained class mean, % of the same spread",
                _percent(known["class_mean_drift"]),
            ],
            ["undo error, ‖undo(K′) − K‖ / ‖K‖", _number(known["undo_error"], 1, "e")],
        ]
        body = _table("What can be said of the edit without running the host.", ["figure", "value"], rows)
    return _section("edit", f"Edit: {edit['description']}, at {edit['site']}", body)


def _fidelity(fidelity: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    outputs, depths = fidelity["outputs"], fidelity["depths"]
    at_output = [
        [row["name"], _percent(row["accuracy"]), _percent(row["agreement"]), _number(row["kl"], 4)] for row in outputs
    ]
    marked = next(index for index, row in enumerate(outputs) if row["name"] == "surrogate")
    names = list(depths[-1]["unexplained"])
    at_depths = [
        [
            depth["site"],
            *(_number(depth["unexplained"][name], 4) for name in names),
            _number(depth["linearity_residual"], 4),
            " / ".join(_number(ratio, 2) for ratio in depth["isometry"]),
        ]
        for depth in depths
    ]
    header = ["site", *(f"unexplained: {name}" for name in names), "linearity residual", "isometry 5/50/95 %"]
    caption = "At each depth: share of variance that each predictor from the first depth leaves unexplained."
    return _section(
        "fidelity",
        "Fidelity: the surrogate beside what is free",
        f"<p>On {fidelity['rows']:,} held-out rows. Identity is the state as it was at the first depth; mean "
        "and endpoint linear map were fitted on the surrogate's rows. The output has the last word.</p>",
        _table(
            "At the host's output, with each predictor in place of the span.",
            ["in place of the span", "accuracy %", "agreement %", "KL to host, nats"],
            at_output,
            marked=marked,
        ),
        _figure(figures, "output", "Dot plot of agreement and accuracy by predictor, as in the table above."),
        _table(caption, header, at_depths, marked_column=1 + names.index("surrogate")),
        "<p>Linearity residual: how far observables miss K's step from the depth before. Isometry: quantiles "
        "of the ratio of distances in observables to distances in states; 1 keeps shapes.</p>",
        _figure(
            figures,
            "fidelity",
            "Unexplained variance over depth, one line a predictor, as in the table above.",
        ),
    )


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
            _number(residuals[index], 3),
            "trusted" if residuals[index] is not None and residuals[index] <= tolerance else "spurious",
        ]
        for index in shown
    ]
    text = (
        f"{trusted} of {len(values)} modes keep a residual of {tolerance:g} or less on "
        f"{spectrum['samples']:,} rows; read nothing into the others. Condition number of the eigenvectors: "
        f"{_number(spectrum['condition'], 1, 'e')}; the larger, the farther small changes of K move λ."
    )
    alt = f"Eigenvalues of K in the complex plane with the unit circle: {trusted} trusted of {len(values)}."
    caption = "Slowest modes first; a conjugate pair is one line. |λ| and turn are per operator step."
    header = ["mode", "|λ|", "turn", "residual", "verdict"]
    return _section(
        "spectrum",
        "Spectrum of K",
        f"<p>{text}</p>",
        _figure(figures, "spectrum", alt, "Filled: trusted; hollow: spurious."),
        _table(caption, header, rows),
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
        [cloud, *(str(number) for counts in betti.values() for number in counts[cloud]), _number(diameter, 3)]
        for cloud, diameter in zip(clouds, topology["diameters"], strict=bool(clouds))
    ]
    drawn = [each for each in figures if each.startswith(f"topology-{index}-")]
    return _section(
        f"topology-{index}",
        f"Topology of the {name}",
        f"<p>{topology['points']:,} points a depth. β0 counts connected pieces and β1 loops; scales are "
        "shares of each cloud's own diameter.</p>",
        *(_figure(figures, each, f"Betti-{each[-1]} curves of the {name}, one line a depth.") for each in drawn),
        _table("Betti numbers by scale.", header, rows) if rows else "",
    )


def _fit(surrogate: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    history = surrogate["history"]
    if not history:
        return _section("fit", "Fit", f"<p>{escape(surrogate['description'])}; no history was kept.</p>")
    kept = min(history, key=lambda entry: entry["loss"]) if "loss" in history[-1] else history[-1]
    when = f"kept weights: step {kept['step']:,}" if "step" in kept else "one least-squares solve"
    shares = f"unexplained variance {_number(kept['unexplained'], 4)}, stress {_number(kept['stress'], 4)}"
    return _section(
        "fit",
        "Fit",
        f"<p>{escape(surrogate['description'])}; {when}, with held-out {shares}.</p>",
        _figure(figures, "fit", f"Held-out figures by step; {when}, {shares}."),
    )


def _trajectories(trajectories: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    text = "Each depth has its own plane, turned to lie nearest to the one before; part of the rows is drawn."
    return _section(
        "trajectories",
        "Trajectories",
        f"<p>{escape(trajectories['description'])}. {text}</p>",
        _figure(figures, "trajectories", "States in their first two principal components, one panel a depth."),
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
    return _table("Time per stage.", ["stage", "seconds"], [*rows, ["together", f"{sum(seconds.values()):.2f}"]])


def _section(name: str, heading: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(heading)}</h2>\n{body}\n</section>'


def _table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    marked: int | None = None,
    marked_column: int | None = None,
) -> str:
    """One table in a container that scrolls; the first column names the rows."""

    def cell(tag: str, text: str, column: int, scope: str = "") -> str:
        look = ' class="marked"' if column == marked_column else ""
        return f"<{tag}{scope}{look}>{escape(text)}</{tag}>"

    head = "".join(cell("th", name, column, ' scope="col"') for column, name in enumerate(header))
    body = []
    for index, (name, *others) in enumerate(rows):
        cells = "".join(cell("td", text, column) for column, text in enumerate(others, 1))
        first = cell("th", name, 0, ' scope="row"')
        look = ' class="marked"' if index == marked else ""
        body.append(f"<tr{look}>{first}{cells}</tr>")
    label = escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table>\n'
        f"<caption>{label}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n"
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )


def _figure(figures: Mapping[str, str], name: str, alt: str, caption: str = "") -> str:
    """One figure on a white card; as an image, since nothing in an image can run."""
    look = ' class="wide"' if name.startswith("audit-") else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll card" role="region" aria-label="Figure: {escape(name)}" tabindex="0">'
        f'<img{look} src="{figures[name]}" alt="{escape(alt)}"></div>{below}</figure>'
    )


def _image(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no figure {path}, which {METRICS_FILE} names. Write the run again.")
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _strong(share: float | None) -> str:
    return f"<strong>{_percent(share)} %</strong>"


def _percent(share: float | None) -> str:
    return _number(None if share is None else 100 * share, 1)


def _number(value: float | None, digits: int, kind: str = "f") -> str:
    return "–" if value is None else f"{value:,.{digits}{kind}}"
