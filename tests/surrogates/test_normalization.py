"""Normalisation is affine, undone by its inverse, and agrees with the textbook in numpy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from koopman_interp import NormalizationConfig
from koopman_interp.errors import InputError
from koopman_interp.surrogates import normalization
from koopman_interp.surrogates.normalization import fit_normalization

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
    {"whiten": 0.4, "scale": 2.5},
    {"scale": None, "align": False},
    {"dimension": 3},
    {"dimension": 3, "whiten": 1.0, "scale": None, "align": False},
    {"dimension": 2, "whiten": 0.5, "align": False},
]


@pytest.mark.parametrize("widths", [(5, 5, 5), WIDTHS])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_normalising_undoes_denormalising(settings, widths):
    data = states(widths=widths)
    maps = fitted(data, **settings)
    points = torch.randn(30, maps.dimension, dtype=torch.float64)
    for depth in range(3):
        torch.testing.assert_close(maps.normalize(maps.denormalize(points, depth), depth), points)


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_denormalising_undoes_normalising_where_nothing_is_dropped(settings):
    data = states(widths=(5, 5, 5))
    maps = fitted(data, **settings)
    for depth, state in enumerate(data):
        torch.testing.assert_close(maps.denormalize(maps.normalize(state, depth), depth), state)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_denormalising_projects_onto_the_principal_components(settings):
    data = states()
    maps = fitted(data, **settings)
    for depth, state in enumerate(data):
        centred = (state - state.mean(0)).numpy()
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        kept = axes[: maps.dimension]
        expected = state.mean(0) + torch.from_numpy(centred @ kept.T @ kept)
        torch.testing.assert_close(maps.denormalize(maps.normalize(state, depth), depth), expected)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("chunks", [3, 40])
def test_chunks_give_what_one_pass_gives(settings, chunks):
    data = states()
    whole, streamed = fitted(data, **settings), fitted(data, chunks, **settings)
    for depth, state in enumerate(data):
        first, second = whole.normalize(state, depth), streamed.normalize(state, depth)
        # Components are free up to their sign; aligned depths take the signs of the last.
        free = depth if settings.get("align") is False else 2
        signs = (whole.normalize(data[free], free) * streamed.normalize(data[free], free)).sum(0).sign()
        torch.testing.assert_close(second * signs, first)


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_components_and_whitening_are_those_of_numpy(whiten):
    data = states()
    maps = fitted(data, dimension=3, whiten=whiten, scale=None, align=False)
    for depth, state in enumerate(data):
        centred = state.numpy() - state.numpy().mean(0)
        values, vectors = np.linalg.eigh(np.cov(centred.T, bias=True))
        values, vectors = values[::-1][:3], vectors[:, ::-1][:, :3]
        expected = centred @ vectors * values ** (-whiten / 2)
        found = maps.normalize(state, depth).numpy()
        np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(np.cov(found.T, bias=True), np.diag(values ** (1 - whiten)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("whiten", [0.0, 0.5])
def test_alignment_is_the_orthogonal_procrustes_of_scipy(whiten):
    data = states()
    loose = fitted(data, dimension=4, whiten=whiten, align=False)
    aligned = fitted(data, dimension=4, whiten=whiten)
    last = loose.normalize(data[-1], 2).numpy()
    for depth, state in enumerate(data):
        before = loose.normalize(state, depth).numpy()
        rotation, _ = orthogonal_procrustes(before, last)
        np.testing.assert_allclose(aligned.normalize(state, depth).numpy(), before @ rotation, rtol=1e-8, atol=1e-8)


def test_alignment_finds_a_rotation_that_is_there():
    first = states(widths=(6,))[0]
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    data = [first, 4 * first @ turn + 1]
    maps = fitted(data)
    torch.testing.assert_close(maps.normalize(data[0], 0), maps.normalize(data[1], 1))


@pytest.mark.parametrize("scale", [1.0, 0.01, 40.0])
@pytest.mark.parametrize("settings", [{}, {"dimension": 3}, {"whiten": 1.0}, {"dimension": 3, "whiten": 0.3}], ids=str)
def test_the_scale_is_the_root_mean_square_of_a_coordinate(scale, settings):
    data = states()
    maps = fitted(data, scale=scale, **settings)
    for depth, state in enumerate(data):
        points = maps.normalize(state, depth)
        assert float(points.square().mean().sqrt()) == pytest.approx(scale)
        torch.testing.assert_close(points.mean(0), torch.zeros(maps.dimension, dtype=torch.float64))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
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


# --- sketches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", [(90, 100, 95), (90, 100, 12), (12, 13, 100)])
@pytest.mark.parametrize("settings", [{}, {"whiten": 0.7}], ids=str)
def test_sketched_moments_of_data_of_low_rank_are_exact(widths, settings, monkeypatch):
    data = states(widths=widths, rank=6, rows=300)
    exact = {align: fitted(data, dimension=6, align=align, **settings) for align in (False, True)}
    monkeypatch.setattr(normalization, "EXACT_WIDTH", 20)
    sketched = {align: fitted(data, 4, dimension=6, align=align, **settings) for align in (False, True)}
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


def test_sketches_keep_the_promises_of_exact_maps(monkeypatch):
    monkeypatch.setattr(normalization, "EXACT_WIDTH", 20)
    data = states(widths=(90, 100, 95), rows=300)
    maps = fitted(data, 4, dimension=8)
    points = torch.randn(30, 8, dtype=torch.float64)
    for depth, state in enumerate(data):
        torch.testing.assert_close(maps.normalize(maps.denormalize(points, depth), depth), points)
        # Data of full rank is sketched only nearly, so the scale is near and no more.
        assert float(maps.normalize(state, depth).square().mean().sqrt()) == pytest.approx(1, rel=0.1)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"dimension": 3}, {"whiten": 1.0}], ids=str)
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
@pytest.mark.parametrize("settings", [{}, {"whiten": 0.5}], ids=str)
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
    points = fitted(data).normalize(data[1], 1)
    assert float(points.square().mean().sqrt()) == pytest.approx(1)


def test_a_dimension_wider_than_a_depth_is_refused():
    with pytest.raises(InputError, match="Cannot keep 6 components of a depth of width 5"):
        fitted(states(), dimension=6)


@pytest.mark.parametrize(
    "settings",
    [{"dimension": 0}, {"whiten": 1.5}, {"whiten": -0.1}, {"scale": 0.0}, {"scale": -1.0}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError, match="; got"):
        NormalizationConfig(**settings)
