"""How many modes a host has, as far as a surrogate's observables see: the VAMP-2 score, cross-validated.

The variational approach to Markov processes (Wu & Noé, arXiv 1707.04659) scores k pairs of functions, those of the
largest singular values of the operator in white observables. Scored on other inputs by its estimator VAMP-E, which
equals VAMP-2 for the true singular functions and falls where functions fit the rows by chance, it says how many of them
are real. Costs one pass and a singular value decomposition a fold. Knows nothing of eigenvalues.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from koopman_interp.analysis.spectra.eigen import PRINTED
from koopman_interp.analysis.spectra.grams import Grams, gather_grams
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.results import PlainResult
from koopman_interp.sources.opening import Rows
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.tables import Column, Table, digits
from koopman_interp.trajectories import Trajectories

_RANK = 1e-8
"""Variance of a function, relative to the largest, below which it counts as zero."""


@dataclass(frozen=True, repr=False)
class VampScores(PlainResult):
    """Scores by the number of pairs of functions, about each depth's mean.

    Attributes:
        fitted: sum of the squares of the first k singular values on the rows solved on, mean over folds, `[k]`.
        held_out: the score of these functions on the rows left out, `[k]`.
        error: standard error of that over folds, `[k]`.
        modes: the smallest k whose score on held-out rows is within a standard error of the best.
        samples: rows.
        gap: operator steps between the depths of each pair.
    """

    fitted: Float[ndarray, " k"]
    held_out: Float[ndarray, " k"]
    error: Float[ndarray, " k"]
    modes: int
    samples: int
    gap: float

    def __repr__(self) -> str:
        return (
            f"VampScores({self.modes} modes, score {self.held_out[self.modes - 1]:.3f} ± "
            f"{self.error[self.modes - 1]:.3f} on held-out rows, {self.samples:,} samples)"
        )

    def tables(self) -> tuple[Table]:
        """Return the scores by the number of modes; the number that is enough is marked."""
        count = len(self.held_out)
        columns = (
            Column("modes", tuple(range(1, count + 1))),
            Column("on rows fitted", tuple(self.fitted.tolist()), digits(4)),
            Column("on held-out rows", tuple(self.held_out.tolist()), digits(4)),
            Column("standard error", tuple(self.error.tolist()), digits(4)),
        )
        return (Table(columns, "VAMP-2 score, higher is better", self.modes - 1, max(PRINTED, self.modes + 2)),)


@own_kinds
def vamp_score(
    koopman: KoopmanAutoencoder, trajectories: Rows | Iterable[Trajectories], *, folds: int = 5
) -> VampScores:
    """Score how many modes the motion has, on the observables of a surrogate.

    Args:
        koopman: the surrogate; of it only the observables matter, not K.
        trajectories: rows, in memory or as parts; best those that it was not fitted on.
        folds: parts of the inputs that are held out in turn; equal inputs are held out together.

    Returns:
        The scores. Of sites with different gaps, those of the pairs with most depths.

    Raises:
        InputError: fewer than two folds, or a fold without samples.
    """
    if folds < 2:
        raise InputError(f"Cross-validation holds out one of 2 folds or more; got {folds}.")
    grams = gather_grams(koopman, trajectories, shards=folds)
    if not bool((grams.count.sum(0) > 1).all()):
        raise InputError(f"There are too few different inputs for {folds} folds. Observe more, or ask for fewer.")
    index = max(range(len(grams.spans)), key=lambda place: len(grams.spans[place].starts))
    scores = [_scored(grams, index, fold) for fold in range(folds)]
    most = min(len(fitted) for fitted, _ in scores)
    fitted, held_out = (np.stack([each[side][:most] for each in scores]) for side in (0, 1))
    mean, error = held_out.mean(0), held_out.std(0, ddof=1) / np.sqrt(folds)
    best = int(mean.argmax())
    enough = int(np.flatnonzero(mean >= mean[best] - error[best])[0])
    return VampScores(fitted.mean(0), mean, error, enough + 1, grams.samples, grams.spans[index].gap)


def _scored(grams: Grams, index: int, fold: int) -> tuple[Float[ndarray, " k"], Float[ndarray, " k"]]:
    """Return the score of each number of functions on the rows solved on, and on those of a fold left out."""
    others = [shard for shard in range(grams.count.shape[1]) if shard != fold]
    G, A, L = _second_moments(grams, index, others)
    before, after = _whitening(G), _whitening(L)
    U, sizes, Vt = np.linalg.svd(before.T @ A @ after, full_matrices=False)
    left, right = before @ U, after @ Vt.T
    G, A, L = _second_moments(grams, index, [fold])
    shared = 2 * np.cumsum(sizes * np.einsum("ik,ij,jk->k", left, A, right, optimize=True))
    own = np.outer(sizes, sizes) * (left.T @ G @ left) * (right.T @ L @ right)
    return np.cumsum(sizes**2), shared - np.diag(own.cumsum(0).cumsum(1))


def _second_moments(grams: Grams, index: int, shards: list[int]) -> tuple[ndarray, ndarray, ndarray]:
    """Return G, A and L of some shards, about each depth's mean on them and for each pair of rows."""
    parts = {name: getattr(grams, name)[:, :, shards] for name in ("G", "A", "L", "sums")}
    some = replace(grams, **parts, count=grams.count[:, shards]).centred()
    pairs = some.samples * len(grams.spans[index].starts)
    G, A, L = (gram[index, 0, 0].numpy() / pairs for gram in (some.G, some.A, some.L))
    return G, A, L


def _whitening(gram: Float[ndarray, "n n"]) -> Float[ndarray, "n r"]:
    """Return a map to coordinates in which a Gram matrix is the identity, without what has no variance."""
    size = np.sqrt(np.maximum(np.diag(gram), 0))
    scale = np.where(size > 0, 1 / np.where(size > 0, size, 1), 0)
    spread, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
    kept = spread > _RANK * spread[-1]
    if not kept.any() or not spread[-1] > 0:
        raise InputError("All observables are the same for all samples, so there is no motion to score.")
    return scale[:, None] * vectors[:, kept] / np.sqrt(spread[kept])
