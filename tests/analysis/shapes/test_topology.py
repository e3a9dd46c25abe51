"""Betti numbers of shapes that are known, and of points counted by linear algebra over two elements."""

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError, NonFiniteError, TooLargeError
from tests.analysis.linear import clouds_of, known_operator, linear_data, plain_surrogate, whole_power


def ring(points, centre=0.0):
    angle = np.arange(points) / points * 2 * np.pi
    return np.c_[np.cos(angle) + centre, np.sin(angle)]


CIRCLE = ring(120)
RINGS = np.r_[ring(60), ring(60, centre=3.0)]
BLOB = np.random.default_rng(0).normal(size=(120, 2))


def rank_over_two(columns):
    """Rank of a 0/1 matrix given as sets of rows, by elimination."""
    pivots = {}
    for column in columns:
        column = set(column)
        while column and max(column) in pivots:
            column ^= pivots[max(column)]
        if column:
            pivots[max(column)] = column
    return len(pivots)


def naive_betti(distances, scale, most):
    """βₖ = simplices − rank ∂ₖ − rank ∂ₖ₊₁ of the Vietoris–Rips complex."""
    n = len(distances)
    simplices = [
        [s for s in combinations(range(n), k + 1) if all(distances[i, j] <= scale for i, j in combinations(s, 2))]
        for k in range(most + 2)
    ]
    places = [{s: index for index, s in enumerate(level)} for level in simplices]
    ranks = [0]
    for k in range(1, most + 2):
        faces = [[places[k - 1][face] for face in combinations(s, k)] for s in simplices[k]]
        ranks.append(rank_over_two(faces))
    return [len(simplices[k]) - ranks[k] - ranks[k + 1] for k in range(most + 1)]


def test_a_circle_is_a_circle_and_two_rings_are_two():
    found = ki.topology(clouds_of(CIRCLE, RINGS), threshold=0.5)
    assert found.betti(0.1) == [[1, 1], [2, 2]]
    assert found.betti(0.0) == [[120, 0], [120, 0]]
    # Past the gap between them the rings are one piece, and past √3/5 of the diameter they are filled.
    assert found.betti(0.25) == [[1, 1], [1, 2]]
    assert found.betti(0.5)[1][0] == 1
    np.testing.assert_allclose(found.diameters, [2, 5], atol=1e-12)
    assert (found.names, found.points) == (("site.0", "site.1"), 120)


def test_a_loop_outlives_a_low_threshold_and_dies_under_a_high_one():
    low, high = (ki.topology(clouds_of(CIRCLE, BLOB), threshold=t).diagrams[0][1] for t in (0.5, 1.0))
    assert np.isinf(low).sum() == 1
    assert len(low) == 1
    # A circle's loop lives until the triangle with sides √3 r appears.
    np.testing.assert_allclose(high[0, 1], np.sqrt(3) / 2, atol=0.02)


@pytest.mark.parametrize("most", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_counted_over_all_simplices(seed, most):
    draw = np.random.default_rng(seed)
    # Noisy rings have loops, which a blob of so few points seldom has.
    clouds = [ring(13) + 0.15 * draw.normal(size=(13, 2)), draw.normal(size=(13, 3))]
    found = ki.topology(clouds_of(*clouds), max_dimension=most, threshold=1.0)
    seen = set()
    for index, cloud in enumerate(clouds):
        distances = squareform(pdist(cloud)) / pdist(cloud).max()
        steps = np.unique(distances)
        for scale in (steps[1:] + steps[:-1])[::4] / 2:
            expected = naive_betti(distances, scale, most)
            assert found.betti(float(scale))[index] == expected
            seen.add(tuple(expected))
    assert len(seen) > 4


def test_scales_are_shares_of_the_diameter():
    plain, scaled = (ki.topology(clouds_of(cloud, BLOB)) for cloud in (RINGS, RINGS * 1000 + 7))
    for ours, theirs in zip(plain.diagrams[0], scaled.diagrams[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert scaled.diameters[0] == pytest.approx(1000 * plain.diameters[0])


@pytest.mark.parametrize("scale", [-0.01, 0.31, 2.0])
def test_a_scale_past_the_threshold_is_refused(scale):
    found = ki.topology(clouds_of(CIRCLE, BLOB), threshold=0.3)
    assert found.betti(0.3)[0] == [1, 1]
    with pytest.raises(InputError, match=r"from 0 to 0\.3 diameters"):
        found.betti(scale)


@pytest.mark.parametrize("unit", ["own", "first", "none"])
@pytest.mark.parametrize("engine", [None, "ripser"])
@given(threshold=st.floats(1e-3, 1.0), seed=st.integers(0, 10**6))
@settings(max_examples=15)
def test_a_topology_answers_at_the_threshold_it_was_computed_with(unit, engine, threshold, seed):
    """Whatever the sizes of the clouds, and as an independent count of pieces says."""
    draw = np.random.default_rng(seed)
    clouds = [draw.uniform(0.1, 10) * draw.normal(size=(12, 2)) for _ in range(2)]
    found = ki.topology(clouds_of(*clouds), threshold=threshold, unit=unit, engine=engine)
    assert found.threshold == threshold
    counts = found.betti(threshold)
    assert np.isfinite(found.curves(1, np.array([threshold]))).all()
    for cloud, (pieces, _) in zip(clouds, counts, strict=True):
        length = {"own": pdist(cloud).max(), "first": pdist(clouds[0]).max(), "none": 1.0}[unit]
        joined = squareform(pdist(cloud) / length <= threshold)
        assert pieces == connected_components(joined)[0]


def test_unless_told_a_topology_answers_at_the_scale_it_chose_and_at_those_it_reports():
    for seed in range(20):
        draw = np.random.default_rng(seed)
        clumps = np.concatenate([0.05 * draw.normal(size=(40, 2)) + at for at in ((0, 0), (3, 0), (0, 3))])
        clouds = clouds_of(*(1.7**depth * clumps for depth in range(4)))
        for found in (ki.topology(clouds), ki.topology(clouds, unit="first")):
            assert len(found.betti(found.threshold)) == 4
        own = ki.topology(clouds)
        assert own.betti(0.2) == [own.betti(0.1 + 0.1)[0]] * 4
        # Arithmetic on scales rounds, and is not to be punished.
        assert own.betti(float(np.nextafter(own.threshold, 1))) == own.betti(own.threshold)
        with pytest.raises(InputError, match="Scales were computed"):
            own.betti(own.threshold * (1 + 1e-9))


def test_only_scales_under_the_threshold_are_reported():
    found = ki.topology(clouds_of(CIRCLE, RINGS), threshold=0.15)
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert values["betti"] == {
        "0.05": {"site.0": [1, 1], "site.1": [2, 2]},
        "0.1": {"site.0": [1, 1], "site.1": [2, 2]},
    }
    assert values["diameters"] == list(found.diameters)
    head, *rows = str(found).split("\n")[3:]
    assert "β1 at 0.1" in head
    assert "at 0.2" not in head
    assert rows[1].split() == ["site.1", "2", "2", "2", "2"]
    frame = found.to_frame()
    assert frame["cloud"].tolist() == list(found.names)
    assert frame["β1 at 0.1"].tolist() == [counts[1] for counts in found.betti(0.1)]


def test_points_that_coincide_are_refused():
    with pytest.raises(InputError, match=r"'site\.1': All 120 points coincide"):
        ki.topology(clouds_of(CIRCLE, np.ones((120, 3))))


def test_points_that_coincide_in_part_are_one():
    twice = np.r_[ring(30), ring(30)]
    assert ki.topology(clouds_of(twice, ring(60))).betti(0.2) == [[1, 1], [1, 1]]
    assert ki.topology(clouds_of(twice, ring(60))).betti(0.0)[0][0] == 30


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5])
def test_a_threshold_is_a_share(threshold):
    with pytest.raises(InputError, match="between 0 and 1"):
        ki.topology(clouds_of(CIRCLE, BLOB), threshold=threshold)


def test_one_point_has_no_shape():
    with pytest.raises(InputError, match="two or more points; got 1"):
        ki.topology(clouds_of(CIRCLE[:1], BLOB[:1]))
    with pytest.raises(InputError, match="two or more points; got 1"):
        ki.topology(clouds_of(CIRCLE, BLOB), points=1)


def test_a_subset_is_drawn_by_the_seed_and_is_the_same_at_each_depth():
    found = [ki.topology(clouds_of(BLOB, BLOB), points=40, seed=seed) for seed in (0, 0, 1)]
    assert all(one.points == 40 for one in found)
    for ours, theirs in zip(found[0].diagrams, found[1].diagrams, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not np.array_equal(found[0].diagrams[0][0], found[2].diagrams[0][0])
    assert np.array_equal(found[0].diagrams[0][0], found[0].diagrams[1][0])
    assert len(found[0].diagrams[0][0]) == 40


def test_the_iterates_of_a_surrogate(surrogate, trajectories):
    some = trajectories[:60]
    found = ki.topology(some, surrogate, threshold=1.0)
    assert found.names == ("K^0", "K^1", "K^2", "K^3", "K^4")
    z, K = surrogate.encode(some.states[0], 0).double().numpy(), surrogate.K.double().numpy()
    for step, (diameter, diagrams) in enumerate(zip(found.diameters, found.diagrams, strict=True)):
        distances = pdist(z @ np.linalg.matrix_power(K, step).T)
        assert diameter == pytest.approx(distances.max(), rel=1e-5)
        # The pieces of a cloud join along its shortest spanning tree.
        np.testing.assert_allclose(
            np.sort(diagrams[0][:-1, 1]), spanning_tree(squareform(distances / distances.max())), atol=1e-5
        )


def spanning_tree(distances):
    """Edge lengths of the shortest spanning tree, by Prim's algorithm."""
    reach, lengths = distances[0].copy(), []
    outside = set(range(1, len(distances)))
    while outside:
        nearest = min(outside, key=lambda point: reach[point])
        lengths.append(reach[nearest])
        outside.remove(nearest)
        reach = np.minimum(reach, distances[nearest])
    return np.sort(lengths)


def test_states_of_the_host_without_a_surrogate(trajectories):
    found = ki.topology(trajectories, points=80)
    assert found.names == trajectories.sites
    assert len(found.diagrams) == 5
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))[:80]
    for diameter, state in zip(found.diameters, trajectories.states, strict=True):
        assert diameter == pytest.approx(pdist(state[order].double().numpy()).max())


@pytest.mark.parametrize(
    ("of", "clouds"),
    [
        ("normalized", lambda k, t, i: k.normalization.normalize(t.states[i], i)),
        ("encoded", lambda k, t, i: k.encode(t.states[i], i)),
        ("predicted", lambda k, t, i: k.decode(k.operator.advance(k.encode(t.states[0], 0), k.steps(0, i)), i)),
    ],
)
def test_what_a_surrogate_makes_of_the_states(surrogate, trajectories, of, clouds):
    some = trajectories[:40]
    found = ki.topology(some, surrogate, of=of)
    for depth, diameter in enumerate(found.diameters):
        with torch.no_grad():
            cloud = clouds(surrogate, some, depth)
        assert diameter == pytest.approx(pdist(cloud.double().numpy()).max(), rel=1e-5)


def test_iterates_at_times_of_ones_own(surrogate, trajectories):
    found = ki.topology(trajectories[:40], surrogate, times=[0.0, 1.0, 7.0], unit="none")
    assert found.names == ("K^0", "K^1", "K^7")
    z = surrogate.encode(trajectories.states[0][:40], 0).detach().double().numpy()
    moved = z @ np.linalg.matrix_power(surrogate.K.double().numpy(), 7).T
    assert found.diameters[2] == pytest.approx(pdist(moved).max(), rel=1e-4)


def test_units():
    clouds = clouds_of(CIRCLE, 3 * CIRCLE)
    own, first, none = (ki.topology(clouds, unit=unit, threshold=0.4) for unit in ("own", "first", "none"))
    longest = [one.statistic("longest lifetime", 0) for one in (own, first, none)]
    side = 2 * np.sin(np.pi / 120)
    np.testing.assert_allclose(longest[0], [side / 2, side / 2])
    np.testing.assert_allclose(longest[1], [side / 2, 3 * side / 2])
    np.testing.assert_allclose(longest[2], [side, 3 * side])
    # A threshold is given in the same units as scales are read.
    for found, limit in ((own, 0.4), (first, 0.4), (none, 0.4)):
        assert found.thresholds == pytest.approx((limit, limit))
    assert [own.scale_name, first.scale_name] == ["diameters", "diameters of the first cloud"]
    assert "β0 at 0.2" in str(none)  # a tenth of the first diameter


def test_unless_told_each_cloud_has_a_threshold_of_its_own():
    clumps = np.repeat(np.eye(2), 60, axis=0) + 1e-3 * BLOB
    found = ki.topology(clouds_of(BLOB, clumps))
    assert found.thresholds[1] == pytest.approx(0.2)
    assert found.threshold == min(found.thresholds)
    scales = np.array([0.1, max(found.thresholds) + 0.01])
    curves = found.curves(1, scales)
    assert np.isfinite(curves[:, 0]).all()
    assert np.isnan(curves[:, 1]).all()
    assert np.isfinite(found.curves(0, scales)).all()
    tight = ki.topology(clouds_of(BLOB, np.r_[1e-3 * BLOB[:119], [[9.0, 9.0]]]))
    assert "–" in str(tight)
    values = json.loads(json.dumps(tight.as_dict(), allow_nan=False))
    assert values["betti"]["0.2"]["site.1"] == [2, None]


def test_a_subset_answers_for_the_rest_within_its_bound():
    noisy = RINGS + 0.05 * np.random.default_rng(0).normal(size=RINGS.shape)
    whole = ki.topology(clouds_of(noisy, BLOB), threshold=1.0, unit="none")
    for sampling in ("random", "farthest"):
        part = ki.topology(clouds_of(noisy, BLOB), points=50, sampling=sampling, threshold=1.0, unit="none")
        assert (part.points, part.rows) == (50, 120)
        distances = ki.topology_distances(part, whole)
        assert (distances.bottleneck <= 2 * np.array(part.covering)[:, None] + 1e-6).all()
        assert "subset's bound" in str(part)
        _, sums = part.tables()
        assert sums.text().split("\n")[2].split()[-1] == f"{2 * part.covering[0]:.3g}"
        assert sums.frame()["subset's bound"].tolist() == [2 * radius for radius in part.covering]
    assert whole.covering == ()


def test_a_class_alone(trajectories):
    found = ki.topology_by_class(trajectories, points=50)
    assert tuple(found) == trajectories.classes
    alone = ki.topology(trajectories[trajectories.labels == 1], points=50)
    for ours, theirs in zip(found[1].diagrams, alone.diagrams, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(InputError, match="No sample has the label 7; there are 0, 1, 2"):
        ki.topology(trajectories, label=7)
    with pytest.raises(InputError, match="no labels"):
        ki.topology_by_class(clouds_of(CIRCLE, BLOB))


def test_statistics_of_a_circle():
    found = ki.topology(clouds_of(CIRCLE, RINGS), threshold=0.5)
    side = np.sin(np.pi / 120)
    assert found.statistic("total persistence", 0)[0] == pytest.approx(119 * side)
    assert found.statistic("entropy", 0)[0] == pytest.approx(np.log(119))
    assert found.statistic("longest lifetime", 1)[0] == pytest.approx(0.5 - side, abs=1e-6)
    assert found.statistic(lambda diagram, limit: len(diagram) + limit, 1).tolist() == [1.5, 2.5]
    with pytest.raises(InputError, match="no statistic 'length'; there are total persistence"):
        found.statistic("length", 0)
    with pytest.raises(InputError, match="dimensions 0 to 1; got 2"):
        found.statistic("entropy", 2)


def test_it_is_saved_and_loaded(tmp_path):
    found = ki.topology(clouds_of(CIRCLE, RINGS), points=60)
    found.save(tmp_path / "t.safetensors")
    loaded = ki.Topology.load(tmp_path / "t.safetensors")
    assert repr(loaded) == repr(found)
    assert str(loaded) == str(found)
    assert loaded.as_dict() == found.as_dict()
    clouds_of(CIRCLE, RINGS).save(tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match="not the 'topology'"):
        ki.Topology.load(tmp_path / "other.safetensors")


def test_some_of_the_clouds():
    found = ki.topology(clouds_of(CIRCLE, RINGS, BLOB), points=60)
    last = found[1:]
    assert (last.names, len(last)) == (("site.1", "site.2"), 2)
    assert last.diagrams == found.diagrams[1:]
    assert last.covering == found.covering[1:]


def test_what_cannot_be_computed_is_refused(unchecked, surrogate, trajectories):
    clouds = clouds_of(CIRCLE, BLOB)
    broken = BLOB.copy()
    broken[3, 1] = np.nan
    for error, match, call in (
        (NonFiniteError, "cloud of 'site.1' holds NaN", lambda: ki.topology(clouds_of(CIRCLE, broken))),
        (NonFiniteError, "at site 'site.1'", lambda: ki.topology(clouds_of(CIRCLE, broken), points=9)),
        (TooLargeError, "At 'site.0': The distances of 120", lambda: ki.topology(clouds, most_memory=1e-4)),
        (InputError, "no unit 'metre'", lambda: ki.topology(clouds, unit="metre")),
        (InputError, "no sampling 'even'", lambda: ki.topology(clouds, sampling="even")),
        (InputError, "from 0 up; got -1", lambda: ki.topology(clouds, max_dimension=-1)),
        (InputError, "a scale past 0; got -2", lambda: ki.topology(clouds, threshold=-2.0, unit="none")),
        (InputError, "pairs is a share", lambda: ki.topology(clouds, pairs=0.0)),
        (InputError, "give koopman=", lambda: ki.topology(clouds, of="encoded")),
        (InputError, "no clouds of 'logits'", lambda: ki.topology(clouds, of="logits")),
        (InputError, "the surrogate has", lambda: ki.topology(clouds, surrogate)),
        (InputError, "chosen for iterates", lambda: ki.topology(trajectories, surrogate, of="encoded", times=[1.0])),
    ):
        with pytest.raises(error, match=match):
            call()


def test_the_bound_of_a_subset_is_in_units():
    clouds = clouds_of(BLOB, 3 * BLOB)
    own, first, none = (ki.topology(clouds, points=50, unit=unit) for unit in ("own", "first", "none"))
    np.testing.assert_allclose(own.covering, np.array(none.covering) / none.diameters)
    np.testing.assert_allclose(first.covering, np.array(none.covering) / none.diameters[0])


@pytest.mark.parametrize(("of", "names"), [("iterates", ("K^0", "K^3")), ("predicted", ("D(K^0)", "D(K^3)"))])
def test_iterates_are_counted_from_the_first_depth_wherever_it_stands(of, names):
    times = (2.0, 5.0)
    data = linear_data(known_operator(), times, rows=40, power=lambda K, time: whole_power(K, time - 2))
    found = ki.topology(data, plain_surrogate(known_operator(), times), of=of)
    assert found.names == names
    np.testing.assert_allclose(found.diameters, [pdist(state.numpy()).max() for state in data.states])


def test_clouds_are_not_taken_by_number_and_times_are_told_apart(unchecked, surrogate, trajectories):
    with pytest.raises(InputError, match=r"by a slice, as topology\[1:2\]; got 0"):
        ki.topology(clouds_of(CIRCLE, BLOB))[0]
    for times in ([], [1.0, 1.0], [np.nan]):
        with pytest.raises(InputError, match="one finite time or more, each once"):
            ki.topology(trajectories[:40], surrogate, times=times)
