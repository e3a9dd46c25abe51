"""Rows of a source that does not fit into memory, as a fit descends on them: window by window.

Batches of the source come in an order of the epoch's own, some of them at a time make a window, and steps take the
rows of a window in an order of its own. Holds one window in the host's dtype, of some of the depths where there are
many; a step's rows are normalised when it takes them. Which rows a step takes depends on the seed and its number alone,
so that a fit that goes on takes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.normalizing import Normalizer
from koopman_interp.fitting.row_order import RowOrder
from koopman_interp.fitting.rows import HeldRows, Ordered, chunk_rows
from koopman_interp.hashing import generator_of
from koopman_interp.processes import Processes
from koopman_interp.sources.opening import shared, some_rows
from koopman_interp.sources.protocol import Blocks, Part, Source, at_depths
from koopman_interp.trajectories import Trajectories

WINDOW_BYTES = 2**27
"""States of a window, in the host's dtype: rows that are mixed with one another."""
_LEAST_BATCHES = 8
"""Batches of a window, at least."""
_LEAST_SPACED = 1024
"""Rows that a start is solved on, at least."""
_MOST_DEPTHS = 8
"""Depths of a window beside the ends, where a step takes a pair of them; each window draws its own."""


class Window(NamedTuple):
    """Rows at hand.

    Attributes:
        rows: of the depths that were read.
        depths: their numbers.
        order: how they follow each other, for an encoder that looks back.
        drawn: the order in which steps take rows, or sequences.
        size: how many a step takes.
        first: number of the first step that takes from it.
    """

    rows: Trajectories
    depths: tuple[int, ...]
    order: RowOrder | None
    drawn: Int[Tensor, " item"]
    size: int
    first: int

    @property
    def steps(self) -> int:
        """How many steps take from it."""
        return max(1, len(self.drawn) // self.size)


class StreamedRows:
    """Rows of a part of a source.

    Args:
        source: the source.
        part: which rows, by the digests of their inputs.
        normalizer: brings them to the common space, and leaves out those that outlie.
        statistics: rows that a solve goes through, at most.
        looks_back: whether the encoder does, so that rows are taken in whole sequences.
        ends: whether only the first depth and the last are wanted.
        processes: that each go through a share of the source's blocks.
    """

    def __init__(
        self,
        source: Source,
        part: Part,
        normalizer: Normalizer,
        *,
        statistics: int,
        looks_back: bool = False,
        ends: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.whole, self.part, self.normalizer = source, part, normalizer
        self._processes = processes or Processes()
        self.source = shared(source, self._processes)
        self.looks_back = looks_back
        self._statistics, self._ends = statistics, ends
        self._kept = (0, source.depths - 1) if ends else tuple(range(source.depths))

    @property
    def depths(self) -> int:
        """How many depths there are."""
        return len(self._kept)

    def batches(self, size: int, seed: int, *, every_depth: bool = False) -> WindowBatches:
        """Return what gives each step its rows."""
        return WindowBatches(self, self._kept, size, seed, every_depth=every_depth)

    def chunks(self, width: int) -> Iterator[Ordered]:
        """Go through as many rows as a solve needs, in chunks."""
        rows = chunk_rows(self.depths, width)
        thinned = shared(self.whole.thinned(self._statistics), self._processes)
        for batch in thinned.batches(depths=self._read, part=self.part):
            for piece in batch.pieces(rows, whole=self.looks_back):
                kept = self.normalizer.kept(piece, self._read)
                states = torch.stack(
                    [self.normalizer(state, depth) for state, depth in zip(kept.states, self._kept, strict=True)]
                )
                yield states, kept.in_sequence().to(states.device) if self.looks_back else None

    def spaced(self, rows: int) -> HeldRows:
        """Draw rows from all of the source, as many as a window or two holds; every process draws the same."""
        rows = min(rows, max(_LEAST_SPACED, 2 * WINDOW_BYTES // (4 * self.depths * self.normalizer.dimension)))
        thinned = self.whole.thinned(min(4 * rows, self._statistics))
        drawn = self.normalizer.kept(some_rows(thinned, rows, self.part, whole=self.looks_back))
        return self.normalizer.held(drawn, self._kept)

    def ends(self) -> StreamedRows:
        """Keep the first depth and the last."""
        return StreamedRows(
            self.whole,
            self.part,
            self.normalizer,
            statistics=self._statistics,
            looks_back=self.looks_back,
            ends=True,
            processes=self._processes,
        )

    def add_up(self, sums: Iterable[Tensor]) -> None:
        """Add to sums over this process's rows those of the others."""
        self._processes.add_up(sums)

    @property
    def _read(self) -> Sequence[int] | None:
        return self._kept if self._ends else None


class WindowBatches:
    """Batches of a source's rows, window after window.

    Args:
        rows: the rows.
        kept: numbers of their depths in the source.
        size: of a batch.
        seed: of the orders.
        every_depth: read all depths of each window.
    """

    def __init__(self, rows: StreamedRows, kept: tuple[int, ...], size: int, seed: int, *, every_depth: bool) -> None:
        self._rows, self._kept, self._size, self._seed = rows, kept, size, seed
        self._drawn_depths = None if every_depth or len(kept) <= _MOST_DEPTHS + 2 else _MOST_DEPTHS
        self._windows: Iterator[Window] = iter(())
        self._at: Window | None = None

    def depths(self, step: int) -> Sequence[int]:
        """Say which depths of a step's rows are at hand, by their number among the rows' own."""
        return [self._kept.index(depth) for depth in self._window(step).depths]

    def __call__(self, step: int, depths: Sequence[int] | None = None) -> Ordered:
        """Return the rows of a step."""
        window = self._window(step)
        place = step - window.first
        items, sequences = window.drawn[place * window.size : (place + 1) * window.size], None
        if window.order is not None:
            items, sequences = window.order.take(items)
        chosen = window.depths if depths is None else [self._kept[depth] for depth in depths]
        states = [self._normalized(window, depth, items) for depth in chosen]
        return torch.stack(states), None if sequences is None else sequences.to(states[0].device)

    def halve(self) -> int | None:
        """Take half as many a step from now on, as if it had been so from the first step on."""
        if self._size == 1:
            return None
        self._size, self._at = self._size // 2, None
        return self._size

    def _normalized(self, window: Window, depth: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "row dimension"]:
        return self._rows.normalizer(window.rows.states[window.depths.index(depth)][rows], depth)

    def _window(self, step: int) -> Window:
        """Return the window of a step; steps before the one at hand begin again from the first."""
        if self._at is None or step < self._at.first:
            self._windows, self._at = self._all(), None
        while self._at is None or step >= self._at.first + self._at.steps:
            self._at = None  # let go of before the next is read
            self._at = next(self._windows)
        return self._at

    def _all(self) -> Iterator[Window]:
        """Go through the windows of all epochs."""
        first = epoch = 0
        while True:
            before = first
            for number, (rows, depths) in enumerate(self._of_epoch(epoch)):
                window = self._made(rows, depths, first, f"{self._seed}/{epoch}/{number}")
                first += window.steps
                yield window
            if first == before:
                raise InputError(
                    "A process has no rows to fit on: all inputs of its share are held out, or outlie. Start fewer "
                    "processes, or observe more."
                )
            epoch += 1

    def _of_epoch(self, epoch: int) -> Iterator[tuple[Trajectories, tuple[int, ...]]]:
        """Gather the batches of an epoch to windows."""
        source = self._rows.source
        coming: Iterator[int | Trajectories] = iter(
            source.order(self._seed, epoch)
            if isinstance(source, Blocks)
            else source.batches(shuffle=self._seed, epoch=epoch)
        )
        number, rows = 0, 1
        while rows:
            depths = self._chosen(f"depths {self._seed}/{epoch}/{number}")
            found, rows, most = list[Trajectories](), 0, self._most_rows(depths)
            for batch in coming:
                if not isinstance(batch, Trajectories):
                    assert isinstance(source, Blocks)
                    batch = source.read(batch, depths)
                else:
                    batch = at_depths(batch, depths)
                found.append(self._rows.normalizer.kept(batch[self._rows.part(batch.digests)], depths))
                rows += len(found[-1])
                if rows >= most:
                    break
            if rows:
                yield Trajectories.concatenate(found, same_inputs=True), depths
            number += 1

    def _most_rows(self, depths: Sequence[int]) -> int:
        widths = [self._rows.source.widths[depth] for depth in depths]
        row = sum(widths) * self._rows.source.empty.states[0].element_size()
        return max(_LEAST_BATCHES * self._size, WINDOW_BYTES // row)

    def _chosen(self, key: str) -> tuple[int, ...]:
        """Draw the depths of a window."""
        if self._drawn_depths is None:
            return self._kept
        between = self._kept[1:-1]
        drawn = torch.randperm(len(between), generator=generator_of(key))[: self._drawn_depths]
        return (self._kept[0], *(between[each] for each in sorted(drawn.tolist())), self._kept[-1])

    def _made(self, rows: Trajectories, depths: tuple[int, ...], first: int, key: str) -> Window:
        order = RowOrder.of(rows, torch.device("cpu")) if self._rows.looks_back else None
        items = len(rows) if order is None else len(order)
        size = min(items, self._size if order is None else order.sequences_for(self._size))
        drawn = torch.randperm(items, generator=generator_of(key))
        return Window(rows, depths, order, drawn, size, first)
