"""The verdict on an edit, in words: what is suppressed, what is still there, what brings it back.

Says no more than the figures of the audit do, and never that anything was removed: no weight has changed. Computes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from koopman_interp.auditing.relearning import HOST, OPERATOR, RelearningCurve
from koopman_interp.auditing.rows import AuditRow

SUPPRESSED, PARTLY = 0.1, 0.5
"""Shares of the host's recognition up to which a class counts as suppressed, and as partly so."""
_FOUND = 0.6
"""Accuracy of a probe, whose chance is 0.5, from which on the class counts as found."""


def verdict(label: int, rows: Sequence[AuditRow]) -> str:
    """Say what the figures of an audit come to.

    Args:
        label: the forgotten class.
        rows: the ways, the host first and the edit last.

    Returns:
        A sentence or two on the output, the representation, relearning and membership, as far as they were measured.
    """
    by_name = {row.name: row for row in rows}
    host, ours, retrained = rows[0], rows[-1], by_name.get("retrained")
    parts = [
        _at_the_output(label, host, ours, by_name.get("logit mask")),
        _in_the_states(ours, host, retrained),
        _upstream(ours),
        _relearned(host, ours, retrained),
        _membership(ours, retrained),
        "No weight of the host has changed: outside of the patch it is what it was. "
        + (
            "This is reversible suppression."
            if ours.forgotten <= PARTLY * host.forgotten
            else "An edit of this kind is reversible suppression at best."
        ),
    ]
    return "\n".join(part for part in parts if part)


def _at_the_output(label: int, host: AuditRow, ours: AuditRow, mask: AuditRow | None) -> str:
    share = ours.forgotten / host.forgotten if host.forgotten else 1.0
    word = "Suppressed" if share <= SUPPRESSED else "Partly suppressed" if share <= PARTLY else "Not suppressed"
    low, high = ours.intervals.get("forgotten", (None, None))
    interval = "" if low is None or high is None else f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    beside = "" if mask is None else f"; a logit mask, which is free, gives {_two(mask)}"
    return (
        f"{word} at the output: class {label} is predicted on {_percent(ours.forgotten)} of its rows{interval}, and "
        f"{_percent(ours.retained)} of the others are right; the host gives {_two(host)}{beside}."
    )


def _two(row: AuditRow) -> str:
    return f"{100 * row.forgotten:.1f} and {100 * row.retained:.1f} %"


def _in_the_states(ours: AuditRow, host: AuditRow, retrained: AuditRow | None) -> str:
    if ours.found is None:
        return ""
    yardstick = ""
    if retrained is not None and retrained.found is not None:
        yardstick = f", retrained {_percent(retrained.found)} and {_percent(retrained.prototype)}"
    figures = (
        f"a probe finds the class at {_percent(ours.found)} (chance 50 %), and {_percent(ours.prototype)} of its rows "
        f"lie nearest to the mean of ten examples (host {_percent(host.found or 0)} and "
        f"{_percent(host.prototype)}{yardstick})"
    )
    if ours.found >= _FOUND:
        return f"Still there in the last states: {figures}."
    return f"Not found in the last states by these probes, which is no proof that no other finds it: {figures}."


def _upstream(ours: AuditRow) -> str:
    before = [max(reading.probes.values()) for reading in ours.depths[:-1] if reading.probes]
    if not before or max(before) < _FOUND:
        return ""
    where = max(ours.depths[:-1], key=lambda reading: max(reading.probes.values()))
    return f"Still there on the way: at {where.site!r} a probe finds it at {_percent(max(before))}."


def _relearned(host: AuditRow, ours: AuditRow, retrained: AuditRow | None) -> str:
    if not ours.relearning:
        return ""
    half = host.forgotten / 2
    told = [_back(curve, half) for curve in ours.relearning]
    theirs = [] if retrained is None else [curve for curve in retrained.relearning if curve.moved == HOST]
    beside = f" The retrained model: {_back(theirs[0], half)}." if theirs else ""
    return f"Under relearning, with the edit left in place: {'; '.join(told)}.{beside}"


def _back(curve: RelearningCurve, half: float) -> str:
    moved = {HOST: "all parameters moved", OPERATOR: "K alone moved"}[curve.moved]
    steps = curve.steps_to(half)
    if steps is None:
        return (
            f"{moved}, it stays below half of the host's recognition for {curve.steps[-1]} steps "
            f"(at most {_percent(max(curve.forgotten))})"
        )
    if steps == 0:
        return f"{moved}, half of the host's recognition is there from the start"
    return (
        f"{moved}, half of the host's recognition is back by step {steps}, and {_percent(curve.forgotten[-1])} of the "
        f"rows are recognised at step {curve.steps[-1]}"
    )


def _membership(ours: AuditRow, retrained: AuditRow | None) -> str:
    if ours.membership is None:
        return ""
    found = ours.membership
    areas = (
        f"{100 * found.loss:.1f} ± {100 * found.loss_error:.1f} by loss, {100 * found.confidence:.1f} ± "
        f"{100 * found.confidence_error:.1f} by confidence (area under the curve in %, ± one standard error)"
    )
    if retrained is not None and (theirs := retrained.membership) is not None:
        control = (
            f"The control is the retrained model, which saw none of them and gives {100 * theirs.loss:.1f} ± "
            f"{100 * theirs.loss_error:.1f} and {100 * theirs.confidence:.1f} ± {100 * theirs.confidence_error:.1f}: "
            "so far apart the two samples lie by themselves."
        )
    else:
        control = "Without a retrained model as the control, the two samples may lie so far apart by themselves."
    if found.tells:
        return f"Training rows of the class are told from held-out ones: {areas}. {control}"
    return f"The two membership attacks tell nothing that chance would not: {areas}. {control}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
