"""The units of a model's states make no difference to an edit: λ and shrinkage are shares, not amounts."""

from dataclasses import replace

import pytest
import torch

import koopman_interp as ki
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.oblique import oblique
from koopman_interp.forgetting.gradient import _size

UNIT = 1000.0
METHODS = {
    "erase_class": lambda koopman, rows: ki.erase_class(koopman, label=1, site=2),
    "erase_concept": lambda koopman, rows: ki.erase_concept(koopman, rows, site=2),
    "erase_concept, rows": lambda koopman, rows: ki.erase_concept(koopman, rows, site=2, cost="rows"),
    "redirect": lambda koopman, rows: ki.redirect(koopman, fitted=rows, label=1, weight=0.3, site=2),
    "redirect, after": lambda koopman, rows: ki.redirect(
        koopman, fitted=rows, label=1, after=ki.erase_class(koopman, label=1, site=2)
    ),
    "redirect, no label": lambda koopman, rows: ki.redirect(
        koopman, fitted=rows, targets=ki.counterfactual(rows.labels, torch.zeros(len(rows))), weight=0.3, site=2
    ),
}


@pytest.fixture(scope="module")
def pair(trajectories):
    """The same rows in two units, each with its surrogate."""
    large = replace(trajectories, states=tuple(UNIT * state for state in trajectories.states))
    config = ki.FitConfig(observables=14)
    return [(ki.fit(rows, config, method="least_squares"), rows) for rows in (trajectories, large)]


@pytest.mark.parametrize("method", METHODS)
def test_states_in_other_units_give_the_same_edit_at_the_same_setting(pair, method):
    moved = []
    for koopman, rows in pair:
        edit = METHODS[method](koopman, rows)
        z = koopman.encode(rows.states[2], 2)
        moved.append((koopman.decode(edit(z), 2) - koopman.decode(z, 2)).double())
        assert float(moved[-1].norm()) > 0.1
    torch.testing.assert_close(moved[1] / UNIT, moved[0], rtol=1e-3, atol=1e-3 * float(moved[0].abs().max()))


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_observables_in_other_units_give_the_same_projection(unit):
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=draw, dtype=torch.float64) @ torch.randn(6, 6, generator=draw).double()
    a, B = (torch.randn(6, columns, generator=draw, dtype=torch.float64) for columns in (1, 2))
    covariance, centre = torch.cov(z.T), z.mean(0)
    plain = oblique(a, B, covariance, centre, shrinkage=0.1)
    other = oblique(unit * a, unit * B, unit**2 * covariance, unit * centre, shrinkage=0.1)
    torch.testing.assert_close(other.map(unit * z) / unit, plain.map(z))
    assert other.feasibility == pytest.approx(plain.feasibility)


def test_a_gradient_edit_steps_in_units_of_its_own_factors():
    draw = torch.Generator().manual_seed(0)
    A, W = (torch.randn(6, 1, generator=draw, dtype=torch.float64) for _ in range(2))
    change = LowRankMap(UNIT * A, W / UNIT, torch.zeros(1).double())
    # A factor that is there sets its own step; only what is next to nothing takes a unit, that of the observables.
    assert _size(change.directions, 0.1 * UNIT) == pytest.approx(UNIT * _size(A, 0.1))
    assert _size(change.readers, 0.1 / UNIT) == pytest.approx(_size(W, 0.1) / UNIT)
    assert _size(0 * change.directions, 0.1 * UNIT) == pytest.approx(UNIT * _size(0 * A, 0.1))
