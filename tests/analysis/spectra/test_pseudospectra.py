"""Pseudospectra against a slow minimisation, and against what is known of normal and of crooked operators."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

import koopman_interp as ki
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import write_tensors
from tests.analysis.linear import known_operator, linear_data, noisy_data, pairs_of, plain_surrogate, trajectories_of

TIMES = (0.0, 1.0, 2.0)


def slow(koopman, data, z):
    """`min ‖(Z⁺ − z Z) w‖ / ‖Z w‖` about each depth's mean, by a QR and a singular value decomposition."""
    pairs = [[part - part.mean(0) for part in pair[1:]] for pair in pairs_of(koopman, data)]
    before, after = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    Q, R = np.linalg.qr(before)
    return np.linalg.svd(after @ np.linalg.inv(R) - z * Q, compute_uv=False)[-1]


@pytest.mark.parametrize("points", [4, 5])
def test_each_point_is_the_smallest_residual_of_any_function(points):
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=100, noise=0.3)
    found = ki.pseudospectra(ki.spectrum(koopman, data), points=points)
    assert found.residual.shape == (points, points)
    for row, y in enumerate(found.imag):
        for column, x in enumerate(found.real):
            assert found.residual[row, column] == pytest.approx(slow(koopman, data, x + 1j * y), rel=1e-8)
    np.testing.assert_allclose(found.imag, np.linspace(found.real[0], found.real[-1], points), atol=1e-12)


def test_no_point_is_below_its_nearest_eigenvalue_on_normal_dynamics():
    """There τ(z) is the distance to the spectrum."""
    K = scipy.linalg.block_diag([[0.9]], 0.7 * np.array([[0, -1], [1, 0]]))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    K = basis @ K @ basis.T
    data = linear_data(K, (0.0, 1.0), rows=400)
    centred = data.states[0].numpy() - data.states[0].numpy().mean(0)
    white = centred @ np.linalg.inv(np.linalg.qr(centred)[1])
    data = replace(data, states=tuple(data.states[0].new_tensor(rows) for rows in (white, white @ K.T)))
    found = ki.pseudospectra(ki.spectrum(plain_surrogate(K, (0.0, 1.0)), data), points=9)
    grid = found.real + 1j * found.imag[:, None]
    distance = np.abs(grid[..., None] - found.eigenvalues).min(-1)
    np.testing.assert_allclose(found.residual, distance, atol=1e-6)


def test_crooked_dynamics_have_wide_valleys():
    straight, crooked = np.diag([0.9, 0.8, 0.1]), np.array([[0.9, 2.0, 0], [0, 0.8, 2.0], [0, 0, 0.1]])
    means = [
        ki.pseudospectra(ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=300)), points=21)
        for K in (straight, crooked)
    ]
    near = [((one.residual < 0.1).mean()) for one in means]
    assert near[1] > 2 * near[0]


def test_noise_leaves_no_valley():
    K = known_operator()
    koopman = plain_surrogate(K, TIMES)
    noise = noisy_data(0 * K, TIMES, rows=2000, noise=1.0)
    found = ki.pseudospectra(ki.spectrum(koopman, noise), points=15)
    assert found.residual.min() > 0.9


def shifted(data, offsets):
    """Trajectories with a constant of its own added to all states of each depth."""
    states = tuple(state + state.new_tensor(offset) for state, offset in zip(data.states, offsets, strict=True))
    return replace(data, states=states)


def test_offsets_that_all_samples_share_change_nothing():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=200, noise=0.3)
    moved = shifted(data, 30 * np.random.default_rng(1).normal(size=(3, 6)))
    ours, theirs = (ki.pseudospectra(ki.spectrum(koopman, each), points=7, extent=1.2) for each in (data, moved))
    np.testing.assert_allclose(theirs.residual, ours.residual, atol=1e-8)


def test_an_offset_is_no_slow_function():
    K = known_operator()
    noise = shifted(noisy_data(0 * K, TIMES, rows=2000, noise=1.0), np.full((3, 6), 20.0))
    spectrum = ki.spectrum(plain_surrogate(K, TIMES), noise)
    assert spectrum.about_zero.min() < 0.2  # about zero some function would hardly change
    assert ki.pseudospectra(spectrum, points=15).residual.min() > 0.9


def test_functions_that_are_the_same_for_all_samples_are_not_searched():
    K = np.diag([1.0, 0.9, 0.8, 0.7])
    mix = np.eye(4) + 0.3 * np.random.default_rng(0).normal(size=(4, 4))
    data = noisy_data(K, TIMES, rows=200, noise=0.3)
    for state in data.states:
        state[:, 0] = 3.0  # which no observable shows alone once they are mixed
    rest = plain_surrogate(K[1:, 1:], TIMES)
    koopman = plain_surrogate(mix @ K @ np.linalg.inv(mix), TIMES)
    mixed = replace(data, states=tuple(state @ state.new_tensor(mix.T) for state in data.states))
    without = replace(data, states=tuple(state[:, 1:] for state in data.states), shapes=((3,),) * 3)
    ours, theirs = (
        ki.pseudospectra(ki.spectrum(*pair), points=7, extent=1.2) for pair in ((koopman, mixed), (rest, without))
    )
    assert (ours.directions, theirs.directions) == (3, 3)
    np.testing.assert_allclose(ours.residual, theirs.residual, atol=1e-8)
    with pytest.raises(InputError, match="the same for all samples"):
        ki.pseudospectra(ki.spectrum(plain_surrogate(K, TIMES), trajectories_of(np.ones((3, 40, 4)), TIMES)))


def test_the_table_tells_the_residual_beside_each_eigenvalue():
    K = known_operator()
    found = ki.pseudospectra(ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=300)), points=25)
    frame = found.to_frame()
    assert frame["mode"].tolist() == [0, 2, 3, 5]
    for _, row in frame.iterrows():
        column = np.abs(found.real - row["Re"]).argmin()
        line = np.abs(found.imag - row["Im"]).argmin()
        assert row["smallest residual near"] == found.residual[line, column] < 0.1
    assert found.near(5 + 0j) is None


def test_functions_are_searched_among_the_slowest_modes():
    K = known_operator()
    spectrum = ki.spectrum(plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=100, noise=0.3))
    every, few = (ki.pseudospectra(spectrum, points=7, directions=directions) for directions in (6, 3))
    assert (every.directions, few.directions) == (6, 3)
    assert (few.residual >= every.residual - 1e-9).all()


def test_few_samples_search_few_functions():
    """With as many functions as samples something fits anywhere, and that is no finding."""
    K = known_operator()
    noise = noisy_data(0 * K, TIMES, rows=25, noise=1.0)
    found = ki.pseudospectra(ki.spectrum(plain_surrogate(K, TIMES), noise), points=7)
    assert found.directions <= 3
    assert found.residual.min() > 0.5
    with pytest.raises(InputError, match="10 samples or more"):
        ki.pseudospectra(ki.spectrum(plain_surrogate(K, TIMES), noise[:9]))


def test_they_come_back_from_their_file(tmp_path, surrogate, trajectories):
    found = ki.pseudospectra(ki.spectrum(surrogate, trajectories), points=6)
    found.save(tmp_path / "pseudospectra.safetensors")
    back = ki.Pseudospectra.load(tmp_path / "pseudospectra.safetensors")
    assert (repr(back), back.as_dict()) == (repr(found), found.as_dict())
    np.testing.assert_array_equal(back.eigenvalues, found.eigenvalues)


@pytest.mark.parametrize("kind", ["grams", "pseudospectra", "spectrum", "topology"])
def test_a_file_that_lacks_parts_is_told(tmp_path, kind):
    path = tmp_path / "part.safetensors"
    write_tensors(path, {"eigenvalues": torch.zeros(3)}, kind=kind, header={"dimensions": "two", "names": 3})
    with pytest.raises(FileFormatError, match="lacks parts of"):
        getattr(ki, kind.capitalize()).load(path)


def test_bad_input_gets_a_sentence(surrogate, trajectories):
    spectrum = ki.spectrum(surrogate, trajectories)
    with pytest.raises(InputError, match="2 or more points"):
        ki.pseudospectra(spectrum, points=1)
    for extent in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="a length past 0"):
            ki.pseudospectra(spectrum, extent=extent)
    with pytest.raises(InputError, match="1 or more directions; got 0"):
        ki.pseudospectra(spectrum, directions=0)
    with pytest.raises(InputError, match="without Gram matrices"):
        ki.pseudospectra(replace(spectrum, grams=None))


def test_of_several_gaps_that_with_most_pairs_is_told():
    times = (0.0, 1.0, 3.0, 5.0)
    K = known_operator()
    koopman, data = plain_surrogate(K, times), noisy_data(K, times, rows=100, noise=0.3)
    found = ki.pseudospectra(ki.spectrum(koopman, data), points=3, extent=0.8)
    assert found.gap == 2
    np.testing.assert_allclose(found.real, [-0.8, 0, 0.8])
    rest = plain_surrogate(K, times[1:])
    later = replace(data, states=data.states[1:], times=times[1:], sites=rest.sites, shapes=())
    for row, y in enumerate(found.imag):
        for column, x in enumerate(found.real):
            assert found.residual[row, column] == pytest.approx(slow(rest, later, x + 1j * y), rel=1e-8)


def test_a_few_modes_found_alone_span_what_they_span_among_all():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=100, noise=0.3)
    whole = ki.pseudospectra(ki.spectrum(koopman, data), points=5, extent=1.0, directions=3)
    few = ki.pseudospectra(ki.spectrum(koopman, data, modes=3), points=5, extent=1.0)
    np.testing.assert_allclose(few.residual, whole.residual, rtol=1e-8)
