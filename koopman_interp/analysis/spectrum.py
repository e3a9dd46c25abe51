"""The spectrum of K, with a residual beside each eigenvalue.

K is not normal, so eigenvalues alone mislead. For each pair the residual of residual dynamic mode decomposition
(Colbrook & Townsend, arXiv 2111.14889) is computed on the given rows from the Gram matrices `G = Z*Z`,
`A = Z*Z⁺`, `L = Z⁺*Z⁺` that one streamed pass gathers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Complex, Float
from numpy import ndarray
from torch import Tensor

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.errors import InputError
from koopman_interp.tables import table
from koopman_interp.trajectories import Trajectories

TOLERANCE = 0.3
"""Modes whose residual is larger are marked spurious."""

_CHUNK = 8192


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Eigenvalues and eigenvectors of K, slowest decay first.

    Attributes:
        eigenvalues: λ, `[mode]`.
        modes: right eigenvectors, `[observable, mode]`: what each mode looks like in observables.
        readers: left eigenvectors, `[observable, mode]`: the eigenfunction of a mode is `φ(x) = E(x) · reader`.
        residuals: `‖φ(x_next) − λ φ(x)‖ / ‖φ(x)‖` over the rows given, `[mode]`.
        condition: condition number of the eigenvector matrix; large means that eigenvalues move far for small
            changes of K.
        samples: rows that the residuals were measured on.
        tolerance: residual past which a mode is marked spurious.
    """

    eigenvalues: Complex[ndarray, " mode"]
    modes: Complex[ndarray, "observable mode"]
    readers: Complex[ndarray, "observable mode"]
    residuals: Float[ndarray, " mode"]
    condition: float
    samples: int
    tolerance: float = TOLERANCE

    @property
    def decay(self) -> Float[ndarray, " mode"]:
        """|λ|: by what factor a mode's amplitude changes in one step."""
        return np.abs(self.eigenvalues)

    @property
    def rotation(self) -> Float[ndarray, " mode"]:
        """Arg λ: by what angle a mode turns in one step, in radians."""
        return np.angle(self.eigenvalues)

    @property
    def trusted(self) -> ndarray:
        """Which modes keep their residual under the tolerance."""
        return np.asarray(self.residuals <= self.tolerance)

    def __repr__(self) -> str:
        return (
            f"Spectrum({len(self.eigenvalues)} modes, {int(self.trusted.sum())} with residual ≤ {self.tolerance:g} on "
            f"{self.samples:,} samples, largest |λ| {self.decay[0]:.3f}, eigenvector condition {self.condition:.1e})"
        )

    def __str__(self) -> str:
        return self.head(10)

    def head(self, most: int) -> str:
        """Tabulate the slowest modes; a conjugate pair is one line."""
        shown = [index for index, value in enumerate(self.eigenvalues) if value.imag >= 0][:most]
        rows = [
            [
                str(index),
                f"{self.decay[index]:.4f}",
                f"{'±' if self.eigenvalues[index].imag > 0 else ''}{np.degrees(self.rotation[index]):.1f}°",
                f"{self.residuals[index]:.3f}",
                "" if self.trusted[index] else "spurious",
            ]
            for index in shown
        ]
        return f"{self!r}\n" + table(["mode", "|λ|", "turn", "residual", ""], rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "eigenvalues": [[value.real, value.imag] for value in self.eigenvalues.tolist()],
            "residuals": self.residuals.tolist(),
            "condition": self.condition,
            "samples": self.samples,
            "tolerance": self.tolerance,
        }


@torch.no_grad()
def spectrum(koopman: KoopmanAutoencoder, trajectories: Trajectories, *, tolerance: float = TOLERANCE) -> Spectrum:
    """Decompose K and measure each eigenpair's residual.

    Args:
        koopman: the fitted surrogate.
        trajectories: rows to measure residuals on; held-out ones, if the residuals are to mean anything.
        tolerance: residual past which a mode is marked spurious.

    Returns:
        The spectrum, slowest decay first.

    Raises:
        InputError: the trajectories have other sites than the surrogate.
    """
    if trajectories.sites != koopman.sites:
        raise InputError(
            f"The trajectories have the sites {', '.join(trajectories.sites)}; "
            f"the surrogate has {', '.join(koopman.sites)}."
        )
    K = koopman.K.detach().double().cpu().numpy()
    values, left, right = scipy.linalg.eig(K, left=True, right=True)
    # Within a conjugate pair the upper member comes first.
    order = np.lexsort((-values.imag, np.round(-np.abs(values), 12)))
    values, left, right = (
        values[order].astype(complex),
        left[:, order].conj().astype(complex),
        right[:, order].astype(complex),
    )
    norms = np.linalg.norm(right, axis=0)
    return Spectrum(
        eigenvalues=values,
        modes=right / norms,
        readers=left,
        residuals=_residuals(values, left, koopman, trajectories),
        condition=float(np.linalg.cond(right / norms)),
        samples=len(trajectories),
        tolerance=tolerance,
    )


def _residuals(
    values: ndarray, readers: ndarray, koopman: KoopmanAutoencoder, trajectories: Trajectories
) -> Float[ndarray, " mode"]:
    """Sum squared residuals over all pairs of consecutive depths; a gap of several steps takes λ to that power."""
    missed, size = np.zeros(len(values)), np.zeros(len(values))
    for depth, (earlier, later) in enumerate(pairwise(koopman.config.times)):
        G, A, L = (gram.numpy() for gram in _grams(koopman, trajectories, depth))
        power = values ** (later - earlier)
        now = np.einsum("mk,mn,nk->k", readers.conj(), G, readers).real
        across = np.einsum("mk,nm,nk->k", readers.conj(), A, readers)  # φ_next* φ
        after = np.einsum("mk,mn,nk->k", readers.conj(), L, readers).real
        missed += after - 2 * (power * across).real + np.abs(power) ** 2 * now
        size += now
    return np.sqrt(np.maximum(missed, 0) / np.maximum(size, np.finfo(float).tiny))


def _grams(koopman: KoopmanAutoencoder, trajectories: Trajectories, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gather `Z*Z`, `Z*Z⁺` and `Z⁺*Z⁺` between a depth and the next."""
    size = koopman.config.observables
    G, A, L = (torch.zeros(size, size, dtype=torch.float64) for _ in range(3))
    for start in range(0, len(trajectories), _CHUNK):
        rows = slice(start, start + _CHUNK)
        z = koopman.encode(trajectories.states[depth][rows], depth).double()
        z_next = koopman.encode(trajectories.states[depth + 1][rows], depth + 1).double()
        G += z.T @ z
        A += z.T @ z_next
        L += z_next.T @ z_next
    return G, A, L
