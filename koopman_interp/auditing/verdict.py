"""The verdict on an edit, in words: what is suppressed, what is still there, what brings it back.

Says no more than the figures of the audit do, and never that anything was removed: no weight has changed. Computes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from koopman_interp.auditing.baselines import MASK, RETRAINED
from koopman_interp.auditing.membership import Membership
from koopman_interp.auditing.relearning import ALL_PARAMETERS, OPERATOR, RelearningCurve
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.tables import percents

SUPPRESSED, PARTLY = 0.1, 0.5
"""Shares of the base model's forget accuracy up to which classes count as suppressed, and as partly so."""
_READABLE = 0.6
"""Accuracy of a probe, which is 0.5 at chance, from which on the classes count as still there."""

_percent = percents(1)


def verdict(classes: str, rows: Sequence[AuditRow]) -> str:
    """Say what the figures of an audit come to.

    Args:
        classes: to forget, in words.
        rows: the methods, the base model first and the edit last.

    Returns:
        A sentence or two on the output, the representation, relearning and membership, as far as they were measured.
    """
    by_name = {row.name: row for row in rows}
    base, ours, retrained = rows[0], rows[-1], by_name.get(RETRAINED)
    parts = [
        _at_the_output(classes, base, ours, by_name.get(MASK)),
        _in_the_states(classes, ours, base, retrained),
        _upstream(ours),
        _relearned(base, ours, retrained),
        _membership(ours, retrained),
        "No weight of the model has changed: outside of the patch it is what it was. "
        + (
            "This is reversible suppression."
            if ours.forget_accuracy <= PARTLY * base.forget_accuracy
            else "An edit of this kind is reversible suppression at best."
        ),
    ]
    return "\n".join(part for part in parts if part)


def _at_the_output(classes: str, base: AuditRow, ours: AuditRow, mask: AuditRow | None) -> str:
    share = ours.forget_accuracy / base.forget_accuracy if base.forget_accuracy else 1.0
    word = "Suppressed" if share <= SUPPRESSED else "Partly suppressed" if share <= PARTLY else "Not suppressed"
    ends = ours.intervals.get("forget_accuracy")
    interval = "" if ends is None else f" (95 % interval {_percent(ends[0])} to {_percent(ends[1])})"
    beside = "" if mask is None else f"; a logit mask, which is free, has {_two(mask)}"
    return (
        f"{word} at the output: {classes} has a forget accuracy of {_percent(ours.forget_accuracy)} %{interval}, and "
        f"the retain accuracy is {_percent(ours.retain_accuracy)} %; the base model has {_two(base)}{beside}."
    )


def _two(row: AuditRow) -> str:
    return f"{_percent(row.forget_accuracy)} and {_percent(row.retain_accuracy)} %"


def _in_the_states(classes: str, ours: AuditRow, base: AuditRow, retrained: AuditRow | None) -> str:
    if ours.best_probe is None or base.best_probe is None:
        return ""
    reference = ""
    if retrained is not None and retrained.best_probe is not None:
        reference = f", retrained reference {_percent(retrained.best_probe)} % and {_percent(retrained.prototype)} %"
    figures = (
        f"a probe finds {classes} at {_percent(ours.best_probe)} % (50 % at chance), and {_percent(ours.prototype)} % "
        f"of the rows lie nearest to the mean of ten examples of their class (base model {_percent(base.best_probe)} % "
        f"and {_percent(base.prototype)} %{reference})"
    )
    if ours.best_probe >= _READABLE:
        return f"Still there in the last states: {figures}."
    return f"Not found in the last states by these probes, which is no proof that no other finds it: {figures}."


def _upstream(ours: AuditRow) -> str:
    before = {scores.site: scores.best_probe for scores in ours.depths[:-1] if scores.best_probe is not None}
    site = max(before, key=lambda one: before[one], default=None)
    if site is None or before[site] < _READABLE:
        return ""
    return f"Still there on the way: at {site!r} a probe finds it at {_percent(before[site])} %."


def _relearned(base: AuditRow, ours: AuditRow, retrained: AuditRow | None) -> str:
    if not ours.relearning:
        return ""
    half = base.forget_accuracy / 2
    told = [_back(curve, half) for curve in ours.relearning]
    theirs = () if retrained is None else retrained.relearning
    beside = f" The retrained reference: {_back(theirs[0], half)}." if theirs else ""
    return f"Under relearning, with the edit left in place: {'; '.join(told)}.{beside}"


def _back(curve: RelearningCurve, half: float) -> str:
    moved = {ALL_PARAMETERS: "all parameters moved", OPERATOR: "K alone moved"}[curve.moved]
    steps = curve.steps_to(half)
    if steps is None:
        return (
            f"{moved}, it stays below half of the base model's forget accuracy for {curve.steps[-1]} steps "
            f"(at most {_percent(max(curve.forget_accuracy))} %)"
        )
    if steps == 0:
        return f"{moved}, half of the base model's forget accuracy is there from the start"
    return (
        f"{moved}, half of the base model's forget accuracy is back by step {steps}, and it is "
        f"{_percent(curve.forget_accuracy[-1])} % at step {curve.steps[-1]}"
    )


def _membership(ours: AuditRow, retrained: AuditRow | None) -> str:
    if ours.membership is None:
        return ""
    by_loss, by_confidence = _areas(ours.membership)
    areas = (
        f"{by_loss} by loss, {by_confidence} by confidence (area under the curve in %, ± one standard error; 50 % at "
        "chance)"
    )
    if retrained is not None and retrained.membership is not None:
        control = (
            "The control is the retrained reference, which saw none of them and gives "
            f"{' and '.join(_areas(retrained.membership))}: so far apart the two samples lie by themselves."
        )
    else:
        control = "Without a retrained reference as the control, the two samples may lie so far apart by themselves."
    if ours.membership.tells:
        return f"Training rows are told from held-out ones: {areas}. {control}"
    return f"The two membership attacks tell nothing that chance would not: {areas}. {control}"


def _areas(attacks: Membership) -> tuple[str, str]:
    return (
        f"{_percent(attacks.loss)} ± {_percent(attacks.loss_error)}",
        f"{_percent(attacks.confidence)} ± {_percent(attacks.confidence_error)}",
    )
