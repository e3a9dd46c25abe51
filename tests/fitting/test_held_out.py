"""What is held out is never fitted on, whatever the seed and the share, and the surrogate knows it again."""

from dataclasses import replace

import pytest
import torch

import koopman_interp as ki

SEEDS, SHARES = (0, 1, 7), (0.05, 0.1, 0.3)


@pytest.fixture
def repeated(trajectories):
    """Each input twice, in two orders, with other numbers: what is equal must be on one side."""
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(5))
    return ki.Trajectories.concatenate([trajectories, trajectories[order]])


def spoilt(trajectories, rows):
    """The same inputs, with other states at the rows of a mask."""
    states = [state.clone() for state in trajectories.states]
    for state in states:
        state[rows] = 5 * state[rows].flip(0) + 3
    return replace(trajectories, states=tuple(states))  # which keeps the digests of the inputs


@pytest.mark.filterwarnings("ignore:rows")  # what is spoilt lies far out
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("validation", SHARES)
@pytest.mark.parametrize("data", ["trajectories", "repeated"])
def test_a_fit_does_not_depend_on_the_rows_held_out(request, data, seed, validation):
    rows = request.getfixturevalue(data)
    config = ki.FitConfig(observables=14, seed=seed, validation=validation)
    koopman = ki.fit(rows, config, method="least_squares")
    held_out = koopman.is_held_out(rows)
    inputs = len(torch.unique(rows.digests))
    assert len(torch.unique(rows.digests[held_out])) == round(validation * inputs)
    assert not torch.isin(rows.digests[~held_out], koopman.record.held_out).any()
    # No bit of weights or moments changes with the rows held out; with one of the others, they do.
    other = ki.fit(spoilt(rows, held_out), config, method="least_squares")
    assert torch.equal(other.record.held_out, koopman.record.held_out)
    assert other.digest() == koopman.digest()
    assert torch.equal(other.moments.covariance, koopman.moments.covariance)
    assert not torch.equal(other.heldout_moments.covariance, koopman.heldout_moments.covariance)
    one_of_the_others = torch.zeros(len(rows), dtype=torch.bool)
    one_of_the_others[(~held_out).nonzero()[0]] = True
    assert ki.fit(spoilt(rows, one_of_the_others), config, method="least_squares").digest() != koopman.digest()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_gradient_step_sees_a_row_held_out(trajectories, quick_config, seed, monkeypatch):
    from koopman_interp.fitting import fit as fitting

    seen = {}

    class Watched(fitting.FitObjective):
        def __init__(self, surrogate, config, train, held_out, *rest):
            seen.update(train=train.states[0], held_out=held_out.states[0], normalization=surrogate.normalization)
            super().__init__(surrogate, config, train, held_out, *rest)

    monkeypatch.setattr(fitting, "FitObjective", Watched)
    koopman = ki.fit(trajectories, replace(quick_config, seed=seed, steps=2), progress=False)
    held_out = koopman.is_held_out(trajectories)
    normalized = seen["normalization"].normalize(trajectories.states[0], 0)
    # To rounding, since narrow states are normalised in float64.
    torch.testing.assert_close(seen["train"], normalized[~held_out], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen["held_out"], normalized[held_out], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("validation", SHARES)
def test_moments_hold_just_the_rows_of_their_side(trajectories, seed, validation):
    koopman = ki.fit(
        trajectories, ki.FitConfig(observables=14, seed=seed, validation=validation), method="least_squares"
    )
    held_out = koopman.is_held_out(trajectories)
    for moments, side in ((koopman.moments, ~held_out), (koopman.heldout_moments, held_out)):
        part = trajectories[side]
        z = koopman.encode(part.states[3], 3).double()
        assert moments.rows == len(part)
        torch.testing.assert_close(moments.covariance[3], z.T.cov(correction=0), rtol=1e-6, atol=1e-9)
        assert moments.count.tolist() == [int((part.labels == label).sum()) for label in trajectories.classes]


def test_seeds_hold_out_different_inputs(trajectories):
    def held_out(seed):
        return ki.fit(trajectories, ki.FitConfig(seed=seed), method="least_squares").record.held_out

    first, second = held_out(0), held_out(1)
    assert 0 <= int(torch.isin(first, second).sum()) < 20  # of 60, where 6 are expected


def test_the_order_of_the_rows_makes_no_difference_to_what_is_held_out(trajectories, surrogate, quick_config):
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(2))
    shuffled = ki.fit(trajectories[order], replace(quick_config, steps=1), progress=False)
    assert torch.equal(shuffled.record.held_out, surrogate.record.held_out)
