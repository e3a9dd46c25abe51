"""Targets: where the rows that a redirection moves are to go.

Each named target is a function of the rows' observables; so is one of the user's own. The retained mean is farthest
from what a model trained without the class does, next-best and similarity-tilted means are nearest. Costs a product of
the rows with the class means. Knows nothing of operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from koopman_interp.errors import InputError

Named = Literal["next_best", "similar", "retained_mean"]

Targets = Named | Callable[[Tensor, int], Tensor]
"""A name, or a function of all rows' observables `[sample, observable]` and the depth: one target a row."""

_RIDGE = 1e-3


def named_targets(
    name: str,
    z: Float[Tensor, "sample observable"],
    labels: Int[Tensor, " sample"],
    moved: Bool[Tensor, " sample"],
) -> Float[Tensor, "moved observable"]:
    """Return the targets of the rows to move, made of the retained rows' means.

    Args:
        name: `next_best`, the nearest retained class mean; `similar`, the retained class means weighed by what a linear
            discriminant without the class says of the row; `retained_mean`.
        z: observables of all rows.
        labels: their classes.
        moved: which rows are to go.

    Returns:
        One target a moved row.

    Raises:
        InputError: there is no such name.
    """
    if name == "retained_mean":
        return z[~moved].mean(0).expand(int(moved.sum()), -1)
    kinds = torch.unique(labels[~moved])
    # A row that moves is of no class here; so no copy of the others is made.
    member = ((labels[:, None] == kinds) & ~moved[:, None]).to(z)
    means = member.T @ z / member.sum(0)[:, None]
    if name == "next_best":
        return means[torch.cdist(z[moved], means).argmin(1)]
    if name == "similar":
        within = torch.cov((z - member @ means)[~moved].T, correction=0)
        within = within + _RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=z.dtype)
        readers = torch.linalg.solve(within, means.T)
        share = member.sum(0) / member.sum()
        scores = z[moved] @ readers - 0.5 * (means.T * readers).sum(0) + share.log()
        return scores.softmax(1) @ means
    raise InputError(f"There are no targets {name!r}; there are next_best, similar, retained_mean, or a function.")


def class_means(choices: Any, labels: object) -> Callable[[Tensor, int], Tensor]:
    """Make targets of a choice: each row goes to the mean of the class chosen for it.

    What the model itself would say without the class is a choice that comes near to a model trained without it:
    `logits.index_fill(1, torch.tensor([label]), -torch.inf).argmax(1)`.

    Args:
        choices: `[row]` whole numbers, the class whose mean each row goes to.
        labels: `[row]` whole numbers, the class of each row, of which the means are taken.

    Returns:
        Targets for `redirect`.

    Raises:
        InputError: the two differ in length, or a class is chosen that no row is of.
    """
    chosen, own = (torch.as_tensor(given).cpu().long().flatten() for given in (choices, labels))
    if len(chosen) != len(own):
        raise InputError(f"Expected a choice and a label a row; got {len(chosen)} and {len(own)}.")
    kinds, index = torch.unique(own, return_inverse=True)
    absent = chosen[~torch.isin(chosen, kinds)].unique().tolist()
    if absent:
        raise InputError(f"No row is of class {absent[0]}, which was chosen for some. There are {kinds.tolist()}.")

    def chosen_means(z: Tensor, _depth: int) -> Tensor:
        if len(own) != len(z):
            raise InputError(f"Expected a choice and a label for each of {len(z)} rows; got {len(own)}.")
        sums = z.new_zeros(len(kinds), z.shape[1]).index_add(0, index, z)
        return (sums / index.bincount().to(z)[:, None])[torch.searchsorted(kinds, chosen)]

    return chosen_means


def counterfactual(attribute: Any, groups: Any) -> Callable[[Tensor, int], Tensor]:
    """Make targets of contrasting prompts: within a group, each value's mean goes where the group's mean is.

    Rows of one group are alike in all but the attribute: the same template and position, say. Each row is moved by the
    offset of its value's mean within its group, so that what tells the value apart *there* is taken off and the rest of
    the row stays.

    Args:
        attribute: `[row]` whole numbers, the value of each row.
        groups: `[row]` whole numbers, the group of each row. In groups that hold one value only, rows stay.

    Returns:
        Targets for `redirect`.

    Raises:
        InputError: the two differ in length.
    """
    values, kinds = (torch.as_tensor(given).cpu().long().flatten() for given in (attribute, groups))
    if len(values) != len(kinds):
        raise InputError(f"Expected an attribute and a group a row; got {len(values)} and {len(kinds)}.")

    def targets(z: Tensor, _depth: int) -> Tensor:
        if len(values) != len(z):
            raise InputError(f"Expected an attribute and a group for each of {len(z)} rows; got {len(values)}.")
        pairs, cell = torch.unique(torch.stack([kinds, values], 1), dim=0, return_inverse=True)
        sums = z.new_zeros(len(pairs), z.shape[1]).index_add(0, cell, z)
        means = sums / cell.bincount(minlength=len(pairs)).to(z)[:, None]
        # A group's mean weighs its values alike, however many rows each has.
        _, group = torch.unique(pairs[:, 0], return_inverse=True)
        centres = z.new_zeros(int(group.max()) + 1, z.shape[1]).index_add(0, group, means)
        centres = centres / group.bincount().to(z)[:, None]
        return z - (means - centres[group])[cell]

    return targets
