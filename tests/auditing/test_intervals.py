"""An interval covers the truth as often as it says, and an area under a curve is a count of pairs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from koopman_interp.auditing.intervals import Z95, area_under_curve, wilson
from koopman_interp.auditing.membership import Membership, membership


@given(st.integers(1, 400), st.data())
def test_wilsons_interval_is_scipys(rows, data):
    hits = data.draw(st.integers(0, rows))
    expected = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
    assert wilson(hits / rows, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.97])
def test_it_covers_the_truth_about_as_often_as_it_says(truth):
    rows = 200
    chance = binom(rows, truth)
    covered = 0.0
    for hits in range(rows + 1):
        low, high = wilson(hits / rows, rows)
        covered += chance.pmf(hits) * (low <= truth <= high)
    assert 0.92 < covered < 0.98


def slow_area(high, low):
    """By pairs, and DeLong's variance from the two-sample kernel itself."""
    kernel = (high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])
    above, below = kernel.mean(1), kernel.mean(0)
    error = math.sqrt(above.var(ddof=1) / len(high) + below.var(ddof=1) / len(low))
    return kernel.mean(), error


def scores(seed, high=40, low=60, shift=0.7):
    draw = np.random.default_rng(seed)
    # Rounded, so that there are ties.
    return np.round(draw.normal(shift, 1, high), 1), np.round(draw.normal(0, 1, low), 1)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_is_a_count_of_pairs_and_its_error_delongs(seed):
    high, low = scores(seed)
    low[:3] = -np.inf
    found = area_under_curve(torch.from_numpy(high), torch.from_numpy(low))
    assert found == pytest.approx(slow_area(high, low), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_swaps_and_turns_around(seed):
    high, low = map(torch.from_numpy, scores(seed))
    area, error = area_under_curve(high, low)
    assert area_under_curve(low, high) == pytest.approx((1 - area, error), abs=1e-12)
    assert area_under_curve(-high, -low) == pytest.approx((1 - area, error), abs=1e-12)
    assert area_under_curve(high.exp(), low.exp()) == pytest.approx((area, error), abs=1e-12)


def test_the_same_distribution_is_at_a_half_within_its_error_as_often_as_it_should():
    draw = torch.Generator().manual_seed(0)
    inside = []
    for _ in range(400):
        area, error = area_under_curve(torch.randn(50, generator=draw), torch.randn(70, generator=draw))
        inside.append(abs(area - 0.5) < Z95 * error)
    assert 0.92 < np.mean(inside) < 0.98


def test_the_error_is_near_hanley_and_mcneils():
    # Their closed form (Radiology 143, 1982) is for exponential scores.
    draw = np.random.default_rng(0)
    high, low = draw.exponential(2.0, 3000), draw.exponential(1.0, 2000)
    area, error = area_under_curve(torch.from_numpy(high), torch.from_numpy(low))
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (3000 - 1) * (first - area**2) + (2000 - 1) * (second - area**2)
    assert error == pytest.approx(math.sqrt(variance / (3000 * 2000)), rel=0.05)


def test_all_ties_are_a_half_without_error_and_one_row_has_no_error():
    same = torch.full((5,), -torch.inf)
    assert area_under_curve(same, same[:4]) == (0.5, 0.0)
    few, many = torch.tensor([0.5]), torch.linspace(0, 1, 9)
    for high, low in ((few, many), (many, few)):
        area, error = area_under_curve(high, low)
        assert area == pytest.approx(0.5)
        assert math.isnan(error)


# --- membership ---------------------------------------------------------------------------------------------


def answers(rows, sure, seed):
    logits = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[:, 2] += sure
    return logits.log_softmax(1)


def attacked(training, held_out):
    """Of class 2, by the log-probabilities of it and of the answer."""
    return membership(training[:, 2], training.amax(1), held_out[:, 2], held_out.amax(1))


def test_rows_answered_alike_are_not_told_apart():
    found = attacked(answers(300, 3, 0), answers(200, 3, 1))
    assert not found.tells
    assert found.loss == pytest.approx(0.5, abs=2 * found.loss_error)


def test_surer_rows_are_told_apart_either_way_round():
    sure, less = answers(300, 5, 0), answers(200, 2, 1)
    ours, theirs = attacked(sure, less), attacked(less, sure)
    assert ours.loss > 0.8
    assert ours.tells
    assert theirs.tells
    assert (theirs.loss, theirs.confidence) == pytest.approx((1 - ours.loss, 1 - ours.confidence))


def test_a_class_that_cannot_be_answered_hides_its_loss_and_not_the_confidence():
    sure, less = (
        rows.index_fill(1, torch.tensor([2]), -torch.inf) for rows in (answers(300, 5, 0), answers(200, 2, 1))
    )
    sure[:, 0] += 3
    sure = sure.log_softmax(1)
    found = attacked(sure, less)
    assert (found.loss, found.loss_error) == (0.5, 0)
    assert found.confidence > 0.6


def test_either_attack_may_tell():
    assert not Membership(0.53, 0.02, 0.49, 0.02).tells
    assert Membership(0.45, 0.02, 0.5, 0.02).tells
    assert Membership(0.5, 0.02, 0.545, 0.02).tells
    assert not Membership(0.465, 0.02, 0.535, 0.02).tells
