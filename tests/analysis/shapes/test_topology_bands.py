"""Bands hold what their runs hold; the permutation test is fair where nothing differs, and sharp where it does."""

import itertools
import json

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.shapes.topology_bands import exchanged
from koopman_interp.errors import FileFormatError, InputError
from tests.analysis.linear import clouds_of


def blob(rows, seed=0, width=3):
    return np.random.default_rng(seed).normal(size=(rows, width))


def test_bands_are_the_quantiles_of_disjoint_subsets():
    bands = ki.topology_bands(clouds_of(blob(80), blob(80, 1)), subsets=4, points=20, level=0.5)
    assert bands.independent
    assert len(bands.runs) == 4
    # Each point dies as a piece of its own subset, and no point is in two of them.
    deaths = [death for run in bands.runs for death in run.diagrams[0][0][:-1, 1] * run.diameters[0]]
    assert len(set(deaths)) == 4 * 19
    values = bands.statistic("total persistence", 0)
    assert values.shape == (4, 2)
    low, mean, high = bands.band(values)
    np.testing.assert_allclose(low, np.quantile(values, 0.25, axis=0))
    np.testing.assert_allclose(
        mean, [np.mean([run.statistic("total persistence", 0)[i] for run in bands.runs]) for i in (0, 1)]
    )
    np.testing.assert_allclose(high, np.quantile(values, 0.75, axis=0))
    scales = np.linspace(0, bands.threshold, 7)
    assert np.array_equal(bands.curves(1, scales)[2], bands.runs[2].curves(1, scales))
    assert "4 independent runs" in repr(bands)
    assert "total persistence H0" in str(bands)
    assert len(json.loads(json.dumps(bands.as_dict(), allow_nan=False))["runs"]) == 4
    np.testing.assert_allclose(bands.to_frame()["total persistence H0, mean"], mean)
    np.testing.assert_allclose(bands.to_frame()["total persistence H0, low"], low)


def test_bands_come_back_from_their_file(tmp_path):
    bands = ki.topology_bands(clouds_of(blob(40), blob(40, 1)), subsets=2, points=20, level=0.5)
    bands.save(tmp_path / "bands.safetensors")
    loaded = ki.TopologyBands.load(tmp_path / "bands.safetensors")
    assert (str(loaded), loaded.as_dict()) == (str(bands), bands.as_dict())
    bands.runs[0].save(tmp_path / "run.safetensors")
    with pytest.raises(FileFormatError, match="not the 'topology bands'"):
        ki.TopologyBands.load(tmp_path / "run.safetensors")


def test_bands_of_one_class():
    labels = torch.arange(80) % 2
    whole = clouds_of(blob(80), blob(80, 1), labels=labels)
    ours = ki.topology_bands(whole, subsets=2, points=15, label=1)
    alone = ki.topology_bands(whole[labels == 1], subsets=2, points=15)
    assert [run.diameters for run in ours.runs] == [run.diameters for run in alone.runs]
    with pytest.raises(InputError, match="No sample has the label 5"):
        ki.topology_bands(whole, subsets=2, points=15, label=5)


def test_too_few_rows_for_disjoint_subsets_may_overlap_but_then_not_be_tested():
    clouds = clouds_of(blob(50), blob(50, 1))
    with pytest.raises(InputError, match=r"3 disjoint subsets of 20 need 60 rows; there are 50\. .*overlap=True"):
        ki.topology_bands(clouds, subsets=3, points=20)
    bands = ki.topology_bands(clouds, subsets=3, points=20, overlap=True)
    with pytest.raises(InputError, match="share rows"):
        ki.permutation_test(bands, bands)


def test_bands_need_runs_that_are_alike():
    clouds = clouds_of(blob(50), blob(50, 1))
    one = ki.topology(clouds, points=20)
    with pytest.raises(InputError, match="two or more runs; got 1"):
        ki.TopologyBands((one,))
    with pytest.raises(InputError, match="these differ"):
        ki.TopologyBands((one, ki.topology(clouds, points=20, unit="none")))
    with pytest.raises(InputError, match="share of the runs"):
        ki.TopologyBands((one, one), level=0.0)


@pytest.mark.parametrize("paired", [True, False])
def test_the_p_value_is_the_share_of_exchanges_at_least_as_large(paired):
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=5), draw.normal(size=5) + 0.5
    observed = abs(second.mean() - first.mean())
    if paired:
        differences = [np.mean(np.array(signs) * (second - first)) for signs in itertools.product([1, -1], repeat=5)]
    else:
        pooled = np.r_[first, second]
        chosen = [list(some) for some in itertools.combinations(range(10), 5)]
        differences = [pooled[some].mean() - np.delete(pooled, some).mean() for some in chosen]
    expected = np.mean(np.abs(differences) >= observed - 1e-12)
    found = exchanged(first, second, paired=paired, exchanges=9999, seed=0)
    assert found.p_value == pytest.approx(expected)
    assert found.exchanges == len(differences)
    assert found.difference == pytest.approx(second.mean() - first.mean())


def test_drawn_exchanges_never_give_a_p_value_of_zero():
    far = exchanged(np.arange(12.0), np.arange(12.0) + 1000, paired=False, exchanges=99, seed=0)
    assert far.exchanges == 99
    assert far.p_value == pytest.approx(1 / 100)


def test_p_values_are_fair_where_nothing_differs():
    small = []
    for seed in range(40):
        clouds = clouds_of(blob(96, seed), blob(96, seed + 1000))
        bands = ki.topology_bands(clouds, subsets=8, points=12, max_dimension=0, seed=seed)
        small.append(ki.permutation_test(bands, bands, (0, 1), paired=False, exchanges=199).p_value)
    # Of 40 fair p-values 4 lie under 0.1 and 20 under 0.5; either range fails once in 200 times.
    assert sum(p <= 0.1 for p in small) <= 9
    assert 11 <= sum(p <= 0.5 for p in small) <= 29


def test_depths_and_classes_that_differ_are_told_apart():
    ring = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    circle = np.c_[np.cos(ring), np.sin(ring), 0 * ring]
    bands = ki.topology_bands(clouds_of(blob(160), circle), subsets=8, points=20)
    found = ki.permutation_test(bands, bands, (0, 1), statistic="entropy")
    assert (found.paired, found.runs) == (True, (8, 8))
    assert found.p_value == pytest.approx(2 / 256)
    # Gaps between random points of a circle spread wider than between those of a blob.
    assert found.difference < 0
    assert "p = 0.0078" in str(found)
    assert "8 pairs" in str(found)
    assert ki.PermutationTest.from_dict(found.as_dict()) == found
    other = ki.topology_bands(clouds_of(circle, circle), subsets=8, points=20)
    assert ki.permutation_test(bands, other, (0, 0), statistic="entropy").paired is False
    assert json.loads(json.dumps(found.as_dict()))["exchanges"] == 256


def test_groups_that_cannot_be_tested_are_refused():
    with pytest.raises(InputError, match="got 1 and 3"):
        exchanged(np.zeros(1), np.zeros(3), paired=False, exchanges=9, seed=0)
    with pytest.raises(InputError, match="got 2 and 3"):
        exchanged(np.zeros(2), np.zeros(3), paired=True, exchanges=9, seed=0)


def test_distances_between_topologies():
    clouds = clouds_of(blob(60), blob(60, 1), 2 * blob(60))
    found = ki.topology(clouds)
    same = ki.topology_distances(found, found)
    assert (same.bottleneck == 0).all()
    assert (same.wasserstein == 0).all()
    steps = ki.topology_distances(found[:-1], found[1:])
    assert steps.names == (("site.0", "site.1"), ("site.1", "site.2"))
    assert (steps.bottleneck > 0).all()
    # The third cloud is the first, scaled.
    assert ki.topology_distances(found[:1], found[2:]).wasserstein == pytest.approx(np.zeros((1, 2)), abs=1e-9)
    assert "site.0 | site.1" in str(steps)
    assert json.loads(json.dumps(steps.as_dict(), allow_nan=False))["limits"] == list(steps.limits)
    # Under different thresholds both count up to the smaller.
    low, high = (ki.topology(clouds, threshold=t) for t in (0.3, 0.9))
    assert ki.topology_distances(low, high).bottleneck == pytest.approx(np.zeros((3, 2)), abs=1e-9)


def test_topologies_that_do_not_compare_are_refused():
    clouds = clouds_of(blob(60), blob(60, 1))
    found = ki.topology(clouds)
    with pytest.raises(InputError, match="have 2 and 1 clouds"):
        ki.topology_distances(found, found[:1])
    with pytest.raises(InputError, match="choose one unit"):
        ki.topology_distances(found, ki.topology(clouds, unit="first"))


def test_distances_of_pieces_know_no_threshold():
    clouds = clouds_of(blob(60), 3 * blob(60, 1) ** 3)
    low, high = (
        ki.topology_distances(found[:1], found[1:]) for found in (ki.topology(clouds, threshold=t) for t in (0.01, 0.9))
    )
    for name in ("bottleneck", "wasserstein"):
        np.testing.assert_allclose(getattr(low, name)[:, 0], getattr(high, name)[:, 0], rtol=1e-9)
    # All moves together are more than the largest of many.
    assert low.wasserstein[0, 0] > 2 * low.bottleneck[0, 0]


def test_overlapping_subsets_are_drawn_anew_from_all_rows():
    clouds = clouds_of(blob(50), blob(50, 1))
    ours, again, other = (
        ki.topology_bands(clouds, subsets=3, points=20, overlap=True, seed=seed) for seed in (0, 0, 1)
    )
    assert not ours.independent
    assert len({run.diameters for run in ours.runs}) == 3
    assert [run.diameters for run in ours.runs] == [run.diameters for run in again.runs]
    assert [run.diameters for run in ours.runs] != [run.diameters for run in other.runs]


def test_bands_of_a_surrogate_are_those_of_its_iterates(surrogate, trajectories):
    bands = ki.topology_bands(trajectories, surrogate, subsets=2, points=20, max_dimension=0)
    assert bands.names == ("K^0", "K^1", "K^2", "K^3", "K^4")


def test_a_band_is_known_as_far_as_each_of_its_runs():
    clouds = clouds_of(blob(40), blob(40, 1))
    bands = ki.TopologyBands(tuple(ki.topology(clouds, threshold=t) for t in (0.3, 0.5)))
    assert bands.threshold == 0.3
    assert np.isnan(bands.curves(1, np.array([0.4]))[:, 0, 0]).tolist() == [True, False]


def test_a_cloud_that_there_is_not_is_refused():
    bands = ki.topology_bands(clouds_of(blob(50), blob(50, 1)), subsets=2, points=20, max_dimension=0)
    with pytest.raises(InputError, match="clouds 0 to 1; got 2"):
        ki.permutation_test(bands, bands, (0, 2))
