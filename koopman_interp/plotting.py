"""Figures of spectra, topologies, fidelities, fits and audits; those of states are in `trajectory_plots`.

Each `plot_…` takes a value and the axes to draw on, and returns the axes. Without axes it makes a
`matplotlib.figure.Figure` of its own (`axes.figure`), so no pyplot state, backend or setting changes. All
figures can be read without colour: by marker, line style and label. Each costs under a second, since long
lists of depths, classes and rows are thinned. Knows nothing of models or of the report.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy import ndarray

from koopman_interp.analysis.fidelity import Fidelity
from koopman_interp.analysis.spectrum import Spectrum
from koopman_interp.analysis.topology import Topology
from koopman_interp.auditing import SHOTS, Audit, AuditRow
from koopman_interp.errors import InputError
from koopman_interp.files import replacing

# Okabe and Ito's palette, whose colours are told apart by colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
# Viridis without its yellow, which white paper swallows.
DARK_TO_LIGHT = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)))
_PREDICTORS = {
    "surrogate": (BLUE, "o", "-"),
    "identity": (ORANGE, "s", "--"),
    "mean": (GREY, "^", ":"),
    "endpoint linear": (GREEN, "D", "-."),
}
_LINES = ("-", "--", "-.", ":")

_FLOOR = 1e-8
"""Shares below this are drawn here, since a logarithmic axis has no zero."""
MOST_DEPTHS = 8
"""Lines or panels of a figure; of more depths a part is drawn, both ends included."""
_MOST_TICKS = 14
_SALT = "koopman-interp"


def plot_spectrum(spectrum: Spectrum, ax: Axes | None = None) -> Axes:
    """Draw the eigenvalues in the complex plane, with the unit circle.

    Trusted modes are filled and spurious ones hollow; the colour is the residual, where 1 means that the mode
    predicts nothing.
    """
    ax = _axes(ax, 6.6, 5.2)
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


def plot_topology(topology: Topology, dimension: int = 0, ax: Axes | None = None) -> Axes:
    """Draw Betti curves over scale, one line a depth, each carrying its depth's number.

    Raises:
        InputError: the topology was not computed up to this dimension.
    """
    highest = min(len(diagrams) for diagrams in topology.diagrams) - 1
    if not 0 <= dimension <= highest:
        raise InputError(f"The topology has the dimensions 0 to {highest}; got {dimension}.")
    ax = _axes(ax, 7.2, 4.2)
    scales = np.linspace(0, topology.threshold, 301)
    curves = np.array([[cloud[dimension] for cloud in topology.betti(float(scale))] for scale in scales]).T
    settled = np.flatnonzero((curves != curves[:, -1:]).any(axis=0))
    last = float(scales[settled[-1]]) if len(settled) else topology.threshold
    shown = thinned(len(curves), MOST_DEPTHS)
    places = _clear_places(np.log(curves[shown]) if dimension == 0 else curves[shown])
    for order, cloud in enumerate(shown):
        colour = DARK_TO_LIGHT(order / max(1, len(shown) - 1))
        style = _LINES[order % len(_LINES)]
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
        title=f"Betti-{dimension} curves, {topology.points} points a depth{_of(shown, curves, 'depths')}",
    )
    plain(ax)
    ax.legend(title="depth", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handlelength=3)
    return ax


def plot_fidelity(fidelity: Fidelity, ax: Axes | None = None) -> Axes:
    """Draw the unexplained variance over depth: the surrogate beside identity, mean and a linear map."""
    ax = _axes(ax, 7.2, 4.2)
    ends = {}
    for name in fidelity.depths[-1].unexplained:
        colour, marker, style = _PREDICTORS.get(name, (PURPLE, "v", "-"))
        shares = [depth.unexplained[name] for depth in fidelity.depths]
        known = [(index, max(share, _FLOOR)) for index, share in enumerate(shares) if share is not None]
        if known:
            x, y = zip(*known, strict=True)
            width = 2.4 if name == "surrogate" else 1.4
            ax.plot(x, y, color=colour, marker=marker, linestyle=style, linewidth=width, label=name)
            ends[name] = (y[-1], colour)
    ax.set_yscale("log")
    _ticks_of_sites(ax, [depth.site for depth in fidelity.depths])
    ax.set(
        ylabel="unexplained share of variance (log)",
        title=f"From {fidelity.depths[0].site} onwards, {fidelity.rows:,} held-out rows: lower is better",
    )
    plain(ax)
    _label_ends(ax, ends)
    return ax


def plot_output_fidelity(fidelity: Fidelity, ax: Axes | None = None) -> Axes:
    """Draw agreement and accuracy at the host's output with each predictor in place of the span."""
    ax = _axes(ax, 7.2, 1.5 + 0.45 * len(fidelity.outputs))
    rows = range(len(fidelity.outputs))
    agreement = [100 * row.agreement for row in fidelity.outputs]
    ax.hlines(rows, 0, agreement, color="#dddddd", linewidth=5, zorder=1)
    ax.plot(agreement, rows, "o", color=BLUE, markersize=9, label="agrees with the host's prediction")
    right = [math.nan if row.accuracy is None else 100 * row.accuracy for row in fidelity.outputs]
    if not all(map(math.isnan, right)):
        ax.plot(right, rows, "D", color=ORANGE, fillstyle="none", markersize=8, label="predicts the label")
    for row, agree, label in zip(rows, agreement, right, strict=True):
        text = f"{agree:.1f}" if math.isnan(label) else f"{agree:.1f} / {label:.1f}"
        ax.text(1.02, row, text, va="center", transform=ax.get_yaxis_transform())
    ax.set_yticks(list(rows), [row.name for row in fidelity.outputs])
    ax.set(xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5), xlabel="% of held-out rows")
    ax.set_title("At the host's output, with each predictor in place of the span")
    plain(ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -1.1 / len(rows)), ncols=2, frameon=False)
    return ax


def plot_fit(history: Sequence[Mapping[str, int | float]], ax: Axes | None = None) -> Axes:
    """Draw the held-out figures of a fit by step.

    Raises:
        InputError: the history is empty.
    """
    if not history:
        raise InputError("This fit kept no history, so there is nothing to draw.")
    ax = _axes(ax, 7.2, 3.8)
    steps = [entry.get("step", 0) for entry in history]
    ends = {}
    for key, name, colour, style in (
        ("unexplained", "unexplained variance", BLUE, "o-"),
        ("stress", "isometry stress", ORANGE, "s--"),
    ):
        shares = [max(entry[key], _FLOOR) for entry in history]
        ax.plot(steps, shares, style, color=colour, markersize=5, label=name)
        ends[f"{name}\n{history[-1][key]:.3g}"] = (shares[-1], colour)
    if all("loss" in entry for entry in history):
        kept = min(history, key=lambda entry: entry["loss"])
        ax.axvline(kept["step"], color=GREY, linestyle=":")
        above = ax.get_xaxis_transform()
        ax.text(kept["step"], 1.01, "kept", ha="center", va="bottom", fontsize=8, transform=above)
    ax.margins(y=0.15)
    ax.set_yscale("log")
    ax.set(xlabel="step", ylabel="held-out share (log)")
    ax.set_title("Fit: held-out figures by step, lower is better", pad=16)
    if "step" not in history[-1]:
        ax.set_xticks([0], ["least squares: one solve"])
        ax.set_xlabel("")
    plain(ax)
    _label_ends(ax, ends, gap=0.14)
    return ax


def plot_audit(audit: Audit, axes: ndarray | None = None) -> ndarray:
    """Draw what each way of forgetting suppresses at the output, and what the representation still holds.

    One panel a measure, one line a way: the host first, the edit last. A grey bar runs from the host's
    value. The five axes are those of forgotten, retained, linear probe, RBF probe and prototype.

    Raises:
        InputError: the axes given are not five.
    """
    if axes is None:
        figure = Figure(figsize=(11, 1.7 + 0.42 * len(audit.rows)), layout="constrained")
        axes = figure.subplots(1, 5, sharey=True)
    axes = np.asarray(axes).ravel()
    if len(axes) != 5:
        raise InputError(f"An audit is drawn on five axes, one a measure; got {len(axes)}.")
    measures = (
        ("forgotten", f"OUTPUT\nclass {audit.label} still predicted", GREEN, None),
        ("retained", "OUTPUT\nother classes right", GREEN, None),
        ("linear_probe", "REPRESENTATION\nlinear probe finds it", ORANGE, 50.0),
        ("rbf_probe", "REPRESENTATION\nRBF probe finds it", ORANGE, 50.0),
        ("prototype", f"REPRESENTATION\n{SHOTS}-shot prototype finds it", ORANGE, None),
    )
    for ax, (measure, title, colour, chance) in zip(axes, measures, strict=True):
        _dots(ax, audit.rows, measure, colour, chance)
        ax.set_title(title, fontsize=9.5)
    axes[0].set_yticks(range(len(audit.rows)), [row.name for row in audit.rows])
    axes[0].set_ylim(len(audit.rows) - 0.5, -0.6)
    axes[0].get_yticklabels()[-1].set_fontweight("bold")
    return axes


def save_figure(drawn: Figure | Axes | ndarray, folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Write a figure as `name.png` (150 dpi) and `name.svg` (text as outlines), the same bytes each time.

    Args:
        drawn: the figure, or axes of it.
        folder: where to write; made if it is missing.
        name: of the files, without a suffix.

    Returns:
        The two paths.

    Raises:
        InputError: there are no axes.
    """
    if isinstance(drawn, ndarray) and not drawn.size:
        raise InputError("There are no axes, so there is no figure to save.")
    one: Figure | Axes = drawn.flat[0] if isinstance(drawn, ndarray) else drawn
    whole = one if isinstance(one, Figure) else one.figure.figure
    png, svg = (Path(folder) / f"{name}.{suffix}" for suffix in ("png", "svg"))
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "path"}):
        with replacing(png) as temporary:
            whole.savefig(temporary, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        with replacing(svg) as temporary:
            known = {"Date": None, "Creator": None}
            whole.savefig(temporary, format="svg", facecolor="white", metadata=known)
    return png, svg


def _dots(ax: Axes, rows: Sequence[AuditRow], measure: str, colour: str, chance: float | None) -> None:
    """Draw one measure of an audit: a dot a row, with its number; the edit's is filled and bold."""
    values = [100 * getattr(row, measure) for row in rows]
    last = len(rows) - 1
    if chance is not None:
        ax.axvline(chance, color="k", linestyle="--", linewidth=1, zorder=1)
        ax.text(chance, -0.57, " chance", fontsize=7.5, va="top", ha="left")
    ax.hlines(range(len(rows)), values[0], values, color="#cccccc", linewidth=4, zorder=1)
    ax.plot(values[:-1], range(last), "o", color=colour, markerfacecolor="white", markersize=7)
    ax.plot(values[-1], last, "D", color=colour, markersize=8)
    box = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for index, value in enumerate(values):
        side = ("right", -5) if value > 60 else ("left", 5)
        weight = "bold" if index == last else "normal"
        text = ax.text(value + side[1], index, f"{value:.1f}", ha=side[0], va="center", bbox=box)
        text.set(fontsize=9, fontweight=weight)
    ax.set(xlim=(-6, 106), xticks=[0, 50, 100])
    ax.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    plain(ax)


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


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return Figure(figsize=(width, height), layout="constrained").add_subplot() if ax is None else ax


def plain(ax: Axes) -> None:
    """Leave axes with a faint grid and no frame above and to the right."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)


def thinned(count: int, most: int) -> list[int]:
    """Indices spread evenly over a range, both ends included."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})


def _of(shown: Sequence[int], whole: Sequence[object] | ndarray, what: str) -> str:
    return "" if len(shown) == len(whole) else f" ({len(shown)} of {len(whole)} {what})"


def short(name: str, most: int = 22) -> str:
    """Cut a name to its end, which tells sites apart."""
    return name if len(name) <= most else f"…{name[1 - most :]}"


def _ticks_of_sites(ax: Axes, sites: Sequence[str]) -> None:
    shown = thinned(len(sites), _MOST_TICKS)
    ax.set_xticks(shown, [short(sites[index]) for index in shown], rotation=35, ha="right", rotation_mode="anchor")
    ax.set_xlabel("site, in order of depth")


def _label_ends(ax: Axes, ends: Mapping[str, tuple[float, str]], *, gap: float = 0.07) -> None:
    """Write each line's name beside its right end, moved apart where two would touch."""
    ax.margins(x=0.03)
    low, high = (math.log(limit) for limit in ax.get_ylim())
    ax.set_ylim(ax.get_ylim())
    at = -math.inf
    for name, (value, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
        at = max((math.log(value) - low) / (high - low), at + gap)
        ax.text(1.015, at, name, color=colour, va="center", fontweight="bold", transform=ax.transAxes)
