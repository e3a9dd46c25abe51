"""Erasing classes: low-rank oblique projections from moments kept with the fit.

With a = μ_f − μ_r from the retained mean to the forgotten one, and B the offsets of the retained class means from
μ_r, the reader is the covariance-cheapest w with aᵀw = 1 and Bᵀw = 0:

    w₀ = Σ⁻¹(a − B (BᵀΣ⁻¹B)⁺ BᵀΣ⁻¹a),   w = w₀ / (aᵀw₀),   P: z → z − ((z − μ_r)·w) a

After it the forgotten class's mean is the retained mean, every retained class's mean is where it was, and no linear
reader does better than chance on class means. Several classes take one column each: A, W with WᵀA = I, WᵀB = 0.
Costs one factorisation of Σ a site; needs no data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.depths import depth_of
from koopman_interp.edits.certifying import at_strength, certified, edit_at, encoded
from koopman_interp.edits.low_rank import LowRankMap
from koopman_interp.edits.oblique import SHRINKAGE, Projection, oblique
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.labels import whole_numbers
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder
from koopman_interp.surrogates.moments import Moments
from koopman_interp.trajectories import Trajectories


def oblique_eraser(
    means: Float[Tensor, "class observable"],
    counts: Float[Tensor, " class"],
    covariance: Float[Tensor, "observable observable"],
    forgotten: Sequence[int],
    *,
    ignored: Sequence[int] = (),
    shrinkage: float = SHRINKAGE,
) -> Projection:
    """Solve for the eraser of some classes.

    Args:
        means: class means.
        counts: class sizes, which weigh the retained mean.
        covariance: total covariance Σ.
        forgotten: indices of the classes.
        ignored: indices of classes that are neither erased nor retained.
        shrinkage: added to Σ's diagonal, relative to its mean.

    Returns:
        P, whose directions run from the retained mean to each forgotten one, and which leaves the retained mean.

    Raises:
        InputError: a class mean lies in the span of the others, so nothing tells it apart.
    """
    kept = counts > 0
    kept[[*forgotten, *ignored]] = False
    centre = counts[kept] @ means[kept] / counts[kept].sum()
    A = (means[list(forgotten)] - centre).T
    solved = oblique(A, (means[kept] - centre).T, covariance, centre, shrinkage=shrinkage)
    if solved is None:
        raise InputError(
            "The mean of the class to forget lies in the span of the retained class means at this depth, so no "
            "direction is its own. Fit more observables, or erase at another site."
        )
    return solved


@own_kinds
def erase_class(
    koopman: KoopmanAutoencoder,
    *,
    label: int | Sequence[int],
    jointly: bool = True,
    site: str | int | None = None,
    strength: float = 1.0,
    shrinkage: float = SHRINKAGE,
    held_out: Rows | None = None,
) -> OperatorEdit:
    """Edit the operator so that a class is forgotten, or several.

    Everything comes from the moments that were kept with the fit; trajectories serve only to measure the drift.

    At strength 1 several classes all end on the mean of those retained, which stay where they are, whether they are
    erased jointly or one after another; the readers differ. One after another, each class is erased from the moments
    that those before it have left, while the others still to come count as retained, so the order matters.

    Args:
        koopman: the fitted surrogate.
        label: the class to forget, or several.
        jointly: solve for several classes at once; otherwise one after another, in the given order.
        site: site or depth at which to erase. None is where, of all depths but the last, the readings of the classes
            have the least noise (see `Certificate.noise`), added up over the classes: as a rule a late one, where
            classes lie apart.
        strength: multiplies the displacement of each class. 1 puts it on the retained mean; past 1 it is pushed
            beyond, which forgets more and is no longer an erasure but a mark of its own.
        shrinkage: added to Σ's diagonal, relative to its mean.
        held_out: rows that the fit has not seen, to measure the certificate's drift on; without them, or without their
            labels, it is a bound from the held-out moments.

    Returns:
        The edit, with its certificate; its rank is the number of classes.

    Raises:
        InputError: the fit saw no labels, not these classes, or no other class.
    """
    held_out = None if held_out is None else in_memory(held_out)
    labels = whole_numbers(label).tolist()
    indices = _indices(koopman, labels)
    groups = [indices] if jointly else [[index] for index in indices]
    depths = range(len(koopman.sites) - 1) if site is None else [depth_of(koopman.sites, site)]
    depth, eraser = _quietest(koopman, groups, depths, strength, shrinkage)
    named = f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, labels))}"
    order = "" if len(groups) == 1 else ", one after another"
    edit = edit_at(koopman, depth, f"erase {named}{order}{at_strength(strength)}", eraser.map, labels)
    return certified(
        edit,
        koopman,
        rows=_retained_rows(koopman, held_out, labels, depth),
        noise=_noise(koopman.heldout_moments, depth, edit.readers) if len(labels) == 1 else None,
        feasibility=eraser.feasibility,
        strength=strength,
    )


def _indices(koopman: KoopmanAutoencoder, labels: Sequence[int]) -> list[int]:
    """Look classes up among those of the fit.

    Raises:
        InputError: a class is unknown or named twice, or none would be left to retain.
    """
    classes = koopman.config.classes
    if not classes:
        raise InputError(
            "This surrogate was fitted without labels. Fit trajectories that have them: observe(…, labels=…)."
        )
    if not labels or len(set(labels)) != len(labels):
        raise InputError(f"Expected one class or more to forget, each once; got {labels}.")
    seen = [c for c, count in zip(classes, koopman.moments.count, strict=True) if count > 0]
    for label in labels:
        if label not in seen:
            known = ", ".join(map(str, seen))
            raise InputError(f"Class {label} does not occur among the fitted rows; there are {known}.")
    if len(seen) == len(labels):
        named = f"Class {labels[0]} is the only one" if len(labels) == 1 else "These classes are all there are"
        raise InputError(f"{named}, so there is nothing to retain. Fit rows of other classes too.")
    return [classes.index(label) for label in labels]


def _quietest(
    koopman: KoopmanAutoencoder,
    groups: Sequence[Sequence[int]],
    depths: Sequence[int],
    strength: float,
    shrinkage: float,
) -> tuple[int, Projection]:
    """Solve at each depth, and keep the eraser that reads with the least noise on held-out rows."""
    erasers = list[tuple[float, int, Projection]]()
    for depth in depths:
        try:
            eraser = _one_after_another(koopman.moments, depth, groups, strength, shrinkage)
        except InputError:
            if depth == depths[-1] and not erasers:
                raise
            continue
        erasers.append((_noise(koopman.heldout_moments, depth, eraser.map.readers), depth, eraser))
    _, depth, eraser = min(erasers, key=lambda eraser: eraser[:2])
    return depth, eraser


def _one_after_another(
    moments: Moments, depth: int, groups: Sequence[Sequence[int]], strength: float, shrinkage: float
) -> Projection:
    """Erase groups of classes in order, each from the moments that those before have left, as one map.

    A class that is erased already is neither erased again nor retained: there is nothing left of it to keep.
    """
    means, covariance = moments.mean[depth], moments.covariance[depth]
    none = means.new_zeros(means.shape[1], 0)
    whole, feasibility = LowRankMap(none, none, none[0]), 1.0
    erased: list[int] = []
    for group in groups:
        eraser = oblique_eraser(means, moments.count, covariance, group, ignored=erased, shrinkage=shrinkage)
        step = eraser.map.scaled(strength)
        means, covariance = step(means), step.push(covariance)
        whole, feasibility = whole.then(step), min(feasibility, eraser.feasibility)
        erased += group
    return Projection(whole, feasibility)


def _noise(moments: Moments, depth: int, readers: Float[Tensor, "observable class"]) -> float:
    """Standard deviation of readings around the means of their classes: `√(tr Wᵀ(Σ − Σ_between) W)`."""
    share = moments.count / moments.count.sum()
    means = moments.mean[depth] @ readers
    between = (share[:, None] * (means - share @ means).square()).sum()
    return float(((readers.T @ moments.covariance[depth] @ readers).trace() - between).clamp_min(0).sqrt())


def _retained_rows(
    koopman: KoopmanAutoencoder, held_out: Trajectories | None, labels: Sequence[int], depth: int
) -> Float[Tensor, "sample observable"] | None:
    if held_out is None or held_out.labels is None:
        return None
    retained = ~torch.isin(held_out.labels, torch.tensor(labels))
    if not retained.any():
        raise InputError("No held-out row is of a retained class, so no drift can be measured. Observe other classes.")
    return encoded(koopman, held_out, depth)[retained]
