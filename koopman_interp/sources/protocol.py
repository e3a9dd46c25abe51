"""One source of rows: what gives trajectories batch by batch, as often as it is asked, and says of what they are.

Trajectories in memory, a store on disk and a stream that is called anew are such; what reads rows asks for them here,
and holds none but the batch at hand. Knows nothing of files or models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from koopman_interp.clocks import Clock
from koopman_interp.errors import InputError
from koopman_interp.hashing import MOST_COUNTED, Draw, generator_of
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.trajectories import Trajectories

Part = Callable[[Int[Tensor, " row"]], Bool[Tensor, " row"]]
"""Which rows are wanted, by the digests of their inputs."""

_COUNTED_AT_ONCE = 1 << 17
"""Rows whose distinct inputs are looked for at a time, at least."""


class Source(ABC):
    """Rows of one model that come batch by batch; a batch holds whole inputs.

    Attributes:
        empty: trajectories without rows, with all that is said of those that come: sites, times, widths, shapes, host,
            whether there are labels and tokens.
    """

    empty: Trajectories

    @property
    def sites(self) -> tuple[str, ...]:
        """The site of each depth."""
        return self.empty.sites

    @property
    def times(self) -> tuple[float, ...]:
        """The time of each depth, in operator steps."""
        return self.empty.times

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the state at each depth."""
        return self.empty.widths

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one sample's state in the model, per depth."""
        return self.empty.shapes

    @property
    def host(self) -> HostFingerprint:
        """Fingerprint of the model they were observed on."""
        return self.empty.host

    @property
    def depths(self) -> int:
        """How many sites each trajectory passes."""
        return self.empty.depths

    @property
    def skip(self) -> int:
        """Leading places of each sequence that were left out."""
        return self.empty.skip

    @property
    def layout(self) -> str | None:
        """Names of the axes of the states in the model, where `attach` was told."""
        return self.empty.layout

    @property
    def clock(self) -> Clock | None:
        """What time is where it is not depth."""
        return self.empty.clock

    @property
    def row_bytes(self) -> int:
        """Bytes that the states of one row take, over all depths."""
        return sum(width * state.element_size() for width, state in zip(self.widths, self.empty.states, strict=True))

    @abstractmethod
    def batches(
        self,
        *,
        depths: Sequence[int] | None = None,
        part: Part | None = None,
        shuffle: int | None = None,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[Trajectories]:
        """Go through the rows once.

        Args:
            depths: which of them are read, two or more, ascending; None is all.
            part: which rows, by the digests of their inputs; None is all. Batches that have none are left out.
            shuffle: seed of the order of the batches; None is the order in which they were observed. A source that
                cannot be read out of order keeps it.
            epoch: how often they were gone through before: each epoch has an order of its own.
            start: batches to leave out at the beginning, in the order of the epoch.

        Yields:
            The batches.
        """

    def digests(self) -> Iterator[Int[Tensor, " row"]]:
        """Go through the digests of the inputs, one a row; where it can be, without the states."""
        for batch in self.batches():
            yield batch.digests

    @cached_property
    def inputs(self) -> Int[Tensor, " input"]:
        """Distinct digests of the inputs, ascending: all of them or, of more than are counted, some more than that."""
        distinct, waiting = torch.empty(0, dtype=torch.int64), list[Tensor]()
        for digests in self.digests():
            waiting.append(digests)
            if sum(map(len, waiting)) >= _COUNTED_AT_ONCE:
                distinct, waiting = torch.unique(torch.cat([distinct, *waiting])), []
            if len(distinct) > MOST_COUNTED:
                return distinct
        return torch.unique(torch.cat([distinct, *waiting]))

    @abstractmethod
    def thinned(self, rows: int) -> Source:
        """Return about as many rows, in whole inputs; where the source can be read so, the same in whatever order."""


class Blocks(Source):
    """A source that is read at any place: consecutive rows in blocks, each of whole inputs.

    Attributes:
        counts: rows of each block.
    """

    counts: Sequence[int]

    @abstractmethod
    def read(self, block: int, depths: Sequence[int] | None = None) -> Trajectories:
        """Read a block, or some of its depths."""

    def digests_of(self, block: int) -> Int[Tensor, " row"]:
        """Read the digests of a block's inputs, one a row."""
        return self.read(block).digests

    def digests(self) -> Iterator[Int[Tensor, " row"]]:
        """Go through the digests of the inputs, one a row."""
        for block in self.order(None, 0):
            yield self.digests_of(block)

    def __len__(self) -> int:
        return sum(self.counts)

    def batches(
        self,
        *,
        depths: Sequence[int] | None = None,
        part: Part | None = None,
        shuffle: int | None = None,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[Trajectories]:
        """Go through the blocks once; those that have no wanted row are not read. See `Source.batches`."""
        for block in self.order(shuffle, epoch)[start:]:
            if part is not None and not bool(part(self.digests_of(block)).any()):
                continue
            batch = taken(self.read(block, depths), part)
            if len(batch):
                yield batch

    def order(self, shuffle: int | None, epoch: int) -> list[int]:
        """Return the numbers of the blocks in the order of an epoch."""
        if shuffle is None:
            return list(range(len(self.counts)))
        order: list[int] = torch.randperm(len(self.counts), generator=generator_of(f"{shuffle}/{epoch}")).tolist()
        return order

    def thinned(self, rows: int) -> Blocks:
        """Return the rows of inputs drawn, about as many, or all: the same, however they lie in blocks and shards."""
        if len(self) <= rows:
            return self
        return Drawn(self, thinning(self.inputs, rows / len(self)))

    def spaced(self, rows: int) -> Blocks:
        """Return evenly spaced blocks that have as many rows, or all."""
        stride = min(max(1, len(self) // max(1, rows)), max(1, len(self.counts)))
        while stride > 1 and sum(self.counts[::stride]) < rows:  # blocks need not be of one size
            stride -= 1
        return self if stride == 1 else Subset(self, range(0, len(self.counts), stride))

    def share(self, rank: int, ranks: int) -> Blocks:
        """Return every so many-th block, as one of several processes reads them."""
        return self if ranks == 1 else Subset(self, range(rank, len(self.counts), ranks))


class Subset(Blocks):
    """Some blocks of a source.

    Args:
        source: whose.
        numbers: of the blocks.
    """

    def __init__(self, source: Blocks, numbers: Sequence[int]) -> None:
        if not len(numbers):
            raise InputError(
                f"There are {len(source.counts)} blocks of rows, too few for each process to have one. Start fewer "
                "processes, or observe more."
            )
        self._source, self._numbers = source, numbers
        self.empty = source.empty
        self.counts = [source.counts[number] for number in numbers]

    def read(self, block: int, depths: Sequence[int] | None = None) -> Trajectories:
        """Read a block."""
        return self._source.read(self._numbers[block], depths)

    def digests_of(self, block: int) -> Int[Tensor, " row"]:
        """Read the digests of a block's inputs, one a row."""
        return self._source.digests_of(self._numbers[block])


class Drawn(Blocks):
    """The inputs drawn of a source, in its blocks.

    Args:
        source: whose.
        draw: which inputs.
    """

    def __init__(self, source: Blocks, draw: Draw) -> None:
        self._source, self._draw = source, draw
        self.empty = source.empty

    @cached_property
    def counts(self) -> list[int]:  # type: ignore[override]  # known once all digests have been read
        """Rows of each block."""
        return [int(self._draw(digests).sum()) for digests in self._source.digests()]

    def read(self, block: int, depths: Sequence[int] | None = None) -> Trajectories:
        """Read a block."""
        return taken(self._source.read(block, depths), self._draw)

    def digests_of(self, block: int) -> Int[Tensor, " row"]:
        """Read the digests of a block's inputs, one a row."""
        digests = self._source.digests_of(block)
        return digests[self._draw(digests)]

    def batches(
        self,
        *,
        depths: Sequence[int] | None = None,
        part: Part | None = None,
        shuffle: int | None = None,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[Trajectories]:
        """Go through the blocks once that have such inputs; see `Source.batches`."""

        def wanted(digests: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
            drawn = self._draw(digests)
            return drawn if part is None else drawn & part(digests)

        return self._source.batches(depths=depths, part=wanted, shuffle=shuffle, epoch=epoch, start=start)

    def order(self, shuffle: int | None, epoch: int) -> list[int]:
        """Return the numbers of the blocks in the order of an epoch."""
        return self._source.order(shuffle, epoch)

    def share(self, rank: int, ranks: int) -> Blocks:
        """Return every so many-th block, as one of several processes reads them."""
        return Drawn(self._source.share(rank, ranks), self._draw)


def thinning(inputs: Int[Tensor, " input"], share: float) -> Draw:
    """Draw a share of inputs, one or more, apart from what is held out of a fit by its seed.

    Args:
        inputs: as `Source.inputs` has them.
        share: of them.
    """
    return Draw.of(inputs, math.ceil(share * len(inputs)) / len(inputs), "thinned")


def taken(batch: Trajectories, part: Part | None) -> Trajectories:
    """Keep the rows of a batch that are wanted."""
    if part is None:
        return batch
    wanted = part(batch.digests)
    return batch if bool(wanted.all()) else batch[wanted]


def at_depths(trajectories: Trajectories, depths: Sequence[int] | None) -> Trajectories:
    """Keep some depths, two or more, ascending."""
    if depths is None:
        return trajectories
    t = trajectories
    return replace(
        t,
        states=tuple(t.states[depth] for depth in depths),
        sites=tuple(t.sites[depth] for depth in depths),
        times=tuple(t.times[depth] for depth in depths),
        shapes=tuple(t.shapes[depth] for depth in depths),
    )
