"""How far the data bear eigenpairs out: residuals of one step, from Gram matrices, and over the whole span.

The residual of a step is that of residual dynamic mode decomposition (Colbrook & Townsend, arXiv 2111.14889). One over
the whole span is the test of Chapman and Kolmogorov for an eigenfunction: n steps at once are to do what `λ^n` says.
Errors that are small at each step and all alike add up there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from numpy import ndarray
from torch import Tensor

from koopman_interp.analysis.encoding import Encoded
from koopman_interp.analysis.spectra.grams import Grams

CONSTANT = 1e-6
"""Share of |φ|² that differs between samples, below which φ counts as the same for all."""
_UNREACHED = 1e-14
ALIVE = 0.1
"""Share of a mode that is left at the end of the span it is judged over, at least."""
_ROUNDING = 1e-12
"""Mean square of φ at the end of its span, relative to that of all observables, below which it counts as nothing."""


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
    """Gathers what residuals over many steps take, chunk by chunk; costs two encoded depths times the readers.

    The span of a mode leads from the first depth to the last at which λ leaves a tenth of it or more: of what has
    decayed beyond, nothing can be said but that it has.

    Args:
        values: λ of K, `[mode]`, the upper member of a conjugate pair before the lower.
        readers: left eigenvectors.
        times: of the depths, in operator steps.
    """

    def __init__(
        self,
        values: Complex[ndarray, " mode"],
        readers: Complex[ndarray, "observable mode"],
        times: Sequence[float],
    ) -> None:
        # The lower member of a pair has the residual of the upper.
        upper = np.flatnonzero(values.imag >= 0)
        self._of_mode = np.cumsum(values.imag >= 0) - 1
        elapsed = np.array(times) - times[0]
        left = np.abs(values[upper, None]) ** elapsed
        self._ends = np.array([np.flatnonzero(each >= ALIVE)[-1] for each in left])
        self._power = values[upper] ** elapsed[self._ends]
        self._readers = readers[:, upper]
        self._sums = np.zeros((2, len(upper)), complex)
        self._squares = np.zeros((2, len(upper)))
        self._across = np.zeros(len(upper), complex)
        self._total, self._rows = np.zeros(len(times)), 0

    def update(self, chunk: Encoded) -> None:
        """Add a chunk of all observables."""
        for depth in np.unique(self._ends[self._ends > 0]).tolist():
            modes = np.flatnonzero(self._ends == depth)
            readers = self._readers[:, modes]
            real, imag = (torch.from_numpy(np.ascontiguousarray(p)).to(chunk.z) for p in (readers.real, readers.imag))
            turning = np.flatnonzero(readers.imag.any(0))
            phi = [_complex(z, real, imag[:, turning], turning) for z in (chunk.z[0], chunk.z[depth])]
            self._total[depth] += float(chunk.z[depth].square().sum())
            for place, end in enumerate(phi):
                self._sums[place, modes] += end.sum(0).cpu().numpy()
                self._squares[place, modes] += end.abs().square().sum(0).cpu().numpy()
            self._across[modes] += (phi[0].conj() * phi[1]).sum(0).cpu().numpy()
        self._rows += chunk.z.shape[1]

    def residuals(self) -> Float[ndarray, " mode"]:
        """Return `‖φ_later − λ^n φ_first‖ / ‖φ_later‖`, the larger of about zero and about each depth's mean.

        Zero where a mode's span has no step. What is nothing at the end of its span is compared with the rounding of
        the observables there.
        """
        rounding = _ROUNDING * self._total[self._ends] * (np.abs(self._readers) ** 2).sum(0)
        mean = self._sums / max(1, self._rows)
        squares = self._squares - self._rows * np.abs(mean) ** 2
        across = self._across - self._rows * mean[0].conj() * mean[1]
        about_zero = self._missed(self._squares, self._across, rounding)
        worst = np.maximum(about_zero, self._missed(squares, across, rounding))
        return np.where(self._ends > 0, worst, 0.0)[self._of_mode]

    def _missed(self, squares: ndarray, across: ndarray, rounding: ndarray) -> Float[ndarray, " mode"]:
        first, last = squares
        missed = last - 2 * (self._power.conj() * across).real + np.abs(self._power) ** 2 * first
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(np.maximum(missed, 0) / np.maximum(last, rounding))


def _complex(z: Tensor, real: Tensor, imag: Tensor, turning: ndarray) -> Tensor:
    """`z (real + i imag)`, where few columns have an imaginary part."""
    of_imag = z.new_zeros(len(z), real.shape[1])
    of_imag[:, turning] = z @ imag
    return torch.complex(z @ real, of_imag)


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
