"""Data that the command line names: `module:callable`, a file, a folder, or a data set on the Hub, with its split.

What a name means is seen from its form and from what is there, while the command is read; nothing is loaded then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click

from koopman_interp.cli.names import imported, known
from koopman_interp.errors import InputError, nearest

FORMS = (
    "module:callable; a file of texts (.txt), rows (.jsonl, .csv, .parquet) or tensors (.safetensors, .npz); or a data "
    "set by folder or by its name on the Hub, with a split: data:train, owner/name:test[:500]"
)

TEXTS, ROWS, TENSORS = (".txt",), (".jsonl", ".json", ".csv", ".parquet"), (".safetensors", ".npz")

Role = Literal["training", "test"]

_SPLITS: dict[Role, tuple[str, ...]] = {"training": ("train",), "test": ("test", "validation")}
"""Splits that are taken where none is named, by what the rows are for."""


@dataclass(frozen=True)
class DataName:
    """Data by name.

    Attributes:
        text: as it was given.
        kind: what it names.
        where: the module and callable, the file, or the data set without its split.
        split: of a data set; empty where none was named.
    """

    text: str
    kind: Literal["callable", "file", "data set"]
    where: str
    split: str = ""

    def __str__(self) -> str:
        return self.text

    def prepared(self) -> DataSource:
        """Import what is needed to read it, and read nothing yet."""
        return DataSource(self, imported(self.where) if self.kind == "callable" else None)


@dataclass(frozen=True)
class DataSource:
    """Data that is about to be read, with all that was imported for it."""

    name: DataName
    make: Any

    def read(self, role: Role | None = None) -> tuple[str, Any]:
        """Read it.

        Args:
            role: what the rows are for, which says what split is taken where none was named.

        Returns:
            Its name, with the split, and what the callable gives; else columns by name, or a split of a data set.

        Raises:
            InputError: there is no such data set or split, or several of which none was named.
            FileFormatError: a file does not hold what its name says.
        """
        from koopman_interp.cli import reading_files

        if self.make is not None:
            return self.name.text, self.make()
        if self.name.kind == "file":
            path = Path(self.name.where)
            if path.suffix in TEXTS:
                return self.name.text, {"text": reading_files.texts(path)}
            return self.name.text, (reading_files.tensors if path.suffix in TENSORS else reading_files.rows)(path)
        splits = reading_files.splits(self.name.where)
        chosen = self.name.split or self._usual(splits, role)
        plain = chosen.partition("[")[0]
        if plain not in splits:
            raise InputError(f"{self.name.where} has no split {plain!r}. {nearest(plain, splits)}")
        return f"{self.name.where}:{chosen}", reading_files.data_set(self.name.where, chosen)

    def _usual(self, splits: list[str], role: Role | None) -> str:
        usual = [split for split in _SPLITS.get(role, ()) if split in splits] if role is not None else []
        if usual or len(splits) == 1:
            return (usual or splits)[0]
        raise InputError(
            f"{self.name.where} has the splits {', '.join(splits)}. Name one: {self.name.where}:{splits[0]}."
        )


class _Data(click.ParamType):  # type: ignore[type-arg]  # it is plain in click 8.1
    """Data by name, looked for when the command is read."""

    name = "data"

    def convert(self, value: Any, *_: Any) -> DataName:
        return value if isinstance(value, DataName) else _parsed(value)


DATA = _Data()


def _parsed(value: str) -> DataName:
    where, colon, split = value.partition(":")
    path = Path(where)
    if path.is_file() and path.suffix != ".py":
        if colon:
            raise InputError(f"{where} is a file, which has no splits. Name it alone.")
        if path.suffix not in (*TEXTS, *ROWS, *TENSORS):
            raise InputError(f"{where} is a file of no kind that is known. Data is {FORMS}.")
        return DataName(value, "file", where)
    if path.is_dir() and not path.with_suffix(".py").is_file():
        return DataName(value, "data set", where, split)
    if colon and "/" not in where.removesuffix(".py"):
        module = known(value)
        return DataName(value, "callable", module)
    if path.suffix in (*TEXTS, *ROWS, *TENSORS):
        raise FileNotFoundError(f"There is no file {where}.")
    if where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no {where!r}. Data is {FORMS}.")
    return DataName(value, "data set", where, split)
