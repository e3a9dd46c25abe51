"""How far apart the dynamics of two surrogates are: two models, two checkpoints, before and after fine-tuning.

Two distances that complement each other. The Wasserstein distance between eigenvalues (arXiv 2302.09160) compares what
the modes do and not what they look like. The Procrustes distance between operators (dynamical similarity analysis,
Ostrow et al., arXiv 2306.10168) also sees how modes lean on each other. Neither needs the two to share observables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table, digits

Weights = Literal["uniform", "energy"]

_MOST_TRANSPORTED = 400
"""Eigenvalues of a side that the transport problem is solved for."""
_STEPS = 400
"""Iterations of L-BFGS from each start."""


@dataclass(frozen=True, repr=False)
class SpectralDistance(PlainResult):
    """Distances between two spectra.

    Attributes:
        wasserstein: of order 1 between the eigenvalues in the complex plane, with the weights asked for; the units are
            those of λ of K itself, per operator step.
        procrustes: angle in radians between the two operators, in coordinates where their observables are white, after
            the best rotation that was found: 0 for the same dynamics, π/2 for unrelated ones. The search is not convex,
            so this is an upper bound.
        directions: principal directions of the observables that the operators were compared on.
        modes: how many eigenvalues were compared, of either.
    """

    wasserstein: float
    procrustes: float
    directions: int
    modes: tuple[int, int]

    def __repr__(self) -> str:
        return f"SpectralDistance(Wasserstein {self.wasserstein:.4f}, Procrustes angle {self.procrustes:.4f})"

    def tables(self) -> tuple[Table]:
        """Return both distances, each with what it was computed over."""
        over = (f"{self.modes[0]} and {self.modes[1]} eigenvalues", f"{self.directions} directions")
        columns = (
            Column("distance", ("Wasserstein, in λ", "Procrustes, in radians")),
            Column("value", (self.wasserstein, self.procrustes), digits(4)),
            Column("over", over, left=True),
        )
        return (Table(columns, "0 for the same dynamics; the angle is π/2 for unrelated ones."),)


@own_kinds
def spectral_distance(
    first: Spectrum,
    second: Spectrum,
    *,
    weights: Weights = "uniform",
    directions: int = 16,
    starts: int = 8,
    seed: int = 0,
) -> SpectralDistance:
    """Compare two spectra.

    Args:
        first: of one surrogate, with its Gram matrices.
        second: of another; the observables need not be the same, nor as many.
        weights: of eigenvalues in the Wasserstein distance: `uniform`, or `energy`, the share of `E |φ|² ‖v‖²` on the
            data, by which modes that the data hardly have hardly count.
        directions: principal directions of the observables on which operators are compared; at most as many as both
            have.
        starts: rotations from which the best is searched.
        seed: of the starts.

    Returns:
        Both distances.

    Raises:
        InputError: a spectrum without Gram matrices or energy, weights of another name, no directions, or an operator
            that is zero.
    """
    if weights not in ("uniform", "energy"):
        raise InputError(f"weights={weights!r} is neither 'uniform' nor 'energy'.")
    if directions < 1:
        raise InputError(f"Operators are compared on 1 or more directions; got {directions}.")
    measures = [_measure(spectrum, weights) for spectrum in (first, second)]
    operators = [_white_operator(spectrum) for spectrum in (first, second)]
    size = min(directions, *map(len, operators))
    return SpectralDistance(
        wasserstein=_wasserstein(*measures),
        procrustes=_procrustes(operators[0][:size, :size], operators[1][:size, :size], starts, seed),
        directions=size,
        modes=(len(measures[0][0]), len(measures[1][0])),
    )


def _grams(spectrum: Spectrum) -> tuple[ndarray, ndarray]:
    """Return G of all pairs, and the readers in its coordinates."""
    if spectrum.grams is None:
        raise InputError("This spectrum has no Gram matrices. Take one from spectrum(koopman, trajectories).")
    return spectrum.grams.G.sum((0, 1, 2)).numpy(), spectrum.grams.coordinates(spectrum.readers)


def _measure(spectrum: Spectrum, weights: Weights) -> tuple[ndarray, ndarray]:
    """Return eigenvalues and their weights, which add up to 1; past 400, the heaviest."""
    G, W = _grams(spectrum)
    values = spectrum.operator_eigenvalues
    heavy = np.ones(len(values))
    if weights == "energy":
        heavy = np.maximum(np.einsum("mk,mk->k", W.conj(), G @ W).real, 0) * (np.abs(spectrum.modes) ** 2).sum(0)
        if not heavy.any():
            raise InputError("No mode is reached by the data, so none has energy. Compare with weights='uniform'.")
    kept = np.sort(np.argsort(-heavy, kind="stable")[:_MOST_TRANSPORTED])
    return values[kept], heavy[kept] / heavy[kept].sum()


def _wasserstein(first: tuple[ndarray, ndarray], second: tuple[ndarray, ndarray]) -> float:
    """Solve the transport problem: by assignment where all weights are alike, else as a linear programme."""
    (values, heavy), (others, other_heavy) = first, second
    cost = np.abs(values[:, None] - others)
    if len(values) == len(others) and np.ptp(heavy) + np.ptp(other_heavy) < 1e-12:
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean())
    here, there = cost.shape
    leaving = scipy.sparse.kron(scipy.sparse.eye(here), np.ones((1, there)))
    arriving = scipy.sparse.kron(np.ones((1, here)), scipy.sparse.eye(there))
    # One of the constraints follows from the others, and rounding would set it against them.
    constraints = scipy.sparse.vstack([leaving, arriving]).tocsr()[:-1]
    plan = linprog(cost.ravel(), A_eq=constraints, b_eq=np.concatenate([heavy, other_heavy])[:-1], method="highs")
    assert plan.status == 0, plan.message
    return float(plan.fun)


def _white_operator(spectrum: Spectrum) -> Float[ndarray, "direction direction"]:
    """Return Kᵀ in the principal directions of the observables, scaled to unit mean square, largest first.

    White coordinates are the same up to a rotation for all observables that are linear maps of each other, so that only
    dynamics are compared: exactly where all directions are kept, or where the maps are rotations, as they are nearly
    between encoders held to an isometry.
    """
    G, W = _grams(spectrum)
    assert spectrum.grams is not None
    V = spectrum.grams.coordinates(spectrum.modes)
    K = ((V * spectrum.operator_eigenvalues) @ W.T).real
    spread, vectors = np.linalg.eigh(G)
    spread, vectors = spread[::-1], vectors[:, ::-1]
    kept = spread > 1e-10 * spread[0]
    root = np.sqrt(spread[kept])
    operator: ndarray = (vectors[:, kept] * root).T @ K.T @ (vectors[:, kept] / root)
    return operator


def _procrustes(first: ndarray, second: ndarray, starts: int, seed: int) -> float:
    """Angle between A and C B Cᵀ for the best orthogonal C found, `arccos(⟨A, C B Cᵀ⟩ / ‖A‖ ‖B‖)`.

    C is a rotation `exp(S − Sᵀ)` times the start, which may be a reflection; S goes by L-BFGS.
    """
    sizes = np.linalg.norm(first) * np.linalg.norm(second)
    if not sizes:
        raise InputError("An operator that is zero has no angle to another.")
    A, B = torch.from_numpy(first.copy()), torch.from_numpy(second.copy())
    generator = torch.Generator().manual_seed(seed)
    best = -1.0
    for start in _starts(A, B, starts, generator):
        best = max(best, _climbed(A, B, start) / float(sizes))
    return math.acos(min(1.0, best))


def _starts(A: Tensor, B: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """The identity, the rotation between the symmetric parts' eigenvectors, and random orthogonal matrices."""
    eye = torch.eye(len(A), dtype=A.dtype)
    axes = [torch.linalg.eigh(M + M.T)[1] for M in (A, B)]
    drawn = [torch.linalg.qr(torch.randn(len(A), len(A), generator=generator, dtype=A.dtype))[0] for _ in range(count)]
    return [eye, axes[0] @ axes[1].T, *drawn][: max(1, count)]


def _climbed(A: Tensor, B: Tensor, start: Tensor) -> float:
    """Return the largest `⟨A, C B Cᵀ⟩` that is reached from a start."""
    S = torch.zeros_like(A, requires_grad=True)
    optimizer = torch.optim.LBFGS([S], max_iter=_STEPS, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def overlap() -> Tensor:
        C = torch.linalg.matrix_exp(S - S.T) @ start
        return (A * (C @ B @ C.T)).sum()

    def loss() -> Tensor:
        optimizer.zero_grad()
        lost = -overlap()
        lost.backward()
        return lost

    with torch.enable_grad():
        optimizer.step(loss)
    return float(overlap().detach())
