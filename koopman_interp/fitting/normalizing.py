"""Bringing rows of trajectories to the common space in which a fit descends.

Narrow states go there in float64: where coordinates are of very different sizes, the smallest components are small
differences of large numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.fitting.row_order import RowOrder
from koopman_interp.fitting.rows import HeldRows, States
from koopman_interp.surrogates.normalization import Normalization
from koopman_interp.surrogates.outlying_rows import OutlyingRows
from koopman_interp.surrogates.state_moments import PRECISE_WIDTH
from koopman_interp.trajectories import Trajectories

_CHUNK = 8192


class Normalizer:
    """A normalisation on a device, and which rows are left out.

    Args:
        normalization: the maps.
        device: where rows are wanted.
        outlying: which rows outlie; None leaves none out.
        looks_back: whether rows come in whole sequences.
    """

    def __init__(
        self,
        normalization: Normalization,
        device: torch.device,
        outlying: OutlyingRows | None = None,
        *,
        looks_back: bool = False,
    ) -> None:
        self._precise = max(normalization.widths) <= PRECISE_WIDTH
        self._maps = copy.deepcopy(normalization)
        self._maps = self._maps.cpu().double() if self._precise else self._maps.to(device)
        self._device, self._outlying, self._looks_back = device, outlying, looks_back

    @property
    def dimension(self) -> int:
        """Width of the common space."""
        return self._maps.dimension

    @torch.no_grad()
    def __call__(self, states: Float[Tensor, "row width"], depth: int) -> Float[Tensor, "row dimension"]:
        """Normalise states at a depth."""
        rows = states.to("cpu" if self._precise else self._device)
        return self._maps.normalize(rows, depth).to(self._device, torch.float32)

    def kept(self, rows: Trajectories, depths: Sequence[int] | None = None) -> Trajectories:
        """Leave out the rows that outlie, by the depths that are at hand."""
        if self._outlying is None or not len(rows):
            return rows
        marked = self._outlying.marked(rows.states, depths)
        return rows[~marked] if bool(marked.any()) else rows

    def held(self, rows: Trajectories, depths: Sequence[int] | None = None) -> HeldRows:
        """Normalise all rows of some depths, and hold them."""
        chosen = range(rows.depths) if depths is None else depths
        whole: States = torch.empty(len(chosen), len(rows), self._maps.dimension, device=self._device)
        for place, depth in enumerate(chosen):
            for start in range(0, len(rows), _CHUNK):
                whole[place, start : start + _CHUNK] = self(rows.states[depth][start : start + _CHUNK], depth)
        return HeldRows(whole, RowOrder.of(rows, self._device) if self._looks_back else None)
