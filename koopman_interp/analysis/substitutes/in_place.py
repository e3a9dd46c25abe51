"""What a host says with stand-ins in place of spans of its depths, judged beside what it says itself.

Costs, a batch: one pass of the host, and for each stand-in what lies after its target. Logits can be wide, so one
batch is held at a time. Knows nothing of how stand-ins are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import nll_loss

from koopman_interp.analysis.substitutes.stand_ins import MEAN, StandIn
from koopman_interp.divergence import kullback_leibler
from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.outputs import Output
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.tables import number, percent, table

HOST = "host"

Span = tuple[int, int]
"""Depths of source and target."""


@dataclass(frozen=True)
class OutputFidelity:
    """Figures at the host's output with a stand-in in place of a span.

    Attributes:
        name: of the stand-in.
        accuracy: share of labelled rows whose label is predicted; None without labels.
        agreement: share of rows with the host's own prediction.
        kl: mean `KL(host ‖ stand-in in place)`, in nats.
        cross_entropy: mean `−log p(label)` over labelled rows, in nats; None without labels.
        recovered: share `(CE_mean − CE) / (CE_mean − CE_host)` of what ablating the span to the mean at its target
            costs: 1 for the host, 0 for the mean, negative where a stand-in is worse than that. None without labels,
            and where the ablation costs nothing.
    """

    name: str
    accuracy: float | None
    agreement: float
    kl: float
    cross_entropy: float | None = None
    recovered: float | None = None


def judged_in_place(
    host: Host,
    batches: Iterable[Any],
    sites: tuple[str, ...],
    stand_ins: Mapping[Span, Mapping[str, StandIn | None]],
    labels: Int[Tensor, " sample"] | None = None,
    *,
    next_token: bool = False,
    skip: int = 0,
) -> dict[Span, tuple[OutputFidelity, ...]]:
    """Judge the host and each stand-in in place of its span.

    Args:
        host: the host.
        batches: for `Host.call`.
        sites: of the depths.
        stand_ins: by span and name; those that are None do not exist.
        labels: of the samples of all batches in order; rows labelled -100 are left out. None without labels.
        next_token: take the token that follows as the label; the last row of a sequence has none, and counts in
            agreement and divergence alone.
        skip: leading places of each sequence to leave out.

    Returns:
        Figures for each span: of the host, then of each of its stand-ins.

    Raises:
        InputError: there were no samples.
    """
    tallies = {
        span: {name: _Tally() for name in (HOST, *(name for name, one in found.items() if one is not None))}
        for span, found in stand_ins.items()
    }
    labelled, start = labels is not None or next_token, 0
    for x in batches:
        own = OwnPass.of(host, x, sites, skip)
        of_states = own.of_states
        if next_token:
            given: Tensor | None = own.output.following()
            judged: Any = slice(None)
        else:
            given = None if labels is None else own.output.labels(labels[start : start + len(of_states)], of_states)
            judged = slice(None) if given is None else given != IGNORED
        start += len(of_states)
        # One label a token does not say whether an output of one row an input is right.
        labelled &= given is not None
        right = None if given is None else given[judged]
        logp = own.output.logp[judged]
        for (source, target), name, output in _outputs(own, stand_ins):
            tallies[source, target][name].add(output.logp[judged], logp, right)
    if not any(tally.rows for found in tallies.values() for tally in found.values()):
        raise InputError("There were no samples to judge. Give inputs, and skip fewer of their positions.")
    return {
        span: _recovered(tuple(tally.figures(name, labelled=labelled) for name, tally in found.items()))
        for span, found in tallies.items()
    }


def by_span_and_name(spans: Mapping[str, Sequence[OutputFidelity]], names: Sequence[str]) -> str:
    """Tabulate divergence / agreement / share of cross-entropy recovered, one line a span, one column a stand-in."""
    labelled = any(row.recovered is not None for outputs in spans.values() for row in outputs)
    lines = []
    for span, outputs in spans.items():
        found = {row.name: row for row in outputs}
        cells = []
        for name in names:
            row = found.get(name)
            parts = [] if row is None else [number(row.kl, 3), percent(row.agreement, 1)]
            cells.append(" / ".join([*parts, *([percent(row.recovered, 1)] if row and labelled else [])]) or "–")
        lines.append([span, *cells])
    return table(["KL / agreement %" + (" / recovered %" if labelled else ""), *names], lines)


def _outputs(
    own: OwnPass, stand_ins: Mapping[Span, Mapping[str, StandIn | None]]
) -> Iterable[tuple[Span, str, Output]]:
    """Go through the outputs of the host and of each stand-in for one batch, target by target."""
    for target in sorted({target for _, target in stand_ins}):
        with own.after(target) as said:
            mean: Output | None = None
            for span, found in stand_ins.items():
                if span[1] != target:
                    continue
                yield span, HOST, own.output
                rows = own.rows(span[0]).cpu()
                for name, stand_in in found.items():
                    if name == MEAN and mean is not None:  # which is the same from every source
                        yield span, name, mean
                    elif stand_in is not None:
                        output = said(stand_in(rows))
                        mean = output if name == MEAN else mean
                        yield span, name, output


@dataclass
class _Tally:
    """Sums over the rows of an output, batch by batch."""

    rows: int = 0
    labelled: int = 0
    right: int = 0
    agreeing: int = 0
    divergence: float = 0.0
    surprise: float = 0.0

    def add(self, logp: Tensor, own: Tensor, labels: Tensor | None) -> None:
        guess = logp.argmax(1)
        self.rows += len(logp)
        self.agreeing += int((guess == own.argmax(1)).sum())
        self.divergence += float(kullback_leibler(own, logp).sum())
        if labels is not None:
            self.labelled += int((labels != IGNORED).sum())
            self.right += int((guess == labels).sum())
            self.surprise += float(nll_loss(logp, labels, reduction="sum", ignore_index=IGNORED))

    def figures(self, name: str, *, labelled: bool) -> OutputFidelity:
        agreement, divergence = self.agreeing / self.rows, self.divergence / self.rows
        if not labelled or not self.labelled:
            return OutputFidelity(name, None, agreement, divergence)
        return OutputFidelity(
            name, self.right / self.labelled, agreement, divergence, cross_entropy=self.surprise / self.labelled
        )


def _recovered(rows: tuple[OutputFidelity, ...]) -> tuple[OutputFidelity, ...]:
    """Add what share of the cost of a mean ablation each stand-in wins back."""
    loss = {row.name: row.cross_entropy for row in rows}
    host, mean = loss[HOST], loss.get(MEAN)
    if host is None or mean is None or not mean > host:
        return rows
    return tuple(
        row if row.cross_entropy is None else replace(row, recovered=(mean - row.cross_entropy) / (mean - host))
        for row in rows
    )
