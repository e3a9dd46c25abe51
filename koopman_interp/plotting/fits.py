"""Figures of a fit."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from koopman_interp.errors import InputError
from koopman_interp.plotting.style import BLUE, FLOOR, GREY, ORANGE, label_ends, own_axes, plain
from koopman_interp.surrogates.record import FitRecord, Look


def plot_fit(record: FitRecord | Sequence[Look], ax: Axes | None = None) -> Axes:
    """Draw the held-out figures of a fit by step.

    Args:
        record: of the fit, or its history.
        ax: to draw on; None makes a figure.

    Returns:
        The axes.

    Raises:
        InputError: the history is empty.
    """
    history = record.history if isinstance(record, FitRecord) else record
    if not history:
        raise InputError("This fit kept no history, so there is nothing to draw.")
    ax = own_axes(ax, 7.2, 3.8)
    steps = [entry.get("step", 0) for entry in history]
    ends = {}
    for key, name, colour, style in (
        ("fvu", "FVU", BLUE, "o-"),
        ("stress", "isometry stress", ORANGE, "s--"),
    ):
        shares = [max(entry[key], FLOOR) for entry in history]
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
    label_ends(ax, ends, gap=0.14)
    return ax
