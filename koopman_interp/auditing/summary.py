"""The tables of an audit, for terminals: output, representation, depths, relearning, language.

Columns and tables that nothing was measured for are left out. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from koopman_interp.auditing.language import language_table
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.tables import table

Column = tuple[str, Callable[[AuditRow], str]]


def printed(rows: Sequence[AuditRow]) -> str:
    """Tabulate all that was measured."""
    parts = [
        _table("at the output, %", _output(), rows),
        _table("on training rows, %", _training(), rows),
        _table("in the last states, %", _states(), rows),
        _by_depth(rows),
        _by_step(rows),
    ]
    spoken = {row.name: row.language for row in rows if row.language is not None}
    if spoken:
        parts.append(language_table(spoken))
    return "\n\n".join(part for part in parts if part)


def share(value: float | None, digits: int = 1) -> str:
    """Show a share in per cent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def within(row: AuditRow, name: str) -> str:
    """Show the ends of an interval of a share, or a dash."""
    ends = row.intervals.get(name)
    return "–" if ends is None else f"{100 * ends[0]:.1f} … {100 * ends[1]:.1f}"


def attack(area: float | None, error: float | None) -> str:
    """Show an area under a curve with its standard error, or a dash."""
    return "–" if area is None or error is None else f"{100 * area:.1f} ± {100 * error:.1f}"


def _of_membership(read: Callable[[Membership], str]) -> Callable[[AuditRow], str]:
    return lambda row: "–" if row.membership is None else read(row.membership)


def _output() -> list[Column]:
    return [
        ("forgotten", lambda row: share(row.forgotten, 2)),
        ("95 % interval", lambda row: within(row, "forgotten")),
        ("retained", lambda row: share(row.retained, 2)),
        ("95 % interval", lambda row: within(row, "retained")),
        ("KL to host", lambda row: f"{row.kl:.4f}"),
        ("JS to host", lambda row: share(row.js)),
        ("JS to retrained", lambda row: share(row.retrained_js)),
    ]


def _training() -> list[Column]:
    return [
        ("forgotten", lambda row: share(row.forgotten_training, 2)),
        ("retained", lambda row: share(row.retained_training, 2)),
        ("membership by loss", _of_membership(lambda found: attack(found.loss, found.loss_error))),
        ("by confidence", _of_membership(lambda found: attack(found.confidence, found.confidence_error))),
    ]


def _states() -> list[Column]:
    return [
        ("linear probe", lambda row: share(row.linear_probe)),
        ("RBF probe", lambda row: share(row.rbf_probe)),
        ("MLP probe", lambda row: share(row.mlp_probe)),
        ("1-shot prototype", lambda row: share(row.one_shot)),
        ("5-shot", lambda row: share(row.five_shot)),
        ("10-shot", lambda row: share(row.prototype)),
        ("drift of the others", lambda row: share(row.drift)),
    ]


def _table(title: str, columns: Sequence[Column], rows: Sequence[AuditRow]) -> str:
    """Put columns together, those left out that are dashes all the way down; nothing without any."""
    cells = [(name, [show(row) for row in rows]) for name, show in columns]
    kept = [(name, column) for name, column in cells if set(column) != {"–"}]
    if not kept:
        return ""
    body = [[row.name, *(column[index] for _, column in kept)] for index, row in enumerate(rows)]
    return table([title, *(name for name, _ in kept)], body)


def _by_depth(rows: Sequence[AuditRow]) -> str:
    """Tabulate the best probe and the prototype at each site: one line a way."""
    read = [row for row in rows if row.depths]
    if not read:
        return ""
    sites = [reading.site for reading in max((row.depths for row in read), key=len)]
    body = []
    for row in read:
        found = {
            one.site: f"{share(max(one.probes.values(), default=None))} / {share(one.prototypes[10])}"
            for one in row.depths
        }
        body.append([row.name, *(found.get(site, "–") for site in sites)])
    return table(["by depth: best probe / 10-shot prototype, %", *sites], body)


def _by_step(rows: Sequence[AuditRow]) -> str:
    """Tabulate relearning: recognised / others right, after each number of steps."""
    curves = [(row.name, curve) for row in rows for curve in row.relearning]
    if not curves:
        return ""
    body = [
        [
            f"{name}, {curve.moved}",
            *(f"{100 * a:.0f} / {100 * b:.0f}" for a, b in zip(curve.forgotten, curve.retained, strict=True)),
        ]
        for name, curve in curves
    ]
    return table(["relearned after steps: forgotten / retained, %", *map(str, curves[0][1].steps)], body)
