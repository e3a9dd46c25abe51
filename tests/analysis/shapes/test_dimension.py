"""Estimators agree on clouds of a known dimension and are shown to disagree on noise."""

import json
import sys

import numpy as np
import pytest

import koopman_interp as ki
from koopman_interp.analysis.shapes.dimension import ESTIMATORS
from koopman_interp.errors import InputError, NonFiniteError
from tests.analysis.linear import clouds_of


def flat(rows, dimension, width, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, dimension)) @ np.linalg.qr(draw.normal(size=(width, dimension)))[0].T


def ring(rows, width, noise):
    draw = np.random.default_rng(0)
    angle = draw.uniform(0, 2 * np.pi, rows)
    cloud = noise * draw.normal(size=(rows, width))
    cloud[:, 0] += np.cos(angle)
    cloud[:, 1] += np.sin(angle)
    return cloud


def test_known_dimensions_are_found():
    pytest.importorskip("skdim")
    found = ki.intrinsic_dimension(clouds_of(flat(600, 2, 9), flat(600, 5, 20)), subsets=2)
    assert found.values.shape == (2, 2, len(ESTIMATORS))
    np.testing.assert_allclose(found.means[0], 2, atol=0.3)
    np.testing.assert_allclose(found.means[1], 5, atol=1.0)
    assert (found.points, found.widths) == (300, (9, 20))
    assert "site.1" in str(found)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["names"] == ["site.0", "site.1"]


def test_estimators_disagree_on_a_noisy_ring():
    pytest.importorskip("skdim")
    clouds = clouds_of(ring(600, 64, 0.0), ring(600, 64, 0.05))
    found = ki.intrinsic_dimension(clouds, estimators=("TwoNN", "PCA"), subsets=1)
    neighbours, components = found.means.T
    assert neighbours[0] == pytest.approx(1, abs=0.2)
    assert neighbours[1] > 15
    assert components.tolist() == [2, 2]


def test_points_that_coincide_count_once():
    pytest.importorskip("skdim")
    once = flat(100, 2, 5)
    twice = np.r_[once, once]
    found = ki.intrinsic_dimension(clouds_of(twice, twice), subsets=1, estimators=("TwoNN", "MLE"))
    assert found.distinct.tolist() == [[100, 100]]
    alone = ki.intrinsic_dimension(clouds_of(once, once), subsets=1, estimators=("TwoNN", "MLE"))
    np.testing.assert_allclose(found.values, alone.values)


def test_an_estimate_that_fails_has_a_reason(monkeypatch):
    skdim = pytest.importorskip("skdim")

    class Empty:
        dimension_ = np.nan

        def fit(self, points):
            if len(points) > 60:
                raise ValueError("no idea")
            return self

    monkeypatch.setattr(skdim.id, "Empty", Empty, raising=False)
    for rows, reason in ((100, "no idea"), (50, "not finite")):
        clouds = clouds_of(flat(rows, 2, 5), flat(rows, 2, 5))
        found = ki.intrinsic_dimension(clouds, subsets=1, estimators=("Empty",))
        assert reason in found.reasons["site.0, Empty"]
        assert "– site.0, Empty:" in str(found)
        assert found.as_dict()["values"] == [[[None], [None]]]


def test_what_has_no_dimension_is_refused():
    pytest.importorskip("skdim")
    good, broken = flat(100, 2, 5), flat(100, 2, 5)
    broken[5, 2] = np.inf
    for error, match, call in (
        (InputError, "100 rows in 4 make 25", lambda: ki.intrinsic_dimension(clouds_of(good, good), subsets=4)),
        (
            InputError,
            "Only 1 of 100 points are distinct at 'site.1'",
            lambda: ki.intrinsic_dimension(clouds_of(good, np.ones((100, 3))), subsets=1),
        ),
        (
            NonFiniteError,
            "cloud of 'site.1' holds NaN",
            lambda: ki.intrinsic_dimension(clouds_of(good, broken), subsets=1),
        ),
        (
            InputError,
            "no estimator 'ThreeNN'",
            lambda: ki.intrinsic_dimension(clouds_of(good, good), estimators=("ThreeNN",)),
        ),
    ):
        with pytest.raises(error, match=match):
            call()


def test_without_the_library_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(ModuleNotFoundError, match=r"koopman-interp\[dimension\]"):
        ki.intrinsic_dimension(clouds_of(flat(100, 2, 5), flat(100, 2, 5)))


def test_subsets_share_no_row_and_are_drawn_by_the_seed(monkeypatch):
    skdim = pytest.importorskip("skdim")
    seen = []

    class Listener:
        dimension_ = 1.0

        def fit(self, points):
            seen.append({tuple(row) for row in points})
            return self

    monkeypatch.setattr(skdim.id, "Listener", Listener, raising=False)
    cloud = flat(120, 2, 3)
    for seed in (0, 0, 1):
        ki.intrinsic_dimension(clouds_of(cloud, cloud), subsets=3, estimators=("Listener",), seed=seed)
    first, again, other = seen[:6], seen[6:12], seen[12:]
    assert set.union(*first[:3]) == set(map(tuple, cloud))
    assert sum(map(len, first[:3])) == 120
    assert first[:3] == first[3:] == again[:3]
    assert first[:3] != other[:3]


def test_clouds_of_a_surrogate_have_a_dimension_too(surrogate, trajectories):
    pytest.importorskip("skdim")
    for of, names, width in ((None, ("K^0", "K^1", "K^2", "K^3", "K^4"), 14), ("states", trajectories.sites, 10)):
        found = ki.intrinsic_dimension(trajectories, surrogate, of=of, estimators=("PCA",), subsets=1)
        assert (found.names, set(found.widths)) == (names, {width})
