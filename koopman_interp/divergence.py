"""How far apart two predictive distributions lie, row by row.

Both measures take log-probabilities, in which a class may be impossible (−∞), and let gradients through. Beside their
arguments they hold a few tables of `ENTRIES` entries, however many rows there are. Knows nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

ENTRIES = 2**22
"""Log-probabilities that are compared at once; of more, some rows after the others."""


def kullback_leibler(logp: Float[Tensor, "row class"], logq: Float[Tensor, "row class"]) -> Float[Tensor, " row"]:
    """`KL(p ‖ q) = Σ p log(p/q)` of each row, in nats, with `0 log 0 = 0`; infinite where q rules out what p does not.

    Args:
        logp: log-probabilities.
        logq: those to compare with.

    Returns:
        One figure a row.
    """
    return _by_rows(_kullback_leibler, logp, logq)


def jensen_shannon(logp: Float[Tensor, "row class"], logq: Float[Tensor, "row class"]) -> Float[Tensor, " row"]:
    """`JS(p, q) = (KL(p ‖ m) + KL(q ‖ m))/2` with `m = (p + q)/2`, of each row (Lin, IEEE Trans. Inf. Theory 37, 1991).

    Symmetric, finite, and between 0 and ln 2, which it reaches where p and q share no class.

    Args:
        logp: log-probabilities.
        logq: those to compare with.

    Returns:
        One figure a row, in nats.
    """
    return _by_rows(_jensen_shannon, logp, logq)


def _by_rows(measure: Callable[[Tensor, Tensor], Tensor], logp: Tensor, logq: Tensor) -> Tensor:
    rows = max(1, ENTRIES // max(1, logp.shape[1]))
    return torch.cat([measure(p, q) for p, q in zip(logp.split(rows), logq.split(rows), strict=True)])


def _kullback_leibler(logp: Tensor, logq: Tensor) -> Tensor:
    return torch.where(logp.isneginf(), 0.0, logp.exp() * (logp - logq)).sum(1)


def _jensen_shannon(logp: Tensor, logq: Tensor) -> Tensor:
    middle = torch.logaddexp(logp, logq) - math.log(2)
    return ((_kullback_leibler(logp, middle) + _kullback_leibler(logq, middle)) / 2).clamp(0, math.log(2))
