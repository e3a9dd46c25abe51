"""Batches: what a user may feed to a model, brought to what a host can be called with, and its labels.

Tensors, texts, sequences of token ids, mappings in the conventions of Hugging Face, data sets and iterables of any of
these. Nothing here knows what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeGuard

import torch
from torch import Tensor

from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import padded, right_padded

LABEL_COLUMNS = ("label", "labels")

BATCH_SIZE = 64
"""Inputs that a model is called with at once, unless a caller says otherwise or they come in batches already."""


def calls(
    host: Host,
    batches: Any,
    *,
    inputs: str | Callable[[Any], Any] | None = None,
    column: str | None = None,
    batch_size: int = BATCH_SIZE,
    tokenizer: Any = None,
) -> Iterator[tuple[Any, Any]]:
    """Go through batches as what to call the host with, and labels.

    Args:
        host: whose tokenizer is used for texts.
        batches: as in `Tap.observe`.
        inputs: the column to call with, or a function from a batch to what to call with.
        column: the column of the labels.
        batch_size: for what comes uncut.
        tokenizer: for texts, in place of the host's.

    Yields:
        For `Host.call`, and the labels that came with it or None.

    Raises:
        InputError: batches of a kind that is not known, or texts without a tokenizer.
    """

    def tokenized(texts: Sequence[str]) -> Mapping[str, Tensor]:
        batch = host.tokenize(texts) if tokenizer is None else padded(tokenizer, texts)
        empty = (batch["attention_mask"].sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"Text {empty[0]} of a batch gives no tokens: {texts[empty[0]]!r}. Take it out.")
        return batch

    for batch in cut(batches, batch_size):
        x, y = parted(batch, inputs, column)
        yield _callable(x, tokenized), y


def cut(batches: Any, batch_size: int) -> Iterator[Any]:
    """Cut a tensor, a pair of inputs and labels, a data set, or a series of texts or sequences of ids into batches.

    What is cut already is passed on.

    Raises:
        InputError: it is none of these, nor an iterable of batches, or the batches are to hold nothing.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be 1 or more; got {batch_size}.")
    if isinstance(batches, Tensor):
        return iter(batches.split(batch_size))
    if _is_pair(batches):
        return zip(*(part.split(batch_size) for part in batches), strict=True)
    if hasattr(batches, "with_format") and hasattr(batches, "iter"):  # a split of a datasets data set
        return iter(batches.with_format("torch").iter(batch_size=batch_size))
    if isinstance(batches, Iterable) and not isinstance(batches, (str, bytes, Mapping)):
        entries = iter(batches)
        first = list(islice(entries, 1))
        single = bool(first) and (isinstance(first[0], str) or _is_ids(first[0]))
        entries = chain(first, entries)
        return _grouped(entries, batch_size) if single else entries
    raise InputError(
        "Expected a tensor, texts, a split of a data set, or an iterable of batches; got "
        f"{type(batches).__name__}. A single batch goes in a list: observe([batch])."
    )


def parted(batch: Any, inputs: str | Callable[[Any], Any] | None, column: str | None) -> tuple[Any, Any]:
    """Part a batch into what the model is called with and its labels (or None).

    Raises:
        InputError: a column is missing, or the batch is neither inputs nor a pair of inputs and labels.
    """
    if isinstance(batch, Mapping):
        return _parted_columns(batch, inputs, column)
    if column is not None or isinstance(inputs, str):
        named = column if column is not None else inputs
        raise InputError(
            f"A column ({named!r}) needs batches that are mappings; this batch is a {type(batch).__name__}."
        )
    y = None
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and _are_labels(batch[1], batch[0]):
        y = batch[1]
    if callable(inputs):
        return inputs(batch), y
    x = batch[0] if y is not None else batch
    if y is not None and _is_ids(x) and _is_ids(y):
        raise InputError(
            "A batch of two equally long rows of whole numbers can be two sequences of token ids, or inputs with "
            "labels. Give ids as one tensor [batch, position], or say with inputs= how to call the model."
        )
    if isinstance(x, (tuple, list)) and len(x) == 1 and not (_are_texts(x) or _are_sequences(x)):
        x = x[0]
    if isinstance(x, (tuple, list)) and not (_are_texts(x) or _are_sequences(x)):
        raise InputError(
            f"A batch is a {type(x).__name__} of {len(x)}, and not a pair of inputs and whole-number labels. "
            "Say how to call the model with it: observe(…, inputs=lambda batch: …)."
        )
    return x, y


def _parted_columns(
    batch: Mapping[str, Any], inputs: str | Callable[[Any], Any] | None, column: str | None
) -> tuple[Any, Any]:
    if column is not None and column not in batch:
        raise InputError(f"There is no column {column!r} for the labels; there are {', '.join(batch)}.")
    if isinstance(inputs, str) and inputs not in batch:
        raise InputError(f"There is no column {inputs!r} for the inputs; there are {', '.join(batch)}.")
    found = column or next((name for name in LABEL_COLUMNS if name in batch), None)
    y = None if found is None else batch[found]
    rest = {name: value for name, value in batch.items() if name != found}
    if isinstance(inputs, str):
        return batch[inputs], y
    return (rest if inputs is None else inputs(batch)), y


def _callable(x: Any, tokenized: Callable[[Sequence[str]], Mapping[str, Tensor]]) -> Any:
    """Tokenise texts and pad sequences of ids; everything else is called as it is."""
    if _are_texts(x):
        return tokenized(x)
    if _are_sequences(x):
        return _of_ids(x)
    if isinstance(x, (int, float)):
        raise InputError(
            f"A batch is the number {x!r}, which a model is not called with. A single sequence of token ids goes in a "
            "list: observe([ids])."
        )
    if not isinstance(x, Mapping):
        return x
    texts = next((name for name, value in x.items() if isinstance(value, str) or _are_texts(value)), None)
    if texts is not None:
        raise InputError(
            f"Column {texts!r} holds texts, which a model is not called with. Say which column to call it with: "
            f"observe(…, inputs={texts!r})."
        )
    called = dict(x)
    for name, value in x.items():
        # What a tokenizer gives for one text alone is one row.
        rows = [value] if _is_ids(value) and "input_ids" in x else value
        if _are_sequences(rows):
            batch = right_padded(rows, 0)
            called[name] = batch["input_ids"]
            if name == "input_ids" and "attention_mask" not in x:
                called["attention_mask"] = batch["attention_mask"]
    return called


def _of_ids(sequences: Sequence[Any]) -> Any:
    """Bring sequences of ids to a tensor, with a mask beside it only where they differ in length."""
    batch = right_padded(sequences, 0)
    mask = batch["attention_mask"]
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty:
        raise InputError(f"Sequence {empty[0]} of a batch has no tokens. Take it out.")
    return batch["input_ids"] if bool(mask.all()) else batch


def _is_pair(batches: Any) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Whether it is inputs and one label an input, which no two batches in a row could be."""
    if not (isinstance(batches, tuple) and len(batches) == 2 and all(isinstance(part, Tensor) for part in batches)):
        return False
    x, y = batches
    return x.ndim > 1 and y.ndim == 1 and _whole(y) and len(x) == len(y)


def _grouped(entries: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while group := list(islice(entries, size)):
        yield group


def _are_texts(x: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(x, (list, tuple)) and bool(x) and all(isinstance(entry, str) for entry in x)


def _is_ids(x: Any) -> bool:
    """Whether x is one sequence of token ids."""
    if isinstance(x, Tensor):
        return x.ndim == 1 and _whole(x)
    return isinstance(x, (list, tuple)) and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in x)


def _are_sequences(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and bool(x) and all(map(_is_ids, x))


def _are_labels(y: Any, x: Any) -> bool:
    """Whether y can be the labels of x."""
    if isinstance(y, Tensor):
        return y.ndim >= 1 and _whole(y) and (not isinstance(x, Tensor) or len(y) == len(x) or _is_ids(y))
    if not (_are_texts(x) or _are_sequences(x) or isinstance(x, (Tensor, Mapping))):
        return False
    return _is_ids(y) or _are_sequences(y)


def _whole(x: Tensor) -> bool:
    return not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool
