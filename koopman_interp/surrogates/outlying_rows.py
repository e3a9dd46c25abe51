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


def outlying_rows(states: Sequence[Float[Tensor, "sample _"]], factor: float | None) -> Bool[Tensor, " sample"]:
    """Mark the rows that lie, at any depth, more than so many times as far out as the median row.

    Args:
        states: one tensor of rows a depth.
        factor: how many times; None marks none.

    Returns:
        The mask; of none where the far rows hold less than a tenth of all squares, more than a twentieth would be
        marked, or most rows are one and the same.
    """
    marked = torch.zeros(len(states[0]), dtype=torch.bool)
    if factor is None:
        return marked
    for state in states:
        some = state[:: max(1, len(state) // _MEDIAN_ROWS)]
        centre = some.median(0).values
        # In the states' own precision, whose range a square could leave.
        distances = torch.linalg.vector_norm(state - centre, dim=1, dtype=torch.float64)
        middle = distances.median()
        far = distances > factor * middle
        if middle > 0 and distances[far].square().sum() > LEAST_SHARE * distances.square().sum():
            marked |= far.cpu()
    return marked if int(marked.sum()) <= MOST_OUTLYING * len(marked) else torch.zeros_like(marked)
