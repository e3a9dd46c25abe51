"""Figures of how faithful a surrogate is, by depth and at the output."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from koopman_interp.analysis.substitutes.fidelity import Fidelity
from koopman_interp.analysis.substitutes.token_floor import FLOOR as TOKEN_FLOOR
from koopman_interp.errors import InputError
from koopman_interp.files import Json
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import (
    AMBER,
    BLUE,
    FLOOR,
    GREEN,
    GREY,
    LONGEST,
    ORANGE,
    PURPLE,
    SKY,
    label_ends,
    log_ticks,
    mark_first,
    own_axes,
    plain,
    share,
    short,
    ticks_of_sites,
)

_PREDICTORS = {
    "surrogate": (BLUE, "o", "-"),
    "identity": (ORANGE, "s", "--"),
    "mean": (GREY, "^", ":"),
    "endpoint linear": (GREEN, "D", "-."),
    "affine chain": (PURPLE, "v", (0, (5, 1, 1, 1, 1, 1))),
    "K per depth": (SKY, "X", ":"),
    "kernel ridge": (AMBER, "P", ":"),
}


def plot_fidelity(fidelity: Fidelity, ax: Axes | None = None) -> Axes:
    """Draw the fraction of variance unexplained over depth: the surrogate beside identity, mean and a linear map."""
    ax = own_axes(ax, 7.2, 4.2)
    ends = {}
    for name in fidelity.depths[-1].fvu:
        colour, marker, style = _PREDICTORS.get(name, (PURPLE, "v", "-"))
        shares = [depth.fvu[name] for depth in fidelity.depths]
        known = [(index, max(share, FLOOR)) for index, share in enumerate(shares) if share is not None]
        if known:
            x, y = zip(*known, strict=True)
            width = 2.4 if name == "surrogate" else 1.4
            look: dict[str, Json] = {"color": colour, "marker": marker, "linestyle": style, "linewidth": width}
            (line,) = ax.plot(x, y, label=short(name, LONGEST), **look)
            hovered(line, *(f"{name}: FVU {shares[index]:.4f} at {fidelity.depths[index].site}" for index in x))
            ends[name] = (y[-1], colour)
    log_ticks(ax)
    ticks_of_sites(ax, [depth.site for depth in fidelity.depths])
    ax.set(
        ylabel="FVU: fraction of variance unexplained (log)",
        title=f"From {short(fidelity.depths[0].site)} onwards, {fidelity.judged_on}: lower is better",
    )
    plain(ax)
    label_ends(ax, ends)
    return ax


def plot_output_fidelity(fidelity: Fidelity, ax: Axes | None = None) -> Axes:
    """Draw agreement and accuracy at the model's output with each predictor substituted for the span."""
    ax = own_axes(ax, 7.2, 1.5 + 0.45 * len(fidelity.outputs))
    rows = range(len(fidelity.outputs))
    agreement = [100 * row.agreement for row in fidelity.outputs]
    ax.hlines(rows, 0, agreement, color="#dddddd", linewidth=5, zorder=1)
    (dots,) = ax.plot(agreement, rows, "o", color=BLUE, markersize=9, label="agrees with the model's prediction")
    hovered(dots, *(f"{row.name}: agrees on {share(row.agreement, 2)}" for row in fidelity.outputs))
    right = [math.nan if row.accuracy is None else 100 * row.accuracy for row in fidelity.outputs]
    if not all(map(math.isnan, right)):
        ax.plot(right, rows, "D", color=ORANGE, fillstyle="none", markersize=8, label="predicts the label")
    for row, agree, label in zip(rows, agreement, right, strict=True):
        text = f"{agree:.1f}" if math.isnan(label) else f"{agree:.1f} / {label:.1f}"
        ax.text(1.02, row, text, va="center", transform=ax.get_yaxis_transform())
    ax.set_yticks(list(rows), [short(row.name, LONGEST) for row in fidelity.outputs])
    ax.set(xlim=(-2, 102), ylim=(len(rows) - 0.5, -0.5), xlabel="share of rows, %")
    ax.set_title("At the model's output, each predictor substituted for the span")
    plain(ax)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -1.1 / len(rows)), ncols=2, frameon=False)
    return ax


def plot_span_fidelity(fidelity: Fidelity, ax: Axes | None = None) -> Axes:
    """Draw the divergence at the model's output with each stand-in substituted for the spans to the target.

    Raises:
        InputError: the fidelity is of one span alone.
    """
    spans = [span for span in fidelity.spans if span.target == fidelity.depths[-1].site]
    if not spans:
        raise InputError("This fidelity is of one span; ask for more with fidelity(…, spans='to_target').")
    ax = own_axes(ax, 7.2, 4.2)
    ends = {}
    for name in [row.name for row in fidelity.outputs[1:]]:
        colour, marker, style = _PREDICTORS.get(name, (PURPLE, "v", "-"))
        known = [(index, row.kl) for index, span in enumerate(spans) for row in span.outputs if row.name == name]
        if not known:
            continue
        if name == TOKEN_FLOOR:
            mark_first(ax, known[0][1], name)
            continue
        x, y = zip(*((index, max(kl, FLOOR)) for index, kl in known), strict=True)
        width = 2.4 if name == "surrogate" else 1.4
        look: dict[str, Json] = {"color": colour, "marker": marker, "linestyle": style, "linewidth": width}
        (line,) = ax.plot(x, y, label=short(name, LONGEST), **look)
        hovered(line, *(f"{name}: KL {kl:.4f} nats from {spans[index].source}" for index, kl in known))
        ends[name] = (y[-1], colour)
    log_ticks(ax)
    ticks_of_sites(ax, [span.source for span in spans])
    ax.set(
        xlabel="where the span starts",
        ylabel="KL to the model, nats (log)",
        title=f"Spans to {short(spans[-1].target)}, {fidelity.judged_on}: lower is better",
    )
    plain(ax)
    label_ends(ax, ends)
    return ax
