"""Oblique projections: the cheapest readers that erase given directions and leave given offsets alone.

With A the directions to erase, B the offsets to keep and Σ a covariance, the readers are the W of least `tr WᵀΣW`
with AᵀW = I and BᵀW = 0. By whitening, Ã = L⁻¹A and B̃ = L⁻¹B with Σ = LLᵀ, that is

    R = Ã − B̃ B̃⁺ Ã,   W = L⁻ᵀ R (RᵀR)⁻¹

Kin of LEACE (arXiv 2306.03819), which is B = 0 and A the cross-covariance, and of SPLINCE (arXiv 2506.10703). One
Cholesky factorisation, observables³ / 3. Knows nothing of classes, rows or operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.errors import InputError

SHRINKAGE = 1e-3
"""Part of Σ's mean diagonal that is added to its diagonal; the laws of the erasers hold at any value."""

INFEASIBLE = 1e-6
"""Share of a direction outside the span of what is to be kept, below which it counts as inside."""

_NOTHING = 1e-10
"""Singular value, relative to the largest, below which a direction is a rounding error."""


@dataclass(frozen=True, eq=False)
class Projection:
    """An oblique projection, and how much stood in its way.

    Attributes:
        map: `z → z − (z W − o) Aᵀ`.
        feasibility: least share of a direction, in the metric of Σ, that lies outside of the span of B.
    """

    map: LowRankMap
    feasibility: float


def oblique(
    directions: Float[Tensor, "observable direction"],
    kept: Float[Tensor, "observable offset"],
    covariance: Float[Tensor, "observable observable"],
    centre: Float[Tensor, " observable"],
    *,
    shrinkage: float = SHRINKAGE,
) -> Projection | None:
    """Solve for the cheapest readers.

    Args:
        directions: A, independent columns.
        kept: B; its columns may depend on each other.
        covariance: Σ.
        centre: the point that stays where it is.
        shrinkage: added to Σ's diagonal, relative to its mean.

    Returns:
        The projection, or None where a direction lies in the span of B and of the other directions.

    Raises:
        InputError: Σ cannot be inverted.
    """
    ridge = shrinkage * covariance.diagonal().mean()
    sigma = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor, failed = torch.linalg.cholesky_ex(sigma)
    if failed:
        raise InputError("The covariance of the observables cannot be inverted. Raise shrinkage, or fit more rows.")
    whitened = torch.linalg.solve_triangular(factor, torch.cat([directions, kept], 1), upper=False)
    targets, retained = whitened.split([directions.shape[1], kept.shape[1]], 1)
    lengths = targets.norm(dim=0)
    if not bool((lengths > 0).all()):
        return None
    # Offsets sum to nothing (they are taken from their own mean), so a basis is cut from their span.
    basis, values, _ = torch.linalg.svd(retained, full_matrices=False)
    basis = basis[:, values > max(float(values.max()), float(lengths.max())) * _NOTHING] if len(values) else basis
    rest = targets - basis @ (basis.T @ targets)
    feasibility = float(torch.linalg.svdvals(rest / lengths)[-1])
    if feasibility < INFEASIBLE:
        return None
    readers = torch.linalg.solve_triangular(factor.T, rest, upper=True)
    # AᵀW = ÃᵀR (RᵀR)⁻¹ = I, since what was taken off Ã is orthogonal to R.
    readers = torch.linalg.solve(rest.T @ rest, readers.T).T
    return Projection(LowRankMap(directions, readers, centre @ readers), feasibility)
