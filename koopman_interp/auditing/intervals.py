"""How far a figure from a sample can be trusted: an interval for a share, an area under a curve with its error.

Both are closed forms and cost nothing beside the passes that the figures come from. Knows nothing of models.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from koopman_interp.tables import percent

Z95 = 1.959963984540054
"""Quantile of the normal distribution that 95 % intervals reach to."""


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score (J. Am. Stat. Assoc. 22, 1927).

    `(p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)`: unlike `p ± z √(p(1−p)/n)` it says something at 0 and at 1.

    >>> [round(end, 4) for end in wilson(0.0, 50)]
    [0.0, 0.0713]

    Args:
        share: the share, between 0 and 1.
        rows: how many rows it is a share of.

    Returns:
        Its lower and upper end.
    """
    square = Z95**2
    middle = share + square / (2 * rows)
    reach = Z95 * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    scale = 1 + square / rows
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


def between(ends: tuple[float, float], digits: int = 1) -> str:
    """Show the ends of an interval of a share, in per cent.

    >>> between((0.0, 0.0713))
    '0.0 … 7.1'
    """
    return f"{percent(ends[0], digits)} … {percent(ends[1], digits)}"


def area_under_curve(
    positives: Float[Tensor, " positive"], negatives: Float[Tensor, " negative"]
) -> tuple[float, float]:
    """Return how often a score puts a positive above a negative, ties counted half, and its standard error.

    The area is `P(s₊ > s₋) + P(s₊ = s₋)/2`; its variance that of DeLong et al. (Biometrics 44, 1988),
    `var(V₊)/n₊ + var(V₋)/n₋`, where V₊ is the share of negatives below each positive and V₋ that of positives above
    each negative. Both come from ranks, in O(n log n). Scores may be infinite.

    Args:
        positives: scores of the rows that should score high.
        negatives: scores of the others.

    Returns:
        Area and standard error; the error is NaN for fewer than two rows of either kind.
    """
    high, low = positives.double().numpy(), negatives.double().numpy()
    ranks = rankdata(np.concatenate([high, low]))
    above = (ranks[: len(high)] - rankdata(high)) / len(low)
    below = 1 - (ranks[len(high) :] - rankdata(low)) / len(high)
    if min(len(high), len(low)) < 2:
        return float(above.mean()), math.nan
    variance = above.var(ddof=1) / len(high) + below.var(ddof=1) / len(low)
    return float(above.mean()), math.sqrt(variance)
