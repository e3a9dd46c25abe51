"""Shards of a store: some thousand rows in one safetensors file, a tensor a depth, read block by block.

Each block of each tensor has a digest in the file's header, and the header one in the store's index, so that whatever
is read is known to be what was written, without reading the rest.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import xxhash
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import storage_error, unreadable

BLOCK_ROWS, BLOCK_BYTES = 1024, 2**22
"""Rows of a block, at least, and bytes: what is read at once is to be large beside what it costs to begin."""
_HEADER, _MOST = "koopman_interp_shard", 2**62
_PARSED = 256
"""Headers that are kept as they were parsed, of some ten kB each."""


_HOSTILE = (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError, MemoryError)
"""What shows where a header says what cannot be."""


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


def write_shard(folder: Path, through: Path, name: str, tensors: Mapping[str, Tensor], first: int) -> Shard:
    """Write a shard, whole or not at all; it outlasts a power cut once `files.made_lasting` was called.

    Args:
        folder: of the store.
        through: another one on the same disk, where it is while it is written.
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
    kinds = {each: (str(tensor.dtype).removeprefix("torch."), *tensor.shape[1:]) for each, tensor in plain.items()}
    header = json.dumps({"blocks": blocks, "digests": digests, "kinds": kinds})
    path = folder / name
    # Through a folder, since safetensors puts a temporary file of its own beside the one that it writes.
    size, temporary = sum(tensor.nbytes for tensor in plain.values()) + len(header), through / name
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, temporary, metadata={_HEADER: header})
        temporary.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise storage_error(path, size, error) from error
    with path.open("rb") as opened:
        digest = xxhash.xxh3_128_hexdigest(_header(opened, path.stat().st_size))
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
    start, stop = shard.blocks[block], shard.blocks[block + 1]
    try:
        with path.open("rb", buffering=0) as opened:
            status = os.fstat(opened.fileno())
            layout = _layout(path, status.st_mtime_ns, status.st_size, shard.digest)
            read = {name: layout[name].read(opened, start, stop, status.st_size) for name in names}
        differing = [name for name, (_, digest) in read.items() if layout[name].digests[block] != digest]
    except FileFormatError:
        raise
    except PermissionError as error:
        raise unreadable(path, error) from error
    except _HOSTILE as error:
        raise _not_whole(path, error) from error
    if differing:
        raise FileFormatError(
            f"{path} does not hold what was written to it: rows {start} to {stop - 1} of {', '.join(differing)} "
            "differ. A bit flipped, or somebody changed a part. Copy it again from where it is whole, or observe anew."
        )
    return {name: tensor for name, (tensor, _) in read.items()}


class _Laid(NamedTuple):
    """Where a tensor lies in a shard's file.

    Attributes:
        shape: of a row.
        dtype: of its numbers.
        begin: its first byte.
        digests: of its blocks.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    digests: list[str]

    def read(self, opened: FileIO, start: int, stop: int, size: int) -> tuple[Tensor, str]:
        """Read some rows, with their digest: into memory of their own, at twice the rate of a mapped file."""
        row = math.prod(self.shape) * self.dtype.itemsize
        if self.begin + stop * row > size:
            raise OSError("it is too short")
        data = np.empty((stop - start) * row, dtype=np.uint8)
        opened.seek(self.begin + start * row)
        if opened.readinto(data.data) != len(data):
            raise OSError("it is too short")
        tensor = torch.from_numpy(data).view(self.dtype).view(stop - start, *self.shape)
        return tensor, xxhash.xxh3_64_hexdigest(data.data)


@lru_cache(maxsize=_PARSED)
def _layout(path: Path, changed: int, size: int, digest: str) -> dict[str, _Laid]:  # noqa: ARG001 (keys of the cache)
    """Read where the tensors of a shard lie; once, as long as the file stays the same.

    It is what the format says (github.com/huggingface/safetensors): the length of a JSON header, the header, numbers.
    """
    try:
        with path.open("rb") as opened:
            header = _header(opened, size)
        if xxhash.xxh3_128_hexdigest(header) != digest:
            raise FileFormatError(
                f"{path} is not the shard that the store's index names: its header differs. Copy the store again."
            )
        whole = json.loads(header[8:])
        said = json.loads(whole["__metadata__"][_HEADER])
        return {
            name: _Laid(
                tuple(shape),
                getattr(torch, dtype),
                len(header) + whole[name]["data_offsets"][0],
                said["digests"][name],
            )
            for name, (dtype, *shape) in said["kinds"].items()
        }
    except (FileFormatError, PermissionError):
        raise
    except _HOSTILE as error:
        raise _not_whole(path, error) from error


def _header(opened: BinaryIO, size: int) -> bytes:
    """Read the header of a safetensors file, with its length before it."""
    length = opened.read(8)
    if int.from_bytes(length, "little") > size:
        raise OSError("it is too short")
    return length + opened.read(int.from_bytes(length, "little"))


def _not_whole(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path} is not a whole shard ({error}). Copy it again, or delete the store and observe anew."
    )


def _cuts(sequence: Int[Tensor, " row"], least: int) -> list[int]:
    """Cut rows into blocks of so many or more that end where an input does; a short rest goes to the block before."""
    rows = len(sequence)
    ends = torch.cat([torch.nonzero(sequence.diff())[:, 0] + 1, torch.tensor([rows])])
    cuts = [0]
    while cuts[-1] < rows:
        cuts.append(int(ends[min(int(torch.searchsorted(ends, cuts[-1] + least)), len(ends) - 1)]))
    if len(cuts) > 2 and cuts[-1] - cuts[-2] < least // 2:
        del cuts[-2]
    return cuts


def _digests(tensor: Tensor, blocks: Sequence[int]) -> list[str]:
    data = tensor.view(-1).view(torch.uint8).numpy()
    size = len(data) // max(1, len(tensor))
    return [
        xxhash.xxh3_64_hexdigest(data[start * size : stop * size].data) for start, stop in itertools.pairwise(blocks)
    ]
