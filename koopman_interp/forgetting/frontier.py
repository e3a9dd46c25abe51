"""Frontier: what each way of forgetting suppresses, and at what cost, as curves over strengths.

A single strength flatters one way or another; ways are compared by their curves. A value of numbers alone: it knows
nothing of how they were measured.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from koopman_interp.errors import InputError
from koopman_interp.files import write_json
from koopman_interp.tables import table


@dataclass(frozen=True)
class FrontierPoint:
    """One way at one strength.

    Attributes:
        way: its name.
        strength: the dial.
        left: what is left of the concept, in the frontier's unit; 0 is none.
        cost: what it costs elsewhere, in the frontier's unit; 0 is nothing.
    """

    way: str
    strength: float
    left: float
    cost: float


@dataclass(frozen=True, repr=False)
class Frontier:
    """Curves of several ways.

    Attributes:
        left: what `left` measures, with its unit.
        cost: what `cost` measures, with its unit.
        host: `left` of the host without any edit.
        points: all of them, those of one way together and in order of strength.
    """

    left: str
    cost: str
    host: float
    points: tuple[FrontierPoint, ...]

    def __repr__(self) -> str:
        return f"Frontier({len(self.ways)} ways, {len(self.points)} points: {self.left} against {self.cost})"

    def __str__(self) -> str:
        rows = [[p.way, f"{p.strength:g}", f"{p.left:.2f}", f"{p.cost:+.2f}"] for p in self.points]
        host = ["host", "–", f"{self.host:.2f}", f"{0:+.2f}"]
        return table(["way", "strength", self.left, self.cost], [host, *rows])

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of the ways, in order."""
        return tuple(dict.fromkeys(point.way for point in self.points))

    def curve(self, way: str) -> tuple[FrontierPoint, ...]:
        """Return the points of one way.

        Raises:
            InputError: there is no such way.
        """
        found = tuple(point for point in self.points if point.way == way)
        if not found:
            raise InputError(f"There is no way {way!r}; there are {', '.join(self.ways)}.")
        return found

    def cheapest(self, way: str, most: float) -> FrontierPoint | None:
        """Return the point of a way that costs least among those that leave at most so much; None if none does."""
        return min((p for p in self.curve(way) if p.left <= most), key=lambda p: p.cost, default=None)

    def least(self, way: str, budget: float) -> FrontierPoint | None:
        """Return the point of a way that leaves least among those that cost at most so much; None if none does."""
        return min((p for p in self.curve(way) if p.cost <= budget), key=lambda p: p.left, default=None)

    def summary(self, most: float, budget: float, ways: Sequence[str] | None = None) -> str:
        """Tabulate, for each way, the least that it leaves within a budget, and what leaving at most so much costs."""
        rows = []
        for way in self.ways if ways is None else ways:
            within, reached = self.least(way, budget), self.cheapest(way, most)
            left = "–" if within is None else f"{within.left:.2f} (at {within.strength:g})"
            cost = "not reached" if reached is None else f"{reached.cost:+.2f} (at {reached.strength:g})"
            rows.append([way, left, cost])
        return table(["way", f"left, at a cost ≤ {budget:g}", f"cost, leaving ≤ {most:g}"], rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        write_json(path, self.as_dict())
