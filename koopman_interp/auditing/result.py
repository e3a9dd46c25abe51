"""What an audit found, as a value: one row a method of forgetting, printable, and kept as JSON.

Computes nothing but what a table shows. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from koopman_interp.auditing.language import language_samples
from koopman_interp.auditing.reach import Reach
from koopman_interp.auditing.relearning import Relearning
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.auditing.summary import audit_tables
from koopman_interp.auditing.verdict import verdict
from koopman_interp.errors import InputError
from koopman_interp.labels import classes_named
from koopman_interp.results import PlainResult
from koopman_interp.tables import Table, in_percent


@dataclass(frozen=True, repr=False)
class Audit(PlainResult):
    """What `audit` found: one row a method of forgetting.

    Attributes:
        labels: the classes to forget.
        edit: description of the edit.
        rows: the methods, the base model first and the edit last.
        forget_rows: held-out rows of the classes to forget.
        retain_rows: held-out rows of the others.
        forget_training_rows: training rows of the classes to forget; 0 if none were given.
        retain_training_rows: training rows of the others.
        relearn: how relearning was tried, if it was.
        left_out: what was left out, and why, in sentences.
        reach: how the edit is written, carried by K or in place, and how much of it arrives.
    """

    labels: tuple[int, ...]
    edit: str
    rows: tuple[AuditRow, ...]
    forget_rows: int
    retain_rows: int
    forget_training_rows: int = 0
    retain_training_rows: int = 0
    relearn: Relearning | None = None
    left_out: tuple[str, ...] = ()
    reach: Reach | None = None

    def __getitem__(self, name: str) -> AuditRow:
        """Return the row of a name.

        Raises:
            InputError: there is no such row.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"There is no row {name!r}; there are {', '.join(row.name for row in self.rows)}.")

    def __repr__(self) -> str:
        ours = self.rows[-1]
        accuracies = f"{in_percent(ours.forget_accuracy)} ↓, retain accuracy {in_percent(ours.retain_accuracy)} ↑"
        probe = "" if ours.best_probe is None else f"; a probe still finds it at {in_percent(ours.best_probe, 1)}"
        return f"Audit({self.edit}: forget accuracy of {self.classes} {accuracies}{probe})"

    @property
    def classes(self) -> str:
        """The classes to forget, in words."""
        return classes_named(self.labels)

    @property
    def reached(self) -> Sequence[str]:
        """Say how the edit is written and what arrives of it, and where nothing does."""
        return () if self.reach is None else tuple(filter(None, (self.reach.sentence, self.reach.warning)))

    @property
    def verdict(self) -> str:
        """What is suppressed and what is still there, in words."""
        return verdict(self.classes, self.rows)

    def tables(self) -> Sequence[Table]:
        """Return what was measured as tables, that of the output first."""
        return audit_tables(
            self.rows,
            f"{self.forget_rows:,} held-out rows of {self.classes}, {self.retain_rows:,} of the others",
            f"{self.forget_training_rows:,} of {self.classes}, {self.retain_training_rows:,} of the others",
        )

    def notes(self) -> Sequence[str]:
        """Return samples, how relearning was tried, what was left out, and what it all comes to."""
        samples = language_samples({row.name: row.language for row in self.rows if row.language is not None})
        relearning = [] if self.relearn is None else [f"Relearning: {self.relearn}."]
        return [*samples, *relearning, *self.left_out, *self.reached, self.verdict]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the verdict among them."""
        return {**super().as_dict(), "verdict": self.verdict}
