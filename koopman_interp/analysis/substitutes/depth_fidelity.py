"""Figures of a surrogate at each depth of a span, beside what is free, gathered batch by batch.

Costs, a batch and depth: each stand-in from the first depth, and one encoding. Holds one batch of states, and two
numbers a row for the quantiles, of a million rows at most. Knows nothing of hosts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from koopman_interp.analysis.substitutes.stand_ins import SURROGATE, Contextual, StandIn, StandIns, in_context
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.sequences import Sequences
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

QUANTILES = (0.05, 0.5, 0.95)

MISLEADING = 10.0
"""How many times the whole FVU the typical coordinate's or row's may be before it is said."""
UNEXPLAINED = 0.05
"""FVU of a typical coordinate or row from which on it matters."""

_MOST_RATIOS = 2**20

Picked = slice | Bool[Tensor, " row"]


@dataclass(frozen=True)
class DepthFidelity:
    """Figures at one depth, on rows that the surrogate was not fitted on.

    Attributes:
        site: the site.
        fvu: fraction of the state's variance that each predictor from the source leaves unexplained; None where a
            predictor does not exist (the identity between different widths).
        linearity_residual: `‖z − z_before Kᵀ‖² / ‖z − mean‖²` from the depth before; None at the source.
        isometry: quantiles (5, 50, 95 %) of `‖z_i − z_j‖ / ‖x_i − x_j‖` over rows and the rows before them.
        typical_coordinate: median over the coordinates that vary of each one's own FVU, of the surrogate: the whole
            FVU is of the few coordinates that are large, where there are such.
        typical_row: median over rows of the squared error, over the median squared distance from the mean that the
            surrogate was fitted with: the whole FVU is of the few rows that lie far out, where there are such.
    """

    site: str
    fvu: dict[str, float | None]
    linearity_residual: float | None
    isometry: tuple[float, ...]
    typical_coordinate: float
    typical_row: float

    @property
    def misleading(self) -> bool:
        """Whether the surrogate's FVU speaks for a few coordinates or rows and hardly for the others."""
        typical, whole = max(self.typical_coordinate, self.typical_row), self.fvu[SURROGATE]
        return whole is not None and typical > max(UNEXPLAINED, MISLEADING * whole)


class DepthSums:
    """Figures at each depth of a span, gathered batch by batch.

    Args:
        koopman: the surrogate.
        first: depth of the source.
        last: depth of the target.
        stand_ins: what to judge it beside.

    Attributes:
        rows: how many rows were gathered.
    """

    def __init__(self, koopman: KoopmanAutoencoder, first: int, last: int, stand_ins: StandIns) -> None:
        self.rows = 0
        self._names = stand_ins.names
        self._depths = [
            _Depth(koopman, depth, _from_first(koopman, stand_ins, first, depth)) for depth in range(first, last + 1)
        ]

    @torch.no_grad()
    def add(
        self,
        states: Sequence[Float[Tensor, "row _"]],
        judged: Bool[Tensor, " row"] | None = None,
        sequences: Sequences | None = None,
    ) -> None:
        """Judge the rows of one batch, given at each depth of the span.

        Args:
            states: rows at each depth.
            judged: which of them; None is all. The others are looked back on, where the surrogate does.
            sequences: how they follow each other, for a surrogate that looks back.

        Raises:
            NonFiniteError: a state is NaN or infinite.
        """
        if judged is not None and sequences is None:
            states, judged = [state[judged] for state in states], None
        some: Picked = slice(None) if judged is None else judged
        if not len(states[0][some]):
            return
        self.rows += len(states[0][some])
        before: Tensor | None = None
        for depth, state in zip(self._depths, states, strict=True):
            before = depth.add(state, states[0], before, some, sequences)

    def figures(self) -> tuple[DepthFidelity, ...]:
        """Return the figures at each depth.

        Raises:
            InputError: there were fewer than two rows, or all are the same at a depth.
        """
        if self.rows < 2:
            raise InputError(f"Fidelity is judged on 2 held-out samples or more; got {self.rows}. Give more inputs.")
        return tuple(depth.figures(self._names) for depth in self._depths)


class _Depth:
    """Sums at one depth.

    Args:
        koopman: the surrogate.
        depth: its index.
        stand_ins: from the first depth of the span to this one, by name.
    """

    def __init__(self, koopman: KoopmanAutoencoder, depth: int, stand_ins: dict[str, StandIn]) -> None:
        self._koopman = koopman
        self._depth = depth
        self._site = koopman.sites[depth]
        self._stand_ins = stand_ins
        self._errors = dict.fromkeys(stand_ins, 0.0)
        self._states, self._observables = _Spread(), _Spread()
        self._by_coordinate = torch.zeros(koopman.config.widths[depth], dtype=torch.float64)
        self._by_row: list[tuple[Tensor, Tensor]] = []
        self._missed: float | None = None
        self._distances = _Distances()

    def add(
        self,
        state: Float[Tensor, "row width"],
        origin: Float[Tensor, "row _"],
        before: Float[Tensor, "some observable"] | None,
        some: Picked = slice(None),
        sequences: Sequences | None = None,
    ) -> Float[Tensor, "some observable"]:
        """Judge the rows of one batch.

        Args:
            state: at this depth.
            origin: at the first depth of the span.
            before: observables at the depth before, of the rows that are judged; None at the first.
            some: which rows are judged.
            sequences: how the rows follow each other, for a surrogate that looks back.

        Returns:
            The observables at this depth, of the rows that are judged.
        """
        koopman, exact = self._koopman, state[some].double()
        if not bool(torch.isfinite(exact.sum())) and not bool(torch.isfinite(exact).all()):
            raise NonFiniteError(
                f"Site {self._site!r} gave NaN or infinity. Check the held-out inputs, or run the model in a wider "
                "dtype."
            )
        self._states.add(exact)
        for name, stand_in in self._stand_ins.items():
            errors = (_moved(stand_in, origin, some, sequences) - exact).square()
            self._errors[name] += float(errors.sum())
            if name == SURROGATE:
                self._add_typical(errors, exact)
        state = state.to(koopman.normalization.maps(self._depth)[0].device)
        x = koopman.normalization.normalize(state, self._depth)
        z, x = koopman.lift(x, sequences)[some], x[some]
        if before is not None:
            advanced = koopman.operator.advance(before, koopman.steps(self._depth - 1, self._depth))
            self._missed = (self._missed or 0.0) + float((z - advanced).double().square().sum())
        self._observables.add(z.double())
        self._distances.add(z, x)
        return z

    def _add_typical(self, errors: Float[Tensor, "row width"], state: Float[Tensor, "row width"]) -> None:
        self._by_coordinate += errors.sum(0).cpu()
        if sum(len(rows) for rows, _ in self._by_row) < _MOST_RATIOS:
            mean = self._koopman.normalization.maps(self._depth)[0]
            self._by_row.append((errors.sum(1).cpu(), (state - mean.to(state)).square().sum(1).cpu()))

    def _typical(self) -> tuple[float, float]:
        """Return the FVU of the median coordinate and row; infinite where only the prediction varies."""
        spread = self._states.of_coordinates
        varying = spread > 0
        own = (self._by_coordinate / spread.clamp_min(torch.finfo(torch.float64).tiny))[varying]
        errors, distances = (torch.cat(parts).median() for parts in zip(*self._by_row, strict=True))
        return float(own.median()), float(errors / distances) if distances else math.inf

    def figures(self, names: Sequence[str]) -> DepthFidelity:
        """Return the figures; None for the stand-ins that do not exist here."""
        variance = self._states.squares
        if not variance:
            raise InputError(
                f"All {self._states.rows} held-out samples have the same state at {self._site!r}, so there is no "
                "variance to explain. Give other inputs, or start the span at a later site."
            )
        fvu = {name: self._errors[name] / variance if name in self._errors else None for name in names}
        spread = self._observables.squares
        residual = self._missed / spread if self._missed is not None and spread else None
        return DepthFidelity(self._site, fvu, residual, self._distances.quantiles(), *self._typical())


def _from_first(koopman: KoopmanAutoencoder, stand_ins: StandIns, first: int, depth: int) -> dict[str, StandIn]:
    """Return the stand-ins from the first depth that exist; at the first itself, what autoencoding leaves."""
    if depth > first:
        return {name: stand_in for name, stand_in in stand_ins.of(first, depth).items() if stand_in is not None}

    def autoencoded(rows: Tensor, sequences: Sequences | None) -> Tensor:
        device = koopman.normalization.maps(first)[0].device
        return koopman.decode(koopman.encode(rows.to(device), first, sequences), first).to(rows.device)

    return {SURROGATE: in_context(koopman, autoencoded)}


def _moved(stand_in: StandIn, rows: Tensor, some: Picked, sequences: Sequences | None) -> Tensor:
    """Return what a stand-in makes of some rows; one that looks back is given all of them."""
    if isinstance(stand_in, Contextual):
        assert sequences is not None, "a surrogate that looks back comes with the order of the rows"
        return stand_in.map(rows, sequences)[some]
    return stand_in(rows[some])


class _Spread:
    """Sum of squares about the mean, exactly zero where all rows are the same."""

    def __init__(self) -> None:
        self.rows = 0
        self._origin: Tensor | None = None
        self._sum = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, rows: Float[Tensor, "row _"]) -> None:
        if self._origin is None:
            self._origin = rows[0].clone()
        # Relative to some row, against cancellation where the mean is large beside the spread.
        moved = rows - self._origin
        self.rows += len(rows)
        self._sum = self._sum.to(moved) + moved.sum(0)
        self._squares = self._squares.to(moved) + moved.square().sum(0)

    @property
    def of_coordinates(self) -> Float[Tensor, " coordinate"]:
        """`Σ(x − mean)²` of each coordinate."""
        return (self._squares - self._sum.square() / self.rows).clamp_min(0).cpu()

    @property
    def squares(self) -> float:
        """`Σ‖x − mean‖²`."""
        return float(self.of_coordinates.sum())


class _Distances:
    """Distances of observables over those of normalised states, of each row and the one before, around in a circle."""

    def __init__(self) -> None:
        self._first: tuple[Tensor, Tensor] | None = None
        self._last: tuple[Tensor, Tensor] | None = None
        self._ratios: list[Tensor] = []
        self._count = 0

    def add(self, z: Float[Tensor, "row observable"], x: Float[Tensor, "row dimension"]) -> None:
        if self._last is None:
            self._first = z[:1].clone(), x[:1].clone()
        else:
            z, x = torch.cat([self._last[0], z]), torch.cat([self._last[1], x])
        self._last = z[-1:].clone(), x[-1:].clone()
        if self._count < _MOST_RATIOS:
            ratios = _ratios(z[1:] - z[:-1], x[1:] - x[:-1])
            self._count += len(ratios)
            self._ratios.append(ratios)

    def quantiles(self) -> tuple[float, ...]:
        """Return the 5, 50 and 95 % quantiles."""
        assert self._first is not None and self._last is not None
        around = _ratios(self._first[0] - self._last[0], self._first[1] - self._last[1])
        ratios = torch.cat([*self._ratios, around])[:_MOST_RATIOS]
        return tuple(torch.quantile(ratios, torch.tensor(QUANTILES, dtype=torch.float64)).tolist())


def _ratios(z: Tensor, x: Tensor) -> Float[Tensor, " row"]:
    return (z.norm(dim=1) / x.norm(dim=1).clamp_min(1e-12)).double().cpu()
