"""Joining stores: those of processes that observed together, and those of observations of one model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from koopman_interp.errors import InputError
from koopman_interp.files import clear_leftovers, read_tensors
from koopman_interp.sources.store import COORDINATES, INDEX, Index, Store
from koopman_interp.sources.writing import PARTS, index_path


def join_ranks(folder: Path, ranks: int) -> None:
    """Write the one index of a store that several processes have observed, in the place of theirs.

    Where it is there already, of a call that was killed after it had written it, what that left is cleared away.

    Args:
        folder: of the store.
        ranks: how many processes.
    """
    paths = [index_path(folder, rank, ranks) for rank in range(ranks)]
    if not (folder / INDEX).is_file():
        indices = [Index.read(path) for path in paths]
        parts = [{name: getattr(index, name) for name in ("inputs", "batches", "seen")} for index in indices]
        joined = _joined(indices)
        replace(joined, settings=joined.settings | {PARTS: parts}).write(folder / INDEX)
    clear_leftovers(folder / INDEX)
    for path in paths:
        path.unlink(missing_ok=True)


def merge_stores(folders: Sequence[str | os.PathLike[str]], into: str | os.PathLike[str]) -> Store:
    """Join stores of one model into a new one.

    Shards are linked where the disk allows it, and copied elsewhere; the stores stay as they are.

    Args:
        folders: of the stores, in order; each with inputs of its own.
        into: folder of the new store.

    Returns:
        The new store.

    Raises:
        InputError: they are of different models, sites or coordinates, one is not complete, or the folder is not empty.
        FileNotFoundError: one is no store.
    """
    sources, target = [Path(folder) for folder in folders], Path(into)
    if not sources:
        raise InputError("There are no stores to join. Name two or more.")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} is not empty. Give a folder of its own, new or empty.")
    indices = [Index.read(source / INDEX) for source in sources]
    for source, index in zip(sources, indices, strict=True):
        if not index.complete:
            raise InputError(f"The observation of {source} did not come to its end. Observe to it again, or leave it.")
    joined = _joined([_renamed(index, number) for number, index in enumerate(indices)])
    target.mkdir(parents=True, exist_ok=True)
    olds = [source / shard.name for source, index in zip(sources, indices, strict=True) for shard in index.shards]
    for old, shard in zip(olds, joined.shards, strict=True):
        _linked(old, target / shard.name)
    if indices[0].settings.get("coordinates"):
        read_tensors(sources[0] / COORDINATES, kind="coordinates of a store")
        _linked(sources[0] / COORDINATES, target / COORDINATES)
    joined.write(target / INDEX)
    return Store(target)


def _renamed(index: Index, number: int) -> Index:
    """Name shards by the number of their store too."""
    return replace(index, shards=tuple(replace(shard, name=f"{number:03d}-{shard.name}") for shard in index.shards))


def _joined(indices: Sequence[Index]) -> Index:
    """Return one index of all shards, with inputs numbered through."""
    first = indices[0]
    shards, inputs = [], 0
    for index in indices:
        for name in ("facts", "widths", "dtypes", "labelled", "tokenised"):
            if getattr(index, name) != getattr(first, name):
                raise InputError(f"Stores to join need the same {name}; they differ. Observe one model at one place.")
        if index.settings.get("coordinates") != first.settings.get("coordinates"):
            raise InputError("Stores to join keep the same coordinates; these differ. Observe with one normalisation.")
        shards += [replace(shard, first=shard.first + inputs) for shard in index.shards]
        inputs += index.inputs
    return replace(
        first,
        settings={name: value for name, value in first.settings.items() if name != PARTS},
        shards=tuple(shards),
        classes=tuple(sorted({label for index in indices for label in index.classes})),
        inputs=inputs,
        batches=sum(index.batches for index in indices),
        complete=all(index.complete for index in indices),
    )


def _linked(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # on the Hub's cache, names are links
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)
