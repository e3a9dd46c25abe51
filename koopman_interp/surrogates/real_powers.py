"""Real powers of matrices near the identity, differentiable where eigenvectors are not.

An eigendecomposition has no gradient at repeated eigenvalues, which `I + S` with S of low rank always has. So the
power is taken through the logarithm, by inverse scaling and squaring (Higham, Functions of Matrices, ch. 11), in a
form that never divides by S.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_ROOTS = 5
_ROOT_ITERATIONS = 12
_NODES = 12


def power_increment(S: Float[Tensor, "*batch n n"], power: float) -> Float[Tensor, "*batch n n"]:
    """Return `f` with `(I + S)^power = I + S f`, for eigenvalues of I + S off the closed negative real axis.

    With `log(I + S) = S g` and `φ₁(L) = (exp(L) − I) L⁻¹`, it is `f = t φ₁(t S g) g`.
    """
    one = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    g = _log_over(S, one)
    L = power * S @ g
    zero = torch.zeros_like(L)
    block = torch.cat([torch.cat([L, one], -1), torch.cat([zero, zero], -1)], -2)
    n = S.shape[-1]
    return power * torch.linalg.matrix_exp(block)[..., :n, n:] @ g


def _log_over(S: Float[Tensor, "*batch n n"], one: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Return `g` with `log(I + S) = S g`."""
    A, g = one + S, one
    for _ in range(_ROOTS):
        root = _square_root(A, one)
        # A − I = (√A − I)(√A + I), and log A = 2 log √A.
        g = 2 * g @ torch.linalg.inv(root + one)
        A = root
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    D = A - one
    # log(I + D) = D ∫₀¹ (I + s D)⁻¹ ds
    integral = torch.zeros_like(D)
    for node, weight in zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True):
        integral = integral + weight * torch.linalg.inv(one + node * D)
    return g @ integral


def _square_root(A: Float[Tensor, "*batch n n"], one: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """Principal square root by the iteration of Denman and Beavers (1976)."""
    root, inverse_root = A, one
    for _ in range(_ROOT_ITERATIONS):
        root, inverse_root = (
            (root + torch.linalg.inv(inverse_root)) / 2,
            (inverse_root + torch.linalg.inv(root)) / 2,
        )
    return root
