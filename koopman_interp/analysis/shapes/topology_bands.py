"""How sure a topology is: the same clouds many times over, and tests of whether two of them differ.

From random subsets of the rows, or from runs that differ in their seed. A permutation test asks only that runs could
be exchanged if nothing differed, which disjoint subsets and independent seeds can, and overlapping subsets cannot.
Costs one topology a run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import stats
from torch import Tensor

from koopman_interp.analysis.shapes.diagrams import Statistic
from koopman_interp.analysis.shapes.diagrams_by_depth import REPORTED_SCALES, Topology, beyond
from koopman_interp.analysis.shapes.topology import of_class, topology
from koopman_interp.annotations import as_annotated
from koopman_interp.errors import InputError
from koopman_interp.files import read_tensors, rebuilding, write_tensors
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import PlainResult, Result
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, in_percent

LEVEL = 0.9
"""Share of the runs that a band holds, between its lower and its upper quantile."""

_SUMMED_UP = ("total persistence", "entropy")


@dataclass(frozen=True, eq=False, repr=False)
class TopologyBands(Result):
    """The topologies of several runs over the same clouds.

    Attributes:
        runs: one topology a run.
        independent: whether no two runs share a row (disjoint subsets) or a seed; what a permutation test asks for.
        level: share of the runs that a band holds.
    """

    runs: tuple[Topology, ...]
    independent: bool = True
    level: float = LEVEL

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise InputError(f"A band needs two or more runs; got {len(self.runs)}.")
        kinds = {(len(run), run.max_dimension, run.unit) for run in self.runs}
        if len(kinds) > 1:
            raise InputError("The runs of a band need as many clouds and dimensions each, in one unit; these differ.")
        if not 0 < self.level <= 1:
            raise InputError(f"A band holds a share of the runs, between 0 and 1; got {self.level}.")

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each cloud."""
        return self.runs[0].names

    @property
    def max_dimension(self) -> int:
        """The highest homology dimension."""
        return self.runs[0].max_dimension

    @property
    def threshold(self) -> float:
        """The scale up to which all dimensions of all clouds are known in each run."""
        return min(run.threshold for run in self.runs)

    def curves(self, dimension: int, scales: Float[ndarray, " scale"]) -> Float[ndarray, "run cloud scale"]:
        """Betti numbers of each run over scales; see `Topology.curves`."""
        return np.stack([run.curves(dimension, scales) for run in self.runs])

    def statistic(self, of: str | Statistic, dimension: int) -> Float[ndarray, "run cloud"]:
        """Sum up the diagrams of each run; see `Topology.statistic`."""
        return np.stack([run.statistic(of, dimension) for run in self.runs])

    def band(self, values: Float[ndarray, "run ..."]) -> Float[ndarray, "3 ..."]:
        """Return the lower quantile, the mean and the upper quantile over runs."""
        tail = (1 - self.level) / 2
        low, high = np.quantile(values, [tail, 1 - tail], axis=0)
        return np.stack([low, values.mean(0), high])

    def __repr__(self) -> str:
        kind = "independent runs" if self.independent else "runs that share rows"
        return f"TopologyBands({len(self.runs)} {kind} of {self.runs[0]!r})"

    def tables(self) -> tuple[Table, ...]:
        """Return bands of what the diagrams sum up to and, where there is a unit, of Betti numbers; one row a cloud."""
        dimensions = range(self.max_dimension + 1)
        sums = {f"{name} H{k}": self.statistic(name, k) for k in dimensions for name in _SUMMED_UP}
        tables = [self._banded(sums)]
        scales = np.array(REPORTED_SCALES)
        scales = scales[~beyond(scales, self.threshold)]
        if self.runs[0].unit != "none" and len(scales):
            counts = [self.curves(k, scales) for k in dimensions]
            tables.append(
                self._banded({f"β{k} at {s:g}": counts[k][..., i] for i, s in enumerate(scales) for k in dimensions})
            )
        return tuple(tables)

    def _banded(self, values: dict[str, Float[ndarray, "run cloud"]]) -> Table:
        columns = (
            Column(name, tuple(map(tuple, self.band(each).T.tolist())), _band, parts=("low", "mean", "high"))
            for name, each in values.items()
        )
        caption = f"Mean [{in_percent(self.level, 0)} of {len(self.runs)} runs], scales in {self.runs[0].scale_name}."
        return Table((Column("cloud", self.names), *columns), caption)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: bands of the statistics, and what each run holds."""
        return {
            "level": self.level,
            "independent": self.independent,
            "names": list(self.names),
            "bands": {
                f"{name} H{k}": self.band(self.statistic(name, k)).tolist()
                for k in range(self.max_dimension + 1)
                for name in _SUMMED_UP
            },
            "runs": [run.as_dict() for run in self.runs],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file."""
        parts = [run.parts() for run in self.runs]
        tensors = {f"{run}.{name}": each for run, (own, _) in enumerate(parts) for name, each in own.items()}
        header = {"level": self.level, "independent": self.independent, "runs": [own for _, own in parts]}
        write_tensors(path, tensors, kind="topology bands", header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TopologyBands:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is truncated or holds something else.
        """
        tensors, header = read_tensors(path, kind="topology bands")
        with rebuilding(path, "topologies"):
            by_run: list[dict[str, Tensor]] = [{} for _ in header["runs"]]
            for name, tensor in tensors.items():
                run, _, rest = name.partition(".")
                by_run[int(run)][rest] = tensor
            runs = tuple(Topology.of_parts(*own) for own in zip(by_run, header["runs"], strict=True))
            return as_annotated(cls(runs, header["independent"], header["level"]))


def _band(ends: tuple[float, float, float]) -> str:
    low, mean, high = ends
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


@own_kinds
def topology_bands(
    trajectories: Rows,
    koopman: KoopmanAutoencoder | None = None,
    *,
    subsets: int = 8,
    points: int = 200,
    overlap: bool = False,
    seed: int = 0,
    level: float = LEVEL,
    **options: Any,
) -> TopologyBands:
    """Compute the topology of several random subsets of the rows.

    Args:
        trajectories: the model's states.
        koopman: as in `topology`.
        subsets: how many.
        points: rows in each.
        overlap: draw each subset from all rows, and not from those that are left; for bands alone.
        seed: of the draw.
        level: share of the runs that a band holds.
        **options: those of `topology`.

    Returns:
        One topology a subset.

    Raises:
        InputError: too few rows for disjoint subsets, fewer than two subsets, or what `topology` refuses.
    """
    trajectories = in_memory(trajectories)
    if (label := options.pop("label", None)) is not None:
        trajectories = of_class(trajectories, label)
    if not overlap and subsets * points > len(trajectories):
        raise InputError(
            f"{subsets} disjoint subsets of {points} need {subsets * points:,} rows; there are "
            f"{len(trajectories):,}. Lower points or subsets, or draw subsets that overlap (overlap=True), for bands "
            "without tests."
        )
    drawn = _subsets(len(trajectories), subsets, points, overlap, seed)
    runs = tuple(topology(trajectories[rows], koopman, points=points, **options) for rows in drawn)
    return TopologyBands(runs, independent=not overlap, level=level)


def _subsets(rows: int, subsets: int, points: int, overlap: bool, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    for index in range(subsets):
        yield torch.randperm(rows, generator=generator)[:points] if overlap else order[index * points :][:points]


@dataclass(frozen=True, repr=False)
class PermutationTest(PlainResult):
    """Whether the means of two groups of runs differ by more than chance would have it.

    Attributes:
        difference: mean of the second group minus that of the first.
        p_value: share of the exchanges with a difference at least as large either way. All are tried where there are
            few, what was observed among them; where they are drawn, it is `(1 + as large) / (1 + drawn)` (Phipson &
            Smyth 2010), so it is never 0.
        exchanges: how many were tried.
        runs: in either group.
        paired: whether runs were exchanged pair by pair.
    """

    difference: float
    p_value: float
    exchanges: int
    runs: tuple[int, int]
    paired: bool

    def __repr__(self) -> str:
        return f"PermutationTest(difference {self.difference:+.4g}, p = {self.p_value:.4f})"

    def tables(self) -> tuple[Table]:
        """Return the figures in one row."""
        runs = " and ".join(map(str, dict.fromkeys(self.runs)))
        columns = (
            Column("difference", (self.difference,), "{:+.4g}".format),
            Column("p", (self.p_value,), "{:.4f}".format),
            Column("exchanges", (self.exchanges,), "{:,}".format),
            Column("of", (f"{runs} {'pairs' if self.paired else 'runs'}",)),
        )
        return (Table(columns, "Mean of the second group less that of the first, two-sided."),)


@own_kinds
def permutation_test(
    first: TopologyBands,
    second: TopologyBands,
    clouds: tuple[int, int] = (0, -1),
    *,
    statistic: str | Statistic = "total persistence",
    dimension: int = 0,
    paired: bool | None = None,
    exchanges: int = 9999,
    seed: int = 0,
) -> PermutationTest:
    """Test whether two clouds differ in a statistic of their diagrams.

    Two depths are `permutation_test(bands, bands, (0, 3))`; a model and its surrogate, or two classes, two bands.

    Args:
        first: runs.
        second: runs.
        clouds: which cloud of either; negative ones count from the last.
        statistic: as in `Topology.statistic`.
        dimension: of homology.
        paired: whether run i of both was made from the same rows or the same seed, so that only the two of a pair
            can be exchanged; by default so where both are the same bands.
        exchanges: how many to draw, where there are more.
        seed: of the draw.

    Returns:
        Difference and p-value, two-sided.

    Raises:
        InputError: runs that share rows, pairs that do not match up, a cloud that there is not, or what
            `Topology.statistic` refuses.
    """
    if not (first.independent and second.independent):
        raise InputError("Runs that share rows cannot be exchanged; draw disjoint subsets, or take runs of many seeds.")
    for bands, cloud in zip((first, second), clouds, strict=True):
        if not -len(bands.names) <= cloud < len(bands.names):
            raise InputError(f"There are the clouds 0 to {len(bands.names) - 1}; got {cloud}.")
    paired = first is second if paired is None else paired
    groups = tuple(
        bands.statistic(statistic, dimension)[:, cloud] for bands, cloud in zip((first, second), clouds, strict=True)
    )
    return exchanged(*groups, paired=paired, exchanges=exchanges, seed=seed)


def exchanged(
    first: Float[ndarray, " run"], second: Float[ndarray, " other"], *, paired: bool, exchanges: int, seed: int
) -> PermutationTest:
    """Run the permutation test on numbers; see `permutation_test`.

    Raises:
        InputError: fewer than two runs in a group, or pairs that do not match up.
    """
    if min(len(first), len(second)) < 2 or (paired and len(first) != len(second)):
        raise InputError(
            f"A test needs two runs or more in either group, and as many in both where they are paired; got "
            f"{len(first)} and {len(second)}."
        )
    outcome = stats.permutation_test(
        (second, first),
        lambda a, b, axis: np.abs(a.mean(axis) - b.mean(axis)),
        permutation_type="samples" if paired else "independent",
        vectorized=True,
        n_resamples=exchanges,
        alternative="greater",
        random_state=np.random.default_rng(seed),
    )
    return PermutationTest(
        float(second.mean() - first.mean()),
        float(outcome.pvalue),
        len(outcome.null_distribution),
        (len(first), len(second)),
        paired,
    )
