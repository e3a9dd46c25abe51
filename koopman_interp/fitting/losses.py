"""The four losses of a Koopman autoencoder: pure functions of tensors, each with its formula and source.

All are means over entries, so that weights mean the same at any batch size and width. The isometry compares
distances between samples before and after the encoder; that it must be between data points, and not along random
directions, was measured: random directions leave the data's tangent space and lose its topology.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

Isometry = Literal["matching", "all_pairs", "chords"]


def reconstruction(decoded: Float[Tensor, "*batch width"], states: Float[Tensor, "*batch width"]) -> Float[Tensor, ""]:
    """`mean (D(E(x)) − x)²`: the decoder undoes the encoder."""
    return mse_loss(decoded, states)


def prediction(decoded: Float[Tensor, "*batch width"], states: Float[Tensor, "*batch width"]) -> Float[Tensor, ""]:
    """`mean (D(K^{j−i} E(x_i)) − x_j)²`: decoded after advancing, the state is the later one (2505.12809, eq. 3)."""
    return mse_loss(decoded, states)


def linearity(
    advanced: Float[Tensor, "*batch observable"], observables: Float[Tensor, "*batch observable"]
) -> Float[Tensor, ""]:
    """`mean (K^{j−i} E(x_i) − E(x_j))²`: the motion is linear in the observables."""
    return mse_loss(advanced, observables)


def matching_isometry(
    observables: Float[Tensor, "depth batch observable"],
    states: Float[Tensor, "depth batch width"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """`mean (‖z_i − z_j‖ − ‖x_i − x_j‖)²` over a random matching of the batch.

    The same expectation as over all pairs at a cost linear in the batch.
    """
    other = _others(states.shape[1], generator).to(states.device)
    before, after = (each - each.index_select(1, other) for each in (states, observables))
    return mse_loss(_norms(after), _norms(before))


def all_pairs_isometry(
    observables: Float[Tensor, "depth batch observable"], states: Float[Tensor, "depth batch width"]
) -> Float[Tensor, ""]:
    """`mean (‖z_i − z_j‖ − ‖x_i − x_j‖)²` over all pairs of the batch, the paper's (2505.12809, eq. 5); O(batch²)."""
    return mse_loss(_distances(observables), _distances(states))


def chord_isometry(
    encoder: torch.nn.Module,
    states: Float[Tensor, "depth batch width"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """`mean (‖J(m) u‖ − 1)²` at midpoints m of chords between data points, u the chord's direction.

    The local form of the same condition, by Jacobian-vector products along chords of a random matching.
    """
    order = torch.randperm(states.shape[1], generator=generator).to(states.device)
    ends, starts = states[:, order], states[:, order.roll(1)]
    chords = ends - starts
    lengths = chords.norm(dim=-1, keepdim=True)
    directions = chords / lengths.clamp_min(torch.finfo(chords.dtype).tiny)
    moved = torch.func.jvp(lambda x: encoder(x), ((ends + starts) / 2,), (directions,))[1]
    # Duplicate points have no chord and say nothing.
    return ((_norms(moved) - 1).square() * (lengths.squeeze(-1) > 0)).mean()


def _others(samples: int, generator: torch.Generator | None) -> Int[Tensor, " sample"]:
    """Draw for each sample another: the one before it on a random way through all of them."""
    order = torch.randperm(samples, generator=generator)
    return torch.empty_like(order).index_copy_(0, order, order.roll(1))


def _norms(differences: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
    """Euclidean norms with a gradient of zero, not NaN, at zero."""
    return torch.linalg.vector_norm(differences, dim=-1)


def _distances(points: Float[Tensor, "depth batch width"]) -> Float[Tensor, "depth pair"]:
    return torch.stack([torch.nn.functional.pdist(cloud) for cloud in points])
