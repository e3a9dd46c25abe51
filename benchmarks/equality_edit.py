"""The edit of arXiv 2505.12809: the equality form, with targets from the nearest retained class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import koopman_interp as ki
from koopman_interp.hosts.layouts import shaped_like, to_rows

EPSILONS = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
"""Tried for the paper's edit; its ε is not published, so the best on training rows stands for it."""


@dataclass(frozen=True)
class EqualityEdit:
    """The paper's edit: `K^n + Δ` over the whole span, as a map of rows, with the ε it was solved for."""

    epsilon: float
    power: Float[Tensor, "observable observable"]


def next_best_targets(
    advanced: Float[Tensor, "sample observable"], labels: Int[Tensor, " sample"], forgotten: int
) -> Float[Tensor, "forget observable"]:
    """For each row to forget, the mean of the retained class that is nearest to it after the span."""
    kept = [c for c in torch.unique(labels).tolist() if c != forgotten]
    means = torch.stack([advanced[labels == c].mean(0) for c in kept])
    return means[torch.cdist(advanced[labels == forgotten], means).argmin(1)]


def equality_edits(
    koopman: ki.KoopmanAutoencoder, trajectories: ki.Trajectories, forgotten: int
) -> Iterator[EqualityEdit]:
    """Solve `Δ = C⁻¹Z_fᵀ(Z_f C⁻¹ Z_fᵀ + εI)⁻¹(T − Z_f M)` with C = Z_rᵀZ_r and M = (K^n)ᵀ, for each ε.

    ROME's constraint (arXiv 2202.05262) in the batched form of EMMET (arXiv 2403.14236). Where rows to forget
    outnumber observables they cannot all be met; by the push-through identity the same Δ is
    `(Z_fᵀZ_f + εC)⁻¹Z_fᵀ(T − Z_f M)`, which is what is solved: float64, observables × observables. C gets a
    ridge of 1e-6 of its mean diagonal.

    Args:
        koopman: the surrogate.
        trajectories: training rows, with labels.
        forgotten: the class.

    Yields:
        An edit for each of `EPSILONS`.
    """
    labels = trajectories.labels
    assert labels is not None
    with torch.no_grad():
        z = koopman.encode(trajectories.states[0], 0).double()
        eye = torch.eye(koopman.config.observables)
        power = koopman.operator.advance(eye, koopman.steps(0, len(koopman.sites) - 1)).double()
    gone, kept = z[labels == forgotten], z[labels != forgotten]
    residual = next_best_targets(z @ power, labels, forgotten) - gone @ power
    C = kept.T @ kept
    C += 1e-6 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    gram, cross = gone.T @ gone, gone.T @ residual
    for epsilon in EPSILONS:
        yield EqualityEdit(epsilon, power + torch.linalg.solve(gram + epsilon * C, cross))


@contextmanager
def replaced(model: nn.Module, koopman: ki.KoopmanAutoencoder, edit: EqualityEdit) -> Iterator[None]:
    """Put the edited motion in place of the whole span."""
    last = len(koopman.sites) - 1

    def put(state: Tensor) -> Tensor:
        z = koopman.encode(to_rows(state), 0).double() @ edit.power
        return shaped_like(koopman.decode(z.to(state.dtype), last), state, koopman.config.shapes[last])

    with ki.host_for(model).replaced(koopman.sites[0], koopman.sites[-1], put):
        yield
