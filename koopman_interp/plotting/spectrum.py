"""Figures of a spectrum and of how far the data bear it out."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from koopman_interp.analysis.spectra.pseudospectra import Pseudospectra
from koopman_interp.analysis.spectra.spectrum import Spectrum
from koopman_interp.errors import InputError
from koopman_interp.files import Json
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.numbering import number_marks
from koopman_interp.plotting.style import BLUE, FLOOR, GREY, ORANGE, own_axes, plain, round_log_ticks

_LEVELS = (0.01, 0.03, 0.1, 0.3, 0.6)
"""Residuals at which contours are drawn."""
_WIDEST = 0.5
"""Intervals that are wider tell nothing, and are not drawn."""
_CERTAIN = 1e-3
"""Arcs that are shorter would be points."""


def plot_spectrum(spectrum: Spectrum, ax: Axes | None = None, *, pseudospectra: Pseudospectra | None = None) -> Axes:
    """Draw the eigenvalues in the complex plane, with the unit circle.

    Trusted modes are filled circles and all others hollow squares; each has its number in the tables, of a conjugate
    pair the upper one. Crosses are intervals of what the data give for |λ| and arg λ, of trusted modes. Contours, where
    pseudospectra are given, enclose where a function with so small a residual exists on the data; the eigenvalues are
    those of K itself then, and in the host's own units otherwise, where there are such.

    Raises:
        InputError: the pseudospectra are those of several steps at once.
    """
    if pseudospectra is not None and pseudospectra.gap != 1:
        raise InputError(f"These pseudospectra are those of K^{pseudospectra.gap:g}; the eigenvalues are those of K.")
    if pseudospectra is not None:
        spectrum = spectrum.of_operator()
    ax = own_axes(ax, 7.2, 6.4)
    _draw_plane(ax)
    if pseudospectra is not None:
        _draw_contours(pseudospectra, ax)
    _draw_intervals(spectrum, ax)
    trusted, values = spectrum.trusted, spectrum.eigenvalues
    at = np.stack([values.real, values.imag], 1)
    for name, chosen, (marker, face, edge) in (
        ("not trusted", ~trusted, ("s", "none", ORANGE)),
        (f"trusted, residual ≤ {spectrum.tolerance:g}", trusted, ("o", BLUE, "white")),
    ):
        label = f"{name} ({int(chosen.sum())})" if chosen.any() else "_"
        drawn = ax.scatter(
            values.real[chosen],
            values.imag[chosen],
            s=42,
            marker=marker,
            facecolors=face,
            edgecolors=edge,
            label=label,
            zorder=3,
        )
        hovered(drawn, *(_told(spectrum, index) for index in np.flatnonzero(chosen)))
    of = "of K" if spectrum.unit_factor is None else "in the host's units"
    step = "operator step" if spectrum.clock is None else "tick"
    ax.set(xlabel="Re λ", ylabel="Im λ", title=f"Eigenvalues {of}, per {step}, with the numbers of the modes")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, fontsize=9)
    upper = np.flatnonzero((values.imag >= 0) & np.isfinite(at).all(1))
    numbers, bold = [str(index) for index in upper], trusted[upper].tolist()
    number_marks(ax, at[upper], numbers, clear=at[np.isfinite(at).all(1)], bold=bold)
    return ax


def _told(spectrum: Spectrum, index: int | np.signedinteger) -> str:
    """What is known of one mode, in a line."""
    word = "trusted" if spectrum.trusted[index] else "not trusted"
    return (
        f"mode {index}: |λ| {spectrum.decay[index]:.3f}, {spectrum.turns[index]:+.3f} turns a step, residual "
        f"{spectrum.residuals[index]:.3f}, {word}"
    )


def plot_pseudospectra(pseudospectra: Pseudospectra, ax: Axes | None = None) -> Axes:
    """Draw where a function with so small a residual exists on the data, as contours, with the eigenvalues of K.

    An eigenvalue far from all valleys is one that the data do not bear out; eigenvalues in one valley cannot be told
    apart.
    """
    ax = own_axes(ax, 6.0, 5.2)
    _draw_plane(ax)
    _draw_contours(pseudospectra, ax)
    values = pseudospectra.eigenvalues**pseudospectra.gap
    ax.scatter(values.real, values.imag, s=36, marker="x", color=BLUE, label="eigenvalues of K", zorder=3)
    of = "K" if pseudospectra.gap == 1 else f"K^{pseudospectra.gap:g}"
    ax.set(xlabel="Re z", ylabel="Im z", title=f"Smallest residual of any function, of {of}")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=8)
    return ax


def _draw_plane(ax: Axes) -> None:
    """Draw the unit circle and the axes of the complex plane."""
    turn = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1, label="unit circle: no decay")
    ax.axhline(0, color=GREY, linewidth=0.5)
    ax.axvline(0, color=GREY, linewidth=0.5)
    ax.set_aspect("equal")
    plain(ax)


def _draw_contours(pseudospectra: Pseudospectra, ax: Axes) -> None:
    grid = (pseudospectra.real, pseudospectra.imag, pseudospectra.residual)
    lines = ax.contour(*grid, levels=_LEVELS, colors=GREY, linewidths=0.9, linestyles=["-", "--", "-.", ":", ":"])
    ax.clabel(lines, fontsize=7, fmt="%g")


def _draw_intervals(spectrum: Spectrum, ax: Axes) -> None:
    """Draw a cross through the estimate of each trusted mode: along the ray, and along the turn."""
    intervals = spectrum.intervals
    if intervals is None:
        return
    for index in np.flatnonzero(spectrum.trusted[: len(intervals.decay)]):
        (low, high), (early, late) = intervals.decay[index], intervals.rotation[index]
        if not np.isfinite([low, high, early, late]).all():
            continue  # an unknown one
        radius, angle = np.abs(intervals.estimate[index]), (early + late) / 2
        if high - low < _WIDEST:
            ray = np.array([low, high]) * np.exp(1j * angle)
            ax.plot(ray.real, ray.imag, color="k", linewidth=0.9, zorder=2.5)
        if _CERTAIN < radius * (late - early) < _WIDEST and late - early < np.pi:
            arc = radius * np.exp(1j * np.linspace(early, late, 25))
            ax.plot(arc.real, arc.imag, color="k", linewidth=0.9, zorder=2.5)


def plot_residuals(spectrum: Spectrum, ax: Axes | None = None) -> Axes:
    """Draw the residual of each mode over |λ|, with the interval of those that have one, and the tolerance.

    Modes without a residual to speak of are left out, and counted in the title.
    """
    ax = own_axes(ax, 7.2, 4.2)
    judged = np.isfinite(spectrum.residuals)
    height = np.maximum(spectrum.residuals, FLOOR)
    bars = spectrum.intervals
    if bars is not None and spectrum.about_mean is not None:
        for index in np.flatnonzero(judged[: len(bars.residual)]):
            ends = np.maximum(bars.residual[index], FLOOR)
            # The interval is of the residual about the mean; where the other is the larger, it would miss its mark.
            if np.isfinite(ends).all() and spectrum.residuals[index] == spectrum.about_mean[index]:
                ax.plot([spectrum.decay[index]] * 2, ends, color=GREY, linewidth=1.2, zorder=2)
    for name, chosen, colour, marker, face in (
        ("trusted", spectrum.trusted, BLUE, "o", BLUE),
        ("not trusted", ~spectrum.trusted & judged, ORANGE, "s", "none"),
    ):
        look: dict[str, Json] = {"marker": marker, "facecolors": face, "edgecolors": colour}
        label = f"{name} ({int(chosen.sum())})"
        drawn = ax.scatter(spectrum.decay[chosen], height[chosen], s=36, label=label, zorder=3, **look)
        hovered(drawn, *(_told(spectrum, index) for index in np.flatnonzero(chosen)))
    ax.axhline(spectrum.tolerance, color="k", linestyle="--", linewidth=1, label=f"tolerance {spectrum.tolerance:g}")
    ax.axhline(1, color=GREY, linestyle=":", linewidth=1, label="predicts nothing")
    round_log_ticks(ax)
    ax.set_ylim(top=max(2.0, 1.5 * float(height[judged].max(initial=0))), bottom=min(0.1, float(height.min()) / 1.5))
    left_out = int((~judged).sum())
    note = f" ({left_out} without)" if left_out else ""
    ax.set(xlabel="|λ|, per operator step", ylabel="residual (log)")
    ax.set_title(f"Residuals on {spectrum.samples:,} rows{note}: lower is better")
    plain(ax)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax
