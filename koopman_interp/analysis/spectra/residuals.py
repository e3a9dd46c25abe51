"""How far the data bear eigenpairs out: residuals of one step, from Gram matrices, and over the whole span.

The residual of a step is that of residual dynamic mode decomposition (Colbrook & Townsend, arXiv 2111.14889). One over
the whole span is the test of Chapman and Kolmogorov for an eigenfunction: n steps at once are to do what `λ^n` says.
Errors that are small at each step and all alike add up there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray

from koopman_interp.analysis.encoding import Encoded
from koopman_interp.analysis.spectra.grams import Grams

CONSTANT = 1e-6
"""Share of |φ|² that differs between samples, below which φ counts as the same for all."""
_UNREACHED = 1e-14
_ROUNDING = 1e-12
"""Mean square of φ at the last depth, relative to that of all observables, below which it counts as decayed."""


@dataclass(frozen=True, eq=False)
class StepResiduals:
    """Residuals of eigenpairs over one step.

    Attributes:
        about_zero: `‖φ⁺ − λ^g φ‖ / ‖φ‖`, `[mode]`; NaN where φ is zero on the rows to working precision.
        about_mean: the same with each depth's mean of φ taken off; NaN too where φ does not differ between samples.
        varying: share of |φ|² that differs between samples.
        variance: mean square of φ about each depth's mean.
    """

    about_zero: Float[ndarray, " mode"]
    about_mean: Float[ndarray, " mode"]
    varying: Float[ndarray, " mode"]
    variance: Float[ndarray, " mode"]


def step_residuals(
    grams: Grams, values: Complex[ndarray, " mode"], readers: Complex[ndarray, "observable mode"]
) -> StepResiduals:
    """Compute the residuals of eigenpairs from Gram matrices.

    `‖φ⁺ − λ^g φ‖² = w*Lw − 2 Re(λ̄^g w*Aw) + |λ|^2g w*Gw`, added up over spans and divided by the sum of `w*Gw`. In
    float64 the difference leaves nothing below about 1e-8.

    Args:
        grams: of any rows.
        values: λ of K, `[mode]`.
        readers: left eigenvectors.
    """
    W = grams.coordinates(readers)
    pooled = grams.pooled()
    missed, size = _missed(pooled, values, W)
    missed_c, size_c = _missed(pooled.centred(), values, W)
    total = float(torch.einsum("sabii->", pooled.G))
    reached = size > _UNREACHED * total * (np.abs(W) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        varying = np.where(reached, np.maximum(size_c, 0) / size, np.nan)
        about_zero = np.where(reached, np.sqrt(np.maximum(missed, 0) / size), np.nan)
        about_mean = np.sqrt(np.maximum(missed_c, 0) / size_c)
    pairs = sum(len(span.starts) for span in grams.spans) * grams.samples
    variance = np.where(varying > CONSTANT, size_c / pairs, 0.0)
    return StepResiduals(about_zero, np.where(varying > CONSTANT, about_mean, np.nan), varying, variance)


class SpanPass:
    """Gathers what residuals over the whole span take, chunk by chunk; costs two encoded depths times the readers.

    Args:
        values: λ of K, `[mode]`, the upper member of a conjugate pair before the lower.
        readers: left eigenvectors.
        steps: operator steps from the first depth to the last.
    """

    def __init__(
        self, values: Complex[ndarray, " mode"], readers: Complex[ndarray, "observable mode"], steps: float
    ) -> None:
        # The lower member of a pair has the residual of the upper.
        self._upper = np.flatnonzero(values.imag >= 0)
        self._of_mode = np.cumsum(values.imag >= 0) - 1
        self._power = values[self._upper] ** steps
        self._readers = readers[:, self._upper]
        self._turning = np.flatnonzero(values[self._upper].imag)
        self._sums = np.zeros((2, len(self._upper)), complex)
        self._squares = np.zeros((2, len(self._upper)))
        self._across = np.zeros(len(self._upper), complex)
        self._total, self._rows = 0.0, 0

    def update(self, chunk: Encoded) -> None:
        """Add a chunk of all observables."""
        real = torch.from_numpy(np.ascontiguousarray(self._readers.real)).to(chunk.z)
        imag = torch.from_numpy(np.ascontiguousarray(self._readers.imag[:, self._turning])).to(chunk.z)
        ends = []
        for place, z in enumerate((chunk.z[0], chunk.z[-1])):
            of_imag = torch.zeros(len(z), len(self._upper), dtype=z.dtype, device=z.device)
            of_imag[:, self._turning] = z @ imag
            phi = torch.complex(z @ real, of_imag)
            ends.append(phi)
            self._sums[place] += phi.sum(0).cpu().numpy()
            self._squares[place] += phi.abs().square().sum(0).cpu().numpy()
        self._across += (ends[0].conj() * ends[1]).sum(0).cpu().numpy()
        self._total += float(chunk.z[-1].square().sum())
        self._rows += chunk.z.shape[1]

    def residuals(self) -> Float[ndarray, " mode"]:
        """Return `‖φ_last − λ^n φ_first‖ / ‖φ_last‖`, the larger of about zero and about each depth's mean.

        What has decayed to nothing at the last depth is compared with the rounding of its observables.
        """
        rounding = _ROUNDING * self._total * (np.abs(self._readers) ** 2).sum(0)
        mean = self._sums / max(1, self._rows)
        squares = self._squares - self._rows * np.abs(mean) ** 2
        across = self._across - self._rows * mean[0].conj() * mean[1]
        about_zero = self._missed(self._squares, self._across, rounding)
        return np.maximum(about_zero, self._missed(squares, across, rounding))[self._of_mode]

    def _missed(self, squares: ndarray, across: ndarray, rounding: ndarray) -> Float[ndarray, " mode"]:
        first, last = squares
        missed = last - 2 * (self._power.conj() * across).real + np.abs(self._power) ** 2 * first
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(np.maximum(missed, 0) / np.maximum(last, rounding))


def _missed(grams: Grams, values: ndarray, W: ndarray) -> tuple[ndarray, ndarray]:
    real, imag = np.ascontiguousarray(W.real), np.ascontiguousarray(W.imag)
    missed, size = np.zeros(len(values)), np.zeros(len(values))
    for span, G, A, L in zip(grams.spans, grams.G, grams.A, grams.L, strict=True):
        power = values**span.gap
        now, across, after = (_quadratic(gram[0, 0].numpy(), real, imag) for gram in (G, A, L))
        missed += after.real - 2 * (power.conj() * across).real + np.abs(power) ** 2 * now.real
        size += now.real
    return missed, size


def _quadratic(gram: ndarray, real: ndarray, imag: ndarray) -> ndarray:
    """`w* gram w` for each column of `real + i imag`, in real products."""
    of_real, of_imag = gram @ real, gram @ imag
    upright = (real * of_real + imag * of_imag).sum(0)
    return upright + 1j * (real * of_imag - imag * of_real).sum(0)
