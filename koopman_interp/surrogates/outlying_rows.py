"""Rows that outlie: so far from all others that a mean square would be of them alone.

Attention sinks are such, and states that overflowed. One pass over the states, after medians of some rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MOST_OUTLYING = 0.05
"""Share of the rows that may outlie; where more lie far out, they are a part of what is to be fitted."""
LEAST_SHARE = 0.1
"""Share of all squared distances that the far rows of a depth hold at least, to matter."""

_MEDIAN_ROWS = 2048
_CHUNK = 8192


@dataclass(frozen=True)
class OutlyingRows:
    """Which rows outlie, by what some rows show.

    Attributes:
        centres: median of the states at each depth.
        radii: how far from it a row may lie.
    """

    centres: tuple[Float[Tensor, " _"], ...]
    radii: tuple[float, ...]

    @classmethod
    def of(cls, states: Sequence[Float[Tensor, "sample _"]], factor: float) -> OutlyingRows:
        """Take medians of rows that are fitted on.

        Args:
            states: one tensor of rows a depth.
            factor: how many times as far out as the median row a row may lie.

        Returns:
            Bounds that hold all rows at a depth where most rows are one and the same.
        """
        centres, radii = [], []
        for state in states:
            centre = state[:: max(1, len(state) // _MEDIAN_ROWS)].median(0).values
            middle = float(_distances(state, centre).median())
            centres.append(centre)
            radii.append(factor * middle if middle else math.inf)
        return cls(tuple(centres), tuple(radii))

    def distances(
        self, states: Sequence[Float[Tensor, "sample _"]], depths: Sequence[int] | None = None
    ) -> Float[Tensor, "depth sample"]:
        """Return how far out rows lie, in units of what is allowed: past 1 they outlie."""
        chosen = range(len(states)) if depths is None else depths
        return torch.stack(
            [
                _distances(state, self.centres[depth]) / self.radii[depth]
                for state, depth in zip(states, chosen, strict=True)
            ]
        )

    def marked(
        self, states: Sequence[Float[Tensor, "sample _"]], depths: Sequence[int] | None = None
    ) -> Bool[Tensor, " sample"]:
        """Mark the rows that outlie at any of some depths."""
        return (self.distances(states, depths) > 1).any(0)

    def within(self, matters: Sequence[bool]) -> OutlyingRows | None:
        """Keep the bounds of the depths at which far rows matter; None where they do at none."""
        if not any(matters):
            return None
        radii = [radius if own else math.inf for radius, own in zip(self.radii, matters, strict=True)]
        return OutlyingRows(self.centres, tuple(radii))


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
    bounds = OutlyingRows.of([state[sides[0].to(state.device)] for state in states], factor)
    for depth, state in enumerate(states):
        distances = bounds.distances([state], [depth])[0]
        for side in sides:
            far = side & (distances > 1)
            if distances[far].square().sum() > LEAST_SHARE * distances[side].square().sum():
                marked |= far
    for side in sides:
        if int(marked[side].sum()) > MOST_OUTLYING * int(side.sum()):
            marked &= ~side
    return marked


def _distances(states: Float[Tensor, "sample width"], centre: Float[Tensor, " width"]) -> Float[Tensor, " sample"]:
    """In float64, since a square could leave the range of the states' own precision."""
    norms = [
        torch.linalg.vector_norm(part - centre.to(part.device), dim=1, dtype=torch.float64)
        for part in states.split(_CHUNK)
    ]
    return torch.cat(norms).cpu() if norms else torch.empty(0, dtype=torch.float64)
