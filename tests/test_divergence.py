"""Divergences are what scipy makes of the same distributions, and keep their laws where a class is impossible."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from koopman_interp import divergence
from koopman_interp.divergence import jensen_shannon, kullback_leibler


def distributions(seed, rows=30, classes=6, without=None):
    logits = 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if without is not None:
        logits[:, without] = -torch.inf
    return logits.log_softmax(1)


@pytest.mark.parametrize("without", [None, 2])
def test_both_are_scipys(without):
    logp, logq = distributions(0, without=without), distributions(1)
    p, q = logp.exp().numpy(), logq.exp().numpy()
    assert kullback_leibler(logp, logq).numpy() == pytest.approx(rel_entr(p, q).sum(1), rel=1e-10)
    expected = np.array([jensenshannon(one, other) ** 2 for one, other in zip(p, q, strict=True)])
    assert jensen_shannon(logp, logq).numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("without", [None, 2])
def test_jensen_shannon_is_symmetric_bounded_and_nothing_for_the_same(without):
    logp, logq = distributions(0, without=without), distributions(1)
    one, other = jensen_shannon(logp, logq), jensen_shannon(logq, logp)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    assert ((one > 0) & (one < math.log(2))).all()
    assert jensen_shannon(logp, logp).abs().max() < 1e-15
    assert (kullback_leibler(logp, logp) == 0).all()


def test_nothing_in_common_is_the_bound_and_an_infinite_kl():
    left = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    right = left.flip(1)
    assert jensen_shannon(left, right).item() == pytest.approx(math.log(2))
    assert kullback_leibler(left, right).item() == math.inf


def test_both_shrink_when_classes_are_merged():
    # The data-processing inequality.
    logp, logq = distributions(0), distributions(1)
    merged = [torch.stack([part[:, :3].logsumexp(1), part[:, 3:].logsumexp(1)], 1) for part in (logp, logq)]
    for measure in (kullback_leibler, jensen_shannon):
        assert (measure(*merged) <= measure(logp, logq) + 1e-12).all()


def test_more_rows_than_are_compared_at_once_are_compared_in_turn(monkeypatch):
    logp, logq = distributions(0, without=1), distributions(1)
    whole = [measure(logp, logq) for measure in (kullback_leibler, jensen_shannon)]
    monkeypatch.setattr(divergence, "ENTRIES", 4 * logp.shape[1] + 1)
    sizes, log_of_a_sum = [], torch.logaddexp
    monkeypatch.setattr(torch, "logaddexp", lambda p, q: sizes.append(len(p)) or log_of_a_sum(p, q))
    for measure, expected in zip((kullback_leibler, jensen_shannon), whole, strict=True):
        torch.testing.assert_close(measure(logp, logq), expected, rtol=1e-12, atol=0)
        assert measure(logp[:0], logq[:0]).shape == (0,)
    assert max(sizes) == 4
    assert sum(sizes) == len(logp)


@pytest.mark.parametrize("measure", [kullback_leibler, jensen_shannon])
def test_gradients_are_those_of_differences(measure):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    logq = distributions(1, rows=4, classes=5)
    assert torch.autograd.gradcheck(lambda one: measure(one.log_softmax(1), logq), logits)
    assert torch.autograd.gradcheck(lambda one: measure(logq, one.log_softmax(1)), logits)
