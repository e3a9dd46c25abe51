"""One word on each mode, by what the data say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from koopman_interp.analysis.spectra.eigen import DEFECTIVE
from koopman_interp.analysis.spectra.intervals import ROWS_PER_MODE
from koopman_interp.analysis.spectra.residuals import CONSTANT
from koopman_interp.tables import in_percent

DRIFT = 0.05
"""Distance of λ from what the data give for it, relative to its size, up to which the data never contradict it."""

Verdict = Literal["trusted", "spurious", "contradicted", "unknown", "constant", "unreached", "defective"]

_SENTENCES: dict[Verdict, str] = {
    "unknown": f"not judged, on fewer than {ROWS_PER_MODE} samples a mode; give more rows",
    "contradicted": f"small in residual, but solved anew on these rows no λ is within that, or {in_percent(DRIFT, 0)}",
    "constant": "the same for all samples, so without a residual to speak of",
    "unreached": "zero on all samples, so not judged",
    "defective": "without an eigenvector of their own to working precision; read the Schur form instead",
}


def verdicts(
    residuals: Float[ndarray, " mode"],
    varying: Float[ndarray, " mode"] | None,
    sensitivity: Float[ndarray, " mode"] | None,
    drift: Float[ndarray, " mode"] | None,
    samples: int,
    tolerance: float,
) -> tuple[Verdict, ...]:
    """Return one word on each mode; see `Spectrum.verdicts`.

    Args:
        residuals: of the modes.
        varying: share of |φ|² that differs between samples; NaN where φ is zero. None takes all to differ.
        sensitivity: of the eigenvalues; None takes all to have eigenvectors of their own.
        drift: distance of λ from the nearest that the data give, as a share of what is allowed; NaN or None where they
            do not say.
        samples: that the residuals were measured on.
        tolerance: largest residual of a trusted mode.
    """
    ones = np.ones(len(residuals))
    enough = samples >= ROWS_PER_MODE * len(residuals)

    def word(residual: float, varies: float, sensitive: float, moved: float) -> Verdict:
        if not enough:
            return "unknown"
        if np.isnan(varies):
            return "unreached"
        if varies < CONSTANT:
            return "constant"
        if sensitive > DEFECTIVE:
            return "defective"
        if residual > tolerance:
            return "spurious"
        return "contradicted" if moved > 1 else "trusted"

    known = (ones if part is None else part for part in (varying, sensitivity))
    moved = 0 * ones if drift is None else drift
    return tuple(word(*each) for each in zip(residuals, *known, moved, strict=True))


def sentences(words: Sequence[Verdict]) -> list[str]:
    """Say what the verdicts mean that leave a mode without a residual."""
    counts = {verdict: words.count(verdict) for verdict in _SENTENCES}
    return [
        f"{count} {'mode is' if count == 1 else 'modes are'} {verdict}: {_SENTENCES[verdict]}."
        for verdict, count in counts.items()
        if count
    ]
