"""Betti curves over scale: one panel a depth, of one topology or, with a band, of several runs.

Each panel repeats the first depth's curve in grey, so that depths are compared without a legend and no curve hides
another.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy import ndarray

from koopman_interp.analysis.shapes.diagrams_by_depth import Topology
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.errors import InputError
from koopman_interp.plotting.figures import new_figure
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import BLUE, GREY, MOST_DEPTHS, log_ticks, of_all, plain, share, short, thinned

HOLES = {0: "connected pieces", 1: "loops"}


def plot_topology(topology: Topology, dimension: int = 0, axes: ndarray | Axes | None = None) -> ndarray:
    """Draw Betti curves over scale, one panel a depth; the first depth's curve is dotted in the others.

    Args:
        topology: of which the curves are.
        dimension: of homology.
        axes: where to draw, one a depth in their order; None makes a figure, of many depths a part is drawn.

    Returns:
        The axes, in order of depth.

    Raises:
        InputError: the topology was not computed up to this dimension, or more axes than depths were given.
    """
    topology.require_dimension(dimension)
    # Pieces are known at all scales, and have all joined at the diameter.
    end = topology.threshold if dimension else max(last_death(topology), topology.threshold)
    scales = np.linspace(0, end, 301)
    curves = topology.curves(dimension, scales)
    settled = np.flatnonzero((curves != curves[:, -1:]).any(axis=0))
    end = min(end, 1.1 * float(scales[settled[-1]])) if len(settled) else end
    drawn, shown = _panels(topology, axes)
    for ax, cloud in zip(drawn, shown, strict=True):
        _panel(ax, scales, curves, cloud, topology, end)
    title = f"Betti-{dimension} curves, {topology.points:,} points a depth{of_all(shown, curves, 'depths')}"
    return _finished(drawn, topology, dimension, title, own=axes is None)


def plot_betti_bands(bands: TopologyBands, dimension: int = 0, axes: ndarray | Axes | None = None) -> ndarray:
    """Draw Betti curves over scale, one panel a depth: the mean over runs, in the band of their quantiles.

    Args:
        bands: of which the curves are.
        dimension: of homology.
        axes: where to draw, one a depth in their order; None makes a figure, of many depths a part is drawn.

    Returns:
        The axes, in order of depth.

    Raises:
        InputError: the topology was not computed up to this dimension, or more axes than depths were given.
    """
    first = bands.runs[0]
    first.require_dimension(dimension)
    end = bands.threshold if dimension else max(map(last_death, bands.runs))
    scales = np.linspace(0, end, 201)
    low, mean, high = bands.band(bands.curves(dimension, scales))
    drawn, shown = _panels(first, axes)
    for ax, cloud in zip(drawn, shown, strict=True):
        ax.fill_between(scales, low[cloud], high[cloud], color=BLUE, alpha=0.25, linewidth=0)
        _panel(ax, scales, mean, cloud, first, end)
    held = f"mean and {share(bands.level)} of {len(bands.runs)} runs"
    title = f"Betti-{dimension} curves, {held}, {first.points:,} points each{of_all(shown, mean, 'depths')}"
    return _finished(drawn, first, dimension, title, own=axes is None)


def last_death(topology: Topology) -> float:
    """The scale at which the last of the clouds has become one piece."""
    deaths = (diagrams[0][:, 1] for diagrams in topology.diagrams)
    return max(float(death[np.isfinite(death)].max(initial=0.0)) for death in deaths)


def _panels(topology: Topology, axes: ndarray | Axes | None) -> tuple[ndarray, list[int]]:
    """Return axes in order of depth, those given or those of a figure of their own, and the depth of each."""
    given = None if axes is None else np.array(axes, dtype=object).ravel()
    if given is not None and not 0 < len(given) <= len(topology):
        raise InputError(f"Expected 1 to {len(topology)} axes, one a depth; got {len(given)}.")
    shown = thinned(len(topology), MOST_DEPTHS if given is None else len(given))
    if given is None:
        columns = min(4, math.ceil(len(shown) / math.ceil(len(shown) / 4)))
        lines = math.ceil(len(shown) / columns)
        own = new_figure(2.4 * columns + 0.5, 2.1 * lines + 0.6)
        given = own.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for spare in given[len(shown) :]:
            spare.remove()
    return given[: len(shown)], shown


def _panel(ax: Axes, scales: ndarray, curves: ndarray, cloud: int, topology: Topology, end: float) -> None:
    """Draw one depth's curve, over that of the first."""
    name = f"{cloud}  {short(topology.names[cloud])}"
    if cloud:
        first = f"0  {short(topology.names[0])}"
        (line,) = ax.plot(scales, curves[0], ":", color=GREY, linewidth=1.3, drawstyle="steps-post", label=first)
        hovered(line, f"depth 0, {topology.names[0]}")
    (line,) = ax.plot(scales, curves[cloud], color=BLUE, linewidth=1.6, drawstyle="steps-post", label=name)
    hovered(line, f"depth {cloud}, {topology.names[cloud]}: at most {curves[cloud].max():g}")
    ax.set_title(name, fontsize=10)
    ax.set_xlim(0, end)
    plain(ax)
    ax.tick_params(labelsize=8)


def _finished(drawn: ndarray, topology: Topology, dimension: int, title: str, *, own: bool) -> ndarray:
    """Set scales and names; those of the whole figure where it is ours."""
    for ax in drawn:
        if dimension == 0:
            log_ticks(ax)
            ax.yaxis.set_minor_locator(NullLocator())
        else:
            ax.set_ylim(bottom=0)
            ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    across = f"scale ({topology.scale_name})"
    upwards = f"β{dimension}: number of {HOLES.get(dimension, f'{dimension}-dimensional holes')}"
    if own:
        figure = drawn[0].figure
        figure.supxlabel(across, fontsize=10)
        figure.supylabel(upwards, fontsize=10)
        figure.suptitle(title + ("; dotted: the first depth" if len(drawn) > 1 else ""), fontsize=11)
    else:
        for ax in drawn:
            ax.set(xlabel=across, ylabel=upwards)
    return drawn
