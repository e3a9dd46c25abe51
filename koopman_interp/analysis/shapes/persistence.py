"""Vietoris–Rips persistence of one point cloud, by ripser or GUDHI, up to a scale and within a limit of memory.

Pieces are read off the cloud's single-linkage tree, so that they are complete at every scale; loops and higher holes
come from the engine, up to a threshold, which is the strongest lever on time and memory. All pairs of the points are
held (`8 n²` bytes, a few times over), so clouds past some thousand points want `landmarks`. Both are estimated before
anything is computed, and refused past the limit. Knows nothing of networks.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from ripser import ripser
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_matrix
from scipy.spatial.distance import squareform

from koopman_interp.errors import InputError, TooLargeError

Engine = Literal["ripser", "gudhi"]
Diagrams = tuple[Float[ndarray, "_ 2"], ...]
"""One array of births and deaths a homology dimension, from 0 up."""

NEAR_SHARE = 0.2
"""Unless told otherwise loops are followed at least to this share of the diameter…"""
MOST_PAIRS = 0.5
"""… where no more than this share of the pairs lie within."""

_MATRICES = 5
"""Copies of the distances that live at once, at most."""
_BYTES = {"ripser": (6, 100), "gudhi": (4, 6)}
"""Measured on Gaussian clouds and noisy rings of 300 to 2,000 points in 64 dimensions: bytes for each triangle where
loops are the highest holes, and for each k-simplex where holes of dimension k ≥ 2 are; the largest seen, rounded up."""
_BYTES_OF_AN_EDGE = 64
"""Of the list of edges that an engine is given."""
_PROBES = 256
"""Cliques grown at random to count simplices."""


@dataclass(frozen=True)
class Persistence:
    """Diagrams of one cloud.

    Attributes:
        diagrams: one a homology dimension, in units.
        threshold: scale up to which dimensions past 0 are known, in units.
        diameter: largest distance, as it is.
        unit: length of a unit.
        engine: what computed the dimensions past 0.
        memory: bytes that the computation was estimated to take, before it started.
    """

    diagrams: Diagrams
    threshold: float
    diameter: float
    unit: float
    engine: str
    memory: float


def persistence(
    points: Float[ndarray, "point width"],
    *,
    max_dimension: int,
    unit: float | None,
    threshold: float | None,
    pairs: float,
    engine: Engine | None,
    most_bytes: float,
) -> Persistence:
    """Compute the persistent homology of a cloud.

    Args:
        points: two or more.
        max_dimension: highest homology dimension.
        unit: length in which scales are given and returned; None is the diameter.
        threshold: largest scale for dimensions past 0, in units; None chooses it by `default_threshold`.
        pairs: what a threshold that is not given should leave joined.
        engine: ripser or gudhi; None is gudhi where it is installed.
        most_bytes: memory that it may take.

    Returns:
        The diagrams. Features of length 0 (points that coincide) are left out.

    Raises:
        InputError: all points coincide, or there is no such engine.
        TooLargeError: the estimate is past the limit.
    """
    chosen = choose_engine(engine)
    of_distances = _MATRICES * 8.0 * len(points) ** 2
    _require_room(of_distances, most_bytes, f"The distances of {len(points):,} points")
    distances = distance_matrix(points)
    longest = float(distances.max())
    if longest == 0:
        raise InputError(f"All {len(points)} points coincide, so they have no shape.")
    unit = unit or longest
    # From here on all lengths are in units: a threshold is compared as it was given, and comes back as it was.
    distances /= unit
    diameter = longest / unit
    condensed = squareform(distances, checks=False)
    pieces = _pieces(condensed)
    if max_dimension == 0:
        return Persistence((pieces,), diameter, longest, unit, "single linkage", of_distances)
    limit = default_threshold(condensed, diameter, pairs) if threshold is None else threshold
    needed = estimated_bytes(distances <= limit, max_dimension, chosen)
    what = f"H{max_dimension} of {len(points):,} points up to a scale of {limit / diameter:.2g} diameters"
    _require_room(needed, most_bytes, what)
    # Past the radius at which one point sees all others nothing is left but one piece.
    cone = float(distances.max(1).min())
    holes = _BY_ENGINE[chosen](distances, max_dimension, min(limit, cone))
    # An engine that rounds to single precision may move what happens at the limit past it.
    holes = [np.where(np.isfinite(diagram), np.minimum(diagram, limit), diagram) for diagram in holes]
    return Persistence((pieces, *holes), limit, longest, unit, chosen, needed)


def choose_engine(engine: Engine | None) -> Engine:
    """Return the engine asked for, or GUDHI where it is installed and ripser where it is not.

    Raises:
        InputError: there is no such engine, or it is not installed.
    """
    installed = importlib.util.find_spec("gudhi") is not None
    if engine is None:
        return "gudhi" if installed else "ripser"
    if engine not in _BYTES:
        raise InputError(f"There is no engine {engine!r}; there are ripser and gudhi.")
    if engine == "gudhi" and not installed:
        raise InputError('GUDHI is not installed: pip install "koopman-interp[topology]", or take engine="ripser".')
    return engine


def default_threshold(condensed: Float[ndarray, " pair"], diameter: float, pairs: float) -> float:
    """Choose a scale: that within which a share of all pairs lie.

    It is moved up to 0.2 diameters where no more than half of the pairs lie within that: in a cloud that has fallen
    into a few tight clumps the share alone would end inside of the clumps.
    """
    shares = np.partition(condensed, [_place(condensed, share) for share in (pairs, max(pairs, MOST_PAIRS))])
    low, high = (float(shares[_place(condensed, share)]) for share in (pairs, max(pairs, MOST_PAIRS)))
    return max(low, min(NEAR_SHARE * diameter, high))


def _place(values: ndarray, share: float) -> int:
    return min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))


def distance_matrix(points: Float[ndarray, "point width"]) -> Float[ndarray, "point point"]:
    """All Euclidean distances, by one matrix product.

    Distances under a thousandth of the cloud's size, which the product blurs, are taken anew from differences, so that
    points that coincide are at distance 0 and the relative error stays under 1e-9.
    """
    centred = np.asarray(points, dtype=np.float64) - points.mean(0, dtype=np.float64)
    squares = centred @ centred.T
    sizes = np.diagonal(squares).copy()
    squares *= -2
    squares += sizes[:, None] + sizes
    np.fill_diagonal(squares, np.inf)
    blurred = np.argwhere(squares < 1e-6 * max(float(sizes.max()), np.finfo(float).tiny))
    for start in range(0, len(blurred), chunk := max(1, 2**22 // max(1, centred.shape[1]))):
        i, j = blurred[start : start + chunk].T
        squares[i, j] = np.square(centred[i] - centred[j]).sum(1)
    np.fill_diagonal(squares, 0.0)
    return np.asarray(np.sqrt(squares, out=squares))


def _pieces(condensed: ndarray) -> Float[ndarray, "point 2"]:
    """Diagram of dimension 0: the pieces of a cloud join at the heights of its single-linkage tree."""
    heights = linkage(condensed, "single")[:, 2]
    deaths = np.append(heights[heights > 0], np.inf)
    return np.stack([np.zeros_like(deaths), deaths], 1)


def _by_ripser(distances: ndarray, max_dimension: int, threshold: float) -> list[ndarray]:
    diagrams = ripser(distances, distance_matrix=True, maxdim=max_dimension, thresh=threshold)["dgms"]
    return [np.asarray(diagram, dtype=float).reshape(-1, 2) for diagram in diagrams[1:]]


def _by_gudhi(distances: ndarray, max_dimension: int, threshold: float) -> list[ndarray]:
    from gudhi.sklearn import RipsPersistence

    # GUDHI makes such a list of edges itself, in three times the time.
    i, j = np.nonzero(np.tri(len(distances), k=-1, dtype=bool) & (distances <= threshold))
    edges = coo_matrix((distances[i, j], (i, j)), shape=distances.shape)
    dimensions = list(range(1, max_dimension + 1))
    # Over the field of two elements, as ripser.
    engine = RipsPersistence(dimensions, input_type="distance coo_matrix", homology_coeff_field=2)
    diagrams = engine.fit_transform([edges])[0]
    return [np.asarray(diagram, dtype=float).reshape(-1, 2) for diagram in diagrams]


_BY_ENGINE = {"ripser": _by_ripser, "gudhi": _by_gudhi}


def estimated_bytes(joined: Bool[ndarray, "point point"], max_dimension: int, engine: Engine) -> float:
    """Estimate what a computation of persistence will take.

    Args:
        joined: which pairs lie within the threshold.
        max_dimension: highest homology dimension, 1 or more.
        engine: what computes it.

    Returns:
        Bytes: the distances, the edges, and the simplices that the engine keeps, counted by probes.
    """
    of_triangles, of_simplices = _BYTES[engine]
    size = max(2, max_dimension)
    kept = (of_triangles if max_dimension == 1 else of_simplices) * simplices(joined, size)
    return float(_MATRICES * 8 * joined.size + _BYTES_OF_AN_EDGE * joined.sum() / 2 + kept)


def simplices(joined: Bool[ndarray, "point point"], dimension: int, *, seed: int = 0) -> float:
    """Estimate how many simplices of a dimension a graph has, without bias (Knuth 1975).

    Cliques are grown at random from random points, each step by one of the neighbours that all points so far share;
    the product of the numbers of choices, over the orders of a clique, is the number of cliques in expectation.
    """
    draw = np.random.default_rng(seed)
    adjacent = joined & ~np.eye(len(joined), dtype=bool)
    weights = np.full(_PROBES, float(len(joined)))
    common = adjacent[draw.integers(len(joined), size=_PROBES)]
    for step in range(1, dimension + 1):
        choices = np.count_nonzero(common, axis=1)
        # A probe without a choice weighs nothing from here on.
        alive = choices > 0
        weights, common, choices = weights[alive] * choices[alive] / (step + 1), common[alive], choices[alive]
        if step < dimension:
            chosen = common.cumsum(1, dtype=np.int32) > draw.integers(choices)[:, None]
            common &= adjacent[chosen.argmax(1)]
    return float(weights.sum() / _PROBES)


def _require_room(needed: float, most: float, what: str) -> None:
    if needed > most:
        raise TooLargeError(
            f"{what} would take about {needed / 2**30:.2g} GiB; the limit is {most / 2**30:.2g}. "
            "Lower points, threshold, pairs or max_dimension, or raise most_memory."
        )
