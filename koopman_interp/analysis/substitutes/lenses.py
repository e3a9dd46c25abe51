"""Lenses: maps from the state at any depth to a state at the last, from which the host's own head reads.

    Koopman lens     D(K^n E(x)): the motion goes on linearly in the observables; one operator for all depths
    logit lens       x itself (nostalgebraist 2020)
    affine lens      an affine map for each depth, by least squares or trained on the output's divergence: so
                     trained it is the tuned lens (Belrose et al., arXiv 2303.08112)

At the last depth each is the state itself, so that there a lens says what the host says. Knows nothing of hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from koopman_interp.analysis.substitutes.affine import AffineMap
from koopman_interp.analysis.substitutes.stand_ins import StandIn
from koopman_interp.errors import InputError
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories


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
        trained = [one for part in (koopman.encoder, koopman.operator, koopman.decoder) for one in part.parameters()]
        last = len(koopman.sites) - 1
        maps = [part for depth in range(last) for part in koopman.normalization.maps(depth)[:2]]
        mean, _, inverse = koopman.normalization.maps(last)
        return sum(tensor.numel() for tensor in [*trained, *maps, mean, inverse])

    def at(self, depth: int) -> StandIn:
        """Return the surrogate's motion from a depth to the last."""

        def advance(rows: Tensor) -> Tensor:
            return self.koopman.predict(rows, depth)

        return advance if depth < len(self.koopman.sites) - 1 else _unchanged


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


@dataclass(frozen=True, eq=False)
class AffineLens:
    """An affine map for each depth but the last.

    Attributes:
        maps: from each depth to the last.
        name: what tables call it.
    """

    maps: tuple[AffineMap, ...]
    name: str = "affine lens"

    @classmethod
    def fit(cls, trajectories: Trajectories) -> AffineLens:
        """Fit each map by least squares on the last state."""
        *before, last = trajectories.states
        return cls(tuple(AffineMap.fit(state, last) for state in before), "affine lens, least squares")

    @property
    def parameters(self) -> int:
        """Weights and biases of all depths."""
        return sum(one.parameters for one in self.maps)

    def at(self, depth: int) -> StandIn:
        """Return the map of a depth; at the last, the identity."""
        if not 0 <= depth <= len(self.maps):
            raise InputError(f"This lens has depths 0 to {len(self.maps)}; got {depth}.")
        return self.maps[depth] if depth < len(self.maps) else _unchanged


def _unchanged(rows: Tensor) -> Tensor:
    return rows
