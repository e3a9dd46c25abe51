"""New figures, and where they are seen: at the end of a notebook's cell, or where they are saved.

Outside of a notebook a figure belongs to whoever holds its axes: no pyplot is imported and no window opens. Inside, it
is one of pyplot's, so that the inline backend shows it once, in the format that is configured there, and lets go of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import matplotlib
from matplotlib.figure import Figure

_SEEN = ContextVar("seen", default=True)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure, sizes in inches, that a notebook shows at the end of the cell."""
    if not (_SEEN.get() and _in_notebook()):
        return Figure(figsize=(width, height), layout="constrained")
    from matplotlib import pyplot  # Elsewhere it would be imported for nothing, and choose a backend.

    return pyplot.figure(figsize=(width, height), layout="constrained")


@contextmanager
def unseen() -> Iterator[None]:
    """Keep the figures made in here out of a notebook's cell, as those of a page are, which shows them itself."""
    before = _SEEN.set(False)
    try:
        yield
    finally:
        _SEEN.reset(before)


def _in_notebook() -> bool:
    """Whether IPython runs, and shows figures below its cells."""
    python = sys.modules.get("IPython")
    inline = "inline" in str(matplotlib.get_backend(auto_select=False))
    return inline and python is not None and python.get_ipython() is not None
