"""The objective of a fit: the four losses over pairs of depths, on a batch and on held-out rows.

Holds the normalised trajectories. Knows nothing of how the loss is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    reconstruction,
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
        times = self._times
        if not self._sampled:
            batch, sequences = self._batches(step)
            return self.weighed(batch, times, generator, sequences)
        i, j = drawn_pair(self._batches.depths(step), generator)
        batch, sequences = self._batches(step, (0, i, j, self._train.depths - 1))
        whole = self.weighed(batch[[0, -1]], (times[0], times[-1]), generator, sequences)
        drawn = self.weighed(batch[1:3], (times[i], times[j]), generator, sequences, drawn_rows(batch))
        return whole + self._config.drawn * drawn

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
        some: slice = slice(None),
    ) -> Float[Tensor, ""]:
        """Weigh the four losses on trajectories, over all pairs of their depths.

        Args:
            states: of the trajectories.
            times: of their depths.
            generator: of the matching.
            sequences: how the samples follow each other, for an encoder that looks back.
            some: samples that the losses are taken of; the others are looked back on.

        Returns:
            The weighted sum.
        """
        surrogate = self.surrogate
        # What is not among them is lifted only where it is looked back on.
        some_z = surrogate.lift(states[:, some]) if sequences is None else surrogate.lift(states, sequences)[:, some]
        return self._of_observables(some_z, states[:, some], times, generator, surrogate.operator.propagator)

    def _of_observables(
        self,
        z: Float[Tensor, "depth sample observable"],
        states: States,
        times: Sequence[float],
        generator: torch.Generator,
        propagator: Callable[[float], Propagator],
    ) -> Float[Tensor, ""]:
        """Weigh the four losses on observables of states, moved by the propagators of a K."""
        config, surrogate = self._config, self.surrogate
        pairs = list(combinations(range(len(states)), 2))
        # Every prediction trains the decoder as well, so that half of the rows are enough for what it undoes.
        some = slice(0, (states.shape[1] + 1) // 2)
        total = config.reconstruction * reconstruction(surrogate.decoder(z[:, some]), states[:, some])
        propagators: dict[float, Propagator] = {}
        # A look takes the pairs of one start after the other: all at once are, of many depths, more than memory holds.
        # Gradients hold them all anyway.
        starts = [pairs] if torch.is_grad_enabled() else [list(group) for _, group in groupby(pairs, itemgetter(0))]
        for group in starts:
            advanced = torch.stack(_advanced(z, times, group, propagator, propagators))
            arriving, share = [later for _, later in group], len(group) / len(pairs)
            total = total + share * config.linearity * linearity(advanced, z[arriving])
            total = total + share * config.prediction * prediction(surrogate.decoder(advanced), states[arriving])
        weight = 1 / states.shape[-1] if config.isometry_weight is None else config.isometry_weight
        if weight == 0:
            return total
        match config.isometry:
            case "matching":
                isometry = matching_isometry(z, states, generator)
            case "all_pairs":
                isometry = all_pairs_isometry(z, states)
            case _:
                isometry = chord_isometry(surrogate.encoder, states, generator)
        return total + weight * isometry


def drawn_pair(depths: Sequence[int], generator: torch.Generator) -> tuple[int, int]:
    """Draw a pair of depths other than the ends."""
    others = [pair for pair in combinations(depths, 2) if pair != (depths[0], depths[-1])]
    i, j = others[int(torch.randint(len(others), (1,), generator=generator))]
    return i, j


def drawn_rows(batch: States) -> slice:
    """Return the part of a batch on which a drawn pair is fitted."""
    return slice(0, max(2, round(_DRAWN_ROWS * batch.shape[1])))


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
