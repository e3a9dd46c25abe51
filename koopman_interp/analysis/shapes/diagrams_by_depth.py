"""The topology of a row of clouds as a value: persistence diagrams, and what is read off them.

Reading is cheap; how diagrams are computed stands in `topology`. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from koopman_interp.analysis.shapes.diagrams import STATISTICS, Statistic, betti_curve
from koopman_interp.analysis.shapes.persistence import Diagrams
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError
from koopman_interp.files import Json, read_tensors, rebuilding, write_tensors
from koopman_interp.results import Result
from koopman_interp.tables import Column, Table

Unit = Literal["own", "first", "none"]
"""What scales are shares of: each cloud's own diameter, that of the first cloud (growth shows), or nothing."""

REPORTED_SCALES = (0.05, 0.1, 0.2)
"""Scales at which Betti numbers are printed, in diameters; the curves show all scales."""

SHOWN = "{:.3g}".format
"""How lengths and sums of lengths are shown."""

_ROUNDING = 1e-12
"""Share of a threshold by which a scale may pass it, as arithmetic between units makes it do."""

_UNIT_NAMES = {"own": "diameters", "first": "diameters of the first cloud", "none": "the cloud's own units"}


@dataclass(frozen=True, eq=False, repr=False)
class Topology(Result):
    """Persistence diagrams of one point cloud a depth.

    Attributes:
        names: name of each cloud.
        diagrams: per cloud and homology dimension, births and deaths `[feature, 2]`, in units. Dimension 0 is known at
            all scales, and its one death of infinity is the piece that is left; in others a death of infinity is a
            feature that outlives the threshold. Features of length 0, which points that coincide have, are left out.
        diameters: largest distance in each cloud, in the cloud's own units.
        thresholds: largest scale of each cloud up to which dimensions past 0 are known, in units.
        points: points in each cloud.
        rows: rows that the points were taken from; 0 where that is not known.
        covering: per cloud, the largest distance of any row from the nearest point, in units (or a bound on it);
            empty where all rows were taken. The diagrams of all rows lie within twice that of these.
        unit: what scales are shares of.
        engine: what computed the dimensions past 0.
    """

    names: tuple[str, ...]
    diagrams: tuple[Diagrams, ...]
    diameters: tuple[float, ...]
    thresholds: tuple[float, ...]
    points: int
    rows: int = 0
    covering: tuple[float, ...] = ()
    unit: Unit = "own"
    engine: str = ""

    @property
    def threshold(self) -> float:
        """The scale up to which all dimensions of all clouds are known."""
        return min(self.thresholds)

    @property
    def max_dimension(self) -> int:
        """The highest homology dimension."""
        return min(map(len, self.diagrams)) - 1

    @property
    def scale_name(self) -> str:
        """What scales are measured in."""
        return _UNIT_NAMES[self.unit]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, kept: slice) -> Topology:
        """Keep some of the clouds.

        Raises:
            InputError: one is asked for by its number.
        """
        if not isinstance(kept, slice):
            raise InputError(f"Clouds are kept by a slice, as topology[1:2]; got {kept!r}.")
        return replace(
            self,
            names=self.names[kept],
            diagrams=self.diagrams[kept],
            diameters=self.diameters[kept],
            thresholds=self.thresholds[kept],
            covering=self.covering[kept],
        )

    def betti(self, scale: float) -> list[list[int]]:
        """Count the features alive at a scale, per cloud and homology dimension.

        Args:
            scale: in units, at most the threshold that all clouds have in common.

        Raises:
            InputError: the scale lies past the threshold, where nothing was computed.
        """
        if not (scale >= 0 and not beyond(np.array([scale]), self.threshold).any()):
            raise InputError(f"Scales were computed from 0 to {self.threshold:g} {self.scale_name}; got {scale:g}.")
        at = np.array([scale])
        return [[int(betti_curve(diagram, at)[0]) for diagram in diagrams] for diagrams in self.diagrams]

    def curves(self, dimension: int, scales: Float[ndarray, " scale"]) -> Float[ndarray, "cloud scale"]:
        """Betti numbers of each cloud over scales.

        Args:
            dimension: of homology.
            scales: in units.

        Returns:
            The counts; NaN past a cloud's threshold, where loops and higher holes were not computed.

        Raises:
            InputError: the dimension was not computed.
        """
        self.require_dimension(dimension)
        counts = np.array([betti_curve(diagrams[dimension], scales) for diagrams in self.diagrams], dtype=float)
        if dimension > 0:
            counts[np.array([beyond(scales, threshold) for threshold in self.thresholds])] = np.nan
        return counts

    def statistic(self, of: str | Statistic, dimension: int) -> Float[ndarray, " cloud"]:
        """Sum up each cloud's diagram in one number.

        Args:
            of: `total persistence`, `entropy`, `longest lifetime`, or a function of a diagram and a limit.
            dimension: of homology. Features past dimension 0 are clipped at their cloud's threshold, and the piece
                that never dies is left out.

        Raises:
            InputError: there is no such statistic, or the dimension was not computed.
        """
        self.require_dimension(dimension)
        if isinstance(of, str) and of not in STATISTICS:
            raise InputError(f"There is no statistic {of!r}; there are {', '.join(STATISTICS)}.")
        measure = STATISTICS[of] if isinstance(of, str) else of
        limits = self.thresholds if dimension > 0 else (np.inf,) * len(self)
        return np.array(
            [measure(diagrams[dimension], limit) for diagrams, limit in zip(self.diagrams, limits, strict=True)]
        )

    def require_dimension(self, dimension: int) -> None:
        """Check that a homology dimension was computed.

        Raises:
            InputError: it was not.
        """
        if not 0 <= dimension <= self.max_dimension:
            raise InputError(f"The topology has the dimensions 0 to {self.max_dimension}; got {dimension}.")

    def __repr__(self) -> str:
        of = f" of {self.rows:,} rows" if self.rows > self.points else ""
        return (
            f"Topology({len(self.names)} clouds of {self.points} points{of}, "
            f"up to {self.threshold:.3g} {self.scale_name})"
        )

    def tables(self) -> tuple[Table, ...]:
        """Return Betti numbers at a few scales, and what each diagram sums up to; one row a cloud."""
        return self._betti_numbers(), self._sums()

    def _betti_numbers(self) -> Table:
        scales, dimensions = self._reported_scales, range(self.max_dimension + 1)
        counts = [self.curves(dimension, scales) for dimension in dimensions]
        columns = (
            Column(f"β{k} at {scale:.3g}", tuple(counts[k][:, index].tolist()), "{:.0f}".format)
            for index, scale in enumerate(scales)
            for k in dimensions
        )
        caption = f"Betti numbers by scale, in {self.scale_name}: β0 connected pieces, β1 loops."
        return Table((Column("cloud", self.names), *columns), caption)

    def _sums(self) -> Table:
        columns = [
            Column(f"{heading} H{k}", tuple(self.statistic(name, k).tolist()), SHOWN)
            for k in range(self.max_dimension + 1)
            for heading, name in (("total", "total persistence"), ("entropy", "entropy"))
        ]
        columns += [Column("diameter", self.diameters, SHOWN), Column("loops to", self.thresholds, SHOWN)]
        if self.covering:
            columns.append(Column("subset's bound", tuple(2 * radius for radius in self.covering), SHOWN))
        caption = f"Persistence in {self.scale_name}, its entropy in nats, the diameter as it is."
        return Table((Column("cloud", self.names), *columns), caption)

    @property
    def _reported_scales(self) -> Float[ndarray, " scale"]:
        """Those under some threshold; where there is no unit, as shares of the first cloud's diameter."""
        scales = np.array(REPORTED_SCALES) * (self.diameters[0] if self.unit == "none" else 1.0)
        return scales[~beyond(scales, max(self.thresholds))]

    def as_dict(self) -> dict[str, Json]:
        """Return plain values for JSON: Betti numbers at the reported scales, None where they were not computed."""
        scales = self._reported_scales
        counted = np.array([self.curves(k, scales) for k in range(self.max_dimension + 1)])
        return {
            "points": self.points,
            "rows": self.rows,
            "threshold": self.threshold,
            "thresholds": list(self.thresholds),
            "unit": self.unit,
            "engine": self.engine,
            "diameters": list(self.diameters),
            "covering": list(self.covering),
            "betti": {
                f"{scale:.4g}": {
                    name: [None if np.isnan(count) else int(count) for count in counted[:, cloud, index]]
                    for cloud, name in enumerate(self.names)
                }
                for index, scale in enumerate(scales)
            },
            "statistics": {
                f"{name} H{k}": self.statistic(name, k).tolist()
                for k in range(self.max_dimension + 1)
                for name in STATISTICS
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        tensors, header = self.parts()
        write_tensors(path, tensors, kind="topology", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Topology:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="topology")
        with rebuilding(path, "a topology"):
            return as_annotated(cls.of_parts(tensors, header))

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Part it into tensors by name, and what JSON holds."""
        tensors = {
            f"{cloud}.{dimension}": torch.from_numpy(diagram)
            for cloud, diagrams in enumerate(self.diagrams)
            for dimension, diagram in enumerate(diagrams)
        }
        kept = ("names", "diameters", "thresholds", "points", "rows", "covering", "unit", "engine")
        return tensors, {name: getattr(self, name) for name in kept} | {"dimensions": self.max_dimension + 1}

    @classmethod
    def of_parts(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Json]) -> Topology:
        """Put together what `parts` parted.

        Raises:
            KeyError: a part is missing.
            TypeError: a part is of another kind.
        """
        dimensions, clouds = range(header["dimensions"]), range(len(header["names"]))
        diagrams = tuple(tuple(tensors[f"{cloud}.{k}"].numpy() for k in dimensions) for cloud in clouds)
        lists: dict[str, Json] = {
            name: tuple(header[name]) for name in ("names", "diameters", "thresholds", "covering")
        }
        rest: dict[str, Json] = {name: header[name] for name in ("points", "rows", "unit", "engine")}
        return cls(diagrams=diagrams, **lists, **rest)


def beyond(scales: Float[ndarray, " scale"], threshold: float) -> Bool[ndarray, " scale"]:
    """Say which scales lie past a threshold by more than rounding."""
    return scales > threshold * (1 + _ROUNDING)
