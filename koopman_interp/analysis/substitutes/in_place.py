"""What a model says with stand-ins substituted for spans of its depths, judged beside what it says itself.

Costs, a batch: for each stand-in what lies after its target. Logits can be wide, so those of two passes are held at a
time: the model's own, and one stand-in's. Knows nothing of how stand-ins are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.analysis.substitutes.stand_ins import MEAN, SURROGATE, StandIn, substituted
from koopman_interp.analysis.substitutes.token_floor import FLOOR, TokenFloor
from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError
from koopman_interp.labels import IGNORED, require_outputs
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.tables import Column, Table, digits, percents

BASE = "base model"
"""The row of the model as it is."""

Span = tuple[int, int]
"""Depths of source and target."""


@dataclass(frozen=True)
class OutputFidelity:
    """Figures at the model's output with a stand-in substituted for a span.

    Attributes:
        name: of the stand-in.
        accuracy: share of labelled rows whose label is predicted; None without labels.
        agreement: share of rows with the model's own prediction.
        kl: mean `KL(model ‖ stand-in substituted)`, in nats.
        cross_entropy: mean `−log p(label)` over labelled rows, in nats; None without labels.
        loss_recovered: share `(CE_mean − CE) / (CE_mean − CE_model)` of what ablating the span to the mean at its
            target costs: 1 for the model, 0 for the mean, negative where a stand-in is worse than that. None without
            labels, and where the ablation costs nothing.
    """

    name: str
    accuracy: float | None
    agreement: float
    kl: float
    cross_entropy: float | None = None
    loss_recovered: float | None = None


class OutputSums:
    """Figures at the model's output with stand-ins substituted for spans, gathered pass by pass.

    Args:
        stand_ins: by span and name; those that are None do not exist.
        floor: what the token alone says, to be judged beside those of the longest span; None leaves it out.
    """

    def __init__(self, stand_ins: Mapping[Span, Mapping[str, StandIn | None]], floor: TokenFloor | None = None) -> None:
        self._floor = floor
        self._below_all = _Sums()
        self._stand_ins = {
            span: {name: stand_in for name, stand_in in named.items() if stand_in is not None}
            for span, named in stand_ins.items()
        }
        self._base = _Sums()
        self._sums = {_key(span, name): _Sums() for span, named in self._stand_ins.items() for name in named}
        self._labelled = True

    @torch.no_grad()
    def add(self, own: OwnPass, labels: Int[Tensor, " row"] | None = None, *, next_token: bool = False) -> None:
        """Judge the model and each stand-in on one batch.

        Args:
            own: the model's own pass.
            labels: one a state; rows labelled -100 are left out. None without labels.
            next_token: take the token that follows as the label; the last row of a sequence has none, and counts in
                agreement and divergence alone.

        Raises:
            InputError: a label is no output of the model, or the rows have no next tokens.
        """
        judged = _Judged.of(own, labels, next_token)
        self._labelled &= judged.labels is not None
        self._base.add(own.output, judged)
        if self._floor is not None and (of_token := self._floor.logp(own)) is not None:
            self._below_all.add(replace(own.output, logp=of_token), judged)
        for target in sorted({target for _, target in self._stand_ins}):
            with own.after(target) as continued:
                for source, name, stand_in in self._ending_at(target):
                    rows = substituted(stand_in, own.rows(source).cpu(), own)
                    self._sums[_key((source, target), name)].add(continued(rows), judged)

    def figures(self) -> dict[Span, tuple[OutputFidelity, ...]]:
        """Return figures for each span: of the model, then of each stand-in.

        Raises:
            InputError: there were no samples.
        """
        if not self._base.rows:
            raise InputError("There were no samples to judge. Give inputs that are longer than what is skipped.")
        base = self._base.figures(BASE, labelled=self._labelled)
        longest = max(self._stand_ins, key=lambda span: span[1] - span[0])
        found = {}
        for span, named in self._stand_ins.items():
            sums = {name: self._sums[_key(span, name)] for name in named}
            if span == longest and self._below_all.rows:
                sums[FLOOR] = self._below_all
            rows = (each.figures(name, labelled=self._labelled) for name, each in sums.items())
            found[span] = _with_loss_recovered((base, *rows))
        return found

    def _ending_at(self, target: int) -> Iterator[tuple[int, str, StandIn]]:
        """Go through the stand-ins of the spans to a target; the mean, which is the same from every source, once."""
        mean_is_due = True
        for (source, end), named in self._stand_ins.items():
            if end != target:
                continue
            for name, stand_in in named.items():
                if name != MEAN or mean_is_due:
                    yield source, name, stand_in
                    mean_is_due &= name != MEAN


def output_table(outputs: Sequence[OutputFidelity], caption: str) -> Table:
    """Tabulate figures at the output, one line a stand-in."""
    columns = (
        Column("substitute", tuple(row.name for row in outputs)),
        Column("accuracy %", tuple(row.accuracy for row in outputs), percents()),
        Column("agreement %", tuple(row.agreement for row in outputs), percents()),
        Column("KL to the model, nats", tuple(row.kl for row in outputs), digits(4)),
        Column("cross-entropy, nats", tuple(row.cross_entropy for row in outputs), digits(4)),
        Column("loss recovered %", tuple(row.loss_recovered for row in outputs), percents()),
    )
    marked = next((place for place, row in enumerate(outputs) if row.name == SURROGATE), None)
    return Table(columns, caption, marked).without_empty()


def span_tables(
    spans: Mapping[str, Sequence[OutputFidelity]], names: Sequence[str], heading: str, caption: str
) -> tuple[Table, ...]:
    """Tabulate one figure a table, one line a span, one column a stand-in: divergence, agreement and loss recovered.

    Args:
        spans: figures by the name of the span.
        names: of the stand-ins to show.
        heading: of the column that names the spans.
        caption: what stands behind the figure's name.
    """
    by_name = [{row.name: row for row in outputs} for outputs in spans.values()]
    shown = {"KL to the model, nats": ("kl", digits(3)), "agreement %": ("agreement", percents(1))}
    if any(row.loss_recovered is not None for outputs in spans.values() for row in outputs):
        shown["loss recovered %"] = ("loss_recovered", percents(1))
    return tuple(
        Table(
            (
                Column(heading, tuple(spans)),
                *(
                    Column(name, tuple(getattr(rows.get(name), figure, None) for rows in by_name), show)
                    for name in names
                ),
            ),
            f"{what}, {caption}",
        )
        for what, (figure, show) in shown.items()
    )


def _key(span: Span, name: str) -> tuple[int | None, int, str]:
    """Name what is summed: the mean is the same from every source."""
    source, target = span
    return None if name == MEAN else source, target, name


@dataclass(frozen=True, eq=False)
class _Judged:
    """What the outputs of one batch are judged by.

    Attributes:
        logp: the model's own.
        guess: the model's own prediction.
        rows: which rows are judged.
        labels: class of each row, -100 where it has none; None without labels.
    """

    logp: Float[Tensor, "row class"]
    guess: Int[Tensor, " row"]
    rows: Bool[Tensor, " row"]
    labels: Int[Tensor, " row"] | None

    @classmethod
    def of(cls, own: OwnPass, labels: Int[Tensor, " row"] | None, next_token: bool) -> _Judged:
        logp = own.output.logp
        # One label a token does not say whether an output of one row an input is right.
        given = None if labels is None else own.output.labels(labels, own.of_states)
        every = torch.ones(len(logp), dtype=torch.bool, device=logp.device)
        if next_token:
            return cls(logp, logp.argmax(1), every, own.output.following())
        if given is None:
            return cls(logp, logp.argmax(1), every, None)
        require_outputs(given, logp.shape[1])
        return cls(logp, logp.argmax(1), given != IGNORED, given)


@dataclass
class _Sums:
    """Sums over the rows of an output, batch by batch."""

    rows: int = 0
    labelled: int = 0
    right: int = 0
    agreeing: int = 0
    divergence: float = 0.0
    surprise: float = 0.0

    def add(self, output: Output, judged: _Judged) -> None:
        guess = output.logp.argmax(1)
        self.rows += int(judged.rows.sum())
        self.agreeing += int((guess == judged.guess)[judged.rows].sum())
        self.divergence += float(kullback_leibler(judged.logp, output.logp)[judged.rows].sum())
        if judged.labels is not None:
            known = judged.labels != IGNORED
            labels = judged.labels[known]
            self.labelled += len(labels)
            self.right += int((guess[known] == labels).sum())
            self.surprise -= float(output.logp[known.nonzero().squeeze(1), labels].sum())

    def figures(self, name: str, *, labelled: bool) -> OutputFidelity:
        agreement, divergence = self.agreeing / self.rows, self.divergence / self.rows
        if not labelled or not self.labelled:
            return OutputFidelity(name, None, agreement, divergence)
        return OutputFidelity(
            name, self.right / self.labelled, agreement, divergence, cross_entropy=self.surprise / self.labelled
        )


def _with_loss_recovered(rows: tuple[OutputFidelity, ...]) -> tuple[OutputFidelity, ...]:
    """Add what share of the cost of a mean ablation each stand-in wins back."""
    loss = {row.name: row.cross_entropy for row in rows}
    model, mean = loss[BASE], loss.get(MEAN)
    if model is None or mean is None or not mean > model:
        return rows
    return tuple(
        row if row.cross_entropy is None else replace(row, loss_recovered=(mean - row.cross_entropy) / (mean - model))
        for row in rows
    )
