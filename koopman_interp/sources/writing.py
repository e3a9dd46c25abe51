"""Writing a store: rows are gathered to shards, and the index names a shard once it lies on the disk, whole.

Holds the rows of one shard. What was killed goes on after the last batch that the index knows; shards that it does not
name are deleted then.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.errors import InputError, StorageError
from koopman_interp.files import Json, made_lasting, write_tensors
from koopman_interp.growing import GrowingRows
from koopman_interp.hashing import in_share, tensor_digest
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.sources.shards import write_shard
from koopman_interp.sources.store import COORDINATES, INDEX, Index
from koopman_interp.trajectories import Trajectories

SHARD_ROWS = 8192
PARTS = "parts"
"""Among the settings of an index that several processes have written: what each has observed."""
_NUMBER = "[0-9]" * 6
_RANK_INDEX = re.compile(r"index-\d+-of-(\d+)\.json")
_OURS = re.compile(
    rf"(\d{{3}}-)*\d{{6}}\.safetensors|{re.escape(INDEX)}|{_RANK_INDEX.pattern}|{re.escape(COORDINATES)}|"
    r"\..*(\.lock|\.safetensors|\.json)|\.writing-\d+"
)
"""Names in the folder of a store; those with a point are locks, and what a killed writer left."""
_SHARD_BYTES = 64 * 2**20
"""Bytes of the states of a shard from which on it is written: a few times as many are held meanwhile."""
_INDEX_SECONDS, _INDEX_BYTES = 5.0, 2**28
"""The index is written as often as this; what a killed process wrote after it is observed anew."""


@runtime_checkable
class Coordinates(Protocol):
    """Maps of each depth to fewer coordinates and back, such as a `Normalization`."""

    def normalize(self, states: Float[Tensor, "*batch width"], depth: int) -> Float[Tensor, "*batch dimension"]:
        """Bring states at a depth to coordinates."""
        ...

    def maps(self, depth: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, forward and inverse of a depth."""
        ...


class StoreWriter:
    """Writes batches of trajectories to a store, or goes on with one that was not finished.

    Args:
        folder: of the store.
        facts: where and of what is observed: sites, times, skip, layout, and the host's fingerprint. They have to agree
            for an observation to go on, or to be taken for the one that is there.
        settings: how is observed; they have to agree too.
        share: of the rows that is kept, drawn by the digest of their input and their position; None keeps all.
        coordinates: kept in place of the states, which are then as they are up to what the coordinates leave out.
        rank: of this process, of several that write one store, each inputs of its own.
        ranks: how many there are.

    Attributes:
        index: of what lies in whole shards; None before the first batch of all.

    Raises:
        InputError: the folder holds a store that was observed otherwise, or something else.
        HostMismatchError: it holds a store of another model.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Json],
        settings: Mapping[str, Json],
        *,
        share: float | None = None,
        coordinates: Coordinates | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if share is not None and not 0 < share <= 1:
            raise InputError(f"keep is the share of the rows that is kept, above 0 and up to 1; got {share}.")
        self._folder, self._share, self._coordinates = folder, share, coordinates
        self._path, self._prefix = index_path(folder, rank, ranks), f"{rank:03d}-" if ranks > 1 else ""
        self._through, self._rank = folder / f".writing-{rank}", rank
        self._facts, self._settings = facts, {**settings, "share": share, "ranks": ranks}
        self._gathered: dict[str, GrowingRows] = {}
        self._seen = xxhash.xxh3_128()
        self._batches, self._inputs, self._bytes = 0, 0, 0
        self._unnamed, self._written = 0, time.monotonic()
        self.index = self._found()
        self._lasting = 0 if self.index is None else len(self.index.shards)
        """Shards that are flushed to the disk and named by the index that lies there."""

    @property
    def is_complete(self) -> bool:
        """Whether an earlier observation came to its end."""
        return self.index is not None and self.index.complete

    @property
    def batches(self) -> int:
        """How many batches lie in whole shards."""
        return 0 if self.index is None else self.index.batches

    @property
    def lies_behind(self) -> bool:
        """Whether the next batch lies in a whole shard."""
        return self._batches < self.batches

    def pass_over(self, digests: Int[Tensor, " input"]) -> None:
        """Leave out a batch that lies in a whole shard.

        Args:
            digests: of its inputs and labels.

        Raises:
            InputError: with the last of them: they are not those that the store has.
        """
        assert self.index is not None, "nothing to pass over"
        self._count(0, digests)
        if self.lies_behind:
            return
        self._inputs = self.index.inputs
        if self._seen.hexdigest() != self.index.seen:
            raise InputError(
                f"{self._folder} holds other inputs or labels than these in its first {self._batches:,} batches, so "
                "that the observation cannot go on there. Give the same in the same order, or observe to another "
                "folder."
            )

    def add(self, batch: Trajectories, inputs: int, digests: Int[Tensor, " input"]) -> None:
        """Add the rows of a batch.

        Args:
            batch: whose inputs are counted from 0.
            inputs: how many it has, those without a row too.
            digests: of what the model was called with, and of the labels.

        Raises:
            StorageError: the disk is full, or the folder is not to be written to. What is in whole shards stays.
            InputError: the batch is of another kind than those before, or the observation is at its end already.
        """
        if self.is_complete:
            raise InputError(
                f"{self._folder} holds an observation that came to its end after {self.batches:,} batches, and there "
                "are more. Observe them to another folder, and join the two with merge_stores."
            )
        if self.index is None:
            self.index = self._begun(batch)
        _require_alike(self.index, batch)
        kept = batch if self._share is None else batch[in_share(batch.digests, batch.position, self._share)]
        self._gather(replace(kept, sequence=kept.sequence + self._inputs))
        self._count(inputs, digests)
        if self._bytes >= _SHARD_BYTES or self._rows >= SHARD_ROWS:
            self._flush()
            if self._unnamed >= _INDEX_BYTES or time.monotonic() - self._written >= _INDEX_SECONDS:
                self._write_index()

    def finish(self) -> None:
        """Write what is left, and that the observation came to its end.

        Raises:
            StorageError: the disk is full.
            InputError: the store has more than was observed now, or no row was kept of all that was.
        """
        if self.index is not None and not self.index.shards and not self._rows:
            raise InputError(
                "No row was kept: all are padding, among the leading positions that skip= leaves out, labelled -100, "
                f"or not in the share that keep={self._share} keeps. Observe more, or keep more."
            )
        if self.lies_behind:
            raise InputError(
                f"{self._folder} holds {self.batches:,} batches, and these are the first {self._batches:,} of them. "
                "Give all inputs, or observe to another folder."
            )
        if self.is_complete:
            return
        self._flush()
        assert self.index is not None, "an observation without batches"
        self.index = replace(self.index, complete=True)
        self._write_index()

    def keep(self) -> None:
        """Name in the index all shards that are whole, before the process ends; what cannot be named is deleted."""
        try:
            if self.index is not None and self._unnamed:
                self._write_index()
        except StorageError:  # of a full disk, say: whoever calls this has been told
            self.index = Index.read(self._path) if self._path.is_file() else None
        self._delete_unnamed([] if self.index is None else [shard.name for shard in self.index.shards])

    def _count(self, inputs: int, digests: Int[Tensor, " input"]) -> None:
        self._seen.update(digests.contiguous().numpy().data)
        self._batches += 1
        self._inputs += inputs

    def _flush(self) -> None:
        """Write the rows gathered to a shard, and take over into the index what lies on the disk then."""
        assert self.index is not None, "rows before the first batch"
        index = replace(self.index, batches=self._batches, inputs=self._inputs, seen=self._seen.hexdigest())
        if self._rows:
            tensors = {name: rows.taken() for name, rows in self._gathered.items()}
            first = int(tensors["sequence"].min())
            name = f"{self._prefix}{len(index.shards):06d}.safetensors"  # as `_OURS` and `_NUMBER` have it
            tensors["sequence"] = tensors["sequence"] - first
            shard = write_shard(self._folder, self._through, name, tensors, first)
            self._unnamed += shard.bytes
            found = torch.unique(tensors["labels"]).tolist() if "labels" in tensors else []
            index = replace(index, shards=(*index.shards, shard), classes=tuple(sorted({*index.classes, *found})))
        self.index, self._bytes = index, 0

    @property
    def _rows(self) -> int:
        return len(self._gathered["sequence"]) if self._gathered else 0

    def _gather(self, rows: Trajectories) -> None:
        """Lay rows down for the next shard, in the room of those of the shard before."""
        tensors = {f"state.{depth}": self._kept(state, depth) for depth, state in enumerate(rows.states)}
        tensors |= {"sequence": rows.sequence, "position": rows.position, "digests": rows.digests}
        beside = {"labels": rows.labels, "tokens": rows.tokens}
        tensors |= {name: tensor for name, tensor in beside.items() if tensor is not None}
        for name, tensor in tensors.items():
            self._gathered.setdefault(name, GrowingRows()).add(tensor)
            self._bytes += tensor.nbytes

    def _kept(self, states: Float[Tensor, "row width"], depth: int) -> Float[Tensor, "row _"]:
        return states if self._coordinates is None else self._coordinates.normalize(states, depth).to(states.dtype)

    def _write_index(self) -> None:
        assert self.index is not None, "an index without a batch"
        made_lasting(self._folder / shard.name for shard in self.index.shards[self._lasting :])
        self.index.write(self._path)
        self._lasting = len(self.index.shards)
        shutil.rmtree(self._through, ignore_errors=True)
        self._unnamed, self._written = 0, time.monotonic()

    def _begun(self, batch: Trajectories) -> Index:
        """Return the index of a new store."""
        facts = {name: getattr(batch, name) for name in ("sites", "times", "shapes", "skip", "layout")}
        if self._coordinates is not None:
            tensors = _inverses(self._coordinates, batch.depths)
            write_tensors(self._folder / COORDINATES, tensors, kind="coordinates of a store", header={})
        return Index(
            facts=facts | {"host": asdict(batch.host), "clock": batch.clock and batch.clock.as_dict()},
            widths=batch.widths,
            dtypes=_dtypes(batch),
            labelled=batch.labels is not None,
            tokenised=batch.tokens is not None,
            settings=self._settings | {"coordinates": self._coordinates_digest(batch.depths)},
        )

    def _found(self) -> Index | None:
        """Return the index of what an earlier observation wrote, and delete what it does not name.

        Raises:
            InputError: it was observed otherwise, or the folder holds something else.
        """
        self._require_own()
        index = self._there()
        if index is None:
            self._delete_unnamed([])
            return None
        here = HostFingerprint(**self._facts["host"])
        HostFingerprint(**index.facts["host"]).require(here, f"store {self._folder}")
        facts = {name: value for name, value in self._facts.items() if name != "host"}
        expected = facts | self._settings | {"coordinates": self._coordinates_digest(len(index.facts["sites"]))}
        known = index.settings | index.facts
        for name, ours in expected.items():
            if _plain(theirs := known.get(name)) != _plain(ours):
                raise InputError(
                    f"{self._folder} was observed with {name}={theirs!r:.80}, and this observation has {ours!r:.80}. "
                    "Observe as before, or to another folder."
                )
        self._delete_unnamed([shard.name for shard in index.shards])
        return index

    def _there(self) -> Index | None:
        """Read this process's index or, where all have come to their end and were joined, what the joint one has of it.

        Raises:
            InputError: the joint one is of something else than these processes observe.
        """
        if self._path.is_file():
            return Index.read(self._path)
        if not (self._folder / INDEX).is_file():
            return None
        joint = Index.read(self._folder / INDEX)
        parts = joint.settings.get(PARTS, ())
        if len(parts) != self._settings["ranks"]:
            raise InputError(
                f"{self._folder} holds a store already, of an observation by {len(parts) or 'another number of'} "
                f"processes, and here there are {self._settings['ranks']}. Observe to another folder, or read this "
                "one: Store(folder)."
            )
        return replace(joint, **parts[self._rank])

    def _require_own(self) -> None:
        """Refuse a folder of something else, and one that another number of processes has begun to write.

        Raises:
            InputError: with what is there.
        """
        names = sorted(path.name for path in self._folder.iterdir()) if self._folder.is_dir() else []
        if foreign := next((name for name in names if not _OURS.fullmatch(name)), None):
            raise InputError(
                f"{self._folder} is no store, but holds {foreign}. Give a folder of its own, new or empty."
            )
        ranks = self._settings["ranks"]
        begun = {int(found[1]) for name in names if (found := _RANK_INDEX.fullmatch(name))} - {ranks}
        if begun and not self._path.is_file():
            raise InputError(
                f"{self._folder} holds a part of what {begun.pop()} processes observe, and here there are {ranks}. "
                "Start as many to go on, or observe to another folder."
            )

    def _coordinates_digest(self, depths: int) -> str | None:
        return None if self._coordinates is None else tensor_digest(_inverses(self._coordinates, depths).items())

    def _delete_unnamed(self, named: list[str]) -> None:
        """Delete shards of this process that were written after the index, and what it left of one."""
        shutil.rmtree(self._through, ignore_errors=True)
        for path in self._folder.glob(f"{self._prefix}{_NUMBER}.safetensors"):
            if path.name not in named:
                path.unlink()


def index_path(folder: Path, rank: int, ranks: int) -> Path:
    """Name the index of a process, of several that write one store."""
    return folder / (INDEX if ranks == 1 else f"index-{rank}-of-{ranks}.json")


def _inverses(coordinates: Coordinates, depths: int) -> dict[str, Tensor]:
    """Return what brings coordinates back to states."""
    maps = [coordinates.maps(depth) for depth in range(depths)]
    means = {f"mean.{depth}": mean for depth, (mean, _, _) in enumerate(maps)}
    return means | {f"inverse.{depth}": inverse for depth, (_, _, inverse) in enumerate(maps)}


def _require_alike(index: Index, batch: Trajectories) -> None:
    facts: dict[str, tuple[object, object]] = {
        "widths": (index.widths, batch.widths),
        "dtypes": (index.dtypes, _dtypes(batch)),
        "shapes": (index.facts["shapes"], batch.shapes),
        "sites": (index.facts["sites"], batch.sites),
        "times": (index.facts["times"], batch.times),
        "model's weights": (index.facts["host"]["weights"], batch.host.weights),
    }
    for name, (before, now) in facts.items():
        if _plain(before) != _plain(now):
            raise InputError(f"The store has the {name} {before}, and this batch {now}. Observe to another folder.")
    for name, has, now in (("labels", index.labelled, batch.labels), ("token ids", index.tokenised, batch.tokens)):
        if has != (now is not None):
            raise InputError(f"Some batches have {name} and others have none. Give {name} with all or with none.")


def _dtypes(batch: Trajectories) -> tuple[str, ...]:
    return tuple(str(state.dtype).removeprefix("torch.") for state in batch.states)


def _plain(value: object) -> object:
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
