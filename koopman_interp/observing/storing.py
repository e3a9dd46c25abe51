"""Observing to a store: batch by batch, going on where an earlier observation of the same inputs was killed.

Holds one shard. Under `torchrun` each process observes every so many-th batch, and the first joins what they wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from koopman_interp.errors import InputError, ObservationInterrupted, StorageError
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokenizer
from koopman_interp.labels import whole_numbers
from koopman_interp.locks import locked
from koopman_interp.observing.batches import Inputs, batches_in, calls
from koopman_interp.observing.digests import input_digests
from koopman_interp.observing.recording import Recording
from koopman_interp.observing.samples import Samples, labels_of_samples
from koopman_interp.processes import Processes
from koopman_interp.sources.merging import join_ranks
from koopman_interp.sources.store import Store
from koopman_interp.sources.writing import Coordinates, StoreWriter, index_path
from koopman_interp.trajectories import Trajectories

_BESIDE_STATES = 1.02
"""Bytes of a store for each of its rows' own: headers, and what is said of each block."""


def observed_to_store(
    host: Host,
    called: Callable[[Any], tuple[Trajectories, list[Samples]]],
    recording: Recording,
    batches: object,
    column: str | None,
    folder: Path,
    *,
    times: tuple[float, ...],
    inputs: Inputs,
    tokenizer: Tokenizer,
    batch_size: int,
    progress: bool | None,
    share: float | None,
    coordinates: Coordinates | None,
) -> Store:
    """Observe batches to a store.

    Args:
        host: the model.
        called: calls it on a batch, and returns what was recorded.
        recording: that records it.
        batches: as in `Tap.observe`, and so all that follows.
        column: of the labels.
        folder: of the store.
        times: of the sites.
        inputs: the column to call with, or a function.
        tokenizer: for texts.
        batch_size: of what comes uncut.
        progress: show a bar.
        share: of the rows that is kept.
        coordinates: kept in place of the states.

    Returns:
        The store.

    Raises:
        InputError: the folder holds something else, or other inputs, or there were no batches, or no row was kept.
        HostMismatchError: the folder holds a store of another model.
        StorageError: the disk has no room for it.
        LockedError: another process writes to it.
        ObservationInterrupted: Ctrl-C; the message says what was kept.
    """
    here = Processes.here()
    total = batches_in(batches, batch_size)
    total = None if total is None else -(-(total - here.rank) // here.ranks)
    found = calls(
        host,
        batches,
        inputs=inputs,
        column=column,
        batch_size=batch_size,
        tokenizer=tokenizer,
        share=(here.rank, here.ranks),
    )
    bar = tqdm(found, total=total, desc="observe", unit="batch", disable=None if progress is None else not progress)
    with locked(index_path(folder, here.rank, here.ranks)):
        writer = StoreWriter(
            folder,
            {name: getattr(recording, name) for name in ("sites", "skip", "layout")}
            | {"times": times, "host": asdict(recording.fingerprint)},
            {"batch size": batch_size},
            share=share,
            coordinates=coordinates,
            rank=here.rank,
            ranks=here.ranks,
        )
        try:
            for part, count, digests in _new(bar, writer, called, recording):
                if total is not None and writer.index is None:
                    _require_room(folder, part, total, share, coordinates)
                writer.add(part, count, digests)
            if writer.index is None:
                raise InputError("There were no batches to observe, or too few for each process to have one.")
            recording.warn_of_left_out()
            writer.finish()
        except KeyboardInterrupt as interrupt:
            writer.keep()
            kept = 0 if writer.index is None else writer.index.inputs
            raise ObservationInterrupted(
                f"Interrupted; {kept:,} inputs are in {folder}. Observe the same inputs to it again to go on there."
            ) from interrupt
        except BaseException:
            writer.keep()
            raise
    here.wait()
    if here.are_several and here.is_first:
        join_ranks(folder, here.ranks)
    here.wait()
    return Store(folder)


def _new(
    batches: Any,
    writer: StoreWriter,
    called: Callable[[Any], tuple[Trajectories, list[Samples]]],
    recording: Recording,
) -> Iterator[tuple[Trajectories, int, Int[Tensor, " input"]]]:
    """Observe the batches that are not in the store yet; give their rows, inputs counted from 0."""
    for x, y in batches:
        try:
            digests = input_digests(x)
        except InputError:  # of what it cannot be known which entry is which input
            digests = torch.zeros(1, dtype=torch.int64)
        if y is not None:
            digests = torch.cat([digests, whole_numbers(y)])
        if writer.lies_behind:
            writer.pass_over(digests)
            continue
        before = recording.inputs
        part, samples = called(x)
        labelled = part if y is None else part.with_labels(labels_of_samples(y, samples))
        yield replace(labelled, sequence=labelled.sequence - before), recording.inputs - before, digests


def _require_room(
    folder: Path, batch: Trajectories, batches: int, share: float | None, coordinates: Coordinates | None
) -> None:
    """Refuse to begin where the disk has no room for as many batches as this one.

    Raises:
        StorageError: with what is needed and free.
    """
    widths = batch.widths
    if coordinates is not None:
        widths = tuple(coordinates.maps(depth)[1].shape[1] for depth in range(batch.depths))
    beside = 8 * (3 + (batch.labels is not None) + (batch.tokens is not None))
    row = sum(width * state.element_size() for width, state in zip(widths, batch.states, strict=True)) + beside
    needed = round(len(batch) * row * batches * (share or 1.0) * _BESIDE_STATES)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"A store of {batches:,} batches like the first needs about {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} "
            f"GB are free in {folder}. Keep fewer rows (keep=0.1), fewer coordinates (coordinates=…) or sites, or fit "
            "from a stream: fit(lambda: tap.stream(…))."
        )
