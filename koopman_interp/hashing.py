"""Hashes of 64 bits, many at a time: which inputs are the same, and which of them a draw takes.

Vectorised, and no defence against anyone who looks for a collision: among n inputs that differ, two agree by chance
with a probability near n²/2⁶⁵. A draw by hash depends on the inputs and the seed alone, not on the order of the inputs.
Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ over the golden ratio: its multiples are spread evenly."""
MOST_COUNTED = 100_000
"""Inputs of which a share is drawn to the exact number; of more, each is drawn for itself."""
_WORDS = 1 << 15
"""Words that are mixed at a time, so that they stay in the processor's cache."""


def mixed(words: UInt64[np.ndarray, "*axes"]) -> UInt64[np.ndarray, "*axes"]:
    """Map words one to one so that a change of any bit changes about half of all bits.

    It is the finaliser of splitmix64 (Steele, Lea & Flood, OOPSLA 2014).
    """
    words = words ^ (words >> 30)
    words *= 0xBF58476D1CE4E5B9
    words ^= words >> 27
    words *= 0x94D049BB133111EB
    words ^= words >> 31
    return words


def row_digests(rows: Shaped[Tensor, " row *axes"]) -> Int[Tensor, " row"]:
    """Digest each row of a tensor: its bytes, its shape and its dtype.

    It is the sum of the mixed words of a row, each mixed with a key of its place.
    """
    rows = rows.detach().cpu()
    count, size = len(rows), math.prod(rows.shape[1:])
    data = rows.reshape(count, size).contiguous().view(torch.uint8).numpy()
    words = max(1, -(-data.shape[1] // 8))
    start = _key(f"{rows.dtype} {tuple(rows.shape[1:])}")
    keys = mixed(start + _GOLDEN * np.arange(1, words + 1, dtype=np.uint64))
    sums = np.empty(count, dtype=np.uint64)
    chunk = max(1, _WORDS // words)
    padded = np.zeros((chunk, 8 * words), dtype=np.uint8)
    for at in range(0, count, chunk):
        part = data[at : at + chunk]
        padded[: len(part), : part.shape[1]] = part
        sums[at : at + chunk] = mixed(padded[: len(part)].view(np.uint64) ^ keys).sum(axis=1, dtype=np.uint64)
    return _signed(mixed(sums + start))


def token_digests(
    ids: Int[Tensor, "input position"], real: Bool[Tensor, "input position"] | None = None
) -> Int[Tensor, " input"]:
    """Digest sequences of token ids, so that padding and its side make no difference.

    Args:
        ids: one sequence a row.
        real: False at padding; None where there is none.

    Returns:
        One digest a sequence, of its real tokens in order.
    """
    words = _unsigned(ids)
    kept = np.ones(words.shape, dtype=bool) if real is None else real.detach().cpu().numpy()
    start = _key("tokens")
    keys = mixed(start + _GOLDEN * np.arange(words.shape[1] + 1, dtype=np.uint64))
    sums = np.empty(len(words), dtype=np.uint64)
    chunk = max(1, _WORDS // max(1, words.shape[1]))
    for at in range(0, len(words), chunk):
        rows = slice(at, at + chunk)
        terms = mixed(words[rows] ^ keys[kept[rows].cumsum(axis=1)])
        sums[rows] = terms.sum(axis=1, where=kept[rows], dtype=np.uint64)
    return _signed(mixed(sums + start))


def joined_digests(parts: Iterable[tuple[str, Int[Tensor, " row"]]]) -> Int[Tensor, " row"]:
    """Digest rows that have several named parts, from the digests of the parts; the order of the parts is the same.

    A row with one part alone has another digest than the part.
    """
    sums = sum(mixed(_unsigned(digests) ^ mixed(_key(name))) for name, digests in parts)
    assert isinstance(sums, np.ndarray), "nothing to join"
    return _signed(mixed(sums))


def group_digests(
    rows: Int[Tensor, " row"], group: Int[Tensor, " row"], place: Int[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """Digest each group of rows from the digests of its rows, whatever their order, and hand it to each of them.

    Args:
        rows: digest of each row.
        group: number of the group that it is in.
        place: where in its group it stands.

    Returns:
        The digest of its group, one a row.
    """
    terms = _signed(mixed(_unsigned(rows) ^ mixed(_GOLDEN * (_unsigned(place) + 1))))
    numbers, index = torch.unique(group.cpu(), return_inverse=True)
    sums = torch.zeros(len(numbers), dtype=torch.int64).index_add_(0, index, terms)
    return _signed(mixed(_unsigned(sums)))[index]


def drawn(digests: Int[Tensor, " input"], count: int, seed: int) -> Int[Tensor, " drawn"]:
    """Draw some of the distinct digests: those whose hash under the seed is smallest.

    Args:
        digests: in any order, each as often as it likes.
        count: how many to draw; no more than there are distinct ones.
        seed: of the draw.

    Returns:
        The digests drawn, ascending.
    """
    inputs = torch.unique(digests.cpu())
    return inputs[torch.from_numpy(np.sort(_hashes(inputs, seed).argsort()[:count]))]


@dataclass(frozen=True)
class Draw:
    """Some of all inputs there could be: those whose hash under a seed lies below a bound.

    Attributes:
        seed: of the draw; a name is one that no number is.
        bound: of the hashes, up to 2⁶⁴.
    """

    seed: int | str
    bound: int

    @classmethod
    def of(cls, inputs: Int[Tensor, " input"], share: float, seed: int | str) -> Draw:
        """Draw a share of inputs: of up to 100,000 the exact number, of more each with that probability.

        So neither the order of the inputs, nor who draws which of them, makes a difference.

        Args:
            inputs: distinct digests: all of them, or more than 100,000.
            share: of them to draw.
            seed: of the draw.
        """
        if len(inputs) > MOST_COUNTED:
            return cls(seed, int(share * 2**64))
        hashes = np.sort(_hashes(inputs, seed))
        count = round(share * len(inputs))
        return cls(seed, int(hashes[count]) if count < len(hashes) else 2**64)

    def __call__(self, digests: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Mark the inputs drawn."""
        if self.bound >= 2**64:
            return torch.ones(len(digests), dtype=torch.bool)
        return torch.from_numpy(_hashes(digests.cpu(), self.seed) < np.uint64(self.bound))

    def rest(self, digests: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
        """Mark the inputs not drawn."""
        return ~self(digests)


def in_share(
    digests: Int[Tensor, " row"], position: Int[Tensor, " row"], share: float, use: str = "share"
) -> Bool[Tensor, " row"]:
    """Mark a share of rows, drawn by the digest of their input and where in it they stand; apart for each use."""
    if share >= 1:
        return torch.ones(len(digests), dtype=torch.bool)
    return torch.from_numpy(row_hashes(digests, position, use) < np.uint64(int(share * 2**64)))


def row_hashes(
    digests: Int[Tensor, " row"], position: Int[Tensor, " row"], use: str = "share"
) -> UInt64[np.ndarray, " row"]:
    """Hash rows by the digest of their input and where in it they stand, evenly over all words."""
    places = mixed(_GOLDEN * (_unsigned(position) + 1))
    return mixed(_unsigned(digests) ^ places ^ _key(use))


def generator_of(text: str) -> torch.Generator:
    """Return a generator of a text's own, so mixed that texts that are nearly the same share no stream."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _hashes(digests: Int[Tensor, " input"], seed: int | str) -> UInt64[np.ndarray, " input"]:
    return mixed(_unsigned(digests) ^ mixed(_key(f"draw {seed}")))


def tensor_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Digest the names and bytes of tensors: 128 bits of BLAKE2b, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(text: str) -> UInt64[np.ndarray, "1"]:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), dtype=np.uint64)


def _signed(words: UInt64[np.ndarray, " row"]) -> Int[Tensor, " row"]:
    return torch.from_numpy(words.view(np.int64))


def _unsigned(words: Int[Tensor, "*axes"]) -> UInt64[np.ndarray, "*axes"]:
    return words.detach().cpu().long().contiguous().numpy().view(np.uint64)
