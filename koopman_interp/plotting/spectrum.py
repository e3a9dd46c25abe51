"""Figures of a spectrum."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex

from koopman_interp.analysis.spectrum import Spectrum
from koopman_interp.plotting.style import DARK_TO_LIGHT, GREY, own_axes, plain


def plot_spectrum(spectrum: Spectrum, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues in the complex plane, with the unit circle.

    Trusted modes are filled and spurious ones hollow; the colour is the residual, where 1 means that the mode
    predicts nothing.
    """
    ax = own_axes(ax, 6.6, 5.2)
    turn = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1, label="unit circle: no decay")
    colours = ScalarMappable(Normalize(0, 1), DARK_TO_LIGHT)
    trusted, values = spectrum.trusted, spectrum.eigenvalues
    shades = np.array([to_hex(shade) for shade in colours.to_rgba(spectrum.residuals)])
    for name, chosen in (("spurious: residual >", ~trusted), ("trusted: residual ≤", trusted)):
        edges = shades[chosen].tolist()
        faces = edges if chosen is trusted else "none"
        label = f"{name} {spectrum.tolerance:g} ({int(chosen.sum())})"
        at = (values.real[chosen], values.imag[chosen])
        ax.scatter(*at, s=64, facecolors=faces, edgecolors=edges, linewidths=1.8, label=label, zorder=3)
    place = ax.inset_axes((1.05, 0, 0.045, 1))
    bar = ax.figure.colorbar(colours, cax=place, extend="max", label="residual (1: predicts nothing)")
    if spectrum.tolerance < 1:
        bar.ax.axhline(spectrum.tolerance, color="w", linewidth=2)
    ax.axhline(0, color=GREY, linewidth=0.5)
    ax.axvline(0, color=GREY, linewidth=0.5)
    ax.set_aspect("equal")
    ax.set(xlabel="Re λ", ylabel="Im λ", title="Eigenvalues of K, per operator step")
    plain(ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, frameon=False, fontsize=8)
    return ax
