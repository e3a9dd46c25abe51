"""Readers of several directions at once: the constraints hold, nothing cheaper keeps them, the impossible is said."""

import numpy as np
import pytest
import torch
from scipy.linalg import null_space

from koopman_interp.edits.oblique import oblique

SIZE = 10


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


CENTRE = drawn(SIZE, seed=7)


def solved(A, B, sigma, shrinkage=0.0):
    return oblique(*(torch.from_numpy(part) for part in (A, B, sigma, CENTRE)), shrinkage=shrinkage)


def covariance(seed=9):
    mix = drawn(SIZE, SIZE, seed=seed)
    return mix @ mix.T + 0.1 * np.eye(SIZE)


@pytest.mark.parametrize("offsets", [0, 1, 4])
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_readers_keep_the_constraints_and_are_the_cheapest(rank, offsets):
    A, B, sigma = drawn(SIZE, rank), drawn(SIZE, offsets, seed=1), covariance()
    eraser = solved(A, B, sigma)
    W = eraser.map.readers.numpy()
    np.testing.assert_allclose(A.T @ W, np.eye(rank), atol=1e-10)
    np.testing.assert_allclose(B.T @ W, 0, atol=1e-10)
    np.testing.assert_allclose(CENTRE @ W - eraser.map.offset.numpy(), 0, atol=1e-10)
    # By the conditions of optimality, solved as they stand, one column at a time.
    columns = np.c_[A, B]
    k = columns.shape[1]
    system = np.block([[sigma, columns], [columns.T, np.zeros((k, k))]])
    expected = np.linalg.solve(system, np.r_[np.zeros((SIZE, rank)), np.eye(k, rank)])[:SIZE]
    np.testing.assert_allclose(W, expected, rtol=1e-7, atol=1e-9)
    # By trying others.
    free = null_space(columns.T)
    for step in range(20):
        other = W + 0.1 * free @ drawn(free.shape[1], rank, seed=step)
        assert np.trace(other.T @ sigma @ other) > np.trace(W.T @ sigma @ W)
    assert eraser.feasibility <= 1 + 1e-12
    assert (eraser.feasibility == pytest.approx(1)) == (offsets == 0 and rank == 1)


def test_feasibility_is_the_sine_between_direction_and_what_is_kept():
    a, b = np.eye(SIZE)[:, :1], (np.eye(SIZE)[:, :1] * np.cos(0.3) + np.eye(SIZE)[:, 1:2] * np.sin(0.3))
    assert solved(a, b, np.eye(SIZE)).feasibility == pytest.approx(np.sin(0.3))
    # In the metric of Σ, by whitening with its symmetric root.
    sigma = covariance()
    values, vectors = np.linalg.eigh(sigma)
    u, v = ((vectors / np.sqrt(values)) @ vectors.T @ part[:, 0] for part in (a, b))
    sine = np.sqrt(1 - (u @ v) ** 2 / (u @ u) / (v @ v))
    assert solved(a, b, sigma).feasibility == pytest.approx(sine)


def test_dependent_offsets_constrain_as_their_span():
    A, B, sigma = drawn(SIZE, 2), drawn(SIZE, 2, seed=1), covariance()
    again = np.c_[B, B @ drawn(2, 3, seed=2)]
    torch.testing.assert_close(
        solved(A, again, sigma).map.readers, solved(A, B, sigma).map.readers, rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("impossible", ["in the span of what is kept", "twice", "nothing"])
def test_what_does_not_exist_is_none(impossible):
    A, B = drawn(SIZE, 2), drawn(SIZE, 3, seed=1)
    if impossible == "in the span of what is kept":
        A[:, 1] = B @ [1.0, -2.0, 0.5]
    else:
        A[:, 1] = A[:, 0] if impossible == "twice" else 0
    assert solved(A, B, covariance()) is None
