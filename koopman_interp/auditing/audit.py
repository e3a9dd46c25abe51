"""audit(): what an edit really did, beside what is easy.

"None of the class recognised, the rest kept" is done by masking one logit. So an edit is shown beside the base model, a
logit mask, mean difference, LEACE and, where given, a model retrained without the class, by what probes and a few shots
still find in the representation, and by what a little relearning brings back. It is to be measured by the retrained
reference, not by chance.

Costs, for each method, a pass over the rows and two probes at the last site. Five methods on 2,000 rows of width 10
took 0.2 CPU seconds, 0.3 with 5,000 training rows. What costs more is asked for: every depth (0.4, six of them), a
probe with a hidden layer (0.8), relearning (8), language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import nn
from tqdm.auto import tqdm

from koopman_interp.auditing.baselines import (
    BASE,
    RETRAINED,
    Method,
    edited,
    leace,
    logit_mask,
    mean_difference,
    why_no_leace,
)
from koopman_interp.auditing.comparison import AuditedRows, FirstPasses, compared, scored_on_training
from koopman_interp.auditing.labelled import Batch, Labelled, drawn, labelled_batches, repeated, require_classes
from koopman_interp.auditing.language import LanguageChecks, LanguageScores, language_scores
from koopman_interp.auditing.measures import Measured, audit_rows
from koopman_interp.auditing.probe_scores import SHOTS, Depths, Prober
from koopman_interp.auditing.probes import Kernel
from koopman_interp.auditing.reach import measured_reach
from koopman_interp.auditing.relearning import (
    Relearning,
    RelearningTask,
    learns_by_operator,
    relearn_model,
    relearn_operator,
)
from koopman_interp.auditing.result import Audit
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import whole_numbers
from koopman_interp.observing.batches import BATCH_SIZE
from koopman_interp.own_kinds import own_kinds
from koopman_interp.patching.patch import Patch

Retrained = nn.Module | Host | Callable[[], nn.Module]
"""A model that never saw the classes, or a function that trains and returns one."""

LEAST_ROWS = 2 * max(SHOTS)
"""Held-out rows that every class needs, for the probes and the shots."""

_REACH_BATCHES = 4
"""Batches that the reach of the edit is measured on, at most: four passes each, and one more a further site."""


@own_kinds
@torch.no_grad()
def audit(
    patch: Patch,
    *,
    held_out: Labelled,
    training: Labelled | None = None,
    label: int | tuple[int, ...] | None = None,
    retrained: Retrained | None = None,
    probes: Sequence[Kernel] = ("linear", "rbf"),
    depths: Depths = "last",
    relearn: Relearning | None = None,
    language: LanguageChecks | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: bool | None = None,
) -> Audit:
    """Judge a patch on held-out rows, beside the baselines. What is audited is what is deployed.

    Of tokens, each real one is a row, and its labels may be one a sequence or one a token, with -100 where it is to be
    left out; leading positions that the surrogate was not fitted on are left out too. Where the model gives one row of
    logits an input, the probes read the mean state of the input's tokens.

    Mean difference and LEACE act at the last site, and are fitted on the training rows where these are of both kinds,
    else on every other held-out row. LEACE needs the package concept-erasure and states no wider than
    `baselines.WIDEST`; otherwise the audit says why its row is missing.

    Args:
        patch: the edit, as it is deployed: `patched(model, koopman, edit)`, not installed.
        held_out: inputs and labels of all classes, `(x, y)` or batches of such pairs; what figures are of.
        training: the same of rows that the model was trained on: for the accuracy on them, and for membership.
        label: the classes to forget. None is what the edits of the patch say they forget.
        retrained: a model of the same architecture trained without the classes, as the reference, or a function that
            trains and returns one.
        probes: kernels of the probes: `linear`, `rbf`, `mlp`.
        depths: `last` reads the last site, `all` every site of the surrogate: those downstream of the patch see the
            patched states, those upstream the base model's own; inside a replaced span there are none to see.
        relearn: how to try to bring the classes back; needs training rows. With edits at each site K carries no edit
            on, so it moves the model's parameters only.
        language: what to ask a language model.
        batch_size: inputs that the model is called with at once; the log-probabilities of three such batches, in
            float64, are held.
        seed: of the probes' splits, the prototypes' draws and the rows relearned on.
        progress: show bars; None shows them on a terminal only.

    Returns:
        One row each for the base model, the logit mask, mean difference, LEACE, the retrained reference (if given) and
        the edit; and how much of the edit arrives at the target and at the output (`reach`), on a few of the batches.

    Raises:
        InputError: no edit, or edits that do not say what they forget; a patch that is installed; an unknown probe;
            too few rows; or relearning without training rows of both kinds.
    """
    ours = edited(patch)
    labels = _classes(patch, label)
    _require_known(probes, depths)
    if seed < 0:
        raise InputError(f"seed is a whole number, 0 or more; got {seed}.")
    rows = replace(_rows(patch, held_out, training, labels, depths, batch_size), progress=progress)
    if relearn is not None:
        if not rows.training:
            raise InputError("Relearning needs rows to learn from: give training=(x, y).")
        require_classes(rows.training, labels, "training")
    shared = repeated(rows.held_out, rows.training)
    layout = patch.koopman.config.layout
    reference = None if retrained is None else Method(RETRAINED, _reference(retrained, layout))
    methods, measured, missing = _measured(ours, rows, reference)
    audited = audit_rows(measured, Prober(labels, tuple(probes), seed), progress)
    if relearn is not None:
        few = drawn(rows.training, labels, rows=relearn.rows, beside=relearn.beside, seed=seed)
        task = RelearningTask(few, rows, relearn)
        hidden = None if progress is None else not progress
        learning = tqdm(methods, desc="audit: relearning", unit="method", disable=hidden)
        curves = [[relearn_model(method, task)] if method.learns else [] for method in learning]
        if learns_by_operator(patch):
            curves[-1].append(relearn_operator(patch, task))
        audited = [replace(row, relearning=tuple(own)) for row, own in zip(audited, curves, strict=True)]
    if language is not None:
        spoken = _language(methods, language, rows.skip, batch_size)
        audited = [replace(row, language=own) for row, own in zip(audited, spoken, strict=True)]
    base = measured[0]
    forget_rows, retain_rows = base.held_out.counts
    forget_training_rows, retain_training_rows = (0, 0) if base.training is None else base.training.counts
    return Audit(
        labels=labels,
        edit=", then ".join(dict.fromkeys(edit.description for edit in patch.edits)),
        rows=tuple(audited),
        forget_rows=forget_rows,
        retain_rows=retain_rows,
        forget_training_rows=forget_training_rows,
        retain_training_rows=retain_training_rows,
        relearn=relearn,
        left_out=tuple(note for note in (*missing, shared) if note),
        reach=measured_reach(patch, [x for x, _ in _spread(rows.held_out)]),
    )


def _spread(batches: Sequence[Batch]) -> list[Batch]:
    """Take a few of the batches, evenly spaced: enough to say what arrives, at a cost that does not grow."""
    count = min(len(batches), _REACH_BATCHES)
    return [batches[place * len(batches) // count] for place in range(count)]


def _classes(patch: Patch, label: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """Say which classes are to be forgotten."""
    if not patch.edits:
        raise InputError("This patch has no edit to audit. Make one: patched(model, koopman, erase_class(…)).")
    if label is None:
        labels = tuple(dict.fromkeys(label for edit in patch.edits for label in edit.labels))
    else:
        labels = tuple(whole_numbers(label).tolist())
    if not labels or len(set(labels)) != len(labels):
        told = "The edits of this patch do not say which classes they forget" if label is None else f"Got label={label}"
        raise InputError(f"{told}. Say it, each once: audit(patch, held_out=…, label=4) or label=(4, 7).")
    return labels


def _require_known(probes: Sequence[Kernel], depths: Depths) -> None:
    if depths not in get_args(Depths):
        raise InputError(f"depths={depths!r} is neither 'last' nor 'all'.")
    if unknown := [kernel for kernel in probes if kernel not in get_args(Kernel)]:
        raise InputError(f"There is no probe {unknown[0]!r}; probes are several of {', '.join(get_args(Kernel))}.")


def _rows(
    patch: Patch,
    held_out: Labelled,
    training: Labelled | None,
    labels: tuple[int, ...],
    depths: Depths,
    batch_size: int,
) -> AuditedRows:
    koopman = patch.koopman
    judged = labelled_batches(patch.host, held_out, batch_size)
    require_classes(judged, labels, "held-out")
    trained = [] if training is None else labelled_batches(patch.host, training, batch_size)
    sites = koopman.sites if depths == "all" else koopman.sites[-1:]
    return AuditedRows(judged, trained, labels, sites, koopman.config.skip)


def _reference(retrained: Retrained, layout: str | None) -> Host:
    """Train the reference where it is a function that does."""
    if isinstance(retrained, (nn.Module, Host)):
        return host_for(retrained, layout)
    made: object = None
    if callable(retrained):
        with torch.enable_grad():
            made = retrained()
    if not isinstance(made, nn.Module):
        raise InputError(
            "retrained= is a model that was trained without the classes, or a function that trains and returns one; "
            f"got {type(retrained if made is None else made).__name__}."
        )
    return host_for(made.eval(), layout)


def _measured(
    ours: Method, rows: AuditedRows, reference: Method | None
) -> tuple[list[Method], list[Measured], tuple[str, ...]]:
    """Run the base model, make the baselines of it, and run all methods; say which of them are missing."""
    host, site = ours.host, rows.sites[-1]
    base, mask = Method(BASE, host, learns=False), logit_mask(host, rows.labels)
    first = FirstPasses.of(base, rows)
    _require_rows(first)
    trained = scored_on_training([base, mask], rows, states=True) if rows.training else []
    if trained and all(trained[0].counts):
        states, labels = torch.cat([*trained[0].states[site]]).double(), trained[0].labels
        trained = [replace(scores, states={}) for scores in trained]
    else:
        states, labels = first.every_other(rows.labels)
    fitted = [mean_difference(host, site, states, labels, rows.labels)]
    reason = why_no_leace(states.shape[1])
    if reason is None:
        fitted.append(leace(host, site, states, labels, rows.labels))
    methods = [base, mask, *fitted, *([] if reference is None else [reference]), ours]
    held_out = compared(methods, rows, first, reference)
    if rows.training:
        trained += [scored_on_training([method], rows)[0] for method in methods[2:]]
    measured = [
        Measured(method.name, scores, trained[place] if trained else None, method.host is host)
        for place, (method, scores) in enumerate(zip(methods, held_out, strict=True))
    ]
    return methods, measured, () if reason is None else (reason,)


def _require_rows(first: FirstPasses) -> None:
    present, counts = torch.unique(first.labels, return_counts=True)
    for label, count in zip(present.tolist(), counts.tolist(), strict=True):
        if count < LEAST_ROWS:
            raise InputError(
                f"Class {label} has {count} held-out rows; probes and {max(SHOTS)}-shot prototypes need {LEAST_ROWS} "
                "or more."
            )


def _language(
    methods: Sequence[Method], checks: LanguageChecks, skip: int, batch_size: int
) -> list[LanguageScores | None]:
    """Ask every method, the base model first, but those that change only answers; None of these."""
    answers, spoken = None, list[LanguageScores | None]()
    for method in methods:
        if method.answers is not None:
            spoken.append(None)
            continue
        with method.running():
            scores, said = language_scores(method.host, checks, answers, skip, batch_size)
        spoken.append(scores)
        answers = said if answers is None else answers
    return spoken
