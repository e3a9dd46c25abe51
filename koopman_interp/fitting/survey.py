"""A first look at a source that does not fit into memory: what is held out, which rows outlie, how many there are.

Goes through as many rows as a fit's sums are taken over. Keeps the rows that the fit is judged by, and no others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.rows import judged_rows
from koopman_interp.hashing import Draw
from koopman_interp.processes import Processes
from koopman_interp.sources.opening import shared, some_rows
from koopman_interp.sources.protocol import Source
from koopman_interp.surrogates.outlying_rows import LEAST_SHARE, MOST_OUTLYING, OutlyingRows
from koopman_interp.trajectories import Trajectories

_MEDIAN_ROWS, _LEAST_MEDIAN_ROWS, _MEDIAN_BYTES = 8192, 512, 2**27
"""Rows that medians are of, at most and at least, and bytes of their states."""


@dataclass(frozen=True)
class Survey:
    """What was seen of a source.

    Attributes:
        draw: which inputs are held out.
        inputs: digests of those seen.
        fitted: rows to fit on, as far as was looked.
        held_out: rows held out, as far.
        left_out: rows that outlie, as far.
        classes: labels seen, ascending.
        outlying: which rows outlie; None where none do.
        judged: rows held out, as many as a fit is judged by.
        rows_an_input: in the mean.
    """

    draw: Draw
    inputs: Int[Tensor, " input"]
    fitted: int
    held_out: int
    left_out: int
    classes: tuple[int, ...]
    outlying: OutlyingRows | None
    judged: Trajectories
    rows_an_input: float


def surveyed(source: Source, config: FitConfig, processes: Processes) -> Survey:
    """Look through a source.

    Args:
        source: the source.
        processes: that each look through a share of it.
        config: of the fit: share and seed of what is held out, when rows outlie, over how many rows to look.

    Raises:
        InputError: there are too few inputs to hold any out.
        NonFiniteError: a state is NaN or infinite.
    """
    some = source.thinned(config.statistics)
    draw = _draw(source, config)
    whole = config.context is not None
    bounds = None
    if config.outlying is not None:
        rows = max(_LEAST_MEDIAN_ROWS, min(_MEDIAN_ROWS, _MEDIAN_BYTES // source.row_bytes))
        medians = some_rows(source.thinned(4 * rows), rows, draw.rest)
        bounds = OutlyingRows.of(medians.states, config.outlying)
        del medians
    looked = _Looked(bounds, source.depths)
    for batch in shared(some, processes).batches():
        batch.require_finite()
        looked.add(batch, draw)
    looked.join(processes)
    outlying = looked.outlying()
    if not looked.rows[1]:
        raise InputError(
            f"Holding out {config.validation:.0%} of the inputs left none of {sum(looked.rows):,} rows to judge by. "
            "Observe more, or choose another FitConfig(validation=…)."
        )
    judged = some_rows(some, judged_rows(source.depths), draw, whole=whole)
    return Survey(
        draw,
        looked.held_inputs(),
        looked.rows[0] - looked.marked[0],
        looked.rows[1] - looked.marked[1],
        sum(looked.marked),
        tuple(sorted(looked.classes)),
        outlying,
        judged,
        sum(looked.rows) / looked.count,
    )


def _draw(source: Source, config: FitConfig) -> Draw:
    """Say which inputs are held out; of many each is drawn for itself, and they need not be counted."""
    inputs = source.inputs
    if not 0 < round(config.validation * len(inputs)) < len(inputs):
        raise InputError(
            f"Holding out {config.validation:.0%} of {len(inputs)} distinct inputs leaves one part empty. Observe "
            "more, or choose another fraction."
        )
    return Draw.of(inputs, config.validation, config.seed)


class _Looked:
    """Counts and sums of a look through rows, of those to fit on and of those held out."""

    def __init__(self, bounds: OutlyingRows | None, depths: int) -> None:
        self._bounds = bounds
        self.rows, self.marked = [0, 0], [0, 0]
        self._marks = [torch.zeros(depths, 0, dtype=torch.bool) for _ in range(2)]
        """At which depths rows lie far out, of those that do at any."""
        self.count = 0
        self.classes: set[int] = set()
        self._inputs: list[Tensor] = []
        self._far, self._all = (torch.zeros(2, depths, dtype=torch.float64) for _ in range(2))

    def add(self, batch: Trajectories, draw: Draw) -> None:
        """Add rows."""
        held = draw(batch.digests)
        self.count += len(torch.unique(batch.sequence))
        self.classes.update(batch.classes)
        self._inputs.append(torch.unique(batch.digests[held]))
        distances = None if self._bounds is None else self._bounds.distances(batch.states)
        for number, side in enumerate((~held, held)):
            self.rows[number] += int(side.sum())
            if distances is not None:
                own = distances[:, side]
                far = own > 1
                self._marks[number] = torch.cat([self._marks[number], far[:, far.any(0)]], 1)
                self._far[number] += (own.square() * far).sum(1)
                self._all[number] += own.square().sum(1)

    def join(self, processes: Processes) -> None:
        """Add what other processes have looked at."""
        counts = torch.tensor([*self.rows, self.count], dtype=torch.float64)
        processes.add_up([counts, self._far, self._all])
        whole = [int(count) for count in counts]
        self.rows, self.count = whole[:2], whole[2]
        found = processes.all_of((self.classes, self.held_inputs(), self._marks))
        self.classes = set().union(*(classes for classes, _, _ in found))
        self._inputs = [inputs for _, inputs, _ in found]
        self._marks = [torch.cat(marks, 1) for marks in zip(*(marks for _, _, marks in found), strict=True)]

    def outlying(self) -> OutlyingRows | None:
        """Say which rows outlie: at depths where the far ones hold a tenth of all squares, if they are few."""
        matters = (self._far > LEAST_SHARE * self._all).any(0)
        marked = [int(marks[matters].any(0).sum()) for marks in self._marks]
        few = all(count <= MOST_OUTLYING * rows for count, rows in zip(marked, self.rows, strict=True))
        if self._bounds is None or not few or not any(marked):
            return None
        self.marked = marked
        return self._bounds.within(matters.tolist())

    def held_inputs(self) -> Int[Tensor, " input"]:
        """Digests of the inputs held out, ascending."""
        return torch.unique(torch.cat(self._inputs))
