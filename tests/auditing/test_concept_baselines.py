"""The baselines of erasing a concept take its means together, the cheapest way in a covariance, and only in force."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.testing import yin_yang


@pytest.fixture(scope="module")
def asked(trained):
    """A model, rows of it, an attribute of these, and the depth where it is to be erased."""
    x, y = yin_yang(300, seed=3)
    return trained[0], x, ki.attach(trained[0]).observe(x), (y == 2).long(), 2


def states(model, x, depth):
    return ki.attach(model).observe(x).states[depth].double()


def apart(x, attribute):
    return x[attribute == 1].mean(0) - x[attribute == 0].mean(0)


def test_each_takes_the_two_means_together_in_force_and_nowhere_else(asked):
    model, x, rows, attribute, depth = asked
    before = states(model, x, depth)
    made = ki.concept_baselines(model, rows, attribute, sites=[rows.sites[depth]], corpus=rows)
    assert [*made] == ["mean difference", "LEACE", "LEACE, corpus covariance"]
    for running in made.values():
        for strength in (0.0, 0.5, 1.0):
            with running(strength):
                under = apart(states(model, x, depth), attribute)
            expected = (1 - strength) * apart(before, attribute)
            torch.testing.assert_close(under, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(states(model, x, depth), before)


def test_leace_moves_rows_less_than_mean_difference_whatever_they_are_measured_by(asked):
    """Theorem 4.3 of arXiv 2306.03819: it moves them least by every inner product."""
    model, x, rows, attribute, depth = asked
    before = states(model, x, depth)
    inverse = torch.linalg.pinv(before.T.cov(), hermitian=True, rtol=1e-9)
    moved = {}
    for name, running in ki.concept_baselines(model, rows, attribute, sites=[rows.sites[depth]]).items():
        with running(1.0):
            change = states(model, x, depth) - before
        moved[name] = float(((change @ inverse) * change).sum()), float((change**2).sum())
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == 1
    assert all(leace < plain for leace, plain in zip(moved["LEACE"], moved["mean difference"], strict=True))


def test_a_site_that_was_not_observed_is_named(asked):
    model, _, rows, attribute, _ = asked
    with pytest.raises(InputError, match="have no site 'nowhere'; they have blocks"):
        ki.concept_baselines(model, rows, attribute, sites=["nowhere"])
