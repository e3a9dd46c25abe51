"""What every result can do: be printed, shown in a notebook, turned into a data frame, and drawn.

A result says what its tables are; the rest follows. Drawing is looked up by name when it is asked for, as pandas looks
up its plotting backend, so that a result knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from koopman_interp.tables import Table

if TYPE_CHECKING:
    from pandas import DataFrame

PLOTTING = "koopman_interp.plotting"
"""The module whose `plot` draws results."""


class Result:
    """A value that something found; its subclasses are frozen dataclasses that give `tables`."""

    def tables(self) -> Sequence[Table]:
        """Return what was found as tables, the one that says most first."""
        raise NotImplementedError

    def notes(self) -> Sequence[str]:
        """Return sentences that belong below the tables."""
        return ()

    def __str__(self) -> str:
        return "\n\n".join([repr(self), *(table.text() for table in self.tables()), *self.notes()])

    def _repr_html_(self) -> str:
        """Show the tables in a notebook."""
        parts = [f"<p>{escape(repr(self))}</p>", *(table.html() for table in self.tables())]
        return "\n".join([*parts, *(f"<p>{escape(note)}</p>" for note in self.notes())])

    def to_frame(self) -> DataFrame:
        """Return the first table as a pandas data frame, with the numbers themselves in it."""
        return self.tables()[0].frame()

    def plot(self, **options: Any) -> Any:
        """Draw it by the function of `koopman_interp.plotting` that is made for it, and return its axes.

        Raises:
            InputError: there is no figure of this kind of result.
        """
        return import_module(PLOTTING).plot(self, **options)
