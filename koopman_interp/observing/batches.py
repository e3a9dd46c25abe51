"""Batches: what a user may feed to a model, cut into batches, each parted into inputs and labels.

Tensors, arrays, texts, sequences of token ids, rows of numbers, columns, data sets and iterables of batches. What can
be read in two ways is refused with the line to write. Nothing here knows what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokenizer
from koopman_interp.labels import one_hot, whole_numbers
from koopman_interp.observing.model_inputs import (
    Batch,
    ModelInputs,
    are_rows,
    are_sequences,
    are_tensors,
    are_texts,
    as_tensor,
    is_ids,
    is_row,
    is_whole,
    stacked,
)

LABEL_COLUMNS = ("label", "labels")

BATCH_SIZE = 64
"""Inputs that a model is called with at once, unless a caller says otherwise or they come in batches already."""

Inputs = str | Callable[[Any], Any] | None
"""The column to call a model with, or a function from a batch to what to call it with."""

_SINGLE = "as data sets give single samples. Cut them into batches: DataLoader(dataset, batch_size=64)."
_SAY_HOW = "Say how to call the model with it: observe(…, inputs=lambda batch: …)."


def calls(
    host: Host,
    batches: Any,
    *,
    inputs: Inputs = None,
    column: str | None = None,
    batch_size: int = BATCH_SIZE,
    tokenizer: Tokenizer = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Batch, Any]]:
    """Go through batches as what to call the host with, and labels.

    Args:
        host: whose tokenizer is used for texts, and whose arguments columns are.
        batches: as in `Tap.observe`.
        inputs: the column to call with, or a function from a batch to what to call with.
        column: the column of the labels.
        batch_size: for what comes uncut.
        tokenizer: for texts, in place of the host's.
        share: number of this process and of all, each of which has every so many-th batch.

    Yields:
        For `Host.call`, and the labels that came with it or None.

    Raises:
        InputError: batches of a kind that is not known or can be read in two ways, texts without a tokenizer, columns
            that the model does not take, or labels that are not whole numbers.
    """
    model_inputs = ModelInputs(host, tokenizer)
    for batch in _shared(batches, batch_size, callable(inputs), *share):
        x, y = parted(batch, inputs, column, model_inputs)
        yield model_inputs.of(x), y


def cut(batches: Any, batch_size: int, *, told: bool = False) -> Iterator[Any]:
    """Cut inputs, inputs with labels, columns or a data set into batches; what is cut already is passed on.

    Args:
        batches: as in `Tap.observe`.
        batch_size: for what comes uncut.
        told: whether the user says how to call the model with a batch, so that a pair may be anything.

    Returns:
        The batches.

    Raises:
        InputError: it is none of these, nor an iterable of batches, or the batches are to hold nothing.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; got {batch_size}.")
    batches = as_tensor(batches)
    if isinstance(batches, Tensor):
        return iter(batches.split(batch_size))
    if (pair := _pair(batches)) is not None:
        if not told:
            _require_labels(*pair)
        return _cut_pair(*pair, batch_size)
    if isinstance(batches, Mapping):
        return _cut_columns(batches, batch_size)
    if hasattr(batches, "with_format") and hasattr(batches, "iter"):  # a split of a datasets data set
        return _cut_split(batches, batch_size)
    _refuse(batches)
    entries = iter(batches)
    first = list(islice(entries, 1))
    entries = chain(first, entries)
    single = bool(first) and (isinstance(first[0], str) or is_ids(first[0]) or is_row(first[0]))
    return _grouped(entries, batch_size) if single else entries


def batches_in(batches: Any, batch_size: int) -> int | None:
    """Say how many batches `cut` will make, where that is known before."""
    batches = as_tensor(batches)
    pair = _pair(batches)
    whole = batches if pair is None else pair[0]
    if isinstance(whole, Mapping):
        whole = next((column for column in whole.values() if _has_rows(as_tensor(column))), None)
    if not hasattr(whole, "__len__"):
        return None
    first = whole[0] if isinstance(whole, (list, tuple)) and len(whole) else None
    uncut = isinstance(whole, Tensor) or hasattr(whole, "with_format") or pair is not None
    if uncut or isinstance(first, str) or is_ids(first) or is_row(first):
        return -(-len(whole) // batch_size)
    return len(whole)


def _shared(batches: Any, batch_size: int, told: bool, rank: int, ranks: int) -> Iterator[Any]:
    """Cut into batches and take a process's own; data sets are parted before they are read."""
    if ranks > 1 and hasattr(batches, "with_format") and not hasattr(batches, "__len__"):
        from datasets.distributed import split_dataset_by_node

        return cut(split_dataset_by_node(batches, rank, ranks), batch_size, told=told)
    found = cut(batches, batch_size, told=told)
    return found if ranks == 1 else islice(found, rank, None, ranks)


def parted(batch: Any, inputs: Inputs, column: str | None, model_inputs: ModelInputs) -> tuple[Any, Any]:
    """Part a batch into what the model is called with and its labels (or None).

    Raises:
        InputError: a column is missing, the batch is neither inputs nor a pair of inputs and labels, or can be both.
    """
    batch = as_tensor(batch)
    if isinstance(batch, Mapping):
        return _parted_columns(batch, inputs, column, model_inputs)
    if column is not None or isinstance(inputs, str):
        named = column if column is not None else inputs
        raise InputError(
            f"A column ({named!r}) needs batches that are mappings; this batch is a {type(batch).__name__}."
        )
    pair = _parts(batch)
    if callable(inputs):
        return inputs(batch), None if pair is None or not _are_labels(*pair) else pair[1]
    if pair is not None:
        _require_labels(*pair)
    x, y = (batch, None) if pair is None else pair
    if isinstance(x, (tuple, list)) and len(x) == 1 and not (are_texts(x) or are_sequences(x)):
        x = as_tensor(x[0])
    if are_sequences(x) and are_tensors(x):
        x = stacked(x, set() if y is None else {len(y)}, "A batch")
    if isinstance(x, (tuple, list)) and not (are_texts(x) or are_sequences(x) or are_rows(x)):
        raise InputError(
            f"A batch is a {type(batch).__name__} of {len(batch)}, and not a pair of inputs and whole-number labels. "
            f"{_SAY_HOW}"
        )
    return x, y


# --- cutting ------------------------------------------------------------------------------------------------


def _cut_pair(x: Any, y: Any, size: int) -> Iterator[tuple[Any, Any]]:
    """Cut inputs and labels together."""
    columns = _as_columns(x) if isinstance(x, Mapping) else None
    inputs = len(x) if columns is None else _length_of(columns)
    if len(y) != inputs:
        raise InputError(
            f"A tuple of two is inputs and labels, one an input; got {inputs:,} inputs and {len(y):,} labels. Labels "
            "of tokens are given beside: observe(x, labels=y). Two batches go in a list: observe([first, second])."
        )
    for start in range(0, inputs, size):
        rows = slice(start, start + size)
        yield x[rows] if columns is None else _rows_of(columns, rows), y[rows]


def _cut_columns(columns: Mapping[str, Any], size: int) -> Iterator[Any]:
    """Cut whole columns; what a tokenizer gives for one text alone is one batch."""
    columns = _as_columns(columns)
    if is_ids(columns.get("input_ids")):
        return iter([columns])
    return (_rows_of(columns, slice(start, start + size)) for start in range(0, _length_of(columns), size))


def _as_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: as_tensor(value) for name, value in columns.items()}


def _rows_of(columns: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """Take rows of all columns; what has no rows, such as a switch of the model, goes with every batch."""
    return {name: value[rows] if _has_rows(value) else value for name, value in columns.items()}


def _has_rows(value: object) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and bool(value.ndim))


def _length_of(columns: Mapping[str, Any]) -> int:
    """Return the one length of all columns that have rows.

    Raises:
        InputError: there are none, or not of one length.
    """
    splits = [name for name, value in columns.items() if hasattr(value, "with_format")]
    if splits:
        raise InputError(f"This is a dict of the splits {', '.join(columns)}. Choose one: data[{splits[0]!r}].")
    lengths = {name: len(value) for name, value in columns.items() if _has_rows(value)}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name}: {lengths.get(name, 'none')}" for name in columns)
        raise InputError(
            f"A dict of columns is cut into batches where all have one length; got a {type(columns).__name__} with "
            f"{shown or 'no columns'}. A single batch goes in a list: observe([batch])."
        )
    return next(iter(lengths.values()))


def _cut_split(split: Any, size: int) -> Iterator[Any]:
    """Cut a split of a `datasets` data set, in the format or through the transform that it has.

    A plain one is read as tensors, which is much faster than as lists.
    """
    form = getattr(split, "format", None)
    if isinstance(form, dict) and form["type"] is None:
        split = split.with_format("torch", columns=form["columns"], output_all_columns=form["output_all_columns"])
    for batch in split.iter(batch_size=size):
        columns = isinstance(batch, Mapping)
        yield {name: _stacked_rows(value) for name, value in batch.items()} if columns else batch


def _stacked_rows(values: Any) -> Any:
    """Stack the tensors that a transform gives, one a row; those of different shapes stay a list."""
    alike = are_tensors(values) and len({value.shape for value in values}) == 1
    return torch.stack(tuple(values)) if alike else values


def _grouped(entries: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Group single inputs; sequences of ids as lists, which no collation could have turned around."""
    while group := list(islice(entries, size)):
        yield [entry.tolist() if hasattr(entry, "tolist") else entry for entry in group]


def _refuse(batches: object) -> None:
    """Refuse what is no iterable of batches, with what to write instead."""
    if isinstance(batches, str):
        raise InputError("Expected texts in a list, observe([text]), or a data set; got str.")
    if isinstance(batches, torch.utils.data.Dataset) and not isinstance(batches, torch.utils.data.IterableDataset):
        raise InputError(
            f"Expected batches; got {type(batches).__name__}, which gives single samples. Give "
            "DataLoader(dataset, batch_size=64)."
        )
    if not isinstance(batches, Iterable) or isinstance(batches, bytes):
        raise InputError(
            "Expected a tensor, an array, texts, columns, a split of a data set, or an iterable of batches; got "
            f"{type(batches).__name__}. A single batch goes in a list: observe([batch])."
        )


# --- inputs and labels --------------------------------------------------------------------------------------


def _pair(batches: Any) -> tuple[Any, Any] | None:
    """Return inputs and labels, where a tuple or list of two is these and not two batches.

    A tuple is, whenever its first part can be inputs. A list is only if its second part could be no batch.
    """
    pair = _parts(batches)
    if pair is None or not isinstance(batches, list):
        return pair
    x, y = pair
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim > 1 and len(x) == len(y)):
        return None
    column = y.ndim == 2 and y.shape[1] == 1 and x.is_floating_point() and is_whole(y)
    return pair if y.ndim == 1 or column or (one_hot(y) and not one_hot(x)) else None


def _parts(batch: Any) -> tuple[Any, Any] | None:
    """Return the parts of a tuple or list of two whose first can be inputs; None for two sequences of ids."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return None
    x, y = map(as_tensor, batch)
    tensors = isinstance(x, Tensor) and isinstance(y, Tensor)
    if is_ids(x) and is_ids(y) and not (tensors and len(x) == len(y)):
        return None
    inputs = isinstance(x, (Tensor, Mapping)) or are_texts(x) or are_sequences(x) or are_rows(x)
    return None if not inputs or isinstance(y, (str, Mapping)) or y is None else (x, y)


def _are_labels(x: object, y: object) -> bool:
    """Whether what comes with inputs is labels by its kind, and no mask."""
    known = is_ids(y) or are_sequences(y) or (isinstance(y, Tensor) and y.ndim > 0 and not y.is_floating_point())
    return known and not _may_be_a_mask(x, y)


def _may_be_a_mask(x: object, y: object) -> bool:
    """Whether what comes with inputs has one truth value, or zero or one, a position."""
    if not isinstance(y, Tensor) or y.ndim < 2 or y.shape[1] < 2:
        return False
    if y.dtype == torch.bool:
        return True
    return isinstance(x, Tensor) and is_whole(x) and x.shape == y.shape and bool(((y == 0) | (y == 1)).all())


def _looks_padded(mask: Tensor) -> bool:
    """Whether each row of zeros and ones has its ones on one side, as masks of padded token ids do, and some zeros."""
    if mask.dtype == torch.bool:
        return True
    steps = mask.diff(dim=1)
    one_sided = bool(((steps <= 0).all(1) | (steps >= 0).all(1)).all())
    return one_sided and bool((mask == 0).any()) and bool((mask == 1).any(1).all())


def _require_labels(x: object, y: object) -> None:
    """Check that the second of a pair is labels of the first.

    Raises:
        InputError: it is not, or the pair can be read in two ways.
    """
    if is_ids(x) and is_ids(y):
        raise InputError(
            "A batch of two equally long rows of whole numbers can be two sequences of token ids, or inputs with "
            "labels. Give ids as one tensor [batch, position], or say with inputs= how to call the model."
        )
    if are_texts(x) and are_texts(y):
        raise InputError(
            "Two lists of texts can be two batches, or texts with labels. Two batches go in a list, observe([*first, "
            "*second]); labels are whole numbers: names = sorted(set(y)), labels=[names.index(name) for name in y]."
        )
    if isinstance(y, (bool, int, float)) or (isinstance(y, Tensor) and not y.ndim):
        raise InputError(f"A batch is inputs with a single number, {_SINGLE}")
    if isinstance(y, Tensor) and _may_be_a_mask(x, y) and _looks_padded(y):
        raise InputError(
            "What comes with the inputs looks like a mask of them, and can be labels too. Give either by its name: "
            '{"input_ids": ids, "attention_mask": mask}, or {"input_ids": ids, "labels": y}.'
        )
    try:
        whole_numbers(y)
    except InputError as error:
        raise InputError(f"{error} If this is not meant as labels, give batches in a list. {_SAY_HOW}") from error


# --- columns ------------------------------------------------------------------------------------------------


def _parted_columns(
    batch: Mapping[str, Any], inputs: Inputs, column: str | None, model_inputs: ModelInputs
) -> tuple[Any, Any]:
    for named, what in ((column, "labels"), (inputs, "inputs")):
        if isinstance(named, str) and named not in batch:
            raise InputError(f"There is no column {named!r} for the {what}; there are {', '.join(batch)}.")
    name = _label_column(batch) if column is None else column
    beside = _lengths(batch)
    y = None if name is None else _uncollated(name, batch[name], beside)
    if isinstance(y, (bool, int, float)):
        raise InputError(f"Column {name!r} holds a single number, {_SINGLE}")
    if callable(inputs):
        return inputs(batch), y
    columns = {other: _uncollated(other, value, beside) for other, value in batch.items() if other != name}
    if inputs is not None:
        return columns[inputs], y
    if name is not None:
        model_inputs.require_labels(name, batch, named=column is not None)
    return model_inputs.chosen(columns), y


def _lengths(batch: Mapping[str, Any]) -> set[int]:
    """Return the lengths of the columns, lists of tensors aside."""
    columns = map(as_tensor, batch.values())
    return {
        len(value)
        for value in columns
        if (isinstance(value, Tensor) and value.ndim) or (isinstance(value, (list, tuple)) and not are_tensors(value))
    }


def _uncollated(name: str, value: Any, beside: set[int]) -> Any:
    """Return a column as a tensor where it is an array, or a list of tensors of one shape."""
    value = as_tensor(value)
    return stacked(value, beside, f"Column {name!r}") if are_tensors(value) else value


def _label_column(batch: Mapping[str, Any]) -> str | None:
    there = [name for name in LABEL_COLUMNS if name in batch]
    if len(there) > 1:
        raise InputError(f"There are the columns {' and '.join(there)}. Say which holds labels: labels={there[0]!r}.")
    return there[0] if there else None
