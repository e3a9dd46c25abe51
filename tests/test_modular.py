"""The network that adds modulo a prime: what is said of its logits is true of logits made by hand."""

import math

import pytest
import torch

from koopman_interp.testing import ModularAdder, train_modular_adder
from koopman_interp.testing.modular import frequency_powers, modular_pairs, phases, without_frequencies

PRIME = 11


def made(amplitudes, noise=0.0):
    """Logits `Σ_k A_k cos(2πk(a + b − c)/p)`."""
    _, sums = modular_pairs(PRIME)
    apart = sums[:, None] - torch.arange(PRIME)
    logits = sum(size * (2 * math.pi * k * apart / PRIME).cos() for k, size in amplitudes.items()).double()
    return logits + noise * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).double()


def test_powers_are_those_of_the_frequencies_that_logits_are_made_of():
    power = frequency_powers(made({2: 3.0, 5: 1.0}), PRIME)
    expected = torch.zeros(6, dtype=torch.float64)
    expected[[2, 5]] = torch.tensor([3.0, 1.0]).double().square() * (PRIME / 2) ** 2
    torch.testing.assert_close(power, expected, rtol=1e-5, atol=1e-6)


def test_what_is_taken_off_is_the_regression_on_the_phases_of_the_sum():
    logits = made({2: 3.0, 5: 1.0}, noise=1.0)
    columns = phases(modular_pairs(PRIME)[1], PRIME, [2, 4])
    centred = logits - logits.mean(0)
    fitted = columns @ torch.linalg.lstsq(columns, centred).solution
    torch.testing.assert_close(without_frequencies(logits, PRIME, [2, 4]), logits - fitted)
    left = frequency_powers(without_frequencies(logits, PRIME, [2]), PRIME) / frequency_powers(logits, PRIME)
    assert left[2] < 1e-9 and left[5] == pytest.approx(1)


def test_phases_are_columns_of_cosine_and_sine():
    found = phases(torch.arange(PRIME), PRIME, [1, 3])
    angle = 2 * math.pi * 3 * 4 / PRIME
    torch.testing.assert_close(found[4, 2:], torch.tensor([math.cos(angle), math.sin(angle)]).double())
    torch.testing.assert_close(found.T @ found, PRIME / 2 * torch.eye(4).double())


def test_training_is_of_its_seed_and_leaves_the_callers_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, trained = train_modular_adder(PRIME, steps=3, seed=2)
    assert torch.equal(torch.rand(3), expected)
    again, same = train_modular_adder(PRIME, steps=3, seed=2)
    assert torch.equal(first.unembed.weight, again.unembed.weight) and torch.equal(trained, same)
    assert int(trained.sum()) == round(0.6 * PRIME**2)
    assert not first.training


def test_before_the_block_no_function_of_the_sum_alone_is_linear():
    torch.manual_seed(0)
    model = ModularAdder(PRIME).eval()
    pairs, sums = modular_pairs(PRIME)
    states = model.embed(pairs).sum(1).detach().double()
    wanted = phases(sums, PRIME, [1, 2, 3, 4, 5])
    assert float(((states - states.mean(0)).T @ wanted).abs().max()) / len(pairs) < 1e-7
