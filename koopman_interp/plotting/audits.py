"""Figures of what an edit really did: side by side, by depth, and by step of relearning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy import ndarray

from koopman_interp.auditing.baselines import BASE, LEACE, MASK, MEAN_DIFFERENCE, RETRAINED
from koopman_interp.auditing.relearning import OPERATOR
from koopman_interp.auditing.result import Audit
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.errors import InputError
from koopman_interp.plotting.figures import new_figure
from koopman_interp.plotting.hovering import hovered
from koopman_interp.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    LINES,
    LONGEST,
    ORANGE,
    PURPLE,
    plain,
    short,
    ticks_of_sites,
)
from koopman_interp.tables import in_percent

_LOOKS = {
    BASE: ("k", "o", LINES[0]),
    MASK: (GREY, "v", LINES[3]),
    MEAN_DIFFERENCE: (BLUE, "s", LINES[1]),
    LEACE: (PURPLE, "^", LINES[2]),
    RETRAINED: (GREEN, "P", LINES[3]),
}
_EDIT = (ORANGE, "D", LINES[0])
_KERNELS = {"linear": "linear", "rbf": "RBF", "mlp": "MLP"}


def plot_audit(audit: Audit, axes: ndarray | None = None) -> ndarray:
    """Draw what each method of forgetting suppresses at the output, and what the representation still holds.

    One panel a measure, one line a method: the base model first, the edit last. A grey bar runs from the base model's
    value; a thin line is the 95 % interval. The axes are those of forget accuracy, retain accuracy, the divergence to
    the retrained reference if there is one, each probe that was made, and the 10-shot prototype.

    Raises:
        InputError: the axes given are not as many as the measures.
    """
    measures = [
        (name, title, colour, chance)
        for name, title, colour, chance in (
            ("forget_accuracy", "OUTPUT\nforget accuracy ↓", GREEN, None),
            ("retain_accuracy", "OUTPUT\nretain accuracy ↑", GREEN, None),
            ("retrained_js", "OUTPUT on forget rows\nJS to retrained ↓", GREEN, None),
            ("linear_probe", "STATES\nlinear probe finds it", ORANGE, 50.0),
            ("rbf_probe", "STATES\nRBF probe finds it", ORANGE, 50.0),
            ("mlp_probe", "STATES\nMLP probe finds it", ORANGE, 50.0),
            ("prototype", "STATES\n10-shot prototype finds it", ORANGE, None),
        )
        if all(getattr(row, name) is not None for row in audit.rows)
    ]
    if axes is None:
        figure = new_figure(2.3 * len(measures), 1.7 + 0.42 * len(audit.rows))
        axes = figure.subplots(1, len(measures), sharey=True)
    axes = np.asarray(axes).ravel()
    if len(axes) != len(measures):
        raise InputError(f"This audit is drawn on {len(measures)} axes, one a measure; got {len(axes)}.")
    for ax, (measure, title, colour, chance) in zip(axes, measures, strict=True):
        _dots(ax, audit.rows, measure, colour, chance)
        ax.set_title(title, fontsize=9.5)
    axes[0].set_yticks(range(len(audit.rows)), [short(row.name, LONGEST) for row in audit.rows])
    axes[0].set_ylim(len(audit.rows) - 0.5, -0.6)
    for label, row in zip(axes[0].get_yticklabels(), audit.rows, strict=True):
        label.set_fontweight("bold" if is_edit(audit.rows, row) else "normal")
    return axes


def plot_forgetting_by_depth(audit: Audit, axes: ndarray | None = None) -> ndarray:
    """Draw what is found of the classes at each site: one panel a probe and one for the 10-shot prototype.

    One line a method. Sites upstream of a patch hold the base model's own states, so the lines part where a method
    begins to act; the base model's markers are drawn large, so that they show around others. Chance is dashed.

    Raises:
        InputError: the audit did not read every depth, or the axes given are not one a panel.
    """
    rows = [row for row in audit.rows if row.depths and row.name != MASK]
    if not rows:
        raise InputError('There is nothing by depth in this audit. Make it with depths="all".')
    sites = [scores.site for scores in rows[0].depths]
    kernels = list(rows[0].depths[-1].probes)
    if axes is None:
        figure = new_figure(1.6 + 2.8 * (len(kernels) + 1), 3.8)
        axes = figure.subplots(1, len(kernels) + 1, sharey=True)
    axes = np.asarray(axes).ravel()
    if len(axes) != len(kernels) + 1:
        raise InputError(f"This audit is drawn on {len(kernels) + 1} axes, one a probe and one; got {len(axes)}.")
    for ax, kernel in zip(axes, [*kernels, None], strict=True):
        for row in rows:
            colour, marker, line = _LOOKS.get(row.name, _EDIT)
            shares = [one.prototypes[10] if kernel is None else one.probes[kernel] for one in row.depths]
            (line,) = ax.plot(
                [sites.index(one.site) for one in row.depths], [100 * share for share in shares], color=colour,
                marker=marker, linestyle=line, markersize=11 if row is rows[0] else 6, label=short(row.name, LONGEST),
                markerfacecolor=colour if row is rows[-1] else "white",
            )  # fmt: skip
            told = zip(shares, (one.site for one in row.depths), strict=True)
            hovered(line, *(f"{row.name}: {in_percent(share, 1)} at {site}" for share, site in told))
        if kernel is not None:
            ax.axhline(50, color="k", linestyle="--", linewidth=1)
            ax.text(0, 51, "at chance", fontsize=8, ha="left", va="bottom")
        title = "10-shot prototype" if kernel is None else f"{short(_KERNELS.get(kernel, kernel), LONGEST)} probe"
        ax.set_title(title, fontsize=10)
        plain(ax)
        ticks_of_sites(ax, sites)
    axes[0].set(ylim=(-3, 104), ylabel=f"{short(audit.classes, LONGEST)} found, %")
    axes[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def plot_relearning(audit: Audit, axes: ndarray | None = None) -> ndarray:
    """Draw how the classes come back under relearning, and what that costs the others: one line a method.

    The upper axes are the forget accuracy on held-out rows, the lower the retain accuracy. Steps are spread evenly,
    since they are usually chosen in growing gaps.

    Raises:
        InputError: the audit tried no relearning, or the axes given are not two.
    """
    curves = [(row.name, curve) for row in audit.rows for curve in row.relearning]
    if not curves:
        raise InputError("This audit tried no relearning. Make it with relearn=Relearning().")
    if axes is None:
        figure = new_figure(7.2, 5.4)
        axes = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    axes = np.asarray(axes).ravel()
    if len(axes) != 2:
        raise InputError(f"Relearning is drawn on two axes, forget and retain accuracy; got {len(axes)}.")
    base = audit.rows[0]
    for name, curve in curves:
        colour, marker, line = _LOOKS.get(name, _EDIT)
        own = name not in _LOOKS
        look = {"color": colour, "marker": marker, "linestyle": ":" if curve.moved == OPERATOR else line}
        look["markerfacecolor"] = colour if own and curve.moved != OPERATOR else "white"
        label = short(f"{name}, {curve.moved}" if own else name, LONGEST)
        for ax, shares in zip(axes, (curve.forget_accuracy, curve.retain_accuracy), strict=True):
            ax.plot([100 * share for share in shares], markersize=6, label=label, **look)
    for ax, level in zip(axes, (base.forget_accuracy, base.retain_accuracy), strict=True):
        ax.axhline(100 * level, color="k", linewidth=1, linestyle="--", label=BASE)
        plain(ax)
    steps = curves[0][1].steps
    axes[1].set_xticks(range(len(steps)), [str(step) for step in steps])
    axes[1].set_xlabel("steps of fine-tuning, the method left in place")
    axes[0].set(ylabel="forget accuracy ↓, %", ylim=(-4, 104))
    axes[1].set_ylabel("retain accuracy ↑, %")
    axes[0].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def _dots(ax: Axes, rows: Sequence[AuditRow], measure: str, colour: str, chance: float | None) -> None:
    """Draw one measure of an audit: a dot a row, with its number at the right; an edit's is filled and bold."""
    values = [100 * getattr(row, measure) for row in rows]
    if chance is not None:
        ax.axvline(chance, color="k", linestyle="--", linewidth=1, zorder=1)
        ax.text(chance, -0.57, " at chance", fontsize=7.5, va="top", ha="left")
    ax.hlines(range(len(rows)), values[0], values, color="#cccccc", linewidth=4, zorder=1)
    for index, row in enumerate(rows):
        if (ends := row.intervals.get(measure)) is not None:
            ax.hlines(index, 100 * ends[0], 100 * ends[1], color=colour, linewidth=1.2, zorder=2)
    for edits, marker, face in ((False, "o", "white"), (True, "D", colour)):
        chosen = [index for index, row in enumerate(rows) if is_edit(rows, row) == edits]
        at = [values[index] for index in chosen]
        (dots,) = ax.plot(at, chosen, marker, color=colour, markerfacecolor=face, markersize=7.5)
        hovered(dots, *(f"{rows[index].name}: {values[index]:.1f} %" for index in chosen))
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        text = ax.text(1.04, index, f"{value:.1f}", ha="left", va="center", transform=ax.get_yaxis_transform())
        text.set(fontsize=9, fontweight="bold" if is_edit(rows, row) else "normal")
    ax.set(xlim=(-6, 106), xticks=[0, 50, 100])
    ax.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    plain(ax)


def is_edit(rows: Sequence[AuditRow], row: AuditRow) -> bool:
    """Whether a row is of an edit: the last is, and so is each that has the name of no baseline."""
    return row is rows[-1] or row.name not in _LOOKS
