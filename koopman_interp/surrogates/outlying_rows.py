"""Rows that outlie: so far from all others that a mean square would be of them alone.

Attention sinks are such, and states that overflowed. One pass over the states, after medians of some rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MOST_OUTLYING = 0.05
"""Share of the rows that may outlie; where more lie far out, they are a part of what is to be fitted."""
LEAST_SHARE = 0.1
"""Share of all squared distances that the far rows of a depth hold at least, to matter."""

_MEDIAN_ROWS = 2048


def outlying_rows(
    states: Sequence[Float[Tensor, "sample _"]], factor: float | None, held_out: Bool[Tensor, " sample"]
) -> Bool[Tensor, " sample"]:
    """Mark the rows that lie, at any depth, more than so many times as far out as the median row.

    Medians are of the rows that are fitted on, so that what is held out has no say in what these are.

    Args:
        states: one tensor of rows a depth.
        factor: how many times; None marks none.
        held_out: which rows are.

    Returns:
        The mask. Of the rows fitted on, and likewise of those held out, none is marked at a depth where the far ones
        hold less than a tenth of all squares, and none at all where more than a twentieth would be. Where most rows
        are one and the same, none is.
    """
    marked = torch.zeros(len(states[0]), dtype=torch.bool)
    if factor is None:
        return marked
    sides = (~held_out, held_out)
    for state in states:
        fitted = sides[0].to(state.device)
        some = state[fitted][:: max(1, int(fitted.sum()) // _MEDIAN_ROWS)]
        centre = some.median(0).values
        # In the states' own precision, whose range a square could leave.
        distances = torch.linalg.vector_norm(state - centre, dim=1, dtype=torch.float64).cpu()
        middle = distances[sides[0]].median()
        if middle == 0:
            continue
        for side in sides:
            far = side & (distances > factor * middle)
            if distances[far].square().sum() > LEAST_SHARE * distances[side].square().sum():
                marked |= far
    for side in sides:
        if int(marked[side].sum()) > MOST_OUTLYING * int(side.sum()):
            marked &= ~side
    return marked
