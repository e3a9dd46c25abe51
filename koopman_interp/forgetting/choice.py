"""What a search for an edit chose and what it passed over: a table, and an edit that has a file of its own."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypeVar, get_type_hints

from koopman_interp.annotations import as_annotated
from koopman_interp.edits.edit_set import EditSet
from koopman_interp.edits.operator_edit import OperatorEdit
from koopman_interp.errors import InputError
from koopman_interp.files import json_digest, jsonable
from koopman_interp.results import Result, read_value, rebuilt_part, write_value

Edit = OperatorEdit | EditSet
Chosen = TypeVar("Chosen", bound="Choice")


class Choice(Result):
    """A dataclass with `trials`, the one that was `chosen` of them, and an edit."""

    edit_field: ClassVar[str]
    """Name of the field that holds the edit."""

    @abstractmethod
    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON; of the edit, what it says of itself."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON, with a digest; the edit has a `save` of its own."""
        values: dict[str, object] = jsonable(self.as_dict())
        write_value(path, type(self).__name__, values)

    @classmethod
    def load(cls: type[Chosen], path: str | os.PathLike[str], edit: Edit) -> Chosen:
        """Read what `save` wrote.

        Args:
            path: of the table.
            edit: that was chosen, from its own file.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: it holds something else, was changed, or is incomplete.
            InputError: another edit was chosen.
        """
        with read_value(path, cls.__name__) as values:
            if json_digest(values[cls.edit_field]) != json_digest(jsonable(edit.as_dict())):
                raise InputError(
                    f"{path} tells of {values[cls.edit_field]['description']!r}, and the edit given is another, "
                    f"{edit.description!r}. Give the one that was saved with it."
                )
            hints, given = get_type_hints(cls), cls.as_fields(values) | {cls.edit_field: edit}
            parts: dict[str, Any] = {
                field.name: edit if field.name == cls.edit_field else rebuilt_part(hints[field.name], given[field.name])
                for field in fields(cls)  # type: ignore[arg-type]  # those that inherit it are dataclasses
            }
            parts["chosen"] = next(trial for trial in parts["trials"] if trial == parts["chosen"])
            return as_annotated(cls(**parts))

    @classmethod
    def as_fields(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Bring plain values to the form of the fields, where `as_dict` has another."""
        return dict(values)
