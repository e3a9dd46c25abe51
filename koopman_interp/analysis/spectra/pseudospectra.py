"""Pseudospectra on a grid: where an approximate eigenfunction exists on the data, and how good it is.

At each point z of the complex plane, `τ(z) = min_φ ‖φ(x⁺) − z φ(x)‖ / ‖φ(x)‖` over all functions φ in the span of the
observables, from the Gram matrices alone (residual dynamic mode decomposition, Colbrook & Townsend, arXiv 2111.14889,
section 4). Each depth's mean of φ is taken off, as for residuals: an offset that all samples share is no slow function.
An eigenvalue of K far outside of the valleys of τ is false; a valley wider than the spacing of the eigenvalues means
that they cannot be told apart. Costs one eigenvalue of a matrix of at most 512 rows a point.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Complex, Float
from numpy import ndarray

from koopman_interp.analysis.spectra.eigen import PRINTED, real_basis
from koopman_interp.analysis.spectra.grams import Grams
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError
from koopman_interp.files import Json, read_tensors, rebuilding, write_tensors
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import Result
from koopman_interp.tables import Column, Table, digits

MOST_DIRECTIONS = 512
"""Dimension of the space that is searched for eigenfunctions: that of the slowest modes."""

ROWS_PER_DIRECTION = 10
"""Samples for each direction; with fewer, functions that fit the samples by chance are everywhere."""

_RANK = 1e-10
"""Variance of a function, relative to the largest, below which it counts as zero."""
_ROUNDING = 1e-12
"""Variance of a function, relative to its mean square, below which it is rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class Pseudospectra(Result):
    """The smallest residual that a function can have, over a grid.

    Attributes:
        real: real parts of the grid, ascending, `[column]`.
        imag: imaginary parts, ascending, `[row]`.
        residual: τ at each point, about each depth's mean, `[row, column]`.
        eigenvalues: those of K itself, `[mode]`.
        directions: dimension of the space of functions that was searched.
        samples: rows.
        gap: operator steps between the depths of each pair; τ is that of K^gap.
    """

    real: Float[ndarray, " column"]
    imag: Float[ndarray, " row"]
    residual: Float[ndarray, "row column"]
    eigenvalues: Complex[ndarray, " mode"]
    directions: int
    samples: int
    gap: float = 1.0

    def __repr__(self) -> str:
        return (
            f"Pseudospectra({len(self.imag)}×{len(self.real)} points, {self.directions} directions, "
            f"{self.samples:,} samples, residuals {self.residual.min():.3f} to {self.residual.max():.3f})"
        )

    def tables(self) -> tuple[Table]:
        """Return, for each eigenvalue, the smallest residual at the nearest point of the grid; one line a pair."""
        upper = [index for index, value in enumerate(self.eigenvalues) if value.imag >= 0]
        values = self.eigenvalues[upper] ** self.gap
        columns = (
            Column("mode", tuple(upper)),
            Column("Re", tuple(values.real.tolist()), digits(3)),
            Column("Im", tuple(np.abs(values.imag).tolist()), digits(3)),
            Column("smallest residual near", tuple(self.near(value) for value in values.tolist()), digits(3)),
        )
        of = "K" if self.gap == 1 else f"K^{self.gap:g}"
        return (Table(columns, f"Eigenvalues of {of}, and the smallest residual of any function there.", most=PRINTED),)

    def near(self, z: complex) -> float | None:
        """Return τ at the point of the grid that is nearest to z; None where z lies outside of the grid."""
        if not (self.real[0] <= z.real <= self.real[-1] and self.imag[0] <= z.imag <= self.imag[-1]):
            return None
        return float(self.residual[np.abs(self.imag - z.imag).argmin(), np.abs(self.real - z.real).argmin()])

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON."""
        return {
            "real": self.real.tolist(),
            "imag": self.imag.tolist(),
            "residual": self.residual.tolist(),
            "directions": self.directions,
            "samples": self.samples,
            "gap": self.gap,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ("real", "imag", "residual")}
        tensors["eigenvalues"] = torch.view_as_real(torch.from_numpy(self.eigenvalues))
        header = {name: getattr(self, name) for name in ("directions", "samples", "gap")}
        write_tensors(path, tensors, kind="pseudospectra", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pseudospectra:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="pseudospectra")
        with rebuilding(path, "pseudospectra"):
            values = torch.view_as_complex(tensors["eigenvalues"]).numpy()
            kept: dict[str, Json] = {name: tensors[name].numpy() for name in ("real", "imag", "residual")}
            kept |= {name: header[name] for name in ("directions", "samples", "gap")}
            return as_annotated(cls(**kept, eigenvalues=values))


@own_kinds
def pseudospectra(
    spectrum: Spectrum,
    *,
    points: int = 60,
    extent: float | None = None,
    directions: int = MOST_DIRECTIONS,
) -> Pseudospectra:
    """Compute pseudospectra over a square around zero, from what the pass of a spectrum gathered.

    In coordinates where `G`, about each depth's mean, is the identity, `τ(z)²` is the smallest eigenvalue of
    `L − z A* − z̄ A + |z|²`. The plane is its own mirror image, so half of it is computed. Functions are searched among
    those of the slowest modes, as many as there are directions, and at most a tenth of the samples: over fewer
    functions τ can only be larger.

    Args:
        spectrum: with its Gram matrices.
        points: of a side of the grid.
        extent: half of the side; None takes in all eigenvalues and the unit circle.
        directions: the most dimensions to search.

    Returns:
        The pseudospectra. Of sites with different gaps, those of the pairs with most depths.

    Raises:
        InputError: the spectrum has no Gram matrices, there are too few samples, no observable differs between them, or
            the grid or the directions are none.
    """
    if spectrum.grams is None:
        raise InputError("This spectrum was made without Gram matrices. Take one from spectrum(koopman, trajectories).")
    if extent is not None and not 0 < extent < np.inf:
        raise InputError(f"The extent is half of the grid's side, a length past 0; got {extent}.")
    if directions < 1:
        raise InputError(f"Functions are searched in 1 or more directions; got {directions}.")
    if points < 2:
        raise InputError(f"A grid has 2 or more points a side; got {points}.")
    values = spectrum.operator_eigenvalues
    searched = min(directions, MOST_DIRECTIONS, len(values), spectrum.samples // ROWS_PER_DIRECTION)
    if searched < 1:
        raise InputError(
            f"Pseudospectra need {ROWS_PER_DIRECTION} samples or more for each direction; got {spectrum.samples}."
        )
    grams = spectrum.grams.pooled()
    index = max(range(len(grams.spans)), key=lambda place: len(grams.spans[place].starts))
    A, L = _whitened(grams, index, real_basis(grams.coordinates(spectrum.readers[:, :searched])))
    reach = extent or 1.1 * max(1.0, float(np.abs(values).max()))
    real = np.linspace(-reach, reach, points)
    upper = np.linspace(0, reach, (points + 1) // 2) if points % 2 else (real[points // 2 :])
    half = np.array([[_smallest(A, L, complex(x, y)) for x in real] for y in upper])
    mirrored = half[:0:-1] if points % 2 else half[::-1]
    imag = np.concatenate([-upper[:0:-1] if points % 2 else -upper[::-1], upper])
    return Pseudospectra(
        real=real,
        imag=imag,
        residual=np.concatenate([mirrored, half]),
        eigenvalues=values,
        directions=len(A),
        samples=spectrum.samples,
        gap=grams.spans[index].gap,
    )


def _whitened(grams: Grams, index: int, basis: ndarray) -> tuple[ndarray, ndarray]:
    """Return A and L about the mean, of functions in a basis, in coordinates where G is the identity."""
    centred = grams.centred()
    whole, G, A, L = (
        basis.T @ gram[index, 0, 0].numpy() @ basis for gram in (grams.G, centred.G, centred.A, centred.L)
    )
    # Observables of different sizes are brought to one, so that small ones are not taken for no data; but what is left
    # of a constant is rounding, and is not blown up.
    size = np.sqrt(np.where(np.diag(G) > _ROUNDING * np.diag(whole), np.diag(G), 0))
    scale = np.where(size > 0, 1 / np.where(size > 0, size, 1), 0)
    whole, G, A, L = (gram * scale[:, None] * scale for gram in (whole, G, A, L))
    spread, vectors = np.linalg.eigh(G)
    kept = spread > np.maximum(_RANK * spread[-1], _ROUNDING * np.einsum("ik,ik->k", vectors, whole @ vectors))
    if not kept.any():
        raise InputError("All observables are the same for all samples, so there are no functions to search.")
    T = vectors[:, kept] / np.sqrt(spread[kept])
    return T.T @ A @ T, T.T @ L @ T


def _smallest(A: ndarray, L: ndarray, z: complex) -> float:
    H = L - z * A.T - np.conj(z) * A + abs(z) ** 2 * np.eye(len(A))
    return float(np.sqrt(max(scipy.linalg.eigh(H, eigvals_only=True, subset_by_index=[0, 0])[0], 0.0)))
