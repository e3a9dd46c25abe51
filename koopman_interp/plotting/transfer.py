"""The figure of transfer modes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from koopman_interp.analysis.spectra.transfer import TransferModes
from koopman_interp.plotting.style import BLUE, GREY, ORANGE, own_axes, plain, short

_MOST = 60
"""Pairs that are drawn."""


def plot_transfer_modes(modes: TransferModes, ax: Axes | None = None) -> Axes:
    """Draw how well the rows given bear each pair out, and how much of the target's variance they add up to.

    Marks are the correlation of f and g on the rows, for which K says σ: filled where the pair is trusted. The line
    is the share of the variance at the target in all pairs so far. Of more than 60 pairs the first are drawn.
    """
    ax = own_axes(ax, 7.2, 4.2)
    count = min(len(modes), _MOST)
    numbers, trusted = np.arange(count), modes.trusted[:count]
    for name, chosen, colour, marker in (("trusted", trusted, BLUE, "o"), ("not trusted", ~trusted, ORANGE, "s")):
        faces = colour if name == "trusted" else "none"
        at = (numbers[chosen], modes.correlations[:count][chosen])
        label = f"σ on data, {name} ({int(chosen.sum())})" if chosen.any() else "_"
        ax.scatter(*at, s=30, marker=marker, facecolors=faces, edgecolors=colour, label=label, zorder=3)
    ax.plot(numbers, np.cumsum(modes.share)[:count], color=GREY, label="variance at the target, so far")
    order = "most variance first" if modes.by == "variance" else "largest σ first"
    shown = "" if count == len(modes) else f" ({count} of {len(modes)})"
    ax.set(xlabel=f"pair, {order}{shown}", ylabel="share", ylim=(min(0.0, ax.get_ylim()[0]), 1.05))
    ax.set_title(f"What K carries from {short(modes.source)} to {short(modes.target)}")
    plain(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax
