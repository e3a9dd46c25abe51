"""Can it be told which rows of the classes to forget a model was trained on?

The two simplest attacks: a row that was trained on has a lower loss (Yeom et al., arXiv 1709.01604) or a surer answer
(Salem et al., arXiv 1806.01246). An edit that only turns the answer away can still treat the rows that it was made
from unlike others. Needs no pass beyond those of the audit. A stronger attack may find more: an area of 50 % says that
these two find nothing. A model retrained without the class saw neither set of rows: its areas say how far apart the two
samples lie by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from koopman_interp.auditing.intervals import area_under_curve


@dataclass(frozen=True)
class Membership:
    """Two membership attacks on the classes to forget: training rows against held-out rows.

    Two-sided: an area below 0.5 tells as much as the one mirrored at 0.5, since an attacker turns the score around.

    Attributes:
        loss: area under the curve of the attack by the log-probability of the true class.
        loss_error: its standard error.
        confidence: the same by the log-probability of the answer, whichever it is.
        confidence_error: its standard error.
    """

    loss: float
    loss_error: float
    confidence: float
    confidence_error: float

    @property
    def tells(self) -> bool:
        """Whether either attack is farther than two standard errors from 0.5."""
        return abs(self.loss - 0.5) > 2 * self.loss_error or abs(self.confidence - 0.5) > 2 * self.confidence_error


def membership(
    true: Float[Tensor, " training"],
    top: Float[Tensor, " training"],
    held_out_true: Float[Tensor, " row"],
    held_out_top: Float[Tensor, " row"],
) -> Membership:
    """Attack the membership of the rows of the classes to forget.

    Args:
        true: log-probability of its own class, of each row that the model was trained on.
        top: log-probability of the likeliest class, of each such row.
        held_out_true: as `true`, of rows that the model was not trained on.
        held_out_top: as `top`, of these.

    Returns:
        Both attacks' areas, with their standard errors.
    """
    return Membership(*area_under_curve(true, held_out_true), *area_under_curve(top, held_out_top))
