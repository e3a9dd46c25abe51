"""Trajectories in memory as a source of rows."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from koopman_interp.sequences import whole_pieces
from koopman_interp.sources.protocol import Blocks, at_depths
from koopman_interp.trajectories import Trajectories

_ROWS = 8192


class Memory(Blocks):
    """Trajectories, gone through in blocks of whole inputs.

    Args:
        trajectories: the rows.
        rows: of a block, where no single input has more.
    """

    def __init__(self, trajectories: Trajectories, rows: int = _ROWS) -> None:
        self.trajectories = trajectories
        self.empty = trajectories[:0]
        self._pieces = list(whole_pieces(trajectories.sequence, rows))
        self.counts = [len(piece) for piece in self._pieces]

    def digests_of(self, block: int) -> Int[Tensor, " row"]:
        """Take the digests of a block's inputs, one a row."""
        return self.trajectories.digests[self._pieces[block]]

    def read(self, block: int, depths: Sequence[int] | None = None) -> Trajectories:
        """Take a block."""
        return at_depths(self.trajectories, depths)[self._pieces[block]]
