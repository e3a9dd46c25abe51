"""Lenses: maps from the state at any depth to a state at the last, from which the model's own head reads.

    Koopman lens     D(K^n E(x)): the motion goes on linearly in the observables; one operator for all depths
    logit lens       x itself (nostalgebraist 2020)
    affine lens      an affine map for each depth, by least squares or trained on the output's divergence: so
                     trained it is the tuned lens (Belrose et al., arXiv 2303.08112)

At the last depth each is the state itself, so that there a lens says what the model says. A lens of another package
is brought to this form by the adapter of the model's framework.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from koopman_interp.analysis.substitutes.affine import AffineMap, AffineSums
from koopman_interp.analysis.substitutes.stand_ins import StandIn, in_context
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.hashing import tensor_digest
from koopman_interp.hosts.fingerprint import HostFingerprint
from koopman_interp.hosts.protocol import Host
from koopman_interp.sequences import Sequences
from koopman_interp.sources.opening import Rows, parts_of
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


def lens_of(given: object, host: Host, sites: tuple[str, ...], skip: int) -> Lens:
    """Return a lens as it is; bring one of another package to this form, where the host's adapter knows it.

    Args:
        given: the lens.
        host: the model.
        sites: the depths that it is to be looked through from.
        skip: leading places of each sequence that are left out.

    Raises:
        InputError: it is no lens, or is not of these sites and places.
        HostMismatchError: it belongs to another model.
    """
    if isinstance(given, Lens):
        _require_own(given, host, sites)
        return given
    adapted = getattr(host, "adapted_lens", None)
    found = None if adapted is None else adapted(given, sites, skip)
    if found is None:
        raise InputError(
            f"Expected a lens: LogitLens, AffineLens, KoopmanLens(another surrogate, its name), or for a model of "
            f"TransformerLens its JacobianLens; got {type(given).__name__}."
        )
    lens: Lens = found
    return lens


def _require_own(lens: Lens, host: Host, sites: tuple[str, ...]) -> None:
    """Check that a lens that says what it is of is of this model and these sites."""
    if isinstance(lens, AffineLens):
        of_host, of_sites = lens.host, lens.sites
    elif isinstance(lens, KoopmanLens):
        of_host, of_sites = lens.koopman.config.host, lens.koopman.sites
    else:
        return
    of_host.require(HostFingerprint.of(host), "lens")
    if of_sites != sites:
        raise InputError(
            f"The {lens.name} has the sites {', '.join(of_sites)}; the surrogate has {', '.join(sites)}. Fit it on the "
            "same ones."
        )


@dataclass(frozen=True, eq=False)
class KoopmanLens:
    """A surrogate as a lens."""

    koopman: KoopmanAutoencoder
    name: str = "Koopman lens"

    @property
    def parameters(self) -> int:
        """Encoder, K and decoder, and the normalisation of each depth; a basis that depths share counts once."""
        koopman = self.koopman
        parts = (koopman.encoder, koopman.operator, koopman.decoder)
        trained = [parameter for part in parts for parameter in part.parameters()]
        depths = range(len(koopman.sites))
        means = [koopman.normalization.maps(depth)[0] for depth in depths]
        bases = [koopman.normalization.maps(depth)[1] for depth in depths]
        of_all = sum(tensor.numel() for tensor in [*trained, *means])
        coordinates = koopman.config.coordinates
        if coordinates.basis == "shared" and not coordinates.aligned:
            return of_all + bases[0].numel() + len(depths)  # and a size for each
        return of_all + sum(basis.numel() for basis in bases)

    def at(self, depth: int) -> StandIn:
        """Return the surrogate's motion from a depth to the last."""

        def advance(rows: Tensor, sequences: Sequences | None) -> Tensor:
            mean, _, _ = self.koopman.normalization.maps(depth)
            return self.koopman.predict(rows.to(mean.device), depth, sequences=sequences).to(rows.device)

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
    def fit(cls, trajectories: Rows | Iterable[Trajectories]) -> AffineLens:
        """Fit each map by least squares on the last state.

        Args:
            trajectories: rows in memory, or shards of them, as `Tap.stream` gives them; read once, one at a time, for
                the lens of all rows together.

        Raises:
            InputError: there are none, or shards differ in sites or leave out other leading places.
            HostMismatchError: shards are of different models.
        """
        first: Trajectories | None = None
        sums: list[AffineSums] = []
        for part in parts_of(trajectories):
            if first is None:
                first = replace(part[:0], states=tuple(state[:0].clone() for state in part.states))  # not its rows
                sums = [AffineSums(width, part.widths[-1], part.states[0].device) for width in part.widths[:-1]]
            first.host.require(part.host, "first shard")
            if (part.sites, part.widths, part.skip) != (first.sites, first.widths, first.skip):
                raise InputError(
                    f"Shards of one lens have the same sites and skip; got {', '.join(part.sites)}, skip={part.skip}, "
                    f"after {', '.join(first.sites)}, skip={first.skip}."
                )
            for each, state in zip(sums, part.states, strict=False):
                each.update(state, part.states[-1])
        if first is None or not sums[0].rows:
            raise InputError("There are no rows to fit a lens on. Observe some inputs.")
        maps = tuple(each.solved() for each in sums)
        return cls(maps, first.sites, first.host, first.skip, first.layout, "affine lens, least squares")

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
        with rebuilding(path, "a lens"):
            maps = tuple(
                AffineMap(*(tensors[f"{part}.{depth}"] for part in _PARTS)) for depth in range(len(header["sites"]) - 1)
            )
            host = HostFingerprint(**header["host"])
            return as_annotated(
                cls(maps, tuple(header["sites"]), host, header["skip"], header["layout"], header["name"])
            )

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
