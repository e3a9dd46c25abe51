"""Figures of persistent homology: Betti curves over scale and the diagram of one cloud."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy import ndarray

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.errors import InputError
from koopman_interp.plotting.style import (
    BLUE,
    DARK_TO_LIGHT,
    GREEN,
    GREY,
    LINES,
    MOST_DEPTHS,
    ORANGE,
    PURPLE,
    of_all,
    own_axes,
    plain,
    short,
    thinned,
)

_DIMENSIONS = ((BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (PURPLE, "D"))
_HOLES = {0: "connected pieces", 1: "loops"}


def plot_topology(topology: Topology, dimension: int = 0, ax: Axes | None = None) -> Axes:
    """Draw Betti curves over scale, one line a depth, each carrying its depth's number.

    Raises:
        InputError: the topology was not computed up to this dimension.
    """
    topology.require_dimension(dimension)
    ax = own_axes(ax, 7.2, 4.2)
    # Pieces are known at all scales, and have all joined at the diameter.
    end = topology.threshold if dimension else max(last_death(topology), topology.threshold)
    scales = np.linspace(0, end, 301)
    curves = topology.curves(dimension, scales)
    settled = np.flatnonzero((curves != curves[:, -1:]).any(axis=0))
    last = float(scales[settled[-1]]) if len(settled) else end
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
    ax.set_xlim(0, min(end, 1.1 * last))
    what = _HOLES.get(dimension, f"{dimension}-dimensional holes")
    ax.set(
        xlabel=f"scale ({topology.scale_name})",
        ylabel=f"β{dimension}: number of {what}",
        title=f"Betti-{dimension} curves, {topology.points} points a depth{of_all(shown, curves, 'depths')}",
    )
    plain(ax)
    ax.legend(title="depth", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=3)
    return ax


def last_death(topology: Topology) -> float:
    """The scale at which the last of the clouds has become one piece."""
    deaths = (diagrams[0][:, 1] for diagrams in topology.diagrams)
    return max(float(death[np.isfinite(death)].max(initial=0.0)) for death in deaths)


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
        label = f"H{dimension}: {len(diagram):,} {_HOLES.get(dimension, f'{dimension}-dimensional holes')}"
        at = (diagram[:, 0], np.minimum(diagram[:, 1], top))
        ax.scatter(*at, s=size, marker=marker, facecolors="none", edgecolors=colour, label=label, zorder=3 + dimension)
    ax.set(xlim=(-0.03 * top, 1.03 * top), ylim=(-0.03 * top, 1.05 * top), aspect="equal")
    ax.set(
        xlabel=f"birth ({topology.scale_name})", ylabel="death", title=f"Persistence at {short(topology.names[cloud])}"
    )
    plain(ax)
    ax.legend(loc="lower right", frameon=False)
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
