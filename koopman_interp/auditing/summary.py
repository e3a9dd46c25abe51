"""The tables of an audit: output, training rows, representation, depths, relearning, language.

Columns and tables that nothing was measured for are left out. Computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from koopman_interp.auditing.intervals import between
from koopman_interp.auditing.language import language_table
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.tables import NOTHING, Column, Table, digits, percent, percents

Pair = tuple[float, float]

_METHOD = "method"


def audit_tables(rows: Sequence[AuditRow], held_out: str, training: str) -> tuple[Table, ...]:
    """Tabulate all that was measured.

    Args:
        rows: the methods, the edit last.
        held_out: how many held-out rows there are, in words.
        training: how many training rows.

    Returns:
        The tables, the one of the output first.
    """
    method = Column(_METHOD, tuple(row.name for row in rows))
    last = len(rows) - 1
    tables = [
        Table((method, *_output(rows)), f"At the output, % (KL in nats; 95 % intervals). {held_out}.", last),
        Table((method, *_training(rows)), f"On rows that were trained on, %. {training}.", last),
        Table((method, *_states(rows)), "What the last states still hold, %; probes have 50 at chance.", last),
        _by_depth(rows),
        _by_step(rows),
        language_table({row.name: row.language for row in rows if row.language is not None}),
    ]
    return tuple(table for table in (table.without_empty() for table in tables) if len(table.columns) > 1)


def side_by_side(rows: Sequence[AuditRow], edits: int, held_out: str, training: str) -> tuple[Table, ...]:
    """Tabulate baselines once, with one or more edits below them: output and last states in one table, then the rest.

    Args:
        rows: the methods, the edits last.
        edits: how many of the rows are edits.
        held_out: how many held-out rows there are, in words.
        training: how many training rows.

    Returns:
        The tables, the one of output and states first.
    """
    method = Column(_METHOD, tuple(row.name for row in rows))
    ours = range(len(rows) - edits, len(rows))
    caption = (
        "At the output, then what the last states still hold, % (KL in nats; 95 % intervals; probes have 50 at "
        f"chance). {held_out}."
    )
    tables = [
        Table((method, *_output(rows), *_states(rows)), caption, ours),
        Table((method, *_training(rows)), f"On rows that were trained on, %. {training}.", ours),
        _by_depth(rows),
        _by_step(rows),
        language_table({row.name: row.language for row in rows if row.language is not None}),
    ]
    return tuple(table for table in (table.without_empty() for table in tables) if len(table.columns) > 1)


def _output(rows: Sequence[AuditRow]) -> list[Column]:
    return [
        _share(rows, "forget accuracy ↓", lambda row: row.forget_accuracy, 2),
        _interval(rows, "forget, 95 %", "forget_accuracy"),
        _share(rows, "retain accuracy ↑", lambda row: row.retain_accuracy, 2),
        _interval(rows, "retain, 95 %", "retain_accuracy"),
        Column("KL to base model", tuple(None if math.isnan(row.kl) else row.kl for row in rows), digits(4)),
        _share(rows, "JS to base model", lambda row: row.js),
        _share(rows, "JS to retrained", lambda row: row.retrained_js),
    ]


def _training(rows: Sequence[AuditRow]) -> list[Column]:
    attacks = [row.membership for row in rows]
    by_loss = tuple(None if one is None else (one.loss, one.loss_error) for one in attacks)
    by_confidence = tuple(None if one is None else (one.confidence, one.confidence_error) for one in attacks)
    return [
        _share(rows, "forget accuracy ↓", lambda row: row.forget_accuracy_training, 2),
        _share(rows, "retain accuracy ↑", lambda row: row.retain_accuracy_training, 2),
        Column("membership by loss", by_loss, _with_error),
        Column("membership by confidence", by_confidence, _with_error),
    ]


def _states(rows: Sequence[AuditRow]) -> list[Column]:
    return [
        _share(rows, "linear probe", lambda row: row.linear_probe),
        _share(rows, "RBF probe", lambda row: row.rbf_probe),
        _share(rows, "MLP probe", lambda row: row.mlp_probe),
        _share(rows, "1-shot prototype", lambda row: row.one_shot),
        _share(rows, "5-shot", lambda row: row.five_shot),
        _share(rows, "10-shot", lambda row: row.prototype),
        _share(rows, "drift (retain)", lambda row: row.drift),
    ]


def _by_depth(rows: Sequence[AuditRow]) -> Table:
    """Tabulate the best probe and the prototype at each site."""
    read = [{scores.site: scores for scores in row.depths} for row in rows if row.depths]
    columns = [Column(_METHOD, tuple(row.name for row in rows if row.depths))]
    for site in max(read, key=len, default={}):
        at_site = [scores.get(site) for scores in read]
        pairs = tuple(None if one is None else (one.best_probe, one.prototypes[10]) for one in at_site)
        columns.append(Column(site, pairs, _probe_and_prototype))
    caption = "By depth: best probe / 10-shot prototype, %. Sites upstream of a patch hold the base model's own states."
    return Table(tuple(columns), caption, len(read) - 1)


def _by_step(rows: Sequence[AuditRow]) -> Table:
    """Tabulate relearning after each number of steps."""
    curves = [(row.name, curve) for row in rows for curve in row.relearning]
    columns = [Column(f"{_METHOD}, what moves", tuple(f"{name}, {curve.moved}" for name, curve in curves))]
    for place, step in enumerate(curves[0][1].steps if curves else ()):
        pairs = tuple((curve.forget_accuracy[place], curve.retain_accuracy[place]) for _, curve in curves)
        columns.append(Column(f"step {step}", pairs, _two_shares))
    caption = "Relearning, with the method left in place: forget accuracy / retain accuracy, %."
    return Table(tuple(columns), caption)


def _share(rows: Sequence[AuditRow], name: str, read: Callable[[AuditRow], float | None], count: int = 1) -> Column:
    return Column(name, tuple(map(read, rows)), percents(count))


def _interval(rows: Sequence[AuditRow], name: str, measure: str) -> Column:
    return Column(name, tuple(row.intervals.get(measure) for row in rows), between)


def _with_error(figure: Pair) -> str:
    area, error = (NOTHING if math.isnan(part) else percent(part, 1) for part in figure)
    return f"{area} ± {error}"


def _probe_and_prototype(figures: tuple[float | None, float]) -> str:
    return f"{percent(figures[0], 1)} / {percent(figures[1], 1)}"


def _two_shares(shares: Pair) -> str:
    return f"{percent(shares[0], 0)} / {percent(shares[1], 0)}"
