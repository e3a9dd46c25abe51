"""What all figures share: colours, line styles, axes and their manners.

Colours are told apart by colour-blind readers, and never carry anything alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator
from numpy import ndarray

from koopman_interp.files import Json
from koopman_interp.plotting.figures import new_figure
from koopman_interp.tables import readable

# Okabe and Ito's palette, whose colours are told apart by colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676"
SKY, AMBER = "#56B4E9", "#E69F00"
LINES = ("-", "--", "-.", ":")

FLOOR = 1e-8
"""Shares below this are drawn here, since a logarithmic axis has no zero."""
MOST_DEPTHS = 8
"""Lines or panels of a figure; of more depths a part is drawn, both ends included."""
LONGEST = 40
"""Characters of a method's or a class's name; of longer ones the end is drawn."""
_MOST_TICKS = 14


def own_axes(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the axes given, or axes of a figure of their own, sizes in inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def plain(ax: Axes) -> None:
    """Leave axes with a faint grid and no frame above and to the right."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#e6e6e6", linewidth=0.7)
    ax.set_axisbelow(True)


def thinned(count: int, most: int) -> list[int]:
    """Indices spread evenly over a range, both ends included."""
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})


def of_all(shown: Sequence[int], whole: Sequence[object] | ndarray, what: str) -> str:
    """Say how many of all are shown, where it is not all."""
    return "" if len(shown) == len(whole) else f" ({len(shown)} of {len(whole)} {what})"


def plain_text(text: str) -> str:
    """Keep a text from being read as mathematics, left out of legends, or holding what no font can draw."""
    drawn = readable(text).replace("$", r"\$")
    return f" {drawn}" if drawn.startswith("_") else drawn  # legends pass over what starts so


def short(name: str, most: int = 22) -> str:
    """Cut a name to its end, which tells sites apart, and keep it plain text."""
    whole = readable(name)
    return plain_text(whole if len(whole) <= most else f"…{whole[1 - most :]}")


def named_class(label: int, names: Mapping[int, str] | None) -> str:
    """Name a class: by its name where there is one, and by its number."""
    name = None if names is None else names.get(label)
    return f"class {label}" if name is None else f"{name} ({label})"


def share(part: float, digits: int = 0) -> str:
    """Show a share in per cent, as tables and texts do."""
    return f"{100 * part:.{digits}f} %"


def shade_cells(ax: Axes, opacity: ndarray) -> None:
    """Shade a cell a number, `[row, column]` counted from below, by opacity: text is read on it, on any paper."""
    rows, columns = opacity.shape
    for (row, column), each in np.ndenumerate(opacity):
        look: dict[str, Json] = {"facecolor": BLUE, "alpha": float(np.clip(each, 0, 1)), "linewidth": 0}
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5))


def ticks_of_sites(ax: Axes, sites: Sequence[str]) -> None:
    """Name the sites along the horizontal axis."""
    shown = thinned(len(sites), _MOST_TICKS)
    ax.set_xticks(shown, [short(sites[index]) for index in shown], rotation=35, ha="right", rotation_mode="anchor")
    ax.set_xlabel("site, in order of depth")


def log_ticks(ax: Axes) -> None:
    """Make the vertical axis logarithmic, its powers of ten written as plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")


def round_log_ticks(ax: Axes) -> None:
    """Write a few round numbers along the logarithmic vertical axis of what is drawn, so that labels do not touch."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())


def mark_first(ax: Axes, value: float, name: str) -> None:
    """Mark a level that the first place alone has by a short line, with its name below."""
    level = max(value, FLOOR)
    ax.plot([-0.15, 0.15], [level, level], color="black", linewidth=1.6, label=name)
    # Below the lines, which fall from here on.
    line = {"arrowstyle": "-", "linewidth": 0.7}
    ax.annotate(
        plain_text(name), (-0.12, level), xytext=(0, -32), textcoords="offset points", va="top", arrowprops=line
    )


def label_ends(ax: Axes, ends: Mapping[str, tuple[float, str]], *, gap: float = 0.07) -> None:
    """Write each line's name beside its right end, moved apart where two would touch, with a stroke of its colour."""
    ax.margins(x=0.03)
    low, high = (math.log(limit) for limit in ax.get_ylim())
    ax.set_ylim(ax.get_ylim())
    lines = sorted(ends.items(), key=lambda end: end[1][0])
    # Below the title, which may be wider than the axes.
    places, floor, ceiling = [], -math.inf, 0.96
    for _, (value, _) in lines:
        places.append(max((math.log(value) - low) / (high - low), floor))
        floor = places[-1] + gap
    # Those that were pushed past the top, into the title, push the ones below them back.
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - gap
    stroke: dict[str, Json] = {"arrowstyle": "-", "linewidth": 1.4, "shrinkA": 2, "shrinkB": 0, "relpos": (0, 0.5)}
    for at, (name, (value, colour)) in zip(places, lines, strict=True):
        ax.annotate(
            plain_text(name), (0.985, value), (1.05, at), xycoords=ax.get_yaxis_transform(),
            textcoords="axes fraction", va="center", annotation_clip=False,
            arrowprops={**stroke, "color": colour},
        )  # fmt: skip
