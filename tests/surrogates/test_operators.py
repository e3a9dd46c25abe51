"""Every family of operators keeps the laws of powers, in float64, against numpy and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag, expm, fractional_matrix_power, logm

from koopman_interp.errors import InputError
from koopman_interp.surrogates.operators import OPERATORS, operator

KINDS = list(OPERATORS)
FRACTIONAL = [kind for kind, cls in OPERATORS.items() if cls.fractional]
seeds = st.integers(0, 10_000)
sizes = st.integers(2, 7)


def random_operator(kind, size, seed, rank=None, spread=0.3):
    """A member near the identity, so that its principal powers exist."""
    member = operator(kind, size, rank).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in member.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(spread * noise / max(parameter.shape[-1], 1) ** 0.5)
    return member


def rows(size, seed, count=4):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds, size=sizes, steps=st.integers(0, 6))
def test_advancing_is_a_power_of_the_matrix(kind, seed, size, steps):
    member, z = random_operator(kind, size, seed, rank=min(3, size)), rows(size, seed)
    K = np.linalg.matrix_power(member.matrix().detach().numpy(), steps)
    found = member.advance(z, float(steps)).detach().numpy()
    np.testing.assert_allclose(found, z.numpy() @ K.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_may_have_any_leading_axes(kind):
    member, z = random_operator(kind, 5, 1, rank=2), rows(5, 1, 6)
    for steps in (0.0, 1.0, 3.0):
        expected = member.advance(z, steps).view(2, 3, 5)
        torch.testing.assert_close(member.advance(z.view(2, 3, 5), steps), expected)
        torch.testing.assert_close(member.advance(z[0], steps), expected[0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_change_no_bit(kind):
    z = rows(4, 0)
    assert torch.equal(random_operator(kind, 4, 0, rank=2).advance(z, 0.0), z)


@pytest.mark.parametrize("kind", KINDS)
def test_a_propagator_can_be_used_again(kind):
    member, z = random_operator(kind, 4, 0, rank=2), rows(4, 0)
    move = member.propagator(2.0)
    torch.testing.assert_close(move(move(z)), member.advance(z, 4.0))


@pytest.mark.parametrize("kind", FRACTIONAL)
@given(seed=seeds, size=sizes, part=st.floats(0.05, 0.95))
def test_two_parts_of_a_step_are_a_step(kind, seed, size, part):
    member, z = random_operator(kind, size, seed, rank=min(2, size)), rows(size, seed)
    halfway = member.advance(z, part)
    torch.testing.assert_close(member.advance(halfway, 1 - part), member.advance(z, 1.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", FRACTIONAL)
@given(seed=seeds, size=sizes, steps=st.floats(0.05, 4.0))
def test_real_powers_are_those_of_scipy(kind, seed, size, steps):
    member, z = random_operator(kind, size, seed, rank=min(2, size)), rows(size, seed)
    K = member.matrix().detach().numpy()
    found = member.advance(z, steps).detach().numpy()
    power = np.real(fractional_matrix_power(K, steps))
    np.testing.assert_allclose(found, z.numpy() @ power.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, z.numpy() @ np.real(expm(steps * logm(K))).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [0.3, 0.5, 2.5])
@pytest.mark.parametrize("kind", FRACTIONAL)
def test_real_powers_of_the_first_operator_keep_every_row(kind, steps):
    # Fits without a warm start begin here: the identity, whose eigenvalues coincide.
    for size in (3, 4):
        member, z = operator(kind, size, 2).double(), rows(size, 0)
        torch.testing.assert_close(member.advance(z, steps), z)


@pytest.mark.parametrize("steps", [0.5, 1.5])
def test_real_powers_exist_where_the_low_rank_part_is_singular(steps):
    member = operator("identity_plus_low_rank", 4, 2).double()
    with torch.no_grad():  # a shear: U Vᵀ ≠ 0, and VᵀU = 0
        member.U.copy_(torch.tensor([[0.0, 0], [0, 0], [0.5, 0], [0, 0.7]]))
        member.V.copy_(torch.eye(4, 2))
    z = rows(4, 0)
    power = fractional_matrix_power(member.matrix().detach().numpy(), steps)
    np.testing.assert_allclose(member.advance(z, steps).detach().numpy(), z.numpy() @ power.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1.0, 2.0, 5.0])
def test_gradients_are_those_of_the_dense_power(kind, steps):
    member, z = random_operator(kind, 5, 3, rank=2), rows(5, 3)
    weights = rows(5, 4)
    parameters = list(member.parameters())
    found = torch.autograd.grad((member.advance(z, steps) * weights).sum(), parameters)
    dense = z @ torch.linalg.matrix_power(member.matrix(), int(steps)).T
    expected = torch.autograd.grad((dense * weights).sum(), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 0


@pytest.mark.parametrize("kind", FRACTIONAL)
@pytest.mark.parametrize("steps", [0.4, 1.7])
@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_of_real_powers_are_finite_and_right(kind, steps, rank):
    member, z = random_operator(kind, 5, 3, rank=rank), rows(5, 3)
    parameters = [parameter for parameter in member.parameters() if parameter.numel()]
    gradients = torch.autograd.grad(member.advance(z, steps).square().sum(), parameters)
    step = 1e-6
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.isfinite(gradient).all()
        with torch.no_grad():  # central differences along the gradient's own direction
            direction = gradient / gradient.norm()
            parameter.add_(step * direction)
            above = float(member.advance(z, steps).square().sum())
            parameter.sub_(2 * step * direction)
            below = float(member.advance(z, steps).square().sum())
            parameter.add_(step * direction)
        assert (above - below) / (2 * step) == pytest.approx(float(gradient.norm()), rel=1e-4)


@pytest.mark.parametrize("kind", FRACTIONAL)
def test_gradients_of_real_powers_are_finite_at_the_first_operator(kind):
    member = operator(kind, 5, 2)
    z = rows(5, 3).float()
    for gradient in torch.autograd.grad(member.advance(z, 0.5).square().sum(), list(member.parameters())):
        assert torch.isfinite(gradient).all()


# --- starting from a matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "blocks"])
@given(seed=seeds, size=sizes)
def test_a_member_of_the_family_is_recovered(kind, seed, size):
    K = random_operator(kind, size, seed, rank=min(2, size)).matrix().detach()
    started = operator(kind, size, min(2, size)).double()
    assert started.start_from(K) is None
    torch.testing.assert_close(started.matrix().detach(), K, rtol=1e-6, atol=1e-6)


def normal_matrix(seed, size, real):
    """`Q blockdiag(rotations, reals) Qᵀ`."""
    draw = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(draw.normal(size=(size, size)))
    angles = draw.uniform(0.3, 2.5, (size - real) // 2)
    turns = [
        r * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        for a, r in zip(angles, draw.uniform(0.5, 1, len(angles)), strict=True)
    ]
    return torch.from_numpy(Q @ block_diag(*turns, *[[[value]] for value in draw.uniform(0.2, 1, real)]) @ Q.T)


@pytest.mark.parametrize(("size", "real"), [(2, 0), (2, 2), (4, 2), (5, 1), (6, 0), (6, 4), (7, 3), (5, 5)])
@pytest.mark.parametrize("seed", range(5))
def test_blocks_take_a_normal_matrix_whole_in_a_turned_basis(size, real, seed):
    K = normal_matrix(seed, size, real)
    started = operator("blocks", size).double()
    Q = started.start_from(K)
    torch.testing.assert_close(Q.T @ Q, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(started.matrix().detach(), Q.T @ K @ Q)
    # In the turned basis, z → z Q, a step is the same step.
    z = rows(size, seed)
    torch.testing.assert_close(started.advance(z @ Q, 1.0).detach(), z @ K.T @ Q)


@given(seed=seeds, size=sizes)
def test_blocks_keep_the_eigenvalues_of_any_matrix(seed, size):
    K = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    started = operator("blocks", size).double()
    Q = started.start_from(K)
    torch.testing.assert_close(Q.T @ Q, torch.eye(size, dtype=torch.float64))
    found, expected = (np.linalg.eigvals(A) for A in (started.matrix().detach().numpy(), K.numpy()))
    for value in expected:
        assert np.abs(found - value).min() < 1e-8


@pytest.mark.parametrize("kind", ["low_rank", "identity_plus_low_rank"])
def test_factors_start_at_the_nearest_matrix_of_their_rank(kind):
    K = torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    offset = (
        torch.eye(6, dtype=torch.float64)
        if kind == "identity_plus_low_rank"
        else torch.zeros(6, 6, dtype=torch.float64)
    )
    started = operator(kind, 6, 3).double()
    started.start_from(K)
    # Eckart–Young: what is left over is made of the dropped singular values.
    dropped = torch.linalg.svdvals(K - offset)[3:]
    assert float((started.matrix().detach() - K).norm()) == pytest.approx(float(dropped.norm()))


def test_a_generator_starts_from_a_matrix_that_kills_a_mode():
    K = torch.diag(torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64))
    started = operator("generator", 3).double()
    started.start_from(K)
    torch.testing.assert_close(started.matrix().detach(), K, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_starting_keeps_the_dtype(kind):
    started = operator(kind, 4, 2)
    turn = started.start_from(torch.eye(4) * 0.5 + 0.01)
    assert started.matrix().dtype == torch.float32
    assert turn is None or turn.dtype == torch.float32


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_negative_steps_are_refused(kind):
    with pytest.raises(InputError, match=r"Steps go forward; got -1"):
        operator(kind, 4, 2).advance(rows(4, 0), -1.0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FRACTIONAL])
def test_parts_of_a_step_are_refused_where_there_are_none(kind):
    with pytest.raises(InputError, match=f"{kind} operator has whole powers only; got 0.5.*'generator'"):
        operator(kind, 4, 2).advance(rows(4, 0), 0.5)


@pytest.mark.parametrize("kind", ["low_rank", "identity_plus_low_rank"])
@pytest.mark.parametrize("rank", [0, -1, 5])
def test_a_rank_that_does_not_fit_is_refused(kind, rank):
    with pytest.raises(InputError, match=f"between 1 and the 4 observables; got {rank}"):
        operator(kind, 4, rank)


@pytest.mark.parametrize("size", [3, 40])
def test_the_rank_is_32_or_all_there_is(size):
    assert operator("low_rank", size).rank == min(32, size)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no operator 'cayley'; there are dense, generator"):
        operator("cayley", 4)


@pytest.mark.parametrize("value", [-0.5, 0.0])
def test_a_real_power_of_an_eigenvalue_that_is_not_positive_is_refused(value):
    K = torch.diag(torch.tensor([0.9, 0.8, value], dtype=torch.float64))
    for kind, size in (("blocks", 3), ("blocks", 4), ("identity_plus_low_rank", 3)):
        member = operator(kind, size, None if kind == "blocks" else 3).double()
        member.start_from(torch.block_diag(K, torch.eye(size - 3, dtype=torch.float64)))
        with pytest.raises(InputError, match="zero or negative"):
            member.advance(rows(size, 0), 0.5)
        assert torch.isfinite(member.advance(rows(size, 0), 2.0)).all()
