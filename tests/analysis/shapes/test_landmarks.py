"""Covering radii are never too small, and the diagrams of a subset lie within twice of them."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from koopman_interp.analysis.shapes import landmarks
from koopman_interp.analysis.shapes.diagrams import bottleneck
from koopman_interp.analysis.shapes.persistence import persistence


def states(rows, *widths, seed=0):
    """Depths that follow from one another, as a network's do."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, 3, generator=generator)
    return [torch.tanh(start @ torch.randn(3, width, generator=generator)) for width in widths]


@pytest.mark.parametrize("sampling", ["random", "farthest"])
@pytest.mark.parametrize("seed", range(3))
def test_the_covering_radius_is_exact_where_there_are_few_rows(sampling, seed):
    depths = states(3000, 5, 20, 40, seed=seed)
    sketched = landmarks.sketch(depths, rows=3000, seed=seed)
    rows = landmarks.choose(sketched, 50, sampling, seed=seed)
    assigned = landmarks.assign(sketched, rows)
    for state in depths:
        exact = cdist(state, state[rows]).min(1).max()
        assert landmarks.covering_radius(lambda some, x=state: x[some], rows, assigned) == pytest.approx(
            exact, rel=1e-6
        )


def test_past_its_limit_the_covering_radius_is_a_bound(monkeypatch):
    monkeypatch.setattr(landmarks, "_BLOCK", 20)
    monkeypatch.setattr(landmarks, "_MOST_BLOCKS", 2)
    cloud = torch.randn(2000, 30, generator=torch.Generator().manual_seed(0))
    sketched = landmarks.sketch([cloud], rows=2000, seed=0)
    rows = landmarks.choose(sketched, 100, "random", seed=0)
    found = landmarks.covering_radius(lambda some: cloud[some], rows, landmarks.assign(sketched, rows))
    exact = cdist(cloud, cloud[rows]).min(1).max()
    assert exact < found < 1.5 * exact


@pytest.mark.parametrize("sampling", ["random", "farthest"])
def test_no_feature_of_all_rows_is_farther_than_twice_the_covering_radius(sampling):
    angle = torch.linspace(0, 2 * torch.pi, 300)
    noise = 0.05 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    cloud = torch.stack([angle.cos(), angle.sin()], 1) + noise
    sketched = landmarks.sketch([cloud], rows=300, seed=0)
    rows = landmarks.choose(sketched, 40, sampling, seed=0)
    radius = landmarks.covering_radius(lambda some: cloud[some], rows, landmarks.assign(sketched, rows))
    whole, part = (
        persistence(
            x.double().numpy(),
            max_dimension=1,
            unit=1.0,
            threshold=4.0,
            pairs=1.0,
            engine=None,
            most_bytes=2.0**30,
        ).diagrams
        for x in (cloud, cloud[rows])
    )
    for ours, theirs in zip(whole, part, strict=True):
        assert 0 < bottleneck(ours, theirs) <= 2 * radius + 1e-6


def test_farthest_points_cover_better_than_random_ones():
    (cloud,) = states(2000, 6)
    cloud[7] = 10.0  # an outlier
    sketched = landmarks.sketch([cloud], rows=2000, seed=0)
    radii = {}
    for sampling in ("random", "farthest"):
        rows = landmarks.choose(sketched, 60, sampling, seed=0)
        assert len(set(rows.tolist())) == 60
        radii[sampling] = landmarks.covering_radius(lambda some: cloud[some], rows, landmarks.assign(sketched, rows))
    assert radii["farthest"] < 0.2 * radii["random"]


def test_farthest_points_are_gonzalez_greedy_choice():
    (cloud,) = states(200, 4)
    sketched = landmarks.sketch([cloud], rows=200, seed=0)
    rows = landmarks.choose(sketched, 15, "farthest", seed=0).tolist()
    points = sketched.double().numpy()
    chosen = rows[:1]
    while len(chosen) < 15:
        chosen.append(int(cdist(points, points[chosen]).min(1).argmax()))
    assert rows == chosen


def test_all_rows_are_taken_where_there_are_no_more():
    sketched = landmarks.sketch([], rows=12, seed=0)
    for sampling in ("random", "farthest"):
        assert sorted(landmarks.choose(sketched, 20, sampling, seed=0).tolist()) == list(range(12))


def test_a_sketch_counts_each_depth_alike():
    small, large = states(500, 3, 30)
    parts = landmarks.sketch([small, 1e6 * large + 5], rows=500, seed=0)
    assert parts.shape == (500, 3 + landmarks._SKETCHED_WIDTH)
    for part in parts.split([3, landmarks._SKETCHED_WIDTH], 1):
        assert float((part - part.mean(0)).square().sum(1).mean()) == pytest.approx(1, rel=1e-3)
    # A depth at which nothing varies neither counts nor divides by zero.
    assert np.isfinite(landmarks.sketch([small, torch.ones(500, 3)], rows=500, seed=0).numpy()).all()
