"""Laws of the number of modes that the data bear out."""

import json
from dataclasses import replace

import numpy as np
import pytest

import koopman_interp as ki
from koopman_interp.errors import InputError
from tests.analysis.linear import known_operator, linear_data, plain_surrogate, trajectories_of

TIMES = (0.0, 1.0, 2.0)


def test_linear_motion_has_as_many_modes_as_dimensions():
    K = known_operator()
    scores = ki.vamp_score(plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=4000))
    assert scores.modes == 6
    # Each function is carried on without loss, so that each counts 1.
    np.testing.assert_allclose(scores.fitted, np.arange(1, 7), atol=1e-8)
    np.testing.assert_allclose(scores.held_out, np.arange(1, 7), atol=0.1)


def test_directions_of_noise_are_no_modes():
    draw = np.random.default_rng(0)
    moving = draw.normal(size=(600, 2))
    states = [np.c_[moving * 0.9**t, draw.normal(size=(600, 8))] for t in (0, 1, 2)]
    scores = ki.vamp_score(plain_surrogate(np.eye(10), TIMES), trajectories_of(states, TIMES))
    assert scores.modes == 2
    assert scores.held_out[-1] < scores.held_out[1]
    assert scores.fitted[-1] > scores.fitted[1]
    assert "2 modes" in repr(scores)


def test_units_and_offsets_change_nothing():
    K = known_operator()
    plain = linear_data(K, TIMES, rows=200)
    scale = np.array([1e3, 1, 1, 1, 1, 1e-3])
    moved = trajectories_of([state.numpy() * scale + 5 for state in plain.states], TIMES)
    moved = replace(moved, digests=plain.digests)
    ours, theirs = (ki.vamp_score(plain_surrogate(K, TIMES), data) for data in (plain, moved))
    # Which functions come first is open where all are carried on alike; what they add up to is not.
    assert ours.held_out[-1] == pytest.approx(theirs.held_out[-1], rel=1e-6)
    np.testing.assert_allclose(ours.fitted, theirs.fitted, rtol=1e-6)


def test_scores_come_back_and_bad_folds_are_refused():
    K = known_operator()
    koopman, data = plain_surrogate(K, TIMES), linear_data(K, TIMES, rows=200)
    scores = ki.vamp_score(koopman, data)
    back = ki.VampScores.from_dict(json.loads(json.dumps(scores.as_dict())))
    assert back.modes == scores.modes
    with pytest.raises(InputError, match="2 folds or more"):
        ki.vamp_score(koopman, data, folds=1)
    with pytest.raises(InputError, match="too few different inputs"):
        ki.vamp_score(koopman, data[:4], folds=5)
