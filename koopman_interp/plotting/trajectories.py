"""Figures of the states themselves: one panel a depth, in the plane of the first two principal components.

Costs a fraction of a second: of many depths, classes or rows a part is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy import ndarray

from koopman_interp.errors import InputError
from koopman_interp.plotting.figures import new_figure
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import GREY, LONGEST, MOST_DEPTHS, named_class, plain, share, short, thinned
from koopman_interp.trajectories import Trajectories

# Tol's muted palette, whose colours are told apart by colour-blind readers; each with its own marker.
_CLASSES = {
    "#332288": "o", "#CC6677": "^", "#117733": "s", "#DDAA33": "D", "#88CCEE": "v",
    "#882255": "P", "#44AA99": "X", "#999933": "<", "#AA4499": ">", "#000000": "*",
}  # fmt: skip

OTHERS = "others"

_MOST_POINTS = 450


def plot_trajectories(
    trajectories: Trajectories, axes: ndarray | None = None, *, class_names: Mapping[int, str] | None = None
) -> ndarray:
    """Draw the states at each depth in the plane of their first two principal components, marked by class.

    Planes are fitted per depth, since widths may differ; each is then turned and mirrored so that the points
    lie nearest to where they lay at the depth before. Of many depths, classes or rows a part is drawn.

    Args:
        trajectories: the states.
        axes: where to draw, one a depth in their order; None makes a figure.
        class_names: by label, where they are known.

    Returns:
        The axes, in order of depth.

    Raises:
        InputError: more axes than depths, or none, were given.
    """
    if axes is not None and not 0 < np.size(axes) <= trajectories.depths:
        raise InputError(f"Expected 1 to {trajectories.depths} axes, one a depth; got {np.size(axes)}.")
    shown = thinned(trajectories.depths, MOST_DEPTHS if axes is None else np.size(axes))
    columns = min(4, math.ceil(len(shown) / math.ceil(len(shown) / 4)))
    own = None
    if axes is None:
        lines = math.ceil(len(shown) / columns)
        own = new_figure(2.6 * columns, 2.7 * lines + 0.7)
        axes = own.subplots(lines, columns, squeeze=False).ravel()
        for spare in axes[len(shown) :]:
            spare.remove()
    drawn: ndarray = np.asarray(axes).ravel()[: len(shown)]
    order = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(0))
    subset = trajectories[order[:_MOST_POINTS]]
    groups = _groups(subset, class_names)
    before = None
    for ax, depth in zip(drawn, shown, strict=True):
        points, explained = _plane(subset.states[depth].double().numpy(), before)
        before = points
        for (name, rows), (colour, marker) in zip(groups.items(), _CLASSES.items(), strict=False):
            look = {"marker": marker, "color": GREY if name == OTHERS else colour, "label": short(name, LONGEST)}
            drawn_class = ax.scatter(*points[rows].T, s=14, alpha=0.75, linewidths=0, **look)
            hovered(drawn_class, f"{name} at depth {depth}, {len(rows):,} rows drawn")
        title = f"{depth}  {short(trajectories.sites[depth])}\n{share(explained)} of variance"
        ax.set_title(title, fontsize=10)
        ax.set_aspect("equal", adjustable="datalim")
        plain(ax)
        ax.tick_params(labelsize=8)
    if own is None:
        drawn[-1].legend(fontsize=8)
    else:
        handles, names = drawn[0].get_legend_handles_labels()
        own.supxlabel("plane of the first two principal components, in units of the state", fontsize=10)
        own.legend(handles, names, loc="outside upper center", ncols=6, frameon=False, markerscale=1.8)
    return drawn


def _plane(states: ndarray, before: ndarray | None) -> tuple[ndarray, float]:
    """Project rows on their first two principal components, turned towards an earlier picture."""
    centred = states - states.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(states), 2))
    points[:, : min(2, len(s))] = u[:, :2] * s[:2]
    if before is not None:
        left, _, right = np.linalg.svd(points.T @ before)
        points = points @ left @ right
    total = float((s**2).sum())
    return points, float((s[:2] ** 2).sum()) / total if total else 0.0


def _groups(trajectories: Trajectories, names: Mapping[int, str] | None) -> dict[str, ndarray]:
    """Rows by class, the rarest together where there are more classes than marks; all rows without labels."""
    if trajectories.labels is None:
        return {"unlabelled": np.arange(len(trajectories))}
    labels = trajectories.labels.numpy()
    classes, counts = np.unique(labels, return_counts=True)
    most = len(_CLASSES)
    kept = classes if len(classes) <= most else np.sort(classes[np.argsort(-counts, kind="stable")[: most - 1]])
    groups = {named_class(int(label), names): np.flatnonzero(labels == label) for label in kept}
    rest = np.flatnonzero(~np.isin(labels, kept))
    return groups | ({OTHERS: rest} if len(rest) else {})
