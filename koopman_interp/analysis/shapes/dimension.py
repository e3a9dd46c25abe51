"""Intrinsic dimension at each depth, by several estimators side by side.

The estimators are scikit-dimension's (an extra, which brings numba: 200 MB, and some seconds at the first import).
They disagree: noise of a twentieth of a ring's radius in 64 dimensions makes it 27-dimensional to one and
2-dimensional to another, since neighbours are noise where the whole is a ring. So never one of them alone. 1,000 points
take about a second a depth.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from koopman_interp.analysis.shapes.clouds import Of, clouds
from koopman_interp.errors import InputError, NonFiniteError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import PlainResult
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table

ESTIMATORS = {
    "TwoNN": "TwoNN",
    "MLE": "MLE",
    "correlation": "CorrInt",
    "PCA": "lPCA",
}
"""Names shown, and the classes of `skdim.id`: ratio of the two nearest neighbours (Facco et al. 2017), maximum
likelihood over neighbours (Haro et al. 2008), correlation integral (Grassberger & Procaccia 1983), and principal
components with at least a twentieth of the largest variance (Fukunaga & Olsen 1971)."""

FEWEST_POINTS = 30
"""Distinct points that an estimate needs: past twenty neighbours, which the estimators look at."""


@dataclass(frozen=True, eq=False, repr=False)
class IntrinsicDimension(PlainResult):
    """Estimates of the intrinsic dimension of each cloud.

    Attributes:
        names: name of each cloud.
        estimators: name of each estimator.
        values: `[subset, cloud, estimator]`; NaN where an estimator gave none, which `reasons` then explains.
        widths: coordinates of each cloud.
        points: rows in each subset.
        distinct: `[subset, cloud]` points that are left when those that coincide are taken once.
        reasons: by cloud and estimator, why there is no estimate.
    """

    names: tuple[str, ...]
    estimators: tuple[str, ...]
    values: Float[ndarray, "subset cloud estimator"]
    widths: tuple[int, ...]
    points: int
    distinct: Int[ndarray, "subset cloud"]
    reasons: dict[str, str]

    @property
    def means(self) -> Float[ndarray, "cloud estimator"]:
        """Mean over subsets."""
        return np.asarray(self.values.mean(0))

    def __repr__(self) -> str:
        return (
            f"IntrinsicDimension({len(self.names)} clouds, {len(self.values)} subsets of {self.points} points, "
            f"by {', '.join(self.estimators)})"
        )

    def tables(self) -> tuple[Table]:
        """Return the mean of each estimator over the subsets, with the least and the most; one row a cloud."""
        ranges = np.stack([self.means, self.values.min(0), self.values.max(0)], -1)
        known = np.isfinite(ranges).all(-1)
        estimates = (
            Column(
                estimator,
                tuple(
                    tuple(row[place].tolist()) if told[place] else None for row, told in zip(ranges, known, strict=True)
                ),
                _range,
                parts=("mean", "least", "most"),
            )
            for place, estimator in enumerate(self.estimators)
        )
        columns = (
            Column("cloud", self.names),
            *estimates,
            Column("width", self.widths),
            Column("distinct", tuple(self.distinct.min(0).tolist())),
        )
        return (Table(columns, "Mean [least, most] over the subsets, and the fewest distinct points in one."),)

    def notes(self) -> tuple[str, ...]:
        """Say why an estimator gave nothing."""
        return tuple(f"– {where}: {why}" for where, why in self.reasons.items())


def _range(estimate: tuple[float, float, float]) -> str:
    mean, least, most = estimate
    return f"{mean:.1f} [{least:.1f}, {most:.1f}]"


@own_kinds
def intrinsic_dimension(
    trajectories: Rows,
    koopman: KoopmanAutoencoder | None = None,
    *,
    of: Of | None = None,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    subsets: int = 3,
    points: int = 1000,
    seed: int = 0,
) -> IntrinsicDimension:
    """Estimate the intrinsic dimension of each cloud on disjoint random subsets.

    Args:
        trajectories: the model's states.
        koopman: if given, the clouds are its iterates, or what `of` names.
        of: which clouds, as in `topology`.
        estimators: keys of `ESTIMATORS`, or other class names of `skdim.id`.
        subsets: how many, whose spread is shown.
        points: rows in each at most; fewer where the rows do not suffice.
        seed: of the draw.

    Returns:
        The estimates. Points that coincide are taken once, since neighbours at distance 0 have no dimension.

    Raises:
        ModuleNotFoundError: scikit-dimension is not installed.
        InputError: an unknown estimator, or fewer than 30 points, or 30 distinct points, in a subset.
        NonFiniteError: NaN or infinity in a cloud.
    """
    trajectories = in_memory(trajectories)
    library = _library()
    for name in estimators:
        if not hasattr(library, ESTIMATORS.get(name, name)):
            raise InputError(f"skdim.id has no estimator {name!r}; the usual ones are {', '.join(ESTIMATORS)}.")
    points = min(points, len(trajectories) // max(1, subsets))
    if points < FEWEST_POINTS or subsets < 1:
        raise InputError(
            f"A dimension needs {FEWEST_POINTS} points or more in each of one or more subsets; {len(trajectories)} "
            f"rows in {subsets} make {points}. Observe more, or lower subsets."
        )
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(seed))
    views = clouds(trajectories, koopman, of)
    values = np.full((subsets, len(views), len(estimators)), np.nan)
    distinct = np.zeros((subsets, len(views)), dtype=int)
    widths: list[int] = []
    reasons: dict[str, str] = {}
    for cloud, (name, view) in enumerate(views.items()):
        for subset in range(subsets):
            rows = view(order[subset * points :][:points]).double().numpy()
            once = _distinct(rows, name)
            distinct[subset, cloud] = len(once)
            for place, estimator in enumerate(estimators):
                estimate = _estimate(getattr(library, ESTIMATORS.get(estimator, estimator)), once)
                if isinstance(estimate, str):
                    reasons[f"{name}, {estimator}"] = estimate
                else:
                    values[subset, cloud, place] = estimate
        widths.append(rows.shape[1])
    return IntrinsicDimension(tuple(views), tuple(estimators), values, tuple(widths), points, distinct, reasons)


def _library() -> Any:
    try:
        import skdim.id
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Intrinsic dimensions need scikit-dimension: pip install "koopman-interp[dimension]".'
        ) from error
    return skdim.id


def _distinct(rows: Float[ndarray, "point width"], name: str) -> Float[ndarray, "distinct width"]:
    if not np.isfinite(rows).all():
        raise NonFiniteError(f"The cloud of {name!r} holds NaN or infinity. Drop those rows, or observe anew.")
    _, first = np.unique(rows, axis=0, return_index=True)
    if len(first) < FEWEST_POINTS:
        raise InputError(
            f"Only {len(first)} of {len(rows)} points are distinct at {name!r}; a dimension needs {FEWEST_POINTS}. "
            "Observe more, or leave out that site."
        )
    return rows[np.sort(first)]


def _estimate(estimator: Any, points: ndarray) -> float | str:
    """Return an estimate, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of logarithms of 0, whose result is looked at below
        try:
            dimension = float(estimator().fit(points).dimension_)
        except (ValueError, IndexError, ArithmeticError) as error:
            return str(error) or type(error).__name__
    return dimension if np.isfinite(dimension) else "the estimate is not finite"
