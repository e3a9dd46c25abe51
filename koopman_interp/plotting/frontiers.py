"""Figures of what forgetting costs."""

from __future__ import annotations

from matplotlib.axes import Axes

from koopman_interp.forgetting.frontier import Frontier
from koopman_interp.plotting.style import BLUE, GREEN, GREY, LINES, LONGEST, ORANGE, PURPLE, own_axes, plain, short

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)


def plot_frontier(
    frontier: Frontier,
    ax: Axes | None = None,
    *,
    wanted: tuple[float, float] | None = None,
    dearest: float | None = None,
) -> Axes:
    """Draw each method's curve over strengths: cost to the right, what is left upwards; the lower left corner is best.

    Args:
        frontier: the curves.
        ax: axes to draw on; None makes a figure.
        wanted: the cost and what may be left, shaded as a box.
        dearest: cost at which the axis ends; points beyond are not drawn.

    Returns:
        The axes.
    """
    ax = own_axes(ax, 7.5, 4.8)
    costs = [0.0, *(point.cost for point in frontier.points if dearest is None or point.cost <= dearest)]
    left, right = min(costs), max([*costs, *(wanted or ())[:1]])
    margin = 0.05 * (right - left) or 1.0
    ax.axhline(frontier.host, color="k", linewidth=0.8, linestyle=":")
    ax.text(right + margin, frontier.host, "base model ", ha="right", va="bottom")
    if wanted is not None:
        ax.fill_between([left - margin, wanted[0]], 0, wanted[1], color="#dddddd", zorder=0, linewidth=0)
        ax.annotate("wanted", wanted, (-3, -3), textcoords="offset points", ha="right", va="top")
    for index, method in enumerate(frontier.methods):
        points = [(0.0, frontier.host), *((p.cost, p.left) for p in frontier.curve(method) if p.cost <= right)]
        ax.plot(
            *zip(*points, strict=True),
            marker=_MARKS[index % len(_MARKS)],
            linestyle=LINES[index % len(LINES)],
            color=_COLOURS[index % len(_COLOURS)],
            markersize=5,
            label=short(method, LONGEST),
        )
    ax.set(xlabel=short(frontier.cost, LONGEST), ylabel=short(frontier.left, LONGEST))
    ax.set(ylim=(0, None), xlim=(left - margin, right + margin))
    # Below the base model's line, which the legend would hide.
    ax.legend(fontsize=8.5, frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.92))
    plain(ax)
    return ax
