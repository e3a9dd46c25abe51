"""Rows: which column of some data a model is called with, and which holds its labels, as numbers of classes.

What is there decides where nothing is asked for, and what was decided is said; where it could be either, it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from koopman_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor

LABEL_COLUMNS, INPUT_COLUMNS = ("label", "labels", "y"), ("text", "image", "x", "inputs")

_TEXT, _IMAGE, _NUMBERS, _CLASSES = "texts", "images", "rows", "classes"
_NAMED = 10


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows to call a model with.

    Attributes:
        given: inputs, or inputs and labels, as `Tap.observe` takes them.
        labels: of each input, where they are known apart from the inputs.
        names: of the classes in the order of their numbers, where they have any.
        texts: the inputs, where these are texts.
        told: what was taken, in one line; empty where a function gave it.
    """

    given: Any
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    told: str = ""

    def as_texts(self, source: object) -> tuple[str, ...]:
        """Return the inputs where they are texts.

        Raises:
            InputError: they are none.
        """
        texts = self.texts or self.given
        if not (isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts)):
            raise InputError(f"{source} gives no texts. Name a file of texts, or a column with --inputs.")
        return tuple(texts)


@dataclass(frozen=True)
class Columns:
    """Which columns to take.

    Attributes:
        inputs: to call the model with; None is what is there.
        labels: of the labels; None is what is there.
        labelled: whether labels are wanted at all.
        names: of the classes in the order of their numbers, which those of the data are brought to.
        batch_size: of what is made batch by batch.
    """

    inputs: str | None = None
    labels: str | None = None
    labelled: bool = True
    names: tuple[str, ...] = ()
    batch_size: int = 64


@dataclass(frozen=True, eq=False)
class ImageBatches:
    """Images that are prepared batch by batch, as often as they are gone through."""

    images: Any
    labels: Tensor | None
    prepare: Callable[[Sequence[Any]], Tensor]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.images), self.batch_size):
            some = slice(start, start + self.batch_size)
            pixels = self.prepare(self.images[some])
            yield pixels if self.labels is None else (pixels, self.labels[some])


def rows_of(source: str, value: Any, columns: Columns, *, made: bool, prepare: Callable[[], Any]) -> Rows:
    """Take inputs and labels from what a source gave.

    Args:
        source: its name.
        value: what it gave.
        columns: which columns to take.
        made: whether a function gave it: it is then taken as it is, unless columns are asked for.
        prepare: finds how images are prepared for the model; gives None where nothing says so.

    Raises:
        InputError: there is no such column, or several that could be meant; labels that are none; images that nothing
            says how to prepare.
    """
    kinds = _kinds(value)
    asked = columns.inputs is not None or (columns.labels is not None and columns.labelled)
    if kinds is None or (made and not asked):
        if kinds is None and asked:
            raise InputError(f"{source} gives a {type(value).__name__}, which has no columns. Leave out the column.")
        return Rows(value)
    label = _label_column(source, kinds, columns)
    inputs = _input_column(source, kinds, columns.inputs, label)
    labels, names = (None, ()) if label is None else _numbered(source, label, value, columns.names)
    found, texts = _inputs(source, inputs, kinds[inputs], value), ()
    if kinds[inputs] == _IMAGE:
        how = prepare()
        if how is None:
            raise InputError(
                f"The column {inputs!r} of {source} holds images, and the model has no image processor that says how "
                "to prepare them. Name a function that gives tensors and labels, as module:callable."
            )
        given: Any = ImageBatches(found, labels, how, columns.batch_size)
    else:
        given = found if labels is None else (found, labels)
        texts = tuple(found) if kinds[inputs] == _TEXT else ()
    count = len(next(iter(found.values()))) if isinstance(found, Mapping) else len(found)
    told = f"{source}: {count:,} {kinds[inputs]} of the column {inputs!r}{_classes_told(label, labels, names)}"
    return Rows(given, labels, names, texts, told)


def number_of(label: str, names: Sequence[str] | Mapping[int, str]) -> int:
    """Return the number of a class that is given by its number or its name.

    Args:
        label: a name, or a number where none is called so.
        names: of the classes, in the order of their numbers or by these; empty where nobody knows any.

    Raises:
        InputError: there is no class of this name.
    """
    by_number = names if isinstance(names, Mapping) else dict(enumerate(names))
    for number, name in by_number.items():
        if name == label:
            return number
    if label.isdecimal():
        return int(label)
    known = "Nothing here knows names of the classes: give a number."
    if by_number:
        listed = ", ".join(f"{number} {name}" for number, name in [*by_number.items()][:_NAMED])
        known = f"The classes are {listed}."
    if len(by_number) > _NAMED:
        known = f"{nearest(label, by_number.values())} {known[:-1]}, … ({len(by_number):,})."
    raise InputError(f"There is no class {label!r}. {known}")


def require_class(label: int, rows: Rows, source: str) -> None:
    """Check that some rows have a label and others have not, where labels are known.

    Raises:
        InputError: it is not so.
    """
    if rows.labels is None:
        return
    present = sorted(set(rows.labels.tolist()))
    if label not in present or len(present) == 1:
        shown = ", ".join(map(str, present[:_NAMED])) + (", …" if len(present) > _NAMED else "")
        lacking = f"no row of class {label}" if label not in present else f"rows of class {label} alone"
        raise InputError(f"{source} has {lacking}; its rows are of {shown}.")


def _kinds(value: Any) -> dict[str, str] | None:
    """Say of each column what it holds; None where there are no columns."""
    if hasattr(value, "features") and hasattr(value, "column_names"):
        return {name: _kind_of_feature(feature) for name, feature in value.features.items()}
    if isinstance(value, Mapping):
        return {str(name): _kind_of_values(column) for name, column in value.items()}
    return None


def _kind_of_feature(feature: Any) -> str:
    name, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if name in ("Image", "ClassLabel"):
        return _IMAGE if name == "Image" else _CLASSES
    if name == "Value":
        return _TEXT if "string" in dtype else "whole numbers" if "int" in dtype or dtype == "bool" else "numbers"
    return _NUMBERS


def _kind_of_values(column: Any) -> str:
    if hasattr(column, "ndim"):
        whole = not (column.is_floating_point() if hasattr(column, "is_floating_point") else column.dtype.kind == "f")
        return _NUMBERS if column.ndim > 1 else "whole numbers" if whole else "numbers"
    return _TEXT if len(column) and isinstance(column[0], str) else _NUMBERS


def _label_column(source: str, kinds: Mapping[str, str], columns: Columns) -> str | None:
    if not columns.labelled:
        return None
    if columns.labels is not None:
        return _there(source, columns.labels, kinds)
    found = [name for name, kind in kinds.items() if kind == _CLASSES] or [n for n in LABEL_COLUMNS if n in kinds]
    if len(found) > 1:
        raise InputError(f"{source} has labels in {', '.join(found)}. Say which to take: --labels {found[0]}.")
    return found[0] if found else None


def _input_column(source: str, kinds: Mapping[str, str], asked: str | None, label: str | None) -> str:
    if asked is not None:
        return _there(source, asked, kinds)
    if "input_ids" in kinds:
        return "input_ids"
    found = [name for name, kind in kinds.items() if name != label and kind in (_TEXT, _IMAGE, _NUMBERS)]
    usual = [name for name in found if name in INPUT_COLUMNS]
    if len(found) == 1 or len(usual) == 1:
        return found[0] if len(found) == 1 else usual[0]
    held = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise InputError(
        f"{source} has the columns {held}, of which {'several' if found else 'none'} could be what the model is called "
        f"with. Say which: --inputs {(found or [*kinds])[0]}."
    )


def _there(source: str, name: str, kinds: Mapping[str, str]) -> str:
    if name not in kinds:
        raise InputError(f"{source} has no column {name!r}. {nearest(name, kinds)}")
    return name


def _inputs(source: str, name: str, kind: str, value: Any) -> Any:
    """Return a column as a model takes it."""
    import torch

    column = value[name]
    if kind == _IMAGE:
        return column
    if name == "input_ids" and "attention_mask" in _names(value):
        return {each: _listed(value[each]) for each in ("input_ids", "attention_mask")}
    if hasattr(column, "ndim"):
        return torch.as_tensor(column)
    listed = _listed(column)
    if kind == _TEXT:
        if not all(isinstance(text, str) for text in listed):
            raise InputError(f"The column {name!r} of {source} lacks texts in some rows. Leave these out.")
        return listed
    try:
        return torch.tensor(listed)
    except (ValueError, TypeError):  # sequences of several lengths
        return listed


def _names(value: Any) -> Sequence[str]:
    return value.column_names if hasattr(value, "column_names") else [*value]


def _listed(column: Any) -> list[Any]:
    return column.tolist() if hasattr(column, "tolist") else list(column)


def _numbered(source: str, name: str, value: Any, names: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as numbers, and the names of these, where there are any: those asked for, or the data's own."""
    from koopman_interp.labels import IGNORED, whole_numbers

    listed = _listed(value[name])
    own = tuple(getattr(getattr(value, "features", {}).get(name), "names", None) or ())
    if own and names and own != names and sorted(map(str.casefold, own)) == sorted(map(str.casefold, names)):
        listed = [own[label] if label >= 0 else label for label in listed]  # the same classes in another order
    if not any(isinstance(label, str) for label in listed):
        numbers = whole_numbers(listed)
        if bool(((numbers < 0) & (numbers != IGNORED)).any()):
            raise InputError(
                f"Some rows of {source} have no label in {name!r} (a negative number). Take another split."
            )
        return numbers, own or names
    known = names or tuple(sorted({str(label) for label in listed}))
    places = {each.casefold(): place for place, each in enumerate(known)}
    if unknown := [label for label in listed if str(label).casefold() not in places]:
        raise InputError(f"{source} has the label {unknown[0]!r} in {name!r}. {nearest(str(unknown[0]), known)}")
    return whole_numbers([places[str(label).casefold()] for label in listed]), known


def _classes_told(label: str | None, labels: Tensor | None, names: Sequence[str]) -> str:
    if label is None or labels is None:
        return ""
    present = sorted(set(labels.tolist()))
    shown = ", ".join(f"{each} {names[each]}" if 0 <= each < len(names) else str(each) for each in present[:_NAMED])
    return f", labels of {label!r}: {shown}{', …' if len(present) > _NAMED else ''}"
