"""How the rows of a fit follow each other, and the parts of them that a step or a solve takes: whole sequences.

For surrogates whose encoder looks back; others take rows as they come. Holds two whole numbers a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.sequences import Sequences
from koopman_interp.trajectories import Trajectories

Part = tuple[Int[Tensor, " row"], Sequences]
"""Numbers of rows, and how these follow each other."""


class RowOrder:
    """The sequences of a fit's rows.

    Args:
        laid: how the rows follow each other.
    """

    def __init__(self, laid: Sequences) -> None:
        self._laid = laid
        self._lengths = laid.real.sum(1)

    @classmethod
    def of(cls, trajectories: Trajectories, device: torch.device) -> RowOrder:
        """Read the order off trajectories.

        Raises:
            InputError: rows of a sequence are missing, or no sequence has more than one.
        """
        laid = trajectories.in_sequence()
        if laid.rows.shape[1] < 2:
            raise InputError(
                "context='causal' looks back on the earlier rows of a sequence, and each input here has one row alone. "
                "Fit with context=None."
            )
        return cls(laid.to(device))

    def __len__(self) -> int:
        return len(self._lengths)

    def sequences_for(self, rows: int) -> int:
        """How many sequences have about as many rows."""
        return max(1, round(rows / float(self._lengths.double().mean())))

    def take(self, numbers: Int[Tensor, " sequence"]) -> Part:
        """Take some of the sequences."""
        numbers = numbers.to(self._lengths.device)
        columns = int(self._lengths[numbers].max())
        rows, place = self._laid.rows[numbers, :columns], self._laid.place[numbers, :columns]
        real = rows >= 0
        renumbered = torch.full_like(rows, -1)
        renumbered[real] = torch.arange(int(real.sum()), device=rows.device)
        return rows[real], Sequences(renumbered, place)

    def pieces(self, rows: int, among: Bool[Tensor, " row"] | None = None) -> Iterator[Part]:
        """Go through sequences, so many at a time that they have about as many rows.

        Args:
            rows: of a piece.
            among: which rows are wanted, sequences with all of theirs; None is all.
        """
        chosen = torch.arange(len(self)) if among is None else among[self._laid.rows[:, 0]].nonzero()[:, 0]
        for numbers in chosen.split(self.sequences_for(rows)):
            yield self.take(numbers)

    def first(self, rows: int) -> Part:
        """Take the first sequences: those that have no more rows together, or one."""
        fitting = int((self._lengths.cumsum(0) <= rows).sum())
        return self.take(torch.arange(max(1, fitting)))

    def spaced(self, rows: int) -> Part:
        """Take evenly spaced sequences that have about as many rows, or more."""
        stride = max(1, len(self) // self.sequences_for(rows))
        return self.take(torch.arange(0, len(self), stride))
