"""Figures of persistent homology by depth."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from koopman_interp.analysis.topology import Topology
from koopman_interp.errors import InputError
from koopman_interp.plotting.style import DARK_TO_LIGHT, LINES, MOST_DEPTHS, of_all, own_axes, plain, short, thinned


def plot_topology(topology: Topology, dimension: int = 0, ax: Axes | None = None) -> Axes:
    """Draw Betti curves over scale, one line a depth, each carrying its depth's number.

    Raises:
        InputError: the topology was not computed up to this dimension.
    """
    highest = min(len(diagrams) for diagrams in topology.diagrams) - 1
    if not 0 <= dimension <= highest:
        raise InputError(f"The topology has the dimensions 0 to {highest}; got {dimension}.")
    ax = own_axes(ax, 7.2, 4.2)
    scales = np.linspace(0, topology.threshold, 301)
    curves = np.array([[cloud[dimension] for cloud in topology.betti(float(scale))] for scale in scales]).T
    settled = np.flatnonzero((curves != curves[:, -1:]).any(axis=0))
    last = float(scales[settled[-1]]) if len(settled) else topology.threshold
    shown = thinned(len(curves), MOST_DEPTHS)
    places = _clear_places(np.log(curves[shown]) if dimension == 0 else curves[shown])
    for order, cloud in enumerate(shown):
        colour = DARK_TO_LIGHT(order / max(1, len(shown) - 1))
        style = LINES[order % len(LINES)]
        label = f"{cloud}  {short(topology.names[cloud])}"
        ax.plot(scales, curves[cloud], style, color=colour, drawstyle="steps-post", label=label)
        at = (scales[places[order]], curves[cloud, places[order]])
        box = {"boxstyle": "circle,pad=0.18", "facecolor": "white", "edgecolor": colour}
        ax.text(*at, str(cloud), ha="center", va="center", fontsize=8, bbox=box, zorder=4)
    if dimension == 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    else:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(0, min(topology.threshold, 1.1 * last))
    what = {0: "connected pieces", 1: "loops"}.get(dimension, f"{dimension}-dimensional holes")
    ax.set(
        xlabel="scale (share of the cloud's diameter)",
        ylabel=f"β{dimension}: number of {what}",
        title=f"Betti-{dimension} curves, {topology.points} points a depth{of_all(shown, curves, 'depths')}",
    )
    plain(ax)
    ax.legend(title="depth", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=3)
    return ax


def _clear_places(curves: ndarray) -> list[int]:
    """Choose where each line can carry its number: high up, and far from other lines and earlier numbers."""
    heights = curves / max(float(curves.max()), 1e-12)
    across = np.linspace(0, 2, curves.shape[1])
    places: list[int] = []
    for line, height in enumerate(heights):
        room = np.full(len(height), 0.1)
        room[:8] = -1  # where all lines start
        for other in np.delete(heights, line, axis=0):
            gaps = np.pad(np.abs(height - other), 3, mode="edge")
            room = np.minimum(room, np.lib.stride_tricks.sliding_window_view(gaps, 7).min(1))
        for earlier, place in zip(heights, places, strict=False):
            room = np.minimum(room, np.hypot(across - across[place], height - earlier[place]) - 0.06)
        places.append(int((room + 0.02 * height).argmax()))
    return places
