"""Both engines against each other and against shapes that are known; what is refused before it starts."""

from importlib.util import find_spec
from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from koopman_interp.analysis.shapes import persistence as module
from koopman_interp.analysis.shapes.persistence import (
    choose_engine,
    default_threshold,
    estimated_bytes,
    persistence,
    simplices,
)
from koopman_interp.errors import InputError, TooLargeError


def computed(cloud, **options):
    given = {"max_dimension": 1, "pairs": 0.15, "engine": None, "most_bytes": 2.0**31, "unit": None, "threshold": None}
    return persistence(np.asarray(cloud, dtype=float), **(given | options))


HAS_GUDHI = find_spec("gudhi") is not None
ENGINES = ("ripser", pytest.param("gudhi", marks=pytest.mark.skipif(not HAS_GUDHI, reason="gudhi is not installed")))


def torus(around, across):
    u, v = (np.arange(n) / n * 2 * np.pi for n in (around, across))
    u, v = (grid.ravel() for grid in np.meshgrid(u, v))
    # The flat torus in four dimensions, whose two loops are equally long.
    return np.c_[np.cos(u), np.sin(u), np.cos(v), np.sin(v)]


def sphere(points):
    """Points spread evenly, on Fibonacci's spiral."""
    height = 1 - 2 * (np.arange(points) + 0.5) / points
    angle = np.pi * (1 + 5**0.5) * np.arange(points)
    radius = np.sqrt(1 - height**2)
    return np.c_[radius * np.cos(angle), radius * np.sin(angle), height]


def alive(diagram, scale):
    return int(((diagram[:, 0] <= scale) & (diagram[:, 1] > scale)).sum())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("cloud", "scale", "betti"),
    [
        (torus(12, 12), 0.8, (1, 2, 1)),
        (sphere(100), 0.8, (1, 0, 1)),
        (np.r_[sphere(60), sphere(60) + 5], 1.0, (2, 0, 2)),
    ],
    ids=["torus", "sphere", "two spheres"],
)
def test_shapes_have_their_betti_numbers(cloud, scale, betti, engine):
    found = computed(cloud, max_dimension=2, unit=1.0, threshold=1.2, engine=engine)
    assert tuple(alive(diagram, scale) for diagram in found.diagrams) == betti


@pytest.mark.parametrize("engine", ENGINES)
def test_diagrams_are_those_of_gudhi_simplex_trees(engine):
    gudhi = pytest.importorskip("gudhi")
    draw, seen = np.random.default_rng(0), [0, 0, 0]
    for cloud in (sphere(60) + 0.1 * draw.normal(size=(60, 3)), torus(8, 8) + 0.1 * draw.normal(size=(64, 4))):
        found = computed(cloud, max_dimension=2, unit=1.0, threshold=1.5, engine=engine)
        tree = gudhi.RipsComplex(points=cloud, max_edge_length=1.5).create_simplex_tree(max_dimension=3)
        tree.compute_persistence(homology_coeff_field=2, min_persistence=0)
        for dimension, ours in enumerate(found.diagrams):
            theirs = tree.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
            if dimension == 0:
                # Ours are complete, theirs end at the threshold.
                ours, theirs = (each[each[:, 1] <= 1.5] for each in (ours, theirs))
            np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-6)
            seen[dimension] += len(theirs)
    assert min(seen) > 1


@pytest.mark.skipif(not HAS_GUDHI, reason="gudhi is not installed")
def test_the_engines_agree():
    cloud = np.random.default_rng(1).normal(size=(120, 10))
    pair = [computed(cloud, engine=engine, pairs=0.5) for engine in ("ripser", "gudhi")]
    for ours, theirs in zip(*(each.diagrams for each in pair), strict=True):
        np.testing.assert_allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-6)
    assert pair[0].threshold == pair[1].threshold
    assert choose_engine(None) == "gudhi"


def test_ripser_stands_in_where_gudhi_is_missing(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert choose_engine(None) == "ripser"
    with pytest.raises(InputError, match=r"GUDHI is not installed: pip install .koopman-interp\[topology\]."):
        choose_engine("gudhi")


def test_an_engine_that_there_is_not_is_refused(unchecked):
    with pytest.raises(InputError, match="no engine 'eirene'"):
        choose_engine("eirene")


def test_the_default_threshold_joins_a_share_of_the_pairs():
    cloud = np.random.default_rng(0).normal(size=(90, 30))
    distances = pdist(cloud)
    limit = default_threshold(distances, distances.max(), 0.15)
    assert (distances <= limit).mean() == pytest.approx(0.15, abs=2 / len(distances))
    assert default_threshold(distances, distances.max(), 1.0) == distances.max()


def test_in_tight_clumps_the_threshold_reaches_past_the_clumps():
    draw = np.random.default_rng(0)
    clumps = np.repeat(np.eye(3), 30, axis=0) + 1e-3 * draw.normal(size=(90, 3))
    distances = pdist(clumps)
    assert np.quantile(distances, 0.15) < 0.01
    assert default_threshold(distances, distances.max(), 0.15) == pytest.approx(0.2 * distances.max())
    # But not where that would join nearly all: one clump with a point far off.
    outlier = pdist(np.r_[clumps[:89] * 0.01, [[100.0, 0, 0]]])
    assert (outlier <= default_threshold(outlier, outlier.max(), 0.15)).mean() == pytest.approx(0.5, abs=0.01)


def test_pieces_are_known_past_the_threshold():
    cloud = np.r_[np.zeros((1, 2)), np.ones((1, 2)), np.full((1, 2), 3.0)]
    found = computed(cloud, unit=1.0, threshold=0.1)
    np.testing.assert_allclose(found.diagrams[0], [[0, 2**0.5], [0, 8**0.5], [0, np.inf]])
    assert found.diagrams[1].shape == (0, 2)
    assert computed(cloud, max_dimension=0).threshold == 1


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_simplices_are_counted_without_bias(dimension):
    draw = np.random.default_rng(dimension)
    distances = module.distance_matrix(draw.normal(size=(24, 3)))
    joined = distances <= np.quantile(distances, 0.6)
    exact = sum(
        all(joined[i, j] for i, j in combinations(chosen, 2)) for chosen in combinations(range(24), dimension + 1)
    )
    found = np.array([simplices(joined, dimension, seed=seed) for seed in range(300)])
    assert abs(found.mean() - exact) < 4 * found.std() / 300**0.5
    assert found.std() < 0.2 * exact
    assert simplices(np.ones((24, 24), dtype=bool), dimension) == pytest.approx(comb(24, dimension + 1))
    assert simplices(np.eye(24, dtype=bool), dimension) == 0


def test_memory_is_estimated_from_what_was_measured():
    full = np.ones((300, 300), dtype=bool)
    # Measured on 300 points without a threshold, H2: 212 MB by ripser, 5 MB by GUDHI.
    assert 212e6 < estimated_bytes(full, 2, "ripser") < 3 * 212e6
    assert 5e6 < estimated_bytes(full, 2, "gudhi") < 10 * 5e6
    assert estimated_bytes(full, 1, "ripser") < estimated_bytes(full, 2, "ripser")


def test_what_would_not_fit_is_refused_before_it_starts(monkeypatch):
    def started(*_):
        raise AssertionError

    for engine in ("ripser", "gudhi"):
        monkeypatch.setitem(module._BY_ENGINE, engine, started)
    cloud = np.random.default_rng(0).normal(size=(200, 5))
    with pytest.raises(TooLargeError, match=r"H2 of 200 points .* GiB; the limit is .* Lower points, threshold"):
        computed(cloud, max_dimension=2, threshold=1.0, engine="ripser", most_bytes=2.0**24)
    monkeypatch.setattr(module, "distance_matrix", started)
    with pytest.raises(MemoryError, match="The distances of 200 points"):
        computed(cloud, most_bytes=1e5)


def test_points_that_coincide_are_refused():
    with pytest.raises(InputError, match="All 4 points coincide"):
        computed(np.ones((4, 2)))
