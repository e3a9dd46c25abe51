"""Redirecting rows: the least change of the operator that sends rows to targets, and retained rows nowhere.

With rows Z centred on the retained mean, their targets T, and C the covariance of what is retained, a row changes as

    z → z + (z − μ_r) Δ,   Δ = (Z_fᵀZ_f / n_f + λ C)⁻¹ Z_fᵀ(T − Z_f) / n_f

the minimum of `mean ‖z_f(I + Δ) − t‖² + λ tr ΔᵀCΔ`: MEMIT's soft form (arXiv 2210.07229), with λ a dial from sending
all rows to moving none. As λ → 0 it is the equality form of ROME and EMMET (arXiv 2202.05262, 2403.14236). In the null
space of the retained rows, where C costs nothing, it is AlphaEdit (arXiv 2410.02355). A small λ marks the rows it was
solved on. Needs rows; costs a product of their observables with themselves and one solve, observables³.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from koopman_interp.depths import depth_of
from koopman_interp.edits.certifying import RANK_TOLERANCE, acting_depth, at_strength, certified, edit_at, encoded
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.edits.targets import Targets, named_targets
from koopman_interp.errors import InputError
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.trajectories import Trajectories

EQUALITY = 1e-6
"""The λ that stands for the equality form; of more rows than observables not all can be met, and none is exactly."""

_KEPT = 1e-4
"""Share of the displacement's sum of squares that a truncation of Δ may lose."""
_RIDGE = 1e-4
_SINGULAR = 1e-12


@own_kinds
def redirect(
    koopman: KoopmanAutoencoder,
    *,
    fitted: Rows,
    label: int | None = None,
    targets: Targets = "next_best",
    weight: float = 1.0,
    site: str | int | None = None,
    strength: float = 1.0,
    after: OperatorEdit | None = None,
    rank: int | None = None,
    name: str | None = None,
) -> OperatorEdit:
    """Edit the operator so that rows are sent to targets, and what is retained stays as far as it can.

    Args:
        koopman: the fitted surrogate.
        fitted: rows that the redirection is fitted on, to redirect and, with a label, to retain: those of the
            surrogate, or prompts that teach a concept, but no rows that are to judge it.
        label: the class to redirect; the rows of other labels are retained. None redirects all rows, and retains those
            that the surrogate was fitted on, by their moments.
        targets: `next_best`, `similar` or `retained_mean`, for which a label is needed, or a function of all rows'
            observables and the depth; `counterfactual(…)` makes one.
        weight: λ, the cost of moving what is retained, both sides as means over rows: `EQUALITY` is the hard form.
        site: site or depth; None is the last but one, or that of `after`.
        strength: multiplies the displacement.
        after: an edit that acts before; what it leaves is redirected, and the two are returned as one.
        rank: the most that Δ may have; None keeps what all but 1e-4 of the displacement needs.
        name: of what is redirected, for the description.

    Returns:
        The edit, with its certificate; feasibility is the share of `mean ‖t − z_f‖²` that strength 1 meets on the rows
        given.

    Raises:
        InputError: there is nothing to redirect or to retain, a name of targets without a label, or a
            weight or rank that is none; or the weight is so small that the solve is singular.
    """
    fitted = in_memory(fitted)
    depth = _depth(koopman, site, after)
    _require_rank(rank)
    problem = _Problem.of(koopman, fitted, depth, label, targets, after)
    if not 0 < weight < float("inf"):
        raise InputError(f"weight is the cost of moving what is retained, positive and finite; got {weight}.")
    C = problem.retained
    ridge = _RIDGE * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)
    factor, failed = torch.linalg.cholesky_ex(problem.gram + weight * (C + ridge))
    if failed:
        raise InputError(
            f"At weight {weight:g} the rows alone decide, and they do not reach all directions. Give a greater weight."
        )
    solved = torch.cholesky_solve(problem.rows.T / len(problem.rows), factor)
    what = name or ("rows" if label is None else f"class {label}")
    shown = targets if isinstance(targets, str) else getattr(targets, "__name__", "own targets")
    form = "equality" if weight <= EQUALITY else f"λ = {weight:g}"
    description = f"redirect {what} to {shown.removeprefix('_')}, {form}{at_strength(strength)}"
    return _finished(koopman, depth, problem, solved, description, strength, rank, after)


@own_kinds
def redirect_in_null_space(
    koopman: KoopmanAutoencoder,
    *,
    fitted: Rows,
    label: int | None = None,
    targets: Targets = "next_best",
    site: str | int | None = None,
    strength: float = 1.0,
    tolerance: float = RANK_TOLERANCE,
    rank: int | None = None,
) -> OperatorEdit:
    """Redirect rows only along directions that no retained row reaches.

    Exact on the retained rows given; the certificate quotes the drift on held-out rows, which is another figure.

    Args:
        koopman: the fitted surrogate.
        fitted: as for `redirect`.
        label: as for `redirect`.
        targets: as for `redirect`.
        site: as for `redirect`.
        strength: multiplies the displacement.
        tolerance: variance of retained rows, relative to the largest, up to which a direction counts as not reached.
        rank: the most that Δ may have.

    Returns:
        The edit, with its certificate.

    Raises:
        InputError: the retained rows reach every direction, so that nothing is left to edit in; or as for `redirect`.
    """
    fitted = in_memory(fitted)
    depth = acting_depth(koopman, site)
    _require_rank(rank)
    problem = _Problem.of(koopman, fitted, depth, label, targets, None)
    values, vectors = torch.linalg.eigh(problem.retained)
    free = vectors[:, values <= tolerance * values[-1]]
    size, reached = len(values), len(values) - free.shape[1]
    inside = free.T @ problem.gram @ free
    met = float(inside.trace() / problem.gram.trace()) if free.shape[1] else 0.0
    if met <= _SINGULAR:
        raise InputError(
            f"The null space is empty: the retained rows have numerical rank {reached} of {size} observables at "
            f"{koopman.sites[depth]!r} (tolerance {tolerance:g}), and the rows to redirect reach nothing beyond it. "
            "Use redirect(…), which weighs the two, fit more observables, or raise tolerance and let some move."
        )
    ridge = EQUALITY * inside.diagonal().mean() * torch.eye(free.shape[1], dtype=inside.dtype)
    solved = free @ torch.linalg.solve(inside + ridge, free.T @ problem.rows.T / len(problem.rows))
    what = "rows" if label is None else f"class {label}"
    description = f"redirect {what} in the null space of {size - reached} dimensions{at_strength(strength)}"
    return _finished(koopman, depth, problem, solved, description, strength, rank, None)


@dataclass(frozen=True, eq=False)
class _Problem:
    """What a redirection is solved from, at one depth.

    Attributes:
        rows: to redirect, centred, `[row, observable]`.
        wanted: their displacements `T − Z`.
        retained: covariance of what is to stay.
        centre: its mean.
        labels: the class to redirect, if it is one.
    """

    rows: Float[Tensor, "row observable"]
    wanted: Float[Tensor, "row observable"]
    retained: Float[Tensor, "observable observable"]
    centre: Float[Tensor, " observable"]
    labels: tuple[int, ...]

    @classmethod
    def of(
        cls,
        koopman: KoopmanAutoencoder,
        fitted: Trajectories,
        depth: int,
        label: int | None,
        targets: Targets,
        after: OperatorEdit | None,
    ) -> _Problem:
        z = encoded(koopman, fitted, depth)
        z = z if after is None else after(z)
        moved = _moved(fitted, label)
        if label is None:
            covariance, centre = koopman.moments.covariance[depth].to(z), koopman.moments.total_mean(depth).to(z)
            if after is not None:
                covariance, centre = after.map.push(covariance), after(centre)
        else:
            covariance, centre = torch.cov(z[~moved].T, correction=0), z[~moved].mean(0)
        if not isinstance(targets, str):
            sent = targets(z, depth)
            if sent.shape != z.shape:
                raise InputError(f"Expected targets of the shape {tuple(z.shape)}; got {tuple(sent.shape)}.")
            goal = sent.to(z)[moved]
        elif label is None or fitted.labels is None:
            raise InputError(f"targets={targets!r} are means of retained rows: give label=…, or targets as a function.")
        else:
            goal = named_targets(targets, z, fitted.labels, moved)
        return cls(z[moved] - centre, goal - z[moved], covariance, centre, () if label is None else (label,))

    @cached_property
    def gram(self) -> Float[Tensor, "observable observable"]:
        """`Z_fᵀZ_f / n`."""
        return self.rows.T @ self.rows / len(self.rows)


def _moved(fitted: Trajectories, label: int | None) -> Bool[Tensor, " sample"]:
    """Mark the rows to redirect: those of a class, or all."""
    if label is None:
        return torch.ones(len(fitted), dtype=torch.bool)
    if fitted.labels is None:
        raise InputError("These trajectories have no labels, so no class can be redirected. Observe with labels=….")
    moved = fitted.labels == label
    if not moved.any() or int((~moved).sum()) < 2:
        raise InputError(
            f"Expected rows of class {label} to redirect and two or more others to retain; got {int(moved.sum())} and "
            f"{int((~moved).sum())}."
        )
    return moved


def _depth(koopman: KoopmanAutoencoder, site: str | int | None, after: OperatorEdit | None) -> int:
    """Resolve where to redirect, which is where an edit that acts before does."""
    if after is None:
        return acting_depth(koopman, site)
    if site is not None and depth_of(koopman.sites, site) != after.depth:
        raise InputError(f"The edit that acts before is at {after.site!r}; redirect there too.")
    return after.depth


def _require_rank(rank: int | None) -> None:
    if rank is not None and rank < 1:
        raise InputError(f"rank is the most that the change may have, one or more; got {rank}.")


def _finished(
    koopman: KoopmanAutoencoder,
    depth: int,
    problem: _Problem,
    solved: Float[Tensor, "observable row"],
    description: str,
    strength: float,
    rank: int | None,
    after: OperatorEdit | None,
) -> OperatorEdit:
    """Cut Δ, `solved` times the displacements wanted, to low rank, and make the edit of it."""
    readers, directions = _truncated(solved, problem, rank)
    change = LowRankMap(-directions, readers, problem.centre @ readers).scaled(strength)
    edit = edit_at(koopman, depth, description, change, problem.labels)
    left = problem.wanted - problem.rows @ readers @ directions.T
    met = 1 - float(left.square().sum() / problem.wanted.square().sum().clamp_min(torch.finfo(left.dtype).tiny))
    if after is not None:
        edit = edit @ after
    return certified(edit, koopman, feasibility=met, strength=strength)


def _truncated(solved: Float[Tensor, "observable row"], problem: _Problem, rank: int | None) -> tuple[Tensor, Tensor]:
    """Factor Δ ≈ readers directionsᵀ, the best of its rank for displacements of moved and retained rows together.

    With S the second moments of those rows and `LLᵀ = S`, the singular vectors of `Lᵀ solved wanted` say what to keep;
    its rank is at most the number of rows, to which an orthonormal basis brings it down.
    """
    metric = problem.gram + problem.retained
    ridge = _SINGULAR**0.5 * metric.diagonal().mean() * torch.eye(len(metric)).to(metric)
    factor = torch.linalg.cholesky(metric + ridge)
    basis, within = torch.linalg.qr(factor.T @ solved)
    moved = within @ problem.wanted
    # By the eigenvectors of its square, a quarter of a decomposition's time: what squares lose is cut off anyhow.
    values, left = torch.linalg.eigh(moved @ moved.T)
    values, left = values.flip(0).clamp_min(0), left.flip(1)
    lost = values.flip(0).cumsum(0).flip(0)
    enough = int((lost > _KEPT * lost[0].clamp_min(torch.finfo(lost.dtype).tiny)).sum())
    left = left[:, : max(1, min(enough, rank or enough))]
    return torch.linalg.solve_triangular(factor.T, basis @ left, upper=True), moved.T @ left
