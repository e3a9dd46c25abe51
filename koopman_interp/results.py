"""What every result can do: be printed, shown in a notebook, turned into a data frame, drawn, saved and loaded.

A result says what its tables are; the rest follows. Drawing is looked up by name when it is asked for, as pandas looks
up its plotting backend, so that a result knows nothing of figures.
"""

from __future__ import annotations

import math
import os
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from numpy import ndarray

from koopman_interp.annotations import as_annotated
from koopman_interp.errors import FileFormatError, InputError
from koopman_interp.files import json_digest, jsonable, read_json, write_json
from koopman_interp.tables import Table, escaped

if TYPE_CHECKING:
    from pandas import DataFrame

PLOTTING = "koopman_interp.plotting"
"""The module whose `plot` draws results."""

LATER = "later"
"""Mark, in a field's metadata, of one that earlier versions did not write: a file without it has its default."""

Value = TypeVar("Value")
Kept = TypeVar("Kept", bound="PlainResult")

# Notebooks set tables each in their own way; colours are those of the notebook, which can be light or dark.
_STYLE = """<style>
.koopman-interp table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
.koopman-interp caption { caption-side: top; text-align: left; color: inherit; opacity: .75; padding: 0 0 .3em; }
.koopman-interp th, .koopman-interp td { text-align: right; padding: .25em .7em; white-space: nowrap; }
.koopman-interp thead th { border-bottom: 1px solid; }
.koopman-interp tbody th { font-weight: normal; }
.koopman-interp th:first-child, .koopman-interp .words, .koopman-interp tfoot td { text-align: left; }
.koopman-interp .words { white-space: normal; }
.koopman-interp tr.marked th, .koopman-interp tr.marked td { font-weight: bold; }
</style>"""


class Result(ABC):
    """A value that something found; its subclasses are frozen dataclasses that give `tables`."""

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """Return what was found as tables, the one that says most first."""

    def notes(self) -> Sequence[str]:
        """Return sentences that belong below the tables."""
        return ()

    def __str__(self) -> str:
        notes = "\n".join(self.notes())
        return "\n\n".join([repr(self), *(table.text() for table in self.tables()), *([notes] if notes else [])])

    def _repr_html_(self) -> str:
        """Show the tables in a notebook."""
        parts = [f"<p>{escaped(repr(self))}</p>", *(table.html() for table in self.tables())]
        notes = (f"<p>{escaped(line)}</p>" for note in self.notes() for line in note.splitlines())
        return "\n".join(['<div class="koopman-interp">', _STYLE, *parts, *notes, "</div>"])

    def to_frame(self) -> DataFrame:
        """Return the first table as a pandas data frame, with the numbers themselves in it.

        Raises:
            InputError: pandas is not installed.
        """
        return self.tables()[0].frame()

    def plot(self, **options: object) -> Any:
        """Draw it by the function of `koopman_interp.plotting` that is made for it, and return its axes.

        Args:
            **options: of that function, such as `ax=` to draw on.

        Raises:
            InputError: there is no figure of this kind of result.
        """
        return plotted(self, **options)


class PlainResult(Result):
    """A result whose fields are plain values, arrays and other dataclasses of such, so that JSON holds it whole."""

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON: fields by name, arrays as lists; a number that is not finite is None."""
        values: dict[str, object] = jsonable(_plain(self))
        return values

    @classmethod
    def from_dict(cls: type[Kept], values: Mapping[str, object]) -> Kept:
        """Rebuild from what `as_dict` and JSON made of it; a null where a number belongs becomes NaN."""
        return rebuilt(cls, values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one file, as JSON with a digest; a number that is not finite becomes null."""
        write_value(path, type(self).__name__, self.as_dict())

    @classmethod
    def load(cls: type[Kept], path: str | os.PathLike[str]) -> Kept:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: it is not JSON, holds something else, was changed, or is incomplete.
        """
        with read_value(path, cls.__name__) as values:
            return as_annotated(cls.from_dict(values))


def plotted(value: object, **options: object) -> Any:
    """Draw a value with `koopman_interp.plotting.plot`, which is imported only now."""
    return import_module(PLOTTING).plot(value, **options)


def write_value(path: str | os.PathLike[str], kind: str, values: dict[str, object]) -> None:
    """Write plain values of a kind to one file, as JSON with a digest."""
    write_json(path, {"kind": kind, "digest": json_digest(values), **values})


@contextmanager
def read_value(path: str | os.PathLike[str], kind: str) -> Iterator[dict[str, Any]]:
    """Hand out what `write_value` wrote; what is missing of it while the context lasts is said of the file.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is not JSON, holds something else, was changed, or is incomplete.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("kind") != kind:
        raise FileFormatError(f"{path} does not hold a value of the kind {kind}.")
    if values.pop("digest", None) != json_digest({name: each for name, each in values.items() if name != "kind"}):
        raise FileFormatError(
            f"{path} does not hold what was written to it: its digest differs. Write it again from its source."
        )
    try:
        yield values
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{path} lacks parts of the {kind} that it holds ({type(error).__name__} {error}). Write it again from its "
            "source."
        ) from error


def rebuilt(kind: type[Value], values: Mapping[str, object]) -> Value:
    """Rebuild a dataclass of plain values, arrays and other such dataclasses from what JSON made of it.

    Entries that are no field are passed over: what is derived may stand beside what is kept.

    Raises:
        KeyError: a field is missing.
        TypeError: a part is of another shape than its annotation says.
        ValueError: likewise.
    """
    made: Value = rebuilt_part(kind, values)
    return made


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def rebuilt_part(hint: Any, value: Any) -> Any:
    """Rebuild a value of any annotation; see `rebuilt`."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kind, *others = (part for part in parts if part is not types.NoneType)
        return None if value is None else rebuilt_part(Any if others else kind, value)
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        given = [part for part in fields(hint) if part.name in value or not part.metadata.get(LATER)]
        return hint(**{part.name: rebuilt_part(hints[part.name], value[part.name]) for part in given})
    if origin is tuple:
        entries = parts[:1] * len(value) if parts[1:] == (Ellipsis,) else parts
        return tuple(rebuilt_part(part, entry) for part, entry in zip(entries, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, entry = parts
        return {rebuilt_part(key, name): rebuilt_part(entry, each) for name, each in value.items()}
    if getattr(hint, "array_type", hint) is ndarray:
        array = np.asarray(value)
        return array.astype(float) if array.dtype == object else array
    if hint is float:
        return math.nan if value is None else float(value)
    return int(value) if hint is int else value  # the keys of JSON are texts
