"""Erasing a concept: an attribute of sequences or tokens, binary, categorical or continuous, is made unreadable.

With A = cov(z, attribute), one column a value, μ the mean and Σ a covariance, `P: z → z − ((z − μ) W) Aᵀ` with the
cheapest W, AᵀW = I, leaves `cov(P z, attribute) = 0`: no affine reader does better than a constant (LEACE, arXiv
2306.03819). What is to be preserved gives columns B with BᵀW = 0 (SPLINCE, arXiv 2506.10703). Σ decides what is
cheap, and nothing else: the rows' own makes LEACE of it; the fit's own, which is the default, counts displacement on
all rows fitted, so that a concept taught by a few contrasting prompts is erased at the least cost to the corpus. One
pass over the rows and one factorisation of Σ a site.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from koopman_interp.edits.certifying import acting_depth, at_strength, certified, edit_at, encoded
from koopman_interp.edits.oblique import SHRINKAGE, oblique
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.labels import forms_of, spread
from koopman_interp.own_kinds import own_kinds
from koopman_interp.sources.opening import Rows, in_memory
from koopman_interp.surrogates.autoencoder import KoopmanAutoencoder

Cost = Literal["fit", "rows"]

MOST_VALUES = 64
"""Values past which whole numbers are refused as categories: they are likely meant as a quantity."""

_DEPENDENT = 1e-6
"""Singular value of the cross-covariance, relative to the largest, below which a column says nothing new."""


@own_kinds
def erase_concept(
    koopman: KoopmanAutoencoder,
    trajectories: Rows,
    *,
    attribute: Any = None,
    preserve: object = None,
    site: str | int | None = None,
    strength: float = 1.0,
    cost: Cost = "fit",
    pooled: bool = False,
    shrinkage: float = SHRINKAGE,
    name: str = "concept",
) -> OperatorEdit:
    """Edit the operator so that an attribute can no longer be read by an affine map.

    Args:
        koopman: the fitted surrogate.
        trajectories: rows that vary in the attribute; need not be those fitted.
        attribute: of each row, or of each observed input: whole numbers or truth values are categories, floating-point
            numbers quantities, `[row]` or, for several at once, `[row, quantity]`. None takes the trajectories' labels.
        preserve: an attribute in the same forms; what an affine map can read of it stays where it is.
        site: site or depth at which to erase; None is the last but one.
        strength: multiplies the displacement; past 1 it over-erases.
        cost: whose covariance says what is cheap: `fit`, that of the rows fitted, or `rows`, that of the given ones.
        pooled: learn it of each input's mean observables, one row an input: for what is said of a whole text (its
            sentiment, say) and stands in no token alone. What is erased of the means is what is erased of the rows,
            since the map is affine.
        shrinkage: added to the covariance's diagonal, relative to its mean. Guardedness holds at any value.
        name: of the concept, for the description.

    Returns:
        The edit, with its certificate. Its rank is the number of values less one for categories, else the number of
        quantities. Feasibility is the least share of a direction to erase outside of what is preserved.

    Raises:
        InputError: the attribute does not fit the rows, does not vary, or lies in what is to be preserved.
    """
    trajectories = in_memory(trajectories)
    if cost not in ("fit", "rows"):
        raise InputError(f"cost={cost!r} is neither 'fit' nor 'rows'.")
    if attribute is None and trajectories.labels is None:
        raise InputError("There is no attribute to erase: give attribute=…, or trajectories with labels.")
    given = trajectories.labels if attribute is None else attribute
    values = columns_of(given, trajectories.sequence, "attribute")
    depth = acting_depth(koopman, site)
    z = encoded(koopman, trajectories, depth)
    kept = None if preserve is None else columns_of(preserve, trajectories.sequence, "attribute to preserve")
    if pooled:
        z, values = pooled_rows(z, trajectories.sequence), pooled_rows(values, trajectories.sequence)
        kept = None if kept is None else pooled_rows(kept, trajectories.sequence)
        values = values - values.mean(0)
    centre = z.mean(0)
    A = cross_covariance(z - centre, values)
    B = A[:, :0] if kept is None else cross_covariance(z - centre, kept)
    covariance = torch.cov(z.T, correction=0) if cost == "rows" else koopman.moments.covariance[depth].to(z)
    eraser = oblique(A, B, covariance, centre, shrinkage=shrinkage)
    if eraser is None:
        raise InputError(
            f"What {name!r} moves at {koopman.sites[depth]!r} lies in what is to be preserved, so the one cannot be "
            "erased without the other. Preserve less, or erase at another site."
        )
    edit = edit_at(koopman, depth, f"erase {name}{at_strength(strength)}", eraser.map.scaled(strength))
    return certified(edit, koopman, feasibility=eraser.feasibility, strength=strength)


def pooled_rows(rows: Float[Tensor, "sample width"], sequence: Int[Tensor, " sample"]) -> Float[Tensor, "input width"]:
    """Return the mean of each input's rows, in the order of the inputs.

    Args:
        rows: the rows.
        sequence: which input each belongs to.
    """
    _, place = torch.unique(sequence, return_inverse=True)
    count = place.bincount()
    return rows.new_zeros(len(count), rows.shape[1]).index_add(0, place, rows) / count[:, None]


def columns_of(given: Any, sequence: Int[Tensor, " sample"], what: str) -> Float[Tensor, "sample value"]:
    """Bring an attribute, one a row or one an observed input, to centred columns in float64.

    Args:
        given: categories (whole numbers, truth values) or quantities (floating point).
        sequence: which input each row belongs to.
        what: its name in messages.

    Returns:
        One column a category, or a quantity.

    Raises:
        InputError: it does not fit the rows, is not finite, or does not vary.
    """
    try:
        numbers = torch.as_tensor(given).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The {what} is no array of numbers ({error}). Number its categories.") from error
    values = spread(numbers, forms_of(sequence), f"values of the {what}")
    if values.is_floating_point():
        columns = values.double().reshape(len(values), -1)
    else:
        if values.ndim != 1:
            raise InputError(f"Categories are one whole number a row; this {what} has the shape {tuple(values.shape)}.")
        kinds, index = torch.unique(values, return_inverse=True)
        if len(kinds) > MOST_VALUES:
            raise InputError(
                f"This {what} has {len(kinds)} categories; at most {MOST_VALUES} are erased at once. If it is a "
                "quantity, give it as floating-point numbers."
            )
        columns = torch.nn.functional.one_hot(index).double()
    if not torch.isfinite(columns).all():
        raise InputError(f"This {what} has values that are NaN or infinite. Leave those rows out.")
    columns = columns - columns.mean(0)
    if not bool((columns.abs().amax(0) > 0).all()):
        raise InputError(f"This {what} is the same for all {len(columns)} rows, so nothing can be learnt of it.")
    return columns


def cross_covariance(
    centred: Float[Tensor, "sample observable"], columns: Float[Tensor, "sample value"]
) -> Float[Tensor, "observable independent"]:
    """Return independent columns that span cov(z, attribute); those of categories sum to nothing."""
    cross = centred.T @ columns / len(columns)
    basis, values, _ = torch.linalg.svd(cross, full_matrices=False)
    # A single column keeps its own length and sign, so that its factors read as a difference of means.
    if cross.shape[1] == 1:
        return cross
    keep = values > max(float(values[0]) * _DEPENDENT, torch.finfo(values.dtype).tiny)
    return basis[:, keep] * values[keep]
