"""A low-rank map is the affine matrix that its definition says, however it is composed, scaled or taken back."""

import numpy as np
import pytest
import torch

from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.errors import InputError

SIZE = 6


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_map(rank, seed=1):
    return LowRankMap(drawn(SIZE, rank, seed=seed), drawn(SIZE, rank, seed=seed + 50), drawn(rank, seed=seed + 100))


def affine(change):
    """The map on columns `[z; 1]`, entry by entry."""
    A, W, o = change.directions.numpy(), change.readers.numpy(), change.offset.numpy()
    dense = np.eye(SIZE + 1)
    for i in range(SIZE):
        for j in range(SIZE):
            dense[i, j] -= sum(A[i, r] * W[j, r] for r in range(len(o)))
        dense[i, SIZE] = sum(A[i, r] * o[r] for r in range(len(o)))
    return dense


RANKS = [0, 1, 2, 5]


@pytest.mark.parametrize("rank", RANKS)
def test_rows_move_as_the_matrix_says(rank):
    change, z = a_map(rank), drawn(9, SIZE)
    expected = (np.c_[z.numpy(), np.ones(9)] @ affine(change).T)[:, :SIZE]
    np.testing.assert_allclose(change(z).numpy(), expected, atol=1e-13)
    np.testing.assert_allclose(change.matrix.numpy(), affine(change)[:SIZE, :SIZE], atol=1e-13)
    np.testing.assert_allclose((z - change.read(z) @ change.directions.T).numpy(), expected, atol=1e-13)
    assert torch.equal(change(z.view(3, 3, SIZE)), change(z).view(3, 3, SIZE))
    assert change.rank == rank


@pytest.mark.parametrize("second", RANKS)
@pytest.mark.parametrize("first", RANKS)
def test_one_after_the_other_is_the_product(first, second):
    one, other = a_map(first, seed=1), a_map(second, seed=2)
    both = one.then(other)
    np.testing.assert_allclose(affine(both), affine(other) @ affine(one), atol=1e-12)
    assert both.rank == first + second
    if first and second:
        assert np.abs(affine(other.then(one)) - affine(both)).max() > 1e-2


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 3.0])
def test_a_strength_multiplies_the_displacement(strength):
    change, z = a_map(2), drawn(9, SIZE)
    torch.testing.assert_close(change.scaled(strength)(z) - z, strength * (change(z) - z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", RANKS)
def test_the_inverse_is_the_inverse_matrix(rank):
    change = a_map(rank)
    np.testing.assert_allclose(affine(change.inverse), np.linalg.inv(affine(change)), atol=1e-9)
    for there_and_back in (change.then(change.inverse), change.inverse.then(change)):
        np.testing.assert_allclose(affine(there_and_back), np.eye(SIZE + 1), atol=1e-9)


def test_a_projection_has_no_inverse():
    change = a_map(1)
    projection = change.scaled(1 / float(change.directions[:, 0] @ change.readers[:, 0]))
    torch.testing.assert_close(projection.then(projection)(drawn(4, SIZE)), projection(drawn(4, SIZE)))
    with pytest.raises(InputError, match="has no inverse"):
        _ = projection.inverse


@pytest.mark.parametrize("rank", RANKS)
def test_the_covariance_of_mapped_rows(rank):
    change, z = a_map(rank), drawn(200, SIZE) @ drawn(SIZE, SIZE, seed=3)
    expected = torch.cov(change(z).T, correction=0)
    torch.testing.assert_close(change.push(torch.cov(z.T, correction=0)), expected, rtol=1e-11, atol=1e-11)


def test_rows_keep_their_dtype_and_so_does_the_map():
    change, z = a_map(2), drawn(9, SIZE)
    assert change(z.float()).dtype == torch.float32
    torch.testing.assert_close(change(z.float()).double(), change(z), rtol=1e-5, atol=1e-5)
    assert change.to(z.float()).directions.dtype == torch.float32
    assert change.directions.dtype == torch.float64
