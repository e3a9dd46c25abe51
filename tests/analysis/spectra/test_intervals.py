"""Intervals hold the truth as often as they say, widen with noise, and are infinite where data do not say."""

import json

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.analysis.spectra.eigen import eigen
from koopman_interp.analysis.spectra.intervals import intervals
from tests.analysis.linear import known_operator, linear_data, noisy_data, plain_surrogate, trajectories_of

TIMES = (0.0, 1.0, 2.0)


def fitted(data, times=TIMES):
    """A surrogate whose K is the least-squares solution on the data, about each depth's mean."""
    koopman = plain_surrogate(np.eye(6), times)
    grams = ki.gather_grams(koopman, data).centred()
    koopman.operator.K.copy_(torch.linalg.solve(grams.G[0, 0, 0], grams.A[0, 0, 0]).T)
    return koopman


def test_they_hold_the_true_eigenvalues_as_often_as_they_say():
    K = known_operator()
    truth = np.linalg.eigvals(K)
    inside = total = 0
    for seed in range(40):
        koopman = fitted(noisy_data(K, TIMES, rows=100, noise=0.5, seed=2 * seed))
        found = ki.spectrum(koopman, noisy_data(K, TIMES, rows=300, noise=0.5, seed=2 * seed + 1))
        for value in truth:
            nearest = np.abs(found.eigenvalues - value).argmin()
            low, high = found.intervals.decay[nearest]
            inside += low <= np.abs(value) <= high
            total += 1
    # 32 shards fall a little short of the nominal 95 %.
    assert 0.85 <= inside / total <= 1


def test_the_estimate_is_an_eigenvalue_of_the_operator_solved_anew():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=400, noise=0.3)
    found = ki.spectrum(koopman, data)
    refitted = eigen(fitted(data))
    for value, estimate in zip(found.eigenvalues, found.intervals.estimate, strict=True):
        again = refitted.values[np.abs(refitted.values - value).argmin()]
        assert again == pytest.approx(estimate, abs=1e-9)
    assert found.intervals.correlation.min() > 0.9


def test_a_mode_that_the_data_do_not_know_is_not_told():
    """An eigenfunction that none of the data's resembles has no counterpart, whatever the eigenvalues."""
    shift = np.roll(np.eye(8), 1, 0)  # whose eigenfunctions are spread over all coordinates
    states = [np.random.default_rng(0).normal(size=(4000, 8))]
    for _ in TIMES[1:]:
        states.append(states[-1] @ shift.T)
    koopman = plain_surrogate(np.diag(np.linspace(0.5, 0.7, 8)), TIMES)
    found = ki.spectrum(koopman, trajectories_of(states, TIMES))
    assert found.intervals.correlation.max() < 0.5
    assert np.isinf(found.intervals.decay).all()
    assert np.isfinite(found.intervals.residual).all()


def test_on_linear_data_they_are_as_narrow_as_rounding():
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=200)).intervals
    assert np.ptp(found.decay, axis=1).max() < 1e-9
    assert np.ptp(found.rotation, axis=1).max() < 1e-9


def test_noise_widens_them_and_samples_narrow_them():
    K = known_operator()
    koopman = plain_surrogate(K, TIMES)
    widths = [
        np.ptp(ki.spectrum(koopman, noisy_data(K, TIMES, rows, noise)).intervals.decay, axis=1).mean()
        for rows, noise in ((400, 0.1), (400, 0.4), (6400, 0.4))
    ]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.5)
    assert widths[2] == pytest.approx(widths[1] / 4, rel=0.5)


def test_an_operator_that_the_data_contradict_lies_outside():
    K = np.diag([0.9, 0.6])
    wrong = plain_surrogate(np.diag([0.9, 0.3]), TIMES)
    found = ki.spectrum(wrong, noisy_data(K, TIMES, rows=500, noise=0.1))
    (low, high), (other_low, other_high) = found.intervals.decay
    assert low < 0.9 < high
    assert 0.3 < other_low < 0.6 < other_high
    assert found.verdicts[0] == "trusted"
    assert str(found).split("\n")[4].endswith("trusted")


@pytest.mark.parametrize("times", [(0.0, 2.0, 4.0), (0.0, 1.0, 3.0)])
def test_gaps_of_several_steps_are_brought_to_one(times):
    K = known_operator()
    koopman = plain_surrogate(K, times)
    clean = linear_data(K, times, rows=2000)
    draw = torch.Generator().manual_seed(3)
    states = [state + 0.01 * torch.randn(state.shape, generator=draw, dtype=state.dtype) for state in clean.states]
    found = ki.spectrum(koopman, trajectories_of(states, times))
    np.testing.assert_allclose(found.intervals.estimate, found.eigenvalues, atol=0.03)
    assert (np.ptp(found.intervals.decay, axis=1) < 0.05).all()


@pytest.mark.parametrize("rows", [4, 7, 59])
def test_too_few_samples_say_nothing(rows):
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=rows))
    assert np.isinf(found.intervals.decay).all()
    assert np.isnan(found.intervals.estimate).all()
    assert "unknown" in str(found)
    json.dumps(found.as_dict(), allow_nan=False)


def test_many_samples_of_few_inputs_say_nothing():
    """A thousand tokens of three texts are three draws, not a thousand."""
    K = known_operator()
    data = linear_data(K, TIMES, rows=1000)
    few = ki.Trajectories(
        data.states, data.sites, data.times, data.host, torch.arange(1000) % 3, torch.arange(1000) // 3
    )
    assert np.isinf(ki.spectrum(plain_surrogate(K, TIMES), few).intervals.decay).all()


def test_inputs_that_hold_together_are_drawn_together():
    """The same rows count as fewer draws where they come from fewer inputs, so intervals widen."""
    K = np.diag([0.9, 0.6])
    draw = np.random.default_rng(0)
    texts, each = 64, 25
    # All samples of one input share their noise.
    shared = [np.repeat(draw.normal(size=(texts, 2)), each, 0) for _ in TIMES]
    states = [draw.normal(size=(texts * each, 2))]
    for noise in shared[1:]:
        states.append(states[-1] @ K + 0.5 * noise)
    alone = trajectories_of(states, TIMES)
    together = ki.Trajectories(
        alone.states, alone.sites, alone.times, alone.host, torch.arange(texts).repeat_interleave(each), alone.position
    )
    koopman = plain_surrogate(K, TIMES)
    narrow, wide = (np.ptp(ki.spectrum(koopman, one).intervals.decay, axis=1).mean() for one in (alone, together))
    assert wide > 1.5 * narrow


def test_a_seed_gives_the_same_again():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=200, noise=0.3)
    found = eigen(koopman)
    grams = ki.gather_grams(koopman, data, shards=16)
    one, same, other = (intervals(grams, found.values, found.readers, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.decay, same.decay)
    assert (one.decay != other.decay).any()
    narrow = intervals(grams, found.values, found.readers, level=0.5)
    assert (np.ptp(narrow.decay, axis=1) < np.ptp(one.decay, axis=1)).all()
    assert "6 of 6 modes, 95 % of 400 draws of 16 shards" in repr(one)


def test_turns_and_residuals_lie_in_their_own_intervals():
    K = known_operator()
    found = ki.spectrum(plain_surrogate(K, TIMES), noisy_data(K, TIMES, rows=600, noise=0.3), level=0.999)
    for told, measured in (
        (found.intervals.rotation, found.rotation),
        (found.intervals.decay, found.decay),
        (found.intervals.residual, found.about_mean),
    ):
        assert ((told[:, 0] - 1e-9 <= measured) & (measured <= told[:, 1] + 1e-9)).all()
        assert np.ptp(told, axis=1).max() < 0.3
