"""Figures of what modes do: by class, and over depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from koopman_interp.analysis.spectra.mode_meanings import ModeMeanings
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.errors import InputError
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import (
    BLUE,
    FLOOR,
    GREEN,
    GREY,
    LONGEST,
    ORANGE,
    PURPLE,
    label_ends,
    named_class,
    of_all,
    own_axes,
    plain,
    round_log_ticks,
    shade_cells,
    short,
    thinned,
    ticks_of_sites,
)

_MOST_MODES = 16
_MOST_CLASSES = 20
_MOST_LINES = 5
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
_MARKERS = "osD^v"


def plot_class_amplitudes(
    spectrum: Spectrum, depth: int = 0, ax: Axes | None = None, *, class_names: Mapping[int, str] | None = None
) -> Axes:
    """Draw how far each class stands out in each of the slowest modes, as a heat map with its numbers.

    A cell is the distance of the class's mean amplitude from the mean over all samples, in standard deviations over
    all samples. Of a conjugate pair one is shown; trusted modes have their number in bold.

    Args:
        spectrum: made from labelled samples.
        depth: where the amplitudes are read.
        ax: where to draw.
        class_names: by label, where they are known.

    Returns:
        The axes.

    Raises:
        InputError: the spectrum was made from unlabelled samples, or has no such depth.
    """
    amplitudes = spectrum.amplitudes
    if amplitudes is None or not amplitudes.labels:
        raise InputError("This spectrum knows no classes. Make it from trajectories with labels.")
    if not -len(amplitudes.mean) <= depth < len(amplitudes.mean):
        raise InputError(f"There are amplitudes at the depths 0 to {len(amplitudes.mean) - 1}; got {depth}.")
    contrast = amplitudes.contrast(depth)
    upper = [index for index in range(contrast.shape[1]) if spectrum.eigenvalues[index].imag >= 0]
    columns, rows = upper[:_MOST_MODES], thinned(len(amplitudes.labels), _MOST_CLASSES)
    shown = contrast[np.ix_(rows, columns)]
    ax = own_axes(ax, 1.8 + 0.5 * len(columns), 1.3 + 0.36 * len(rows))
    highest = max(1.0, float(shown.max()))
    shade_cells(ax, 0.5 * shown / highest)
    ax.invert_yaxis()
    for (row, column), value in np.ndenumerate(shown):
        ax.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8)
    ax.set_xticks(range(len(columns)), [str(index) for index in columns])
    for tick, index in zip(ax.get_xticklabels(), columns, strict=True):
        tick.set_fontweight("bold" if spectrum.trusted[index] else "normal")
    ax.set_yticks(range(len(rows)), [short(named_class(amplitudes.labels[row], class_names), LONGEST) for row in rows])
    ax.set(xlabel="mode, slowest first (bold: trusted)")
    ax.set_title(
        f"Distance of class means, in standard deviations{of_all(rows, amplitudes.labels, 'classes')}", fontsize=10
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def plot_mode_growth(meanings: ModeMeanings, ax: Axes | None = None) -> Axes:
    """Draw how modes grow over depth: measured on the samples, and as their eigenvalues say.

    Solid lines with marks are standard deviations of φ over the samples, relative to the first depth; dashed ones of
    the same colour are |λ|^t. Where the two part, the operator does not tell what the mode does. Of many modes the
    first five are drawn.

    Raises:
        InputError: there are no modes.
    """
    if not len(meanings):
        raise InputError("There are no modes to draw.")
    ax = own_axes(ax, 7.2, 4.2)
    ends = {}
    drawn = meanings.modes[:_MOST_LINES]
    for mode, colour, marker in zip(drawn, _COLOURS, _MARKERS, strict=False):
        measured, expected = (np.maximum(sizes, FLOOR) for sizes in (mode.growth, mode.expected))
        depths = range(len(measured))
        label = f"mode {mode.mode}, measured"
        (line,) = ax.plot(depths, measured, color=colour, marker=marker, linewidth=1.8, label=label)
        sizes = zip(mode.growth, meanings.sites, strict=True)
        hovered(line, *(f"mode {mode.mode}: {size:.3g} at {site}" for size, site in sizes))
        ax.plot(depths, expected, color=colour, linestyle="--", linewidth=1.2, label="_")
        word = "" if mode.verdict == "trusted" else f" ({mode.verdict})"
        ends[f"{mode.mode}{word}"] = (float(measured[-1]), colour)
    round_log_ticks(ax)
    ticks_of_sites(ax, meanings.sites)
    ax.set(ylabel="size relative to the first depth (log)")
    ax.set_title(
        f"Modes over depth: measured (solid), |λ|^t (dashed){of_all(range(len(drawn)), meanings.modes, 'modes')}"
    )
    plain(ax)
    label_ends(ax, ends)
    return ax
