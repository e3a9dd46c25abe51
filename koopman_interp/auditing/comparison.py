"""Comparison: the passes of an audit, batch by batch, the base model first and each method after it on the same batch.

Costs one pass a batch for each method that changes more than answers. Holds the passes of one batch, figures a row and
states at the sites asked for, so that memory does not grow with rows × classes. Only what the base model said of the
first batches is kept, up to `MOST_KEPT` bytes; past them it is asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from koopman_interp.auditing.baselines import Method
from koopman_interp.auditing.labelled import Batch
from koopman_interp.auditing.passes import LabelledPass
from koopman_interp.auditing.row_scores import RowScores

MOST_KEPT = 2**28
"""Bytes of the base model's log-probabilities that are kept until the methods are compared with it."""


@dataclass(frozen=True, eq=False)
class AuditedRows:
    """The rows that an audit is made on, and how they are read.

    Attributes:
        held_out: batches that figures are of.
        training: batches that the model was trained on; empty without.
        labels: the classes to forget.
        sites: what is read, in order of depth; mean difference and LEACE act at the last.
        skip: leading positions of each sequence to leave out.
        progress: whether passes over them show a bar; None shows it on a terminal only.
    """

    held_out: Sequence[Batch]
    training: Sequence[Batch]
    labels: tuple[int, ...]
    sites: tuple[str, ...]
    skip: int
    progress: bool | None = None

    def gone_through(self, batches: Sequence[Batch], what: str) -> Iterable[Batch]:
        """Go through batches under a bar."""
        hidden = None if self.progress is None else not self.progress
        return tqdm(batches, desc=f"audit: {what}", unit="batch", disable=hidden)


@dataclass(frozen=True, eq=False)
class FirstPasses:
    """What the base model makes of the held-out rows, before there is any baseline.

    Attributes:
        kept: its pass over each batch; None where it is too much to keep.
        states: float64 rows at the last site.
        labels: class of each row.
    """

    kept: Sequence[LabelledPass | None]
    states: Float[Tensor, "row width"]
    labels: Int[Tensor, " row"]

    @classmethod
    def of(cls, base: Method, rows: AuditedRows) -> FirstPasses:
        """Run the base model over all held-out batches."""
        kept = list[LabelledPass | None]()
        states, labels, size = list[Tensor](), list[Tensor](), 0
        for batch in rows.gone_through(rows.held_out, "base model"):
            own = base.passed(batch, rows.sites, rows.skip)
            size += own.logp.nbytes
            kept.append(own if size <= MOST_KEPT else None)
            states.append(own.states[rows.sites[-1]])
            labels.append(own.labels)
        return cls(kept, torch.cat(states).double(), torch.cat(labels))

    def every_other(self, forget: Sequence[int]) -> tuple[Float[Tensor, "row width"], Int[Tensor, " row"]]:
        """Take half of the rows, with their labels: of each class to forget in turn, then of the others."""
        order = torch.full_like(self.labels, len(forget))
        for place, label in enumerate(forget):
            order[self.labels == label] = place
        chosen = order.argsort(stable=True)[::2]
        return self.states[chosen], self.labels[chosen]


def compared(
    methods: Sequence[Method], rows: AuditedRows, first: FirstPasses, retrained: Method | None
) -> list[RowScores]:
    """Run methods over the held-out rows, and compare each with the base model and with the retrained reference.

    Args:
        methods: the base model first; the retrained reference may be among them.
        rows: the rows.
        first: of the base model.
        retrained: the retrained reference, or None.

    Returns:
        The scores of each method.
    """
    base, parts = methods[0], [list[RowScores]() for _ in methods]
    for batch, kept in zip(rows.gone_through(rows.held_out, "held-out rows"), first.kept, strict=True):
        own = base.passed(batch, rows.sites, rows.skip) if kept is None else kept
        theirs = None if retrained is None else retrained.passed(batch, rows.sites, rows.skip)
        for method, scores in zip(methods, parts, strict=True):
            if method is retrained and theirs is not None:
                ours = theirs
            elif method.patch is None:
                ours = method.answered(own)
            else:
                ours = method.passed(batch, rows.sites, rows.skip)
            scores.append(RowScores.of(ours, rows.labels, base=own, retrained=theirs))
    return [RowScores.joined(scores) for scores in parts]


def scored_on_training(methods: Sequence[Method], rows: AuditedRows, *, states: bool = False) -> list[RowScores]:
    """Run the first of some methods, whose pass the others share, over the training rows.

    Args:
        methods: one, or several that differ in their answers only.
        rows: the rows; there is a training batch or more.
        states: keep the states at the last site.

    Returns:
        The scores of each method, compared with nothing.
    """
    parts = [list[RowScores]() for _ in methods]
    for batch in rows.gone_through(rows.training, f"training rows, {methods[0].name}"):
        own = methods[0].passed(batch, rows.sites[-1:], rows.skip)
        own = own if states else own.without_states()
        for method, scores in zip(methods, parts, strict=True):
            scores.append(RowScores.of(method.answered(own), rows.labels))
    return [RowScores.joined(scores) for scores in parts]
