"""Figures of what an edit really did."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy import ndarray

from koopman_interp.auditing import SHOTS, Audit, AuditRow
from koopman_interp.errors import InputError
from koopman_interp.plotting.style import GREEN, ORANGE, plain


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
