"""How faithful a surrogate is: depth by depth, and span by span at the model's output, beside what is free.

Each number stands beside the identity (the state as it was at the source), the mean, the best linear map from source to
target, a chain of such maps layer by layer, an operator of its own for each step, and kernel ridge regression, all
fitted on the same rows as the surrogate. An operator that looks
faithful at its site can lose to these once its error has passed through the rest of the network, so the model's output
has the last word. Costs one pass over the inputs and, for each span and stand-in, what lies after the span; holds one
batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from koopman_interp.analysis.encoding import require_sites
from koopman_interp.analysis.substitutes.depth_fidelity import DepthFidelity, DepthSums
from koopman_interp.analysis.substitutes.in_place import (
    OutputFidelity,
    OutputSums,
    Span,
    output_table,
    span_tables,
)
from koopman_interp.analysis.substitutes.in_sample import fitted_on
from koopman_interp.analysis.substitutes.stand_ins import ENDPOINT, SURROGATE, StandIns
from koopman_interp.analysis.substitutes.token_floor import TokenFloor
from koopman_interp.depths import span
from koopman_interp.errors import InputError, UnknownSiteError, UnsupportedHostError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.labels import IGNORED
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.loader_order import require_own_order
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.observing.pass_record import PassRecord, recorded
from koopman_interp.observing.samples import labels_of_samples
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import LATER, PlainResult
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.record import in_sample
from koopman_interp.tables import Column, Table, digits, in_percent

Spans = Literal["given", "to_target", "all"]

_NOT_ASKED_FOR = "They were not asked for: outputs=False."


@dataclass(frozen=True)
class SpanFidelity:
    """Figures at the model's output with each stand-in substituted for one span.

    Attributes:
        source: site where the span starts.
        target: site where it ends.
        outputs: of the model, then of each stand-in.
    """

    source: str
    target: str
    outputs: tuple[OutputFidelity, ...]

    def table(self) -> Table:
        """Return the figures, one line a stand-in."""
        return output_table(self.outputs, f"At the model's output, substituted for {self.source} → {self.target}")


@dataclass(frozen=True, repr=False)
class Fidelity(PlainResult):
    """How faithful a surrogate is, as `fidelity` measures it.

    Attributes:
        depths: one entry a depth of the whole span.
        outputs: with each stand-in substituted for the whole span, the model first; empty where it gives no logits.
        rows: held-out rows judged.
        spans: the same for each span asked for; empty where it was the whole one alone.
        no_outputs: why there are no figures at the output; empty where there are.
        kernel_rows: rows that kernel ridge regression was fitted on.
        floor: what the token-wise floor is and is not; empty where there is none.
        fitted: how many of the rows are known to be of inputs that the surrogate was fitted on.
    """

    depths: tuple[DepthFidelity, ...]
    outputs: tuple[OutputFidelity, ...]
    rows: int
    spans: tuple[SpanFidelity, ...] = ()
    no_outputs: str = ""
    kernel_rows: int = 0
    floor: str = ""
    fitted: int = field(default=0, metadata={LATER: True})

    def __repr__(self) -> str:
        at_output = ""
        if self.outputs:
            ours = next(row for row in self.outputs if row.name == SURROGATE)
            at_output = f"agreement with the model {in_percent(ours.agreement)}, KL {ours.kl:.4f}, "
        return f"Fidelity({self.rows:,} rows, {at_output}FVU at the target {self.depths[-1].fvu[SURROGATE]:.4f})"

    @property
    def judged_on(self) -> str:
        """Which rows the figures are of, in words."""
        return (
            f"{self.rows:,} rows, {self.fitted:,} of them fitted on" if self.fitted else f"{self.rows:,} held-out rows"
        )

    def tables(self) -> tuple[Table, ...]:
        """Return figures at the output, where there are any, by depth, and by span."""
        whole = SpanFidelity(self.depths[0].site, self.depths[-1].site, self.outputs)
        return (*([whole.table()] if self.outputs else []), self.by_depth(), *self.by_span())

    def by_depth(self) -> Table:
        """Return the figures at each depth."""
        names = list(self.depths[-1].fvu)
        return Table(
            (
                Column("site", tuple(depth.site for depth in self.depths)),
                *(Column(f"FVU: {name}", tuple(depth.fvu[name] for depth in self.depths), digits(4)) for name in names),
                Column("typical coordinate", tuple(depth.typical_coordinate for depth in self.depths), digits(4)),
                Column("typical row", tuple(depth.typical_row for depth in self.depths), digits(4)),
                Column("linearity residual", tuple(depth.linearity_residual for depth in self.depths), digits(4)),
                Column("isometry 5/50/95 %", tuple(depth.isometry for depth in self.depths), _quantiles),
            ),
            f"At each depth, predicted from {self.depths[0].site}: fraction of variance unexplained (FVU)",
        )

    def by_span(self) -> tuple[Table, ...]:
        """Return the figures at the output by span: divergence, agreement, loss recovered; none without spans."""
        if not self.spans:
            return ()
        names = [row.name for row in self.outputs[1:]]
        spans = {f"{each.source} → {each.target}": each.outputs for each in self.spans}
        return span_tables(spans, names, "substituted for", "with each substitute for a span")

    def notes(self) -> tuple[str, ...]:
        """Say what was not measured, and how to get it."""
        notes = []
        if self.no_outputs:
            notes.append(f"There are no figures at the model's output. {self.no_outputs}")
        notes.extend(_of_whom(depth) for depth in self.depths if depth.misleading)
        if ENDPOINT not in self.depths[-1].fvu:
            notes.append(
                "The best linear map, the affine chain, one K per depth and kernel ridge regression are left out; to "
                "have them, give the trajectories that the surrogate was fitted on: fitted=…."
            )
        if self.kernel_rows:
            notes.append(f"Kernel ridge regression was fitted on {self.kernel_rows:,} rows.")
        if self.floor:
            notes.append(self.floor)
        if own := in_sample(self.fitted, self.rows):
            notes.append(own)
        return tuple(notes)


@own_kinds
@torch.no_grad()
def fidelity(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    *,
    held_out: object,
    labels: object = None,
    fitted: Rows | None = None,
    source: str | int | None = None,
    target: str | int | None = None,
    spans: Spans = "given",
    next_token: bool = False,
    outputs: bool = True,
    batch_size: int = BATCH_SIZE,
    progress: bool | None = None,
) -> Fidelity:
    """Measure a surrogate beside the identity, the mean, linear maps, one K per depth and kernel ridge regression.

    Args:
        model: the model.
        koopman: the surrogate. Leading positions that it was not fitted on are left out, and keep the model's states.
        held_out: inputs that it was not fitted on, with labels or without: `(x, y)`, or what else `Tap.observe` takes.
            Without labels there is neither accuracy nor cross-entropy. Samples labelled -100 are left out of all
            figures.
        labels: of the held-out inputs where they come apart from them, as in `Tap.observe`; that costs one more pass,
            to learn which samples they are of. Or the name of the column that holds them.
        fitted: trajectories that the surrogate was fitted on, for the best linear map, the chain of maps, one K per
            depth and kernel ridge regression (on 2,000 evenly spaced rows at most, some seconds a source); None leaves
            these four out.
        source: site or depth where the span starts; None is the first.
        target: site or depth where it ends; None is the last.
        spans: which to judge at the output beside the whole: only the one given; those from every depth of it to its
            target; or all within it.
        next_token: label each token of a language model with the one that follows it, in place of labels. With
            `fitted`, the whole span is judged beside the token-wise floor too, the mean of what the model says given
            the token: from the embeddings, no map of each token by itself comes nearer.
        outputs: judge at the model's output too. Off for one that returns a tensor which is no logits (several
            quantities, or states), since nothing tells it from one that is; where a model returns no tensor, or one of
            a single column, it is known.
        batch_size: of inputs that are to be cut.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        Figures per depth and at the output: of tokens, over all that are real. Of a model that gives no logits, figures
        per depth alone, and a line that says why.

    Raises:
        HostMismatchError: the surrogate belongs to another model.
        InputError: fewer than two samples, trajectories of other sites, labels and next tokens both asked for, or
            labels that come apart from an iterator, which can be read only once.
    """
    fitted = None if fitted is None else in_memory(fitted)
    if spans not in ("given", "to_target", "all"):
        raise InputError(f"spans={spans!r} is none of 'given', 'to_target' and 'all'.")
    koopman.require_depth("Fidelity")
    host = host_for(model, koopman.config.layout)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    if fitted is not None:
        require_sites(koopman, fitted)
    first, last = span(koopman.sites, source, target)
    stand_ins = StandIns(koopman, fitted)
    at_depths = DepthSums(koopman, first, last, stand_ins)
    asked = {ends: stand_ins.of(*ends) for ends in _asked(first, last, spans)}
    whole = (first, last) == (0, len(koopman.sites) - 1)
    floor = TokenFloor(fitted) if next_token and whole and fitted is not None else None
    at_output = OutputSums(asked, floor)
    read = _HeldOut(host, koopman, held_out, labels, batch_size, "" if outputs else _NOT_ASKED_FOR)
    hidden = None if progress is None else not progress
    for record, own, given in tqdm(read, desc="fidelity", unit="batch", disable=hidden):
        if next_token and given is not None:
            raise InputError("Figures are of given labels or of next tokens; got both. Leave out one of them.")
        rows = [record.rows(site).cpu() for site in koopman.sites[first : last + 1]]
        at_depths.add(
            rows,
            None if given is None else given != IGNORED,
            record.sequences if koopman.looks_back else None,
        )
        if own is not None:
            at_output.add(own, given, next_token=next_token)
    depths = at_depths.figures()
    if read.no_outputs:
        return Fidelity(depths, (), at_depths.rows, (), read.no_outputs, stand_ins.kernel_rows(), fitted=read.fitted)
    judged, sites = at_output.figures(), koopman.sites
    by_span = tuple(SpanFidelity(sites[i], sites[j], outputs) for (i, j), outputs in judged.items())
    kept = () if spans == "given" else by_span
    return Fidelity(
        depths,
        judged[first, last],
        at_depths.rows,
        kept,
        kernel_rows=stand_ins.kernel_rows(),
        floor="" if floor is None else floor.note(),
        fitted=read.fitted,
    )


class _HeldOut:
    """Passes of a model over held-out inputs, each with the labels of its samples.

    Attributes:
        no_outputs: why there are no outputs to judge, known once the first pass is over; else empty.
        fitted: rows so far that are known to be of inputs that the surrogate was fitted on.
    """

    def __init__(
        self,
        host: Host,
        koopman: KoopmanAutoencoder,
        inputs: Any,
        labels: object,
        batch_size: int,
        no_outputs: str = "",
    ) -> None:
        self.no_outputs = no_outputs
        self.fitted = 0
        self._record = koopman.record
        self._judges = False
        self._host = host
        self._sites, self._skip = koopman.sites, koopman.config.skip
        self._inputs = inputs
        self._column = labels if isinstance(labels, str) else None
        self._apart = None if labels is None or isinstance(labels, str) else labels
        self._batch_size = batch_size
        if self._apart is not None:
            require_own_order(inputs)
        if self._apart is not None and isinstance(inputs, Iterable) and iter(inputs) is inputs:
            raise InputError(
                "Labels that come apart from their inputs need the inputs twice, and an iterator can be read once. "
                "Give a list or a DataLoader, or batches of pairs (x, y)."
            )

    def __iter__(self) -> Iterator[tuple[PassRecord, OwnPass | None, Int[Tensor, " sample"] | None]]:
        apart = None if self._apart is None else self._spread(self._apart)
        start, labelled = 0, set()
        for x, y in self._calls():
            own = self._judged(x)
            record = self._recorded(x) if own is None else own.record
            samples = record.of_states
            given = None if y is None else samples.labels(y)
            if apart is not None:
                given = apart[start : start + len(samples)]
            start += len(samples)
            own_rows = fitted_on(self._record, x, samples)
            self.fitted += int((own_rows if given is None else own_rows & (given != IGNORED)).sum())
            labelled.add(given is None)
            if len(labelled) > 1:
                raise InputError("Some batches came with labels and others without. Give labels with all or with none.")
            yield record, own, given

    def _calls(self) -> Iterator[tuple[Any, Any]]:
        return calls(self._host, self._inputs, column=self._column, batch_size=self._batch_size)

    def _judged(self, x: Any) -> OwnPass | None:
        """Return the model's own pass, None where it gives no logits."""
        if self.no_outputs:
            return None
        try:
            own = OwnPass.of(self._host, x, self._sites, self._skip)
        except UnsupportedHostError as error:
            if self._judges:  # earlier batches had logits, so this one is at fault
                raise
            self.no_outputs = str(error)
            return None
        self._judges = True
        return own

    def _recorded(self, x: Any) -> PassRecord:
        """Return the states of a pass alone."""
        records: list[PassRecord] = []
        with recorded(self._host, self._sites, self._skip, records.append):
            self._host.call(x)
        if not records:
            raise UnknownSiteError(f"The forward pass never reached {', '.join(self._sites)}. Choose other sites.")
        records[-1].require(self._sites)
        return records[-1]

    def _spread(self, labels: object) -> Int[Tensor, " sample"]:
        """Bring labels to the samples of all passes."""
        return labels_of_samples(labels, [self._recorded(x).of_states for x, _ in self._calls()])


def _asked(first: int, last: int, spans: Spans) -> list[Span]:
    match spans:
        case "given":
            return [(first, last)]
        case "to_target":
            return [(depth, last) for depth in range(first, last)]
    return list(combinations(range(first, last + 1), 2))


def _of_whom(depth: DepthFidelity) -> str:
    """Say that a depth's FVU speaks for a few coordinates or rows."""
    return (
        f"The FVU of {depth.fvu[SURROGATE]:.1e} at {depth.site} is of a few large coordinates or far rows: of the "
        f"median coordinate {depth.typical_coordinate:.2f} of its variance is unexplained, of the "
        f"median row {depth.typical_row:.2f}. Leave outliers out (attach(model, skip=…), labels of -100)."
    )


def _quantiles(ratios: tuple[float, ...]) -> str:
    return " / ".join(f"{ratio:.2f}" for ratio in ratios)
