"""What an audit found, as a value: one row a way of forgetting, printable, and kept as JSON.

Computes nothing but what a table shows. Knows nothing of hosts.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from koopman_interp.auditing.relearning import Relearning
from koopman_interp.auditing.rows import AuditRow
from koopman_interp.auditing.summary import printed
from koopman_interp.auditing.verdict import verdict
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import jsonable, read_json, write_json

KIND = "audit"


@dataclass(frozen=True, repr=False)
class Audit:
    """What `audit` found: one row a way of forgetting.

    Attributes:
        label: the forgotten class.
        edit: description of the edit.
        rows: the ways, the host first and the edit last.
        forget_rows: held-out rows of the forgotten class.
        retain_rows: held-out rows of the others.
        forget_training_rows: training rows of the forgotten class; 0 if none were given.
        retain_training_rows: training rows of the others.
        relearn: how relearning was tried, if it was.
        notes: what was left out, and why.
    """

    label: int
    edit: str
    rows: tuple[AuditRow, ...]
    forget_rows: int
    retain_rows: int
    forget_training_rows: int = 0
    retain_training_rows: int = 0
    relearn: Relearning | None = None
    notes: tuple[str, ...] = ()

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
        found = "" if ours.found is None else f"; a probe still finds it at {ours.found:.1%}"
        return (
            f"Audit({self.edit}: {ours.forgotten:.1%} of class {self.label} still recognised, "
            f"{ours.retained:.2%} of the rest right{found})"
        )

    def __str__(self) -> str:
        held_out = f"{self.forget_rows:,} of class {self.label}, {self.retain_rows:,} of the others"
        lines = [printed(self.rows), f"Held-out rows: {held_out}. Probes read the last site; their chance is 50 %."]
        if self.forget_training_rows:
            trained = (
                f"{self.forget_training_rows:,} of class {self.label}, {self.retain_training_rows:,} of the others"
            )
            lines.append(f"Training rows: {trained}.")
        if self.relearn is not None:
            lines.append(f"Relearning: {self.relearn}.")
        return "\n".join([*lines, *self.notes, "", self.verdict])

    @property
    def verdict(self) -> str:
        """What is suppressed and what is still there, in words."""
        return verdict(self.label, self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the verdict among them."""
        return {**asdict(self), "verdict": self.verdict}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; a figure that is not finite becomes null."""
        write_json(path, jsonable({"kind": KIND, **self.as_dict()}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Audit:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: it is not JSON, not an audit, or incomplete.
        """
        values = read_json(path)
        if not isinstance(values, dict) or values.get("kind") != KIND:
            raise FileFormatError(f"{path} does not hold an audit.")
        parts = {name: value for name, value in values.items() if name not in ("kind", "verdict")}
        try:
            parts["rows"] = tuple(map(AuditRow.from_dict, parts["rows"]))
            parts["notes"] = tuple(parts["notes"])
            if (settings := parts["relearn"]) is not None:
                parts["relearn"] = Relearning(**{**settings, "at": tuple(settings["at"])})
            return cls(**parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"{path} lacks parts of an audit ({error}). Write it again from its source."
            ) from error
