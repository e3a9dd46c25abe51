"""Distances between spectra: zero for the same dynamics in other observables, and known where that can be known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.stats import wasserstein_distance

import koopman_interp as ki
from koopman_interp.analysis.spectra import comparison
from koopman_interp.errors import InputError
from tests.analysis.linear import known_operator, linear_data, plain_surrogate, trajectories_of, turn

TIMES = (0.0, 1.0)


def spectrum_of(K, rows=400, scales=1.0):
    x = np.random.default_rng(1).normal(size=(rows, len(K))) * scales
    return ki.spectrum(plain_surrogate(K, TIMES), trajectories_of([x, x @ K.T], TIMES))


def test_nothing_lies_between_a_spectrum_and_itself(surrogate, trajectories):
    found = ki.spectrum(surrogate, trajectories)
    distance = ki.spectral_distance(found, found, starts=1)
    assert distance.wasserstein == pytest.approx(0, abs=1e-12)
    assert distance.procrustes < 1e-3
    assert "14 and 14 eigenvalues" in str(distance)


def test_other_observables_of_the_same_dynamics_are_at_no_distance():
    K = known_operator()
    x = linear_data(K, TIMES, rows=400)
    mix = np.eye(6) + 0.5 * np.random.default_rng(5).normal(size=(6, 6))
    mixed = trajectories_of([state.numpy() @ mix.T for state in x.states], TIMES)
    first = ki.spectrum(plain_surrogate(K, TIMES), x)
    second = ki.spectrum(plain_surrogate(mix @ K @ np.linalg.inv(mix), TIMES), mixed)
    distance = ki.spectral_distance(first, second)
    assert distance.wasserstein == pytest.approx(0, abs=1e-9)
    assert distance.procrustes < 1e-3


def test_real_eigenvalues_with_weights_against_scipy():
    first, second = spectrum_of(np.diag([0.9, 0.5, 0.2]), scales=[3, 1, 0.5]), spectrum_of(np.diag([0.8, 0.6]))
    for weights in ("uniform", "energy"):
        values, heavy = [], []
        for one in (first, second):
            values.append(one.eigenvalues.real)
            # Energy is that at the earlier depth of each pair, here the first. These modes have norm 1.
            heavy.append(one.amplitudes.square[0, 0] if weights == "energy" else np.ones(len(one.eigenvalues)))
        expected = wasserstein_distance(*values, *heavy)
        found = ki.spectral_distance(first, second, weights=weights)
        assert found.wasserstein == pytest.approx(expected, rel=1e-6)
    assert found.modes == (3, 2)


def test_a_turn_moves_eigenvalues_along_the_circle():
    first, second = spectrum_of(turn(0.9, 0.5)), spectrum_of(turn(0.9, 0.7))
    found = ki.spectral_distance(first, second)
    assert found.wasserstein == pytest.approx(2 * 0.9 * math.sin(0.1), rel=1e-9)


def test_the_procrustes_angle_sees_what_eigenvalues_do_not():
    """The same eigenvalues, with modes at right angles and leaning on each other."""
    straight, crooked = np.diag([0.9, 0.5]), np.array([[0.9, 3.0], [0.0, 0.5]])
    x = np.random.default_rng(1).normal(size=(400, 2))
    x = x @ np.linalg.inv(np.linalg.qr(x)[1]) * math.sqrt(len(x))
    spectra = [
        ki.spectrum(plain_surrogate(K, TIMES), trajectories_of([x, x @ K.T], TIMES)) for K in (straight, crooked)
    ]
    found = ki.spectral_distance(*spectra)
    assert found.wasserstein == pytest.approx(0, abs=1e-9)
    # Of two dimensions a scan over rotations and reflections finds the best.
    best = max(
        (straight * (C @ crooked @ C.T)).sum()
        for angle in np.linspace(0, 2 * np.pi, 20001)
        for C in (turn(1, angle), turn(1, angle) @ np.diag([1, -1]))
    )
    expected = math.acos(best / np.linalg.norm(straight) / np.linalg.norm(crooked))
    assert found.procrustes == pytest.approx(expected, abs=1e-5)
    assert found.procrustes > 0.5


def test_distances_are_symmetric_and_grow_with_what_was_changed():
    K = block_diag([[0.9]], turn(0.7, 0.5), [[0.4]])
    base = spectrum_of(K)
    near, far = (spectrum_of(K + size * np.diag([0, 1, 1, 0.0])) for size in (0.01, 0.2))
    distances = [ki.spectral_distance(base, other) for other in (near, far)]
    assert distances[0].wasserstein < distances[1].wasserstein
    assert distances[0].procrustes < distances[1].procrustes
    back = ki.spectral_distance(far, base)
    assert back.wasserstein == pytest.approx(distances[1].wasserstein)
    assert back.procrustes == pytest.approx(distances[1].procrustes, abs=1e-4)


def test_bad_input_gets_a_sentence(surrogate, trajectories, unchecked):
    found = ki.spectrum(surrogate, trajectories)
    with pytest.raises(InputError, match="neither 'uniform' nor 'energy'"):
        ki.spectral_distance(found, found, weights="heavy")
    with pytest.raises(InputError, match="no Gram matrices"):
        ki.spectral_distance(found, replace(found, grams=None))


def test_a_few_modes_in_other_observables_are_at_no_distance():
    K = known_operator()
    x = linear_data(K, TIMES, rows=400)
    mix = np.eye(6) + 0.5 * np.random.default_rng(5).normal(size=(6, 6))
    mixed = trajectories_of([state.numpy() @ mix.T for state in x.states], TIMES)
    first = ki.spectrum(plain_surrogate(K, TIMES), x, modes=3)
    second = ki.spectrum(plain_surrogate(mix @ K @ np.linalg.inv(mix), TIMES), mixed, modes=3)
    distance = ki.spectral_distance(first, second, starts=4)
    assert (distance.directions, distance.modes) == (3, (3, 3))
    assert distance.wasserstein == pytest.approx(0, abs=1e-9)
    assert distance.procrustes < 1e-3


def test_of_many_eigenvalues_the_heaviest_are_moved(monkeypatch):
    first, second = spectrum_of(np.diag([0.9, 0.5, 0.2]), scales=[1, 0.1, 3]), spectrum_of(np.diag([0.8, 0.6]))
    monkeypatch.setattr(comparison, "_MOST_TRANSPORTED", 2)
    heavy = [one.amplitudes.square[0, 0] for one in (first, second)]
    expected = wasserstein_distance([0.9, 0.2], [0.8, 0.6], heavy[0][[0, 2]], heavy[1])
    found = ki.spectral_distance(first, second, weights="energy", starts=1)
    assert found.wasserstein == pytest.approx(expected, rel=1e-6)
    assert found.modes == (2, 2)


def test_what_has_no_distance_is_refused():
    still, moving = spectrum_of(np.zeros((2, 2))), spectrum_of(np.diag([0.8, 0.6]))
    with pytest.raises(InputError, match="zero has no angle"):
        ki.spectral_distance(still, moving)
    with pytest.raises(InputError, match="1 or more directions; got 0"):
        ki.spectral_distance(moving, moving, directions=0)
    unreached = spectrum_of(np.diag([0.8, 0.6]), scales=0.0)
    with pytest.raises(InputError, match="none has energy"):
        ki.spectral_distance(unreached, moving, weights="energy")
