"""Diagrams against slow computations, and their distances against persim, GUDHI and the stability theorem."""

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from koopman_interp.analysis.shapes.diagrams import (
    STATISTICS,
    betti_curve,
    bottleneck,
    clipped,
    finite,
    longest_lifetime,
    persistence_entropy,
    total_persistence,
    wasserstein,
)
from koopman_interp.analysis.shapes.persistence import distance_matrix, persistence

NONE = np.empty((0, 2))


def diagrams(seed, most=8, *, on_a_line=False):
    """Two random diagrams of up to `most` features."""
    draw = np.random.default_rng(seed)
    found = [np.sort(draw.uniform(size=(draw.integers(most + 1), 2)), axis=1) for _ in range(2)]
    if on_a_line:
        for diagram in found:
            diagram[:, 0] = 0
    return found


def every_matching(first, second):
    """Yield the moves of every matching of two diagrams, as pairs of points; None stands for the diagonal."""
    padded = [*range(len(second)), *[None] * len(first)]
    for chosen in set(itertools.permutations(padded, len(first))):
        taken = {place for place in chosen if place is not None}
        moves = [(first[i], None if j is None else second[j]) for i, j in enumerate(chosen)]
        yield moves + [(point, None) for j, point in enumerate(second) if j not in taken]


def length(point, other, norm):
    if other is None:
        lifetime = point[1] - point[0]
        return lifetime / 2 if norm == np.inf else lifetime / math.sqrt(2)
    return np.linalg.norm(point - other, norm)


@pytest.mark.parametrize("on_a_line", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_distances_are_the_best_over_all_matchings(seed, on_a_line):
    first, second = diagrams(seed, most=4, on_a_line=on_a_line)
    every = list(every_matching(first, second))
    farthest = min(max((length(*move, np.inf) for move in moves), default=0.0) for moves in every)
    together = min(sum(length(*move, 2) for move in moves) for moves in every)
    assert bottleneck(first, second) == pytest.approx(farthest, abs=1e-12)
    assert wasserstein(first, second) == pytest.approx(together, abs=1e-12)


@pytest.mark.parametrize("on_a_line", [False, True])
def test_distances_are_those_of_persim(on_a_line):
    persim = pytest.importorskip("persim")
    for seed in range(20):
        first, second = diagrams(seed, most=16, on_a_line=on_a_line)
        assert wasserstein(first, second) == pytest.approx(persim.wasserstein(first, second), abs=1e-9)
        assert bottleneck(first, second) == pytest.approx(persim.bottleneck(first, second), abs=1e-9)


@pytest.mark.parametrize("on_a_line", [False, True])
def test_distances_are_those_of_gudhi(on_a_line):
    gudhi = pytest.importorskip("gudhi")
    from gudhi.hera import wasserstein_distance

    for seed in range(40):
        first, second = diagrams(seed, most=40, on_a_line=on_a_line)
        # e=0 is GUDHI's exact algorithm; its default one was seen to err on diagrams born at 0.
        assert bottleneck(first, second) == pytest.approx(gudhi.bottleneck_distance(first, second, 0), abs=1e-12)
        theirs = wasserstein_distance(first, second, order=1, internal_p=2, delta=1e-4)
        assert wasserstein(first, second) == pytest.approx(theirs, rel=2e-4, abs=1e-12)


@pytest.mark.parametrize("distance", [bottleneck, wasserstein])
def test_distances_are_a_metric(distance):
    for seed in range(15):
        first, second = diagrams(seed)
        third, _ = diagrams(seed + 100)
        assert distance(first, first) == 0
        assert distance(first, second) == pytest.approx(distance(second, first), abs=1e-12)
        assert distance(first, third) <= distance(first, second) + distance(second, third) + 1e-12
    assert distance(NONE, NONE) == 0


@pytest.mark.parametrize("distance", [bottleneck, wasserstein])
def test_what_never_dies_is_matched_with_what_never_dies(distance):
    lasting = np.array([[0.0, np.inf], [0.2, 0.3]])
    assert distance(lasting, NONE) == math.inf
    assert distance(lasting, lasting + np.array([[0.1, 0.0], [0.0, 0.0]])) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(4))
def test_no_feature_moves_farther_than_twice_the_points(seed):
    draw = np.random.default_rng(seed)
    angle = draw.uniform(0, 2 * np.pi, 80)
    cloud = np.c_[np.cos(angle), np.sin(angle)] + 0.05 * draw.normal(size=(80, 2))
    moved = cloud + draw.uniform(-0.04, 0.04, size=cloud.shape)
    bound = 2 * np.linalg.norm(cloud - moved, axis=1).max()
    pair = [computed(x, max_dimension=1, unit=1.0, threshold=4.0).diagrams for x in (cloud, moved)]
    for dimension, (ours, theirs) in enumerate(zip(*pair, strict=True)):
        assert 0 < bottleneck(ours, theirs) <= bound + 1e-6
        # What is known up to a scale moves no farther than the whole.
        for limit in (0.3, 0.9):
            cut = bottleneck(clipped(ours, limit), clipped(theirs, limit))
            assert cut <= bottleneck(ours, theirs) + 1e-12, dimension


def computed(cloud, **options):
    given = {"pairs": 0.15, "engine": None, "most_bytes": 2.0**30, "unit": None, "threshold": None}
    return persistence(np.asarray(cloud, dtype=float), **(given | options))


def test_statistics_of_known_diagrams():
    four = np.array([[0.0, 1.0], [0.5, 1.5], [2.0, 3.0], [0.25, 1.25]])
    assert total_persistence(four) == pytest.approx(4)
    assert total_persistence(2 * four, power=2.0) == pytest.approx(16)
    assert total_persistence(four, power=2.0) == pytest.approx(4)
    assert persistence_entropy(four) == pytest.approx(math.log(4))
    assert longest_lifetime(four) == pytest.approx(1)
    # Up to 1 three are known: 1, 0.5 and 0.75 long.
    assert total_persistence(four, 1.0) == pytest.approx(2.25)
    shares = np.array([1, 0.5, 0.75]) / 2.25
    assert persistence_entropy(four, 1.0) == pytest.approx(-(shares * np.log(shares)).sum())
    assert persistence_entropy(four) == pytest.approx(persistence_entropy(7 * four))


def test_statistics_without_features_are_zero():
    alone = np.array([[0.0, np.inf]])
    for measure in STATISTICS.values():
        assert measure(NONE, 1.0) == 0
        assert measure(NONE, math.inf) == 0
        assert measure(alone, math.inf) == 0
    # One feature takes all of the persistence, whose entropy is 0 and not -0.
    assert math.copysign(1, persistence_entropy(np.array([[0.0, 1.0]]))) == 1


def test_a_feature_that_lives_on_is_clipped_at_the_limit():
    lasting = np.array([[0.1, np.inf], [0.2, 0.3], [0.6, 0.7]])
    assert clipped(lasting, 0.5).tolist() == [[0.1, 0.5], [0.2, 0.3]]
    assert finite(lasting).tolist() == [[0.2, 0.3], [0.6, 0.7]]
    assert total_persistence(lasting, 0.5) == pytest.approx(0.5)


def test_a_betti_curve_counts_what_is_alive():
    draw = np.random.default_rng(0)
    diagram = np.sort(draw.uniform(size=(30, 2)), axis=1)
    diagram[:3, 1] = np.inf
    scales = np.concatenate([np.linspace(0, 1, 57), diagram[:, 0], diagram[3:, 1]])
    counted = [sum(birth <= scale < death for birth, death in diagram) for scale in scales]
    assert betti_curve(diagram, scales).tolist() == counted


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_are_exact_to_points_that_coincide(offset):
    cloud = np.random.default_rng(0).normal(size=(40, 7)) + offset
    cloud = np.r_[cloud, cloud[:5], cloud[:5] + 1e-7]
    found = distance_matrix(cloud)
    np.testing.assert_allclose(found, squareform(pdist(cloud)), rtol=1e-8, atol=0)
    assert (found == found.T).all()
    assert (found[range(5), range(40, 45)] == 0).all()


@pytest.mark.parametrize("born", [0.0, 0.2])
def test_what_never_dies_is_matched_in_the_order_of_birth_beside_what_does(born):
    first = np.array([[0.5, np.inf], [0.1, np.inf], [born, 0.3]])
    second = np.array([[0.2, np.inf], [0.9, np.inf], [born, 0.35]])
    assert bottleneck(first, second) == pytest.approx(0.4)
    assert wasserstein(first, second) == pytest.approx(0.1 + 0.4 + 0.05)
