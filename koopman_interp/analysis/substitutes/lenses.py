"""Lenses: maps from the state at any depth to a state at the last, from which the model's own head reads.

    Koopman lens     D(K^n E(x)): the motion goes on linearly in the observables; one operator for all depths
    logit lens       x itself (nostalgebraist 2020)
    affine lens      an affine map for each depth, by least squares or trained on the output's divergence: so
                     trained it is the tuned lens (Belrose et al., arXiv 2303.08112)

At the last depth each is the state itself, so that there a lens says what the model says. Knows nothing of hosts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.analysis.substitutes.stand_ins import StandIn, in_context
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import read_tensors, write_tensors
from koopman_interp.hashing import tensor_digest
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.sequences import Sequences
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

KIND = "affine lens"
_PARTS = ("centre", "weight", "bias")


@runtime_checkable
class Lens(Protocol):
    """A map from each depth to the last."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def parameters(self) -> int:
        """Numbers that were fitted to data."""
        ...

    def at(self, depth: int) -> StandIn | None:
        """Return the map from rows at a depth to rows at the last; None where there is none."""
        ...


@dataclass(frozen=True, eq=False)
class KoopmanLens:
    """A surrogate as a lens."""

    koopman: KoopmanAutoencoder
    name: str = "Koopman lens"

    @property
    def parameters(self) -> int:
        """Encoder, K and decoder, and the normalisation of each depth."""
        koopman = self.koopman
        parts = (koopman.encoder, koopman.operator, koopman.decoder)
        trained = [parameter for part in parts for parameter in part.parameters()]
        last = len(koopman.sites) - 1
        maps = [part for depth in range(last) for part in koopman.normalization.maps(depth)[:2]]
        mean, _, inverse = koopman.normalization.maps(last)
        return sum(tensor.numel() for tensor in [*trained, *maps, mean, inverse])

    def at(self, depth: int) -> StandIn:
        """Return the surrogate's motion from a depth to the last."""

        def advance(rows: Tensor, sequences: Sequences | None) -> Tensor:
            return self.koopman.predict(rows, depth, sequences=sequences)

        return in_context(self.koopman, advance) if depth < len(self.koopman.sites) - 1 else _unchanged


@dataclass(frozen=True)
class LogitLens:
    """The state itself in place of the last.

    Attributes:
        widths: of the state at each depth.
    """

    widths: tuple[int, ...]
    name: str = "logit lens"
    parameters: int = 0

    def at(self, depth: int) -> StandIn | None:
        """Return the identity, where the width is the last one's."""
        return _unchanged if self.widths[depth] == self.widths[-1] else None


@dataclass(frozen=True, eq=False, repr=False)
class AffineLens:
    """An affine map for each depth but the last.

    Attributes:
        maps: from each depth to the last.
        sites: of its depths, the last included.
        host: fingerprint of the model that it is for.
        skip: leading places of each sequence that it was not fitted on.
        layout: names of the axes of the states in the model, where `attach` was told.
        name: what tables call it.
    """

    maps: tuple[AffineMap, ...]
    sites: tuple[str, ...]
    host: HostFingerprint
    skip: int = 0
    layout: str | None = None
    name: str = "affine lens"

    def __post_init__(self) -> None:
        if len(self.sites) != len(self.maps) + 1:
            raise InputError(
                f"Expected {len(self.maps) + 1} sites, one for each map and the last; got {len(self.sites)}."
            )

    def __repr__(self) -> str:
        return f"AffineLens({self.name}, {len(self.sites)} depths from {self.sites[0]!r} to {self.sites[-1]!r})"

    @classmethod
    def fit(cls, trajectories: Trajectories) -> AffineLens:
        """Fit each map by least squares on the last state."""
        *before, last = trajectories.states
        maps = tuple(AffineMap.fit(state, last) for state in before)
        t = trajectories
        return cls(maps, t.sites, t.host, t.skip, t.layout, "affine lens, least squares")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        header = {name: getattr(self, name) for name in ("sites", "skip", "layout", "name")}
        write_tensors(path, dict(self._tensors()), kind=KIND, header=header | {"host": asdict(self.host)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AffineLens:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind=KIND)
        try:
            maps = tuple(
                AffineMap(*(tensors[f"{part}.{depth}"] for part in _PARTS)) for depth in range(len(header["sites"]) - 1)
            )
            host = HostFingerprint(**header["host"])
            return cls(maps, tuple(header["sites"]), host, header["skip"], header["layout"], header["name"])
        except KeyError as error:
            raise FileFormatError(f"{path} lacks parts of a lens. Write it again from its source.") from error

    def digest(self) -> str:
        """Digest all maps."""
        return tensor_digest(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for depth, each in enumerate(self.maps):
            for part in _PARTS:
                yield f"{part}.{depth}", getattr(each, part)

    @property
    def parameters(self) -> int:
        """Weights and biases of all depths."""
        return sum(each.parameters for each in self.maps)

    def at(self, depth: int) -> StandIn:
        """Return the map of a depth; at the last, the identity."""
        if not 0 <= depth <= len(self.maps):
            raise InputError(f"This lens has depths 0 to {len(self.maps)}; got {depth}.")
        return self.maps[depth] if depth < len(self.maps) else _unchanged


def _unchanged(rows: Tensor) -> Tensor:
    return rows
