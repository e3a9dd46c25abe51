"""Draw the pictures of the pages, from what docs/index.md computes: python docs/pictures.py"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from examples import ROOT, run
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import koopman_interp as ki
from koopman_interp import plotting
from koopman_interp.plotting.figures import new_figure
from koopman_interp.plotting.style import BLUE, GREEN, GREY, ORANGE
from koopman_interp.testing import yin_yang

FOLDER = ROOT / "docs" / "figures"
_CLASSES = (("yin", "#332288", "o"), ("yang", "#CC6677", "^"), ("dots", "#117733", "s"))
_INK = "#222222"


def keep(drawn: Any, name: str) -> None:
    """Save a picture in the format that is smaller: drawings as SVG, clouds of points as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        smaller = min(plotting.save_figure(drawn, folder, name), key=lambda path: path.stat().st_size)
        for old in FOLDER.glob(f"{name}.*"):
            old.unlink()
        (FOLDER / smaller.name).write_bytes(smaller.read_bytes())


@torch.no_grad()
def erased(found: Mapping[str, Any]) -> Figure:
    """Draw a model's answers before, under and after the patch that erases the dots."""
    model, patch = found["model"], found["patch"]
    points, _ = yin_yang(6000, seed=2)
    before = model(points).argmax(1)
    with patch:
        under = model(points).argmax(1)
    after = model(points).argmax(1)
    figure = new_figure(6.6, 2.8)
    titles = ("the model", "under the patch", "after the patch")
    for ax, title, answers in zip(figure.subplots(1, 3), titles, (before, under, after), strict=True):
        for label, (name, colour, marker) in enumerate(_CLASSES):
            of_it = points[answers == label]
            look = {"s": 3, "color": colour, "marker": marker, "linewidths": 0, "label": name}
            ax.scatter(of_it[:, 0], of_it[:, 1], **look)
        ax.set(title=title, aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, markerscale=2.5, frameon=False, title="answer")
    return figure


def _blank(width: float, height: float) -> Axes:
    """Make axes to draw boxes on, in units of a tenth of an inch."""
    ax = new_figure(width, height).add_subplot()
    ax.set(xlim=(0, 10 * width), ylim=(0, 10 * height), aspect="equal")
    ax.axis("off")
    return ax


def _box(ax: Axes, x: float, y: float, text: str, *, width: float = 15, colour: str = _INK) -> None:
    """Draw a box about a centre."""
    outline = FancyBboxPatch((x - width / 2, y - 2.6), width, 5.2, boxstyle="round,pad=0.2,rounding_size=1")
    outline.set(facecolor="white", edgecolor=colour, linewidth=1.6)
    ax.add_patch(outline)
    ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=10)


def _arrow(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", *, colour: str = GREY
) -> None:
    """Draw an arrow with a word above it, or beside it where it is upright."""
    look = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.4, "color": colour}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    upright = abs(end[0] - start[0]) < abs(end[1] - start[1])
    place = {"ha": "left", "va": "center"} if upright else {"ha": "center", "va": "bottom"}
    ax.text(x + upright, y + (not upright) * 0.6, text, color=_INK, fontsize=9, style="italic", **place)


def way() -> Axes:
    """Draw the way from a model to a judged edit."""
    ax = _blank(8.6, 3.0)
    steps = (("model", 8), ("Trajectories", 31), ("KoopmanAutoencoder", 58))
    for name, x in steps:
        _box(ax, x, 24, name, width=20 if x > 50 else 15)
    _arrow(ax, (15.8, 24), (23.2, 24), "observe")
    _arrow(ax, (38.8, 24), (47.6, 24), "fit")
    _arrow(ax, (68.4, 24), (73.2, 24), "read")
    ax.text(73.8, 24, "spectrum\ntopology\nfidelity\nlens", ha="left", va="center", fontsize=9)
    _arrow(ax, (58, 21), (58, 9.2), "edit K", colour=ORANGE)
    _box(ax, 58, 6, "OperatorEdit", colour=ORANGE)
    _arrow(ax, (50.2, 6), (38.8, 6), "patched", colour=ORANGE)
    _box(ax, 31, 6, "Patch", colour=ORANGE)
    _arrow(ax, (23.2, 6), (8, 21), colour=ORANGE)
    ax.text(4, 10.6, "written back\nwhere it was read", fontsize=9, style="italic", color=_INK, va="center")
    _arrow(ax, (31, 8.9), (31, 15.2), colour=GREEN)
    ax.text(31, 15.8, "audit", ha="center", va="bottom", fontsize=10, color=GREEN)
    return ax


def square() -> Axes:
    """Draw states above and observables below, a step of the network and a step of K."""
    ax = _blank(7.4, 3.0)
    places = (10, 37, 64)
    for depth, x in enumerate(places):
        _box(ax, x, 24, f"state $x_{depth}$", width=12, colour=BLUE)
        _box(ax, x, 6, f"observables $z_{depth}$", width=15, colour=ORANGE)
    for left, right in pairwise(places):
        _arrow(ax, (left + 6.6, 24), (right - 6.6, 24), "a block", colour=BLUE)
        _arrow(ax, (left + 8.1, 6), (right - 8.1, 6), "K", colour=ORANGE)
    _arrow(ax, (10, 21), (10, 9.2), "encoder E")
    _arrow(ax, (64, 9.2), (64, 21), "decoder D")
    return ax


def modes_of_patching() -> Axes:
    """Draw what delta and replace write at the target."""
    ax = _blank(8.2, 3.2)
    for y, name, colour in ((27, "delta", GREEN), (10, "replace", ORANGE)):
        ax.text(1, y, name, fontsize=11, fontweight="bold", color=colour, va="center")
        _box(ax, 20, y, "state at source", width=15, colour=BLUE)
        _box(ax, 46, y, "blocks" if name == "delta" else "blocks (skipped)", width=15, colour=GREY)
        _box(ax, 73, y, "state at target", width=15, colour=BLUE)
        around = FancyArrowPatch(
            (20, y - 3), (73, y - 3), connectionstyle="arc3,rad=0.22", arrowstyle="-|>", shrinkA=0, shrinkB=0
        )
        around.set(mutation_scale=13, linewidth=1.4, color=colour)
        ax.add_patch(around)
    _arrow(ax, (27.8, 27), (38.2, 27), colour=BLUE)
    _arrow(ax, (53.8, 27), (65.2, 27), colour=BLUE)
    words = {"ha": "center", "va": "center", "fontsize": 9, "backgroundcolor": "white"}
    ax.text(46.5, 18.3, "adds  D(edited) − D(unedited)", color=GREEN, **words)
    ax.text(46.5, 1.3, "writes  D(edited)", color=ORANGE, **words)
    return ax


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        _, found = run(ROOT / "docs" / "index.md", Path(folder))
    held_out, koopman = found["held_out"], found["koopman"]
    for name, drawn in {
        "erased": erased(found),
        "way": way(),
        "square": square(),
        "modes-of-patching": modes_of_patching(),
        "trajectories": plotting.plot_trajectories(held_out),
        "spectrum": plotting.plot_spectrum(ki.spectrum(koopman, held_out)),
        "fidelity": plotting.plot_fidelity(found["fidelity"]),
        "audit": plotting.plot_audit(ki.audit(found["patch"], held_out=(found["x_test"], found["y_test"]))),
        "topology": plotting.plot_topology(ki.topology(held_out, points=400), 0),
    }.items():
        keep(drawn, name)


if __name__ == "__main__":
    main()
