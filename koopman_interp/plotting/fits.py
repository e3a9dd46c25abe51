"""Figures of a fit."""

from __future__ import annotations

from matplotlib.axes import Axes

from koopman_interp.errors import InputError
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import BLUE, FLOOR, GREY, ORANGE, label_ends, log_ticks, own_axes, plain
from koopman_interp.surrogates.record import FitRecord


def plot_fit(record: FitRecord, ax: Axes | None = None) -> Axes:
    """Draw the held-out figures of a fit by step, and mark the step whose weights were kept.

    Raises:
        InputError: the record is of no fit.
    """
    history = record.history
    if not history:
        raise InputError("This record is of no fit, so there is nothing to draw.")
    ax = own_axes(ax, 7.2, 3.8)
    steps = [look.get("step", 0) for look in history]
    ends = {}
    for key, name, colour, style in (
        ("fvu", "FVU", BLUE, "o-"),
        ("stress", "isometry stress", ORANGE, "s--"),
    ):
        shares = [max(look[key], FLOOR) for look in history]
        (line,) = ax.plot(steps, shares, style, color=colour, markersize=5, label=name)
        hovered(line, *(f"{name} {look[key]:.4g} at step {step:,}" for look, step in zip(history, steps, strict=True)))
        ends[f"{name}\n{history[-1][key]:.3g}"] = (shares[-1], colour)
    if "step" in record.kept:
        kept = record.kept["step"]
        ax.axvline(kept, color=GREY, linestyle=":")
        ax.text(kept, 1.01, "kept", ha="center", va="bottom", fontsize=8, transform=ax.get_xaxis_transform())
    ax.margins(y=0.15)
    log_ticks(ax)
    ax.set(xlabel="step", ylabel="held-out share (log)")
    ax.set_title("Fit: held-out figures by step, lower is better", pad=16)
    if "step" not in history[-1]:
        ax.set_xticks([0], ["least squares: one solve"])
        ax.set_xlabel("")
    plain(ax)
    label_ends(ax, ends, gap=0.14)
    return ax
