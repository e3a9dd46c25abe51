"""Figures of a surrogate at each depth of a span, beside what is free, gathered batch by batch.

Costs, a batch and depth: each stand-in from the first depth, and one encoding. Holds one batch of states, and two
numbers a row for the quantiles, of a million rows at most. Knows nothing of hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.analysis.substitutes.stand_ins import SURROGATE, StandIn, StandIns
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

QUANTILES = (0.05, 0.5, 0.95)

_MOST_RATIOS = 2**20


@dataclass(frozen=True)
class DepthFidelity:
    """Figures at one depth, on rows that the surrogate was not fitted on.

    Attributes:
        site: the site.
        fvu: fraction of the state's variance that each predictor from the source leaves unexplained; None where a
            predictor does not exist (the identity between different widths).
        linearity_residual: `‖z − z_before Kᵀ‖² / ‖z − mean‖²` from the depth before; None at the source.
        isometry: quantiles (5, 50, 95 %) of `‖z_i − z_j‖ / ‖x_i − x_j‖` over rows and the rows before them.
    """

    site: str
    fvu: dict[str, float | None]
    linearity_residual: float | None
    isometry: tuple[float, ...]


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
        self._koopman = koopman
        self._first = first
        self._names = stand_ins.names
        self._depths = [
            _OneDepth(depth, _from_first(koopman, stand_ins, first, depth)) for depth in range(first, last + 1)
        ]

    @torch.no_grad()
    def add(self, states: Sequence[Float[Tensor, "row _"]]) -> None:
        """Judge the rows of one batch, given at each depth of the span.

        Raises:
            NonFiniteError: a state is NaN or infinite.
        """
        if not len(states[0]):
            return
        self.rows += len(states[0])
        koopman, before = self._koopman, None
        device = koopman.normalization.maps(self._first)[0].device
        for one, state in zip(self._depths, states, strict=True):
            exact = state.double()
            if not bool(torch.isfinite(exact.sum())) and not bool(torch.isfinite(state).all()):
                raise NonFiniteError(
                    f"Site {koopman.sites[one.depth]!r} gave NaN or infinity. Check the held-out inputs, or run the "
                    "model in a wider dtype."
                )
            one.states.add(exact)
            for name, stand_in in one.stand_ins.items():
                one.errors[name] = one.errors.get(name, 0.0) + float((stand_in(states[0]) - exact).square().sum())
            state = state.to(device)
            z, x = koopman.encode(state, one.depth), koopman.normalization.normalize(state, one.depth)
            one.observables.add(z.double())
            if before is not None:
                advanced = koopman.operator.advance(before, koopman.steps(one.depth - 1, one.depth))
                one.residual += float((z - advanced).double().square().sum())
            one.distances.add(z, x)
            before = z

    def figures(self) -> tuple[DepthFidelity, ...]:
        """Return the figures at each depth.

        Raises:
            InputError: there were fewer than two rows, or all are the same at a depth.
        """
        if self.rows < 2:
            raise InputError(f"Fidelity is judged on 2 held-out samples or more; got {self.rows}. Give more inputs.")
        return tuple(self._of_depth(one) for one in self._depths)

    def _of_depth(self, one: _OneDepth) -> DepthFidelity:
        site, variance = self._koopman.sites[one.depth], one.states.squares
        if not variance:
            raise InputError(
                f"All {self.rows} held-out samples have the same state at {site!r}, so there is no variance to "
                "explain. Give other inputs, or start the span at a later site."
            )
        return DepthFidelity(
            site,
            {name: one.errors[name] / variance if name in one.errors else None for name in self._names},
            one.residual / one.observables.squares if one.depth > self._first else None,
            one.distances.quantiles(),
        )


def _from_first(koopman: KoopmanAutoencoder, stand_ins: StandIns, first: int, depth: int) -> dict[str, StandIn]:
    """Return the stand-ins from the first depth that exist; at the first itself, what autoencoding leaves."""
    if depth > first:
        return {name: stand_in for name, stand_in in stand_ins.of(first, depth).items() if stand_in is not None}

    def autoencoded(rows: Tensor) -> Tensor:
        device = koopman.normalization.maps(first)[0].device
        return koopman.decode(koopman.encode(rows.to(device), first), first).to(rows.device)

    return {SURROGATE: autoencoded}


class _Spread:
    """Sum of squares about the mean, exactly zero where all rows are the same."""

    def __init__(self) -> None:
        self._rows = 0
        self._origin: Tensor | None = None
        self._sum = torch.zeros(())
        self._squares = 0.0

    def add(self, rows: Float[Tensor, "row _"]) -> None:
        if self._origin is None:
            self._origin = rows[0].clone()
        # Relative to some row, against cancellation where the mean is large beside the spread.
        moved = rows - self._origin
        self._rows += len(rows)
        self._sum = self._sum.to(moved) + moved.sum(0)
        self._squares += float(moved.square().sum())

    @property
    def squares(self) -> float:
        """`Σ‖x − mean‖²`."""
        return max(0.0, self._squares - float(self._sum.square().sum()) / self._rows)


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


@dataclass(eq=False)
class _OneDepth:
    """Sums at one depth.

    Attributes:
        depth: its index.
        stand_ins: from the first depth to this one.
        errors: `Σ‖reached − x‖²` of each.
        states: spread of the states.
        observables: spread of the observables.
        residual: `Σ‖z − z_before Kᵀ‖²`.
        distances: for the isometry.
    """

    depth: int
    stand_ins: dict[str, StandIn]
    errors: dict[str, float] = field(default_factory=dict)
    states: _Spread = field(default_factory=_Spread)
    observables: _Spread = field(default_factory=_Spread)
    residual: float = 0.0
    distances: _Distances = field(default_factory=_Distances)
