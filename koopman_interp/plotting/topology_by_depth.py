"""Figures of topology along depth, with bands: summaries, distances, intrinsic dimension."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from koopman_interp.analysis.shapes.diagram_distances import TopologyDistances
from koopman_interp.analysis.shapes.dimension import IntrinsicDimension
from koopman_interp.analysis.shapes.topology_bands import TopologyBands
from koopman_interp.errors import InputError
from koopman_interp.plotting.style import (
    BLUE,
    GREEN,
    LONGEST,
    ORANGE,
    PURPLE,
    own_axes,
    plain,
    share,
    short,
    ticks_of_sites,
)

_SERIES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "D", "-."), (PURPLE, "v", ":"))
_HATCHES = ("", "///", "...", "\\\\\\")


def plot_topology_summary(
    bands: TopologyBands | Mapping[str, TopologyBands],
    statistic: str = "total persistence",
    dimension: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw a statistic of the diagrams along depth: mean and band over runs, one line for each of several.

    Args:
        bands: of one, or of several by name, which need as many clouds.
        statistic: `total persistence`, `entropy` or `longest lifetime`.
        dimension: of homology.
        ax: where to draw.

    Raises:
        InputError: they differ in the number of clouds, or the statistic or the dimension is not there.
    """
    several = {"": bands} if isinstance(bands, TopologyBands) else dict(bands)
    if len({len(each.names) for each in several.values()}) != 1:
        raise InputError("Bands in one figure need as many clouds each; draw them on axes of their own.")
    ax = own_axes(ax, 7.2, 4.0)
    for order, (name, each) in enumerate(several.items()):
        colour, marker, style = _SERIES[order % len(_SERIES)]
        low, mean, high = each.band(each.statistic(statistic, dimension))
        depths = np.arange(len(mean))
        ax.plot(depths, mean, style, color=colour, marker=marker, label=short(name, LONGEST))
        hatch = _HATCHES[order % len(_HATCHES)]
        ax.fill_between(depths, low, high, facecolor=colour, edgecolor=colour, alpha=0.18, hatch=hatch, linewidth=0)
    first = next(iter(several.values()))
    ticks_of_sites(ax, first.names)
    unit = "nats" if statistic == "entropy" else first.runs[0].scale_name
    ax.set(ylabel=f"{statistic} of H{dimension} ({unit})")
    ax.set_title(f"Mean and {share(first.level)} of {len(first.runs)} runs", fontsize=11)
    plain(ax)
    if len(several) > 1:
        ax.legend(frameon=False, handlelength=3)
    return ax


def plot_topology_distances(
    distances: TopologyDistances | Mapping[str, TopologyDistances],
    dimension: int | None = None,
    kind: str = "bottleneck",
    ax: Axes | None = None,
) -> Axes:
    """Draw distances of diagrams along depth, one line for each of several comparisons.

    Args:
        distances: of one comparison, or of several by name.
        dimension: of homology; None is that of loops, and of pieces where loops were not compared.
        kind: `bottleneck` or `wasserstein`.
        ax: where to draw.

    Raises:
        InputError: there is no such kind, or the dimension was not compared.
    """
    several = {"": distances} if isinstance(distances, TopologyDistances) else dict(distances)
    if kind not in ("bottleneck", "wasserstein"):
        raise InputError(f"Distances are bottleneck or wasserstein; got {kind!r}.")
    compared = min(each.bottleneck.shape[1] for each in several.values())
    dimension = min(1, compared - 1) if dimension is None else dimension
    if not 0 <= dimension < compared:
        raise InputError(f"H{dimension} was not compared.")
    ax = own_axes(ax, 7.2, 4.0)
    for order, (name, each) in enumerate(several.items()):
        colour, marker, style = _SERIES[order % len(_SERIES)]
        values = getattr(each, kind)[:, dimension]
        ax.plot(np.arange(len(values)), values, style, color=colour, marker=marker, label=short(name, LONGEST))
    first = next(iter(several.values()))
    ticks_of_sites(ax, [short(a) if a == b else f"{short(a, 12)} | {short(b, 12)}" for a, b in first.names])
    ax.set(ylabel=f"{kind} distance of H{dimension} ({first.scale_name})")
    ax.set_title(f"How far apart the diagrams of H{dimension} are", fontsize=11)
    ax.set_ylim(bottom=0)
    plain(ax)
    if len(several) > 1:
        ax.legend(frameon=False, handlelength=3)
    return ax


def plot_intrinsic_dimension(estimates: IntrinsicDimension, ax: Axes | None = None) -> Axes:
    """Draw the intrinsic dimension along depth, one line an estimator, with the range over subsets."""
    ax = own_axes(ax, 7.2, 4.0)
    low, high = estimates.values.min(0), estimates.values.max(0)
    for place, estimator in enumerate(estimates.estimators):
        colour, marker, style = _SERIES[place % len(_SERIES)]
        mean = estimates.means[:, place]
        spread = np.stack([mean - low[:, place], high[:, place] - mean])
        ax.errorbar(
            np.arange(len(mean)),
            mean,
            spread,
            color=colour,
            marker=marker,
            linestyle=style,
            capsize=3,
            label=short(estimator, LONGEST),
        )
    ticks_of_sites(ax, estimates.names)
    ax.set(ylabel="intrinsic dimension")
    ax.set_title(f"{len(estimates.values)} subsets of {estimates.points:,} points: mean and range", fontsize=11)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    plain(ax)
    ax.legend(frameon=False, handlelength=3)
    return ax
