"""K in closed form on a batch, and the residual of white observables, against their formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import koopman_interp as ki
from koopman_interp.errors import InputError
from koopman_interp.fitting.fit import SpectrumObjective
from koopman_interp.fitting.rows import HeldRows
from koopman_interp.fitting.variable_projection import solved


def observables(noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    K = torch.tensor([[0.9, 0.3, 0.0], [0.0, 0.6, 0.0], [0.1, 0.0, 0.4]], dtype=torch.float64)
    states = [torch.randn(400, 3, generator=generator, dtype=torch.float64)]
    for _ in range(3):
        drawn = torch.randn(400, 3, generator=generator, dtype=torch.float64)
        states.append(states[-1] @ K.T + noise * drawn)
    return K, torch.stack(states)


@pytest.mark.parametrize("units", [1.0, 1e-6], ids=["alike", "of very different sizes"])
def test_the_operator_is_recovered_in_any_units(units):
    K, z = observables(noise=0.0)
    size = torch.tensor([1.0, units, 1.0], dtype=torch.float64)
    found, residual = solved(z * size)
    torch.testing.assert_close(found / size[:, None] * size, K, rtol=1e-4, atol=1e-4)
    assert float(residual) < 1e-8


def test_the_residual_is_the_trace_of_its_formula():
    _, z = observables(noise=0.5)
    _, residual = solved(z)
    before, after = z[:-1].flatten(0, 1).numpy(), z[1:].flatten(0, 1).numpy()
    G, A, L = (left.T @ right / len(before) for left, right in ((before, before), (before, after), (after, after)))
    white = np.linalg.inv(np.linalg.cholesky(G))
    expected = np.trace(white @ (L - A.T @ np.linalg.solve(G, A)) @ white.T) / 3
    assert float(residual) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.05


def test_the_objective_holds_as_much_of_it_as_was_asked_for(trajectories, quick_config):
    config = replace(quick_config, aim="spectrum")
    surrogate = ki.fit(trajectories, replace(config, steps=1), progress=False)
    states = torch.stack([surrogate.normalization.normalize(x, depth) for depth, x in enumerate(trajectories.states)])
    losses = []
    for weight in (0.0, 2.0):
        objective = SpectrumObjective(
            surrogate, replace(config, residual=weight), HeldRows(states), HeldRows(states), len(trajectories)
        )
        with torch.no_grad():
            losses.append(float(objective(0, torch.Generator().manual_seed(0))))
    expected = float(solved(surrogate.encoder(states))[1])
    assert losses[1] - losses[0] == pytest.approx(2 * expected, rel=1e-3)
    assert expected > 0


def test_depths_at_unequal_distances_are_refused(trajectories, quick_config):
    uneven = replace(trajectories, times=(0.0, 1.0, 2.0, 3.0, 5.0))
    with pytest.raises(InputError, match="equally far apart"):
        ki.fit(uneven, replace(quick_config, aim="spectrum"), progress=False)


def test_a_spectrum_of_the_ends_alone_is_refused_where_there_are_depths_between(trajectories):
    config = ki.FitConfig(aim="spectrum", pairs="endpoints", steps=2)
    with pytest.raises(InputError, match=r"leaves out the 3 between"):
        ki.fit(trajectories, config, progress=False)
