"""Sequences: which rows of a tensor follow each other, for encoders that look back.

A row's own state says nothing of what came before it. `Sequences` lays rows out as `[sequence, column]`, in the order
of their places, with holes where sequences end early or a column is padding. Knows nothing of models or encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.errors import InputError


@dataclass(frozen=True, eq=False)
class Sequences:
    """How rows lie in sequences; a row stands in one column at most.

    Attributes:
        rows: `[sequence, column]`, number of the row that stands there; -1 where none does.
        place: `[sequence, column]`, its place, ascending along the columns; meaningless where there is no row.
    """

    rows: Int[Tensor, "sequence column"]
    place: Int[Tensor, "sequence column"]

    @property
    def real(self) -> Bool[Tensor, "sequence column"]:
        """Where there is a row."""
        return self.rows >= 0

    @classmethod
    def of(cls, sequence: Int[Tensor, " row"], place: Int[Tensor, " row"]) -> Sequences:
        """Lay out rows by the sequence that each belongs to and its place there, in whatever order they come."""
        numbers, index, counts = torch.unique(sequence, return_inverse=True, return_counts=True)
        by_place = place.argsort(stable=True)
        order = by_place[index[by_place].argsort(stable=True)]
        starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        column = torch.arange(len(sequence), device=sequence.device) - starts
        rows = torch.full((len(numbers), int(counts.max()) if len(counts) else 0), -1, device=sequence.device)
        at = rows.clone().zero_()
        rows[index[order], column] = order
        at[index[order], column] = place[order].to(at.dtype)
        return cls(rows, at)

    @classmethod
    def whole(cls, sequence: Int[Tensor, " row"], place: Int[Tensor, " row"], skip: int) -> Sequences:
        """Lay out rows of which none may be missing: places run from `skip` on without a gap.

        Args:
            sequence: the sequence that each row belongs to.
            place: its place there.
            skip: leading places that are no rows.

        Raises:
            InputError: a sequence begins later, has a gap, or has a place twice.
        """
        laid = cls.of(sequence, place)
        expected = skip + torch.arange(laid.rows.shape[1], device=place.device).expand(laid.rows.shape)
        wrong = (laid.real & (laid.place != expected)).nonzero()
        if len(wrong):
            one, column = wrong[0].tolist()
            raise InputError(
                "A surrogate with context='causal' looks back on all earlier rows of a sequence, and some are not "
                f"here: where place {skip + column} was expected there is place {int(laid.place[one, column])}. Give "
                "whole sequences (rows as they were observed, without a cache, not cut, and none labelled -100), or "
                "fit with context=None."
            )
        return laid

    def to(self, device: Any) -> Sequences:
        """Move to a device."""
        return Sequences(self.rows.to(device), self.place.to(device))

    def take(self, rows: Float[Tensor, "*batch row width"]) -> Float[Tensor, "*batch sequence column width"]:
        """Lay out rows in their columns; a column without a row is zero, whatever there is in padding."""
        return torch.where(self.real[..., None], rows[..., self.rows.clamp_min(0), :], 0)

    def give(
        self, laid: Float[Tensor, "*batch sequence column width"], count: int
    ) -> Float[Tensor, "*batch row width"]:
        """Bring what stands in the columns back to rows.

        Args:
            laid: by column.
            count: how many rows there are; those that stand in no column are zero.
        """
        real = self.real
        rows = laid.new_zeros(*laid.shape[:-3], count, laid.shape[-1])
        return rows.index_copy(rows.ndim - 2, self.rows[real], laid[..., real, :])


def whole_pieces(sequence: Int[Tensor, " row"], rows: int) -> Iterator[Int[Tensor, " _"]]:
    """Cut rows into pieces of whole sequences, in the order of their numbers: of `rows` rows, or of one sequence.

    Args:
        sequence: the sequence that each row belongs to.
        rows: of a piece, at most, but where a single sequence has more.

    Yields:
        Numbers of the rows of a piece.
    """
    order = sequence.argsort(stable=True)
    counts = torch.unique(sequence, return_counts=True)[1].tolist()
    start = stop = 0
    for count_ in counts:
        if stop > start and stop + count_ - start > rows:
            yield order[start:stop]
            start = stop
        stop += count_
    if stop > start:
        yield order[start:stop]
