"""The losses are the formulas in their docstrings, by a double loop, and behave where points coincide."""

import pytest
import torch
from torch import nn

from koopman_interp.fitting.losses import (
    all_pairs_isometry,
    chord_isometry,
    linearity,
    matching_isometry,
    prediction,
    reconstruction,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("loss", [reconstruction, prediction, linearity])
def test_the_three_mean_squares_are_means_over_entries(loss):
    a, b = draw(2, 5, 3), draw(2, 5, 3, seed=1)
    expected = sum((float(x) - float(y)) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)) / a.numel()
    assert float(loss(a, b)) == pytest.approx(expected)
    assert float(loss(a, a)) == 0


def by_double_loop(z, x):
    total, pairs = 0.0, 0
    for depth in range(len(x)):
        for i in range(x.shape[1]):
            for j in range(i):
                total += float((z[depth, i] - z[depth, j]).norm() - (x[depth, i] - x[depth, j]).norm()) ** 2
                pairs += 1
    return total / pairs


def test_all_pairs_is_a_double_loop():
    z, x = draw(2, 9, 5), draw(2, 9, 3, seed=1)
    assert float(all_pairs_isometry(z, x)) == pytest.approx(by_double_loop(z, x))


def test_a_matching_compares_each_point_with_one_other():
    z, x = draw(2, 9, 5), draw(2, 9, 3, seed=1)
    order = torch.randperm(9, generator=seeded(7))
    total = 0.0
    for depth in range(2):
        for i, j in zip(order.tolist(), order.roll(1).tolist(), strict=True):
            total += float((z[depth, i] - z[depth, j]).norm() - (x[depth, i] - x[depth, j]).norm()) ** 2
    assert float(matching_isometry(z, x, seeded(7))) == pytest.approx(total / 18)


def test_a_matching_expects_the_mean_over_all_pairs():
    z, x = draw(2, 8, 5), draw(2, 8, 3, seed=1)
    values = torch.stack([matching_isometry(z, x, seeded(seed)) for seed in range(2000)])
    error = float(values.std()) / len(values) ** 0.5
    assert float(values.mean()) == pytest.approx(by_double_loop(z, x), abs=4 * error)
    assert 4 * error < 0.05 * by_double_loop(z, x)  # else the line above would say little


class Map(nn.Module):
    def __init__(self, weight, bend=0.0):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bend = bend

    def forward(self, x):
        return x @ self.weight.T + self.bend * torch.sin(x @ self.weight.T)


def test_a_map_that_doubles_distances_has_the_value_that_arithmetic_gives():
    columns, _ = torch.linalg.qr(draw(7, 4))
    encoder, x = Map(2 * columns), draw(2, 20, 4, seed=1)
    squares = torch.stack([torch.pdist(cloud).square().mean() for cloud in x]).mean()
    assert float(all_pairs_isometry(encoder(x), x).detach()) == pytest.approx(float(squares))
    assert float(chord_isometry(encoder, x, seeded(0)).detach()) == pytest.approx(1)


def test_chords_are_differences_in_the_small():
    encoder, x = Map(draw(5, 3), bend=0.5), draw(2, 11, 3, seed=1)
    order = torch.randperm(11, generator=seeded(3))
    total, step = 0.0, 1e-6
    for depth in range(2):
        for i, j in zip(order.tolist(), order.roll(1).tolist(), strict=True):
            middle, chord = (x[depth, i] + x[depth, j]) / 2, x[depth, i] - x[depth, j]
            u = chord / chord.norm()
            speed = (encoder(middle + step * u) - encoder(middle - step * u)).norm() / (2 * step)
            total += float((speed.detach() - 1) ** 2)
    assert float(chord_isometry(encoder, x, seeded(3)).detach()) == pytest.approx(total / 22, rel=1e-6)


def isometry(name, encoder, x):
    match name:
        case "matching":
            return matching_isometry(encoder(x), x, seeded(0))
        case "all_pairs":
            return all_pairs_isometry(encoder(x), x)
        case "chords":
            return chord_isometry(encoder, x, seeded(0))


@pytest.mark.parametrize("name", ["matching", "all_pairs", "chords"])
def test_an_isometric_map_costs_nothing(name):
    columns, _ = torch.linalg.qr(draw(7, 4))
    encoder, x = Map(columns), draw(3, 20, 4, seed=1)
    assert float(isometry(name, encoder, x).detach()) == pytest.approx(0, abs=1e-24)


@pytest.mark.parametrize("name", ["matching", "all_pairs", "chords"])
@pytest.mark.parametrize("copies", [2, 12])
def test_duplicates_have_finite_gradients(name, copies):
    x = draw(2, 12 // copies, 3).repeat(1, copies, 1).requires_grad_()
    encoder = Map(draw(5, 3, seed=1), bend=0.5)
    loss = isometry(name, encoder, x)
    gradients = torch.autograd.grad(loss, [encoder.weight, x])
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["matching", "all_pairs", "chords"])
def test_a_collapsed_encoder_has_finite_gradients(name):
    x = draw(2, 12, 3)
    encoder = Map(torch.zeros(5, 3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(isometry(name, encoder, x), [encoder.weight])
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["matching", "all_pairs", "chords"])
def test_gradients_are_those_of_finite_differences(name):
    x = draw(2, 6, 3)
    weight = draw(4, 3, seed=1).requires_grad_()
    torch.autograd.gradcheck(lambda weight: isometry(name, _with(weight), x), [weight])


def _with(weight):
    encoder = Map(torch.zeros(4, 3, dtype=torch.float64), bend=0.5)
    del encoder.weight
    encoder.weight = weight
    return encoder


def test_matchings_follow_their_generator_and_leave_the_random_state():
    z, x = draw(2, 30, 5), draw(2, 30, 3, seed=1)
    before = torch.get_rng_state()
    values = [float(matching_isometry(z, x, seeded(seed))) for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), before)
