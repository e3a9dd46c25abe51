"""Writing figures as PNG and SVG."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray

from koopman_interp.errors import InputError
from koopman_interp.files import replacing
from koopman_interp.plotting.hovering import name_hovered, write_titles

_SALT = "koopman-interp"
"""Of the ids in an SVG, which matplotlib draws at random otherwise."""


def save_figure(drawn: Figure | Axes | ndarray, folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Write a figure as `name.png` (150 dpi) and `name.svg` (text as outlines), the same bytes each time.

    In the SVG a pointer that rests on a mark is told what it is.

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
    first: Figure | Axes = drawn.flat[0] if isinstance(drawn, ndarray) else drawn
    whole = first if isinstance(first, Figure) else first.figure.figure
    texts = name_hovered(whole)
    png, svg = (Path(folder) / f"{name}.{suffix}" for suffix in ("png", "svg"))
    with matplotlib.rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "path"}):
        with replacing(png) as temporary:
            whole.savefig(temporary, format="png", dpi=150, facecolor="white", metadata={"Software": None})
        with replacing(svg) as temporary:
            known = {"Date": None, "Creator": None}
            whole.savefig(temporary, format="svg", facecolor="white", metadata=known)
            write_titles(temporary, texts)
    return png, svg
