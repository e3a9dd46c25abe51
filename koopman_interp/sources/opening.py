"""What may stand for a source of rows, and rows of one in memory for what needs them there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hashing import row_hashes
from koopman_interp.processes import Processes
from koopman_interp.sources.memory import Memory
from koopman_interp.sources.protocol import Blocks, Part, Source
from koopman_interp.sources.store import INDEX, Store
from koopman_interp.sources.streams import Stream
from koopman_interp.trajectories import Trajectories

Rows = Trajectories | Source | str | os.PathLike[str] | Callable[[], Iterable[Trajectories]]
"""Trajectories, a store or its folder, a file of trajectories, or a function that begins a stream of them."""

IN_MEMORY_BYTES, _THINNED = 2**28, 4
"""States of a store or a stream up to this are taken into memory as a whole by what needs rows there."""


def as_source(rows: Rows) -> Source:
    """Open what stands for a source of rows.

    Args:
        rows: trajectories, a store, the folder of one, a file of trajectories, or a function that begins a stream.

    Raises:
        InputError: it is none of these.
        FileNotFoundError: there is neither such a folder nor such a file.
    """
    if isinstance(rows, Source):
        return rows
    if isinstance(rows, Trajectories):
        return Memory(rows)
    if isinstance(rows, (str, os.PathLike)):
        path = Path(rows)
        if path.is_file() and path.name != INDEX:
            return Memory(Trajectories.load(path))
        return Store(path.parent if path.is_file() else path)
    if callable(rows):
        return Stream(rows)
    remedy = ""
    if isinstance(rows, (Tensor, np.ndarray, Mapping, Sequence)):
        remedy = (
            " States that were recorded elsewhere come by a tap, which knows their model: attach(model).of_states("
            "{site: states, …}, inputs)."
        )
    elif isinstance(rows, Iterable):
        remedy = " A stream that has begun cannot be gone through again: give lambda: tap.stream(texts)."
    raise InputError(
        "Expected trajectories, a store, its folder, or a function that begins a stream; got "
        f"{type(rows).__name__}.{remedy}"
    )


def in_memory(rows: Rows, most: int | None = None) -> Trajectories:
    """Return rows in memory: trajectories as they are, of other sources as many as fit, inputs with all their rows.

    Args:
        rows: as for `as_source`.
        most: rows to take of other sources; None is as many as 256 MiB of states hold.
    """
    if isinstance(rows, Trajectories):
        return rows
    source = as_source(rows)
    if isinstance(source, Memory):
        return source.trajectories
    most = most or max(1, IN_MEMORY_BYTES // source.row_bytes)
    return some_rows(source.thinned(_THINNED * most), most, whole=True)


def some_rows(source: Source, most: int, part: Part | None = None, *, whole: bool = False) -> Trajectories:
    """Draw rows of a source: the same ones, whatever the order in which they come; twice as many are held meanwhile.

    Args:
        source: the source.
        most: how many to draw, or a few more where inputs stay whole.
        part: of which inputs.
        whole: draw inputs, with all their rows.

    Returns:
        The rows, in the order of the source.
    """
    found, rows = list[Trajectories](), 0
    for batch in source.batches(part=part):
        found.append(batch)
        rows += len(batch)
        if rows > 2 * most:
            found = [_drawn(found, most, whole)]
            rows = len(found[0])
    if not rows:
        raise InputError("There are no such rows in the source. Observe more.")
    return _drawn(found, most, whole)


def _drawn(parts: list[Trajectories], most: int, whole: bool) -> Trajectories:
    """Keep the rows whose hash is smallest: those of all rows are among those of any part of them."""
    rows = Trajectories.concatenate(parts, same_inputs=True)
    if len(rows) <= most:
        return rows
    place = torch.zeros_like(rows.position) if whole else rows.position
    hashes, inputs = row_hashes(rows.digests, place), rows.sequence.numpy()
    order = np.lexsort((rows.position.numpy(), inputs, hashes))
    if whole:
        ends = np.flatnonzero(np.append(np.diff(inputs[order]), 1)) + 1
        most = int(ends[np.searchsorted(ends, most)])
    return rows[torch.from_numpy(np.sort(order[:most]))]


def parts_of(rows: Rows | Iterable[Trajectories], most: int = 1_000_000) -> Iterable[Trajectories]:
    """Return parts of rows that come one after the other, for what is summed over them.

    Args:
        rows: as for `as_source`, or parts already, which are passed on.
        most: rows of a store or a stream, about as many of inputs drawn where there are more.
    """
    if isinstance(rows, Trajectories):
        return [rows]
    if isinstance(rows, Iterable) and not isinstance(rows, (str, Source)):
        return rows
    return as_source(rows).thinned(most).batches()


def shared(source: Source, processes: Processes) -> Source:
    """Return a process's share of a source.

    Raises:
        InputError: it is a stream, of which each process would have the whole.
    """
    if not processes.are_several:
        return source
    if not isinstance(source, Blocks):
        raise InputError(
            f"{processes.ranks} processes share the blocks of a store, and a stream has none. Observe to one first, "
            "under torchrun too: tap.observe(…, store='states'); then fit('states')."
        )
    return source.share(processes.rank, processes.ranks)
