"""Whether the depths of a surrogate are one space, so that an eigenmode can be read as one function at all of them.

An eigenfunction has one reader for all depths. Where a later depth varies along directions in which the earlier one
does not, as states after an MLP do, hardly any function is carried to a multiple of itself, however well K predicts.
The question is asked of the covariances that are kept with the fit. Costs an eigendecomposition a depth.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import in_percent

HELD = 0.99
"""Share of the variance at a depth that its space holds."""
APART = 0.5
"""Share of the variance at the next depth in that space, below which the two are different spaces."""
WIDEST = 1024
"""Observables past which the question is not asked, since an eigendecomposition a depth is no longer cheap."""


def shared_spaces(koopman: KoopmanAutoencoder) -> Float[ndarray, " step"] | None:
    """Return, for each step, the share of the variance after it that lies in the space of the depth before.

    The space of a depth is that of its leading principal components which hold 99 % of its variance. Rows fitted; about
    each depth's mean. On linear hosts with known eigenvalues from 0.95 to 0.4 the share is 0.996 or more.

    Args:
        koopman: the surrogate.

    Returns:
        One share a step; None for ticks, which are all of one site, where there are no moments of a fit, and for more
        than `WIDEST` observables.
    """
    if koopman.config.clock is not None or koopman.moments.rows < 2 or koopman.config.observables > WIDEST:
        return None
    return np.array([_share(before, after) for before, after in pairwise(koopman.moments.covariance)])


def _share(before: torch.Tensor, after: torch.Tensor) -> float:
    values, vectors = torch.linalg.eigh(before)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    count = int((values.cumsum(0) < HELD * values.sum()).sum()) + 1
    space, whole = vectors[:, :count], float(after.trace())
    return float((space * (after @ space)).sum()) / whole if whole else 1.0


def apart(shares: Float[ndarray, " step"] | None, trusted: float | None) -> str | None:
    """Say where depths are different spaces, if eigenmodes do not hold all the same.

    Args:
        shares: of each step; None where the question does not arise.
        trusted: share of the variance of the observables that trusted modes explain; None where it was not asked.

    Returns:
        A sentence; None where at each step half of the variance or more stays in the space before, or where trusted
        modes explain half of it or more.
    """
    if shares is None or trusted is None or shares.min() >= APART or trusted >= APART:
        return None
    step = int(shares.argmin())
    return (
        f"Depths {step} and {step + 1} are different spaces: of the variance at the later, "
        f"{in_percent(shares[step], 0)} lies where {in_percent(HELD, 0)} of that at the earlier does, and trusted "
        f"modes explain {in_percent(trusted, 0)}. An eigenmode is one function at both; what K carries from one to the "
        "other are pairs: "
        f"ki.transfer_modes(koopman, held_out, source={step}, target={step + 1})."
    )
