"""Shards of a store: some thousand rows in one safetensors file, a tensor a depth, read block by block.

Each block of each tensor has a digest in the file's header, and the header one in the store's index, so that whatever
is read is known to be what was written, without reading the rest.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import xxhash
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import rebuilding, replacing, unreadable

BLOCK_ROWS, BLOCK_BYTES = 1024, 2**22
"""Rows of a block, at least, and bytes: what is read at once is to be large beside what it costs to begin."""
_HEADER, _MOST = "koopman_interp_shard", 2**62
_PARSED = 256
"""Headers that are kept as they were parsed, of some ten kB each."""


@dataclass(frozen=True)
class Shard:
    """What the index of a store says of a shard.

    Attributes:
        name: of its file in the store's folder.
        blocks: numbers of the first rows of its blocks, and that of all rows.
        first: number of its first input; those in the file are counted from it, so that shards can be joined.
        bytes: of its file.
        digest: of its header, which holds those of its blocks.
    """

    name: str
    blocks: tuple[int, ...]
    first: int
    bytes: int
    digest: str

    def __post_init__(self) -> None:
        if not self.name.endswith(".safetensors") or Path(self.name).name != self.name:
            raise InputError(f"{self.name!r} is no name of a shard in its store's folder.")
        if len(self.blocks) < 2 or self.blocks[0] != 0 or any(a >= b for a, b in itertools.pairwise(self.blocks)):
            raise InputError(f"Blocks of {self.name} begin at 0 and come one after the other; got {self.blocks!r:.60}.")

        if not 0 <= self.first < _MOST or self.blocks[-1] >= _MOST:
            raise InputError(f"{self.name} has more rows or inputs than a store can have.")

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return self.blocks[-1]


def write_shard(folder: Path, name: str, tensors: Mapping[str, Tensor], first: int) -> Shard:
    """Write a shard, whole or not at all; it outlasts a power cut once `files.made_lasting` was called.

    Args:
        folder: of the store.
        name: of the file.
        tensors: `state.<depth>`, `sequence` and others, of equally many rows; an input's rows lie together, and inputs
            are counted from the shard's first.
        first: number of that in the store.

    Raises:
        StorageError: the disk is full, or the folder is not to be written to.
    """
    plain = {each: tensor.detach().cpu().contiguous() for each, tensor in tensors.items()}
    row = sum(tensor[:1].nbytes for tensor in plain.values())
    blocks = _cuts(plain["sequence"], max(BLOCK_ROWS, BLOCK_BYTES // max(1, row)))
    digests = {each: _digests(tensor, blocks) for each, tensor in plain.items()}
    header = json.dumps({"blocks": blocks, "digests": digests})
    path = folder / name
    size = sum(tensor.nbytes for tensor in plain.values()) + len(header)
    with replacing(path, needed=size, lasting=False) as temporary:
        save_file(plain, temporary, metadata={_HEADER: header})
    digest = xxhash.xxh3_128(header.encode()).hexdigest()
    return Shard(name, tuple(blocks), first, path.stat().st_size, digest)


def read_block(folder: Path, shard: Shard, block: int, names: Iterable[str]) -> dict[str, Tensor]:
    """Read a block of some of a shard's tensors.

    Raises:
        FileNotFoundError: the shard is gone.
        FileFormatError: it was cut short or changed.
        StorageError: the system does not let it be read.
    """
    path = folder / shard.name
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}, which the store's index names. Copy the store again, whole.")
    rows = slice(shard.blocks[block], shard.blocks[block + 1])
    try:
        with safe_open(path, framework="pt") as opened:
            digests = _block_digests(path, (opened.metadata() or {}).get(_HEADER, ""), shard.digest)
            tensors = {name: opened.get_slice(name)[rows] for name in names}
    except FileFormatError:
        raise
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise FileFormatError(
            f"{path} is not a whole shard ({error}). Copy it again, or delete the store and observe anew."
        ) from error
    for name, tensor in tensors.items():
        if _digest(tensor) != digests.get(name, {}).get(block):
            raise FileFormatError(
                f"{path} does not hold what was written to it: rows {rows.start} to {rows.stop - 1} of {name} differ. "
                "A bit flipped, or somebody changed a part. Copy it again from where it is whole, or observe anew."
            )
    return tensors


@lru_cache(maxsize=_PARSED)
def _block_digests(path: Path, header: str, digest: str) -> dict[str, dict[int, str]]:
    """Return the digests of all blocks; parsed once a shard, as often as its header stays the same."""
    if xxhash.xxh3_128(header.encode()).hexdigest() != digest:
        raise FileFormatError(
            f"{path} is not the shard that the store's index names: its header differs. Copy the store again, whole."
        )
    with rebuilding(path, "a shard"):
        return {name: dict(enumerate(each)) for name, each in json.loads(header)["digests"].items()}


def _cuts(sequence: Int[Tensor, " row"], least: int) -> list[int]:
    """Cut rows into blocks of so many or more that end where an input does."""
    ends = [*(torch.nonzero(sequence.diff())[:, 0] + 1).tolist(), len(sequence)]
    cuts = [0]
    for end in ends:
        if end - cuts[-1] >= least or end == len(sequence):
            cuts.append(end)
    # A short rest is joined to the block before it.
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < least // 2:
        del cuts[-2]
    return cuts


def _digests(tensor: Tensor, blocks: Sequence[int]) -> list[str]:
    return [_digest(tensor[start:stop]) for start, stop in itertools.pairwise(blocks)]


def _digest(rows: Tensor) -> str:
    start = f"{rows.dtype} {tuple(rows.shape)}".encode()
    digest = xxhash.xxh3_64(start)
    digest.update(rows.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
