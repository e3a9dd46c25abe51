"""One batch as what one model is called with: texts as token ids, columns as its arguments, numbers in its dtype.

Costs a look at the model's parameters and at the signature of its `forward`, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from koopman_interp.errors import InputError
from koopman_interp.hosts.protocol import Host
from koopman_interp.hosts.tokens import Tokenizer, padded, right_padded

Batch = Tensor | Mapping[str, object]
"""What `Host.call` takes: a tensor, or arguments by name."""

_TRANSLATED = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features", "attention_mask")
"""Arguments that adapters of frameworks give to their models by other names."""


class ModelInputs:
    """How batches are brought to what a host is called with.

    Args:
        host: the host.
        tokenizer: for texts, in place of the host's own.
    """

    def __init__(self, host: Host, tokenizer: Tokenizer = None) -> None:
        self._host = host
        self._tokenizer = tokenizer
        self._name = type(host.model).__name__
        self._required, self._takes_any = _arguments_of(host.model)
        tensors = chain(host.model.parameters(), host.model.buffers())
        self._dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors if tensor.is_floating_point()))

    def require_labels(self, name: str, columns: Mapping[str, object], *, named: bool) -> None:
        """Check that a column of labels is none that the model computes with.

        Of models of Hugging Face `labels` are known to serve the loss alone, unless they are a decoder's tokens.

        Args:
            name: of the column.
            columns: of the batch.
            named: whether the user said that it holds labels.

        Raises:
            InputError: the model computes with it, or may do so.
        """
        if name not in self._required:
            return
        config, value = getattr(self._host.model, "config", None), as_tensor(columns[name])
        tokens = are_sequences(value) or (isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] > 1)
        if tokens and getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in columns:
            raise InputError(
                f"The decoder of {self._name} makes its inputs of the column {name!r}. Give them by their own name, "
                "decoder_input_ids, or call the model with all columns: observe(…, inputs=lambda batch: batch)."
            )
        required = self._required[name]
        if required or not (named or hasattr(config, "is_encoder_decoder")):
            unless = "" if required else f" If it holds labels alone, say so: observe(…, labels={name!r})."
            raise InputError(
                f"Column {name!r} is an argument of {self._name}.forward too. To call the model with it, write "
                f"observe(…, inputs=lambda batch: batch).{unless}"
            )

    def chosen(self, columns: Mapping[str, object]) -> Any:
        """Return what of the columns to call the model with: all by their names, or the only one as it is.

        Raises:
            InputError: the model does not take one of several columns, or there is none.
        """
        if not columns:
            raise InputError("A batch has no column but that of its labels. Give inputs too.")
        unknown = [name for name in columns if not self._takes(name)]
        if len(columns) == 1:
            (value,) = columns.values()
            return value if unknown or are_texts(value) else columns
        _require_no_texts(columns)
        if unknown:
            taken = tuple(name for name in columns if name not in unknown)
            these = f"lambda batch: {{name: batch[name] for name in {taken}}}" if taken else repr(unknown[0])
            raise InputError(
                f"{self._name}.forward takes {', '.join(self._required)}, and no {', '.join(unknown)}. Say what to "
                f"call it with: observe(…, inputs={these})."
            )
        return columns

    def of(self, x: Any) -> Any:
        """Tokenise texts, pad sequences of ids, make tensors of numbers; everything else is called as it is.

        Raises:
            InputError: texts or sequences without tokens or with too many of them, or what no model is called with.
        """
        x = as_tensor(x)
        if are_texts(x):
            return self._tokenized(x)
        if are_sequences(x):
            return self._of_ids(x)
        if are_rows(x):
            return self._in_dtype(_numbers(x, "A batch of rows"))
        if isinstance(x, (bool, int, float)):
            single = "row of numbers goes in a list: observe([row])"
            if isinstance(x, int):
                single = "sequence of token ids goes in a list: observe([ids])"
            raise InputError(f"A batch is the number {x!r}, which a model is not called with. A single {single}.")
        if isinstance(x, Mapping):
            return self._of_columns(x)
        return self._in_dtype(x) if isinstance(x, Tensor) else x

    def _of_columns(self, columns: Mapping[str, object]) -> dict[str, object]:
        _require_no_texts(columns)
        called: dict[str, object] = {}
        for name, value in columns.items():
            # What a tokenizer gives for one text alone is one row.
            rows = [value] if is_ids(value) and "input_ids" in columns else as_tensor(value)
            if are_sequences(rows):
                called |= self._padded_column(name, rows, columns)
                continue
            if isinstance(rows, (list, tuple)) and _holds_numbers(rows):
                rows = _numbers(rows, f"Column {name!r}")
            called[name] = self._in_dtype(rows) if isinstance(rows, Tensor) else rows
        return called

    def _padded_column(self, name: str, rows: Sequence[Any], columns: Mapping[str, object]) -> dict[str, Tensor]:
        batch = right_padded(rows, 0)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if name == "input_ids":
            self._require_positions(ids)
            return {name: ids} if "attention_mask" in columns else {name: ids, "attention_mask": mask}
        if not bool(mask.all()) and not {"input_ids", "attention_mask"} & set(columns):
            raise InputError(
                f"Column {name!r} holds sequences of different lengths, and no column says what of them is padding. "
                f"Call the model with their mask: observe(…, inputs={name!r})."
            )
        return {name: ids}

    def _tokenized(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        batch = self._host.tokenize(texts) if self._tokenizer is None else padded(self._tokenizer, texts)
        empty = (batch["attention_mask"].sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"Text {empty[0]} of a batch gives no tokens: {texts[empty[0]]!r}. Take it out.")
        self._require_positions(batch["input_ids"])
        return batch

    def _of_ids(self, sequences: Sequence[Any]) -> Batch:
        """Bring sequences of ids to a tensor, with a mask beside it only where they differ in length."""
        batch = right_padded(sequences, 0)
        mask = batch["attention_mask"]
        empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"Sequence {empty[0]} of a batch has no tokens. Take it out.")
        self._require_positions(batch["input_ids"])
        return batch["input_ids"] if bool(mask.all()) else batch

    def _require_positions(self, ids: Tensor) -> None:
        """Check that no sequence is longer than the model takes."""
        most = self._host.context_length
        if most is not None and ids.shape[1] > most:
            raise InputError(
                f"A sequence of a batch has {ids.shape[1]:,} tokens; {self._name} takes {most:,}. Cut it: "
                f"observe([ids[:{most}] for ids in tokenizer(texts)['input_ids']])."
            )

    def _in_dtype(self, numbers: Tensor) -> Tensor:
        """Bring float64 to the dtype of a model that has none of it, and others to a model that has nothing else."""
        if not self._dtypes or not numbers.is_floating_point():
            return numbers
        if torch.float64 not in self._dtypes and numbers.dtype == torch.float64:
            return numbers.to(torch.float32 if torch.float32 in self._dtypes else self._dtypes[0])
        return numbers.double() if self._dtypes == [torch.float64] else numbers

    def _takes(self, name: str) -> bool:
        return self._takes_any or name in self._required or (self._host.priority > 0 and name in _TRANSLATED)


def _require_no_texts(columns: Mapping[str, object]) -> None:
    texts = next((name for name, value in columns.items() if isinstance(value, str) or are_texts(value)), None)
    if texts is not None:
        raise InputError(
            f"Column {texts!r} holds texts, which a model is not called with. Say which column to call it with: "
            f"observe(…, inputs={texts!r})."
        )


def _arguments_of(model: nn.Module) -> tuple[dict[str, bool], bool]:
    """Return the names that `forward` takes, each with whether it is required, and whether it takes any other too."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return {}, True
    stars = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = [parameter for parameter in parameters if parameter.kind not in stars]
    return {parameter.name: parameter.default is parameter.empty for parameter in named}, len(named) < len(parameters)


# --- kinds of values ----------------------------------------------------------------------------------------


def as_tensor(x: Any) -> Any:
    """Return an array or a series as a tensor, or as a list where it holds no numbers; all else as it is.

    Raises:
        InputError: it is a data frame, whose numbers and names are easily confused.
    """
    if isinstance(x, Tensor):
        return x
    if hasattr(x, "columns") and hasattr(x, "shape"):
        raise InputError(
            f"Expected inputs; got a {type(x).__name__}. Give its columns, frame.to_dict('list'), or its numbers, "
            "frame.to_numpy()."
        )
    if isinstance(x, np.generic):
        return x.item()
    if not hasattr(x, "__array__"):
        return x
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        return array.tolist()
    whole = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return torch.from_numpy(array if whole else array.copy())


def stacked(values: Sequence[Tensor], beside: set[int], what: str) -> Sequence[Tensor] | Tensor:
    """Stack tensors of one shape, one an input; those of different shapes are returned as they are.

    Args:
        values: the tensors.
        beside: lengths of what comes with them and has one entry an input.
        what: they are, in words.

    Raises:
        InputError: they may be positions, each over all inputs: `DataLoader` makes such a list of lists of numbers.
    """
    if len({value.shape for value in values}) > 1:
        return values
    count, length = len(values), len(values[0]) if values[0].ndim else 0
    if count > 1 and length and (beside != {count} or count == length):
        raise InputError(
            f"{what} is a list of {count} tensors of length {length}. It can be {count} inputs or, since that is what "
            f"a DataLoader makes of lists of numbers, {count} positions of {length} inputs. Give one tensor, with an "
            "input a row; of a datasets data set, give the data set itself."
        )
    return torch.stack(tuple(values))


def are_tensors(x: object) -> TypeGuard[Sequence[Tensor]]:
    """Whether it is a list of tensors."""
    return isinstance(x, (list, tuple)) and bool(x) and all(isinstance(entry, Tensor) for entry in x)


def are_texts(x: object) -> TypeGuard[Sequence[str]]:
    """Whether it is a list of texts."""
    return isinstance(x, (list, tuple)) and bool(x) and all(isinstance(entry, str) for entry in x)


def are_sequences(x: object) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list of sequences of token ids."""
    return isinstance(x, (list, tuple)) and bool(x) and all(map(is_ids, x))


def are_rows(x: object) -> TypeGuard[Sequence[Sequence[float]]]:
    """Whether it is a list of rows of numbers."""
    return isinstance(x, (list, tuple)) and bool(x) and all(map(is_row, x))


def is_ids(x: object) -> bool:
    """Whether it is one sequence of token ids."""
    if isinstance(x, Tensor):
        return x.ndim == 1 and is_whole(x)
    if isinstance(x, np.ndarray):
        return x.ndim == 1 and x.dtype.kind in "iu"
    return isinstance(x, (list, tuple)) and all(isinstance(entry, int) and not isinstance(entry, bool) for entry in x)


def is_row(x: object) -> bool:
    """Whether it is one row of numbers that are not all whole."""
    if not isinstance(x, (list, tuple)) or not any(isinstance(entry, float) for entry in x):
        return False
    return all(isinstance(entry, (int, float)) for entry in x)


def is_whole(x: Tensor) -> bool:
    """Whether a tensor is of whole numbers."""
    return not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool


def _numbers(nested: Sequence[Any], what: str) -> Tensor:
    """Return nested lists of numbers as a tensor, floating ones in float64."""
    try:
        return torch.from_numpy(np.array(nested))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} holds lists of numbers that differ in length, or something else. Pad them."
        ) from error


def _holds_numbers(nested: object) -> bool:
    """Whether the first entry of nested lists is a number."""
    while isinstance(nested, (list, tuple)) and nested:
        nested = nested[0]
    return isinstance(nested, (int, float))
