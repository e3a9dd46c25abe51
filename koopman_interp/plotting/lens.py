"""Figures of lenses: what one reads at each depth, how far several are from the model, and their directions."""

from __future__ import annotations

from matplotlib.axes import Axes

from koopman_interp.analysis.substitutes.lens import LensReading
from koopman_interp.analysis.substitutes.lens_comparison import LensComparison
from koopman_interp.analysis.substitutes.lens_vectors import LensVectors
from koopman_interp.analysis.substitutes.token_floor import FLOOR as TOKEN_FLOOR
from koopman_interp.errors import InputError
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import (
    BLUE,
    FLOOR,
    GREEN,
    GREY,
    LINES,
    LONGEST,
    ORANGE,
    PURPLE,
    label_ends,
    log_ticks,
    mark_first,
    own_axes,
    plain,
    shade_cells,
    short,
    ticks_of_sites,
)

_MOST_SAMPLES = 32
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_MARKERS = ("o", "s", "D", "v", "^", "P")


def plot_lens(reading: LensReading, ax: Axes | None = None, *, start: int = 0) -> Axes:
    """Draw what a lens reads: in each cell the likeliest output and its probability in per cent, which shades it too.

    Depth goes up, samples to the right. Where a cell names what the model says in the end, its word is bold.

    Args:
        reading: of one input, or of several in a row.
        ax: where to draw; None makes a figure.
        start: first sample to show; 32 are shown at most.

    Returns:
        The axes.

    Raises:
        InputError: there is no sample to show from there on.
    """
    shown = range(start, min(len(reading), start + _MOST_SAMPLES))
    if not shown or start < 0:
        raise InputError(f"This reading has samples 0 to {len(reading) - 1}; there is none to show from {start} on.")
    depths = len(reading.sites)
    ax = own_axes(ax, 1.9 + 0.62 * len(shown), 1.6 + 0.5 * depths)
    probability = reading.probability[:, shown.start : shown.stop, 0].numpy()
    shade_cells(ax, 0.45 * probability)
    for depth in range(depths):
        for column, sample in enumerate(shown):
            right = reading.top[depth, sample, 0] == reading.top[-1, sample, 0]
            word = short(reading.said(depth, sample), 8)
            weight = "bold" if right else "normal"
            percent = f"{100 * probability[depth, column]:.0f}"
            cell = ax.text(column, depth, f"{word}\n{percent}", ha="center", va="center", fontsize=8)
            cell.set_fontweight(weight)
            hovered(cell, f"{reading.said(depth, sample)}: {percent} %, read at {reading.sites[depth]}")
    labels = [short(reading.inputs[sample], 10) for sample in shown]
    ax.set_xticks(range(len(shown)), labels, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(depths), [short(site) for site in reading.sites])
    ax.set_xticks([index - 0.5 for index in range(1, len(shown))], minor=True)
    ax.set_yticks([index - 0.5 for index in range(1, depths)], minor=True)
    ax.grid(which="minor", color="#c8c8c8", linewidth=0.6)
    ax.tick_params(which="minor", length=0)
    ax.set(xlabel="read at", ylabel="site, in order of depth")
    ax.set_title(f"{short(reading.lens, LONGEST)}: likeliest output, and its probability in % (bold: the model's own)")
    return ax


def plot_lens_comparison(comparison: LensComparison, ax: Axes | None = None) -> Axes:
    """Draw the divergence of each lens from the model over depth, with the number of its parameters."""
    ax = own_axes(ax, 8.4, 4.2)
    ends = {}
    for index, (name, parameters) in enumerate(comparison.parameters.items()):
        known = [(depth, max(kl, FLOOR)) for depth, kl in enumerate(comparison.kl(name)) if kl is not None]
        if not known:
            continue
        if name == TOKEN_FLOOR:
            mark_first(ax, known[0][1], name)
            continue
        x, y = zip(*known, strict=True)
        colour, marker, style = (choice[index % len(choice)] for choice in (_COLOURS, _MARKERS, LINES))
        ax.plot(x, y, color=colour, marker=marker, linestyle=style, linewidth=1.8, label=short(name, LONGEST))
        ends[f"{name} ({parameters:,})"] = (y[-1], colour)
    log_ticks(ax)
    ticks_of_sites(ax, comparison.sites)
    ax.set(ylabel="KL to the model, nats (log)", title="Lenses and their parameters: lower is nearer to the model")
    plain(ax)
    label_ends(ax, ends)
    return ax


def plot_lens_vectors(vectors: LensVectors, ax: Axes | None = None) -> Axes:
    """Draw over depth how far one direction stands for each token: the mean cosine of a sample's own with it."""
    ax = own_axes(ax, 7.2, 4.0)
    for index, name in enumerate(vectors.names):
        colour, marker, style = (choice[index % len(choice)] for choice in (_COLOURS, _MARKERS, LINES))
        cosines = vectors.agreement[:, index].tolist()
        label = short(name, LONGEST)
        ax.plot(cosines, color=colour, marker=marker, linestyle=style, linewidth=1.8, label=label)
    ax.set_ylim(min(0.0, float(vectors.agreement.min())), 1.02)
    ticks_of_sites(ax, vectors.sites)
    ax.set(ylabel="mean cosine with the mean direction")
    ax.set_title(f"{short(vectors.lens, LONGEST)}: is a token one direction?")
    ax.legend(frameon=False)
    plain(ax)
    return ax
