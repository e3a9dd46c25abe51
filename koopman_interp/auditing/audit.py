"""audit(): what an edit really did, beside what is easy.

"None of the class recognised, the rest kept" is done by masking one logit. So an edit is shown beside the host, a logit
mask, mean difference, LEACE and, where given, a model retrained without the class, by what probes and a few shots still
find in the representation, and by what a little relearning brings back. The retrained model is the yardstick, not
chance.

Costs, for each way, a pass over the rows and two probes at the last site. Five ways on 2,000 rows of width 10 took 0.2
CPU seconds, 0.3 with 5,000 training rows. What costs more is asked for: every depth (0.4, six of them), a probe with a
hidden layer (0.8), relearning (8), language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import torch
from torch import nn

from koopman_interp.auditing.baselines import Way, named, why_no_leace
from koopman_interp.auditing.findings import Audit
from koopman_interp.auditing.judging import Judge, Labelled, Rows
from koopman_interp.auditing.language import LanguageChecks, next_tokens, read_language
from koopman_interp.auditing.probe_scores import Depths, Reader
from koopman_interp.auditing.probes import Kernel
from koopman_interp.auditing.relearning import Relearning, RelearningCurve, relearn_host, relearn_operator
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.protocol import Host
from koopman_interp.patching.motion import Mode
from koopman_interp.patching.options import At
from koopman_interp.patching.patch import patched
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder


@torch.no_grad()
def audit(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    edit: OperatorEdit | Sequence[OperatorEdit],
    *,
    forget: Labelled,
    retain: Labelled,
    forget_training: Labelled | None = None,
    retain_training: Labelled | None = None,
    mode: Mode = "delta",
    source: str | int | None = None,
    target: str | int | None = None,
    at: At = "target",
    retrained: nn.Module | None = None,
    retrain: Callable[[], nn.Module] | None = None,
    probes: Sequence[Kernel] = ("linear", "rbf"),
    depths: Depths = "last",
    relearn: Relearning | None = None,
    language: LanguageChecks | None = None,
    skip: int = 0,
    seed: int = 0,
) -> Audit:
    """Judge an edit on held-out rows, beside the baselines.

    Of tokens, each real one is a row, and its labels may be one a sequence or one a token, with -100 where it is to be
    left out. Where the host gives one row of logits an input, the probes read the mean state of the input's tokens.

    Mean difference and LEACE act at the last site, and are fitted on the training rows where both kinds are given, else
    on every other held-out row. LEACE needs the package concept-erasure and states
    no wider than `ways.WIDEST`; otherwise the audit says why its row is missing.

    Args:
        model: the host.
        koopman: the surrogate.
        edit: the edit, or several.
        forget: held-out inputs and labels of the forgotten class.
        retain: held-out inputs and labels of the other classes.
        forget_training: the same of rows that the host was trained on: for their accuracy, and for membership.
        retain_training: the same of the other classes.
        mode: how the edit is patched.
        source: where the patched span starts; see `patched`.
        target: where it ends; None is the last site.
        at: where edits are written; see `patched`. With `each site` K carries no edit on, so relearning moves the
            host's parameters only.
        retrained: a model of the same architecture trained without the class, as the yardstick.
        retrain: in its place, a function that trains and returns one.
        probes: kernels of the probes: `linear`, `rbf`, `mlp`.
        depths: `last` reads the last site, `all` every site of the surrogate: those downstream of the patch see the
            patched states, those upstream the host's own; inside a replaced span there are none to see.
        relearn: how to try to bring the class back; needs both kinds of training rows.
        language: what to ask a language model.
        skip: leading positions of each sequence to leave out, as in `attach`; they are not patched either.
        seed: of the probes' splits, the prototypes' draws and the rows relearned on.

    Returns:
        One row each for the host, the logit mask, mean difference, LEACE, the retrained model (if given) and the edit.

    Raises:
        InputError: no edit, an unknown probe, too few rows, forgotten rows of several classes, or relearning without
            training rows.
        HostMismatchError: surrogate or edit belong to another host.
    """
    if retrained is not None and retrain is not None:
        raise InputError("Give a retrained model or a function that trains one, not both.")
    if depths not in ("last", "all"):
        raise InputError(f"depths={depths!r} is neither 'last' nor 'all'.")
    if unknown := [kernel for kernel in probes if kernel not in get_args(Kernel)]:
        raise InputError(f"There is no probe {unknown[0]!r}; probes are several of {', '.join(get_args(Kernel))}.")
    host = host_for(model)
    edits = (edit,) if isinstance(edit, OperatorEdit) else tuple(edit or ())
    if not edits:
        raise InputError("There is no edit to audit. Make one, with erase_class(…) say.")
    held_out = Rows.of(host, forget, retain, "held-out")
    training = Rows.of(host, forget_training, retain_training, "training", held_out.label)
    if relearn is not None and not (training.gone and training.kept):
        raise InputError("Relearning needs rows to learn from: give forget_training= and retain_training=.")
    span: dict[str, Any] = {"mode": mode, "source": source, "target": target, "at": at}
    span["positions"] = slice(skip, None) if skip else None
    patch = patched(host, koopman, edits, **span)  # refuses the host of another surrogate before anything is computed
    if retrain is not None:
        with torch.enable_grad():
            retrained = retrain().eval()
    sites = koopman.sites if depths == "all" else koopman.sites[-1:]
    judge = Judge(host, held_out, training, sites, Reader(held_out.label, probes, seed), skip, retrained)
    # A copy that relearns has other weights than those fitted on.
    running = partial(patched, koopman=koopman, edit=edits, check_weights=False, **span)
    ours = Way(named(mode, at), host, running, without=patch.without)
    ways = [*judge.baselines(), ours]
    rows = [judge.row(way) for way in ways]
    if relearn is not None:
        lesson = judge.lesson(relearn, seed)
        curves: list[tuple[RelearningCurve, ...]] = [
            (relearn_host(way, lesson, relearn),) if way.learns else () for way in ways
        ]
        if at == "target" and any(bool(one.directions.any()) for one in edits):
            curves[-1] += (relearn_operator(ours, koopman, edits, lesson, relearn),)
        rows = [replace(row, relearning=own) for row, own in zip(rows, curves, strict=True)]
    if language is not None:
        answers = next_tokens(host, language.unrelated, language)
        rows = [
            replace(row, language=read_language(way.host, language, answers, skip, way.running()))
            if way.answers is None
            else row
            for row, way in zip(rows, ways, strict=True)
        ]
    described = ", then ".join(one.description for one in edits)
    counts = (*judge.counts(judge.plain), *judge.counts(judge.plain_training))
    missing = why_no_leace(judge.plain.states[sites[-1]].shape[1])
    return Audit(held_out.label, described, tuple(rows), *counts, relearn, () if missing is None else (missing,))
