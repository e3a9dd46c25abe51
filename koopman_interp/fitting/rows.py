"""Normalised rows that a fit descends on, and solves on: all in memory, or window by window from a source.

A step takes a batch of them, a solve goes through them in chunks. Knows nothing of what is done with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from koopman_interp.fitting.descent import Epochs
from koopman_interp.fitting.row_order import RowOrder
from koopman_interp.sequences import Sequences

States = Float[Tensor, "depth sample width"]
Ordered = tuple[States, Sequences | None]
"""Rows, and how they follow each other where the encoder looks back."""

CHUNK_NUMBERS = 2**24
"""Numbers of a chunk in float64, over all depths: 128 MiB."""
_CHUNK_ROWS = 8192
_HELD_OUT_ROWS, _LEAST_HELD_OUT_ROWS, _HELD_OUT_PAIRS = 2048, 256, 2**18
"""Rows that a look judges by, at most and at least, and pairs of their depths: those of 13 depths are 78."""


@runtime_checkable
class Batches(Protocol):
    """The rows that each step takes: all of them once, in an order of the epoch's own, before any again."""

    def depths(self, step: int) -> Sequence[int]:
        """Say which depths of a step's rows are at hand, both ends among them."""
        ...

    def __call__(self, step: int, depths: Sequence[int] | None = None) -> Ordered:
        """Return the rows of a step, of some depths or of all that are at hand."""
        ...

    def halve(self) -> int | None:
        """Take half as many a step from now on, and return how many; None where it is one, which stays."""
        ...


@runtime_checkable
class Rows(Protocol):
    """Normalised rows of all depths, or of the ends alone."""

    @property
    def depths(self) -> int:
        """How many depths there are."""
        ...

    def batches(self, size: int, seed: int, *, every_depth: bool = False) -> Batches:
        """Return what gives each step its rows: `size` of them, or whole sequences that have about as many."""
        ...

    def chunks(self, width: int) -> Iterator[Ordered]:
        """Go through the rows in chunks, so long that as many numbers of a width a row stay within memory."""
        ...

    def spaced(self, rows: int) -> HeldRows:
        """Take evenly spaced rows, as many or some more; whole sequences where the encoder looks back."""
        ...

    def ends(self) -> Rows:
        """Keep the first depth and the last."""
        ...

    def add_up(self, sums: Iterable[Tensor]) -> None:
        """Add to sums over these rows those of the processes that have the others."""
        ...


class HeldRows:
    """Rows in memory.

    Args:
        states: normalised.
        order: how they follow each other, for an encoder that looks back.
        summed: which rows a solve goes through, inputs with all of theirs; None is all.
    """

    def __init__(
        self, states: States, order: RowOrder | None = None, summed: Bool[Tensor, " row"] | None = None
    ) -> None:
        self.states, self.order, self.summed = states, order, summed

    @property
    def depths(self) -> int:
        """How many depths there are."""
        return len(self.states)

    def __len__(self) -> int:
        return self.states.shape[1]

    def batches(self, size: int, seed: int, *, every_depth: bool = False) -> HeldBatches:  # noqa: ARG002 (all are here)
        """Return what gives each step its rows."""
        return HeldBatches(self, size, seed)

    def chunks(self, width: int) -> Iterator[Ordered]:
        """Go through the rows that a solve takes, in chunks."""
        rows = chunk_rows(self.depths, width)
        if self.order is not None:
            for numbers, sequences in self.order.pieces(rows, self.summed):
                yield self.states[:, numbers], sequences
        elif self.summed is not None:
            for numbers in self.summed.nonzero()[:, 0].split(rows):
                yield self.states[:, numbers], None
        else:
            yield from ((chunk, None) for chunk in self.states.split(rows, 1))

    def spaced(self, rows: int) -> HeldRows:
        """Take evenly spaced rows."""
        if self.order is None:
            return HeldRows(self.states[:, :: max(1, len(self) // rows)])
        numbers, sequences = self.order.spaced(rows)
        return HeldRows(self.states[:, numbers], RowOrder(sequences))

    def first(self, rows: int) -> Ordered:
        """Take the first rows, or sequences."""
        if self.order is None:
            return self.states[:, :rows], None
        numbers, sequences = self.order.first(rows)
        return self.states[:, numbers], sequences

    def add_up(self, sums: Iterable[Tensor]) -> None:
        """Leave sums as they are: all rows are here."""

    def ends(self) -> HeldRows:
        """Keep the first depth and the last."""
        return HeldRows(self.states[[0, -1]], self.order, self.summed)


class HeldBatches:
    """Batches of rows in memory.

    Args:
        rows: the rows.
        size: of a batch.
        seed: of the orders.
    """

    def __init__(self, rows: HeldRows, size: int, seed: int) -> None:
        self._rows = rows
        items = len(rows)
        if rows.order is not None:
            items, size = len(rows.order), rows.order.sequences_for(size)
        self._epochs = Epochs(items, size, seed, rows.states.device)

    def depths(self, step: int) -> Sequence[int]:  # noqa: ARG002 (the same for all)
        """Say which depths are at hand: all."""
        return range(self._rows.depths)

    def __call__(self, step: int, depths: Sequence[int] | None = None) -> Ordered:
        """Return the rows of a step."""
        rows, sequences = self._epochs(step), None
        if self._rows.order is not None:
            rows, sequences = self._rows.order.take(rows)
        if depths is None:
            return self._rows.states.index_select(1, rows), sequences
        return torch.stack([self._rows.states[depth].index_select(0, rows) for depth in depths]), sequences

    def halve(self) -> int | None:
        """Take half as many a step from now on."""
        return self._epochs.halve()


def chunk_rows(depths: int, width: int) -> int:
    """Rows of a chunk whose numbers of a width, over all depths, stay within memory."""
    return max(64, min(_CHUNK_ROWS, CHUNK_NUMBERS // (depths * width)))


def judged_rows(depths: int) -> int:
    """Return how many rows a look takes: all pairs of depths are judged, and there are many of these."""
    pairs = depths * (depths - 1) // 2
    return min(_HELD_OUT_ROWS, max(_LEAST_HELD_OUT_ROWS, _HELD_OUT_PAIRS // pairs))
