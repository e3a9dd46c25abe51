"""A fit by least squares takes as many random features as pay, and says so."""

import pytest
import torch

import koopman_interp as ki
from koopman_interp.fitting.config import FitConfig
from koopman_interp.fitting.least_squares import solve, solved_rows
from koopman_interp.fitting.objective import held_out_figures
from koopman_interp.fitting.rows import HeldRows
from koopman_interp.fitting.sizes import sizes
from koopman_interp.testing import LinearHost

from .test_least_squares import built, states


@pytest.mark.parametrize(
    ("dimension", "samples", "expected", "why"),
    [
        (10, 100_000, 512, "random features"),
        (64, 100_000, 512, "random features"),
        (300, 100_000, 556, "random features"),
        (900, 100_000, 1024, "random features"),
        (2000, 1_000_000, 1024, "random features"),
        (10, 600, 180, "serve no more"),
        (64, 100, 64, "serve no more"),
    ],
)
def test_features_are_many_as_far_as_there_are_rows_and_an_eigenproblem_allows(dimension, samples, expected, why):
    found = sizes(FitConfig(), dimension, samples, 4, "least_squares")
    assert found.observables == expected
    assert any(reason.startswith(f"observables {expected}") and why in reason for reason in found.reasons)
    assert not any("batch size" in reason for reason in found.reasons)
    # What was asked for stays.
    assert sizes(FitConfig(observables=33), dimension, samples, 4, "least_squares").observables == 33


def test_without_a_hidden_layer_the_observables_are_the_states():
    assert sizes(FitConfig(hidden=()), 10, 5000, 4, "least_squares").observables == 10
    K = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    data = ki.attach(LinearHost(K, 3).eval()).observe(x, progress=False)
    koopman = ki.fit(data, ki.FitConfig(hidden=()), method="least_squares")
    rows = koopman.normalization.normalize(data.states[1], 1)
    assert torch.equal(koopman.encoder(rows), rows)
    assert torch.equal(koopman.decoder(rows), rows) or torch.allclose(koopman.decoder(rows), rows, atol=1e-5)


@pytest.mark.parametrize(("samples", "observables"), [(100, 8), (8192, 512), (60_000, 512), (1_000_000, 1024)])
def test_it_is_solved_on_enough_rows_that_are_evenly_spaced(samples, observables):
    x = torch.arange(float(samples)).expand(5, samples)[..., None]
    rows = solved_rows(HeldRows(x), observables).states[0, :, 0]
    assert len(rows) * 4 >= min(samples * 4, 128 * observables)
    assert len(torch.unique(rows.diff())) == 1
    assert rows[0] == 0


def curved(rows, seed):
    """Three depths of a motion that is not linear."""
    x = states(1, rows, seed=seed)[0] / 2
    after = 0.8 * x + 0.4 * x.abs()
    return torch.stack([x, after, 0.8 * after + 0.4 * after.abs()])


def judged(one):
    return held_out_figures(one, curved(500, 1), (0.0, 1.0, 2.0))["fvu"]


@torch.no_grad()
def test_features_are_judged_beside_the_states_alone_and_the_judge_decides_nothing():
    surrogate, same, plain = (
        built(observables=size, hidden=hidden) for size, hidden in ((40, (40,)), (40, (40,)), (4, ()))
    )
    said = solve(surrogate, HeldRows(curved(4000, 0)), 1e-6, torch.Generator().manual_seed(0), judged)
    solve(plain, HeldRows(curved(4000, 0)), 1e-6, torch.Generator().manual_seed(0), judged)
    ours, theirs = judged(surrogate), judged(plain)
    assert ours < 0.5 * theirs
    assert said == f"random features: 36; held-out FVU {ours:.3g} with them, {theirs:.3g} with the states alone"

    def turned_round(one):
        return 1 / judged(one)

    said = solve(same, HeldRows(curved(4000, 0)), 1e-6, torch.Generator().manual_seed(0), turned_round)
    assert said.endswith("with the states alone, which is better: fit with FitConfig(hidden=())")
    assert all(torch.equal(one, other) for one, other in zip(surrogate.parameters(), same.parameters(), strict=True))


def test_the_record_says_what_the_features_are_worth(trajectories):
    koopman = ki.fit(trajectories, method="least_squares")
    assert koopman.config.observables == 10 + 206  # a tenth of 540 × 4 steps
    assert any(choice.startswith("random features: 206; held-out FVU") for choice in koopman.record.choices)
