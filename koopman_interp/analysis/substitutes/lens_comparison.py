"""Lenses side by side: how far what each reads at each depth is from what the model says.

Costs one pass of the model a batch, and one of its head for each lens and depth. A smaller divergence is not a better
explanation: a lens with more parameters can learn what the model has not computed yet, so parameters stand beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from koopman_interp.analysis.encoding import require_sites
from koopman_interp.analysis.substitutes.in_place import BASE, OutputFidelity, OutputSums, span_tables
from koopman_interp.analysis.substitutes.in_sample import fitted_on
from koopman_interp.analysis.substitutes.lenses import AffineLens, KoopmanLens, Lens, LogitLens, lens_of
from koopman_interp.analysis.substitutes.stand_ins import MEAN, StandIn, mean_at
from koopman_interp.analysis.substitutes.token_floor import FLOOR, TokenFloor
from koopman_interp.errors import InputError
from koopman_interp.hosts.finding import host_for
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.observing.batches import BATCH_SIZE, calls
from koopman_interp.observing.own_pass import OwnPass
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import LATER, PlainResult
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.record import in_sample
from koopman_interp.tables import Column, Table


@dataclass(frozen=True, repr=False)
class LensComparison(PlainResult):
    """How far lenses are from the model at each depth, as `compare_lenses` measures it.

    Attributes:
        sites: the depths but the last, where every lens says what the model says.
        parameters: fitted numbers of each lens, by name.
        outputs: at each depth, figures of the model, of the mean of the last state, and of each lens.
        floor: what the token-wise floor, which stands beside the lenses at the first depth, is and is not; empty where
            there is none.
        rows: samples read.
        fitted: how many of them are known to be of inputs that the surrogate was fitted on.
    """

    sites: tuple[str, ...]
    parameters: dict[str, int]
    outputs: tuple[tuple[OutputFidelity, ...], ...]
    floor: str = ""
    rows: int = field(default=0, metadata={LATER: True})
    fitted: int = field(default=0, metadata={LATER: True})

    def __repr__(self) -> str:
        means = []
        for name in self.parameters:
            if name == FLOOR:
                continue
            known = [value for value in self.kl(name) if value is not None]
            means.append(f"{name} {sum(known) / len(known):.3f}" if known else f"{name} –")
        return f"LensComparison(KL to the model, mean over {len(self.sites)} depths: {', '.join(means)})"

    def tables(self) -> tuple[Table, ...]:
        """Return divergence, agreement and loss recovered by depth, and the parameters of each lens."""
        by_depth = dict(zip(self.sites, self.outputs, strict=True))
        columns = (
            Column("lens", tuple(self.parameters)),
            Column("parameters", tuple(self.parameters.values()), "{:,}".format),
        )
        figures = span_tables(by_depth, list(self.parameters), "read at", "of each lens")
        return (*figures, Table(columns, "Numbers that were fitted"))

    def notes(self) -> tuple[str, ...]:
        """Say what the floor is, and which rows were fitted on."""
        return tuple(note for note in (self.floor, in_sample(self.fitted, self.rows)) if note)

    def kl(self, lens: str) -> tuple[float | None, ...]:
        """Mean divergence of a lens from the model at each depth, in nats; None where the lens does not exist.

        Raises:
            InputError: there is no such lens.
        """
        if lens not in self.parameters:
            raise InputError(f"There is no lens {lens!r} here; there are {', '.join(self.parameters)}.")
        return tuple({row.name: row.kl for row in outputs}.get(lens) for outputs in self.outputs)


@own_kinds
@torch.no_grad()
def compare_lenses(
    model: nn.Module | Host,
    koopman: KoopmanAutoencoder,
    *,
    held_out: object,
    fitted: Rows,
    others: Sequence[object] = (),
    next_token: bool = False,
    batch_size: int = BATCH_SIZE,
) -> LensComparison:
    """Compare the Koopman lens with the logit lens, an affine lens, and others.

    Of language models, the first depth has the token-wise floor beside it: the mean of what the model says given the
    token. No lens that reads the embeddings token by token comes nearer.

    Args:
        model: the model.
        koopman: the surrogate. Leading positions that it was not fitted on are left out, and keep the model's states.
        held_out: inputs that it was not fitted on, as in `Tap.observe`.
        fitted: trajectories that it was fitted on, for the affine lens, by least squares.
        others: lenses to judge beside these: one by `tune_lens`, another surrogate's, TransformerLens's `JacobianLens`;
            each by a name of its own.
        next_token: for language models, give the share of cross-entropy recovered too.
        batch_size: of inputs that are to be cut.

    Returns:
        Divergence, agreement and parameters of each lens, at each depth but the last.

    Raises:
        UnsupportedHostError: the model returns no logits, so that it has no head to read with.
        HostMismatchError: the surrogate, or a lens, belongs to another model.
        InputError: something is no lens, two lenses share a name, the trajectories have other sites, or there were no
            samples.
    """
    fitted = in_memory(fitted)
    if isinstance(others, Lens) or not isinstance(others, Sequence):
        raise InputError(f"Other lenses come in a list; got a single {type(others).__name__}. Give others=[lens].")
    koopman.require_depth("A comparison of lenses")
    host = host_for(model, koopman.config.layout)
    koopman.config.host.require(HostFingerprint.of(host), "surrogate")
    require_sites(koopman, fitted)
    given = [lens_of(other, host, koopman.sites, koopman.config.skip) for other in others]
    lenses: list[Lens] = [KoopmanLens(koopman), LogitLens(koopman.config.widths), AffineLens.fit(fitted), *given]
    names = [lens.name for lens in lenses]
    if len(set(names)) < len(names) or {MEAN, BASE, FLOOR} & set(names):
        raise InputError(
            f"Each lens needs a name of its own, and none is {MEAN!r}, {BASE!r} or {FLOOR!r}; got {', '.join(names)}."
        )
    last = len(koopman.sites) - 1
    ablated: dict[str, StandIn | None] = {MEAN: mean_at(koopman, last)}
    floor = TokenFloor(fitted)
    at_output = OutputSums(
        {(depth, last): ablated | {lens.name: lens.at(depth) for lens in lenses} for depth in range(last)}, floor
    )
    rows = own_rows = 0
    for batch, _ in calls(host, held_out, batch_size=batch_size):
        own = OwnPass.of(host, batch, koopman.sites, koopman.config.skip)
        at_output.add(own, next_token=next_token)
        rows += len(own.of_states)
        own_rows += int(fitted_on(koopman.record, batch, own.of_states).sum())
    by_depth = tuple(at_output.figures().values())
    parameters = {lens.name: lens.parameters for lens in lenses}
    if floor.rows:
        parameters[FLOOR] = floor.parameters
    return LensComparison(koopman.sites[:-1], parameters, by_depth, floor.note(), rows, own_rows)
