"""Eigenvalues and eigenvectors of K, whole or its leading part, and its ordered real Schur form.

Knows nothing of data. A whole decomposition costs O(observables³); the leading part is found by a Krylov method
(ARPACK, implicitly restarted Arnoldi) from products with K and Kᵀ alone. K is not normal, so each eigenvalue comes with
its sensitivity, and what has no eigenvector of its own is said to be defective.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Complex, Float
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import PlainResult
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits

WHOLE = 2048
"""Operators of up to this many observables are decomposed whole unless told otherwise."""

LEADING = 256
"""Modes that are found of wider ones unless told otherwise."""

DEFECTIVE = 1e7
"""Sensitivity past which an eigenvalue is taken to have no eigenvector of its own: half the digits are gone."""

PRINTED = 10
"""Modes that are printed; a data frame has all of them."""

_SPARE = 8
"""Eigenpairs sought past those wanted, so that the last wanted ones settle and pairs are not cut."""
_INVERTIBLE = 1e10
"""Norm of an inverse, or condition number, past which inverting is given up."""


@dataclass(frozen=True, eq=False)
class Eigen:
    """Eigenpairs of K, slowest decay first; of a conjugate pair, the upper member first.

    Attributes:
        values: λ, `[mode]`.
        modes: right eigenvectors of norm 1, `[observable, mode]`: `K v = λ v`.
        readers: left eigenvectors, `[observable, mode]`: `Kᵀ w = λ w`, with `readersᵀ modes` the identity, so that
            `z = Σ (z · w) v`. Those of defective eigenvalues, where no such scale exists, have norm 1.
        sensitivity: `‖v‖ ‖w‖ / |w · v|`: how far λ moves, at most and to first order, for a change of K of norm 1.
        condition: condition number of the matrix of modes, in the 2-norm.
        observables: width of K; more than there are modes where only the leading ones were found.
    """

    values: Complex[ndarray, " mode"]
    modes: Complex[ndarray, "observable mode"]
    readers: Complex[ndarray, "observable mode"]
    sensitivity: Float[ndarray, " mode"]
    condition: float
    observables: int


def eigen(koopman: KoopmanAutoencoder, modes: int | None = None) -> Eigen:
    """Decompose K.

    Args:
        koopman: the surrogate.
        modes: how many of the slowest to find; None is all up to 2,048 observables and 256 of wider operators. A
            conjugate pair is never cut in two, so there can be one less or, of pairs as slow as each other, a few less.

    Returns:
        The eigenpairs.

    Raises:
        InputError: fewer than one mode, more than there are observables, or a Krylov iteration that does not settle.
    """
    K = koopman.K.detach().double().cpu().numpy()
    size = len(K)
    wanted = (size if size <= WHOLE else LEADING) if modes is None else modes
    if not 1 <= wanted <= size:
        raise InputError(f"The surrogate has 1 to {size} modes; asked for {wanted}.")
    if wanted > size // 2 or size < 4 * _SPARE:
        # So large a part costs no less by Krylov than the whole.
        values, right, left = _whole(K)
    else:
        values, right, left = _leading(K, wanted)
    order = _slowest_first(values)
    order = order[: uncut(values[order], wanted)]
    values, right, left = values[order], right[:, order], left[:, order]
    with np.errstate(divide="ignore"):
        overlap = np.abs((left * right).sum(0))
        sensitivity = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=0) / overlap
    return Eigen(values, right, left, sensitivity, float(np.linalg.cond(right)), size)


def turned(degrees: float) -> str:
    """Show the angle of an eigenvalue, in degrees; that of a conjugate pair with both signs."""
    return f"{'±' if 0 < degrees < 180 else ''}{degrees:.1f}"


def uncut(values: Complex[ndarray, " mode"], count: int) -> int:
    """Say how many of the first eigenvalues to take so that no conjugate pair is cut in two: `count` or one less.

    Of a pair that comes first, both are taken.
    """
    count = min(count, len(values))
    if count == len(values) or values[count - 1].imag <= 0:
        return count
    return count - 1 if count > 1 else 2


def real_basis(vectors: Complex[ndarray, "observable mode"]) -> Float[ndarray, "observable coordinate"]:
    """Return orthonormal real columns that span the real and imaginary parts of vectors."""
    parts = np.concatenate([vectors.real, vectors.imag], 1) / np.tile(np.linalg.norm(vectors, axis=0), 2)
    # The imaginary part of a real vector is rounding, and is not to be taken for a direction.
    sizes = np.linalg.norm(parts, axis=0)
    parts = parts[:, sizes > 1e-8] / sizes[sizes > 1e-8]
    Q, R, _ = scipy.linalg.qr(parts, mode="economic", pivoting=True)
    diagonal = np.abs(np.diag(R))
    return Q[:, diagonal > 1e-10 * diagonal[0]]


def _slowest_first(values: ndarray) -> ndarray:
    return np.lexsort((-values.imag, np.round(-np.abs(values), 12)))


def _whole(K: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    values, right = np.linalg.eig(K)
    values, right = values.astype(complex), right.astype(complex)
    # Inverting is biorthonormal also where eigenvalues repeat; where it cannot be done, pairs are scaled one by one.
    with suppress(np.linalg.LinAlgError):
        inverse = np.linalg.inv(right)
        if np.linalg.norm(inverse) < _INVERTIBLE:
            return values, right, inverse.T
    values, left, right = scipy.linalg.eig(K, left=True, right=True)
    values, left, right = values.astype(complex), left.conj().astype(complex), right.astype(complex)
    right = right / np.linalg.norm(right, axis=0)
    overlap = (left * right).sum(0)
    own = np.abs(overlap) * DEFECTIVE > np.linalg.norm(left, axis=0)
    return values, right, left / np.where(own, overlap, np.linalg.norm(left, axis=0))


def _leading(K: ndarray, wanted: int) -> tuple[ndarray, ndarray, ndarray]:
    """Find the slowest modes from either side by Arnoldi iteration, and pair them."""
    count = min(wanted + _SPARE, len(K) - 2)
    start = np.random.default_rng(0).normal(size=len(K))
    try:
        values, right = scipy.sparse.linalg.eigs(K, count, v0=start)
        others, left = scipy.sparse.linalg.eigs(K.T, count, v0=start)
    except scipy.sparse.linalg.ArpackNoConvergence as error:
        raise InputError(
            f"The {wanted} slowest of {len(K)} modes did not settle: many eigenvalues have the same size. Ask for "
            f"fewer, or for more than {len(K) // 2}, which decomposes all of K."
        ) from error
    apart = np.abs(values[:, None] - others)
    here, there = linear_sum_assignment(apart)
    paired = apart[here, there] < 1e-6 * np.abs(values).max()
    values, right, left = values[here[paired]], right[:, here[paired]], left[:, there[paired]]
    overlap = left.T @ right
    if np.linalg.cond(overlap) < _INVERTIBLE:
        return values, right, left @ np.linalg.inv(overlap).T
    alone = np.diag(overlap)
    own = np.abs(alone) * DEFECTIVE > 1
    return values, right, left / np.where(own, alone, 1)


@dataclass(frozen=True, eq=False, repr=False)
class SchurForm(PlainResult):
    """`K = Q T Qᵀ` with Q orthogonal and T block upper triangular, slowest blocks first.

    The first columns of Q span what the slowest modes span, in a basis that is stable where eigenvectors are not:
    this is where subspaces are cut.

    Attributes:
        T: `[observable, observable]`; a 1×1 block a real eigenvalue, a 2×2 block a conjugate pair.
        Q: `[observable, observable]`, orthogonal.
    """

    T: Float[ndarray, "observable observable"]
    Q: Float[ndarray, "observable observable"]

    def __repr__(self) -> str:
        return f"SchurForm({len(self.T)} observables in {len(self.blocks)} blocks)"

    def tables(self) -> tuple[Table]:
        """Return the blocks with the size and turn of their eigenvalues."""
        blocks = self.blocks
        values = [np.linalg.eigvals(self.T[block, block])[0] for block in blocks]
        columns = (
            Column(
                "columns of Q",
                tuple(f"{b.start}" if b.stop - b.start == 1 else f"{b.start}, {b.stop - 1}" for b in blocks),
            ),
            Column("|λ|", tuple(np.abs(values).tolist()), digits(4)),
            Column("turn, °", tuple(np.degrees(np.abs(np.angle(values))).tolist()), turned),
        )
        return (Table(columns, "Diagonal blocks of T, slowest first; a conjugate pair is one block.", most=PRINTED),)

    @property
    def blocks(self) -> list[slice]:
        """Where the diagonal blocks lie."""
        return _blocks(self.T)

    def subspace(self, modes: int) -> Float[ndarray, "observable _"]:
        """Return an orthonormal basis of the invariant subspace of the slowest modes.

        Raises:
            InputError: a conjugate pair would be cut in two, or there are not as many modes.
        """
        if not 0 <= modes <= len(self.T):
            raise InputError(f"The operator has {len(self.T)} modes; asked for {modes}.")
        if modes and modes not in {block.stop for block in self.blocks}:
            raise InputError(f"The first {modes} modes cut a conjugate pair in two. Ask for {modes + 1}.")
        return self.Q[:, :modes]


@own_kinds
def schur_form(koopman: KoopmanAutoencoder) -> SchurForm:
    """Bring K to real Schur form, slowest first; costs O(observables³).

    Blocks are moved by LAPACK's `dtrexc`, which swaps neighbours by orthogonal transformations (Bai & Demmel 1993).
    """
    T, Q = scipy.linalg.schur(koopman.K.detach().double().cpu().numpy(), output="real")
    placed = 0
    while placed < len(T):
        rest = [block for block in _blocks(T) if block.start >= placed]
        sizes = [np.abs(np.linalg.eigvals(T[block, block])).max() for block in rest]
        # Ties stay in order, so that rounding does not shuffle them.
        best = rest[int(np.argmax(np.round(sizes, 12)))]
        if best.start != placed:
            T, Q, info = scipy.linalg.lapack.dtrexc(T, Q, best.start + 1, placed + 1)
            if info:  # two eigenvalues too close to be told apart: their order is as good either way
                break
        placed += best.stop - best.start
    return SchurForm(T, Q)


def _blocks(T: ndarray) -> list[slice]:
    blocks, start = [], 0
    while start < len(T):
        stop = start + (2 if start + 1 < len(T) and T[start + 1, start] != 0 else 1)
        blocks.append(slice(start, stop))
        start = stop
    return blocks
