"""The objective of a fit: the four losses over pairs of depths, on a batch and on held-out rows.

Holds the normalised trajectories. Knows nothing of how the loss is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from operator import itemgetter
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.losses import (
    all_pairs_isometry,
    chord_isometry,
    linearity,
    matching_isometry,
    prediction,
)
from koopman_interp.fitting.rows import HeldRows, Rows, States, judged_rows
from koopman_interp.sequences import Sequences
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.operators import Propagator

_DRAWN_ROWS = 0.5
"""Part of a batch on which the drawn pair of depths is fitted: it is there to keep the depths between in line."""


@runtime_checkable
class Objective(Protocol):
    """What the fit of a surrogate lowers: the loss of a step, and figures on what is held out, `loss` among them."""

    surrogate: KoopmanAutoencoder

    def __call__(self, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the loss of a step."""
        ...

    def judged(self, generator: torch.Generator) -> dict[str, float]:
        """Return the figures."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """Samples at some depths, all of whose pairs losses are taken of.

    Attributes:
        z: their observables.
        states: their normalised states.
        times: of the depths.
        weight: of the losses.
    """

    z: Float[Tensor, "depth sample observable"]
    states: States
    times: Sequence[float]
    weight: float = 1.0

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of an earlier depth and a later one."""
        return list(combinations(range(len(self.states)), 2))

    def first_half(self) -> Part:
        """Return the first half of the samples."""
        some = slice(0, (self.states.shape[1] + 1) // 2)
        return replace(self, z=self.z[:, some], states=self.states[:, some])


class FitObjective:
    """The losses of a surrogate on rows.

    Args:
        surrogate: what is fitted, on the device of the states.
        config: weights of the losses, pairs of depths, batches.
        train: rows to fit on.
        held_out: rows to judge by; the first 2,048 are, or fewer where there are more than 13 depths to pair.
        batch_size: samples a step; where the encoder looks back, as many whole sequences as come nearest to them.
    """

    _needs_all = False
    """Whether a step takes all depths of its rows."""

    def __init__(
        self,
        surrogate: KoopmanAutoencoder,
        config: FitConfig,
        train: Rows,
        held_out: HeldRows,
        batch_size: int,
    ) -> None:
        endpoints = config.pairs == "endpoints"
        times = surrogate.config.times
        self.surrogate = surrogate
        self._config = config
        self._train = train.ends() if endpoints else train
        self._held_out, self._held_out_order = (held_out.ends() if endpoints else held_out).first(
            judged_rows(2 if endpoints else held_out.depths)
        )
        self._times = (times[0], times[-1]) if endpoints else times
        self._sampled = config.pairs == "sampled" and self._train.depths > 2
        self._batches = self._train.batches(batch_size, config.seed, every_depth=not self._sampled or self._needs_all)

    def __call__(self, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Weigh the losses on the batch of a step: of all pairs of depths, or of the whole span and one drawn pair."""
        if not self._sampled:
            batch, sequences = self._batches(step)
            return self.weighed(batch, self._times, generator, sequences)
        i, j = drawn_pair(self._batches.depths(step), generator)
        depths = (0, self._train.depths - 1, i, j)
        batch, sequences = self._batches(step, depths)
        parts = self._parts(batch, [self._times[depth] for depth in depths], sequences)
        return self._weighed(parts, generator, self.surrogate.operator.propagator)

    def halve_batch(self) -> int | None:
        """Take half as many samples a step, or sequences, from now on; return how many, or None where it is one."""
        return self._batches.halve()

    def judged(self, generator: torch.Generator) -> dict[str, float]:
        """Return the weighed losses of all pairs on held-out rows as `loss`, and the figures to watch a fit by."""
        states, order = self._held_out, self._held_out_order
        loss = float(self.weighed(states, self._times, generator, order))
        return held_out_figures(self.surrogate, states, self._times, order) | {"loss": loss}

    def weighed(
        self,
        states: States,
        times: Sequence[float],
        generator: torch.Generator,
        sequences: Sequences | None = None,
    ) -> Float[Tensor, ""]:
        """Weigh the four losses on trajectories, over all pairs of their depths.

        Args:
            states: of the trajectories.
            times: of their depths.
            generator: of the matching.
            sequences: how the samples follow each other, for an encoder that looks back.

        Returns:
            The weighted sum.
        """
        part = Part(self.surrogate.lift(states, sequences), states, times)
        return self._weighed([part], generator, self.surrogate.operator.propagator)

    def _parts(self, batch: States, times: Sequence[float], sequences: Sequences | None) -> list[Part]:
        """Lift the ends of a batch, which come first, and some rows of the drawn pair."""
        some, lift = drawn_rows(batch), self.surrogate.lift
        states = [batch[:2], batch[2:, some]]
        if sequences is None:
            ends, drawn = of_rows_together(lift, states)
        else:  # what is not drawn is looked back on
            z = lift(batch, sequences)
            ends, drawn = z[:2], z[2:, some]
        return [Part(ends, states[0], times[:2]), Part(drawn, states[1], times[2:], self._config.drawn)]

    def _weighed(
        self, parts: Sequence[Part], generator: torch.Generator, propagator: Callable[[float], Propagator]
    ) -> Float[Tensor, ""]:
        """Weigh the four losses over all pairs of depths of each part, moved by the propagators of a K."""
        config, propagators = self._config, dict[float, Propagator]()
        losses = [part.weight * self._isometry(part, generator) for part in parts]
        # Every prediction trains the decoder as well, so that half of the rows are enough for what it undoes.
        undone = [part.first_half() for part in parts]
        decoded = [(part.z, part.states, part.weight * config.reconstruction) for part in undone]
        for part in parts:
            for pairs in _together(part.pairs):
                if not torch.is_grad_enabled():  # a look lets go of each before the next
                    losses.append(self._of_decoded(decoded))
                    decoded = []
                advanced = torch.stack(_advanced(part.z, part.times, pairs, propagator, propagators))
                arriving = torch.tensor([later for _, later in pairs], device=advanced.device)
                weight = part.weight * len(pairs) / len(part.pairs)
                losses.append(weight * config.linearity * linearity(advanced, part.z.index_select(0, arriving)))
                decoded.append((advanced, part.states.index_select(0, arriving), weight * config.prediction))
        return torch.stack([*losses, self._of_decoded(decoded)]).sum()

    def _of_decoded(self, each: Sequence[tuple[Tensor, Tensor, float]]) -> Float[Tensor, ""]:
        """Weigh how far decoded observables are from the states they should be."""
        decoded = of_rows_together(self.surrogate.decoder, [z for z, _, _ in each])
        losses = [weight * prediction(ours, states) for ours, (_, states, weight) in zip(decoded, each, strict=True)]
        return torch.stack(losses).sum()

    def _isometry(self, part: Part, generator: torch.Generator) -> Float[Tensor, ""]:
        config, z, states = self._config, part.z, part.states
        weight = 1 / states.shape[-1] if config.isometry_weight is None else config.isometry_weight
        if weight == 0:
            return z.new_zeros(())
        match config.isometry:
            case "matching":
                return weight * matching_isometry(z, states, generator)
            case "all_pairs":
                return weight * all_pairs_isometry(z, states)
            case _:
                return weight * chord_isometry(self.surrogate.encoder, states, generator)


def drawn_pair(depths: Sequence[int], generator: torch.Generator) -> tuple[int, int]:
    """Draw a pair of depths other than the ends."""
    others = [pair for pair in combinations(depths, 2) if pair != (depths[0], depths[-1])]
    i, j = others[int(torch.randint(len(others), (1,), generator=generator))]
    return i, j


def drawn_rows(batch: States) -> slice:
    """Return the part of a batch on which a drawn pair is fitted."""
    return slice(0, max(2, round(_DRAWN_ROWS * batch.shape[1])))


def of_rows_together(
    network: Callable[[Tensor], Tensor], parts: Sequence[Float[Tensor, "... _"]]
) -> list[Float[Tensor, "... _"]]:
    """Apply a network of rows to several tensors at once: many small products take longer to begin than to do."""
    if len(parts) == 1:
        return [network(parts[0])]
    rows = network(torch.cat([part.flatten(0, -2) for part in parts]))
    lengths = [part[..., 0].numel() for part in parts]
    return [each.unflatten(0, part.shape[:-1]) for each, part in zip(rows.split(lengths), parts, strict=True)]


def _together(pairs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Say which pairs to take at once.

    Gradients hold them all anyway. A look takes those of one start after those of the other: all at once are, of many
    depths, more than memory holds.
    """
    if torch.is_grad_enabled():
        return [pairs]
    return [list(group) for _, group in groupby(pairs, itemgetter(0))]


def _advanced(
    z: Tensor,
    times: Sequence[float],
    pairs: Sequence[tuple[int, int]],
    propagator: Callable[[float], Propagator],
    propagators: dict[float, Propagator],
) -> list[Tensor]:
    """Advance the observables of each pair's earlier depth to its later one.

    A rollout that passes through a depth on its way to a later one is continued, not begun anew, and so are the
    propagators that were made for other pairs.
    """
    reached = {(depth, depth): z[depth] for depth in range(len(z))}
    for i, j in pairs:
        nearest = max(k for (start, k) in reached if start == i and k <= j)
        gap = times[j] - times[nearest]
        if gap not in propagators:
            propagators[gap] = propagator(gap)
        if nearest < j:
            reached[i, j] = propagators[gap](reached[i, nearest])
    return [reached[pair] for pair in pairs]


def held_out_figures(
    surrogate: KoopmanAutoencoder, states: States, times: Sequence[float], sequences: Sequences | None = None
) -> dict[str, float]:
    """Two figures to watch a fit by.

    `fvu` is the fraction of variance of the last depth that the prediction from the first leaves unexplained;
    `stress` is `Σ(‖z_i−z_j‖ − ‖x_i−x_j‖)² / Σ‖x_i−x_j‖²` over a matching of the rows.
    """
    z = surrogate.lift(states, sequences)
    predicted = surrogate.decoder(surrogate.operator.advance(z[0], times[-1] - times[0]))
    last = states[-1]
    smallest = torch.finfo(last.dtype).tiny
    fvu = (predicted - last).square().sum() / (last - last.mean(0)).square().sum().clamp_min(smallest)
    before = (states - states.roll(1, dims=1)).norm(dim=-1)
    after = (z - z.roll(1, dims=1)).norm(dim=-1)
    stress = (after - before).square().sum() / before.square().sum().clamp_min(smallest)
    return {"fvu": float(fvu), "stress": float(stress)}
