"""Measures: from the scores of its rows to all that an audit says of a method.

Costs what the probes cost. Knows nothing of how a method works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from koopman_interp.auditing.intervals import Z95, wilson
from koopman_interp.auditing.membership import membership
from koopman_interp.auditing.probe_scores import Prober, ProbeScores
from koopman_interp.auditing.row_scores import RowScores
from koopman_interp.auditing.rows import AuditRow


@dataclass(frozen=True, eq=False)
class Measured:
    """One method, with the scores of its rows.

    Attributes:
        name: as it stands in the audit.
        held_out: scores of held-out rows.
        training: scores of rows that the model was trained on, or None.
        same_model: whether its states are those of the audited model, so that how far they move says something.
    """

    name: str
    held_out: RowScores
    training: RowScores | None
    same_model: bool


def audit_rows(methods: Sequence[Measured], prober: Prober, progress: bool | None = None) -> list[AuditRow]:
    """Measure methods, the base model first; where states are the base model's, so are the probes' figures.

    Args:
        methods: what they did.
        prober: looks for the classes in their states.
        progress: show a bar; None shows it on a terminal only.
    """
    base = methods[0].held_out
    probed = [prober.scores(site, torch.cat([*parts]), base.labels) for site, parts in base.states.items()]
    known = {scores.site: scores for scores in probed}
    rows = []
    hidden = None if progress is None else not progress
    for method in tqdm(methods, desc="audit: probes", unit="method", disable=hidden):
        scores = method.held_out
        probes = tuple(
            known[site] if scores.has_states_of(base, site) else prober.scores(site, torch.cat([*parts]), scores.labels)
            for site, parts in scores.states.items()
        )
        rows.append(_row(method, base, probes))
    return rows


def _row(method: Measured, base: RowScores, probes: tuple[ProbeScores, ...]) -> AuditRow:
    scores, last = method.held_out, probes[-1]
    forget, retain = scores.counts
    means = {name: float(rows.mean()) for name, rows in scores.divergences.items()}
    intervals = {
        **{f"{kernel}_probe": ends for kernel, ends in last.intervals.items()},
        "forget_accuracy": wilson(scores.forget_accuracy, forget),
        "retain_accuracy": wilson(scores.retain_accuracy, retain),
        **{name: _around_mean(rows) for name, rows in scores.divergences.items()},
    }
    accuracies, attacks = dict[str, float](), None
    if (trained := method.training) is not None:
        trained_forget, trained_retain = trained.counts
        if trained_forget:
            accuracies["forget"] = trained.forget_accuracy
            intervals["forget_accuracy_training"] = wilson(trained.forget_accuracy, trained_forget)
            attacks = membership(trained.true, trained.top, scores.true, scores.top)
        if trained_retain:
            accuracies["retain"] = trained.retain_accuracy
            intervals["retain_accuracy_training"] = wilson(trained.retain_accuracy, trained_retain)
    return AuditRow(
        name=method.name,
        forget_accuracy=scores.forget_accuracy,
        retain_accuracy=scores.retain_accuracy,
        kl=means["kl"],
        js=means["js"],
        retrained_kl=means.get("retrained_kl"),
        retrained_js=means.get("retrained_js"),
        linear_probe=last.probes.get("linear"),
        rbf_probe=last.probes.get("rbf"),
        mlp_probe=last.probes.get("mlp"),
        one_shot=last.prototypes[1],
        five_shot=last.prototypes[5],
        prototype=last.prototypes[10],
        drift=_drift(scores, base, last.site) if method.same_model else None,
        forget_accuracy_training=accuracies.get("forget"),
        retain_accuracy_training=accuracies.get("retain"),
        membership=attacks,
        depths=probes if len(base.states) > 1 else (),
        intervals=intervals,
    )


def _drift(scores: RowScores, base: RowScores, site: str) -> float:
    """Root mean square move of the retain rows, over the root mean square spread of all rows of the base model."""
    moved, own = (torch.cat([*one.states[site]]).double() for one in (scores, base))
    spread = (own - own.mean(0)).square().sum(1).mean().sqrt()
    return float((moved - own)[~scores.forgotten].square().sum(1).mean().sqrt() / spread)


def _around_mean(rows: Float[Tensor, " row"]) -> tuple[float, float]:
    """Return the 95 % interval of a mean, by its standard error."""
    mean, reach = float(rows.mean()), Z95 * float(rows.std()) / math.sqrt(len(rows))
    return mean - reach, mean + reach
