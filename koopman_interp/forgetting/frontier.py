"""Frontier: how much of a concept each method leaves, and at what cost elsewhere, as curves over strengths.

A single strength flatters one method or another; methods are compared by their curves. A value of numbers alone: it
knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from koopman_interp.errors import InputError
from koopman_interp.results import PlainResult
from koopman_interp.tables import Column, Table


@dataclass(frozen=True)
class FrontierPoint:
    """What one method leaves and costs at one strength.

    Attributes:
        method: name of the method.
        strength: what multiplies its displacement; 0 is the model as it was.
        left: what is left of the concept, in the frontier's unit; 0 is none.
        cost: what it costs elsewhere, in the frontier's unit; 0 is nothing.
    """

    method: str
    strength: float
    left: float
    cost: float


@dataclass(frozen=True, repr=False)
class Frontier(PlainResult):
    """Curves of several methods.

    Attributes:
        left: what `FrontierPoint.left` measures, with its unit.
        cost: what `FrontierPoint.cost` measures, with its unit.
        host: what the base model has of the concept, without any edit.
        points: all of them, those of one method together and in order of strength.
    """

    left: str
    cost: str
    host: float
    points: tuple[FrontierPoint, ...]

    def __repr__(self) -> str:
        return f"Frontier({len(self.methods)} methods, {len(self.points)} points: {self.left} against {self.cost})"

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in order."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    def tables(self) -> tuple[Table]:
        """Return the points, after the base model, which has no strength and costs nothing."""
        base = FrontierPoint("base model", 0.0, self.host, 0.0)
        points = (base, *self.points)
        columns = (
            Column("method", tuple(point.method for point in points)),
            Column("strength", (None, *(point.strength for point in self.points)), "{:g}".format),
            Column(self.left, tuple(point.left for point in points), "{:.2f}".format),
            Column(self.cost, tuple(point.cost for point in points), "{:+.2f}".format),
        )
        return (Table(columns),)

    def curve(self, method: str) -> tuple[FrontierPoint, ...]:
        """Return the points of one method.

        Raises:
            InputError: there is no such method.
        """
        points = tuple(point for point in self.points if point.method == method)
        if not points:
            raise InputError(f"There is no method {method!r}; there are {', '.join(self.methods)}.")
        return points

    def cheapest(self, method: str, most: float) -> FrontierPoint | None:
        """Return the point of a method that costs least among those that leave at most so much; None if none does."""
        return min((p for p in self.curve(method) if p.left <= most), key=lambda p: p.cost, default=None)

    def least(self, method: str, budget: float) -> FrontierPoint | None:
        """Return the point of a method that leaves least among those that cost at most so much; None if none does."""
        return min((p for p in self.curve(method) if p.cost <= budget), key=lambda p: p.left, default=None)

    def summary(self, most: float, budget: float, methods: Sequence[str] | None = None) -> str:
        """Tabulate, for each method, the least it leaves within a budget, and what leaving at most so much costs."""
        names = self.methods if methods is None else tuple(methods)
        within = tuple(self.least(name, budget) for name in names)
        reached = tuple(self.cheapest(name, most) for name in names)
        costs = tuple("not reached" if point is None else _shown(f"{point.cost:+.2f}", point) for point in reached)
        columns = (
            Column("method", names),
            Column(f"left, at a cost ≤ {budget:g}", within, lambda point: _shown(f"{point.left:.2f}", point)),
            Column(f"cost, leaving ≤ {most:g}", costs),
        )
        return Table(columns).text()


def _shown(figure: str, point: FrontierPoint) -> str:
    return f"{figure} (at {point.strength:g})"
