"""A store: trajectories on disk, read block by block; what is larger than memory is fitted from it.

A folder of shards and an `index.json` that is written after them: a shard that the index does not name does not exist,
so that a killed observation goes on at the next input. Reading holds one block. Knows nothing of models.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.annotations import as_annotated
from koopman_interp.clocks import Clock
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import Json, json_digest, read_json, read_tensors, rebuilding, write_json
from koopman_interp.hashing import generator_of
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hub import fetched_dataset, sent_dataset
from koopman_interp.sources.protocol import Blocks
from koopman_interp.sources.shards import Shard, read_block
from koopman_interp.trajectories import Trajectories

INDEX, COORDINATES = "index.json", "coordinates.safetensors"
KIND, VERSION = "koopman-interp store", 1
_MOST_READ = 8
"""Times as many blocks as hold the rows wanted that are read at most, so that these are the same in every order."""


@dataclass(frozen=True)
class Index:
    """What a store says of itself.

    Attributes:
        facts: of all rows, for `Trajectories`: sites, times, shapes, host and the like, as JSON has them.
        widths: of the states at each depth.
        dtypes: of the states at each depth.
        labelled: whether rows have labels.
        tokenised: whether rows have token ids.
        settings: how it was observed: what has to agree for an observation to go on.
        shards: in the order in which they were written.
        classes: labels that occur.
        inputs: observed so far.
        batches: observed so far.
        seen: digest of the inputs of all batches so far.
        complete: whether the observation came to its end.
    """

    facts: dict[str, Json]
    widths: tuple[int, ...]
    dtypes: tuple[str, ...]
    labelled: bool
    tokenised: bool
    settings: dict[str, Json] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    classes: tuple[int, ...] = ()
    inputs: int = 0
    batches: int = 0
    seen: str = ""
    complete: bool = False

    def write(self, path: Path) -> None:
        """Write the index, in the place of the one before."""
        values = {"kind": KIND, "version": VERSION, **asdict(self)}
        write_json(path, values | {"digest": json_digest(values)})

    @classmethod
    def read(cls, path: Path) -> Index:
        """Read an index.

        Raises:
            FileNotFoundError: there is none.
            FileFormatError: it is of something else, or was changed.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no store in {path.parent}: it has no {path.name}. Observe to one: "
                f"tap.observe(…, store={str(path.parent)!r})."
            )
        values = read_json(path)
        if not isinstance(values, dict) or values.get("kind") != KIND or values.get("version") != VERSION:
            raise FileFormatError(f"{path} is no index of a store that this release reads. Observe anew.")
        if values.pop("digest", None) != json_digest(values):
            raise FileFormatError(f"{path} does not hold what was written to it: its digest differs. Copy it again.")
        values = {name: value for name, value in values.items() if name not in ("kind", "version")}
        with rebuilding(path, "an index of a store"):
            shards = tuple(Shard(**(each | {"blocks": tuple(each["blocks"])})) for each in values["shards"])
            lists = {name: tuple(values[name]) for name in ("widths", "dtypes", "classes")}
            index = as_annotated(cls(**(values | lists | {"shards": shards})))
            as_annotated(index.empty())
            return index

    def empty(self) -> Trajectories:
        """Return trajectories without rows, with all that is said of them."""
        none, facts = torch.empty(0, dtype=torch.int64), self.facts
        states = tuple(
            torch.empty(0, width, dtype=getattr(torch, dtype))
            for width, dtype in zip(self.widths, self.dtypes, strict=True)
        )
        return Trajectories(
            states=states,
            sites=tuple(facts["sites"]),
            times=tuple(facts["times"]),
            shapes=tuple(map(tuple, facts["shapes"])),
            skip=facts["skip"],
            layout=facts["layout"],
            host=HostFingerprint(**facts["host"]),
            clock=Clock.from_dict(facts["clock"]),
            sequence=none,
            position=none,
            labels=none if self.labelled else None,
            tokens=none if self.tokenised else None,
            digests=none,
        )


class Store(Blocks):
    """Trajectories in a folder.

    Args:
        folder: that `tap.observe(…, store=folder)` wrote.

    Raises:
        FileNotFoundError: there is no store.
        FileFormatError: its index was changed, or is of something else.

    Examples:
        >>> import tempfile, torch, koopman_interp as ki
        >>> from koopman_interp.testing import ResidualMLP
        >>> tap = ki.attach(ResidualMLP(inputs=4, width=8, blocks=3, outputs=2).eval())
        >>> folder = tempfile.mkdtemp() + "/states"
        >>> tap.observe(torch.randn(200, 4), store=folder)
        Store(200 rows of 200 inputs, 4 depths from 'blocks.0:input' to 'blocks.2', width 8, 1 shard, 0.0 GB)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.index = Index.read(self.folder / INDEX)
        self.empty = self.index.empty()
        self._places = [(shard, block) for shard in self.index.shards for block in range(len(shard.blocks) - 1)]
        self.counts = [shard.blocks[block + 1] - shard.blocks[block] for shard, block in self._places]
        self._maps = _read_maps(self.folder, self.depths) if self.index.settings.get("coordinates") else None
        if not self.index.complete:
            warnings.warn(
                f"The observation that writes {self.folder} did not come to its end: it has {self.index.inputs:,} "
                "inputs so far. To go on, observe the same inputs to the same store again.",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        widths = sorted(set(self.widths))
        width = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        shards = len(self.index.shards)
        return (
            f"Store({len(self):,} rows of {self.index.inputs:,} inputs, {self.depths} depths from {self.sites[0]!r} to "
            f"{self.sites[-1]!r}, width {width}, {shards:,} shard{'s' * (shards != 1)}, {self.bytes / 1e9:.1f} GB)"
        )

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.index.shards)

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur, ascending."""
        return self.index.classes

    def read(self, block: int, depths: Sequence[int] | None = None) -> Trajectories:
        """Read a block, or some depths of it.

        Raises:
            FileNotFoundError: its shard is gone.
            FileFormatError: its shard was cut short or changed.
        """
        shard, at = self._places[block]
        chosen = range(self.depths) if depths is None else depths
        beside = ["sequence", "position", "digests"]
        beside += ["labels"] if self.index.labelled else []
        beside += ["tokens"] if self.index.tokenised else []
        tensors = read_block(self.folder, shard, at, [*(f"state.{depth}" for depth in chosen), *beside])
        tensors["sequence"] = tensors["sequence"] + shard.first
        return replace(
            self.empty,
            states=tuple(self._restored(tensors[f"state.{depth}"], depth) for depth in chosen),
            sites=tuple(self.sites[depth] for depth in chosen),
            times=tuple(self.times[depth] for depth in chosen),
            shapes=tuple(self.shapes[depth] for depth in chosen),
            sequence=tensors["sequence"],
            position=tensors["position"],
            digests=tensors["digests"],
            labels=tensors.get("labels"),
            tokens=tensors.get("tokens"),
        )

    def digests_of(self, block: int) -> Int[Tensor, " row"]:
        """Read the digests of a block's inputs, one a row, and nothing else of it."""
        shard, at = self._places[block]
        return read_block(self.folder, shard, at, ["digests"])["digests"]

    def thinned(self, rows: int) -> Blocks:
        """Return the rows of inputs drawn, about as many, or all: the same, however they lie in blocks and shards.

        A block is read whole, so that few of many short inputs are spread over all blocks: where these are read many
        times over, they are evenly spaced blocks instead, which differ by how the store was written.
        """
        share, in_block = rows / max(1, len(self)), self.index.inputs / max(1, len(self.counts))
        if share < 1 and 1 - (1 - share) ** in_block > _MOST_READ * share:
            return self.spaced(rows)
        return super().thinned(rows)

    def trajectories(self, rows: int | None = None) -> Trajectories:
        """Read rows into memory.

        Args:
            rows: how many, from evenly spaced blocks; None is all.
        """
        source: Blocks = self if rows is None else self.spaced(rows)
        if not len(self):  # of an observation that was stopped early
            return self.empty
        found = Trajectories.concatenate(source.batches(), same_inputs=True)
        return found if rows is None else found[:rows]

    def verify(self, said: Callable[[int], None] | None = None) -> list[str]:
        """Read all and check it against its digests.

        Args:
            said: told of the rows of each block that was read.

        Returns:
            What is wrong, a sentence each; nothing where all is whole.
        """
        wrong = []
        for block in range(len(self.counts)):
            try:
                self.read(block)
            except (FileNotFoundError, FileFormatError) as error:
                wrong.append(str(error))
            if said is not None:
                said(self.counts[block])
        foreign = sorted({path.name for path in self.folder.iterdir()} - set(self._files))
        wrong = list(dict.fromkeys(wrong))  # of a shard that is gone, all blocks say so
        return wrong + [f"{self.folder / name} is not of the store." for name in foreign if not name.startswith(".")]

    @classmethod
    def from_hub(cls, repo: str, **download: Any) -> Store:
        """Fetch a store from the Hub, and open it where it lies on this machine then.

        Args:
            repo: owner/name of the data set.
            **download: for `huggingface_hub.snapshot_download`, such as `revision=` or `local_dir=`.

        Raises:
            FileNotFoundError: there is no such data set, or no store in it.
            FileFormatError: its index was changed, or is of something else.
        """
        return cls(fetched_dataset(repo, ["*.safetensors", "*.json"], **download))

    def push_to_hub(self, repo: str, *, private: bool | None = None, **upload: Any) -> str:
        """Send the store to the Hub, as a data set.

        Args:
            repo: owner/name of the data set, made where it is not there yet.
            private: whether others may not see it; None is as the owner has set.
            **upload: for `huggingface_hub.upload_folder`, such as `commit_message=`.

        Returns:
            Where it is to be seen.

        Raises:
            InputError: the observation did not come to its end.
        """
        if not self.index.complete:
            raise InputError(f"The observation of {self.folder} did not come to its end. Observe to it again first.")
        said = {"commit_message": "Upload a store of koopman-interp"} | upload
        return sent_dataset(self.folder, self._files, repo, private=private, **said)

    @property
    def _files(self) -> list[str]:
        """Names of all files that belong to the store."""
        beside = [] if self._maps is None else [COORDINATES]
        return [INDEX, *beside, *(shard.name for shard in self.index.shards)]

    def as_dataset(self, *, shuffle: int | None = None, epoch: int = 0) -> Any:
        """Return the rows as a `datasets.IterableDataset`, a row a sample, for what reads such.

        Args:
            shuffle: seed of the order of the blocks and of the rows in each; None keeps the order.
            epoch: of the shuffle.

        Returns:
            The data set: a column a depth, by its site, and `sequence`, `position`, `label`, `token`.
        """
        seed = None if shuffle is None else f"{shuffle}/{epoch}"
        from datasets import IterableDataset  # here, since it takes a second to import

        return IterableDataset.from_generator(
            _rows, gen_kwargs={"folder": str(self.folder), "blocks": self.order(shuffle, epoch), "shuffle": seed}
        )

    def _restored(self, states: Tensor, depth: int) -> Float[Tensor, "row width"]:
        """Bring coordinates back to states, where coordinates were kept."""
        if self._maps is None:
            return states
        mean, inverse = self._maps[depth]
        return (mean + states.to(mean.dtype) @ inverse).to(self.empty.states[depth].dtype)


def _read_maps(folder: Path, depths: int) -> list[tuple[Tensor, Tensor]]:
    if not (folder / COORDINATES).is_file():
        raise FileNotFoundError(
            f"There is no {COORDINATES} in {folder}, which its {INDEX} names. Copy it again, whole."
        )
    tensors, _ = read_tensors(folder / COORDINATES, kind="coordinates of a store")
    with rebuilding(folder / COORDINATES, "coordinates of a store"):
        return [(tensors[f"mean.{depth}"], tensors[f"inverse.{depth}"]) for depth in range(depths)]


def _rows(folder: str, blocks: list[int], shuffle: str | None) -> Iterator[dict[str, Any]]:
    """Go through the rows of blocks as samples of a data set."""
    store = Store(folder)
    for block in blocks:
        batch = store.read(block)
        order = torch.arange(len(batch))
        if shuffle is not None:
            order = torch.randperm(len(batch), generator=generator_of(f"{shuffle}/{block}"))
        for row in order.tolist():
            states = zip(batch.sites, batch.states, strict=True)
            sample: dict[str, object] = {site: state[row].float().numpy() for site, state in states}
            sample |= {"sequence": int(batch.sequence[row]), "position": int(batch.position[row])}
            if batch.labels is not None:
                sample["label"] = int(batch.labels[row])
            if batch.tokens is not None:
                sample["token"] = int(batch.tokens[row])
            yield sample
