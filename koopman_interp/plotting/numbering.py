"""Numbers beside marks, placed so that they cover neither each other nor a mark. A hundred marks cost milliseconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy import ndarray

_SIZE = 7.5
_DISTANCES = (8.0, 11.0, 15.0, 20.0, 27.0, 36.0, 48.0)
"""How far from its mark a number may stand, in points."""
_BESIDE = 16.0
"""Up to here it is plain whose number it is, in points."""
_ANGLES = np.arange(16) * (2 * np.pi / 16) + np.pi / 4
_MARK = 4.0
"""Radius of a mark, in points."""


def number_marks(ax: Axes, points: ndarray, numbers: Sequence[str], *, clear: ndarray, bold: Sequence[bool]) -> None:
    """Write a number beside each of some marks; the layout of the figure is settled for that.

    Args:
        ax: where; with limits that hold.
        points: `[mark, 2]`, in the coordinates of the axes.
        numbers: one a mark.
        clear: `[point, 2]`, all marks that no number may cover.
        bold: one a mark.
    """
    ax.figure.figure.draw_without_rendering()
    scale = 72 / ax.figure.figure.dpi
    at, marks = (ax.transData.transform(each) * scale for each in (points, clear))
    boxes = np.empty((0, 4))
    for place, point, number, weight in zip(points, at, numbers, bold, strict=True):
        half = np.array([0.32 * _SIZE * len(number) + 0.5, 0.5 * _SIZE])
        shift = _free_place(point, half, marks, boxes)
        boxes = np.vstack([boxes, np.r_[point + shift - half, point + shift + half]])
        far = np.hypot(*shift) > _BESIDE
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "black", "shrinkA": 0, "shrinkB": 3} if far else None
        ax.annotate(
            number, tuple(place), tuple(shift), textcoords="offset points", ha="center", va="center", fontsize=_SIZE,
            fontweight="bold" if weight else "normal", arrowprops=line, zorder=5, annotation_clip=True,
        )  # fmt: skip


def _free_place(point: ndarray, half: ndarray, marks: ndarray, boxes: ndarray) -> ndarray:
    """The nearest shift at which a box of this half size covers no mark and no other box, or covers the fewest."""
    best, fewest = np.zeros(2), np.inf
    for distance in _DISTANCES:
        for angle in _ANGLES:
            shift = distance * np.array([np.cos(angle), np.sin(angle)]) + half * np.sign(
                np.round([np.cos(angle), np.sin(angle)], 6)
            ) * [0.6, 0.2]
            middle = point + shift
            over_marks = (np.abs(marks - middle) < half + _MARK).all(1).sum()
            apart = (boxes[:, :2] > middle + half).any(1) | (boxes[:, 2:] < middle - half).any(1)
            covered = int(over_marks + 3 * (~apart).sum())
            if covered < fewest:
                best, fewest = shift, covered
            if not covered:
                return shift
    return best
