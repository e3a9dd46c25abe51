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
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from koopman_interp.edits.certifying import at_strength, certified, edit_at, encoded
from koopman_interp.edits.oblique import SHRINKAGE, Projection, oblique
from koopman_interp.edits.operator_edit import OperatorEdit, in_a_row
from koopman_interp.errors import InputError
from koopman_interp.sites import depth_of
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
    return erase_classes(koopman, trajectories, labels=[label], site=site, strength=strength, shrinkage=shrinkage)


def erase_classes(
    koopman: KoopmanAutoencoder,
    trajectories: Trajectories | None = None,
    *,
    labels: Sequence[int],
    jointly: bool = True,
    site: str | int | None = None,
    strength: float = 1.0,
    shrinkage: float = SHRINKAGE,
) -> OperatorEdit:
    """Edit the operator so that several classes are forgotten, all at once or one after another.

    At strength 1 both ways put every class on the mean of those retained, and leave these where they are; the readers
    differ. One after another, each class is erased from the moments that those before it have left, while the others
    still to come count as retained, so the order matters.

    Args:
        koopman: the fitted surrogate.
        trajectories: held-out rows to measure the certificate's drift on, as for `erase_class`.
        labels: the classes to forget.
        jointly: solve for all of them at once; otherwise in the given order.
        site: as for `erase_class`; None is where the noise of the classes' readings, added up, is least.
        strength: multiplies the displacement of each.
        shrinkage: added to Σ's diagonal, relative to its mean.

    Returns:
        The edit, with its certificate; its rank is the number of classes.

    Raises:
        InputError: the fit saw no labels, not these classes, or no other class.
    """
    indices = _indices(koopman, labels)
    steps = [indices] if jointly else [[index] for index in indices]
    depths = range(len(koopman.sites) - 1) if site is None else [depth_of(koopman.sites, site)]
    depth, eraser = _quietest(koopman, steps, depths, strength, shrinkage)
    named = f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, labels))}"
    order = "" if len(steps) == 1 else ", one after another"
    description = f"erase {named}{order}{at_strength(strength)}"
    edit = edit_at(koopman, depth, description, eraser.directions, eraser.readers, eraser.offset, labels)
    return certified(
        edit,
        koopman,
        forgotten=indices,
        rows=_retained_rows(koopman, trajectories, labels, depth),
        noise=_noise(koopman.heldout_moments, depth, eraser.readers) if len(indices) == 1 else None,
        feasibility=eraser.feasibility,
        strength=strength,
    )


def _indices(koopman: KoopmanAutoencoder, labels: Sequence[int]) -> list[int]:
    classes = koopman.config.classes
    if not classes:
        raise InputError(
            "This surrogate was fitted without labels. Fit trajectories that have them: observe(…, labels=…)."
        )
    if not labels or len(set(labels)) != len(labels):
        raise InputError(f"Expected one class or more to forget, each once; got {list(labels)}.")
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
    steps: Sequence[Sequence[int]],
    depths: Sequence[int],
    strength: float,
    shrinkage: float,
) -> tuple[int, Projection]:
    """Solve at each depth, and keep the eraser that reads with the least noise on held-out rows."""
    found = list[tuple[float, int, Projection]]()
    for depth in depths:
        try:
            eraser = _one_after_another(koopman.moments, depth, steps, strength, shrinkage)
        except InputError:
            if depth == depths[-1] and not found:
                raise
            continue
        found.append((_noise(koopman.heldout_moments, depth, eraser.readers), depth, eraser))
    _, depth, eraser = min(found, key=lambda one: one[:2])
    return depth, eraser


def _one_after_another(
    moments: Moments, depth: int, steps: Sequence[Sequence[int]], strength: float, shrinkage: float
) -> Projection:
    """Erase groups of classes in order, each from the moments that those before have left, as one projection.

    A class that is erased already is neither erased again nor retained: there is nothing left of it to keep.
    """
    means, covariance = moments.mean[depth], moments.covariance[depth]
    whole: Projection | None = None
    done: list[int] = []
    for group in steps:
        one = oblique_eraser(means, moments.count, covariance, group, ignored=done, shrinkage=shrinkage)
        one = replace(one, directions=strength * one.directions)
        P = torch.eye(len(covariance), dtype=covariance.dtype) - one.directions @ one.readers.T
        means, covariance = means @ P.T + one.offset @ one.directions.T, P @ covariance @ P.T
        done += group
        if whole is not None:
            factors = in_a_row(
                (whole.directions, whole.readers, whole.offset), (one.directions, one.readers, one.offset)
            )
            one = Projection(*factors, min(whole.feasibility, one.feasibility))
        whole = one
    assert whole is not None
    return whole


def _noise(moments: Moments, depth: int, readers: Float[Tensor, "observable class"]) -> float:
    """Standard deviation of readings around the means of their classes: `√(tr Wᵀ(Σ − Σ_between) W)`."""
    share = moments.count / moments.count.sum()
    means = moments.mean[depth] @ readers
    between = (share[:, None] * (means - share @ means).square()).sum()
    return float(((readers.T @ moments.covariance[depth] @ readers).trace() - between).clamp_min(0).sqrt())


def _retained_rows(
    koopman: KoopmanAutoencoder, trajectories: Trajectories | None, labels: Sequence[int], depth: int
) -> Float[Tensor, "sample observable"] | None:
    if trajectories is None or trajectories.labels is None:
        return None
    retained = ~torch.isin(trajectories.labels, torch.tensor(list(labels)))
    if not retained.any():
        raise InputError("None of the given trajectories is of a retained class, so no drift can be measured.")
    return encoded(koopman, trajectories[retained], depth)
