"""Parametrisations of the Koopman operator K.

The row convention, stated here once: samples are rows, and one step is `z_next = z @ K.T`. Each class holds the
parameters of one family of matrices and knows its powers; none knows where z comes from. Real powers K^t exist
where the family allows them: the generator, identity plus low rank, and 2×2 blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import schur
from torch import Tensor, nn

from koopman_interp.errors import InputError
from koopman_interp.surrogates.real_powers import power_increment

Matrix = Float[Tensor, "observable observable"]
Points = Float[Tensor, "*batch observable"]
Propagator = Callable[[Tensor], Tensor]


class Operator(nn.Module, ABC):
    """One linear operator on observables.

    Args:
        observables: width of the observable space.
        rank: of the low-rank families; the others ignore it.
    """

    kind: ClassVar[str]
    fractional: ClassVar[bool] = False
    """Whether K^t exists for real t."""

    def __init__(self, observables: int, rank: int | None = None) -> None:
        super().__init__()
        self.observables = observables
        self.rank = rank

    @abstractmethod
    def matrix(self) -> Matrix:
        """Return K as a dense matrix."""

    @abstractmethod
    def start_from(self, K: Matrix) -> Matrix | None:
        """Set the parameters to the family's member nearest to K.

        Returns:
            An orthogonal Q where the member is near `Qᵀ K Q` instead, so that encoder and decoder have to turn
            with it (`z → z Q`); None where no turn is needed.
        """

    @abstractmethod
    def _propagator(self, steps: float) -> Propagator:
        """Return K^steps as a function; `steps` is positive, and whole unless the family is fractional."""

    def propagator(self, steps: float) -> Propagator:
        """Return the function `z → z @ (K^steps).T`, whose preparation is paid once for many calls.

        Args:
            steps: how many steps, not negative; for 0 the function returns z itself.

        Returns:
            A function of rows of observables.

        Raises:
            InputError: a negative number of steps, or a real power that the family does not have.
        """
        if steps < 0:
            raise InputError(f"Steps go forward; got {steps}.")
        if not self.fractional and steps != int(steps):
            raise InputError(
                f"A {self.kind} operator has whole powers only; got {steps} steps. Give the sites whole times, or fit "
                f"with operator={' or '.join(repr(kind) for kind, cls in OPERATORS.items() if cls.fractional)}."
            )
        return self._propagator(steps) if steps else lambda z: z

    def advance(self, z: Points, steps: float = 1) -> Points:
        """Return `z @ (K^steps).T`; see `propagator`."""
        return self.propagator(steps)(z)

    def power(self, steps: float) -> Matrix:
        """Return K^steps as a dense matrix."""
        eye = torch.eye(self.observables, dtype=self.matrix().dtype, device=self.matrix().device)
        return self.advance(eye, steps).T

    def extra_repr(self) -> str:
        """Show the size in torch's own representation."""
        return f"observables={self.observables}" + ("" if self.rank is None else f", rank={self.rank}")


class DenseOperator(Operator):
    """K itself, all entries free. A step costs one product; powers are repeated steps."""

    kind = "dense"

    def __init__(self, observables: int, rank: int | None = None) -> None:
        super().__init__(observables, rank)
        self.K = nn.Parameter(torch.eye(observables))

    def matrix(self) -> Matrix:
        """Return K."""
        return self.K

    def start_from(self, K: Matrix) -> None:
        """Copy K."""
        with torch.no_grad():
            self.K.copy_(K)

    def power(self, steps: float) -> Matrix:
        """Return K^steps, by repeated squaring."""
        return torch.linalg.matrix_power(self.K, int(steps)) if steps == int(steps) >= 0 else super().power(steps)

    def _propagator(self, steps: float) -> Propagator:
        return partial(self._repeated, int(steps))

    def _repeated(self, steps: int, z: Tensor) -> Tensor:
        for _ in range(steps):
            z = z @ self.K.T
        return z


class GeneratorOperator(Operator):
    """K = exp(A), so that K^t = exp(tA) for any real t. Each new t costs a matrix exponential."""

    kind = "generator"
    fractional = True

    def __init__(self, observables: int, rank: int | None = None) -> None:
        super().__init__(observables, rank)
        self.A = nn.Parameter(torch.zeros(observables, observables))

    def matrix(self) -> Matrix:
        """Return exp(A)."""
        return torch.linalg.matrix_exp(self.A)

    def start_from(self, K: Matrix) -> None:
        """Take the real part of the matrix logarithm of K."""
        with torch.no_grad():
            values, vectors = np.linalg.eig(K.double().cpu().numpy())
            # A mode that K kills has no logarithm; it is started as one that decays fast.
            small = np.abs(values) < 1e-3
            logs = np.log(np.where(small, 1e-3, values).astype(complex))
            self.A.copy_(torch.from_numpy(np.real((vectors * logs) @ np.linalg.pinv(vectors))))

    def _propagator(self, steps: float) -> Propagator:
        power = torch.linalg.matrix_exp(self.A * steps)
        return lambda z: z @ power.T


class LowRankOperator(Operator):
    """K = U Vᵀ. A step costs 2·rank products a row instead of one per observable."""

    kind = "low_rank"

    def __init__(self, observables: int, rank: int | None = None) -> None:
        rank = _checked_rank(observables, rank)
        super().__init__(observables, rank)
        self.U = nn.Parameter(torch.eye(observables, rank))
        self.V = nn.Parameter(torch.eye(observables, rank))

    def matrix(self) -> Matrix:
        """Return U Vᵀ."""
        return self.U @ self.V.T

    def start_from(self, K: Matrix) -> None:
        """Truncate the singular value decomposition of K."""
        _start_factors(self.U, self.V, K)

    def _propagator(self, steps: float) -> Propagator:
        turn = torch.linalg.matrix_power(self.V.T @ self.U, int(steps) - 1)
        return lambda z: z @ self.V @ turn.T @ self.U.T


class IdentityPlusLowRankOperator(Operator):
    """K = I + U Vᵀ: what passes through unchanged costs nothing, as in a residual stream.

    K^t = I + U f(VᵀU) Vᵀ with f(S) = ((I + S)^t − I) S⁻¹; for whole t that is the sum of (I + S)^j over j < t.
    """

    kind = "identity_plus_low_rank"
    fractional = True

    def __init__(self, observables: int, rank: int | None = None) -> None:
        rank = _checked_rank(observables, rank)
        super().__init__(observables, rank)
        self.U = nn.Parameter(torch.zeros(observables, rank))
        self.V = nn.Parameter(torch.eye(observables, rank))

    def matrix(self) -> Matrix:
        """Return I + U Vᵀ."""
        return torch.eye(self.observables, device=self.U.device, dtype=self.U.dtype) + self.U @ self.V.T

    def start_from(self, K: Matrix) -> None:
        """Truncate the singular value decomposition of K − I."""
        _start_factors(self.U, self.V, K - torch.eye(len(K), dtype=K.dtype, device=K.device))

    def _propagator(self, steps: float) -> Propagator:
        S = self.V.T @ self.U
        one = torch.eye(len(S), dtype=S.dtype, device=S.device)
        if steps == int(steps):
            power, total = one, one
            for _ in range(int(steps) - 1):
                power = power + power @ S
                total = total + power
        else:
            _require_real_power(one + S, steps)
            total = power_increment(S, steps)
        return lambda z: z + (z @ self.V) @ total.T @ self.U.T


class BlockOperator(Operator):
    """K block diagonal in real 2×2 blocks: one real Schur form, with encoder and decoder turned into its basis.

    A step costs four products an observable pair. An odd observable is left as a block of its own.
    """

    kind = "blocks"
    fractional = True

    def __init__(self, observables: int, rank: int | None = None) -> None:
        super().__init__(observables, rank)
        self.blocks = nn.Parameter(torch.eye(2).repeat(observables // 2, 1, 1))
        self.single = nn.Parameter(torch.ones(observables % 2))

    def matrix(self) -> Matrix:
        """Return the block diagonal matrix."""
        singles = [value.reshape(1, 1) for value in self.single]
        return torch.block_diag(*self.blocks, *singles)

    def start_from(self, K: Matrix) -> Matrix:
        """Keep the diagonal blocks of the real Schur form K = Q T Qᵀ, and hand out Q."""
        T, Q = schur(K.double().cpu().numpy(), output="real")
        order = _paired(T)
        T, Q = T[np.ix_(order, order)], Q[:, order]
        with torch.no_grad():
            for index in range(len(self.blocks)):
                here = slice(2 * index, 2 * index + 2)
                block = T[here, here].copy()
                if order[2 * index + 1] != order[2 * index] + 1 or T[2 * index + 1, 2 * index] == 0:
                    block = np.diag(np.diag(block))  # two real eigenvalues: the coupling is not kept
                self.blocks[index] = torch.from_numpy(block)
            if len(self.single):
                self.single[0] = float(T[-1, -1])
        return torch.from_numpy(Q).to(K)

    def _propagator(self, steps: float) -> Propagator:
        if steps == int(steps):
            powers = torch.linalg.matrix_power(self.blocks, int(steps))
        else:
            _require_real_power(self.blocks, steps)
            _require_real_power(self.single[..., None, None], steps)
            S = self.blocks - torch.eye(2, dtype=self.blocks.dtype, device=self.blocks.device)
            powers = S @ power_increment(S, steps) + torch.eye(2).to(S)
        paired = 2 * len(self.blocks)

        def move(z: Tensor) -> Tensor:
            pairs = z[..., :paired].unflatten(-1, (-1, 2))
            moved = torch.einsum("...bj,bij->...bi", pairs, powers).flatten(-2)
            return torch.cat([moved, z[..., paired:] * self.single**steps], -1)

        return move


def operator(kind: str, observables: int, rank: int | None = None) -> Operator:
    """Make an operator of a kind by name, started as (or near) the identity.

    Raises:
        InputError: there is no such kind, or the rank does not fit.
    """
    if kind not in OPERATORS:
        raise InputError(f"There is no operator {kind!r}; there are {', '.join(OPERATORS)}.")
    return OPERATORS[kind](observables, rank)


OPERATORS: dict[str, type[Operator]] = {
    cls.kind: cls
    for cls in (DenseOperator, GeneratorOperator, LowRankOperator, IdentityPlusLowRankOperator, BlockOperator)
}


def _checked_rank(observables: int, rank: int | None) -> int:
    rank = min(32, observables) if rank is None else rank
    if not 0 < rank <= observables:
        raise InputError(f"The rank must lie between 1 and the {observables} observables; got {rank}.")
    return rank


def _start_factors(U: nn.Parameter, V: nn.Parameter, K: Matrix) -> None:
    with torch.no_grad():
        left, values, right = torch.linalg.svd(K.double())
        root = values[: U.shape[1]].sqrt()
        U.copy_(left[:, : U.shape[1]] * root)
        V.copy_(right[: U.shape[1]].T * root)


def _paired(T: np.ndarray) -> list[int]:
    """Order the indices of a real Schur form so that complex pairs come first and stay together."""
    pairs, singles, index = [], [], 0
    while index < len(T):
        if index + 1 < len(T) and T[index + 1, index] != 0:
            pairs += [index, index + 1]
            index += 2
        else:
            singles.append(index)
            index += 1
    return pairs + singles


@torch.no_grad()
def _require_real_power(matrices: Float[Tensor, "*batch n n"], power: float) -> None:
    values = torch.linalg.eigvals(matrices)
    if ((values.imag.abs() < 1e-7) & (values.real <= 0)).any():
        raise InputError(
            f"K has an eigenvalue that is zero or negative, so its real power K^{power} does not exist. "
            "Use whole steps, or fit with operator='generator'."
        )
