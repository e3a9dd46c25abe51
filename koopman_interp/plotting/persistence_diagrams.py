"""The persistence diagram of one cloud: births and deaths of its features."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.errors import InputError
from koopman_interp.plotting.betti_curves import HOLES
from koopman_interp.plotting.style import BLUE, GREEN, GREY, ORANGE, PURPLE, own_axes, plain, short

_DIMENSIONS = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PURPLE, "D"))


def plot_diagram(topology: Topology, cloud: int = -1, ax: Axes | None = None) -> Axes:
    """Draw the persistence diagram of one cloud: birth and death of each feature, one marker a dimension.

    What outlives the scale that was computed lies on the line at the top; the diagonal is where features live for no
    time at all.

    Args:
        topology: of which one cloud is drawn.
        cloud: which; negative ones count from the last.
        ax: where to draw.

    Raises:
        InputError: there is no such cloud.
    """
    if not -len(topology) <= cloud < len(topology):
        raise InputError(f"There are the clouds 0 to {len(topology) - 1}; got {cloud}.")
    ax = own_axes(ax, 5.2, 5.0)
    diagrams, threshold = topology.diagrams[cloud], topology.thresholds[cloud]
    known = np.concatenate([diagram[np.isfinite(diagram)] for diagram in diagrams])
    top = 1.08 * max(float(known.max(initial=0.0)), threshold if len(diagrams) > 1 else 0.0)
    ax.plot([0, top], [0, top], color=GREY, linewidth=1)
    ax.axhline(top, color=GREY, linestyle="--", linewidth=1)
    ax.text(0.06 * top, 1.01 * top, "lives on", ha="left", va="bottom", color=GREY, fontsize=8)
    for dimension, diagram in enumerate(diagrams):
        colour, marker = _DIMENSIONS[dimension % len(_DIMENSIONS)]
        size = 44 if len(diagram) < 100 else 20
        label = f"H{dimension}: {len(diagram):,} {HOLES.get(dimension, f'{dimension}-dimensional holes')}"
        at = (diagram[:, 0], np.minimum(diagram[:, 1], top))
        ax.scatter(*at, s=size, marker=marker, facecolors="none", edgecolors=colour, label=label, zorder=3 + dimension)
    ax.set(xlim=(-0.03 * top, 1.03 * top), ylim=(-0.03 * top, 1.05 * top), aspect="equal")
    ax.set(
        xlabel=f"birth ({topology.scale_name})", ylabel="death", title=f"Persistence at {short(topology.names[cloud])}"
    )
    plain(ax)
    ax.legend(loc="lower right", frameon=False)
    return ax
