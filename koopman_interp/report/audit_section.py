"""The part of a run's page that shows an audit: its verdict, its tables, its figures.

Computes nothing but percentages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from koopman_interp.report.parts import figure, number, percent, section, table
from koopman_interp.report.text import AUDIT_KEY

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]

_OUTPUT: tuple[Column, ...] = (
    ("forgotten %", lambda row: percent(row["forgotten"])),
    ("95 % interval", lambda row: _ends(row, "forgotten")),
    ("retained %", lambda row: percent(row["retained"])),
    ("95 % interval", lambda row: _ends(row, "retained")),
    ("KL to host, nats", lambda row: number(row["kl"], 4)),
    ("JS to host %", lambda row: percent(row["js"])),
    ("JS to retrained %", lambda row: percent(row["retrained_js"])),
)
_TRAINING: tuple[Column, ...] = (
    ("forgotten %", lambda row: percent(row["forgotten_training"])),
    ("retained %", lambda row: percent(row["retained_training"])),
    ("membership by loss %", lambda row: _attack(row, "loss")),
    ("by confidence %", lambda row: _attack(row, "confidence")),
)
_STATES: tuple[Column, ...] = (
    ("linear probe %", lambda row: percent(row["linear_probe"])),
    ("RBF probe %", lambda row: percent(row["rbf_probe"])),
    ("MLP probe %", lambda row: percent(row["mlp_probe"])),
    ("1-shot prototype %", lambda row: percent(row["one_shot"])),
    ("5-shot %", lambda row: percent(row["five_shot"])),
    ("10-shot %", lambda row: percent(row["prototype"])),
    ("drift of the others %", lambda row: percent(row["drift"])),
)


def audit_section(audit: Mapping[str, Any], index: int, figures: Mapping[str, str]) -> str:
    """Show one audit.

    Args:
        audit: its plain values.
        index: which of the run's it is; the first explains the columns.
        figures: images by name.

    Returns:
        A section of the page.
    """
    rows = audit["rows"]
    label, ours, names = audit["label"], rows[-1], ", ".join(row["name"] for row in rows)
    probes = [ours[name] for name in ("linear_probe", "rbf_probe", "mlp_probe") if ours[name] is not None]
    found = (
        f": a probe still finds the class at {percent(max(probes))} %</strong> (50 % is chance)"
        if probes
        else "</strong>"
    )
    counts = f"{audit['forget_rows']:,} held-out rows of class {label}, {audit['retain_rows']:,} of the others"
    trained = f"{audit['forget_training_rows']:,} of class {label}, {audit['retain_training_rows']:,} of the others"
    alt = f"Dot plot of the tables above: {names}, by what is suppressed and what probes still find."
    return section(
        f"audit-{index}",
        f"Audit: {audit['edit']}, {ours['name']}",
        f'<p class="plain"><strong>Reversible suppression{found}. Nothing has been removed from the weights.</p>',
        *(f"<p>{escape(line)}</p>" for line in [*audit["verdict"].splitlines(), *audit["notes"]]),
        _columns(f"At the output. {counts}.", _OUTPUT, rows),
        _columns(f"On rows that were trained on. {trained}.", _TRAINING, rows),
        _columns("What the last states still hold; chance is 50 % for the probes.", _STATES, rows),
        AUDIT_KEY if index == 0 else "",
        figure(figures, f"audit-{index}", alt, "What each way suppresses at the output, and what is still there."),
        _by_depth(rows),
        _drawn(
            figures,
            f"audit-{index}-depths",
            "What is found of the class over depth, one line a way, as in the table above.",
        ),
        _by_step(rows),
        _drawn(figures, f"audit-{index}-relearning", "Share recognised by step of relearning, as in the table above."),
        _spoken(rows),
    )


def _columns(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """One table, without the columns that were not measured; none without any."""
    cells = [(name, [show(row) for row in rows]) for name, show in columns]
    kept = [(name, column) for name, column in cells if set(column) != {"–"}]
    if not kept:
        return ""
    body = [[row["name"], *(column[place] for _, column in kept)] for place, row in enumerate(rows)]
    return table(caption, ["way of forgetting", *(name for name, _ in kept)], body, marked=len(rows) - 1)


def _by_depth(rows: Sequence[Row]) -> str:
    read = [row for row in rows if row["depths"]]
    if not read:
        return ""
    sites = [reading["site"] for reading in max((row["depths"] for row in read), key=len)]
    body = []
    for row in read:
        found = {
            one["site"]: f"{percent(max(one['probes'].values(), default=None))} / {percent(one['prototypes']['10'])}"
            for one in row["depths"]
        }
        body.append([row["name"], *(found.get(site, "–") for site in sites)])
    caption = "By depth: best probe / 10-shot prototype, %. Sites upstream of a patch hold what the host's own hold."
    return table(caption, ["way of forgetting", *sites], body, marked=len(body) - 1)


def _by_step(rows: Sequence[Row]) -> str:
    curves = [(row["name"], curve) for row in rows for curve in row["relearning"]]
    if not curves:
        return ""
    body = [
        [
            f"{name}, {curve['moved']}",
            *(f"{100 * a:.0f} / {100 * b:.0f}" for a, b in zip(curve["forgotten"], curve["retained"], strict=True)),
        ]
        for name, curve in curves
    ]
    caption = "Relearning, with the way of forgetting left in place: class recognised / others right, %, by step."
    return table(caption, ["way, and what moves", *map(str, curves[0][1]["steps"])], body)


def _spoken(rows: Sequence[Row]) -> str:
    spoken = [row for row in rows if row["language"] is not None]
    if not spoken:
        return ""
    names = ("reliability", "generality", "locality")
    body = [
        [row["name"], *(percent(row["language"][name]) for name in names), number(row["language"]["perplexity"], 3)]
        for row in spoken
    ]
    samples = "".join(
        f"<dt>{escape(row['name'])}</dt><dd>{escape(sample)}</dd>"
        for row in spoken
        for sample in row["language"]["samples"]
    )
    head = ["way of forgetting", *(f"{name} %" for name in names), "perplexity"]
    return table("What the language model does.", head, body) + (f"<dl>{samples}</dl>" if samples else "")


def _drawn(figures: Mapping[str, str], name: str, alt: str) -> str:
    return figure(figures, name, alt) if name in figures else ""


def _ends(row: Row, name: str) -> str:
    ends = row["intervals"].get(name)
    return "–" if ends is None else f"{percent(ends[0])} … {percent(ends[1])}"


def _attack(row: Row, name: str) -> str:
    found = row["membership"]
    if found is None:
        return "–"
    return f"{percent(found[name])} ± {percent(found[f'{name}_error'])}"
