"""Normalisation is affine, undone by its inverse, and agrees with the textbook in numpy and SciPy."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from koopman_interp import NormalizationConfig
from koopman_interp.errors import InputError
from koopman_interp.surrogates import state_moments
from koopman_interp.surrogates.normalization import fit_normalization
from koopman_interp.surrogates.state_moments import StateMoments
from tests.naming import named

WIDTHS = (5, 7, 6)


def states(rows=400, widths=WIDTHS, seed=0, rank=None):
    """Correlated, off-centre rows at each depth, all driven by the same samples."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    source = draw(rows, rank or max(widths))
    noise = 0.0 if rank else 0.1
    return [source @ draw(source.shape[1], width) + noise * draw(rows, width) + 3 * draw(width) for width in widths]


def fitted(data, chunks=1, **settings):
    sizes = torch.arange(len(data[0])).chunk(chunks)
    batches = ([state[rows] for state in data] for rows in sizes)
    return fit_normalization(batches, NormalizationConfig(**settings), dtype=torch.float64)


SETTINGS = [
    {},
    {"whiten": 1.0},
    {"whiten": 0.4, "scale": "per depth"},
    {"scale": "common"},
    {"align": True},
    {"dimension": 3},
    {"dimension": 3, "whiten": 1.0, "scale": "common"},
    {"dimension": 2, "whiten": 0.5, "basis": "per depth", "align": True},
]


@pytest.mark.parametrize("widths", [(5, 5, 5), WIDTHS])
@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_normalising_undoes_denormalising(settings, widths):
    data = states(widths=widths)
    maps = fitted(data, **settings)
    points = torch.randn(30, maps.dimension, dtype=torch.float64)
    for depth in range(3):
        torch.testing.assert_close(maps.normalize(maps.denormalize(points, depth), depth), points)


@pytest.mark.parametrize("settings", SETTINGS[:5], ids=named)
def test_denormalising_undoes_normalising_where_nothing_is_dropped(settings):
    data = states(widths=(5, 5, 5))
    maps = fitted(data, **settings)
    for depth, state in enumerate(data):
        torch.testing.assert_close(maps.denormalize(maps.normalize(state, depth), depth), state)


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_denormalising_projects_onto_the_principal_components(settings):
    data = states()
    maps = fitted(data, **settings)
    for depth, state in enumerate(data):
        centred = (state - state.mean(0)).numpy()
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        kept = axes[: maps.dimension]
        expected = state.mean(0) + torch.from_numpy(centred @ kept.T @ kept)
        torch.testing.assert_close(maps.denormalize(maps.normalize(state, depth), depth), expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
@pytest.mark.parametrize("chunks", [3, 40])
def test_chunks_give_what_one_pass_gives(settings, chunks):
    data = states()
    whole, streamed = fitted(data, **settings), fitted(data, chunks, **settings)
    for depth, state in enumerate(data):
        first, second = whole.normalize(state, depth), streamed.normalize(state, depth)
        # Components are free up to their sign; aligned depths take the signs of the last.
        free = 2 if settings.get("align") else depth
        signs = (whole.normalize(data[free], free) * streamed.normalize(data[free], free)).sum(0).sign()
        torch.testing.assert_close(second * signs, first)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_components_and_whitening_are_those_of_numpy(whiten):
    data = states()
    maps = fitted(data, dimension=3, whiten=whiten, scale="common")
    size = np.sqrt(sum(state.numpy().var(0).sum() for state in data) / sum(state.shape[1] for state in data))
    for depth, state in enumerate(data):
        centred = (state.numpy() - state.numpy().mean(0)) / size
        values, vectors = np.linalg.eigh(np.cov(centred.T, bias=True))
        values, vectors = values[::-1][:3], vectors[:, ::-1][:, :3]
        expected = centred @ vectors * values ** (-whiten / 2)
        found = maps.normalize(state, depth).numpy()
        np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(np.cov(found.T, bias=True), np.diag(values ** (1 - whiten)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("whiten", [0.0, 0.5])
def test_alignment_is_the_orthogonal_procrustes_of_scipy(whiten):
    data = states()
    loose = fitted(data, dimension=4, whiten=whiten)
    aligned = fitted(data, dimension=4, whiten=whiten, align=True)
    last = loose.normalize(data[-1], 2).numpy()
    for depth, state in enumerate(data):
        before = loose.normalize(state, depth).numpy()
        rotation, _ = orthogonal_procrustes(before, last)
        np.testing.assert_allclose(aligned.normalize(state, depth).numpy(), before @ rotation, rtol=1e-8, atol=1e-8)


def test_alignment_finds_a_rotation_that_is_there():
    first = states(widths=(6,))[0]
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    data = [first, 4 * first @ turn + 1]
    maps = fitted(data, align=True, scale="per depth")
    torch.testing.assert_close(maps.normalize(data[0], 0), maps.normalize(data[1], 1))
    assert maps.coordinates.aligned
    assert "rotated onto the last depth" in str(maps.coordinates)


def test_scaled_per_depth_a_coordinate_has_size_one():
    data = states(widths=(5, 5, 5))
    maps = fitted(data, scale="per depth")
    for depth, state in enumerate(data):
        points = maps.normalize(state, depth)
        assert float(points.square().mean()) == pytest.approx(1)
        torch.testing.assert_close(points.mean(0), torch.zeros(maps.dimension, dtype=torch.float64))
    assert maps.coordinates.growth is None


# --- that does not bend the operator ------------------------------------------------------------------------


def linear_motion(depths=6, width=4, growth=1.0):
    """States of a linear motion whose eigenvalues are known, about means that move as they like."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.eye(width, dtype=torch.float64) + 0.3 * torch.randn(width, width, generator=generator).double()
    values = growth * torch.linspace(0.95, 0.6, width, dtype=torch.float64)
    K = basis @ torch.diag(values) @ torch.linalg.inv(basis)
    moved = [torch.randn(500, width, generator=generator, dtype=torch.float64)]
    for _ in range(depths - 1):
        moved.append(moved[-1] @ K.T)
    return [state + 3 * torch.randn(width, generator=generator) for state in moved], values


def operator_between(maps, data):
    """The operator in common coordinates, by least squares over all steps."""
    points = [maps.normalize(state, depth) for depth, state in enumerate(data)]
    return torch.linalg.lstsq(torch.cat(points[:-1]), torch.cat(points[1:])).solution.T


@pytest.mark.parametrize("growth", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("scale", ["auto", "geometric", "common"])
def test_growth_times_the_operator_has_the_eigenvalues_of_the_host(growth, scale):
    data, values = linear_motion(growth=growth)
    maps = fitted(data, scale=scale)
    K = operator_between(maps, data)
    found = maps.coordinates.growth * torch.linalg.eigvals(K).real.sort(descending=True).values
    torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-8)
    # Which aligning and scales of their own would not give.
    bent = operator_between(fitted(data, scale="per depth", align=True), data)
    assert float((torch.linalg.eigvals(bent).real.sort(descending=True).values - values).abs().max()) > 1e-3


def test_growth_is_by_operator_step():
    data, _ = linear_motion(growth=1.3)
    whole = fitted(data).coordinates.growth
    apart = fit_normalization([data[::2]], times=[0.0, 2.0, 4.0], dtype=torch.float64).coordinates.growth
    assert apart == pytest.approx(whole, rel=0.1)


def test_depths_of_one_width_share_a_basis():
    data = states(widths=(5, 5, 5))
    maps = fitted(data, dimension=3)
    assert maps.coordinates.basis == "shared"
    scaled = [forward / forward.norm() for _, forward, _ in map(maps.maps, range(3))]
    torch.testing.assert_close(scaled[0], scaled[1])
    torch.testing.assert_close(scaled[0], scaled[2])
    # The principal components of all depths, centred and scaled.
    pooled = np.concatenate([(fitted(data).normalize(state, depth)).numpy() for depth, state in enumerate(data)])
    assert np.allclose(np.cov(pooled.T, bias=True), np.diag(np.diag(np.cov(pooled.T, bias=True))), atol=1e-9)
    assert fitted(states()).coordinates.basis == "per depth"
    with pytest.raises(InputError, match="needs one width"):
        fitted(states(), basis="shared")


def test_even_growth_is_scaled_geometrically_and_uneven_growth_per_depth():
    source = states(widths=(5,), seed=1)[0]
    generator = torch.Generator().manual_seed(2)

    def grown(sizes):
        # Turned by a nonlinear map, so that no linear operator explains the motion.
        return [size * torch.sin(3 * source @ torch.randn(5, 5, generator=generator).double()) for size in sizes]

    even, uneven = fitted(grown([1, 2, 4, 8])), fitted(grown([1, 7, 8, 9]))
    assert (even.coordinates.scale, uneven.coordinates.scale) == ("geometric", "per depth")
    assert even.coordinates.growth == pytest.approx(2, rel=0.1)
    assert "evenly" in even.coordinates.reason
    assert "unevenly" in uneven.coordinates.reason
    # A linear motion is the same motion in one size, however its own changes.
    data, _ = linear_motion()
    K = torch.diag(torch.tensor([0.01, 0.9, 0.8, 0.7], dtype=torch.float64))
    first = 50 * torch.eye(4, dtype=torch.float64)[0] * data[0] + data[0]
    moved = [first, first @ K, first @ K @ K, first @ K @ K @ K]
    assert fitted(moved).coordinates.scale == "common"
    assert "linear operator" in fitted(moved).coordinates.reason


def test_one_map_at_all_depths_keeps_one_centre_and_one_size():
    """`y' = y / 2 + 0.3 x²` moves the mean of y with depth; centred by depth, it is another map at each."""
    x = torch.rand(600, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    flow = [x]
    for _ in range(4):
        x = torch.stack([0.9 * x[:, 0], 0.5 * x[:, 1] + 0.3 * x[:, 0] ** 2], 1)
        flow.append(x)
    maps = fitted(flow)
    assert (maps.coordinates.centre, maps.coordinates.scale, maps.coordinates.growth) == ("common", "common", 1)
    for depth in range(1, 5):
        assert all(torch.equal(a, b) for a, b in zip(maps.maps(0), maps.maps(depth), strict=True))
    # Components are those of all states together about the one centre.
    together = torch.cat([maps.normalize(state, depth) for depth, state in enumerate(flow)])
    covariance = torch.cov(together.T, correction=0)
    torch.testing.assert_close(covariance, torch.diag(covariance.diagonal()), atol=1e-10, rtol=0)
    assert float(together.mean(0).abs().max()) < 1e-12
    # The same states by maps of their own at each depth are no such motion.
    turned = [state @ torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0] for state in flow]
    assert fitted(turned).coordinates.centre == "per depth"


def test_one_centre_needs_one_width():
    with pytest.raises(InputError, match="One centre"):
        fitted(states(), centre="common")


def test_the_rule_is_the_same_whatever_the_chunks():
    data = states(widths=(5, 5, 5))
    assert fitted(data).coordinates == fitted(data).coordinates
    assert fitted(data, 7).coordinates.reason == fitted(data).coordinates.reason


def test_components_are_kept_by_variance_and_64_in_any_case():
    generator = torch.Generator().manual_seed(0)
    falling = torch.logspace(0, -4, 100, dtype=torch.float64)
    data = [torch.randn(900, 100, generator=generator, dtype=torch.float64) * falling for _ in range(2)]
    assert fitted(data).dimension == 64
    flat = [torch.randn(900, 100, generator=generator, dtype=torch.float64) for _ in range(2)]
    assert fitted(flat, variance=0.9).dimension in range(80, 92)
    assert fitted(flat).dimension == 100
    # What does not vary is no component.
    null = [torch.cat([state[:, :10], torch.zeros(900, 5, dtype=torch.float64)], 1) for state in flat]
    assert fitted(null).dimension == 10


def test_blocks_in_float32_agree_with_float64():
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(5000, 150, generator=generator) + 5 for _ in range(2)]
    moments, exact = (StateMoments([150, 150], 150, align=False) for _ in range(2))
    assert not moments.precise
    moments.update(data)
    exact.update([state.double() for state in data])
    ones = torch.ones(150, dtype=torch.float64)
    values, _ = moments.components([0, 1], [0.5, 0.5], [moments.mean(0), moments.mean(1)], ones)
    expected, _ = exact.components([0, 1], [0.5, 0.5], [exact.mean(0), exact.mean(1)], ones)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    assert float(moments.variances(1).sum()) == pytest.approx(float(exact.variances(1).sum()), rel=1e-6)
    torch.testing.assert_close(moments.mean(0), exact.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunks", [1, 9])
def test_second_moments_of_every_third_row_beside_means_of_all(chunks):
    data = states(rows=400, widths=(5, 5))
    sizes = torch.arange(400).chunk(chunks)
    moments = StateMoments([5, 5], 5, align=False, stride=3)
    for rows in sizes:
        moments.update([state[rows] for state in data])
    assert moments.count == 134
    torch.testing.assert_close(moments.mean(0), data[0].mean(0))
    assert float(moments.variances(1).sum()) == pytest.approx(float(data[1][::3].var(0, unbiased=False).sum()))


def test_linearity_is_what_least_squares_leaves_in_units_of_where_each_step_arrives():
    generator = torch.Generator().manual_seed(1)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    first = draw(300, 5)
    data = [first, 40 * (first @ draw(5, 5) + draw(300, 5)), 3 + (first @ draw(5, 5)).tanh()]  # of very different sizes
    factors = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    moments = StateMoments([5, 5, 5], 5, align=False)
    for rows in torch.arange(300).chunk(4):
        moments.update([state[rows] for state in data])
    rows = [(state * factors).numpy() for state in data]
    centred = [row - row.mean(0) for row in rows]
    sizes = [np.sqrt((row**2).mean()) for row in centred[1:]]

    def left(before, after):
        return ((after - before @ np.linalg.lstsq(before, after, rcond=None)[0]) ** 2).sum() / (2 * rows[0].size)

    def stacked(states):
        befores = np.concatenate([state / size for state, size in zip(states[:-1], sizes, strict=True)])
        return befores, np.concatenate([state / size for state, size in zip(states[1:], sizes, strict=True)])

    affine = [np.c_[row, np.ones(len(row))] for row in rows]
    own = sum(left(affine[at] / sizes[at], affine[at + 1] / sizes[at]) for at in range(2))
    found = moments.linearity(factors)
    assert found.centred == pytest.approx(left(*stacked(centred)), rel=1e-6)
    assert found.affine == pytest.approx(left(*stacked(affine)), rel=1e-6)
    assert found.own == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("settings", SETTINGS, ids=named)
def test_differences_map_linearly(settings):
    data = states()
    maps = fitted(data, **settings)
    points = torch.randn(2, 9, maps.dimension, dtype=torch.float64)
    for depth in range(3):
        first, second = (maps.denormalize(each, depth) for each in points)
        difference = maps.denormalize_difference(points[0] - points[1], depth)
        torch.testing.assert_close(difference, first - second)
        torch.testing.assert_close(maps.denormalize_difference(-3 * (points[0] - points[1]), depth), -3 * difference)
        assert not maps.denormalize_difference(torch.zeros_like(points[0]), depth).any()


def test_a_mean_far_larger_than_the_spread_does_no_harm():
    data = [state + 1e7 for state in states()]
    maps = fitted(data, 7, dimension=4)
    near = fitted(states(), 7, dimension=4)
    for depth, state in enumerate(data):
        found = maps.normalize(state, depth)
        torch.testing.assert_close(found, near.normalize(state - 1e7, depth), rtol=1e-5, atol=1e-5)


# --- coordinates that outlie --------------------------------------------------------------------------------


def outlying(widths=(40, 40, 40), by=1e4, **settings):
    data = states(widths=widths)
    for state in data:
        state[:, 3] *= by
    return data, fitted(data, **settings)


def test_an_outlying_coordinate_hides_no_other():
    for widths in ((40, 40, 40), (40, 50, 45)):
        data, maps = outlying(widths)
        assert maps.coordinates.outlying == 1
        for depth, state in enumerate(data):
            points = maps.normalize(state, depth)
            if widths[depth] == maps.dimension:
                torch.testing.assert_close(maps.denormalize(points, depth), state, rtol=1e-6, atol=1e-6)
            # Its squares are at most a hundred times the mean of the others', of which there are 39 and more.
            without = state.clone()
            without[:, 3] = state[:, 3].mean()
            share = maps.normalize(without, depth).square().sum() / points.square().sum()
            assert share > 0.2, share


def test_however_far_it_outlies_the_others_look_the_same():
    data, maps = outlying(by=1e4)
    farther, same = outlying(by=1e6)
    for depth in range(3):
        torch.testing.assert_close(
            maps.normalize(data[depth], depth).square().sum(1),
            same.normalize(farther[depth], depth).square().sum(1),
            rtol=1e-5,
            atol=1e-5,
        )


def test_one_factor_for_all_depths_leaves_the_eigenvalues_the_hosts_own():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(30, 30, generator=generator, dtype=torch.float64) / 30**0.5
    size = torch.ones(30, dtype=torch.float64)
    size[7] = 1e5
    A = size[:, None] * A / size
    data = [size * torch.randn(500, 30, generator=generator, dtype=torch.float64)]
    for _ in range(2):
        data.append(data[-1] @ A.T)
    maps = fitted(data)
    assert maps.coordinates.outlying == 1
    before, after = maps.normalize(data[0], 0), maps.normalize(data[1], 1)
    K = torch.linalg.lstsq(before - before.mean(0), after - after.mean(0)).solution.T
    found = torch.linalg.eigvals(maps.coordinates.growth * K).abs().sort().values
    torch.testing.assert_close(found, torch.linalg.eigvals(A).abs().sort().values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("widths", [(5, 5, 5), (64, 64, 64), WIDTHS])
def test_states_of_like_coordinates_have_none(widths):
    assert fitted(states(widths=widths)).coordinates.outlying == 0


def test_sketches_know_the_factors(monkeypatch):
    data = states(widths=(90, 90, 90), rank=6, rows=300)
    for state in data:
        state[:, 3] *= 1e3
    exact = fitted(data, dimension=12)
    assert exact.coordinates.outlying == 1
    monkeypatch.setattr(state_moments, "EXACT_WIDTH", 20)
    sketched = fitted(data, 4, dimension=12)
    for depth, state in enumerate(data):
        found, expected = sketched.normalize(state, depth), exact.normalize(state, depth)
        torch.testing.assert_close(found.square().sum(1), expected.square().sum(1), rtol=1e-3, atol=1e-3)


# --- sketches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(90, 100, 95), (90, 100, 12), (12, 13, 100), (90, 90, 90)])
@pytest.mark.parametrize("settings", [{}, {"whiten": 0.7}], ids=named)
def test_sketched_moments_of_data_of_low_rank_are_exact(widths, settings, monkeypatch):
    data = states(widths=widths, rank=6, rows=300)
    kept = 18 if len(set(widths)) == 1 else 6  # all three depths' where they share a basis
    exact = {align: fitted(data, dimension=kept, align=align, **settings) for align in (False, True)}
    monkeypatch.setattr(state_moments, "EXACT_WIDTH", 20)
    sketched = {align: fitted(data, 4, dimension=kept, align=align, **settings) for align in (False, True)}
    for depth, state in enumerate(data):
        expected, found = (maps[False].normalize(state, depth) for maps in (exact, sketched))
        torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sketched[False].denormalize(found, depth), state, rtol=1e-5, atol=1e-5)
    # Aligned, both are turned onto their own last depth, whose components are free up to sign.
    expected, found = (maps[True].normalize(data[-1], 2) for maps in (exact, sketched))
    signs = (expected * found).sum(0).sign()
    for depth, state in enumerate(data):
        expected, found = (maps[True].normalize(state, depth) for maps in (exact, sketched))
        torch.testing.assert_close(found * signs, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sketched[True].denormalize(found, depth), state, rtol=1e-5, atol=1e-5)


def test_sketches_are_held_where_they_are_smaller_than_what_they_stand_for(monkeypatch):
    monkeypatch.setattr(state_moments, "EXACT_WIDTH", 20)
    for width, components in ((200, 4), (200, 90), (15, 4)):
        moments = StateMoments([width, width], components, align=True)
        moments.update([torch.randn(30, width), torch.randn(30, width)])
        held = sum(each.nbytes for parts in vars(moments).values() for each in _tensors(parts))
        whole = 4 * 8 * width**2  # second moments of either depth and their cross moments, in float64
        assert (held < 0.9 * whole) == (width == 200 and components == 4)


def _tensors(parts):
    return [each for each in parts if isinstance(each, torch.Tensor)] if isinstance(parts, list) else []


def test_sketches_keep_the_promises_of_exact_maps(monkeypatch):
    data = states(widths=(90, 100, 95), rows=300)
    exact = fitted(data, 4, dimension=8)
    monkeypatch.setattr(state_moments, "EXACT_WIDTH", 20)
    maps = fitted(data, 4, dimension=8)
    points = torch.randn(30, 8, dtype=torch.float64)
    for depth, state in enumerate(data):
        torch.testing.assert_close(maps.normalize(maps.denormalize(points, depth), depth), points)
        # Data of full rank is sketched only nearly, so the scale is near and no more.
        sizes = [float(each.normalize(state, depth).square().mean().sqrt()) for each in (maps, exact)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"dimension": 3}, {"whiten": 1.0}], ids=named)
def test_too_few_samples_are_refused_with_both_numbers(settings):
    size = settings.get("dimension", 5)
    with pytest.raises(InputError, match=f"more than {size} samples; got {size}"):
        fitted(states(rows=size), **settings)


def test_no_samples_are_refused():
    with pytest.raises(InputError, match="no samples"):
        fit_normalization([])
    with pytest.raises(InputError, match="no samples"):
        fit_normalization([[torch.zeros(0, 3), torch.zeros(0, 3)]])


@pytest.mark.parametrize("rows", [40, 300])
@pytest.mark.parametrize("value", [1.0, 0.1, -273.15, 1 / 3])
@pytest.mark.parametrize("settings", [{}, {"whiten": 0.5}], ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_depth_that_never_varies_is_named(rows, value, settings, dtype):
    # In floating point the mean of equal numbers need not be that number.
    data = [state.to(dtype) for state in states(rows=rows, widths=(5, 5, 5))]
    data[1] = torch.full((rows, 5), value, dtype=dtype)
    with pytest.raises(InputError, match="depth 1 is the same for all"):
        fitted(data, 3, **settings)


def test_a_depth_of_tiny_variance_is_no_constant():
    data = states()
    data[1] = data[1] * 1e-6
    points = fitted(data, scale="per depth").normalize(data[1], 1)
    assert float(points.square().sum(1).mean() / 7) == pytest.approx(1, rel=0.05)  # but for two components dropped


def test_a_dimension_wider_than_a_depth_is_refused():
    with pytest.raises(InputError, match="Cannot keep 6 components of a depth of width 5"):
        fitted(states(), dimension=6)


@pytest.mark.parametrize(
    "settings",
    [{"dimension": 0}, {"whiten": 1.5}, {"whiten": -0.1}, {"variance": 0.0}, {"variance": 1.1}],
    ids=named,
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError, match="; got"):
        NormalizationConfig(**settings)
