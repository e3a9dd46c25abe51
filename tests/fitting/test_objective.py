"""A look at held-out rows weighs all pairs of depths, and never holds more than those of one start.

A step takes what belongs to different pairs at once, and is the same as one after the other.
"""

from dataclasses import replace
from itertools import combinations

import pytest
import torch

import koopman_interp as ki
from koopman_interp.fitting.objective import FitObjective
from koopman_interp.fitting.rows import HeldRows

CONFIG = ki.FitConfig(pairs="all", isometry_weight=0.0, reconstruction=0.7, linearity=0.3, prediction=1.9)


@pytest.fixture
def looked(surrogate, trajectories):
    """An objective on float64 rows, with the surrogate that it judges."""
    koopman = surrogate.double()
    states = torch.stack(
        [koopman.normalization.normalize(state.double(), depth) for depth, state in enumerate(trajectories.states)]
    )
    yield koopman, states, FitObjective(koopman, CONFIG, HeldRows(states[:, :200]), HeldRows(states[:, 200:300]), 50)
    surrogate.float()


@torch.no_grad()
def test_the_loss_of_a_look_is_the_mean_over_all_pairs(looked):
    koopman, states, objective = looked
    rows = states[:, 200:300]
    z = koopman.encoder(rows)
    linear, predicted = [], []
    for i, j in combinations(range(len(rows)), 2):
        moved = z[i] @ torch.linalg.matrix_power(koopman.K, round(koopman.steps(i, j))).T
        linear.append((moved - z[j]).square().mean())
        predicted.append((koopman.decoder(moved) - rows[j]).square().mean())
    undone = (koopman.decoder(z[:, :50]) - rows[:, :50]).square().mean()
    expected = 0.7 * undone + 0.3 * torch.stack(linear).mean() + 1.9 * torch.stack(predicted).mean()
    assert objective.judged(torch.Generator())["loss"] == pytest.approx(float(expected), rel=1e-9)


def test_a_look_and_a_step_weigh_the_same_rows_alike(looked):
    _, states, objective = looked
    with torch.no_grad():
        look = objective.weighed(states[:, :80], objective.surrogate.config.times, torch.Generator())
    step = objective.weighed(states[:, :80], objective.surrogate.config.times, torch.Generator())
    torch.testing.assert_close(look, step.detach(), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_look_decodes_the_pairs_of_one_start_at_a_time(looked):
    koopman, states, objective = looked
    shapes = []
    hook = koopman.decoder.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape[:2])))
    objective.judged(torch.Generator())
    hook.remove()
    depths = len(states)
    assert [pairs for pairs, rows in shapes if rows == 100 and pairs != depths] == list(range(depths - 1, 0, -1))


def test_a_step_is_that_of_the_whole_span_and_of_one_drawn_pair_one_after_the_other(looked):
    koopman, states, _ = looked
    config = replace(CONFIG, pairs="sampled", drawn=0.4, isometry_weight=0.1)
    rows, times = HeldRows(states[:, :200]), koopman.config.times
    objective = FitObjective(koopman, config, rows, HeldRows(states[:, 200:300]), 50)
    for step in range(3):
        drawing, whole = torch.Generator().manual_seed(step), torch.Generator().manual_seed(step)
        others = [pair for pair in combinations(range(len(states)), 2) if pair != (0, len(states) - 1)]
        i, j = others[int(torch.randint(len(others), (1,), generator=whole))]
        batch, _ = rows.batches(50, config.seed)(step)
        expected = objective.weighed(batch[[0, -1]], (times[0], times[-1]), whole)
        expected = expected + 0.4 * objective.weighed(batch[[i, j], :25], (times[i], times[j]), whole)
        torch.testing.assert_close(objective(step, drawing), expected, rtol=1e-12, atol=0)
