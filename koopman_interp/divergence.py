"""How far two hosts' predictive distributions lie apart, row by row.

Both measures take log-probabilities, in which a class may be impossible (-inf). Knows nothing of hosts.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def kullback_leibler(logp: Float[Tensor, "row class"], logq: Float[Tensor, "row class"]) -> Float[Tensor, " row"]:
    """`KL(p ‖ q) = Σ p log(p/q)` of each row, in nats, with `0 log 0 = 0`; infinite where q rules out what p does not.

    Args:
        logp: log-probabilities.
        logq: those to compare with.

    Returns:
        One figure a row.
    """
    return torch.where(logp.isneginf(), 0.0, logp.exp() * (logp - logq)).sum(1)


def jensen_shannon(logp: Float[Tensor, "row class"], logq: Float[Tensor, "row class"]) -> Float[Tensor, " row"]:
    """`JS(p, q) = (KL(p ‖ m) + KL(q ‖ m))/2` with `m = (p + q)/2`, of each row (Lin, IEEE Trans. Inf. Theory 37, 1991).

    Symmetric, finite, and between 0 and ln 2, which it reaches where p and q share no class.

    Args:
        logp: log-probabilities.
        logq: those to compare with.

    Returns:
        One figure a row, in nats.
    """
    middle = torch.logaddexp(logp, logq) - math.log(2)
    return ((kullback_leibler(logp, middle) + kullback_leibler(logq, middle)) / 2).clamp(0, math.log(2))
