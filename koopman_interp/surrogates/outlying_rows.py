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
_CHUNK = 8192


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
    fitted = sides[0].nonzero().squeeze(1)
    some = fitted[:: max(1, len(fitted) // _MEDIAN_ROWS)]
    for state in states:
        centre = state[some.to(state.device)].median(0).values
        # In float64, since a square could leave the range of the states' own precision.
        norms = [torch.linalg.vector_norm(part - centre, dim=1, dtype=torch.float64) for part in state.split(_CHUNK)]
        distances = torch.cat(norms).cpu()
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
