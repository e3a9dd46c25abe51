"""From a low-rank map to an edit with its certificate: what every method has in common.

All figures come from the moments kept with the fit, or from rows where some are given. A Cholesky decomposition of a
covariance, and its eigenvalues where it is singular: 4 observables³ / 3. Knows nothing of how maps are solved for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.depths import depth_of
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.operator_edit import Certificate, OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.moments import Moments
from koopman_interp.trajectories import Trajectories

RANK_TOLERANCE = 1e-10
"""Variance, relative to the largest, from which on a direction counts as reached by rows."""


def acting_depth(koopman: KoopmanAutoencoder, site: str | int | None) -> int:
    """Resolve where an edit acts: a site, a depth that may count from the end, or None for the last depth but one.

    That is the default of every method but `erase_class`, which has a rule of its own. Late sites are where classes and
    concepts lie apart; at the last but one a step of the operator still follows.

    Raises:
        InputError: there is no such site.
    """
    return depth_of(koopman.sites, -2 if site is None else site)


def edit_at(
    koopman: KoopmanAutoencoder, depth: int, description: str, change: LowRankMap, labels: Sequence[int] = ()
) -> OperatorEdit:
    """Make an edit of a surrogate's operator, not yet certified.

    Args:
        koopman: whose operator it edits.
        depth: at which it acts.
        description: what it does, in words.
        change: what it does to rows.
        labels: the classes that it forgets.

    Returns:
        The edit.

    Raises:
        InputError: it would move rows by NaN or by an infinite amount.
    """
    if not torch.isfinite(change.directions).all():
        raise InputError(f"To {description} would move rows by NaN or infinite amounts. Give a finite strength.")
    return OperatorEdit(
        description=description,
        site=koopman.sites[depth],
        depth=depth,
        map=change,
        moved=koopman.K.detach().double() @ change.directions,
        host=koopman.config.host,
        operator=koopman.digest(),
        labels=tuple(labels),
    )


def certified(
    edit: OperatorEdit,
    koopman: KoopmanAutoencoder,
    *,
    rows: Float[Tensor, "sample observable"] | None = None,
    noise: float | None = None,
    feasibility: float | None = None,
    strength: float = 1.0,
) -> OperatorEdit:
    """Return the edit with its certificate; the classes that it does not forget are to be retained.

    Args:
        edit: the edit.
        koopman: whose operator it edits.
        rows: retained rows, as observables at the edit's depth, to measure the drift on; None takes the bound.
        noise: of the reading.
        feasibility: share of what was asked that was possible.
        strength: multiplier that the displacement has in it.

    Returns:
        The same edit, certified.
    """
    moments, depth = koopman.heldout_moments, edit.depth
    spread = float(moments.covariance[depth].trace().sqrt())
    forgotten = [koopman.config.classes.index(label) for label in edit.labels if label in koopman.config.classes]
    if rows is None:
        drift, count = _bounded_drift(edit, moments, forgotten), 0
    else:
        drift, count = float((edit(rows) - rows).square().sum(1).mean().sqrt()), len(rows)
    retained = moments.count > 0
    retained[forgotten] = False
    means = moments.mean[depth][retained]
    mean_drift = float((edit(means) - means).norm(dim=1).max()) if len(means) else 0.0
    K = koopman.K.detach().double()
    certificate = Certificate(
        rank=edit.rank,
        noise=noise,
        retained_drift=drift / spread,
        drift_rows=count,
        class_mean_drift=mean_drift / spread,
        undo_error=float((edit.undo(edit.apply(K)) - K).norm() / K.norm()),
        null_dimension=len(K) - numerical_rank(koopman.moments.covariance[depth]),
        feasibility=feasibility,
        strength=float(strength),
        operator=edit.operator,
        reach=carried_share(edit, koopman, len(koopman.sites) - 1),
    )
    return replace(edit, certificate=certificate)


def carried_share(edit: OperatorEdit, koopman: KoopmanAutoencoder, target: int) -> float | None:
    """Return the share of what an edit changes at its site that K carries to a later depth.

    With readings r of second moment S over held-out rows, `E ‖rAᵀ‖² = tr(A S Aᵀ)` is changed at the site and
    `E ‖rAᵀ(Kⁿ)ᵀ‖²` arrives, each relative to the trace of the rows' covariance at its depth. Costs n products of rank ×
    observables².

    Args:
        edit: the edit.
        koopman: whose operator carries it.
        target: depth to which.

    Returns:
        The share of root mean squares; None where nothing is changed, or the rows do not vary at the target.
    """
    moments, depth = koopman.heldout_moments, edit.depth
    change = edit.map.to(moments.covariance)
    mean = change.read(moments.total_mean(depth))
    second = change.readers.T @ moments.covariance[depth] @ change.readers + torch.outer(mean, mean)
    operator = deepcopy(koopman.operator).double()
    arrived = operator.advance(change.directions.T, koopman.steps(depth, target)).detach()
    squares = [
        float(torch.einsum("km,kl,lm->", part, second, part) / moments.covariance[at].trace())
        for part, at in ((change.directions.T, depth), (arrived, target))
    ]
    if not (squares[0] > 0 and math.isfinite(squares[0]) and math.isfinite(squares[1])):
        return None
    return math.sqrt(max(squares[1], 0.0) / squares[0])


def at_strength(strength: float) -> str:
    """Say a strength other than 1 in a description."""
    if strength == 1:
        return ""
    return f" at strength {strength:g}" + (" (past 1: over-erased)" if strength > 1 else "")


def numerical_rank(covariance: Float[Tensor, "n n"], tolerance: float = RANK_TOLERANCE) -> int:
    """Count the directions whose variance is more than a share of the largest."""
    # What stays positive less a share of its norm, which is not below the largest, has them all: a tenth of the time.
    least = tolerance * torch.linalg.matrix_norm(covariance)
    if not torch.linalg.cholesky_ex(covariance - least * torch.eye(len(covariance)).to(covariance)).info:
        return len(covariance)
    values = torch.linalg.eigvalsh(covariance)
    return int((values > tolerance * values[-1]).sum())


@torch.no_grad()
def encoded(koopman: KoopmanAutoencoder, trajectories: Trajectories, depth: int) -> Float[Tensor, "sample observable"]:
    """Lift the rows of trajectories at a depth of the surrogate to observables, in float64.

    Raises:
        InputError: the trajectories do not have that site.
    """
    return koopman.observables_of(trajectories, depth).double()


def _bounded_drift(edit: OperatorEdit, moments: Moments, forgotten: Sequence[int]) -> float:
    """Bound the drift of retained rows by total moments less the least that the forgotten classes contribute.

    With r the readings, `E r² = Σ_c p_c E_c r²` over all rows; a forgotten class gives at least `p_f (E_f r)²`.
    """
    depth, gone = edit.depth, list(forgotten)
    share = moments.count / moments.count.sum()
    readings = edit.map.read(moments.mean[depth])
    mean = share @ readings
    second = edit.readers.T @ moments.covariance[depth] @ edit.readers + torch.outer(mean, mean)
    second = second - readings[gone].T @ (share[gone, None] * readings[gone])
    squared = torch.einsum("mk,kl,ml->", edit.directions, second, edit.directions) / (1 - share[gone].sum())
    return float(squared.clamp_min(0).sqrt())
