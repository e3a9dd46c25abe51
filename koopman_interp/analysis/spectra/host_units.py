"""Eigenvalues in the host's own units, where depths were scaled by sizes that grow by g a step.

Of an eigenfunction that is linear in the state, the host's eigenvalue is g times that of K; of one that is quadratic,
g² times: `φ(s x) = s^d φ(x)` makes it `g^d`. The degree d is what the data say of how φ grows with the state, from
Euler's relation `d φ = Dφ(y) y` by least squares about each depth's mean. Where the relation does not hold, no power of
g is right, and how far it misses bounds what is known of λ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray

from koopman_interp.analysis.encoding import Encoded
from koopman_interp.analysis.spectra.residuals import CONSTANT


@dataclass(frozen=True, eq=False)
class HostUnits:
    """What brings eigenvalues of K to the host's units.

    Attributes:
        factor: `g^d`, `[mode]`.
        error: `|ln g| ‖Dφ(y) y − d φ‖ / ‖φ‖`, `[mode]`: how far, relative to λ, the factor may be off.
    """

    factor: Float[ndarray, " mode"]
    error: Float[ndarray, " mode"]


class DegreePass:
    """Gathers the degrees of eigenfunctions, from the rows of chunks that come with their growth.

    Args:
        readers: left eigenvectors.
        growth: g.
    """

    def __init__(self, readers: Complex[ndarray, "observable mode"], growth: float) -> None:
        self._readers = torch.from_numpy(readers)
        self._growth = growth
        self._sums: ndarray | None = None
        self._squares = np.zeros((3, readers.shape[1]))
        self._rows = 0

    def update(self, chunk: Encoded) -> None:
        """Add what a chunk holds of growth."""
        if chunk.growing is None:
            return
        W = self._readers.to(chunk.z.device)
        rows = chunk.growing.shape[1]
        sums = []
        for z, growing in zip(chunk.z[:, :rows], chunk.growing, strict=True):
            phi, grows = (torch.complex(part @ W.real, part @ W.imag) for part in (z, growing))
            sums.append(torch.stack([phi.sum(0), grows.sum(0)]))
            products = (phi.abs().square(), (phi.conj() * grows).real, grows.abs().square())
            self._squares += torch.stack([product.sum(0) for product in products]).cpu().numpy()
        together = torch.stack(sums, 1).cpu().numpy()
        self._sums = together if self._sums is None else self._sums + together
        self._rows += rows

    def units(self) -> HostUnits:
        """Return factors and errors; where φ does not differ between samples, those of a constant."""
        if self._sums is None:
            ones = np.ones(self._squares.shape[1])
            return HostUnits(ones, np.zeros_like(ones))
        phi, grows = self._sums
        means = np.stack([np.abs(phi) ** 2, (phi.conj() * grows).real, np.abs(grows) ** 2]).sum(1) / self._rows
        size, across, growing = self._squares - means
        differs = size > CONSTANT * self._squares[0]
        size = np.where(differs, size, 1.0)
        degree = np.where(differs, across / size, 0.0)
        missed = np.where(differs, growing / size - degree**2, 0.0)
        log = math.log(self._growth)
        return HostUnits(np.exp(log * degree), abs(log) * np.sqrt(np.maximum(missed, 0)))
