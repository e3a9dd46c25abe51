"""Transfer modes are singular vectors of K between whitened spaces, and are told apart on data."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch

import koopman_interp as ki
from koopman_interp.analysis.spectra.spaces import shared_spaces
from koopman_interp.errors import FileFormatError, InputError
from tests.analysis.linear import known_operator, linear_data, noisy_data, plain_surrogate, trajectories_of

TIMES = (0.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def noisy():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), noisy_data(K, TIMES, 3000, noise=0.7)
    koopman.gather_moments(data)
    return koopman, data


def by_hand(koopman, data, depths, by):
    """Whiten with matrix square roots, and take an SVD, all in numpy."""
    z = [data.states[depth].numpy() for depth in depths]
    C = [np.cov(rows.T, bias=True) for rows in z]
    power = np.linalg.matrix_power(koopman.K.numpy(), depths[1] - depths[0])
    root = scipy.linalg.sqrtm(C[0]).real
    if by == "correlation":
        return np.linalg.svd(root @ power.T @ np.linalg.inv(scipy.linalg.sqrtm(C[1]).real))[1]
    carried, V = np.linalg.svd(root @ power.T)[1:]
    return carried / np.sqrt(np.einsum("pi,ij,pj->p", V, C[1], V))


@pytest.mark.parametrize("by", ["variance", "correlation"])
@pytest.mark.parametrize("depths", [(0, 1), (0, 2), (1, 2)])
def test_they_are_those_of_an_independent_decomposition(noisy, depths, by):
    koopman, data = noisy
    found = ki.transfer_modes(koopman, data, source=depths[0], target=depths[1], by=by)
    np.testing.assert_allclose(found.singular_values, by_hand(koopman, data, depths, by), rtol=1e-9)
    z = [data.states[depth].numpy() - data.states[depth].numpy().mean(0) for depth in depths]
    f, g = z[0] @ found.source_readers, z[1] @ found.target_readers
    np.testing.assert_allclose(f.T @ f / len(f), np.eye(6), atol=1e-9)
    np.testing.assert_allclose((g * g).mean(0), 1, rtol=1e-9)
    if by == "correlation":
        np.testing.assert_allclose(g.T @ g / len(g), np.eye(6), atol=1e-9)
    # Together they are the whole of what K predicts.
    power = np.linalg.matrix_power(koopman.K.numpy(), depths[1] - depths[0])
    np.testing.assert_allclose((f * found.singular_values) @ found.target_modes.T, z[0] @ power.T, atol=1e-9)
    assert found.share.sum() == pytest.approx(1)
    np.testing.assert_allclose(found.at_source(koopman, data), f, atol=1e-9)
    np.testing.assert_allclose(found.at_target(koopman, data), g, atol=1e-9)


def test_canonical_correlations_are_those_of_the_data_where_k_is_least_squares(noisy):
    _, data = noisy
    before, after = (state.numpy() - state.numpy().mean(0) for state in data.states[:2])
    koopman = plain_surrogate(np.linalg.lstsq(before, after, rcond=None)[0].T, TIMES)
    koopman.gather_moments(data)
    found = ki.transfer_modes(koopman, data, target=1, by="correlation")
    between = np.linalg.qr(before)[0].T @ np.linalg.qr(after)[0]
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(between)[1], rtol=1e-9)
    np.testing.assert_allclose(found.correlations, found.singular_values, rtol=1e-9)
    # No linear prediction of g is nearer.
    np.testing.assert_allclose(found.residuals, np.sqrt(1 - found.singular_values**2), rtol=1e-7)


def test_residuals_are_counted_on_the_rows_given(noisy):
    koopman, _ = noisy
    fresh = noisy_data(known_operator(), TIMES, 400, noise=0.7, seed=5)
    found = ki.transfer_modes(koopman, (fresh[:150], fresh[150:]), target=1)
    f, g = found.at_source(koopman, fresh), found.at_target(koopman, fresh)
    f, g = f - f.mean(0), g - g.mean(0)
    missed = np.linalg.norm(g - found.singular_values * f, axis=0) / np.linalg.norm(g, axis=0)
    np.testing.assert_allclose(found.residuals, missed, rtol=1e-8)
    assert found.samples == 400
    assert found.verdicts == tuple("trusted" if each <= 0.3 else "spurious" for each in missed)


def test_a_map_without_noise_is_carried_whole_and_noise_is_not():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=200)
    koopman.gather_moments(data)
    found = ki.transfer_modes(koopman, data)
    assert found.trusted.all() and len(found) == 6
    np.testing.assert_allclose(found.singular_values, 1, rtol=1e-9)
    assert np.all(np.diff(found.share * found.singular_values**2) <= 1e-12)
    draw = np.random.default_rng(0)
    noise = trajectories_of([draw.normal(size=(500, 6)) for _ in TIMES], TIMES)
    koopman.gather_moments(noise)
    assert not ki.transfer_modes(koopman, noise).trusted.any()
    assert set(ki.transfer_modes(koopman, noise[:50]).verdicts) == {"unknown"}


def test_what_does_not_vary_makes_no_pair():
    K = np.diag([0.9, 0.5, 0.7])
    flat = linear_data(K, (0.0, 1.0), rows=150)
    states = [state * torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64) for state in flat.states]
    koopman = plain_surrogate(K, (0.0, 1.0))
    koopman.gather_moments(trajectories_of(states, (0.0, 1.0)))
    for by in ("variance", "correlation"):
        assert len(ki.transfer_modes(koopman, trajectories_of(states, (0.0, 1.0)), by=by)) == 2


def test_they_are_printed_and_come_back(noisy, tmp_path):
    koopman, data = noisy
    found = ki.transfer_modes(koopman, data)
    assert "σ on data" in str(found) and "'site.0' to 'site.2', 2 operator steps" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["by"] == "variance"
    found.save(tmp_path / "pairs.safetensors")
    back = ki.TransferModes.load(tmp_path / "pairs.safetensors")
    assert repr(back) == repr(found) and back.by == found.by
    np.testing.assert_array_equal(back.source_readers, found.source_readers)
    data.save(tmp_path / "else.safetensors")
    with pytest.raises(FileFormatError):
        ki.TransferModes.load(tmp_path / "else.safetensors")


def test_bad_input_is_refused(noisy, unchecked):
    koopman, data = noisy
    with pytest.raises(InputError, match="keeps no covariances"):
        ki.transfer_modes(plain_surrogate(known_operator(), TIMES), data)
    with pytest.raises(InputError, match="variance or correlation"):
        ki.transfer_modes(koopman, data, by="size")
    with pytest.raises(InputError, match="target after its source"):
        ki.transfer_modes(koopman, data, source=2, target=1)
    with pytest.raises(InputError, match="2 samples or more"):
        ki.transfer_modes(koopman, data[:1])
    with pytest.raises(InputError, match="tolerance"):
        ki.transfer_modes(koopman, data, tolerance=-1)


def apart(rows=400, seed=0):
    """Two depths whose states vary in planes that have nothing in common, the later a function of the earlier."""
    x = np.random.default_rng(seed).normal(size=(rows, 2))
    return trajectories_of([np.c_[x, 0.03 * x], np.c_[0.03 * x, x[:, :1] ** 2, x[:, 1:]]], (0.0, 1.0))


def test_the_spectrum_says_where_depths_are_different_spaces():
    data = apart()
    koopman = plain_surrogate(np.eye(4), (0.0, 1.0))
    assert shared_spaces(koopman) is None  # no fit
    koopman.gather_moments(data)
    C = [np.cov(state.numpy().T, bias=True) for state in data.states]
    values, vectors = np.linalg.eigh(C[0])
    space = vectors[:, ::-1][:, : 1 + int((np.cumsum(values[::-1]) < 0.99 * values.sum()).sum())]
    expected = np.trace(space.T @ C[1] @ space) / np.trace(C[1])
    assert shared_spaces(koopman) == pytest.approx([expected]) and expected < 0.1
    found = ki.spectrum(koopman, data)
    assert "Depths 0 and 1 are different spaces" in str(found) and "ki.transfer_modes(koopman" in str(found)


def test_where_eigenmodes_hold_it_says_nothing():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=200)
    koopman.gather_moments(data)
    assert (shared_spaces(koopman) > 0.9).all()
    assert "different spaces" not in str(ki.spectrum(koopman, data))
