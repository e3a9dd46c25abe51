"""The lead of a page: three short sentences with the numbers that matter most, from what the run holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.stand_ins import SURROGATE
from koopman_interp.auditing.baselines import MASK
from koopman_interp.auditing.language import LanguageAudit
from koopman_interp.auditing.result import Audit
from koopman_interp.report.folder import Run
from koopman_interp.report.parts import classes_named, strong
from koopman_interp.tables import escaped, in_percent, number, percent

_MOST = 3
_READABLE = 0.6
"""Accuracy of a probe, which is 0.5 at chance, from which on classes count as still there."""


def lead(run: Run) -> str:
    """Say what came of a run in three sentences, as HTML."""
    sentences = [
        *(_of_audit(run.audits[0], run.class_names) if run.audits else ()),
        *(_of_language(run.language[0]) if run.language else ()),
        *(_of_fidelity(run.fidelity) if run.fidelity is not None else ()),
        *(_of_spectrum(run.spectrum) if run.spectrum is not None else ()),
    ]
    return " ".join(sentences[:_MOST]) or "This run holds no audit, no fidelity and no spectrum."


def _of_audit(audit: Audit, names: Mapping[int, str]) -> Sequence[str]:
    before, after = audit.rows[0], audit.rows[-1]
    classes = escaped(classes_named(audit.labels, names, audit.classes))
    mask = next((row for row in audit.rows[:-1] if row.name == MASK), None)
    beside = ""
    if mask is not None and percent(mask.retain_accuracy, 1) == percent(after.retain_accuracy, 1):
        beside = ", as a logit mask does, which is free"
    elif mask is not None:
        beside = f"; a logit mask, which is free, has {in_percent(mask.retain_accuracy, 1)}"
    return (
        f"“{escaped(audit.edit)}” takes the forget accuracy of {classes} from {percent(before.forget_accuracy, 1)} to "
        f"{strong(after.forget_accuracy)}.",
        f"It takes the retain accuracy from {percent(before.retain_accuracy, 1)} to {strong(after.retain_accuracy)}"
        f"{beside}.",
        _of_probe(after.best_probe, classes),
    )


def _of_probe(found: float | None, classes: str) -> str:
    if found is None:
        return "No probe looked into the states, so this says nothing of what they still hold."
    at = f"in the last states at {strong(found)} (50 % at chance)"
    if found >= _READABLE:
        return f"A probe still finds {classes} {at}: nothing has been removed."
    return f"The probes find {classes} {at}, which is no proof that no other does."


def _of_language(audit: LanguageAudit) -> Sequence[str]:
    before, *_, after = audit.rows.values()
    said = []
    if after.reliability is not None:
        said.append(
            f"Under “{escaped(audit.edit)}” no unwanted token follows on {strong(after.reliability)} of the prompts "
            f"that it is about, where the base model has {in_percent(before.reliability, 1)}."
        )
    if after.perplexity is not None:
        said.append(
            f"“{escaped(audit.edit)}” takes the perplexity of other texts from {number(before.perplexity, 2)} to "
            f"<strong>{number(after.perplexity, 2)}</strong>."
        )
    return said


def _of_fidelity(fidelity: Fidelity) -> Sequence[str]:
    ours = next((row for row in fidelity.outputs if row.name == SURROGATE), None)
    if ours is None:
        return ()
    return (
        f"With the surrogate substituted for its span, the model predicts as before on {strong(ours.agreement)} of "
        f"{fidelity.judged_on}.",
    )


def _of_spectrum(spectrum: Spectrum) -> Sequence[str]:
    trusted, modes = int(spectrum.trusted.sum()), len(spectrum.eigenvalues)
    return (f"<strong>{trusted} of {modes}</strong> modes of K are borne out on {spectrum.samples:,} rows.",)
