"""LowRankMap: the affine map `z → z − (z W − o) Aᵀ` of rows, which is all that an edit does.

Every product costs observables × rank a row; nothing here makes a dense matrix except `matrix`, which is one. Knows
nothing of operators, depths or how the factors are solved for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.errors import InputError

_SINGULAR = 1e-9
"""Smallest singular value of `I − AᵀW`, relative to the largest, below which the map has no inverse."""


@dataclass(frozen=True, eq=False)
class LowRankMap:
    """`P: z → z − (z W − o) Aᵀ`, the identity but for a few directions.

    Attributes:
        directions: A, `[observable, rank]`, along which rows are moved; the strength is in them.
        readers: W, `[observable, rank]`, by which rows are read.
        offset: o, `[rank]`, what the readers give where nothing is to be moved.
    """

    directions: Float[Tensor, "observable rank"]
    readers: Float[Tensor, "observable rank"]
    offset: Float[Tensor, " rank"]

    def __call__(self, z: Float[Tensor, "*batch observable"]) -> Float[Tensor, "*batch observable"]:
        """Map rows, on their device and in their dtype."""
        return z - self.read(z) @ self.directions.to(z).T

    def read(self, z: Float[Tensor, "*batch observable"]) -> Float[Tensor, "*batch rank"]:
        """Return the readings `z W − o`, by which each row is moved along each direction."""
        return z @ self.readers.to(z) - self.offset.to(z)

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.directions.shape[1]

    @property
    def matrix(self) -> Float[Tensor, "observable observable"]:
        """The linear part `I − A Wᵀ`, which acts on columns: edited dynamics are `K' = K P`."""
        return torch.eye(len(self.directions)).to(self.directions) - self.directions @ self.readers.T

    @property
    def reversal(self) -> Float[Tensor, "rank rank"]:
        """The T with which directions `A T` in place of A take this map back: `T = −(I − WᵀA)⁻¹`.

        Raises:
            InputError: the map is singular, as each projection is.
        """
        # A mapped row reads r' = r (I − AᵀW), so z = z' + r' (I − AᵀW)⁻¹ Aᵀ.
        mixed = torch.eye(self.rank).to(self.readers) - self.readers.T @ self.directions
        values = torch.linalg.svdvals(mixed)
        if self.rank and values[-1] <= _SINGULAR * max(float(values[0]), 1.0):
            raise InputError("This map projects, so rows have no way back: it has no inverse.")
        return -torch.linalg.inv(mixed)

    @property
    def inverse(self) -> LowRankMap:
        """The map that takes rows back: `map.then(map.inverse)` changes nothing.

        Raises:
            InputError: the map is singular, as each projection is.
        """
        return replace(self, directions=self.directions @ self.reversal)

    def then(self, later: LowRankMap) -> LowRankMap:
        """Compose: this map first, then another. The ranks add up.

        What the later one reads is moved by this one: `r₂ = z W₂ − r₁ A₁ᵀW₂ − o₂`.
        """
        met = self.directions.T @ later.readers
        return LowRankMap(
            torch.cat([self.directions, later.directions], 1),
            torch.cat([self.readers, later.readers - self.readers @ met], 1),
            torch.cat([self.offset, later.offset - self.offset @ met]),
        )

    def scaled(self, strength: float) -> LowRankMap:
        """Return the map with its displacements multiplied; 0 is the identity."""
        return replace(self, directions=strength * self.directions)

    def to(self, like: Tensor) -> LowRankMap:
        """Return the map on the device and in the dtype of a tensor."""
        return LowRankMap(self.directions.to(like), self.readers.to(like), self.offset.to(like))

    def push(self, covariance: Float[Tensor, "observable observable"]) -> Float[Tensor, "observable observable"]:
        """Return the covariance `P Σ Pᵀ` of mapped rows, from that of the rows."""
        half = covariance - (covariance @ self.readers) @ self.directions.T
        return half - self.directions @ (self.readers.T @ half)
