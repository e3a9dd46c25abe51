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

Verdict = Literal["trusted", "spurious", "unknown", "constant", "unreached", "defective"]

_SENTENCES: dict[Verdict, str] = {
    "unknown": f"not judged, on fewer than {ROWS_PER_MODE} samples a mode; give more rows",
    "constant": "the same for all samples, so without a residual to speak of",
    "unreached": "zero on all samples, so not judged",
    "defective": "without an eigenvector of their own to working precision; read the Schur form instead",
}


def verdicts(
    residuals: Float[ndarray, " mode"],
    varying: Float[ndarray, " mode"] | None,
    sensitivity: Float[ndarray, " mode"] | None,
    samples: int,
    tolerance: float,
) -> tuple[Verdict, ...]:
    """Return one word on each mode; see `Spectrum.verdicts`.

    Args:
        residuals: of the modes.
        varying: share of |φ|² that differs between samples; NaN where φ is zero. None takes all to differ.
        sensitivity: of the eigenvalues; None takes all to have eigenvectors of their own.
        samples: that the residuals were measured on.
        tolerance: largest residual of a trusted mode.
    """
    ones = np.ones(len(residuals))
    enough = samples >= ROWS_PER_MODE * len(residuals)

    def word(residual: float, varies: float, sensitive: float) -> Verdict:
        if not enough:
            return "unknown"
        if np.isnan(varies):
            return "unreached"
        if varies < CONSTANT:
            return "constant"
        if sensitive > DEFECTIVE:
            return "defective"
        return "trusted" if residual <= tolerance else "spurious"

    known = zip(
        residuals, ones if varying is None else varying, ones if sensitivity is None else sensitivity, strict=True
    )
    return tuple(word(*each) for each in known)


def sentences(words: Sequence[Verdict]) -> list[str]:
    """Say what the verdicts mean that leave a mode without a residual."""
    counts = {verdict: words.count(verdict) for verdict in _SENTENCES}
    return [
        f"{count} {'mode is' if count == 1 else 'modes are'} {verdict}: {_SENTENCES[verdict]}."
        for verdict, count in counts.items()
        if count
    ]
