"""Erasing a class: a rank-one oblique projection from moments kept with the fit.

With a = μ_f − μ_r from the retained mean to the forgotten one, and B the offsets of the retained class means from
μ_r, the reader is the covariance-cheapest w with aᵀw = 1 and Bᵀw = 0:

    w₀ = Σ⁻¹(a − B (BᵀΣ⁻¹B)⁺ BᵀΣ⁻¹a),   w = w₀ / (aᵀw₀),   P: z → z − ((z − μ_r)·w) a

After it the forgotten class's mean is the retained mean, every retained class's mean is where it was, and no linear
reader does better than chance on class means. Kin of LEACE (arXiv 2306.03819) and SPLINCE (arXiv 2506.10703).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.autoencoder import KoopmanAutoencoder
from koopman_interp.edits.operator_edit import Certificate, OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.hosts import depth_of
from koopman_interp.moments import Moments
from koopman_interp.trajectories import Trajectories

SHRINKAGE = 1e-3
"""Part of Σ's mean diagonal that is added to its diagonal; the laws above hold at any value."""


@dataclass(frozen=True)
class Eraser:
    """The factors of P: `z → z − ((z − centre)·reader) direction`, all float64 `[observable]`."""

    direction: Float[Tensor, " observable"]
    reader: Float[Tensor, " observable"]
    centre: Float[Tensor, " observable"]


def oblique_eraser(
    means: Float[Tensor, "class observable"],
    counts: Float[Tensor, " class"],
    covariance: Float[Tensor, "observable observable"],
    forgotten: int,
    *,
    shrinkage: float = SHRINKAGE,
) -> Eraser:
    """Solve for the rank-one eraser of one class.

    Args:
        means: class means.
        counts: class sizes, which weigh the retained mean.
        covariance: total covariance Σ.
        forgotten: index of the class.
        shrinkage: added to Σ's diagonal, relative to its mean.

    Returns:
        The factors of P.

    Raises:
        InputError: the class mean lies in the span of the retained ones, so nothing tells it apart.
    """
    kept = (torch.arange(len(counts)) != forgotten) & (counts > 0)
    centre = counts[kept] @ means[kept] / counts[kept].sum()
    a = means[forgotten] - centre
    B = (means[kept] - centre).T
    ridge = shrinkage * covariance.diagonal().mean()
    sigma = covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)
    factor, failed = torch.linalg.cholesky_ex(sigma)
    if failed:
        raise InputError("The covariance of the observables cannot be inverted. Raise shrinkage, or fit more rows.")
    whitened = torch.linalg.solve_triangular(factor, torch.cat([a[:, None], B], 1), upper=False)
    target, retained = whitened[:, 0], whitened[:, 1:]
    # The columns of B sum to nothing (they are offsets from their own mean), so a basis is cut from their span.
    basis, values, _ = torch.linalg.svd(retained, full_matrices=False)
    basis = basis[:, values > max(values.max(), target.norm()) * 1e-10]
    rest = target - basis @ (basis.T @ target)
    if rest.norm() < 1e-6 * target.norm() or target.norm() == 0:
        raise InputError(
            "The mean of the class to forget lies in the span of the retained class means at this depth, so no "
            "direction is its own. Fit more observables, or erase at another site."
        )
    reader = torch.linalg.solve_triangular(factor.T, rest[:, None], upper=True).squeeze(1)
    return Eraser(direction=a, reader=reader / (a @ reader), centre=centre)


def erase_class(
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories | None = None,
    *,
    label: int,
    site: str | int | None = None,
    strength: float = 1.0,
    shrinkage: float = SHRINKAGE,
) -> OperatorEdit:
    """Edit the operator so that one class is forgotten.

    Everything comes from the moments that were kept with the fit; trajectories serve only to measure the drift.

    Args:
        koopman: the fitted surrogate.
        trajectories: held-out rows to measure the certificate's drift on; without them it is a bound from the
            held-out moments.
        label: the class to forget.
        site: site or depth at which to erase. None is the one, of all but the last, where the class is read with the
            least noise (see `Certificate.noise`): as a rule a late one, where classes lie apart.
        strength: multiplies the displacement. 1 puts the class on the retained mean; past 1 it is pushed beyond,
            which forgets more and is no longer an erasure but a mark of its own.
        shrinkage: added to Σ's diagonal, relative to its mean.

    Returns:
        The edit, with its certificate.

    Raises:
        InputError: the fit saw no labels, not this class, or no other class.
    """
    classes = koopman.config.classes
    if not classes:
        raise InputError(
            "This surrogate was fitted without labels. Fit trajectories that have them: observe(…, labels=…)."
        )
    seen = [c for c, count in zip(classes, koopman.moments.count, strict=True) if count > 0]
    if label not in seen:
        raise InputError(f"Class {label} does not occur among the fitted rows; there are {', '.join(map(str, seen))}.")
    if len(seen) == 1:
        raise InputError(
            f"Class {label} is the only one, so there is nothing to retain. Fit rows of other classes too."
        )
    index = classes.index(label)
    depths = range(len(koopman.sites) - 1) if site is None else [depth_of(koopman.sites, site)]
    depth, eraser = _quietest(koopman, index, depths, shrinkage)
    K = koopman.K.detach().double()
    direction = (strength * eraser.direction)[:, None]
    edit = OperatorEdit(
        description=f"erase class {label}" + ("" if strength == 1 else f" at strength {strength:g}"),
        site=koopman.sites[depth],
        depth=depth,
        directions=direction,
        readers=eraser.reader[:, None],
        offset=(eraser.centre @ eraser.reader)[None],
        moved=K @ direction,
        host=koopman.config.host,
        operator=koopman.digest(),
    )
    certificate = _certify(edit, koopman, index, trajectories)
    return replace(edit, certificate=certificate)


def _quietest(
    koopman: KoopmanAutoencoder, forgotten: int, depths: Sequence[int], shrinkage: float
) -> tuple[int, Eraser]:
    """Solve at each depth, and keep the eraser that reads with the least noise on held-out rows."""
    moments, found = koopman.moments, list[tuple[float, int, Eraser]]()
    for depth in depths:
        try:
            eraser = oblique_eraser(
                moments.mean[depth], moments.count, moments.covariance[depth], forgotten, shrinkage=shrinkage
            )
        except InputError:
            if depth == depths[-1] and not found:
                raise
            continue
        found.append((_noise(koopman.heldout_moments, depth, eraser.reader), depth, eraser))
    _, depth, eraser = min(found, key=lambda one: one[:2])
    return depth, eraser


def _noise(moments: Moments, depth: int, reader: Float[Tensor, " observable"]) -> float:
    """Standard deviation of readings around the means of their classes: `√(wᵀ(Σ − Σ_between) w)`."""
    share = moments.count / moments.count.sum()
    means = moments.mean[depth] @ reader
    between = (share * (means - share @ means).square()).sum()
    return float((reader @ moments.covariance[depth] @ reader - between).clamp_min(0).sqrt())


def _certify(
    edit: OperatorEdit, koopman: KoopmanAutoencoder, forgotten: int, trajectories: Trajectories | None
) -> Certificate:
    held_out, depth = koopman.heldout_moments, edit.depth
    spread = float(held_out.covariance[depth].trace().sqrt())
    if trajectories is not None and trajectories.labels is not None:
        drift, rows = _measured_drift(edit, koopman, trajectories, koopman.config.classes[forgotten])
    else:
        drift, rows = _bounded_drift(edit, held_out, forgotten), 0
    kept = (torch.arange(len(held_out.count)) != forgotten) & (held_out.count > 0)
    means = held_out.mean[depth][kept]
    mean_drift = float((edit(means) - means).norm(dim=1).max()) if len(means) else 0.0
    K = koopman.K.detach().double()
    undo_error = float((edit.undo(edit.apply(K)) - K).norm() / K.norm())
    noise = _noise(held_out, depth, edit.readers[:, 0])
    return Certificate(edit.rank, noise, drift / spread, rows, mean_drift / spread, undo_error)


@torch.no_grad()
def _measured_drift(
    edit: OperatorEdit, koopman: KoopmanAutoencoder, trajectories: Trajectories, label: int
) -> tuple[float, int]:
    assert trajectories.labels is not None
    retained = trajectories.labels != label
    if not retained.any():
        raise InputError("None of the given trajectories is of a retained class, so no drift can be measured.")
    where = depth_of(trajectories.sites, edit.site)
    z = koopman.encode(trajectories.states[where][retained], edit.depth).double()
    return float((edit(z) - z).square().sum(1).mean().sqrt()), int(retained.sum())


def _bounded_drift(edit: OperatorEdit, held_out: Moments, forgotten: int) -> float:
    """Bound the drift of retained rows by total moments less the least that the forgotten class contributes.

    With r the readings, `E r² = Σ_c p_c E_c r²` over all rows; the forgotten class gives at least `p_f (E_f r)²`.
    """
    depth = edit.depth
    share = held_out.count / held_out.count.sum()
    readings = held_out.mean[depth] @ edit.readers - edit.offset
    total = edit.readers.T @ held_out.covariance[depth] @ edit.readers
    mean = share @ readings
    second = total + torch.outer(mean, mean) - share[forgotten] * torch.outer(readings[forgotten], readings[forgotten])
    squared = torch.einsum("mk,kl,ml->", edit.directions, second, edit.directions) / (1 - share[forgotten])
    return float(squared.clamp_min(0).sqrt())
