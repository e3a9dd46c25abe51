"""Estimators agree on clouds of a known dimension and are shown to disagree on noise."""

import json
import sys

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.dimension import ESTIMATORS
from koopman_interp.errors import InputError, NonFiniteError

HOST = ki.HostFingerprint(model="m.M", adapter="torch", basis="b", dtype="float64", weights="0" * 32)


def trajectories_of(*clouds):
    return ki.Trajectories(
        states=tuple(torch.as_tensor(cloud, dtype=torch.float64) for cloud in clouds),
        sites=tuple(f"site.{depth}" for depth in range(len(clouds))),
        times=tuple(map(float, range(len(clouds)))),
        host=HOST,
        sequence=torch.arange(len(clouds[0])),
        position=torch.zeros(len(clouds[0]), dtype=torch.long),
    )


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
    found = ki.intrinsic_dimension(trajectories_of(flat(600, 2, 9), flat(600, 5, 20)), subsets=2)
    assert found.values.shape == (2, 2, len(ESTIMATORS))
    np.testing.assert_allclose(found.means[0], 2, atol=0.3)
    np.testing.assert_allclose(found.means[1], 5, atol=1.0)
    assert (found.points, found.widths) == (300, (9, 20))
    assert "site.1" in str(found)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["names"] == ["site.0", "site.1"]


def test_estimators_disagree_on_a_noisy_ring():
    pytest.importorskip("skdim")
    clouds = trajectories_of(ring(600, 64, 0.0), ring(600, 64, 0.05))
    found = ki.intrinsic_dimension(clouds, estimators=("TwoNN", "PCA"), subsets=1)
    neighbours, components = found.means.T
    assert neighbours[0] == pytest.approx(1, abs=0.2)
    assert neighbours[1] > 15
    assert components.tolist() == [2, 2]


def test_points_that_coincide_count_once():
    pytest.importorskip("skdim")
    once = flat(100, 2, 5)
    twice = np.r_[once, once]
    found = ki.intrinsic_dimension(trajectories_of(twice, twice), subsets=1, estimators=("TwoNN", "MLE"))
    assert found.distinct.tolist() == [[100, 100]]
    alone = ki.intrinsic_dimension(trajectories_of(once, once), subsets=1, estimators=("TwoNN", "MLE"))
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
        clouds = trajectories_of(flat(rows, 2, 5), flat(rows, 2, 5))
        found = ki.intrinsic_dimension(clouds, subsets=1, estimators=("Empty",))
        assert reason in found.reasons["site.0, Empty"]
        assert "– site.0, Empty:" in str(found)
        assert found.as_dict()["values"] == [[[None], [None]]]


def test_what_has_no_dimension_is_refused():
    pytest.importorskip("skdim")
    good, broken = flat(100, 2, 5), flat(100, 2, 5)
    broken[5, 2] = np.inf
    for error, match, call in (
        (InputError, "100 rows in 4 make 25", lambda: ki.intrinsic_dimension(trajectories_of(good, good), subsets=4)),
        (
            InputError,
            "Only 1 of 100 points are distinct at 'site.1'",
            lambda: ki.intrinsic_dimension(trajectories_of(good, np.ones((100, 3))), subsets=1),
        ),
        (
            NonFiniteError,
            "cloud of 'site.1' holds NaN",
            lambda: ki.intrinsic_dimension(trajectories_of(good, broken), subsets=1),
        ),
        (
            InputError,
            "no estimator 'ThreeNN'",
            lambda: ki.intrinsic_dimension(trajectories_of(good, good), estimators=("ThreeNN",)),
        ),
    ):
        with pytest.raises(error, match=match):
            call()


def test_without_the_library_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "skdim", None)
    monkeypatch.setitem(sys.modules, "skdim.id", None)
    with pytest.raises(ModuleNotFoundError, match=r"koopman-interp\[dimension\]"):
        ki.intrinsic_dimension(trajectories_of(flat(100, 2, 5), flat(100, 2, 5)))
